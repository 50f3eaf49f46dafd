//! The `bootstrap` that Lambda runs. Everything here happens once per container, before its first
//! call: settings, connections, the model. Calls reuse all of it.

use std::time::{Duration, Instant};

use iris_fn::aws::{self, IotPublisher, S3Store, setting};
use iris_fn::current::CurrentModel;
use iris_fn::error::details;
use iris_fn::handler::Handler;
use lambda_runtime::{Diagnostic, Error, LambdaEvent, run, service_fn};
use serde_json::value::RawValue;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How long a start may wait for the model: half of what Lambda gives it.
const MODEL_TIME: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let started = Instant::now();
    // Only our own lines: the runtime's spans would be formatted for every call and never printed.
    let ours: Targets = "warn,iris_fn=info,bootstrap=info".parse()?;
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
    let config = aws::config()?;
    let settings = started.elapsed() - log;
    let store = S3Store::new(aws_sdk_s3::Client::new(&config), setting("BUCKET")?);
    let publisher = IotPublisher::new(&config);
    let model_ttl = setting("MODEL_TTL")?.parse().map_err(|e| {
        format!("the function's environment variable MODEL_TTL: whole seconds, please: {e}")
    })?;
    let model_ttl = Duration::from_secs(model_ttl);
    let model = CurrentModel::new(store, model_ttl);
    let provisioned = setting("AWS_LAMBDA_INITIALIZATION_TYPE")
        .is_ok_and(|initialization| initialization == "provisioned-concurrency");
    let handler = Handler {
        model,
        publisher,
        stack: setting("STACK")?,
        log: |line| line.print(),
        invoked: provisioned.into(),
    };

    let clients = started.elapsed() - log - settings;
    // A function without a model still starts: it refuses each request with the reason, and recovers
    // by itself as soon as there is one.
    handler.model.get((started + MODEL_TIME).into()).await;
    if let Some(trouble) = handler.model.trouble() {
        tracing::error!(error = details(&*trouble), "no model yet");
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
                error_message: details(&e),
            })
    };
    run(service_fn(answer)).await
}
