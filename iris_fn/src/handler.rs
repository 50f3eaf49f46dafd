//! A Lambda event in, a reply out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::error::{RequestError, details};
use crate::metrics::{Line, Metric};
use crate::model::Model;
use crate::predict::Prediction;
use crate::publish::Publisher;
use crate::request::{MAX_PAYLOAD, Question, Refused, Request};
use crate::store::{Loaded, ModelStore, StoreError};

/// How long a call may wait for the store while it looks for a newer model.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);
/// What must be left of a call's time to say that it failed: one that Lambda has to end loses its
/// container, and with it the next call's time.
const TO_SAY_SO: Duration = Duration::from_millis(500);

/// Why an invocation fails. A bad request never does: it is answered. What fails is retried by
/// Lambda when it came asynchronously, and then kept in the dead-letter queue.
#[derive(Debug, Error)]
pub enum HandlerError {
    /// The rule's event does not hold what the rule's SQL puts there.
    #[error("the rule's `payload` is not base64: {0}")]
    Payload(#[from] base64::DecodeError),
    /// The reply is known but could not be delivered.
    #[error("could not publish the answer to {topic}")]
    Publish {
        /// The answer topic.
        topic: String,
        /// The publisher's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The reply is known, and the call's time was over before it could be delivered.
    #[error("could not publish the answer to {topic} in the time of this call")]
    Late {
        /// The answer topic.
        topic: String,
    },
}

impl HandlerError {
    /// A stable name for the log and the dead letter.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Payload(_) => "payload_not_base64",
            Self::Publish { .. } | Self::Late { .. } => "answer_not_published",
        }
    }
}

/// What the function answers to `{"warmup": true}`, as it is serialized. The log has no line of it.
#[derive(Debug, Serialize)]
pub struct Warm {
    /// Always true.
    pub warm: bool,
    /// Whether this call started the container.
    pub cold_start: bool,
}

/// What the function answers to a request, as it is serialized.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Reply<'m> {
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
    /// How long a model is used before the store is asked for a newer one.
    model_ttl: Duration,
    /// Where the line about each call goes.
    log: fn(Line),
    /// Read once per container: this is what "reuse the container" saves. A std mutex, because it is
    /// never held across an await.
    current: Mutex<Option<Current>>,
    invoked: AtomicBool,
}

/// The model in use.
struct Current {
    model: Arc<Model>,
    etag: Option<String>,
    /// When the store was last asked.
    checked: Instant,
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
    /// A handler that answers to `<stack>/response/<client_id>`, asks `store` for a newer model at most
    /// every `model_ttl`, and hands the line about each call to `log`.
    pub fn new(store: S, publisher: P, stack: String, model_ttl: Duration, log: fn(Line)) -> Self {
        Self {
            store,
            publisher,
            stack,
            model_ttl,
            log,
            current: Mutex::new(None),
            invoked: AtomicBool::new(false),
        }
    }

    /// The model to answer with: the one in memory, or the store's where there is none yet.
    ///
    /// # Errors
    /// When there is no model and none can be read; the next call tries again.
    pub async fn model(&self) -> Result<Arc<Model>, StoreError> {
        if let Some(current) = self.current().as_ref() {
            return Ok(Arc::clone(&current.model));
        }
        self.refresh().await?;
        let current = self.current();
        let current = current.as_ref();
        let current =
            current.expect("a store that is asked without a tag gives a model or an error");
        Ok(Arc::clone(&current.model))
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current
            .lock()
            .expect("nothing panics while it holds this lock")
    }

    /// Replace the model in memory if the store has another one.
    async fn refresh(&self) -> Result<(), StoreError> {
        let known = self
            .current()
            .as_ref()
            .and_then(|current| current.etag.clone());
        if let Some(Loaded { model, etag }) = self.store.current(known.as_deref()).await? {
            let model = Arc::new(model);
            *self.current() = Some(Current {
                model,
                etag,
                checked: Instant::now(),
            });
        }
        Ok(())
    }

