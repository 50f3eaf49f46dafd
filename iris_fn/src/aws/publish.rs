//! Publishes the answer to a request that came over MQTT.

use aws_config::SdkConfig;
use aws_sdk_iotdataplane::Client;
use aws_sdk_iotdataplane::primitives::Blob;

use crate::error::BoxError;
use crate::handler::Publisher;

/// AWS IoT's HTTPS data plane.
pub struct IotPublisher(Client);

impl IotPublisher {
    /// Publish in the region and with the rights of `config`.
    pub fn new(config: &SdkConfig) -> Self {
        Self(Client::new(config))
    }
}

impl Publisher for IotPublisher {
    async fn publish(&self, topic: &str, payload: Vec<u8>) -> Result<(), BoxError> {
        let publish = self.0.publish().topic(topic).qos(1);
        publish.payload(Blob::new(payload)).send().await?;
        Ok(())
    }
}
