//! Every way a model file, a request or a call can go wrong, with the values that show it.

use serde::{Serialize, Serializer};
use serde_json::Value;
use thiserror::Error;

use crate::model::{KIND, MAX_BYTES, SCHEMA};

/// An error with all its causes, for a log: by itself, an error of the AWS SDK prints only "service error".
pub fn details(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Why a model file is not trusted. Nothing is served from such a file.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ModelError {
    /// More bytes than a model file may have.
    #[error("a model file of {bytes} bytes is too large: at most {MAX_BYTES} are read")]
    TooLarge {
        /// Size of the file.
        bytes: usize,
    },
    /// The bytes are not the JSON of a model file: damaged, truncated, or a field has another shape.
    #[error("not a model file: {0}")]
    Malformed(String),
    /// A schema this build does not read.
    #[error(
        "model schema {found} is not supported, this build reads schema {SCHEMA}: write the file again with \
         notebooks 1 and 2, or from scikit-learn with examples/sklearn_to_model.py"
    )]
    Schema {
        /// The `schema` in the file.
        found: u64,
    },
    /// Another family of model.
    #[error("model kind {found:?} is not supported, expected {KIND:?}")]
    Kind {
        /// The `kind` in the file.
        found: String,
    },
    /// An invalid name, size, bound or number, or a golden row that this build does not reproduce; the message names it.
    #[error("{0}")]
    Invalid(String),
}

/// Why a request is refused. [`RequestError::code`] is part of the protocol: clients match on it.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum RequestError {
    /// Not JSON, or JSON of another shape than a request.
    #[error("{0}")]
    MalformedJson(String),
    /// A field is absent.
    #[error("`{field}` is missing{hint}")]
    MissingField {
        /// The field's name.
        field: String,
        /// A colon and what to send, or nothing.
        hint: String,
    },
    /// A value is not a JSON number.
    #[error("`{field}` must be a number, found {found}")]
    NotANumber {
        /// The field's name.
        field: String,
        /// The JSON type of what was sent.
        found: &'static str,
    },
    /// A value that the model does not accept.
    #[error("`{field}` is {value}{unit}, outside {low} to {high}{unit}")]
    OutOfRange {
        /// The field's name.
        field: String,
        /// The value that was sent.
        value: f64,
        /// Smallest accepted value.
        low: f64,
        /// Largest accepted value.
        high: f64,
        /// A space and the unit, or nothing.
        unit: String,
    },
    /// One of the `instances` is wrong.
    #[error("instances[{index}]: {error}")]
    Instance {
        /// Its position, from 0.
        index: usize,
        /// What is wrong with it.
        error: Box<RequestError>,
    },
    /// More instances than one request, or one MQTT answer, may carry.
    #[error("{found} instances in one request, at most {max} are answered: send several requests")]
    TooManyInstances {
        /// Instances in the request.
        found: usize,
        /// The limit for this kind of event.
        max: usize,
    },
    /// There is no checked model to answer with. The reason is only in the function's log, because it names the bucket.
    #[error("there is no model to answer with right now: ask again later")]
    ModelUnavailable,
}

impl RequestError {
    /// The stable code in a refusal.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MalformedJson(_) => "malformed_json",
            Self::MissingField { .. } => "missing_field",
            Self::NotANumber { .. } => "not_a_number",
            Self::OutOfRange { .. } => "out_of_range",
            Self::Instance { error, .. } => error.code(),
            Self::TooManyInstances { .. } => "too_many_instances",
            Self::ModelUnavailable => "model_unavailable",
        }
    }
}

/// As `{"code", "message"}`: the code for programs, the message for people.
impl Serialize for RequestError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map([("code", self.code()), ("message", &self.to_string())])
    }
}

/// An error of a store or a publisher, with its causes.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why an invocation fails. A bad request never does: it is answered. What came asynchronously is kept in the
/// dead-letter queue.
#[derive(Debug, Error)]
pub enum HandlerError {
    /// The rule's event lacks what the rule's SQL puts there.
    #[error(
        "the rule's `payload` is not base64: its SQL must say `encode(*, 'base64') AS payload`, and `make deploy` sets it so"
    )]
    Payload {
        /// The request's id, as far as it can be read.
        request_id: Value,
        /// Why it is not base64.
        source: base64::DecodeError,
    },
    /// Records of another service. An answer would count as success, and SQS would delete the records.
    #[error(
        "this is an event of {0}, to which nobody can answer: send a request, or add what it means to `Event::read` in \
         iris_fn/src/event.rs"
    )]
    Service(String),
    /// The reply is known but could not be delivered.
    #[error("could not publish the answer to {topic}")]
    Publish {
        /// The answer topic.
        topic: String,
        /// The publisher's own error.
        source: BoxError,
    },
}

impl HandlerError {
    /// A stable name for the log and the dead letter.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Payload { .. } => "payload_not_base64",
            Self::Service(_) => "event_not_answered",
            Self::Publish { .. } => "answer_not_published",
        }
    }
}
