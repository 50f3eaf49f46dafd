//! Whatever event Lambda hands over: an answer or a refusal, and on the device's topic when it came by MQTT.
#![no_main]

use std::convert::Infallible;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine};
use iris_fn::Model;
use iris_fn::handler::{Handler, HandlerError};
use iris_fn::publish::Publisher;
use iris_fn::request::MAX_PAYLOAD;
use iris_fn::store::{Loaded, ModelStore, StoreError};
use libfuzzer_sys::fuzz_target;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

/// A call's time, as the template has it.
const CALL: Duration = Duration::from_secs(10);

struct Store;

impl ModelStore for Store {
    async fn current(&self, _: Option<&str>) -> Result<Option<Loaded>, StoreError> {
        let model = Model::from_bytes(include_bytes!("corpus/model/iris.json"));
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
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts");
}

fn handle(event: &RawValue) -> Result<Value, HandlerError> {
    let reply = HANDLER.with(|handler| {
        RUNTIME.with(|rt| rt.block_on(handler.handle(event, SystemTime::now() + CALL)))
    })?;
    Ok(serde_json::from_str(reply.get()).expect("a reply is JSON"))
}

fn is_reply(reply: &Value) -> bool {
    let refused = reply["error"]["code"].is_string() && reply["error"]["message"].is_string();
    let warm = reply["warm"] == true;
    let answered = reply["species"].is_string() || reply["predictions"].is_array();
    u8::from(refused) + u8::from(warm) + u8::from(answered) == 1
}

fuzz_target!(|bytes: &[u8]| {
    // From the rule: the payload of a message, whatever it is.
    let payload = BASE64_STANDARD.encode(bytes);
    let message = json!({"payload": payload, "client_id": "lily", "mqtt_client_id": "lily"});
    let event = to_raw_value(&message).expect("JSON");
    let reply = handle(&event).expect("a message is answered, whatever it is");
    assert!(is_reply(&reply), "{reply}");
    let published = LAST.with(|last| last.0.lock().expect("one thread").take());
    let (topic, answer) = published.expect("the answer is published");
    assert_eq!(topic, "iris/response/lily");
    assert!(answer.len() <= MAX_PAYLOAD);

    // A direct call: any JSON. Only what looks like the rule's own event may fail.
    let Ok(event) = serde_json::from_slice::<&RawValue>(bytes) else {
        return;
    };
    match handle(event) {
        Ok(reply) => assert!(is_reply(&reply), "{reply}"),
        Err(e) => assert!(matches!(e, HandlerError::Payload(_)), "{e}"),
    }
    LAST.with(|last| last.0.lock().expect("one thread").take());
});
