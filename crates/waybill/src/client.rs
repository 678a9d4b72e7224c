//! How a client command reaches its service, and what it says when it can't.

use std::error::Error as _;
use std::fmt;
use std::path::PathBuf;

use tonic::{Code, Status};
use waybill_api::embedding::v1::search_service_client::SearchServiceClient;
use waybill_api::extraction::v1::extraction_service_client::ExtractionServiceClient;
use waybill_api::ingestion::v1::ingestion_service_client::IngestionServiceClient;
use waybill_api::relay::v1::relay_service_client::RelayServiceClient;

use waybill_runtime::config::Secret;
use waybill_runtime::grpc::{ClientOptions, Peer};
use waybill_tls::ClientTlsConfig;

use crate::cli::{CredentialArgs, EndpointArgs};
use crate::endpoints::{self, Endpoints};
use crate::exit::Usage;
use crate::paths;

/// Answers carry whole documents (`GetSource` with its text), so tonic's 4 MiB are too few.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Holds the API key, for those who have it in no file.
const KEY_VARIABLE: &str = "WAYBILL_API_KEY";

/// A service that people talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Ingestion,
    Extraction,
    Search,
    Relay,
}

impl Role {
    /// Ports that `waybill up` takes if it can, and `waybill serve` by default.
    pub(crate) const fn default_port(self) -> u16 {
        match self {
            Self::Ingestion => 7701,
            Self::Extraction => 7702,
            Self::Search => 7703,
            Self::Relay => 7704,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ingestion => "ingestion service",
            Self::Extraction => "extraction service",
            Self::Search => "search service",
            Self::Relay => "relay",
        }
    }

    fn of(self, endpoints: &Endpoints) -> String {
        match self {
            Self::Ingestion => endpoints.ingestion.clone(),
            Self::Extraction => endpoints.extraction.clone(),
            Self::Search => endpoints.embedding.clone(),
            Self::Relay => endpoints.relay.clone(),
        }
    }
}

/// A service's address, and how we came by it.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    role: Role,
    pub(crate) url: String,
    origin: Origin,
    credentials: CredentialArgs,
}

#[derive(Debug, Clone)]
enum Origin {
    Named,
    RunningUp { pid: u32, file: String },
    Default,
}

/// Nothing answers there.
#[derive(Debug, thiserror::Error)]
#[error("the {} can't be reached at {} ({}): {}\n{}", .target.role, .target.url, .target.origin, .reason, .target.origin.advice())]
pub(crate) struct Unreachable {
    target: Target,
    reason: String,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named => f.write_str("as you named it"),
            Self::RunningUp { pid, file } => {
                write!(f, "`waybill up`, process {pid}, wrote this to {file}")
            }
            Self::Default => f.write_str("the default, as no `waybill up` runs here"),
        }
    }
}

impl Origin {
    const fn advice(&self) -> &'static str {
        match self {
            Self::Named => "hint: check --endpoint (or WAYBILL_ENDPOINT) and that the service runs",
            Self::RunningUp { .. } | Self::Default => {
                "hint: start one with `waybill up`, or name another with --endpoint"
            }
        }
    }
}

impl Target {
    /// Finds a service: the URL named, else the running `waybill up`, else the default port.
    pub(crate) fn find(role: Role, named: Option<&str>, args: &EndpointArgs) -> anyhow::Result<Self> {
        if let Some(url) = named {
            check_url(url)?;
            return Ok(Self {
                role,
                url: url.to_owned(),
                origin: Origin::Named,
                credentials: args.credentials.clone(),
            });
        }
        // Without a home directory there is no file to look at, and the default will do.
        if let Ok(data_dir) = paths::data_dir(args.data_dir.data_dir.as_deref()) {
            let file = endpoints::file_in(&data_dir);
            if let Some(endpoints) = Endpoints::read(&file)? {
                let url = role.of(&endpoints);
                let file = file.display().to_string();
                let origin = Origin::RunningUp { pid: endpoints.pid, file };
                return Ok(Self { role, url, origin, credentials: args.credentials.clone() });
            }
        }
        let url = format!("http://127.0.0.1:{}", role.default_port());
        Ok(Self { role, url, origin: Origin::Default, credentials: args.credentials.clone() })
    }

    /// Prepares a connection. It is made when it is first used.
    pub(crate) fn peer(&self) -> anyhow::Result<Peer> {
        waybill_runtime::grpc::peer(&self.url, &options(&self.credentials)?)
    }

