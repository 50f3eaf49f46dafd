//! Whatever event Lambda hands over: an answer or a refusal, and on the device's topic when it came by MQTT.
#![no_main]

mod expected;

use std::convert::Infallible;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine};
use expected::{NAMES, check_prediction, check_refusal, refusals};
use iris_fn::Model;
use iris_fn::handler::{Handler, HandlerError};
use iris_fn::publish::Publisher;
use iris_fn::store::{Loaded, ModelStore, StoreError};
use libfuzzer_sys::fuzz_target;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

const MODEL: &[u8] = include_bytes!("corpus/model/iris.json");
/// A call's time, as the template has it.
const CALL: Duration = Duration::from_secs(10);

struct Store;

impl ModelStore for Store {
    async fn current(&self, _: Option<&str>) -> Result<Option<Loaded>, StoreError> {
        let model = Model::from_bytes(MODEL);
        Ok(Some(Loaded {
            model: model.expect("the corpus holds a good model"),
            etag: None,
        }))
    }
}

/// Keeps what was published last.
#[derive(Default)]
struct Last(Mutex<Option<(String, Vec<u8>)>>);

impl Publisher for &'static Last {
    type Error = Infallible;

    async fn publish(&self, topic: &str, payload: Vec<u8>) -> Result<(), Infallible> {
        *self.0.lock().expect("one thread") = Some((topic.to_owned(), payload));
        Ok(())
    }
}

thread_local! {
    static LAST: &'static Last = Box::leak(Box::default());
    static HANDLER: Handler<Store, &'static Last> =
        Handler::new(Store, LAST.with(|last| *last), "iris".to_owned(), Duration::from_secs(3600), |_| {});
    static FILE: Value = serde_json::from_slice(MODEL).expect("JSON");
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts");
}

fn handle(event: &RawValue) -> Result<Value, HandlerError> {
    let reply = HANDLER.with(|handler| {
        RUNTIME.with(|rt| rt.block_on(handler.handle(event, SystemTime::now() + CALL)))
    })?;
    Ok(serde_json::from_str(reply.get()).expect("a reply is JSON"))
}

/// Whether this has the fields of exactly one kind of reply.
fn is_reply(reply: &Value) -> bool {
    let refused = reply["error"]["code"].is_string() && reply["error"]["message"].is_string();
    let warm = reply["warm"] == true;
    let answered = reply["species"].is_string() || reply["predictions"].is_array();
    u8::from(refused) + u8::from(warm) + u8::from(answered) == 1
}

/// Panics unless this reply is right for what was sent.
fn check(bytes: &[u8], reply: &Value) {
    assert!(is_reply(reply), "{reply}");
    let Ok(sent) = serde_json::from_slice::<Value>(bytes) else {
        return; // the target `request` looks at these
    };
    if let Some(code) = reply["error"]["code"].as_str() {
        return check_refusal(bytes, &sent, code, reply["request_id"].as_str());
    }
    assert_eq!(refusals(&sent), [""; 0], "{reply}");
    assert_eq!(reply["request_id"], sent["request_id"]);
    let (flowers, predictions) = match sent["flowers"].as_array() {
        None => (vec![&sent], vec![reply]),
        Some(flowers) => {
            let predictions = reply["predictions"].as_array().expect("a list");
            (flowers.iter().collect(), predictions.iter().collect())
        }
    };
    assert_eq!(flowers.len(), predictions.len());
    for (flower, prediction) in flowers.iter().zip(predictions) {
        let x = NAMES.map(|name| flower[name].as_f64().expect("a number"));
        FILE.with(|file| check_prediction(file, &x, prediction));
    }
}

fuzz_target!(|bytes: &[u8]| {
    // From the rule: the payload of a message, whatever it is.
    let payload = BASE64_STANDARD.encode(bytes);
    let message = json!({"payload": payload, "client_id": "lily", "mqtt_client_id": "lily"});
    let event = to_raw_value(&message).expect("JSON");
    let reply = handle(&event).expect("a message is answered, whatever it is");
    check(bytes, &reply);
    let published = LAST.with(|last| last.0.lock().expect("one thread").take());
    let (topic, answer) = published.expect("the answer is published");
    assert_eq!(topic, "iris/response/lily");
    assert!(answer.len() <= 128 * 1024);
    let answer: Value = serde_json::from_slice(&answer).expect("an answer is JSON");
    assert_eq!(answer, reply);

    // A direct call: any JSON. Only what looks like the rule's own event may fail.
    let Ok(event) = serde_json::from_slice::<&RawValue>(bytes) else {
        return;
    };
    // Null for JSON that is beyond a `Value`.
    let sent: Value = serde_json::from_slice(bytes).unwrap_or_default();
    match handle(event) {
        // The rule's own event within it, or one that serde reads from a list: as good as the above.
        Ok(reply) if sent.is_null() || sent.is_array() || sent["payload"].is_string() => {
            assert!(is_reply(&reply), "{reply}");
        }
        Ok(reply) if reply["warm"] == true => assert_eq!(sent["warmup"], true),
        Ok(reply) => check(event.get().as_bytes(), &reply),
        Err(HandlerError::Payload(_)) => {
            if let Some(payload) = sent["payload"].as_str() {
                assert!(BASE64_STANDARD.decode(payload).is_err(), "{payload}");
            }
        }
        Err(e) => panic!("{e}"),
    }
    LAST.with(|last| last.0.lock().expect("one thread").take());
});
