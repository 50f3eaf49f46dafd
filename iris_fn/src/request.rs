//! A request: bytes in, rows that the model accepts or a typed refusal out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{RequestError, at};
use crate::model::{Feature, MAX_NAME, ModelFile};

/// Most instances in one request.
pub const MAX_INSTANCES: usize = 10_000;
/// Longest `request_id`, in bytes: it is echoed in the answer.
pub const MAX_REQUEST_ID: usize = 128;
/// AWS IoT's limit on one MQTT payload, in bytes. A connection that sends more is dropped
/// (<https://docs.aws.amazon.com/general/latest/gr/iot-core.html#message-broker-limits>).
pub const MAX_PAYLOAD: usize = 128 * 1024;

/// A valid request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The caller's name for this request, echoed in the answer.
    pub request_id: String,
    /// What is asked.
    pub question: Question,
}

/// What a request can ask. Rows are in the order of the model's features.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// `"describe": true`: which model answers, and which features it needs.
    Describe,
    /// The features are fields of the request itself.
    One(Vec<f64>),
    /// They are in `instances`; the answer keeps the order.
    Batch(Vec<Vec<f64>>),
}

/// A refused request: the error, and the `request_id` where it could be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// The caller's name for this request, as it was sent; null where there is none.
    pub request_id: Value,
    /// What was wrong.
    pub error: RequestError,
}

impl Request {
    /// Read a request from the bytes that a device or a caller sent, and check its rows against `model`.
    ///
    /// # Errors
    /// [`Refused`] with the first thing that is wrong. Never panics, whatever the bytes.
    pub fn from_bytes(bytes: &[u8], model: &ModelFile) -> Result<Self, Refused> {
        read(bytes, model).map_err(|error| Refused {
            request_id: find_request_id(bytes),
            error,
        })
    }
}

fn read(bytes: &[u8], model: &ModelFile) -> Result<Request, RequestError> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            malformed(UTF_16)
        } else {
            malformed(format!("not UTF-8: {e}"))
        }
    })?;
    if text.starts_with(BOM) {
        return Err(malformed(
            "the text begins with a byte order mark: send UTF-8 without one",
        ));
    }
    let mut order = Order::new();
    let fields = Fields::checked(text, model, &mut order, None)?;
    let request_id = request_id(text, fields.request_id)?;
    let describe = fields
        .describe
        .map_or(Ok(false), |json| field(json, "describe", "true or false"))?;
    let question = match (describe, fields.instances) {
        (true, None) => Question::Describe,
        (true, Some(_)) => {
            return Err(malformed(
                "`describe` and `instances` in one request: ask for one of them",
            ));
        }
        (false, None) => Question::One(fields.row(text, model, None)?),
        (false, Some(instances)) => {
            if let Some(column) = order.first() {
                let name = &model.features[*column].name;
                return Err(malformed(format!(
                    "`instances` and `{name}` in one request: ask for one row or for a list of them"
                )));
            }
            Question::Batch(batch(instances, model)?)
        }
    };
    Ok(Request {
        request_id,
        question,
    })
}

fn request_id(text: &str, json: Option<&RawValue>) -> Result<String, RequestError> {
    let json = json.ok_or_else(|| missing(text, "request_id", None))?;
    let id: String = field(json, "request_id", "a string")?;
    if id.len() > MAX_REQUEST_ID {
        let bytes = id.len();
        return Err(malformed(format!(
            "`request_id` has {bytes} bytes, at most {MAX_REQUEST_ID} are echoed"
        )));
    }
    Ok(id)
}

/// The value of a field that is no feature.
fn field<'a, T: Deserialize<'a>>(
    json: &'a RawValue,
    name: &str,
    wanted: &str,
) -> Result<T, RequestError> {
    let (json, found) = (json.get(), kind(json.get()));
    serde_json::from_str(json)
        .map_err(|_| malformed(format!("`{name}` must be {wanted}, found {found}")))
}

fn batch(json: &RawValue, model: &ModelFile) -> Result<Vec<Vec<f64>>, RequestError> {
    let instances: Vec<&RawValue> = field(json, "instances", "a list")?;
    let found = instances.len();
    if found > MAX_INSTANCES {
        return Err(RequestError::TooManyInstances {
            found,
            max: MAX_INSTANCES,
        });
    }
    let mut order = Order::new();
    let row = |(index, json): (usize, &RawValue)| match kind(json.get()) {
        "an object" => row(json.get(), model, &mut order, index),
        other => Err(malformed(format!(
            "instances[{index}] must be an object, found {other}"
        ))),
    };
    instances.into_iter().enumerate().map(row).collect()
}

