//! Whatever event Lambda hands over: an answer or a refusal, and on the device's topic when it came by MQTT.
#![no_main]

mod expected;
#[path = "../tests/fakes/mod.rs"]
mod fakes;

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use expected::{check_prediction, check_refusal, list, refusals, row};
use fakes::{MemoryPublisher, TestHandler, checked, fruit, raw, soon};
use iris_fn::error::HandlerError;
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use serde_json::{Value, json};

thread_local! {
    static HANDLER: TestHandler =
        fakes::handler(checked(fruit()), Duration::from_secs(3600), MemoryPublisher::default());
    static FILE: Value = serde_json::to_value(checked(fruit()).file()).expect("JSON");
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts");
}

fn handle(event: &RawValue) -> Result<Value, HandlerError> {
    let reply =
        HANDLER.with(|handler| RUNTIME.with(|rt| rt.block_on(handler.handle(event, soon()))));
    fakes::LINES.take();
    Ok(serde_json::from_str(reply?.get()).expect("a reply is JSON"))
}

/// Whether this has the fields of exactly one kind of reply.
fn is_reply(reply: &Value) -> bool {
    let refused = reply["error"]["code"].is_string() && reply["error"]["message"].is_string();
    let warm = reply["warm"] == true;
    let answered = reply["fruit"].is_string() || reply["predictions"].is_array();
    let described = reply["target"] == "fruit" && reply["classes"].is_array();
    [refused, warm, answered, described]
        .iter()
        .filter(|is| **is)
        .count()
        == 1
}

/// Panics unless this reply is right for what was sent.
fn check(bytes: &[u8], reply: &Value) {
    assert!(is_reply(reply), "{reply}");
    let Ok(sent) = serde_json::from_slice::<Value>(bytes) else {
        return; // the target `request` looks at these
    };
    FILE.with(|file| {
        if let Some(code) = reply["error"]["code"].as_str() {
            return check_refusal(file, bytes, &sent, code, &reply["request_id"]);
        }
        assert_eq!(refusals(file, &sent), [""; 0], "{reply}");
        assert_eq!(reply["request_id"], sent["request_id"]);
        if sent["describe"] == true {
            for field in ["target", "features", "classes"] {
                assert_eq!(reply[field], file[field]);
            }
            return;
        }
        let (rows, predictions) = match sent.get("instances") {
            None => (vec![&sent], vec![reply]),
            Some(rows) => (
                list(rows).iter().collect(),
                list(&reply["predictions"]).iter().collect(),
            ),
        };
        assert_eq!(rows.len(), predictions.len());
        for (sent, prediction) in rows.iter().zip(predictions) {
            check_prediction(file, &row(file, sent), prediction);
        }
    });
}

fuzz_target!(|bytes: &[u8]| {
    // From the rule: the payload of a message, whatever it is.
    let payload = BASE64_STANDARD.encode(bytes);
    let message = json!({"payload": payload, "client_id": "lily", "mqtt_client_id": "lily"});
    let reply = handle(&raw(&message)).expect("a message is answered, whatever it is");
    check(bytes, &reply);
    let published = HANDLER
        .with(|handler| std::mem::take(&mut *handler.publisher.sent.lock().expect("one thread")));
    let [(topic, answer)] = &published[..] else {
        panic!("{} answers", published.len())
    };
    assert_eq!(topic, "lab/response/lily");
    assert!(answer.len() <= 128 * 1024);
    assert_eq!(
        serde_json::from_slice::<Value>(answer).expect("an answer is JSON"),
        reply
    );

    // A direct call: any JSON. Only what looks like the rule's own event, or another service's, may fail.
    let Ok(event) = serde_json::from_slice::<&RawValue>(bytes) else {
        return;
    };
    // Null for JSON that is beyond a `Value`.
    let sent: Value = serde_json::from_slice(bytes).unwrap_or_default();
    match handle(event) {
        // The rule's own event within it: as good as the above.
        Ok(reply) if sent.is_null() || sent["payload"].is_string() => {
            assert!(is_reply(&reply) || reply["statusCode"].is_u64(), "{reply}");
        }
        Ok(reply) if reply["warm"] == true => {
            let sources = [&sent["source"], &sent["Event"]["source"]];
            let plugin = sources.contains(&&json!("serverless-plugin-warmup"));
            assert!(sent["warmup"] == true || sent["detail-type"] == "Scheduled Event" || plugin);
        }
        Ok(reply) if reply["statusCode"].is_u64() => {
            assert!(sent["request_id"].is_null(), "{sent}");
            let body = reply["body"].as_str().expect("a text");
            assert!(
                is_reply(&serde_json::from_str(body).expect("JSON")),
                "{body}"
            );
        }
        Ok(reply) => check(event.get().as_bytes(), &reply),
        Err(HandlerError::Payload { .. }) => {
            if let Some(payload) = sent["payload"].as_str() {
                assert!(BASE64_STANDARD.decode(payload).is_err(), "{payload}");
            }
        }
        Err(HandlerError::Service(_)) => assert!(sent["request_id"].is_null(), "{sent}"),
        Err(e) => panic!("{e}"),
    }
    HANDLER.with(|handler| handler.publisher.sent.lock().expect("one thread").clear());
});
