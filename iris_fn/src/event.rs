//! What Lambda hands over: a keep-warm call, a message from the IoT rule, a direct call, or another service's event.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::error::HandlerError;
use crate::request::find_request_id;

/// An event, by where it comes from.
#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    /// Keep this container, and do nothing else: `{"warmup": true}`, a schedule's own event, or serverless-plugin-warmup's.
    Warmup,
    /// What the rule's SQL made of a device's message (`deploy/template.yaml`).
    FromRule {
        /// The message, as the device sent it.
        payload: Vec<u8>,
        /// Who sent it, by the topic that the device's policy allowed.
        client_id: String,
    },
    /// The body of an HTTP request, by way of a function URL, API Gateway or a load balancer.
    Http(Vec<u8>),
    /// A request, called directly. For anything else, the checks of a request give the best error.
    Direct(&'a [u8]),
}

/// The fields that show where an event comes from.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Envelope {
    warmup: bool,
    payload: Option<String>,
    #[serde(rename = "client_id")]
    client_id: Option<String>,
    /// A request has one; no other service's event has.
    #[serde(rename = "request_id")]
    request_id: Option<IgnoredAny>,
    #[serde(rename = "Event")]
    plugin: Option<Source>,
    source: Option<String>,
    #[serde(rename = "detail-type")]
    detail_type: Option<String>,
    event_source: Option<String>,
    #[serde(rename = "Records")]
    records: Vec<Source>,
    http_method: Option<IgnoredAny>,
    raw_path: Option<IgnoredAny>,
    body: Option<String>,
    is_base64_encoded: bool,
}

#[derive(Deserialize)]
struct Source {
    #[serde(alias = "eventSource", alias = "EventSource")]
    source: String,
}

impl Envelope {
    /// The service that sends records or notifications, which take no answer.
    fn service(self) -> Option<String> {
        let records = self.records.into_iter().next().map(|record| record.source);
        let news = self.source.filter(|_| self.detail_type.is_some());
        records.or(self.event_source).or(news)
    }
}

impl<'a> Event<'a> {
    /// Read an event.
    ///
    /// # Errors
    /// [`HandlerError::Payload`] when it looks like the rule's and its payload is not base64, and
    /// [`HandlerError::Service`] when its records would count as done although nobody gets an answer.
    pub fn read(event: &'a RawValue) -> Result<Self, HandlerError> {
        let direct = Self::Direct(event.get().as_bytes());
        let envelope = match event.get().as_bytes().first() {
            // A pipe's list of records. (serde would also read an `Envelope` from a list.)
            Some(b'[') => serde_json::from_str(event.get()).map(|records| Envelope {
                records,
                ..Envelope::default()
            }),
            _ => serde_json::from_str(event.get()),
        };
        let Ok(mut event) = envelope else {
            return Ok(direct);
        };
        let plugin = event.plugin.take().map(|event| event.source);
        let by_plugin = plugin.as_ref().or(event.source.as_ref());
        if event.warmup
            || event.detail_type.as_deref() == Some("Scheduled Event")
            || by_plugin.is_some_and(|source| source == "serverless-plugin-warmup")
        {
            return Ok(Self::Warmup);
        }
        if let (Some(payload), Some(client_id)) = (event.payload.take(), event.client_id.take()) {
            return match BASE64.decode(&payload) {
                Ok(payload) => Ok(Self::FromRule { payload, client_id }),
                Err(source) => Err(HandlerError::Payload {
                    request_id: find_request_id(payload.as_bytes()),
                    source,
                }),
            };
        }
        if event.request_id.is_some() {
            return Ok(direct);
        }
        if event.http_method.is_some() || event.raw_path.is_some() {
            let body = event.body.unwrap_or_default();
            return Ok(Self::Http(match BASE64.decode(&body) {
                Ok(decoded) if event.is_base64_encoded => decoded,
                _ => body.into_bytes(),
            }));
        }
        event
            .service()
            .map_or(Ok(direct), |service| Err(HandlerError::Service(service)))
    }
}
