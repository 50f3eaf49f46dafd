//! A request: bytes in, validated flowers or a typed refusal out.

use serde_json::{Map, Value};

use crate::error::RequestError;
use crate::model::{FEATURE_NAMES, FEATURES};
use crate::predict::Flower;

/// Smallest and largest measurement that is answered, in centimetres. Wide on purpose: it keeps out
/// what no flower can be, not what training did not see (a reading may round down to 0.0).
pub const CENTIMETRES: (f64, f64) = (0.0, 100.0);
/// Most flowers in one request.
pub const MAX_FLOWERS: usize = 10_000;
/// Longest `request_id`, in bytes: it is echoed in the answer.
pub const MAX_REQUEST_ID: usize = 128;

/// A valid request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The asker's name for this question, echoed in the answer.
    pub request_id: String,
    /// What is asked.
    pub question: Question,
}

/// One flower is answered in place, several as a list.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// The four measurements stand in the request itself.
    One(Flower),
    /// They stand in `flowers`; the answer keeps the order.
    Batch(Vec<Flower>),
}

/// A refused request: the error, and the `request_id` where it could be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// The asker's name for this question, if it got that far.
    pub request_id: Option<String>,
    /// What was wrong.
    pub error: RequestError,
}

impl Request {
    /// Read a request from the bytes that a device or a caller sent.
    ///
    /// ```
    /// use iris_fn::request::Request;
    /// let refused = Request::from_bytes(br#"{"request_id": "a", "sepal_length": -1}"#).unwrap_err();
    /// assert_eq!(refused.request_id.as_deref(), Some("a"));
    /// assert_eq!(refused.error.code(), "out_of_range");
    /// ```
    ///
    /// # Errors
    /// [`Refused`] with the first thing that is wrong. Never panics, whatever the bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Refused> {
        let anonymous = |error| Refused {
            request_id: None,
            error,
        };
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|e| anonymous(malformed(format!("not JSON: {e}"))))?;
        let Value::Object(object) = value else {
            return Err(anonymous(malformed(format!(
                "a request is a JSON object, found {}",
                kind(&value)
            ))));
        };
        let request_id = request_id(&object).map_err(anonymous)?;
        match question(&object) {
            Ok(question) => Ok(Self {
                request_id,
                question,
            }),
            Err(error) => Err(Refused {
                request_id: Some(request_id),
                error,
            }),
        }
    }
}

fn request_id(object: &Map<String, Value>) -> Result<String, RequestError> {
    match object.get("request_id") {
        None => Err(RequestError::MissingField {
            field: "request_id",
            index: None,
        }),
        Some(Value::String(id)) if id.len() <= MAX_REQUEST_ID => Ok(id.clone()),
        Some(Value::String(id)) => Err(malformed(format!(
            "`request_id` has {} bytes, at most {MAX_REQUEST_ID} are echoed",
            id.len()
        ))),
        Some(other) => Err(malformed(format!(
            "`request_id` must be a string, found {}",
            kind(other)
        ))),
    }
}

fn question(object: &Map<String, Value>) -> Result<Question, RequestError> {
    let Some(flowers) = object.get("flowers") else {
        return flower(object, None).map(Question::One);
    };
    if let Some(field) = FEATURE_NAMES
        .iter()
        .find(|name| object.contains_key(**name))
    {
        return Err(malformed(format!(
            "`flowers` and `{field}` in one request: ask for one flower or for a list"
        )));
    }
    let Value::Array(flowers) = flowers else {
        return Err(malformed(format!(
            "`flowers` must be a list, found {}",
            kind(flowers)
        )));
    };
    if flowers.len() > MAX_FLOWERS {
        return Err(RequestError::TooManyFlowers {
            found: flowers.len(),
            max: MAX_FLOWERS,
        });
    }
    let flowers = flowers
        .iter()
        .enumerate()
        .map(|(index, value)| match value {
            Value::Object(object) => flower(object, Some(index)),
            other => Err(malformed(format!(
                "flowers[{index}] must be an object, found {}",
                kind(other)
            ))),
        });
    flowers.collect::<Result<_, _>>().map(Question::Batch)
}

fn flower(object: &Map<String, Value>, index: Option<usize>) -> Result<Flower, RequestError> {
    let mut features = [0.0; FEATURES];
    for (x, field) in features.iter_mut().zip(FEATURE_NAMES) {
        let value = object
            .get(field)
            .ok_or(RequestError::MissingField { field, index })?;
        let number = value.as_f64().ok_or(RequestError::NotANumber {
            field,
            index,
            found: kind(value),
        })?;
        let (min, max) = CENTIMETRES;
        if !(min..=max).contains(&number) {
            return Err(RequestError::OutOfRange {
                field,
                index,
                value: number,
                min,
                max,
            });
        }
        *x = number;
    }
    Ok(Flower::from(features))
}

