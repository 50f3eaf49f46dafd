//! A request: bytes in, rows that the model accepts or a typed refusal out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::RequestError;
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

/// A refused request: the error, and the `request_id` where it could be read. Serializes as the protocol's refusal.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text
            .strip_prefix(BOM)
            .map_or(Ok(text), |_| Err(WITH_BOM.to_owned())),
        Err(_) if matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) => Err(UTF_16.to_owned()),
        Err(e) => Err(format!("not UTF-8: {e}")),
    };
    let text = text.map_err(RequestError::MalformedJson)?;
    let names = model.features.iter().map(|feature| &*feature.name);
    let reader = Reader {
        model,
        names: names
            .chain(["request_id", "instances", "describe"])
            .collect(),
    };
    let fields = reader.fields(text)?;
    let [row @ .., request_id, instances, describe] = &fields[..] else {
        unreachable!("each name has a field")
    };
    let request_id = request_id.ok_or_else(|| missing(text, "request_id"))?;
    let request_id: String = field(request_id, "request_id", "a string")?;
    if request_id.len() > MAX_REQUEST_ID {
        let bytes = request_id.len();
        return malformed(format!(
            "`request_id` has {bytes} bytes, at most {MAX_REQUEST_ID} are echoed"
        ));
    }
    let describe = describe.map_or(Ok(false), |json| field(json, "describe", "true or false"))?;
    let question = match (describe, instances, row.iter().position(Option::is_some)) {
        (true, None, _) => Question::Describe,
        (true, Some(_), _) => {
            return malformed("`describe` and `instances` in one request: ask for one of them");
        }
        (false, None, _) => Question::One(reader.row(text, row)?),
        (false, Some(instances), None) => Question::Batch(reader.batch(instances)?),
        (false, Some(_), Some(column)) => {
            return malformed(format!(
                "`instances` and `{}` in one request: ask for one row or for a list of them",
                reader.names[column]
            ));
        }
    };
    Ok(Request {
        request_id,
        question,
    })
}

/// The value of a field that is no feature.
fn field<'a, T: Deserialize<'a>>(
    json: &'a RawValue,
    name: &str,
    wanted: &str,
) -> Result<T, RequestError> {
    let found = kind(json.get());
    serde_json::from_str(json.get())
        .or_else(|_| malformed(format!("`{name}` must be {wanted}, found {found}")))
}

/// Reads objects for a model: in one pass, each field that has a name here; others are ignored. No derived type can
/// hold them, because the features' names are the model's.
struct Reader<'m> {
    model: &'m ModelFile,
    /// Of the features, in their order, and of a request's other fields.
    names: Vec<&'m str>,
}

/// For each of the names, the field's value as the JSON that it is, which shows what is wrong with it.
type Fields<'a> = Vec<Option<&'a RawValue>>;

impl<'de> Visitor<'de> for &Reader<'_> {
    /// A field that appears more than once comes with them: which one would be meant?
    type Value = (Fields<'de>, Option<String>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request, which is a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut fields, mut twice) = (vec![None; self.names.len()], None);
        // Most objects have the features' order: each search starts behind the name that was found before.
        let mut next = 0;
        while let Some((Key(name), json)) = map.next_entry()? {
            let mut places = (next..fields.len()).chain(0..next);
            if let Some(place) = places.find(|place| self.names[*place] == name) {
                next = place + 1;
                if fields[place].replace(json).is_some() {
                    twice = Some(name.into_owned());
                }
            }
        }
        Ok((fields, twice))
    }
}

/// A field's name, borrowed from the text unless it is written with escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl Reader<'_> {
    /// The fields of an object in which none of them appears twice.
    fn fields<'a>(&self, text: &'a str) -> Result<Fields<'a>, RequestError> {
        let mut json = serde_json::Deserializer::from_str(text);
        let fields = json.deserialize_map(self);
        match fields.and_then(|fields| json.end().map(|()| fields)) {
            Ok((fields, None)) => Ok(fields),
            Ok((_, Some(name))) => malformed(format!("`{name}` appears twice")),
            Err(e) => Err(not_json(text, &e)),
        }
    }

    fn batch(&self, json: &RawValue) -> Result<Vec<Vec<f64>>, RequestError> {
        let instances: Vec<&RawValue> = field(json, "instances", "a list")?;
        let (found, max) = (instances.len(), MAX_INSTANCES);
        if found > max {
            return Err(RequestError::TooManyInstances { found, max });
        }
        let row = |(index, json): (usize, &RawValue)| match kind(json.get()) {
            "an object" => {
                let row = self
                    .fields(json.get())
                    .and_then(|fields| self.row(json.get(), &fields));
                row.map_err(|error| RequestError::Instance {
                    index,
                    error: error.into(),
                })
            }
            other => malformed(format!(
                "instances[{index}] must be an object, found {other}"
            )),
        };
        instances.into_iter().enumerate().map(row).collect()
    }

    /// The features' values, or what is wrong with the first that the model does not accept.
    fn row(&self, text: &str, fields: &[Option<&RawValue>]) -> Result<Vec<f64>, RequestError> {
        let value = |(feature, json): (&Feature, &Option<&RawValue>)| {
            let (field, [low, high]) = (&feature.name, feature.accept);
            let json = json.ok_or_else(|| missing(text, field))?.get();
            match serde_json::from_str(json) {
                Ok(value) if feature.accepts(value) => Ok(value),
                Ok(value) => Err(RequestError::OutOfRange {
                    field: field.clone(),
                    value,
                    low,
                    high,
                    unit: format!(" {}", feature.unit).trim_end().to_owned(),
                }),
                Err(e) => match kind(json) {
                    "a number" => malformed(format!("`{field}` is no number that fits: {e}")),
                    found => {
                        let field = field.clone();
                        Err(RequestError::NotANumber { field, found })
                    }
                },
            }
        };
        self.model.features.iter().zip(fields).map(value).collect()
    }
}

