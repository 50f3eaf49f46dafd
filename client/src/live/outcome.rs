//! How a request ended, as a page gets it.

use std::collections::BTreeMap;

use client::{AskError, Reply};
use serde::Serialize;
use serde_json::{Value, json};

/// Classes that a page shows of an answer: the most probable ones.
const SHOWN: usize = 6;

/// How a request ended, as a page gets it.
#[derive(Debug, Serialize)]
pub struct Message<'a> {
    pub request_id: &'a str,
    pub shape: u64,
    /// In the order of the features.
    pub values: &'a [f64],
    /// The right answer, where it is known.
    pub truth: Option<&'a str>,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// From the request to the reply, in milliseconds, including any wait before it was sent.
    pub ms: f64,
    /// When the reply arrived, in milliseconds since 1970.
    pub at: f64,
}

#[derive(Debug, Serialize, PartialEq)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    Answered(Answer),
    Refused { error: Value },
    Failed { error: Value },
}

/// What a page shows of an answer.
#[derive(Debug, PartialEq, Serialize)]
pub struct Answer {
    label: String,
    probabilities: BTreeMap<String, f64>,
    in_distribution: bool,
    pub model: String,
    cold_start: bool,
}

impl Outcome {
    pub fn of(reply: Result<Reply, AskError>, target: &str) -> Self {
        let failed = |code: &str, message: String| Self::Failed {
            error: json!({"code": code, "message": message}),
        };
        match reply {
            Ok(Reply::Answer(answer)) => match Answer::read(&answer, target) {
                Some(answer) => Self::Answered(answer),
                None => failed(
                    "unreadable_answer",
                    format!("the answer has no `{target}` with its probabilities"),
                ),
            },
            Ok(Reply::Refusal(error)) => Self::Refused { error },
            Err(e) => failed(e.code(), e.to_string()),
        }
    }
}

impl Answer {
    fn read(answer: &Value, target: &str) -> Option<Self> {
        let all: BTreeMap<_, _> = serde_json::from_value(answer["probabilities"].clone()).ok()?;
        let mut probabilities: Vec<(String, f64)> = all.into_iter().collect();
        probabilities.sort_by(|a, b| b.1.total_cmp(&a.1));
        probabilities.truncate(SHOWN);
        Some(Self {
            label: answer[target].as_str()?.to_owned(),
            probabilities: probabilities.into_iter().collect(),
            in_distribution: answer["in_distribution"].as_bool()?,
            model: answer["model"].as_str()?.to_owned(),
            cold_start: answer["cold_start"].as_bool()?,
        })
    }
}

/// A message for all pages.
pub struct Encoded {
    /// The text of a [`Message`].
    pub json: String,
    /// Asked by a page: never left out.
    pub from_page: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_shows_the_label_under_the_target_and_the_most_probable_classes() {
        let probabilities: Value = (0..9)
            .map(|k| (k.to_string(), json!(f64::from(k) / 36.0)))
            .collect();
        let answer = json!({"digit": "8", "probabilities": probabilities, "in_distribution": true, "model": "m", "cold_start": false});
        let read = Answer::read(&answer, "digit").unwrap();
        assert_eq!(read.label, "8");
        assert_eq!(
            read.probabilities.keys().collect::<Vec<_>>(),
            ["3", "4", "5", "6", "7", "8"]
        );
        assert_eq!(Answer::read(&answer, "letter"), None);
    }

    #[test]
    fn what_is_no_answer_says_why() {
        let code = |reply| match Outcome::of(reply, "digit") {
            Outcome::Failed { error } => error["code"].clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(code(Err(AskError::Closed)), "closed");
        let unreadable = json!({"request_id": "r", "probabilities": {}});
        assert_eq!(code(Ok(Reply::Answer(unreadable))), "unreadable_answer");
        let error = json!({"code": "out_of_range"});
        let refused = Outcome::of(Ok(Reply::Refusal(error.clone())), "digit");
        assert_eq!(refused, Outcome::Refused { error });
    }
}
