//! Whatever bytes a device sends: a request as it was sent and within its limits, or a refusal that is right.
#![no_main]

mod expected;

use expected::{NAMES, check_refusal, refusals};
use iris_fn::request::{Question, Request};
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let request = Request::from_bytes(bytes);
    let Ok(sent) = serde_json::from_slice::<Value>(bytes) else {
        // Some JSON is beyond a `Value` (1e400, 200 levels) and may stand where nobody reads it.
        if serde_json::from_slice::<IgnoredAny>(bytes).is_err() {
            let refused = request.expect_err("this is not JSON");
            assert_eq!(refused.error.code(), "malformed_json");
        }
        return;
    };
    match request {
        Ok(request) => {
            assert_eq!(refusals(&sent), [""; 0]);
            assert_eq!(sent["request_id"], request.request_id);
            let (flowers, sent) = match request.question {
                Question::One(flower) => (vec![flower], vec![&sent]),
                Question::Batch(flowers) => {
                    let sent = sent["flowers"].as_array().expect("a list");
                    (flowers, sent.iter().collect())
                }
            };
            assert_eq!(flowers.len(), sent.len());
            for (flower, sent) in flowers.iter().zip(sent) {
                let sent = NAMES.map(|name| sent[name].as_f64().expect("a number"));
                let read = [
                    flower.sepal_length,
                    flower.sepal_width,
                    flower.petal_length,
                    flower.petal_width,
                ];
                assert_eq!(read, sent);
            }
        }
        Err(refused) => {
            let id = refused.request_id.as_deref();
            check_refusal(bytes, &sent, refused.error.code(), id);
            assert!(!refused.error.to_string().is_empty());
        }
    }
});
