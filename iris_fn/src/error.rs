//! Every way a model file or a request can be wrong, with the values that show it.

use thiserror::Error;

/// An error with all its causes, for a log: what the AWS SDK prints of its own is no more than "service error".
pub fn details(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Why a model file is not trusted. Nothing is served from such a file.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ModelError {
    /// The bytes are not the JSON of a model file: damaged, truncated, or a field has another shape.
    #[error("not a model file: {0}")]
    Malformed(String),
    /// A schema this build does not read.
    #[error("model schema {found} is not supported, this build reads schema {expected}")]
    Schema {
        /// The `schema` in the file.
        found: u64,
        /// The schema this build reads.
        expected: u64,
    },
    /// Another family of model.
    #[error("model kind {found:?} is not supported, expected {expected:?}")]
    Kind {
        /// The `kind` in the file.
        found: String,
        /// The kind this build computes.
        expected: &'static str,
    },
    /// A column out of order or with another name: the weights would meet the wrong measurement.
    #[error("feature {index} is {found:?}, expected {expected:?}")]
    Feature {
        /// Column, from 0.
        index: usize,
        /// The name in the file.
        found: String,
        /// The name this build feeds into that column.
        expected: &'static str,
    },
    /// A feature range that holds no value.
    #[error("feature {name} has the range {min} to {max}, which holds no value")]
    Range {
        /// The feature's name.
        name: String,
        /// Its `min`.
        min: f64,
        /// Its `max`.
        max: f64,
    },
    /// Class names must differ and must not be empty.
    #[error("class names must be three different, non-empty names, found {0:?}")]
    Classes(Vec<String>),
    /// Without golden rows nothing proves that this build computes what was trained.
    #[error("the model has no golden rows to check it by")]
    NoGolden,
    /// This build does not reproduce a probability that was written at training time.
    #[error("golden row {row}: P({class}) is {found}, the file says {expected}")]
    Golden {
        /// Row in `golden`, from 0.
        row: usize,
        /// Class name.
        class: String,
        /// What the file says.
        expected: f64,
        /// What this build computes.
        found: f64,
    },
}

/// Why a request is refused. [`RequestError::code`] is part of the protocol: clients match on it.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum RequestError {
    /// Not JSON, or JSON of another shape than a request.
    #[error("{0}")]
    MalformedJson(String),
    /// A field is absent.
    #[error("{}`{field}` is missing", at(.index))]
    MissingField {
        /// The field's name.
        field: &'static str,
        /// Position in `flowers`, from 0; `None` for a single flower.
        index: Option<usize>,
    },
    /// A measurement is not a JSON number.
    #[error("{}`{field}` must be a number of centimetres, found {found}", at(.index))]
    NotANumber {
        /// The field's name.
        field: &'static str,
        /// Position in `flowers`, from 0; `None` for a single flower.
        index: Option<usize>,
        /// The JSON type that stands there.
        found: &'static str,
    },
    /// A measurement no flower can have.
    #[error("{}`{field}` is {value} cm, outside {min} to {max} cm", at(.index))]
    OutOfRange {
        /// The field's name.
        field: &'static str,
        /// Position in `flowers`, from 0; `None` for a single flower.
        index: Option<usize>,
        /// The value that was sent.
        value: f64,
        /// Smallest accepted value.
        min: f64,
        /// Largest accepted value.
        max: f64,
    },
    /// More flowers than one request, or one MQTT answer, may carry.
    #[error("{found} flowers in one request, at most {max} are answered: send several requests")]
    TooManyFlowers {
        /// Flowers in the request.
        found: usize,
        /// The limit on this way in.
        max: usize,
    },
    /// There is no trustworthy model to answer with. The reason is in the function's log: it names the
    /// bucket, which is none of a device's business.
    #[error("there is no model to answer with right now: ask again later")]
    ModelUnavailable,
}

impl RequestError {
    /// The stable code that stands in a refusal.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MalformedJson(_) => "malformed_json",
            Self::MissingField { .. } => "missing_field",
            Self::NotANumber { .. } => "not_a_number",
            Self::OutOfRange { .. } => "out_of_range",
            Self::TooManyFlowers { .. } => "too_many_flowers",
            Self::ModelUnavailable => "model_unavailable",
        }
    }
}

/// "flowers[3]: " in a batch, nothing for a single flower.
pub(crate) fn at(index: &Option<usize>) -> String {
    index.map_or_else(String::new, |i| format!("flowers[{i}]: "))
}
