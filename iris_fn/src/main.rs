//! The `bootstrap` that Lambda runs. Everything here happens once per container, before its first
//! call: settings, connections, the model. Calls reuse all of it.

use std::env;
use std::time::{Duration, Instant};

use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{SharedCredentialsProvider, SharedHttpClient};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use iris_fn::handler::Handler;
use iris_fn::publish::IotPublisher;
use iris_fn::store::S3Store;
use lambda_runtime::{Diagnostic, Error, LambdaEvent, run, service_fn};
use serde_json::value::RawValue;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How long one attempt at S3 or iot-data may take; a failed one is tried again.
const ATTEMPT: Duration = Duration::from_secs(2);
const AMAZON_ROOTS: &[u8] = include_bytes!("amazon-roots.pem");

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let started = Instant::now();
    // Only our own lines: the runtime's spans would be formatted for every call and never printed.
    let ours = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_targets([
            ("iris_fn", LevelFilter::INFO),
            ("bootstrap", LevelFilter::INFO),
        ]);
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_target(false)
        .finish()
        .with(ours)
        .init();

    let log = started.elapsed();
    let config = aws()?;
    let settings = started.elapsed() - log;
    let store = S3Store::new(aws_sdk_s3::Client::new(&config), setting("BUCKET")?);
    let publisher = IotPublisher::new(&config);
    let model_ttl = Duration::from_secs(setting("MODEL_TTL")?.parse()?);
    let handler = Handler::new(store, publisher, setting("STACK")?, model_ttl, |line| {
        line.print()
    });

    let clients = started.elapsed() - log - settings;
    // A function without a model still starts: it refuses each request with the reason, and recovers
    // by itself as soon as there is one.
    if let Err(e) = handler.model().await {
        tracing::error!(error = e.details(), "no model yet");
    }

    tracing::info!(
        log_us = log.as_micros() as u64,
        settings_us = settings.as_micros() as u64,
        clients_us = clients.as_micros() as u64,
        total_us = started.elapsed().as_micros() as u64,
        "ready"
    );

    let handler = &handler;
    let answer = move |event: LambdaEvent<Box<RawValue>>| async move {
        handler
            .handle(&event.payload, event.context.deadline())
            .await
            .map_err(|e| Diagnostic {
                error_type: e.kind().to_owned(),
                error_message: e.to_string(),
            })
    };
    run(service_fn(answer)).await
}

/// Where the function is and who it is: Lambda says so in the environment. The SDK's default chain
/// would look in six more places, and every cold start would carry the code for that.
fn aws() -> Result<SdkConfig, Error> {
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
fn setting(name: &str) -> Result<String, Error> {
    env::var(name).map_err(|e| format!("the function's environment variable {name}: {e}").into())
}
