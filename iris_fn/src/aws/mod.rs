//! The connection to AWS: region and credentials from the environment, and the trusted roots. The models from S3 and the
//! answers to AWS IoT use it.

mod publish;
mod store;

pub use publish::IotPublisher;
pub use store::S3Store;

use std::env;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{HttpClient, SharedCredentialsProvider, SharedHttpClient};
use aws_sdk_s3::error::ConnectorError;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use lambda_runtime::Error;

use crate::current::REFRESH_TIMEOUT;
use crate::model::MAX_BYTES;

/// How long one attempt at S3 or iot-data may take, from the connection to the last byte of the answer. The SDK makes
/// up to three, and waits up to a second before the second, up to two before the third.
const ATTEMPT: Duration = Duration::from_millis(1500);
const _: () = assert!(ATTEMPT.as_millis() + 1000 < REFRESH_TIMEOUT.as_millis());
/// How long all of them may take together: two in any case, and a third where they fail early.
const OPERATION: Duration = Duration::from_secs(4);
/// How long a connection may be idle and used again. A container that was frozen meanwhile may not know that the far
/// side has closed it; S3 seems to do so after 20 seconds (<https://github.com/vectordotdev/vector/pull/9703>).
const IDLE: Duration = Duration::from_secs(15);
const AMAZON_ROOTS: &[u8] = include_bytes!("amazon-roots.pem");

/// Region and credentials: Lambda puts them into the environment. The SDK's default chain would try six more sources,
/// and every cold start would load the code for that.
///
/// # Errors
/// When the environment does not name the region.
pub fn config() -> Result<SdkConfig, Error> {
    let credentials = EnvironmentVariableCredentialsProvider::new();
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(setting("AWS_REGION")?))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .timeout_config(timeouts())
        .http_client(whole(https_client()?));
    // The local cloud; on AWS each service has an address of its own.
    Ok(match env::var("AWS_ENDPOINT_URL") {
        Ok(url) => config.endpoint_url(url).build(),
        Err(_) => config.build(),
    })
}

/// Without these timeouts, a service that accepts a connection and does not answer would block a call until its end.
fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .operation_attempt_timeout(ATTEMPT)
        .operation_timeout(OPERATION)
        .build()
}

/// A client that trusts Amazon's roots and no others: the function connects to nothing else, and reading the system's
/// hundred and more roots would take longer than the rest of the start
/// (<https://www.amazontrust.com/repository/>).
fn https_client() -> Result<SharedHttpClient, Error> {
    let roots = TrustStore::empty().with_pem_certificate(AMAZON_ROOTS);
    let tls = TlsContext::builder().with_trust_store(roots).build()?;
    Ok(aws_smithy_http_client::Builder::new()
        .pool_idle_timeout(IDLE)
        .tls_provider(Provider::rustls(CryptoMode::Ring))
        .tls_context(tls)
        .build_https())
}

/// The same client, which returns answers only with their whole bodies. The SDK would return S3's object while it
/// streams, and neither its timeouts nor its attempts would cover that.
fn whole(client: SharedHttpClient) -> SharedHttpClient {
    http_client_fn(move |settings, components| {
        SharedHttpConnector::new(Whole(client.http_connector(settings, components)))
    })
}

#[derive(Debug)]
struct Whole(SharedHttpConnector);

impl HttpConnector for Whole {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let answer = self.0.call(request);
        HttpConnectorFuture::new(async move {
            let mut answer = answer.await?;
            let length = answer.headers().get("content-length");
            let length: Option<usize> = length.and_then(|bytes| bytes.parse().ok());
            // A body that is too large for a model is not read: `S3Store` refuses it.
            if length.is_some_and(|bytes| bytes <= MAX_BYTES) {
                let body = ByteStream::new(answer.take_body()).collect().await;
                let body = body.map_err(|e| ConnectorError::io(e.into()))?;
                *answer.body_mut() = SdkBody::from(body.into_bytes());
            }
            Ok(answer)
        })
    }
}

/// A setting that the template gives to the function.
///
/// # Errors
/// When it is not set; the message names it.
pub fn setting(name: &str) -> Result<String, Error> {
    env::var(name).map_err(|e| format!("the function's environment variable {name}: {e}").into())
}
