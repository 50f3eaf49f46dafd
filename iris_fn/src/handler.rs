//! A Lambda event in, a reply out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;
use tokio::sync::OnceCell;

use crate::error::RequestError;
use crate::model::Model;
use crate::predict::Prediction;
use crate::publish::{MAX_PAYLOAD, Publisher};
use crate::request::{Question, Refused, Request};
use crate::store::{ModelStore, StoreError};

/// Why an invocation fails. A bad request never does: it is answered. What fails is retried by
/// Lambda when it came asynchronously, and then kept in the dead-letter queue.
#[derive(Debug, Error)]
pub enum HandlerError {
    /// The rule's event does not hold what the rule's SQL puts there.
    #[error("the rule's `payload` is not base64: {0}")]
    Payload(#[from] base64::DecodeError),
    /// The reply is known but could not be delivered.
    #[error("could not publish the answer to {topic}: {source}")]
    Publish {
        /// The answer topic.
        topic: String,
        /// The publisher's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What the function answers, as it is serialized.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Reply<'m> {
    /// To `{"warmup": true}`.
    Warm {
        /// Always true.
        warm: bool,
        /// Whether this call started the container.
        cold_start: bool,
    },
    /// To a valid request.
    Answer {
        /// As it was asked.
        request_id: String,
        /// The prediction or predictions.
        #[serde(flatten)]
        result: Predictions<'m>,
        /// SHA-256 of the model that answered.
        model: &'m str,
        /// Whether this call started the container.
        cold_start: bool,
        /// Time in the handler before the reply is serialized, in microseconds.
        handler_us: u64,
    },
    /// To a bad request.
    Refusal {
        /// As it was asked, where it could be read.
        request_id: Option<String>,
        /// What was wrong.
        error: Refusal,
    },
}

/// One flower's prediction in place, or a list in the order of the question.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Predictions<'m> {
    /// `"species", "probabilities", "in_distribution"`.
    One(Prediction<'m>),
    /// `"predictions": [ … ]`.
    Batch {
        /// In the order of `flowers`.
        predictions: Vec<Prediction<'m>>,
    },
}

/// `{"code", "message"}` of a refusal.
#[derive(Debug, Serialize)]
pub struct Refusal {
    /// Stable, for programs: [`RequestError::code`].
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// The function: one per container, shared by its calls.
pub struct Handler<S, P> {
    store: S,
    publisher: P,
    /// First level of the answer topics.
    stack: String,
    /// Read once per container: this is what "reuse the container" saves.
    model: OnceCell<Model>,
    invoked: AtomicBool,
}

/// The fields by which an event tells where it comes from.
#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    warmup: bool,
    payload: Option<String>,
    client_id: Option<String>,
}

impl<S: ModelStore, P: Publisher> Handler<S, P> {
    /// A handler that answers to `<stack>/response/<client_id>`.
    pub fn new(store: S, publisher: P, stack: String) -> Self {
        Self {
            store,
            publisher,
            stack,
            model: OnceCell::new(),
            invoked: AtomicBool::new(false),
        }
    }

    /// Load the model unless it is there already.
    ///
    /// # Errors
    /// When it cannot be read or is refused; the next call tries again.
    pub async fn load(&self) -> Result<&Model, StoreError> {
        self.model.get_or_try_init(|| self.store.current()).await
    }

    /// Answer one event: a keep-warm call, a message from the IoT rule, or a direct invoke.
    ///
    /// # Errors
    /// [`HandlerError`] when the answer to a rule's message could not be delivered.
    pub async fn handle(&self, event: &RawValue) -> Result<Reply<'_>, HandlerError> {
        let started = Instant::now();
        let cold_start = !self.invoked.swap(true, Ordering::Relaxed);
        match serde_json::from_str(event.get()) {
            Ok(Envelope { warmup: true, .. }) => Ok(Reply::Warm {
                warm: true,
                cold_start,
            }),
            Ok(Envelope {
                payload: Some(payload),
                client_id: Some(client_id),
                ..
            }) => {
                let reply = self
                    .answer(&BASE64.decode(payload)?, started, cold_start)
                    .await;
                self.send(&client_id, reply).await
            }
            // Whatever else it is, the request's own checks say best what is wrong with it.
            _ => Ok(self
                .answer(event.get().as_bytes(), started, cold_start)
                .await),
        }
    }

    async fn answer(&self, bytes: &[u8], started: Instant, cold_start: bool) -> Reply<'_> {
        let reply = match Request::from_bytes(bytes) {
            Err(refused) => Reply::refusal(refused),
            Ok(Request {
                request_id,
                question,
            }) => match self.load().await {
                Err(e) => Reply::refusal(Refused {
                    request_id: Some(request_id),
                    error: RequestError::ModelUnavailable(e.to_string()),
                }),
                Ok(model) => {
                    let result = match question {
                        Question::One(flower) => Predictions::One(model.predict(&flower)),
                        Question::Batch(flowers) => Predictions::Batch {
                            predictions: flowers.iter().map(|f| model.predict(f)).collect(),
                        },
                    };
                    let handler_us = started.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
                    Reply::Answer {
                        request_id,
                        result,
                        model: model.sha256(),
                        cold_start,
                        handler_us,
                    }
                }
            },
        };
        reply.log();
        reply
    }

