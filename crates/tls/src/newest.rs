//! Trust and certificates that are read for each handshake, for clients that connect by themselves.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use crate::client::refusal;
use crate::files::InvalidTls;
use crate::{ClientTls, provider};

impl ClientTls {
    /// Returns what an HTTP client needs that makes its own connections: each has the newest files.
    ///
    /// # Errors
    /// The first setting whose file can't be used.
    pub fn for_http(&self) -> Result<ClientConfig, InvalidTls> {
        if self.is_set() {
            self.check()?;
        }
        let newest = Arc::new(Newest(self.clone()));
        let mut config = self
            .builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&newest) as Arc<dyn ServerCertVerifier>)
            .with_client_cert_resolver(newest);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Does what rustls does with fixed roots and a fixed certificate, and reads both when they are
/// needed.
#[derive(Debug)]
struct Newest(ClientTls);

impl ServerCertVerifier for Newest {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let general = |error: &dyn std::error::Error| Error::General(error.to_string());
        let roots = Arc::new(self.0.roots().map_err(|error| general(&error))?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
        let verifier = verifier.map_err(|error| general(&error))?;
        let named = self.0.server_name().map(ServerName::try_from).transpose().map_err(|error| general(&error))?;
        let name = named.as_ref().unwrap_or(host);
        verifier
            .verify_server_cert(certificate, chain, name, ocsp, now)
            .map_err(|error| Error::General(refusal(self.0.section(), &host.to_str(), &error)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ResolvesClientCert for Newest {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let (chain, key) = match self.0.identity()? {
            Ok(identity) => identity,
            Err(error) => {
                tracing::warn!(%error, "certificate not shown");
                return None;
            }
        };
        CertifiedKey::from_der(chain, key, &provider()).map(Arc::new).ok()
    }

    fn has_certs(&self) -> bool {
        self.0.identity().is_some()
    }
}
