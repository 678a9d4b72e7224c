//! Waiting until services answer.

use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::{sleep, timeout};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use waybill_runtime::grpc::{ClientOptions, peer};

/// Short against a start of half a second.
const POLL: Duration = Duration::from_millis(20);

/// The longest part is loading a model: seconds for a large one from a slow disk.
const LIMIT: Duration = Duration::from_secs(120);

/// Waits until each of these servers says that it serves.
pub(super) async fn all_serving(urls: &[&String], options: &ClientOptions) -> anyhow::Result<()> {
    try_join_all(urls.iter().map(|url| serving(url, options))).await?;
    Ok(())
}

async fn serving(url: &str, options: &ClientOptions) -> anyhow::Result<()> {
    let mut client = HealthClient::new(peer(url, options)?);
    let until_serving = async {
        // The empty name asks about the server as a whole.
        while !client
            .check(HealthCheckRequest::default())
            .await
            .is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving)
        {
            sleep(POLL).await;
        }
    };
    timeout(LIMIT, until_serving).await.map_err(|_| anyhow::anyhow!("{url} does not serve after {} s", LIMIT.as_secs()))
}