    /// Turns a service's answer into what a person can act on.
    pub(crate) fn explain(&self, status: &Status) -> anyhow::Error {
        // Only a status made on this side has a source.
        match status.source() {
            Some(source) => Unreachable { target: self.clone(), reason: root(source) }.into(),
            None => {
                let what = describe(status.code(), status.message());
                let hint = match status.code() {
                    Code::NotFound if what.contains("no project") => {
                        "\nhint: `waybill projects ls` lists what there is, --project names one"
                    }
                    Code::Unauthenticated => "\nhint: set WAYBILL_API_KEY, or name a file with --api-key-file",
                    _ => "",
                };
                anyhow::anyhow!("{what}{hint}")
            }
        }
    }
}

/// Reads the key and the names of the certificates.
fn options(args: &CredentialArgs) -> anyhow::Result<ClientOptions> {
    let api_key = match &args.api_key_file {
        Some(file) => {
            let key = std::fs::read_to_string(file)
                .map_err(|error| Usage(format!("can't read the API key from {}: {error}", file.display())))?;
            Secret::new(key.trim())
        }
        None => Secret::new(std::env::var(KEY_VARIABLE).unwrap_or_default().trim()),
    };
    let file = |file: &Option<PathBuf>| file.clone().unwrap_or_default();
    let tls = ClientTlsConfig {
        ca_file: file(&args.ca_file),
        cert_file: file(&args.cert_file),
        key_file: file(&args.key_file),
        server_name: args.server_name.clone().unwrap_or_default(),
    };
    Ok(ClientOptions { tls: tls.of(""), api_key })
}

/// A connection to the ingestion service.
pub(crate) fn ingestion(args: &EndpointArgs) -> anyhow::Result<(IngestionServiceClient<Peer>, Target)> {
    let target = Target::find(Role::Ingestion, args.endpoint.as_deref(), args)?;
    let client = IngestionServiceClient::new(target.peer()?).max_decoding_message_size(MAX_ANSWER_BYTES);
    Ok((client, target))
}

/// A connection to the search service.
pub(crate) fn search(args: &EndpointArgs) -> anyhow::Result<(SearchServiceClient<Peer>, Target)> {
    let target = Target::find(Role::Search, args.endpoint.as_deref(), args)?;
    let client = SearchServiceClient::new(target.peer()?).max_decoding_message_size(MAX_ANSWER_BYTES);
    Ok((client, target))
}

/// A connection to the extraction service.
pub(crate) fn extraction(args: &EndpointArgs) -> anyhow::Result<(ExtractionServiceClient<Peer>, Target)> {
    let target = Target::find(Role::Extraction, args.endpoint.as_deref(), args)?;
    let client = ExtractionServiceClient::new(target.peer()?).max_decoding_message_size(MAX_ANSWER_BYTES);
    Ok((client, target))
}

/// A connection to the relay.
pub(crate) fn relay(named: Option<&str>, args: &EndpointArgs) -> anyhow::Result<(RelayServiceClient<Peer>, Target)> {
    let target = Target::find(Role::Relay, named, args)?;
    Ok((RelayServiceClient::new(target.peer()?), target))
}

/// Says what a code and its message mean.
pub(crate) fn describe(code: Code, message: &str) -> String {
    match code {
        // The message says it all.
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Unauthenticated
        | Code::PermissionDenied => message.to_owned(),
        Code::Unimplemented => {
            format!("{message} (is this the right service, and as new as this program?)")
        }
        _ => format!("{message} ({code:?})"),
    }
}

/// Says whether a failure may pass by itself.
pub(crate) const fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
    )
}

fn check_url(url: &str) -> Result<(), Usage> {
    let valid = url
        .parse::<tonic::transport::Uri>()
        .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
    if valid {
        return Ok(());
    }
    Err(Usage(format!("{url:?} is no endpoint: expected a URL such as http://127.0.0.1:7701")))
}

/// The innermost cause says most: "connection refused" rather than "transport error".
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url() {
        assert!(check_url("http://127.0.0.1:7701").is_ok());
        assert!(check_url("https://waybill.example.com").is_ok());
        for bad in ["", "localhost:7701", "ftp://x", "http://"] {
            assert!(check_url(bad).is_err(), "{bad:?}");
        }
    }
}
