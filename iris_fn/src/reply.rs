//! The function's replies, and the log line about each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::metrics::{Line, Metric};
use crate::model::{Feature, Model};
use crate::predict::Prediction;
use crate::request::Refused;

/// What a request gets, and the log line about it: which request and how it ended, never the values that were sent.
pub type Reply = (Box<RawValue>, Line);

/// To a row or a list of rows, as it is serialized.
#[derive(Debug, Serialize)]
pub struct Answer<'m> {
    /// As it was sent.
    pub request_id: String,
    /// The prediction or predictions.
    #[serde(flatten)]
    pub result: Predictions<'m>,
    /// SHA-256 of the model that answered.
    pub model: &'m str,
    /// Whether this call started the container.
    pub cold_start: bool,
    /// Time in the handler before the reply is serialized, in microseconds.
    pub handler_us: u64,
}

impl From<Answer<'_>> for Reply {
    fn from(answer: Answer<'_>) -> Self {
        let json = to_json(&answer);
        let mut line = Line::new("INFO", "answered", answer.request_id);
        line.fields.push(("model", answer.model.to_owned()));
        let mut rows = BTreeMap::new();
        for prediction in answer.result.rows() {
            *rows.entry(prediction.label()).or_insert(0) += 1;
        }
        let count = |(class, rows)| Metric::count(format!("predictions_{class}"), rows);
        line.metrics = rows.into_iter().map(count).collect();
        line.metrics.push(Metric {
            name: "handler_us".into(),
            unit: "Microseconds",
            value: answer.handler_us,
        });
        if answer.cold_start {
            line.metrics.push(Metric::count("cold_starts", 1));
        }
        (json, line)
    }
}

impl From<Refused> for Reply {
    fn from(refused: Refused) -> Self {
        let json = to_json(&refused);
        let mut line = Line::new("WARN", "refused", refused.request_id);
        line.code = Some(refused.error.code());
        line.fields.push(("reason", refused.error.to_string()));
        line.metrics.push(Metric::count("refusals", 1));
        (json, line)
    }
}

/// What a client has to know about the model that answers.
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
    /// The reply to `"describe": true`.
    pub fn reply(self, request_id: String) -> Reply {
        #[derive(Serialize)]
        struct Described<'a> {
            request_id: &'a str,
            #[serde(flatten)]
            description: &'a Description,
        }
        let json = to_json(&Described {
            request_id: &request_id,
            description: &self,
        });
        let mut line = Line::new("INFO", "described", request_id);
        line.fields.push(("model", self.model));
        (json, line)
    }

    /// Of this model.
    pub fn of(model: &Model) -> Self {
        let file = model.file().clone();
        Self {
            target: file.target,
            features: file.features,
            classes: file.classes,
            model: model.sha256().to_owned(),
        }
    }

    /// The middle of each feature's range in training, to about three digits of that range.
    pub fn middle(&self) -> Vec<f64> {
        let middle = |Feature { min, max, .. }: &Feature| {
            let digits = (2.0 - (max - min).log10().floor()).clamp(0.0, 17.0) as usize;
            match format!("{:.digits$}", min / 2.0 + max / 2.0).parse() {
                Ok(middle) if (*min..=*max).contains(&middle) => middle,
                // Where all training values are the same.
                _ => *min,
            }
        };
        self.features.iter().map(middle).collect()
    }

    /// Most bytes of a row in a request, and of a prediction in an answer.
    pub fn most_bytes(&self) -> (usize, usize) {
        // With a number of at most 25 bytes, and what separates it from the next.
        let length = |name: &String| json!(name).to_string().len() + 27;
        let row: usize = self.features.iter().map(|f| length(&f.name)).sum();
        let probabilities: usize = self.classes.iter().map(length).sum();
        let longest = self.classes.iter().map(length).max().unwrap_or(0);
        (row + 2, probabilities + longest + length(&self.target) + 80)
    }

    /// A row as the fields of a request or of an instance in it. JSON knows no NaN and no infinity: they become `null`,
    /// and are refused.
    pub fn instance(&self, row: &[f64]) -> Value {
        let names = self.features.iter().map(|feature| feature.name.clone());
        names.zip(row.iter().copied().map(Value::from)).collect()
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

impl Predictions<'_> {
    /// Of each row.
    pub fn rows(&self) -> &[Prediction<'_>] {
        match self {
            Self::One(prediction) => std::slice::from_ref(prediction),
            Self::Batch { predictions } => predictions,
        }
    }
}

/// A reply as JSON.
pub fn to_json(reply: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(reply)
        .expect("strings, numbers and lists always serialize as JSON")
}

/// A reply as an HTTP response, for a function URL, API Gateway and a load balancer.
pub fn to_http(reply: &RawValue, code: Option<&str>) -> Box<RawValue> {
    let status = match code {
        None => 200,
        Some("model_unavailable") => 503,
        Some(_) => 400,
    };
    let headers = json!({"content-type": "application/json"});
    to_json(&json!({"statusCode": status, "headers": headers, "body": reply.get()}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_any_range_is_in_it_and_short() {
        let feature = |(min, max): (f64, f64)| Feature {
            name: "x".into(),
            unit: String::new(),
            min,
            max,
            accept: [min, max],
        };
        let ranges = [
            (4.3, 7.9),
            (2700.0, 6300.0),
            (-1e-5, 3e-5),
            (0.1, 0.1),
            (-1e308, 1e308),
        ];
        let ranges = [&ranges[..], &[(1e300, 1e300), (0.0, 5e-324)]].concat();
        let features: Vec<Feature> = ranges.iter().copied().map(feature).collect();
        let model = Description {
            target: "y".into(),
            features,
            classes: vec![],
            model: String::new(),
        };
        let middle = model.middle();
        for (feature, x) in model.features.iter().zip(&middle) {
            assert!(feature.has_seen(*x), "{x} is not in {feature:?}");
        }
        assert_eq!(middle[..4], [6.1, 4500.0, 1e-5, 0.1]);
    }
}
