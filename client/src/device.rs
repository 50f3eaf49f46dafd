//! A device: the folder that `make device` writes.

use std::fs;
use std::path::Path;

use rumqttc::tokio_rustls::rustls::crypto::aws_lc_rs;
use rumqttc::{MqttOptions, TlsConfiguration, Transport};
use serde::Deserialize;

use crate::error::DeviceError;

/// A device: the address of its broker, its client id, and the certificate that proves it.
#[derive(Clone)]
pub struct Device {
    endpoint: Endpoint,
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// `endpoint.json`.
#[derive(Debug, Clone, Deserialize)]
struct Endpoint {
    host: String,
    port: u16,
    client_id: String,
    stack: String,
}

impl Device {
    /// Read `{endpoint.json,ca.pem,cert.pem,key.pem}` of a folder.
    ///
    /// # Errors
    /// [`DeviceError`] names the file.
    pub fn open(folder: &Path) -> Result<Self, DeviceError> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(|source| DeviceError::Read { path, source })
        };
        let endpoint = serde_json::from_slice(&read("endpoint.json")?).map_err(|source| {
            let path = folder.join("endpoint.json");
            DeviceError::Endpoint { path, source }
        })?;
        Ok(Self {
            endpoint,
            ca: read("ca.pem")?,
            certificate: read("cert.pem")?,
            key: read("key.pem")?,
        })
    }

    /// The same device through another port of this machine, such as a proxy's.
    pub fn through(mut self, port: u16) -> Self {
        self.endpoint.port = port;
        self
    }

    /// Its MQTT client id, which is also its thing's name.
    pub fn client_id(&self) -> &str {
        &self.endpoint.client_id
    }

    /// Host and port of its broker.
    pub fn address(&self) -> String {
        format!("{}:{}", self.endpoint.host, self.endpoint.port)
    }

    /// The topic of its requests.
    pub fn request_topic(&self) -> String {
        format!("{}/request/{}", self.endpoint.stack, self.client_id())
    }

    /// The topic of its requests by Basic Ingest: they go straight to the rule, past the broker, and are not metered
    /// (<https://docs.aws.amazon.com/iot/latest/developerguide/iot-basic-ingest.html>).
    pub fn basic_ingest_topic(&self) -> String {
        let (stack, topic) = (&self.endpoint.stack, self.request_topic());
        format!("$aws/rules/{stack}_rule/{topic}")
    }

    /// The topic of its answers.
    pub fn response_topic(&self) -> String {
        format!("{}/response/{}", self.endpoint.stack, self.client_id())
    }

    /// Options for rumqttc: mutual TLS, in which this side checks the broker's certificate and the broker checks the
    /// device's.
    pub fn options(&self) -> MqttOptions {
        let Endpoint { host, port, .. } = &self.endpoint;
        let mut options = MqttOptions::new(self.client_id(), host, *port);
        // Where two cryptographic libraries are compiled in, as the function's own is on a laptop, rustls asks which one
        // to use. The first choice counts; a second call changes nothing.
        let _ = aws_lc_rs::default_provider().install_default();
        options.set_transport(Transport::Tls(TlsConfiguration::Simple {
            ca: self.ca.clone(),
            client_auth: Some((self.certificate.clone(), self.key.clone())),
            alpn: None,
        }));
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_its_files_is_named() {
        let Err(error) = Device::open(Path::new("/nonexistent/lily")) else {
            panic!("there is no such folder")
        };
        assert!(
            error
                .to_string()
                .contains("/nonexistent/lily/endpoint.json")
        );
        assert!(error.to_string().contains("make device"));
    }
}
