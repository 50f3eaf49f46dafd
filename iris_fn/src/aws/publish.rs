//! Publishes the answer to a request that came over MQTT.

use aws_config::SdkConfig;
use aws_sdk_iotdataplane::Client;
use aws_sdk_iotdataplane::error::SdkError;
use aws_sdk_iotdataplane::operation::publish::PublishError;
use aws_sdk_iotdataplane::primitives::Blob;

use crate::handler::Publisher;

/// AWS IoT's HTTPS data plane.
pub struct IotPublisher {
    client: Client,
}

impl IotPublisher {
    /// Publish in the region and with the rights of `config`.
    pub fn new(config: &SdkConfig) -> Self {
        let client = Client::new(config);
        Self { client }
    }
}

impl Publisher for IotPublisher {
    type Error = Box<SdkError<PublishError>>;

    async fn publish(&self, topic: &str, payload: Vec<u8>) -> Result<(), Self::Error> {
        self.client
            .publish()
            .topic(topic)
            .qos(1)
            .payload(Blob::new(payload))
            .send()
            .await
            .map_err(Box::new)?;
        Ok(())
    }
}
