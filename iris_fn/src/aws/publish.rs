//! Where an answer goes when the request came over MQTT.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_iotdataplane::Client;
use aws_sdk_iotdataplane::config::Builder;
use aws_sdk_iotdataplane::config::retry::{RetryConfig, RetryPartition, TokenBucket};
use aws_sdk_iotdataplane::error::SdkError;
use aws_sdk_iotdataplane::operation::publish::PublishError;
use aws_sdk_iotdataplane::primitives::Blob;

use crate::handler::Publisher;

/// AWS IoT's HTTPS data plane.
pub struct IotPublisher {
    client: Client,
}

impl IotPublisher {
    /// Publish in the region and with the rights of `config`. A publish that fails for a passing reason
    /// is tried again until the call's time is over: the answer is there, and it is all that is missing.
    pub fn new(config: &SdkConfig) -> Self {
        let retries = RetryConfig::standard()
            // More than fit into a call's time. The SDK counts up to it once, so not "for ever".
            .with_max_attempts(30)
            .with_initial_backoff(Duration::from_millis(100))
            .with_max_backoff(Duration::from_secs(1));
        // The SDK allows a container some fifty retries and wins one back with each success: after a few
        // calls that could not publish, the next ones would give up at once.
        let unlimited = RetryPartition::custom("iot-data").token_bucket(TokenBucket::unlimited());
        let config = Builder::from(config)
            .retry_config(retries)
            .retry_partition(unlimited.build())
            .build();
        let client = Client::from_conf(config);
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
