//! A function that sends back what it got: what a round trip over MQTT costs without a model or a check.

use base64::prelude::{BASE64_STANDARD, Engine};
use iris_fn::aws::{self, IotPublisher};
use iris_fn::handler::Publisher;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde_json::Value;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let (stack, publisher) = (&aws::setting("STACK")?, &IotPublisher::new(&aws::config()?));
    run(service_fn(move |event: LambdaEvent<Value>| async move {
        let text = |name: &str| event.payload[name].as_str().unwrap_or_default();
        let payload = BASE64_STANDARD.decode(text("payload"))?;
        let topic = format!("{stack}/response/{}", text("client_id"));
        publisher.publish(&topic, payload).await?;
        // One line a call, as ours: for one without output the local cloud waits a moment.
        println!("sent back");
        Ok::<(), Error>(())
    }))
    .await
}
