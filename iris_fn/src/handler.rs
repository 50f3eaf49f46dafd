//! The function itself: event in, answer, publish.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use serde_json::value::RawValue;
use thiserror::Error;

use crate::current::{CurrentModel, ModelStore};
use crate::error::{RequestError, details};
use crate::event::Event;
use crate::metrics::Line;
use crate::reply::{Description, Predictions, Reply, Warm, to_json};
use crate::request::{MAX_PAYLOAD, Question, Refused, Request, find_request_id};

/// What must be left of a call's time to report that it failed: one that Lambda has to end loses its
/// container, and with it the next call's time.
pub const TIME_TO_REPORT: Duration = Duration::from_millis(500);

/// Something that delivers a message to a topic.
pub trait Publisher: Send + Sync + 'static {
    /// Why it could not.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Deliver `payload` to `topic` at least once (QoS 1).
    fn publish(
        &self,
        topic: &str,
        payload: Vec<u8>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

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

/// The function: one per container, shared by its calls.
pub struct Handler<S, P> {
    /// Read once per container: this is what "reuse the container" saves.
    pub model: CurrentModel<S>,
    /// Where answers to MQTT go.
    pub publisher: P,
    /// First level of the answer topics.
    stack: String,
    /// Where the line about each call goes.
    log: fn(Line),
    invoked: AtomicBool,
}

/// One call.
#[derive(Clone, Copy)]
struct Call {
    started: Instant,
    /// Whether it started the container.
    cold_start: bool,
    /// Most bytes of its reply.
    max: usize,
}

impl<S: ModelStore, P: Publisher> Handler<S, P> {
    /// A handler that answers to `<stack>/response/<client_id>` and hands the line about each call to `log`.
    pub fn new(model: CurrentModel<S>, publisher: P, stack: String, log: fn(Line)) -> Self {
        Self {
            model,
            publisher,
            stack,
            log,
            invoked: AtomicBool::new(false),
        }
    }

    /// Answer one event. Gives back the reply as JSON; an answer that cannot be published is given up shortly before
    /// the call's `deadline`.
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
        let (reply, ()) =
            tokio::join!(self.reply(event, deadline), self.model.refresh_when_stale());
        reply
    }

    async fn reply(
        &self,
        event: &RawValue,
        deadline: SystemTime,
    ) -> Result<Box<RawValue>, HandlerError> {
        let cold_start = !self.invoked.swap(true, Ordering::Relaxed);
        let call = Call {
            started: Instant::now(),
            cold_start,
            max: usize::MAX,
        };
        match Event::read(event)? {
            Event::Warmup => Ok(to_json(&Warm {
                warm: true,
                cold_start,
            })),
            Event::Direct(request) => {
                let (reply, line) = self.answer(request, call).await;
                (self.log)(line);
                Ok(reply)
            }
            Event::FromRule { payload, client_id } => {
                let call = Call {
                    max: MAX_PAYLOAD,
                    ..call
                };
                let (reply, line) = self.answer(&payload, call).await;
                let topic = format!("{}/response/{client_id}", self.stack);
                let result = self.publish(topic, &reply, deadline).await;
                (self.log)(if result.is_ok() {
                    line
                } else {
                    line.undelivered()
                });
                result.map(|()| reply)
            }
        }
    }

    /// The reply to one request, and what the log says of it.
    async fn answer(&self, bytes: &[u8], call: Call) -> (Box<RawValue>, Line) {
        // The model that answers is the one that the request is checked against, whatever is published meanwhile.
        let model = match self.model.get().await {
            Ok(model) => model,
            Err(e) => {
                tracing::error!(error = details(&e), "no model");
                return self.refuse(find_request_id(bytes), &RequestError::ModelUnavailable);
            }
        };
        let (request_id, question) = match Request::from_bytes(bytes, model.file()) {
            Ok(Request {
                request_id,
                question,
            }) => (request_id, question),
            Err(Refused { request_id, error }) => return self.refuse(request_id, &error),
        };
        let (result, rows) = match &question {
            Question::Describe => {
                let reply = Reply::Description {
                    request_id,
                    description: Description::of(&model),
                };
                return (to_json(&reply), reply.line(&self.stack));
            }
            Question::One(row) => (Predictions::One(model.predict(row)), 1),
            Question::Batch(rows) => {
                let predictions = rows.iter().map(|row| model.predict(row)).collect();
                (Predictions::Batch { predictions }, rows.len())
            }
        };
        let handler_us = call
            .started
            .elapsed()
            .as_micros()
            .try_into()
            .unwrap_or(u64::MAX);
        let (model, cold_start) = (model.sha256(), call.cold_start);
        let reply = Reply::Answer {
            request_id: request_id.clone(),
            result,
            model,
            cold_start,
            handler_us,
        };
        let json = to_json(&reply);
        if json.get().len() > call.max {
            // Refused with the number that would fit. Rows differ in length by the digits of their probabilities.
            let max = rows * call.max / json.get().len() * 9 / 10;
            return self.refuse(
                Value::String(request_id),
                &RequestError::TooManyInstances { found: rows, max },
            );
        }
        (json, reply.line(&self.stack))
    }

    fn refuse(&self, request_id: Value, error: &RequestError) -> (Box<RawValue>, Line) {
        let refusal = Reply::refuse(request_id, error);
        (to_json(&refusal), refusal.line(&self.stack))
    }

    async fn publish(
        &self,
        topic: String,
        reply: &RawValue,
        deadline: SystemTime,
    ) -> Result<(), HandlerError> {
        let left = deadline.duration_since(SystemTime::now());
        let time = left.unwrap_or_default().saturating_sub(TIME_TO_REPORT);
        let sent = self.publisher.publish(&topic, reply.get().into());
        match tokio::time::timeout(time, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(HandlerError::Publish {
                topic,
                source: e.into(),
            }),
            Err(_) => Err(HandlerError::Late { topic }),
        }
    }
}