/// The hint in a refusal, for a caller who does not know the model.
const EXAMPLE: &str = r#"{"request_id": "1", "describe": true}"#;
const UTF_16: &str = "the text is UTF-16: send UTF-8";
const BOM: char = '\u{feff}';
const WITH_BOM: &str = "the text begins with a byte order mark: send UTF-8 without one";

/// What is wrong with a text that is not a JSON object.
fn not_json(text: &str, e: &serde_json::Error) -> RequestError {
    let text = text.trim_start();
    RequestError::MalformedJson(match text.as_bytes().first() {
        _ if text.contains('\0') => UTF_16.to_owned(),
        Some(b'{') if text.contains("NaN") || text.contains("Infinity") => {
            format!("not JSON, which has no NaN and no Infinity: {e}")
        }
        Some(b'{') => format!("not JSON: {e}"),
        Some(b'[') => "found a list: send one request, many rows as its `instances`".to_owned(),
        Some(b'"') => "found a string: send the object itself, not JSON in a string".to_owned(),
        first => {
            let found = match serde_json::from_str::<IgnoredAny>(text) {
                Ok(_) => kind(text),
                Err(_) if first.is_none() => "nothing",
                Err(_) => "text that is not JSON",
            };
            format!("found {found}: send a JSON object, such as {EXAMPLE}")
        }
    })
}

/// A missing field, and the field that was probably meant.
fn missing(text: &str, field: &str) -> RequestError {
    let letters = |name: &str| -> String {
        let letters = name.chars().filter(|c| c.is_alphanumeric());
        letters.flat_map(char::to_lowercase).collect()
    };
    let fields: BTreeMap<String, IgnoredAny> = serde_json::from_str(text).unwrap_or_default();
    let is_meant = |name: &&String| name.len() < 2 * MAX_NAME && letters(name) == letters(field);
    let hint = match fields.keys().find(is_meant) {
        Some(found) => format!(": rename `{found}`, names are compared letter by letter"),
        None if field == "request_id" => format!(": to learn what to send, send {EXAMPLE}"),
        None => String::new(),
    };
    let field = field.to_owned();
    RequestError::MissingField { field, hint }
}

fn malformed<T>(message: impl Into<String>) -> Result<T, RequestError> {
    Err(RequestError::MalformedJson(message.into()))
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

/// The `request_id` of a request that is refused, as it was sent: also where the text is no JSON further on, where it
/// begins with a byte order mark, or where the id is a number. Null where there is none, or one too long to echo.
pub fn find_request_id(bytes: &[u8]) -> Value {
    let text = String::from_utf8_lossy(bytes);
    let (mut rest, mut depth) = (text.trim_start_matches(BOM), 0);
    while let Some(at) = rest.find(['"', '{', '[', '}', ']']) {
        let found = &rest[at..];
        rest = &found[1..];
        match found.as_bytes()[0] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {
                let Some((name, behind)) = first::<String>(found) else {
                    break;
                };
                rest = behind;
                let value = rest.trim_start().strip_prefix(':');
                if let ("request_id", 1, Some(value)) = (&*name, depth, value) {
                    return match first(value) {
                        Some((Value::String(id), _)) if id.len() <= MAX_REQUEST_ID => id.into(),
                        Some((id @ Value::Number(_), _)) => id,
                        _ => Value::Null,
                    };
                }
            }
        }
    }
    Value::Null
}

/// The JSON value at the start of a text, and what is behind it.
fn first<'a, T: Deserialize<'a>>(text: &'a str) -> Option<(T, &'a str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let value = values.next()?.ok()?;
    Some((value, &text[values.byte_offset()..]))
}