    /// Look for a newer model when the one in memory is older than `model_ttl`. Whatever goes wrong,
    /// the last good model stays in use.
    async fn refresh_when_stale(&self) {
        match self.current().as_mut() {
            Some(current) if current.checked.elapsed() >= self.model_ttl => {
                current.checked = Instant::now()
            }
            _ => return,
        }
        match tokio::time::timeout(REFRESH_TIMEOUT, self.refresh()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::error!(error = details(&e), "the last good model stays in use"),
            Err(_) => tracing::error!(
                error = "the store is slow",
                "the last good model stays in use"
            ),
        }
    }

    /// Answer one event: a keep-warm call, a message from the IoT rule, or a direct invoke. Gives
    /// back the reply as JSON; an answer that cannot be published is given up shortly before the call's `deadline`.
    ///
    /// A newer model is looked for beside the answer, never before it: this call is answered (and, from
    /// the rule, published) with what is in memory, the next one with what was found. It is not left to
    /// a background task, because Lambda freezes the process once a call is over.
    ///
    /// # Errors
    /// [`HandlerError`] when the answer to a rule's message could not be delivered.
    pub async fn handle(
        &self,
        event: &RawValue,
        deadline: SystemTime,
    ) -> Result<Box<RawValue>, HandlerError> {
        let (reply, ()) = tokio::join!(self.reply(event, deadline), self.refresh_when_stale());
        reply
    }

    async fn reply(
        &self,
        event: &RawValue,
        deadline: SystemTime,
    ) -> Result<Box<RawValue>, HandlerError> {
        let started = Instant::now();
        let cold_start = !self.invoked.swap(true, Ordering::Relaxed);
        match serde_json::from_str(event.get()) {
            Ok(Envelope { warmup: true, .. }) => Ok(to_json(&Warm {
                warm: true,
                cold_start,
            })),
            Ok(Envelope {
                payload: Some(payload),
                client_id: Some(client_id),
                ..
            }) => {
                let payload = BASE64.decode(payload)?;
                let (reply, line) = self
                    .answer(&payload, started, cold_start, MAX_PAYLOAD)
                    .await;
                let topic = format!("{}/response/{client_id}", self.stack);
                let left = deadline.duration_since(SystemTime::now());
                let time = left.unwrap_or_default().saturating_sub(TO_SAY_SO);
                let sent = self.publisher.publish(&topic, reply.get().into());
                let (result, line) = match tokio::time::timeout(time, sent).await {
                    Ok(Ok(())) => (Ok(reply), line),
                    Ok(Err(e)) => {
                        let source = e.into();
                        let error = HandlerError::Publish { topic, source };
                        (Err(error), line.undelivered())
                    }
                    Err(_) => (Err(HandlerError::Late { topic }), line.undelivered()),
                };
                (self.log)(line);
                result
            }
            // Whatever else it is, the request's own checks say best what is wrong with it.
            _ => {
                let (reply, line) = self
                    .answer(event.get().as_bytes(), started, cold_start, usize::MAX)
                    .await;
                (self.log)(line);
                Ok(reply)
            }
        }
    }

    /// The reply to one request, as JSON of at most `max` bytes, and what the log says of it.
    async fn answer(
        &self,
        bytes: &[u8],
        started: Instant,
        cold_start: bool,
        max: usize,
    ) -> (Box<RawValue>, Line) {
        let (request_id, question) = match Request::from_bytes(bytes) {
            Ok(Request {
                request_id,
                question,
            }) => (request_id, question),
            Err(refused) => return self.refuse(refused),
        };
        let model = match self.model().await {
            Ok(model) => model,
            Err(e) => {
                tracing::error!(error = details(&e), "no model");
                let error = RequestError::ModelUnavailable;
                return self.refuse(Refused {
                    request_id: Some(request_id),
                    error,
                });
            }
        };
        let result = match &question {
            Question::One(flower) => Predictions::One(model.predict(flower)),
            Question::Batch(flowers) => Predictions::Batch {
                predictions: flowers.iter().map(|flower| model.predict(flower)).collect(),
            },
        };
        let handler_us = started.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        let answer = Reply::Answer {
            request_id: request_id.clone(),
            result,
            model: model.sha256(),
            cold_start,
            handler_us,
        };
        let json = to_json(&answer);
        match &question {
            // A batch whose answer does not fit is refused, with the number of flowers that would.
            Question::Batch(flowers) if json.get().len() > max => {
                let found = flowers.len();
                let error = RequestError::TooManyFlowers {
                    found,
                    // Flowers differ in length by the digits of their probabilities.
                    max: found * max / json.get().len() * 9 / 10,
                };
                self.refuse(Refused {
                    request_id: Some(request_id),
                    error,
                })
            }
            _ => (json, answer.line(&self.stack)),
        }
    }
}

