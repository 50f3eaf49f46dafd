//! A function that only answers: what a round trip over MQTT costs without a model, a check or a log line.

use aws_config::BehaviorVersion;
use base64::prelude::{BASE64_STANDARD, Engine};
use iris_fn::publish::{IotPublisher, Publisher};
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde_json::Value;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let (stack, publisher) = (&std::env::var("STACK")?, &IotPublisher::new(&config));
    run(service_fn(move |event: LambdaEvent<Value>| async move {
        let text = |name: &str| event.payload[name].as_str().unwrap_or_default();
        let payload = BASE64_STANDARD.decode(text("payload"))?;
        let topic = format!("{stack}/response/{}", text("client_id"));
        publisher.publish(&topic, payload).await?;
        Ok::<(), Error>(())
    }))
    .await
}
