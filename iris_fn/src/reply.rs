//! What the function answers, and the log line about it.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::error::RequestError;
use crate::metrics::{Line, Metric};
use crate::model::{Feature, Model, ModelFile};
use crate::predict::Prediction;

/// To `{"warmup": true}`. The log has no line of it.
#[derive(Debug, Serialize)]
pub struct Warm {
    /// Always true.
    pub warm: bool,
    /// Whether this call started the container.
    pub cold_start: bool,
}

/// To a request, as it is serialized.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Reply<'m> {
    /// To a row or a list of rows.
    Answer {
        /// As it was sent.
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
    /// To `"describe": true`.
    Description {
        /// As it was sent.
        request_id: String,
        /// Which model answers, and what it wants to know.
        #[serde(flatten)]
        description: Description,
    },
    /// To a bad request.
    Refusal {
        /// As it was sent; null where it could not be read.
        request_id: Value,
        /// What was wrong.
        error: Refusal,
    },
}

/// What whoever asks has to know of the model that answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// What is predicted: the label's name in an answer.
    pub target: String,
    /// What a row holds, in the order of its values.
    pub features: Vec<Feature>,
    /// What it may be.
    pub classes: Vec<String>,
    /// SHA-256 of the model that answers.
    pub model: String,
}

impl Description {
    /// Of this model.
    pub fn of(model: &Model) -> Self {
        let ModelFile {
            target,
            features,
            classes,
            ..
        } = model.file().clone();
        Self {
            target,
            features,
            classes,
            model: model.sha256().to_owned(),
        }
    }

    /// A row as the fields of a request or of an instance in it. JSON knows no NaN and no infinity: they become `null`,
    /// and are refused.
    pub fn instance(&self, row: &[f64]) -> Value {
        self.features
            .iter()
            .zip(row)
            .map(|(feature, x)| (feature.name.clone(), Value::from(*x)))
            .collect()
    }

    /// A request about one row.
    pub fn request(&self, request_id: &str, row: &[f64]) -> Value {
        let mut request = self.instance(row);
        request["request_id"] = request_id.into();
        request
    }

    /// A request about many.
    pub fn batch<'r>(&self, request_id: &str, rows: impl IntoIterator<Item = &'r [f64]>) -> Value {
        let instances: Vec<Value> = rows.into_iter().map(|row| self.instance(row)).collect();
        json!({"request_id": request_id, "instances": instances})
    }
}

/// One row's prediction in place, or a list in the order of the request.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Predictions<'m> {
    /// `<target>, "probabilities", "in_distribution"`.
    One(Prediction<'m>),
    /// `"predictions": [ … ]`.
    Batch {
        /// In the order of `instances`.
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

/// A reply as JSON.
pub fn to_json(reply: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(reply)
        .expect("strings, numbers and lists always serialize as JSON")
}

impl Reply<'_> {
    /// To a bad request.
    pub fn refuse(request_id: Value, error: &RequestError) -> Self {
        let error = Refusal {
            code: error.code(),
            message: error.to_string(),
        };
        Self::Refusal { request_id, error }
    }

    /// One line per call: which request and how it went, never what was sent.
    pub fn line(self, stack: &str) -> Line {
        let (level, message, fields, metrics) = match self {
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
                (
                    "INFO",
                    "answered",
                    vec![("request_id", request_id), ("model", model.to_owned())],
                    metrics,
                )
            }
            Self::Description {
                request_id,
                description,
            } => (
                "INFO",
                "described",
                vec![("request_id", request_id), ("model", description.model)],
                Vec::new(),
            ),
            Self::Refusal { request_id, error } => {
                let id = match request_id {
                    Value::String(id) => id,
                    Value::Null => String::new(),
                    other => other.to_string(),
                };
                let fields = vec![
                    ("request_id", id),
                    ("code", error.code.to_owned()),
                    ("reason", error.message),
                ];
                (
                    "WARN",
                    "refused",
                    fields,
                    vec![Metric::count("refusals", 1)],
                )
            }
        };
        Line {
            level,
            message,
            fields,
            stack: stack.to_owned(),
            metrics,
        }
    }
}

impl Predictions<'_> {
    /// How many rows are of each class that occurs.
    fn by_class(&self) -> Vec<Metric> {
        let predictions = match self {
            Self::One(prediction) => std::slice::from_ref(prediction),
            Self::Batch { predictions } => predictions,
        };
        let mut counts = std::collections::BTreeMap::new();
        for prediction in predictions {
            *counts.entry(prediction.label()).or_insert(0) += 1;
        }
        counts
            .into_iter()
            .map(|(class, count)| Metric::count(format!("predictions_{class}"), count))
            .collect()
    }
}