fn malformed(message: String) -> RequestError {
    RequestError::MalformedJson(message)
}

/// The JSON type of a value, as a person would say it.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const SETOSA: &str = r#"{"request_id":"r","sepal_length":5.1,"sepal_width":3.5,"petal_length":1.4,"petal_width":0.2}"#;

    fn code(text: &str) -> &'static str {
        Request::from_bytes(text.as_bytes())
            .expect_err(text)
            .error
            .code()
    }

    #[test]
    fn one_flower() {
        let request = Request::from_bytes(SETOSA.as_bytes()).unwrap();
        assert_eq!(request.request_id, "r");
        assert_eq!(
            request.question,
            Question::One(Flower::from([5.1, 3.5, 1.4, 0.2]))
        );
    }

    #[test]
    fn a_batch_keeps_its_order() {
        let flower = |x: f64| json!({"sepal_length": x, "sepal_width": 3, "petal_length": 1, "petal_width": 0});
        let bytes = json!({"request_id": "r", "flowers": [flower(1.0), flower(2.0)]}).to_string();
        let request = Request::from_bytes(bytes.as_bytes()).unwrap();
        let expected = [1.0, 2.0].map(|x| Flower::from([x, 3.0, 1.0, 0.0]));
        assert_eq!(request.question, Question::Batch(expected.to_vec()));
    }

    #[test]
    fn every_refusal_has_its_code() {
        assert_eq!(code(""), "malformed_json");
        assert_eq!(code("[1, 2]"), "malformed_json");
        assert_eq!(code(&SETOSA.replace("5.1", "NaN")), "malformed_json");
        assert_eq!(code(r#"{"request_id": 7}"#), "malformed_json");
        assert_eq!(
            code(&SETOSA.replace(r#""r""#, &format!("{:?}", "r".repeat(129)))),
            "malformed_json"
        );
        assert_eq!(
            code(&SETOSA.replace(r#""request_id":"r","#, "")),
            "missing_field"
        );
        assert_eq!(
            code(&SETOSA.replace("petal_width", "width")),
            "missing_field"
        );
        assert_eq!(code(&SETOSA.replace("5.1", r#""5.1""#)), "not_a_number");
        assert_eq!(code(&SETOSA.replace("5.1", "null")), "not_a_number");
        assert_eq!(code(&SETOSA.replace("5.1", "1e308")), "out_of_range");
        assert_eq!(code(&SETOSA.replace("5.1", "-0.1")), "out_of_range");
        assert_eq!(code(r#"{"request_id":"r","flowers":{}}"#), "malformed_json");
        assert_eq!(
            code(&SETOSA.replace('}', r#","flowers":[]}"#)),
            "malformed_json"
        );
        let many = format!(
            r#"{{"request_id":"r","flowers":[{}0]}}"#,
            "0,".repeat(MAX_FLOWERS)
        );
        assert_eq!(code(&many), "too_many_flowers");
    }

    #[test]
    fn a_refusal_names_the_flower_and_keeps_the_request_id() {
        let text = r#"{"request_id":"r","flowers":[{"sepal_length":5,"sepal_width":3,"petal_length":1,"petal_width":"x"}]}"#;
        let refused = Request::from_bytes(text.as_bytes()).unwrap_err();
        assert_eq!(refused.request_id.as_deref(), Some("r"));
        assert_eq!(
            refused.error.to_string(),
            "flowers[0]: `petal_width` must be a number of centimetres, found a string"
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused() {
        let refused = Request::from_bytes(b"{\"request_id\": \"\xff\"}").unwrap_err();
        assert_eq!(refused.error.code(), "malformed_json");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Request::from_bytes(&bytes);
        }

        #[test]
        fn whatever_number_is_sent_is_answered_in_range_or_refused(bits in any::<u64>()) {
            let x = f64::from_bits(bits);
            prop_assume!(x.is_finite());
            let text = SETOSA.replace("5.1", &serde_json::to_string(&x).unwrap());
            match Request::from_bytes(text.as_bytes()) {
                Ok(request) => {
                    let Question::One(flower) = request.question else { panic!("one flower was sent") };
                    prop_assert_eq!(flower.sepal_length.to_bits(), x.to_bits());
                    prop_assert!((0.0..=100.0).contains(&x));
                }
                Err(refused) => prop_assert_eq!(refused.error.code(), "out_of_range"),
            }
        }
    }
}
