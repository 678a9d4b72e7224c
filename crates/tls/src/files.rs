use std::fmt::Display;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A setting, or the file that it names, that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` = {value}: {problem}; {fix}")]
pub struct InvalidTls {
    /// The setting ("qdrant.tls.ca_file"), or the flag of the command line.
    pub key: String,
    /// What it is set to. Never what stands in a file.
    pub value: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub fix: &'static str,
}

/// The name of a setting. Without a section, it is a flag of the command line.
pub(crate) fn key_of(section: &str, name: &str) -> String {
    if section.is_empty() { format!("--{}", name.replace('_', "-")) } else { format!("{section}.{name}") }
}

/// A PEM file, and the setting that names it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named<'a> {
    pub(crate) section: &'a str,
    pub(crate) name: &'a str,
    pub(crate) path: &'a Path,
}

impl Named<'_> {
    pub(crate) fn is_set(&self) -> bool {
        is_set(self.path)
    }

    pub(crate) fn invalid(&self, problem: impl Display, fix: &'static str) -> InvalidTls {
        let value = format!("{:?}", self.path.display().to_string());
        InvalidTls { key: key_of(self.section, self.name), value, problem: problem.to_string(), fix }
    }

    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, InvalidTls> {
        const FIX: &str = "name a PEM file with certificates, which this process may read";
        let read = CertificateDer::pem_file_iter(self.path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let certificates = read.map_err(|error| self.invalid(describe(&error, "certificate"), FIX))?;
        if certificates.is_empty() {
            return Err(self.invalid("has no certificate", FIX));
        }
        Ok(certificates)
    }

    pub(crate) fn roots(&self) -> Result<RootCertStore, InvalidTls> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            let fix = "name the certificates of authorities";
            roots.add(certificate).map_err(|error| self.invalid(format!("can't be used: {error}"), fix))?;
        }
        Ok(roots)
    }

    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>, InvalidTls> {
        let fix = "name the PEM file with cert_file's private key, which this process may read";
        PrivateKeyDer::from_pem_file(self.path).map_err(|error| self.invalid(describe(&error, "private key"), fix))
    }
}

/// Says what is wrong with a file, and quotes nothing of it.
fn describe(error: &pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::Io(error) => format!("can't be read: {error}"),
        pem::Error::NoItemsFound => format!("has no {wanted}"),
        _ => "is no PEM file".to_owned(),
    }
}

pub(crate) fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

/// Checks that a certificate and its key are both there, or neither.
pub(crate) fn check_pair(section: &str, cert: &Path, key: &Path) -> Result<(), InvalidTls> {
    let (missing, there) = match (is_set(cert), is_set(key)) {
        (true, false) => ("key_file", cert),
        (false, true) => ("cert_file", key),
        _ => return Ok(()),
    };
    let missing = Named { section, name: missing, path: Path::new("") };
    Err(missing.invalid(format_args!("is missing beside {}", there.display()), "set both, or neither"))
}