impl<S, P> Handler<S, P> {
    fn refuse(&self, Refused { request_id, error }: Refused) -> (Box<RawValue>, Line) {
        let refusal = Reply::Refusal {
            request_id,
            error: Refusal {
                code: error.code(),
                message: error.to_string(),
            },
        };
        (to_json(&refusal), refusal.line(&self.stack))
    }
}

fn to_json(reply: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(reply)
        .expect("strings, numbers and lists always serialize as JSON")
}

impl Reply<'_> {
    /// One line per call: who asked and how it went, never what was sent.
    fn line(self, stack: &str) -> Line {
        match self {
            Self::Answer {
                request_id,
                result,
                model,
                cold_start,
                handler_us,
            } => {
                let mut metrics = result.by_class();
                metrics.push(Metric {
                    name: "handler_us".into(),
                    unit: "Microseconds",
                    value: handler_us,
                });
                if cold_start {
                    metrics.push(Metric::count("cold_starts", 1));
                }
                Line {
                    level: "INFO",
                    message: "answered",
                    fields: vec![("request_id", request_id), ("model", model.to_owned())],
                    stack: stack.to_owned(),
                    metrics,
                }
            }
            Self::Refusal { request_id, error } => Line {
                level: "WARN",
                message: "refused",
                fields: vec![
                    ("request_id", request_id.unwrap_or_default()),
                    ("code", error.code.to_owned()),
                    ("reason", error.message),
                ],
                stack: stack.to_owned(),
                metrics: vec![Metric::count("refusals", 1)],
            },
        }
    }
}

