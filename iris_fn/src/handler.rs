//! The function itself: event in, answer, publish.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::current::{CurrentModel, ModelStore, StoreError};
use crate::error::{BoxError, HandlerError, RequestError, details};
use crate::event::Event;
use crate::metrics::{Line, Metric};
use crate::reply::{Answer, Description, Predictions, Reply, to_http, to_json};
use crate::request::{MAX_PAYLOAD, Question, Refused, Request, find_request_id};

/// What must be left of a call's time to report that it failed: when Lambda ends a call at its timeout, it also ends the
/// container, and the next call waits for a start.
pub const TIME_TO_REPORT: Duration = Duration::from_millis(500);

/// Something that delivers a message to a topic.
pub trait Publisher: Send + Sync + 'static {
    /// Deliver `payload` to `topic` at least once (QoS 1).
    fn publish(
        &self,
        topic: &str,
        payload: Vec<u8>,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// The function: one per container, shared by its calls.
pub struct Handler<S, P> {
    /// Read once per container: this is what "reuse the container" saves.
    pub model: CurrentModel<S>,
    /// Publishes the answers to MQTT requests.
    pub publisher: P,
    /// First level of the answer topics: they are `<stack>/response/<client_id>`.
    pub stack: String,
    /// Writes the line about each call.
    pub log: fn(Line),
    /// Whether a call is not the first one that waits for the start: in a container with provisioned concurrency, none
    /// does.
    pub invoked: AtomicBool,
}

/// One call.
#[derive(Clone, Copy)]
struct Call {
    started: Instant,
    /// When reading the model must be over, so that a reply can still be published.
    model_end: Instant,
    /// When everything but the report must be over.
    end: Instant,
    /// Whether it started the container.
    cold_start: bool,
}

/// What a call ends with, and the line about it.
type Outcome = (Result<Box<RawValue>, HandlerError>, Line);

impl<S: ModelStore, P: Publisher> Handler<S, P> {
    /// Answer one event. Returns the reply as JSON; all waits end shortly before the call's `deadline`.
    ///
    /// The model is refreshed concurrently with the answer, never before it: this call is answered (and, from the rule,
    /// published) with the model in memory, the next one with the refreshed model. A background task would not do,
    /// because Lambda freezes the process once a call is over.
    ///
    /// # Errors
    /// [`HandlerError`] when the answer to a rule's message could not be delivered, or nobody would get one.
    pub async fn handle(
        &self,
        event: &RawValue,
        deadline: SystemTime,
    ) -> Result<Box<RawValue>, HandlerError> {
        let left = deadline
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        let (started, time) = (Instant::now(), left.saturating_sub(TIME_TO_REPORT));
        let call = Call {
            started,
            model_end: started + time / 2,
            end: started + time,
            cold_start: !self.invoked.swap(true, Ordering::Relaxed),
        };
        let ((reply, mut line), ()) = tokio::join!(
            self.reply(event, call),
            self.model.refresh_when_stale(call.end)
        );
        if let Err(e) = &reply {
            // Drop its metrics: a failed call counts nothing.
            line = Line::new("ERROR", "failed", line.request_id);
            line.fields.push(("reason", details(e)));
        }
        if let Some(trouble) = self.model.trouble() {
            line.level = "ERROR";
            line.fields.push(("model_error", details(&*trouble)));
            if matches!(*trouble, StoreError::Refused { .. }) {
                line.metrics.push(Metric::count("models_refused", 1));
            }
        }
        line.stack.clone_from(&self.stack);
        (self.log)(line);
        reply
    }

    async fn reply(&self, event: &RawValue, call: Call) -> Outcome {
        match Event::read(event) {
            Ok(Event::Warmup) => {
                let reply = to_json(&json!({"warm": true, "cold_start": call.cold_start}));
                (Ok(reply), Line::new("INFO", "warm", Value::Null))
            }
            Ok(Event::Direct(request)) => {
                let (reply, line) = self.answer(request, call, usize::MAX).await;
                (Ok(reply), line)
            }
            Ok(Event::Http(body)) => {
                let (reply, line) = self.answer(&body, call, usize::MAX).await;
                (Ok(to_http(&reply, line.code)), line)
            }
            Ok(Event::FromRule { payload, client_id }) => {
                let (reply, line) = self.answer(&payload, call, MAX_PAYLOAD).await;
                let topic = format!("{}/response/{client_id}", self.stack);
                let published = self.publish(topic, &reply, call.end).await;
                (published.map(|()| reply), line)
            }
            Err(e) => {
                let request_id = match &e {
                    HandlerError::Payload { request_id, .. } => request_id.clone(),
                    _ => Value::Null,
                };
                (Err(e), Line::new("ERROR", "failed", request_id))
            }
        }
    }

    /// The reply to one request, in at most so many bytes.
    async fn answer(&self, bytes: &[u8], call: Call, max: usize) -> Reply {
        let reply = self.reply_or_refusal(bytes, call, max).await;
        reply.unwrap_or_else(Reply::from)
    }

    async fn reply_or_refusal(
        &self,
        bytes: &[u8],
        call: Call,
        max: usize,
    ) -> Result<Reply, Refused> {
        // The same model checks the request and answers it, whatever is published meanwhile.
        let model = self
            .model
            .get(call.model_end)
            .await
            .ok_or_else(|| Refused {
                request_id: find_request_id(bytes),
                error: RequestError::ModelUnavailable,
            })?;
        let Request {
            request_id,
            question,
        } = Request::from_bytes(bytes, model.file())?;
        let result = match &question {
            Question::Describe => return Ok(Description::of(&model).reply(request_id)),
            Question::One(row) => Predictions::One(model.predict(row)),
            Question::Batch(rows) => Predictions::Batch {
                predictions: rows.iter().map(|row| model.predict(row)).collect(),
            },
        };
        let found = result.rows().len();
        let answer = Answer {
            request_id,
            result,
            model: model.sha256(),
            cold_start: call.cold_start,
            handler_us: call.started.elapsed().as_micros() as u64,
        };
        let (json, line) = Reply::from(answer);
        let bytes = json.get().len();
        if bytes > max {
            // Refused with the number that would fit. Rows differ in length by the digits of their probabilities.
            let max = found * max / bytes * 9 / 10;
            return Err(Refused {
                request_id: line.request_id.into(),
                error: RequestError::TooManyInstances { found, max },
            });
        }
        Ok((json, line))
    }

    async fn publish(
        &self,
        topic: String,
        reply: &RawValue,
        end: Instant,
    ) -> Result<(), HandlerError> {
        let sent = self.publisher.publish(&topic, reply.get().into());
        let source = match timeout_at(end, sent).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(e)) => e,
            Err(_) => "the time of this call was over".into(),
        };
        Err(HandlerError::Publish { topic, source })
    }
}