/// The hint in a refusal, for a caller who does not know the model.
const EXAMPLE: &str = r#"{"request_id": "1", "describe": true}"#;
const UTF_16: &str = "the text is UTF-16: send UTF-8";

/// What is wrong with a text that is not a JSON object.
fn not_json(text: &str, e: &serde_json::Error) -> RequestError {
    let text = text.trim_start();
    malformed(match text.as_bytes().first() {
        _ if text.contains('\0') => UTF_16.to_owned(),
        Some(b'{') if text.contains("NaN") || text.contains("Infinity") => {
            format!("not JSON, which has no NaN and no Infinity: {e}")
        }
        Some(b'{') => format!("not JSON: {e}"),
        Some(b'[') => "found a list: send one request, many rows as its `instances`".to_owned(),
        Some(b'"') => "found a string: send the object itself, not JSON in a string".to_owned(),
        first => {
            let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
            let found = match first {
                None => "nothing",
                Some(_) if is_json => kind(text),
                Some(_) => "text that is not JSON",
            };
            format!("found {found}: send a JSON object, such as {EXAMPLE}")
        }
    })
}

/// A missing field, and the field that was probably meant.
fn missing(text: &str, name: &str, index: Option<usize>) -> RequestError {
    let letters = |name: &str| {
        let letters = name.chars().filter(|c| c.is_alphanumeric());
        letters.flat_map(char::to_lowercase).collect::<String>()
    };
    let fields: BTreeMap<String, IgnoredAny> = serde_json::from_str(text).unwrap_or_default();
    let is_meant = |field: &&String| field.len() < 2 * MAX_NAME && letters(field) == letters(name);
    let hint = match fields.keys().find(is_meant) {
        Some(found) => format!(": rename `{found}`, names are compared letter by letter"),
        None if name == "request_id" => format!(": to learn what to send, send {EXAMPLE}"),
        None => String::new(),
    };
    let field = name.to_owned();
    RequestError::MissingField { field, index, hint }
}

fn malformed(message: impl Into<String>) -> RequestError {
    RequestError::MalformedJson(message.into())
}

/// The JSON type, as text for people.
fn kind(json: &str) -> &'static str {
    match json.as_bytes().first() {
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(b'"') => "a string",
        Some(b'[') => "a list",
        Some(b'{') => "an object",
        _ => "a number",
    }
}

/// The fields of a JSON object that a request or an instance may have; others are ignored. The features' names are the
/// model's, so that no derived type can hold them. `V` is what a value is read as: a number, or the JSON that it is,
/// which tells what is wrong with it.
struct Fields<'a, V> {
    request_id: Option<&'a RawValue>,
    instances: Option<&'a RawValue>,
    describe: Option<&'a RawValue>,
    /// In the order of the model's features.
    values: Vec<Option<V>>,
    /// A field that appears more than once: which one would be meant?
    twice: Option<String>,
}

impl<'a, V: Deserialize<'a>> Fields<'a, V> {
    fn read(text: &'a str, model: &ModelFile, order: &mut Order) -> serde_json::Result<Self> {
        let mut json = serde_json::Deserializer::from_str(text);
        let fields = FieldsOf(model, order, PhantomData).deserialize(&mut json)?;
        json.end().map(|()| fields)
    }
}

impl<'a> Fields<'a, &'a RawValue> {
    /// The fields of a text in which none appears twice.
    fn checked(
        text: &'a str,
        model: &ModelFile,
        order: &mut Order,
        index: Option<usize>,
    ) -> Result<Self, RequestError> {
        let fields = Self::read(text, model, order).map_err(|e| not_json(text, &e))?;
        match &fields.twice {
            Some(name) => Err(malformed(format!("{}`{name}` appears twice", at(&index)))),
            None => Ok(fields),
        }
    }

    /// The values as numbers that the model accepts, or what is wrong with the first that is not.
    fn row(
        &self,
        text: &str,
        model: &ModelFile,
        index: Option<usize>,
    ) -> Result<Vec<f64>, RequestError> {
        let value = |(feature, json): (&Feature, &Option<&RawValue>)| {
            let (name, [low, high]) = (&feature.name, feature.accept);
            let json = json.ok_or_else(|| missing(text, name, index))?;
            match serde_json::from_str::<f64>(json.get()) {
                Ok(value) if feature.accepts(value) => Ok(value),
                Ok(value) => Err(RequestError::OutOfRange {
                    field: name.clone(),
                    index,
                    value,
                    low,
                    high,
                    unit: format!(" {}", feature.unit).trim_end().to_owned(),
                }),
                Err(e) => Err(match kind(json.get()) {
                    "a number" => malformed(format!(
                        "{}`{name}` is no number that fits: {e}",
                        at(&index)
                    )),
                    found => RequestError::NotANumber {
                        field: name.clone(),
                        index,
                        found,
                    },
                }),
            }
        };
        model.features.iter().zip(&self.values).map(value).collect()
    }
}

