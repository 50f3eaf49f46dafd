//! Whatever bytes a device sends: a request within its limits, or a refusal that says why.
#![no_main]

use iris_fn::request::{CENTIMETRES, MAX_FLOWERS, MAX_REQUEST_ID, Question, Request};
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;

fuzz_target!(|bytes: &[u8]| {
    // serde_json's own word on whether this is JSON at all.
    let is_json = serde_json::from_slice::<IgnoredAny>(bytes).is_ok();
    match Request::from_bytes(bytes) {
        Ok(request) => {
            assert!(is_json);
            assert!(request.request_id.len() <= MAX_REQUEST_ID);
            let flowers = match request.question {
                Question::One(flower) => vec![flower],
                Question::Batch(flowers) => flowers,
            };
            assert!(flowers.len() <= MAX_FLOWERS);
            let (min, max) = CENTIMETRES;
            for x in flowers.iter().flat_map(|flower| flower.features()) {
                assert!((min..=max).contains(&x));
            }
        }
        Err(refused) => {
            assert!(is_json || refused.error.code() == "malformed_json");
            assert!(!refused.error.to_string().is_empty());
        }
    }
});
