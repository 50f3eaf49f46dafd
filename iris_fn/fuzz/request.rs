//! Whatever bytes a device sends: a request as it was sent and within the model's bounds, or a refusal that is right.
//! The first byte chooses a model.
#![no_main]

mod expected;

use expected::{check_refusal, random_file, refusals, row};
use iris_fn::ModelFile;
use iris_fn::request::{Question, Request};
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;

fn file_of(choice: u8) -> (Value, ModelFile) {
    let file = match choice {
        b'{' => serde_json::from_slice(include_bytes!("corpus/model/fruit.json")).expect("JSON"),
        seed => random_file(seed),
    };
    let read = ModelFile::from_bytes(file.to_string().as_bytes()).expect("a model file");
    (file, read)
}

thread_local! {
    static FILES: Vec<(Value, ModelFile)> = (0..=255).map(file_of).collect();
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, rest)) = bytes.split_first() else {
        return;
    };
    // A request of the corpus is one as it is.
    let text = if *choice == b'{' { bytes } else { rest };
    FILES.with(|files| check(text, &files[usize::from(*choice)]));
});

fn check(bytes: &[u8], (file, model): &(Value, ModelFile)) {
    let request = Request::from_bytes(bytes, model);
    let Ok(sent) = serde_json::from_slice::<Value>(bytes) else {
        // Some JSON is beyond a `Value` (1e400, 200 levels) and may be where nobody reads it.
        if serde_json::from_slice::<IgnoredAny>(bytes).is_err() {
            let refused = request.expect_err("this is not JSON");
            assert_eq!(refused.error.code(), "malformed_json");
        }
        return;
    };
    match request {
        Ok(request) => {
            assert_eq!(refusals(file, &sent), [""; 0]);
            assert_eq!(sent["request_id"], request.request_id);
            match request.question {
                Question::Describe => assert_eq!(sent["describe"], true),
                Question::One(read) => assert_eq!(read, row(file, &sent)),
                Question::Batch(read) => {
                    let sent: Vec<_> = expected::list(&sent["instances"])
                        .iter()
                        .map(|sent| row(file, sent))
                        .collect();
                    assert_eq!(read, sent);
                }
            }
        }
        Err(refused) => {
            check_refusal(
                file,
                bytes,
                &sent,
                refused.error.code(),
                &refused.request_id,
            );
            assert!(!refused.error.to_string().is_empty());
        }
    }
}
