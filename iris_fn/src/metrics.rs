//! One line per call: the log of it, and its metrics.
//!
//! CloudWatch reads metrics out of a JSON log line in Embedded Metric Format
//! (<https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>):
//! no call to its API, no time in the handler. All carry the dimension `stack`.
//!
//! | metric | unit | when |
//! | --- | --- | --- |
//! | `predictions_<class>` | Count | answered: rows of that class; a dashboard finds them all by the word `predictions` |
//! | `handler_us` | Microseconds | answered |
//! | `cold_starts` | Count | answered, by the first call of a container |
//! | `refusals`, by `code` too | Count | refused; an alarm watches the code `model_unavailable` |
//! | `models_refused` | Count | any call, while the published model is refused; an alarm watches it |

use std::borrow::Cow;
use std::io::Write;
use std::time::SystemTime;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Value, json};

/// The namespace in CloudWatch.
pub const NAMESPACE: &str = "IrisWorkshop";

/// Most metrics of one directive.
const METRICS: usize = 100;

/// A number for CloudWatch.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Metric {
    /// Also the name of the field that holds the value.
    pub name: Cow<'static, str>,
    /// One of CloudWatch's units.
    pub unit: &'static str,
    /// The value, in that unit.
    #[serde(skip)]
    pub value: u64,
}

impl Metric {
    /// How often something happened in this call.
    pub fn count(name: impl Into<Cow<'static, str>>, value: u64) -> Self {
        Self {
            name: name.into(),
            unit: "Count",
            value,
        }
    }
}

/// A log line with metrics in it.
#[derive(Debug)]
pub struct Line {
    /// `INFO`, `WARN` or `ERROR`.
    pub level: &'static str,
    /// What happened, in a word.
    pub message: &'static str,
    /// The caller's name for the request; empty where it could not be read.
    pub request_id: String,
    /// Of a refusal; also a dimension of its metrics.
    pub code: Option<&'static str>,
    /// Text for people.
    pub fields: Vec<(&'static str, String)>,
    /// The stack's name.
    pub stack: String,
    /// The numbers.
    pub metrics: Vec<Metric>,
}

impl Line {
    /// A line about a request without metrics.
    pub fn new(level: &'static str, message: &'static str, request_id: impl Into<Value>) -> Self {
        Self {
            level,
            message,
            request_id: match request_id.into() {
                Value::String(id) => id,
                Value::Null => String::new(),
                other => other.to_string(),
            },
            code: None,
            fields: Vec::new(),
            stack: String::new(),
            metrics: Vec::new(),
        }
    }

    /// Write the line to standard output, which Lambda takes to CloudWatch Logs. The call ends after that: then Lambda
    /// may freeze the process.
    pub fn print(&self) {
        let mut text = serde_json::to_vec(self).expect("text and numbers always serialize as JSON");
        text.push(b'\n');
        // A log that cannot be written must not fail the call.
        let _ = std::io::stdout().lock().write_all(&text);
    }

    /// The metadata by which CloudWatch finds the metrics among the fields.
    fn directives(&self) -> Value {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let dimensions = match self.code {
            Some(_) => json!([["stack"], ["stack", "code"]]),
            None => json!([["stack"]]),
        };
        // One directive holds at most 100 metrics, and a batch may meet 256 classes.
        let directive =
            |metrics| json!({"Namespace": NAMESPACE, "Dimensions": dimensions, "Metrics": metrics});
        let directives: Vec<Value> = self.metrics.chunks(METRICS).map(directive).collect();
        let timestamp = since_1970.map_or(0, |t| t.as_millis() as u64);
        json!({"Timestamp": timestamp, "CloudWatchMetrics": directives})
    }
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_map(None)?;
        line.serialize_entry("level", self.level)?;
        line.serialize_entry("message", self.message)?;
        line.serialize_entry("request_id", &self.request_id)?;
        if let Some(code) = self.code {
            line.serialize_entry("code", code)?;
        }
        for (name, text) in &self.fields {
            line.serialize_entry(name, text)?;
        }
        for metric in &self.metrics {
            line.serialize_entry(&metric.name, &metric.value)?;
        }
        line.serialize_entry("stack", &self.stack)?;
        if !self.metrics.is_empty() {
            line.serialize_entry("_aws", &self.directives())?;
        }
        line.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_text_and_metrics_in_cloudwatchs_own_format() {
        let line = Line {
            code: Some("out_of_range"),
            stack: "iris".into(),
            metrics: vec![Metric::count("refusals", 1)],
            ..Line::new("WARN", "refused", "r")
        };
        let mut line = serde_json::to_value(line).unwrap();
        assert!(line["_aws"]["Timestamp"].as_u64().unwrap() > 1_700_000_000_000);
        line["_aws"]["Timestamp"] = Value::Null;
        assert_eq!(
            line,
            json!({
                "level": "WARN", "message": "refused", "request_id": "r", "code": "out_of_range",
                "refusals": 1, "stack": "iris",
                "_aws": {"Timestamp": null, "CloudWatchMetrics": [{
                    "Namespace": "IrisWorkshop",
                    "Dimensions": [["stack"], ["stack", "code"]],
                    "Metrics": [{"Name": "refusals", "Unit": "Count"}],
                }]},
            })
        );
    }

    #[test]
    fn a_line_without_metrics_has_no_directive_and_an_id_is_text() {
        let line = serde_json::to_value(Line::new("INFO", "described", 7)).unwrap();
        assert_eq!(
            line,
            json!({"level": "INFO", "message": "described", "request_id": "7", "stack": ""})
        );
    }
}