impl Predictions<'_> {
    /// How many flowers are of each class that occurs.
    fn by_class(&self) -> Vec<Metric> {
        let predictions = match self {
            Self::One(prediction) => std::slice::from_ref(prediction),
            Self::Batch { predictions } => predictions,
        };
        let mut counts: Vec<(&str, u64)> = Vec::new();
        for species in predictions.iter().map(Prediction::species) {
            match counts.iter_mut().find(|(class, _)| *class == species) {
                Some((_, count)) => *count += 1,
                None => counts.push((species, 1)),
            }
        }
        let metric = |(class, count)| Metric::count(format!("predictions_{class}"), count);
        counts.into_iter().map(metric).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::FEATURE_NAMES;
    use crate::model::tests::iris_model;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::cell::RefCell;
    use std::sync::Mutex;

    /// A store that fails until it is given a model, takes its time, and notes by which tag it is asked.
    #[derive(Default)]
    struct MemoryStore {
        model: Mutex<Option<Model>>,
        delay: Mutex<Duration>,
        asked: Mutex<Vec<Option<String>>>,
    }

    impl ModelStore for MemoryStore {
        async fn current(&self, known: Option<&str>) -> Result<Option<Loaded>, StoreError> {
            self.asked.lock().unwrap().push(known.map(str::to_owned));
            let delay = *self.delay.lock().unwrap();
            if delay > Duration::ZERO {
                tokio::time::sleep(delay).await;
            }
            let model = self.model.lock().unwrap().clone();
            let model = model.ok_or_else(|| StoreError::Read {
                bucket: "b".into(),
                key: "k".into(),
                source: "NoSuchKey".into(),
            })?;
            let etag = model.sha256().to_owned();
            Ok((known != Some(etag.as_str())).then_some(Loaded {
                model,
                etag: Some(etag),
            }))
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

    // One for each test: each runs in a thread of its own.
    thread_local!(static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) });

    type TestHandler = Handler<MemoryStore, MemoryPublisher>;

    fn handler() -> TestHandler {
        handler_with(Duration::from_secs(3600), MemoryPublisher::default())
    }

    fn handler_with(model_ttl: Duration, publisher: MemoryPublisher) -> TestHandler {
        let store = MemoryStore::default();
        *store.model.lock().unwrap() = Some(iris_model());
        Handler::new(store, publisher, "iris".into(), model_ttl, |line| {
            LINES.with_borrow_mut(|lines| lines.push(line))
        })
    }

    /// The same model but for its name.
    fn newer_model() -> Model {
        let mut file = iris_model().file().clone();
        file.training.cv_accuracy = 0.5;
        Model::from_bytes(&file.to_bytes()).unwrap()
    }

    fn soon() -> SystemTime {
        SystemTime::now() + Duration::from_secs(10)
    }

    async fn call(handler: &TestHandler, event: Value) -> Value {
        let event = RawValue::from_string(event.to_string()).unwrap();
        serde_json::to_value(handler.handle(&event, soon()).await.unwrap()).unwrap()
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
        assert!(first["probabilities"]["setosa"].as_f64().unwrap() > 0.9);
        assert_eq!(call(&handler, setosa()).await["cold_start"], false);
        assert!(handler.publisher.sent.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_handlers_time_is_said_in_microseconds_and_holds_the_wait_for_the_model() {
        let handler = handler();
        *handler.store.delay.lock().unwrap() = Duration::from_millis(20);
        let started = Instant::now();
        let reply = call(&handler, setosa()).await;
        let (handler_us, all) = (reply["handler_us"].as_u64().unwrap(), started.elapsed());
        assert!(20_000 <= handler_us && u128::from(handler_us) <= all.as_micros());
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

    /// Only a rule with other SQL sends this. Nobody could be answered with more than "ask again": it fails,
    /// and the event is kept in the dead-letter queue.
    #[tokio::test]
    async fn a_payload_that_is_not_base64_fails_the_invocation_and_publishes_nothing() {
        let handler = handler();
        for payload in ["%%%", "eyJ9=", "e30"] {
            let event = json!({"payload": payload, "client_id": "lily"});
            let event = RawValue::from_string(event.to_string()).unwrap();
            let error = handler.handle(&event, soon()).await.unwrap_err();
            assert_eq!(error.kind(), "payload_not_base64", "{payload}");
        }
        assert!(handler.publisher.sent.lock().unwrap().is_empty());
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
    async fn an_empty_batch_has_an_empty_answer() {
        let handler = handler();
        let request = json!({"request_id": "r", "flowers": []});
        let reply = call(&handler, from_rule(request.to_string().as_bytes())).await;
        assert_eq!(reply["request_id"], "r");
        assert_eq!(reply["predictions"], json!([]));
        assert_eq!(handler.publisher.sent.lock().unwrap()[0].1, reply);
    }

    fn many(flowers: usize) -> String {
        let flower =
            json!({"sepal_length": 6, "sepal_width": 3, "petal_length": 4, "petal_width": 1});
        json!({"request_id": "r", "flowers": vec![flower; flowers]}).to_string()
    }

    #[tokio::test]
    async fn an_answer_too_large_for_mqtt_is_refused_with_the_number_that_fits() {
        let handler = handler();
        let direct = call(&handler, serde_json::from_str(&many(2000)).unwrap()).await;
        assert_eq!(direct["predictions"].as_array().unwrap().len(), 2000);

        let refusal = call(&handler, from_rule(many(2000).as_bytes())).await;
        assert_eq!(refusal["error"]["code"], "too_many_flowers");
        assert_eq!(refusal["request_id"], "r");
        let message = refusal["error"]["message"].as_str().unwrap();
        let mut fits = message
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok());
        let fits = fits.next_back().unwrap();
        let reply = call(&handler, from_rule(many(fits).as_bytes())).await;
        assert_eq!(reply["predictions"].as_array().unwrap().len(), fits);
        // Not far below the limit either.
        let size = reply.to_string().len();
        assert!(MAX_PAYLOAD * 8 / 10 < size && size <= MAX_PAYLOAD, "{size}");
    }

    #[tokio::test]
    async fn an_answer_as_long_as_the_limit_is_sent_and_one_byte_more_is_not() {
        let handler = handler();
        let request = many(3);
        // By a start that is yet to come both answers say 0 µs, and are equally long.
        let started = Instant::now() + Duration::from_secs(3600);
        let answer = async |max| {
            let (reply, _) = handler
                .answer(request.as_bytes(), started, false, max)
                .await;
            reply.get().to_owned()
        };
        let whole = answer(usize::MAX).await;
        assert_eq!(answer(whole.len()).await, whole);
        assert!(answer(whole.len() - 1).await.contains("too_many_flowers"));
    }

    #[tokio::test]
    async fn a_keep_warm_call_reads_no_model_publishes_nothing_and_logs_nothing() {
        let handler = handler();
        let warmup = json!({"warmup": true, "payload": "e30=", "client_id": "lily"});
        assert_eq!(
            call(&handler, warmup).await,
            json!({"warm": true, "cold_start": true})
        );
        assert!(handler.store.asked.lock().unwrap().is_empty());
        assert!(handler.publisher.sent.lock().unwrap().is_empty());
        assert!(LINES.take().is_empty());
        assert_eq!(call(&handler, setosa()).await["cold_start"], false);
    }

    #[tokio::test]
    async fn a_keep_warm_call_finds_a_newer_model_for_the_next_call() {
        let handler = handler_with(Duration::ZERO, MemoryPublisher::default());
        call(&handler, setosa()).await;
        *handler.store.model.lock().unwrap() = Some(newer_model());
        call(&handler, json!({"warmup": true})).await;
        let reply = call(&handler, setosa()).await;
        assert_eq!(reply["model"], newer_model().sha256());
    }

    #[tokio::test]
    async fn without_a_model_the_request_is_refused_and_the_next_one_tries_again() {
        let handler = handler();
        let model = handler.store.model.lock().unwrap().take();
        let reply = call(&handler, setosa()).await;
        assert_eq!(reply["error"]["code"], "model_unavailable");
        assert_eq!(reply["request_id"], "r");
        *handler.store.model.lock().unwrap() = model;
        assert_eq!(call(&handler, setosa()).await["species"], "setosa");
    }

    #[tokio::test]
    async fn an_undelivered_answer_fails_the_invocation() {
        let broken = MemoryPublisher {
            broken: true,
            ..MemoryPublisher::default()
        };
        let handler = handler_with(Duration::from_secs(3600), broken);
        let event = RawValue::from_string(from_rule(b"{}").to_string()).unwrap();
        let error = handler.handle(&event, soon()).await.unwrap_err();
        assert!(
            matches!(error, HandlerError::Publish { ref topic, .. } if topic == "iris/response/lily"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_undelivered_answer_is_logged_as_such_and_not_counted() {
        for broken in [false, true] {
            let publisher = MemoryPublisher {
                broken,
                ..MemoryPublisher::default()
            };
            let handler = handler_with(Duration::from_secs(3600), publisher);
            let event = from_rule(setosa().to_string().as_bytes());
            let event = RawValue::from_string(event.to_string()).unwrap();
            assert_eq!(handler.handle(&event, soon()).await.is_err(), broken);
        }
        let lines = LINES.take();
        let said: Vec<_> = lines
            .iter()
            .map(|line| (line.message, line.fields[0].1.as_str(), line.metrics.len()))
            .collect();
        assert_eq!(said, [("answered", "r", 3), ("not delivered", "r", 0)]);
    }

    #[tokio::test]
    async fn an_answer_that_hangs_fails_the_invocation_before_lambda_would_end_it() {
        struct Hanging;
        impl Publisher for Hanging {
            type Error = std::io::Error;
            async fn publish(&self, _: &str, _: Vec<u8>) -> Result<(), Self::Error> {
                std::future::pending().await
            }
        }
        let store = MemoryStore::default();
        let handler = Handler::new(store, Hanging, "iris".into(), Duration::MAX, |_| {});
        let event = RawValue::from_string(from_rule(b"{}").to_string()).unwrap();
        let deadline = SystemTime::now() + TO_SAY_SO + Duration::from_millis(50);
        let error = handler.handle(&event, deadline).await.unwrap_err();
        assert!(matches!(error, HandlerError::Late { .. }), "{error}");
        assert!(SystemTime::now() < deadline);
    }

    #[tokio::test]
    async fn a_newer_model_is_served_by_the_call_after_the_one_that_found_it() {
        let handler = handler_with(Duration::ZERO, MemoryPublisher::default());
        let first = call(&handler, setosa()).await;
        *handler.store.model.lock().unwrap() = Some(newer_model());
        assert_eq!(call(&handler, setosa()).await["model"], first["model"]);
        let second = call(&handler, setosa()).await;
        assert_eq!(second["model"], newer_model().sha256());
    }

    #[tokio::test]
    async fn a_store_is_asked_for_what_is_newer_than_the_model_in_use_and_not_modified_keeps_it() {
        let handler = handler_with(Duration::ZERO, MemoryPublisher::default());
        let model = handler.model().await.unwrap();
        for _ in 0..3 {
            assert_eq!(call(&handler, setosa()).await["model"], model.sha256());
        }
        assert!(Arc::ptr_eq(&handler.model().await.unwrap(), &model));
        let tag = Some(model.sha256().to_owned());
        let asked = handler.store.asked.lock().unwrap();
        assert_eq!(*asked, [None, tag.clone(), tag.clone(), tag]);
    }

    #[tokio::test]
    async fn the_store_is_not_asked_again_before_the_models_time_is_over() {
        let handler = handler();
        for _ in 0..3 {
            call(&handler, setosa()).await;
        }
        assert_eq!(*handler.store.asked.lock().unwrap(), [None]);
    }

    #[tokio::test]
    async fn a_store_that_hangs_holds_no_answer_back_and_the_last_good_model_serves() {
        let handler = handler_with(Duration::ZERO, MemoryPublisher::default());
        let first = call(&handler, setosa()).await;
        *handler.store.delay.lock().unwrap() = Duration::from_secs(3600);
        let started = Instant::now();
        let reply = {
            let event = from_rule(setosa().to_string().as_bytes());
            let mut waiting = std::pin::pin!(call(&handler, event));
            let early = tokio::time::timeout(REFRESH_TIMEOUT / 4, waiting.as_mut()).await;
            assert!(early.is_err(), "the call looks for a newer model");
            assert_eq!(handler.publisher.sent.lock().unwrap().len(), 1);
            waiting.await
        };
        let took = started.elapsed();
        assert!(
            took >= REFRESH_TIMEOUT && took < REFRESH_TIMEOUT * 3,
            "{took:?}"
        );
        assert_eq!(reply["model"], first["model"]);

        *handler.store.delay.lock().unwrap() = Duration::ZERO;
        *handler.store.model.lock().unwrap() = Some(newer_model());
        call(&handler, setosa()).await;
        let later = call(&handler, setosa()).await;
        assert_eq!(later["model"], newer_model().sha256());
    }

    #[tokio::test]
    async fn the_last_good_model_serves_while_the_store_is_away() {
        let handler = handler_with(Duration::ZERO, MemoryPublisher::default());
        call(&handler, setosa()).await;
        *handler.store.model.lock().unwrap() = None;
        for _ in 0..3 {
            assert_eq!(call(&handler, setosa()).await["species"], "setosa");
        }
    }

    proptest! {
        #[test]
        fn a_flower_gets_the_same_answer_alone_and_in_a_batch(
            flowers in prop::collection::vec(prop::array::uniform4(0.0..=100.0f64), 1..20),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let object = |x: &[f64; 4]| {
                FEATURE_NAMES.iter().zip(x).map(|(name, x)| ((*name).to_owned(), json!(x))).collect::<Value>()
            };
            let handler = handler();
            let objects: Vec<Value> = flowers.iter().map(object).collect();
            let batch = runtime.block_on(call(&handler, json!({"request_id": "r", "flowers": objects})));
            prop_assert_eq!(batch["predictions"].as_array().unwrap().len(), flowers.len());
            for (mut single, prediction) in objects.into_iter().zip(batch["predictions"].as_array().unwrap()) {
                single["request_id"] = json!("r");
                let answer = runtime.block_on(call(&handler, single));
                for (key, value) in prediction.as_object().unwrap() {
                    prop_assert_eq!(&answer[key], value);
                }
            }
        }
    }
}
