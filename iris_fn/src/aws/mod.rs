//! How the function reaches AWS: where it is and who it is, from its environment, and whom it trusts. The models in S3
//! and the answers to AWS IoT go by way of this.

mod publish;
mod store;

pub use publish::IotPublisher;
pub use store::S3Store;

use std::env;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{SharedCredentialsProvider, SharedHttpClient};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use lambda_runtime::Error;

/// How long one attempt at S3 or iot-data may take; a failed one is tried again.
const ATTEMPT: Duration = Duration::from_secs(2);
const AMAZON_ROOTS: &[u8] = include_bytes!("amazon-roots.pem");

/// Where the function is and who it is: Lambda says so in the environment. The SDK's default chain
/// would look in six more places, and every cold start would carry the code for that.
///
/// # Errors
/// When the environment does not name the region.
pub fn config() -> Result<SdkConfig, Error> {
    let credentials = EnvironmentVariableCredentialsProvider::new();
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(setting("AWS_REGION")?))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        // Without it a service that accepts and then says nothing would keep a start waiting for good.
        .timeout_config(
            TimeoutConfig::builder()
                .operation_attempt_timeout(ATTEMPT)
                .build(),
        )
        .http_client(https_client()?);
    // The local cloud; on AWS each service has an address of its own.
    Ok(match env::var("AWS_ENDPOINT_URL") {
        Ok(url) => config.endpoint_url(url).build(),
        Err(_) => config.build(),
    })
}

/// A client that trusts Amazon's own roots and no others: the function talks to nobody else, and to
/// read the system's hundred and more would take longer than all the rest of the start
/// (<https://www.amazontrust.com/repository/>).
fn https_client() -> Result<SharedHttpClient, Error> {
    let roots = TrustStore::empty().with_pem_certificate(AMAZON_ROOTS);
    let tls = TlsContext::builder().with_trust_store(roots).build()?;
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::rustls(CryptoMode::Ring))
        .tls_context(tls)
        .build_https())
}

/// A setting that the template gives to the function.
///
/// # Errors
/// When it is not there; the message names it.
pub fn setting(name: &str) -> Result<String, Error> {
    env::var(name).map_err(|e| format!("the function's environment variable {name}: {e}").into())
}
