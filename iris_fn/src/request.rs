//! A request: bytes in, validated flowers or a typed refusal out.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{RequestError, at};
use crate::model::{FEATURE_NAMES, FEATURES};
use crate::predict::Flower;

/// Smallest and largest measurement that is answered, in centimetres. Wide on purpose: it keeps out
/// what no flower can be, not what training did not see (a reading may round down to 0.0).
pub const CENTIMETRES: (f64, f64) = (0.0, 100.0);
/// Most flowers in one request.
pub const MAX_FLOWERS: usize = 10_000;
/// Longest `request_id`, in bytes: it is echoed in the answer.
pub const MAX_REQUEST_ID: usize = 128;
/// AWS IoT's limit on one MQTT payload, in bytes. A connection that sends more is dropped
/// (<https://docs.aws.amazon.com/general/latest/gr/iot-core.html#message-broker-limits>).
pub const MAX_PAYLOAD: usize = 128 * 1024;

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
        let text = std::str::from_utf8(bytes)
            .map_err(|e| anonymous(malformed(format!("not UTF-8: {e}"))))?;
        let fields = match serde_json::from_str(text) {
            Ok(Json::Object(fields)) => *fields,
            Ok(other) => {
                let message = format!("a request is a JSON object, found {}", other.kind());
                return Err(anonymous(malformed(message)));
            }
            Err(e) if e.is_data() => return Err(anonymous(malformed(e.to_string()))),
            Err(e) => return Err(anonymous(malformed(format!("not JSON: {e}")))),
        };
        let request_id = checked_id(fields.request_id).map_err(anonymous)?;
        match question(fields.flowers, &fields.measurements) {
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

fn checked_id(id: Json) -> Result<String, RequestError> {
    match id {
        Json::Missing => Err(RequestError::MissingField {
            field: "request_id",
            index: None,
        }),
        Json::Text(id) if id.len() <= MAX_REQUEST_ID => Ok(id),
        Json::Text(id) => Err(malformed(format!(
            "`request_id` has {} bytes, at most {MAX_REQUEST_ID} are echoed",
            id.len()
        ))),
        other => Err(malformed(format!(
            "`request_id` must be a string, found {}",
            other.kind()
        ))),
    }
}

fn question(flowers: Json, single: &[Json; FEATURES]) -> Result<Question, RequestError> {
    if let Json::Missing = flowers {
        return flower(single, None).map(Question::One);
    }
    let mut present = FEATURE_NAMES.iter().zip(single);
    if let Some((field, _)) = present.find(|(_, json)| !matches!(json, Json::Missing)) {
        return Err(malformed(format!(
            "`flowers` and `{field}` in one request: ask for one flower or for a list"
        )));
    }
    match flowers {
        Json::List { length, .. } if length > MAX_FLOWERS => Err(RequestError::TooManyFlowers {
            found: length,
            max: MAX_FLOWERS,
        }),
        Json::List { flowers, .. } => flowers.map(Question::Batch),
        other => Err(malformed(format!(
            "`flowers` must be a list, found {}",
            other.kind()
        ))),
    }
}

fn flower(fields: &[Json; FEATURES], index: Option<usize>) -> Result<Flower, RequestError> {
    let mut features = [0.0; FEATURES];
    for ((x, field), json) in features.iter_mut().zip(FEATURE_NAMES).zip(fields) {
        let value = match json {
            Json::Number(value) => *value,
            Json::Missing => return Err(RequestError::MissingField { field, index }),
            Json::Several => {
                let place = at(&index);
                return Err(malformed(format!("{place}`{field}` stands there twice")));
            }
            other => {
                return Err(RequestError::NotANumber {
                    field,
                    index,
                    found: other.kind(),
                });
            }
        };
        let (min, max) = CENTIMETRES;
        if !(min..=max).contains(&value) {
            return Err(RequestError::OutOfRange {
                field,
                index,
                value,
                min,
                max,
            });
        }
        *x = value;
    }
    Ok(Flower::from(features))
}

fn malformed(message: String) -> RequestError {
    RequestError::MalformedJson(message)
}

/// Any JSON value, as much of it as a request needs. It is read in one pass, without a tree of values:
/// a list becomes flowers as it is read, and what no field of a request may hold becomes its kind. The
/// text is read to its end before anything in it is refused, so that a refusal can name the request.
#[derive(Default)]
enum Json {
    #[default]
    Missing,
    Null,
    Boolean,
    Number(f64),
    Text(String),
    List {
        length: usize,
        /// The first [`MAX_FLOWERS`], or what is wrong with the first bad one.
        flowers: Result<Vec<Flower>, RequestError>,
    },
    Object(Box<Fields>),
    /// The field stands there more than once: which one would be meant?
    Several,
}

/// The fields that a request or a flower in it may have; others are ignored.
#[derive(Default)]
struct Fields {
    request_id: Json,
    flowers: Json,
    /// In the order of [`FEATURE_NAMES`].
    measurements: [Json; FEATURES],
}

impl Json {
    /// The JSON type, as a person would say it.
    fn kind(&self) -> &'static str {
        match self {
            Self::Missing => "nothing",
            Self::Null => "null",
            Self::Boolean => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List { .. } => "a list",
            Self::Object(_) => "an object",
            Self::Several => "several values",
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Boolean)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut fields = Box::<Fields>::default();
        while let Some(Key(key)) = map.next_key()? {
            let field = match key.as_ref() {
                "request_id" => &mut fields.request_id,
                "flowers" => &mut fields.flowers,
                name => match FEATURE_NAMES.iter().position(|known| *known == name) {
                    Some(column) => &mut fields.measurements[column],
                    None => {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                },
            };
            if !matches!(field, Json::Missing) {
                map.next_value::<IgnoredAny>()?;
                *field = Json::Several;
                continue;
            }
            *field = map.next_value()?;
        }
        Ok(Json::Object(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut length = 0;
        let mut flowers = Ok(Vec::new());
        while let Some(element) = list.next_element()? {
            if let Ok(good) = &mut flowers
                && length < MAX_FLOWERS
            {
                match in_list(element, length) {
                    Ok(flower) => good.push(flower),
                    Err(error) => flowers = Err(error),
                }
            }
            length += 1;
        }
        Ok(Json::List { length, flowers })
    }
}

/// A field's name, borrowed from the text unless it is written with escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

fn in_list(element: Json, index: usize) -> Result<Flower, RequestError> {
    match element {
        Json::Object(fields) => flower(&fields.measurements, Some(index)),
        other => Err(malformed(format!(
            "flowers[{index}] must be an object, found {}",
            other.kind()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const SETOSA: &str = r#"{"request_id":"r","sepal_length":5.1,"sepal_width":3.5,"petal_length":1.4,"petal_width":0.2}"#;

    fn id_of(text: &str) -> Value {
        json!({"request_id": text, "flowers": []})
    }

    fn read(value: Value) -> Result<Request, Refused> {
        Request::from_bytes(value.to_string().as_bytes())
    }

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
    fn a_field_that_stands_there_twice_is_refused_by_its_name_and_the_requests() {
        let twice = SETOSA.replace("{", r#"{"petal_width":0.3,"#);
        let refused = Request::from_bytes(twice.as_bytes()).unwrap_err();
        assert_eq!(refused.request_id.as_deref(), Some("r"));
        assert_eq!(
            refused.error.to_string(),
            "`petal_width` stands there twice"
        );
        assert_eq!(
            code(r#"{"request_id":"a","request_id":"b","flowers":[]}"#),
            "malformed_json"
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
        assert_eq!(
            code(&SETOSA.replace('{', r#"{"petal_width":1,"#)),
            "malformed_json"
        );
        assert_eq!(code(r#"{"request_id": 7}"#), "malformed_json");
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
        // JSON, and no number that this machine has.
        assert_eq!(code(&SETOSA.replace("5.1", "1e400")), "malformed_json");
        assert_eq!(code(&SETOSA.replace("5.1", "-1e400")), "malformed_json");
    }

    #[test]
    fn a_measurement_is_answered_from_0_to_100_cm_exactly() {
        for x in [0.0, -0.0, 100.0] {
            let text = SETOSA.replace("5.1", &format!("{x:?}"));
            let request = Request::from_bytes(text.as_bytes()).expect(&text);
            let expected = Flower::from([x, 3.5, 1.4, 0.2]);
            assert_eq!(request.question, Question::One(expected));
        }
        for x in [0.0_f64.next_down(), 100.0_f64.next_up()] {
            assert_eq!(code(&SETOSA.replace("5.1", &x.to_string())), "out_of_range");
        }
    }

    #[test]
    fn a_request_id_has_at_most_128_bytes() {
        for longest in ["r".repeat(128), "é".repeat(64)] {
            let request = read(id_of(&longest)).expect(&longest);
            assert_eq!(request.request_id, longest);
            let refused = read(id_of(&format!("{longest}r"))).unwrap_err();
            assert_eq!(refused.error.code(), "malformed_json");
            assert!(refused.error.to_string().contains("129 bytes"));
        }
    }

    #[test]
    fn a_request_has_from_none_to_10_000_flowers() {
        let flower =
            json!({"sepal_length": 5, "sepal_width": 3, "petal_length": 1, "petal_width": 0});
        let ask = |flowers| read(json!({"request_id": "r", "flowers": vec![&flower; flowers]}));
        for flowers in [0, 10_000] {
            let Question::Batch(batch) = ask(flowers).unwrap().question else {
                panic!("a list was sent")
            };
            assert_eq!(batch.len(), flowers);
        }
        let error = ask(10_001).unwrap_err().error;
        assert_eq!(
            error,
            RequestError::TooManyFlowers {
                found: 10_001,
                max: 10_000
            }
        );
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
