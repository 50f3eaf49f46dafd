//! What Lambda hands over: a keep-warm call, a message from the IoT rule, or a direct call.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;

/// An event, by where it comes from.
#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    /// `{"warmup": true}`: keep this container, and do nothing else.
    Warmup,
    /// What the rule's SQL made of a device's message (`deploy/template.yaml`).
    FromRule {
        /// The message, as the device sent it.
        payload: Vec<u8>,
        /// Who sent it, by the topic that the device's policy allowed.
        client_id: String,
    },
    /// A request, called directly. The request's own checks say best what is wrong with anything else.
    Direct(&'a [u8]),
}

/// The fields by which an event tells where it comes from.
#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    warmup: bool,
    payload: Option<String>,
    client_id: Option<String>,
}

impl<'a> Event<'a> {
    /// Read an event.
    ///
    /// # Errors
    /// When it looks like the rule's and its payload is not base64.
    pub fn read(event: &'a RawValue) -> Result<Self, base64::DecodeError> {
        Ok(match serde_json::from_str(event.get()) {
            Ok(Envelope { warmup: true, .. }) => Self::Warmup,
            Ok(Envelope {
                payload: Some(payload),
                client_id: Some(client_id),
                ..
            }) => Self::FromRule {
                payload: BASE64.decode(payload)?,
                client_id,
            },
            _ => Self::Direct(event.get().as_bytes()),
        })
    }
}