    /// Publish `reply` to the asker's answer topic, and return what was published.
    async fn send<'a>(&self, client_id: &str, reply: Reply<'a>) -> Result<Reply<'a>, HandlerError> {
        let topic = format!("{}/response/{client_id}", self.stack);
        let (reply, payload) = reply.fit(MAX_PAYLOAD);
        match self.publisher.publish(&topic, payload).await {
            Ok(()) => Ok(reply),
            Err(e) => Err(HandlerError::Publish {
                topic,
                source: e.into(),
            }),
        }
    }
}

impl Reply<'_> {
    fn refusal(Refused { request_id, error }: Refused) -> Self {
        Self::Refusal {
            request_id,
            error: Refusal {
                code: error.code(),
                message: error.to_string(),
            },
        }
    }

    /// The reply and its bytes; a batch whose answer does not fit into `max` bytes becomes a refusal
    /// that says how many flowers would have.
    fn fit(self, max: usize) -> (Self, Vec<u8>) {
        let bytes = self.to_bytes();
        match self {
            Self::Answer {
                request_id,
                result: Predictions::Batch { predictions },
                ..
            } if bytes.len() > max => {
                let found = predictions.len();
                let error = RequestError::TooManyFlowers {
                    found,
                    max: found * max / bytes.len(),
                };
                let refusal = Self::refusal(Refused {
                    request_id: Some(request_id),
                    error,
                });
                let bytes = refusal.to_bytes();
                (refusal, bytes)
            }
            reply => (reply, bytes),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, numbers and lists always serialize as JSON")
    }

    /// One line per call: who asked and how it went, never what was sent.
    fn log(&self) {
        match self {
            Self::Warm { cold_start, .. } => tracing::info!(cold_start, "warm"),
            Self::Answer {
                request_id,
                model,
                cold_start,
                handler_us,
                ..
            } => {
                tracing::info!(request_id, model, cold_start, handler_us, "answered");
            }
            Self::Refusal { request_id, error } => {
                tracing::warn!(
                    request_id,
                    code = error.code,
                    message = error.message,
                    "refused"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::iris_model;
    use serde_json::{Value, json};
    use std::sync::Mutex;

    /// A store that fails until it is given a model.
    struct MemoryStore(Mutex<Option<Model>>);

    impl ModelStore for MemoryStore {
        async fn current(&self) -> Result<Model, StoreError> {
            self.0
                .lock()
                .unwrap()
                .clone()
                .ok_or_else(|| StoreError::Read {
                    bucket: "b".into(),
                    key: "k".into(),
                    message: "NoSuchKey".into(),
                })
        }
    }

    /// Keeps what is published, or refuses everything.
    #[derive(Default)]
    struct MemoryPublisher {
        sent: Mutex<Vec<(String, Value)>>,
        broken: bool,
    }

    impl Publisher for MemoryPublisher {
        type Error = std::io::Error;

        async fn publish(&self, topic: &str, payload: Vec<u8>) -> Result<(), Self::Error> {
            if self.broken {
                return Err(std::io::Error::other("connection refused"));
            }
            let payload = serde_json::from_slice(&payload).expect("a reply is JSON");
            self.sent.lock().unwrap().push((topic.to_owned(), payload));
            Ok(())
        }
    }

    type TestHandler = Handler<MemoryStore, MemoryPublisher>;

    fn handler() -> TestHandler {
        Handler::new(
            MemoryStore(Mutex::new(Some(iris_model()))),
            MemoryPublisher::default(),
            "iris".into(),
        )
    }

    async fn call(handler: &TestHandler, event: Value) -> Value {
        let event = RawValue::from_string(event.to_string()).unwrap();
        serde_json::to_value(handler.handle(&event).await.unwrap()).unwrap()
    }

    fn setosa() -> Value {
        json!({"request_id": "r", "sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2})
    }

    fn from_rule(payload: &[u8]) -> Value {
        json!({"payload": BASE64.encode(payload), "client_id": "lily", "mqtt_client_id": "lily"})
    }

    #[tokio::test]
    async fn a_direct_invoke_is_answered_with_every_field_of_the_contract() {
        let handler = handler();
        let first = call(&handler, setosa()).await;
        assert_eq!(first["request_id"], "r");
        assert_eq!(first["species"], "setosa");
        assert_eq!(first["in_distribution"], true);
        assert_eq!(first["model"], iris_model().sha256());
        assert_eq!(first["cold_start"], true);
        assert!(first["handler_us"].is_u64());
        assert!(first["probabilities"]["setosa"].as_f64().unwrap() > 0.9);
        assert_eq!(call(&handler, setosa()).await["cold_start"], false);
        assert!(handler.publisher.sent.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_message_from_the_rule_is_answered_on_the_askers_topic() {
        let handler = handler();
        let reply = call(&handler, from_rule(setosa().to_string().as_bytes())).await;
        let sent = handler.publisher.sent.lock().unwrap();
        assert_eq!(*sent, [("iris/response/lily".to_owned(), reply)]);
        assert_eq!(sent[0].1["species"], "setosa");
    }

    #[tokio::test]
    async fn what_is_not_json_is_refused_on_the_askers_topic() {
        let handler = handler();
        call(&handler, from_rule(b"\xff\x00")).await;
        let sent = handler.publisher.sent.lock().unwrap();
        assert_eq!(sent[0].1["error"]["code"], "malformed_json");
        assert_eq!(sent[0].1["request_id"], Value::Null);
    }

    #[tokio::test]
    async fn a_batch_is_answered_in_order() {
        let flower = |petal_length| json!({"sepal_length": 6, "sepal_width": 3, "petal_length": petal_length, "petal_width": 1});
        let reply = call(
            &handler(),
            json!({"request_id": "r", "flowers": [flower(7.0), flower(1.0)]}),
        )
        .await;
        let species: Vec<_> = reply["predictions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| &p["species"])
            .collect();
        assert_eq!(species, ["virginica", "setosa"]);
    }

    #[tokio::test]
    async fn an_answer_too_large_for_mqtt_is_refused_with_the_number_that_fits() {
        let flowers = vec![
            json!({"sepal_length": 6, "sepal_width": 3, "petal_length": 4, "petal_width": 1});
            2000
        ];
        let handler = handler();
        let request = json!({"request_id": "r", "flowers": flowers});
        assert_eq!(
            call(&handler, request.clone()).await["predictions"]
                .as_array()
                .unwrap()
                .len(),
            2000
        );
        let reply = call(&handler, from_rule(request.to_string().as_bytes())).await;
        assert_eq!(reply["error"]["code"], "too_many_flowers");
        assert_eq!(reply["request_id"], "r");
    }

    #[tokio::test]
    async fn a_keep_warm_call_touches_nothing() {
        let handler = handler();
        assert_eq!(
            call(&handler, json!({"warmup": true})).await,
            json!({"warm": true, "cold_start": true})
        );
        assert!(handler.model.get().is_none());
        assert_eq!(call(&handler, setosa()).await["cold_start"], false);
    }

    #[tokio::test]
    async fn without_a_model_the_request_is_refused_and_the_next_one_tries_again() {
        let handler = handler();
        let model = handler.store.0.lock().unwrap().take();
        let reply = call(&handler, setosa()).await;
        assert_eq!(reply["error"]["code"], "model_unavailable");
        assert_eq!(reply["request_id"], "r");
        *handler.store.0.lock().unwrap() = model;
        assert_eq!(call(&handler, setosa()).await["species"], "setosa");
    }

    #[tokio::test]
    async fn an_undelivered_answer_fails_the_invocation() {
        let mut handler = handler();
        handler.publisher.broken = true;
        let event = RawValue::from_string(from_rule(b"{}").to_string()).unwrap();
        let error = handler.handle(&event).await.unwrap_err();
        assert!(
            matches!(error, HandlerError::Publish { ref topic, .. } if topic == "iris/response/lily"),
            "{error}"
        );
    }
}