/// The values of an instance: read as numbers, and once more where something is wrong, to say what.
fn row(
    text: &str,
    model: &ModelFile,
    order: &mut Order,
    index: usize,
) -> Result<Vec<f64>, RequestError> {
    if let Ok(Fields {
        values,
        twice: None,
        ..
    }) = Fields::<f64>::read(text, model, order)
    {
        let accepted = |(feature, x): (&Feature, Option<f64>)| x.filter(|x| feature.accepts(*x));
        let values: Option<Vec<f64>> = model.features.iter().zip(values).map(accepted).collect();
        if let Some(values) = values {
            return Ok(values);
        }
    }
    Fields::checked(text, model, order, Some(index))?.row(text, model, Some(index))
}

/// For each field of an object, the feature that it was in the object before: most lists have one order.
type Order = Vec<usize>;

/// Reads [`Fields`] in one pass, with this model's features.
struct FieldsOf<'m, V>(&'m ModelFile, &'m mut Order, PhantomData<V>);

impl<'de, V: Deserialize<'de>> DeserializeSeed<'de> for FieldsOf<'_, V> {
    type Value = Fields<'de, V>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, V: Deserialize<'de>> Visitor<'de> for FieldsOf<'_, V> {
    type Value = Fields<'de, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request, which is a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self(ModelFile { features, .. }, order, _) = self;
        let values = features.iter().map(|_| None).collect();
        let mut fields = Fields {
            request_id: None,
            instances: None,
            describe: None,
            values,
            twice: None,
        };
        let mut known = 0;
        while let Some(Key(name)) = map.next_key()? {
            let is_named = |column: &usize| features[*column].name == name;
            let other = match name.as_ref() {
                _ if order.get(known).is_some_and(is_named) => None,
                "request_id" => Some(&mut fields.request_id),
                "instances" => Some(&mut fields.instances),
                "describe" => Some(&mut fields.describe),
                _ => match (0..features.len()).find(is_named) {
                    Some(column) => {
                        order.truncate(known);
                        order.push(column);
                        None
                    }
                    None => {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                },
            };
            let before = match other {
                Some(field) => field.replace(map.next_value()?).is_some(),
                None => {
                    known += 1;
                    fields.values[order[known - 1]]
                        .replace(map.next_value()?)
                        .is_some()
                }
            };
            if before {
                fields.twice = Some(name.into_owned());
            }
        }
        Ok(fields)
    }
}

/// A field's name, borrowed from the text unless it is written with escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

const BOM: char = '\u{feff}';

/// The `request_id` of a request that is refused, as it was sent: also where the text is no JSON further on, where it
/// begins with a byte order mark, or where the id is a number. Null where there is none, or one too long to echo.
pub fn find_request_id(bytes: &[u8]) -> Value {
    let text = String::from_utf8_lossy(bytes);
    let (mut rest, mut depth) = (text.trim_start_matches(BOM), 0);
    while let Some(at) = rest.find(['"', '{', '[', '}', ']']) {
        rest = &rest[at..];
        match rest.as_bytes()[0] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {
                let Some((name, behind)) = first::<String>(rest) else {
                    break;
                };
                rest = behind;
                if let ("request_id", 1, Some(value)) =
                    (&*name, depth, rest.trim_start().strip_prefix(':'))
                {
                    return match first::<Value>(value.trim_start()) {
                        Some((Value::String(id), _)) if id.len() <= MAX_REQUEST_ID => {
                            Value::String(id)
                        }
                        Some((Value::Number(id), _)) => Value::Number(id),
                        _ => Value::Null,
                    };
                }
                continue;
            }
        }
        rest = &rest[1..];
    }
    Value::Null
}

/// The JSON value at the start of a text, and what is behind it.
fn first<'a, T: Deserialize<'a>>(text: &'a str) -> Option<(T, &'a str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<T>();
    let value = values.next()?.ok()?;
    Some((value, &text[values.byte_offset()..]))
}
