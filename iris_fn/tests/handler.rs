//! Events in, answers out: the whole function but for AWS.

mod fakes;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::prelude::{BASE64_STANDARD as BASE64, Engine};
use fakes::{LINES, MemoryPublisher, TestHandler, checked, fruit, raw, soon};
use iris_fn::Model;
use iris_fn::current::REFRESH_TIMEOUT;
use iris_fn::error::HandlerError;
use iris_fn::handler::TIME_TO_REPORT;
use iris_fn::request::MAX_PAYLOAD;
use proptest::prelude::*;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(3600);

fn handler() -> TestHandler {
    fakes::handler(checked(fruit()), LONG, MemoryPublisher::default())
}

/// One that looks for a newer model beside each call.
fn always_looking() -> TestHandler {
    fakes::handler(checked(fruit()), Duration::ZERO, MemoryPublisher::default())
}

/// The same model but for its name.
fn newer_model() -> Model {
    let mut file = fruit();
    file.training.cv_accuracy = 0.5;
    checked(file)
}

async fn call(handler: &TestHandler, event: Value) -> Value {
    serde_json::to_value(handler.handle(&raw(&event), soon()).await.unwrap()).unwrap()
}

async fn failure(handler: &TestHandler, event: Value, deadline: SystemTime) -> HandlerError {
    handler.handle(&raw(&event), deadline).await.unwrap_err()
}

fn apple() -> Value {
    json!({"request_id": "r", "weight": 180, "width": 8, "height": 7.5, "sweetness": 0.5})
}

fn from_rule(payload: &[u8]) -> Value {
    json!({"payload": BASE64.encode(payload), "client_id": "lily", "mqtt_client_id": "lily"})
}

fn apple_from_rule() -> Value {
    from_rule(apple().to_string().as_bytes())
}

#[tokio::test]
async fn a_direct_call_is_answered_with_every_field_of_the_contract() {
    let handler = handler();
    let first = call(&handler, apple()).await;
    assert_eq!(first["request_id"], "r");
    assert_eq!(first["fruit"], "apple");
    assert_eq!(first["in_distribution"], true);
    assert_eq!(first["model"], checked(fruit()).sha256());
    assert_eq!(first["cold_start"], true);
    assert!(first["handler_us"].is_u64());
    assert!(first["probabilities"]["apple"].as_f64().unwrap() > 0.9);
    assert_eq!(first.as_object().unwrap().len(), 7);
    assert_eq!(call(&handler, apple()).await["cold_start"], false);
    assert!(handler.publisher.take().is_empty());
}

#[tokio::test]
async fn a_description_says_what_to_ask_and_which_model_answers() {
    let handler = handler();
    let ask = json!({"request_id": "d", "describe": true});
    let description = call(&handler, from_rule(ask.to_string().as_bytes())).await;
    let file = fruit();
    let expected = json!({"request_id": "d", "target": "fruit", "features": file.features, "classes": file.classes,
                          "model": checked(fruit()).sha256()});
    assert_eq!(description, expected);
    assert_eq!(
        handler.publisher.take(),
        [("lab/response/lily".to_owned(), description)]
    );
    assert_eq!(call(&handler, ask).await, expected);
}

#[tokio::test]
async fn the_handlers_time_is_in_microseconds_and_holds_the_wait_for_the_model() {
    let handler = handler();
    *handler.model.store().delay.lock().unwrap() = Duration::from_millis(20);
    let started = Instant::now();
    let reply = call(&handler, apple()).await;
    let (handler_us, all) = (reply["handler_us"].as_u64().unwrap(), started.elapsed());
    assert!(20_000 <= handler_us && u128::from(handler_us) <= all.as_micros());
}

#[tokio::test]
async fn a_message_from_the_rule_is_answered_on_the_senders_topic() {
    let handler = handler();
    let reply = call(&handler, apple_from_rule()).await;
    assert_eq!(reply["fruit"], "apple");
    assert_eq!(
        handler.publisher.take(),
        [("lab/response/lily".to_owned(), reply)]
    );
}

#[tokio::test]
async fn what_is_not_json_is_refused_on_the_senders_topic() {
    let handler = handler();
    call(&handler, from_rule(b"\xff\x00")).await;
    let sent = handler.publisher.take();
    assert_eq!(sent[0].1["error"]["code"], "malformed_json");
    assert_eq!(sent[0].1["request_id"], Value::Null);
}

#[tokio::test]
async fn a_refusal_echoes_the_id_also_where_the_text_breaks() {
    let handler = handler();
    let deep = format!(
        r#"{{"request_id":"r","instances":{}{}}}"#,
        "[".repeat(200),
        "]".repeat(200)
    );
    for (text, id) in [
        (r#"{"request_id":"r","weight":NaN}"#, json!("r")),
        (
            r#"{"weight":NaN,"more":{"request_id":"no"},"request_id" : "r"}"#,
            json!("r"),
        ),
        (
            r#"{"request_id":"r","weight":1e400,"width":8,"height":7,"sweetness":0}"#,
            json!("r"),
        ),
        (&deep, json!("r")),
        ("\u{feff}{\"request_id\":\"r\"}", json!("r")),
        (r#"{"request_id":7}"#, json!(7)),
        (r#"{"request_id":"r","#, json!("r")),
        (r#"{"request_id":"r"#, Value::Null),
        (r#"[{"request_id":"r"}]"#, Value::Null),
        (r#"{"request_id":null,"describe":1}"#, Value::Null),
    ] {
        let reply = call(&handler, from_rule(text.as_bytes())).await;
        assert_eq!(reply["error"]["code"], "malformed_json", "{text}");
        assert_eq!(reply["request_id"], id, "{text}");
    }
}

/// Only a rule with other SQL sends this: it fails, and the event is kept in the dead-letter queue.
#[tokio::test]
async fn a_payload_that_is_not_base64_fails_the_invocation_publishes_nothing_and_is_logged_by_its_id()
 {
    let handler = handler();
    for (payload, id) in [("%%%", ""), ("eyJ9=", ""), (r#"{"request_id":"r"}"#, "r")] {
        let event = json!({"payload": payload, "client_id": "lily"});
        let error = failure(&handler, event, soon()).await;
        assert_eq!(error.kind(), "payload_not_base64", "{payload}");
        let [line] = &LINES.take()[..] else {
            panic!("one line a call")
        };
        assert_eq!((line.message, line.request_id.as_str()), ("failed", id));
        assert!(line.fields[0].1.contains("not base64"), "{line:?}");
    }
    assert!(handler.publisher.take().is_empty());
}

#[tokio::test]
async fn each_call_leaves_one_line_with_its_id_and_the_reason() {
    let handler = handler();
    let refused = json!({"request_id": "b"});
    for event in [
        apple(),
        apple_from_rule(),
        json!({"request_id": "d", "describe": true}),
    ] {
        call(&handler, event).await;
    }
    call(&handler, refused).await;
    call(&handler, json!({"warmup": true})).await;
    failure(
        &handler,
        json!({"Records": [{"eventSource": "aws:sqs"}]}),
        soon(),
    )
    .await;
    let lines = LINES.take();
    let short = |line: &iris_fn::metrics::Line| {
        let reason = line.fields.iter().find(|(name, _)| *name == "reason");
        let reason = reason.map(|(_, reason)| reason[..15].to_owned());
        (line.message, line.request_id.clone(), reason)
    };
    let expected = [
        ("answered", "r", None),
        ("answered", "r", None),
        ("described", "d", None),
        ("refused", "b", Some("`weight` is mis")),
        ("warm", "", None),
        ("failed", "", Some("this is an even")),
    ];
    let expected = expected.map(|(m, id, reason)| (m, id.to_owned(), reason.map(str::to_owned)));
    assert_eq!(lines.iter().map(short).collect::<Vec<_>>(), expected);
    assert!(lines.iter().all(|line| line.stack == "lab"));
}

#[tokio::test]
async fn a_batch_is_answered_in_order() {
    let row =
        |weight, height| json!({"weight": weight, "width": 5, "height": height, "sweetness": 0.5});
    let reply = call(
        &handler(),
        json!({"request_id": "r", "instances": [row(170, 12), row(40, 4)]}),
    )
    .await;
    let labels: Vec<_> = reply["predictions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| &p["fruit"])
        .collect();
    assert_eq!(labels, ["pear", "plum"]);
}

#[tokio::test]
async fn an_empty_batch_has_an_empty_answer() {
    let handler = handler();
    let request = json!({"request_id": "r", "instances": []});
    let reply = call(&handler, from_rule(request.to_string().as_bytes())).await;
    assert_eq!(reply["request_id"], "r");
    assert_eq!(reply["predictions"], json!([]));
    assert_eq!(handler.publisher.take()[0].1, reply);
}

fn many(rows: usize) -> Value {
    let row = json!({"weight": 100, "width": 6.5, "height": 6.5, "sweetness": 0.5});
    json!({"request_id": "r", "instances": vec![row; rows]})
}

#[tokio::test]
async fn an_answer_too_large_for_mqtt_is_refused_with_the_number_that_fits() {
    let handler = handler();
    let rule = |rows| from_rule(many(rows).to_string().as_bytes());
    let direct = call(&handler, many(2000)).await;
    assert_eq!(direct["predictions"].as_array().unwrap().len(), 2000);

    let refusal = call(&handler, rule(2000)).await;
    assert_eq!(refusal["error"]["code"], "too_many_instances");
    assert_eq!(refusal["request_id"], "r");
    let message = refusal["error"]["message"].as_str().unwrap();
    let mut numbers = message
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok());
    let fits = numbers.next_back().unwrap();
    let reply = call(&handler, rule(fits)).await;
    assert_eq!(reply["predictions"].as_array().unwrap().len(), fits);
    // Not far below the limit either.
    let size = reply.to_string().len();
    assert!(MAX_PAYLOAD * 8 / 10 < size && size <= MAX_PAYLOAD, "{size}");
}

#[tokio::test]
async fn a_keep_warm_call_reads_no_model_and_publishes_nothing() {
    let handler = handler();
    let warmup = json!({"warmup": true, "payload": "e30=", "client_id": "lily"});
    assert_eq!(
        call(&handler, warmup).await,
        json!({"warm": true, "cold_start": true})
    );
    assert!(handler.model.store().asked.lock().unwrap().is_empty());
    assert!(handler.publisher.take().is_empty());
    assert_eq!(call(&handler, apple()).await["cold_start"], false);
}

#[tokio::test]
async fn a_keep_warm_call_finds_a_newer_model_for_the_next_call() {
    let handler = always_looking();
    call(&handler, apple()).await;
    *handler.model.store().model.lock().unwrap() = Some(newer_model());
    call(&handler, json!({"warmup": true})).await;
    assert_eq!(
        call(&handler, apple()).await["model"],
        newer_model().sha256()
    );
}

#[tokio::test]
async fn without_a_model_the_request_is_refused_and_the_next_one_tries_again() {
    let handler = handler();
    let model = handler.model.store().model.lock().unwrap().take();
    let reply = call(&handler, apple()).await;
    assert_eq!(reply["error"]["code"], "model_unavailable");
    assert_eq!(reply["request_id"], "r");
    *handler.model.store().model.lock().unwrap() = model;
    assert_eq!(call(&handler, apple()).await["fruit"], "apple");
}

#[tokio::test]
async fn an_undelivered_answer_fails_the_invocation_and_is_logged_as_such_and_not_counted() {
    for broken in [false, true] {
        let publisher = MemoryPublisher {
            broken,
            ..MemoryPublisher::default()
        };
        let handler = fakes::handler(checked(fruit()), LONG, publisher);
        match handler.handle(&raw(&apple_from_rule()), soon()).await {
            Ok(_) => assert!(!broken),
            Err(HandlerError::Publish { topic, .. }) => {
                assert!(broken && topic == "lab/response/lily")
            }
            Err(e) => panic!("{e}"),
        }
    }
    let lines = LINES.take();
    let logged: Vec<_> = lines
        .iter()
        .map(|line| (line.message, line.request_id.as_str(), line.metrics.len()))
        .collect();
    assert_eq!(logged, [("answered", "r", 3), ("failed", "r", 0)]);
    assert!(lines[1].fields[0].1.ends_with("connection refused"));
}

#[tokio::test]
async fn an_answer_that_hangs_fails_the_invocation_before_lambda_would_end_it() {
    let publisher = MemoryPublisher {
        hangs: true,
        ..MemoryPublisher::default()
    };
    let handler = fakes::handler(checked(fruit()), LONG, publisher);
    let deadline = SystemTime::now() + TIME_TO_REPORT + Duration::from_millis(50);
    let error = failure(&handler, from_rule(b"{}"), deadline).await;
    assert_eq!(error.kind(), "answer_not_published");
    assert!(SystemTime::now() < deadline);
}

#[tokio::test]
async fn a_newer_model_is_served_by_the_call_after_the_one_that_found_it() {
    let handler = always_looking();
    let first = call(&handler, apple()).await;
    *handler.model.store().model.lock().unwrap() = Some(newer_model());
    assert_eq!(call(&handler, apple()).await["model"], first["model"]);
    assert_eq!(
        call(&handler, apple()).await["model"],
        newer_model().sha256()
    );
}

#[tokio::test]
async fn a_model_with_other_features_takes_over_while_requests_arrive() {
    let handler = always_looking();
    call(&handler, apple()).await;
    let mut other = fruit();
    other.features[0].name = "mass".into();
    *handler.model.store().model.lock().unwrap() = Some(checked(other));
    assert_eq!(call(&handler, apple()).await["fruit"], "apple");
    let refused = call(&handler, apple()).await;
    assert_eq!(refused["error"]["message"], "`mass` is missing");
}

#[tokio::test]
async fn a_store_is_asked_for_what_is_newer_than_the_model_in_use_and_not_modified_keeps_it() {
    let handler = always_looking();
    let model = handler.model.get(Instant::now().into()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(call(&handler, apple()).await["model"], model.sha256());
    }
    assert!(Arc::ptr_eq(
        &handler.model.get(Instant::now().into()).await.unwrap(),
        &model
    ));
    let tag = Some(model.sha256().to_owned());
    let asked = handler.model.store().asked.lock().unwrap();
    assert_eq!(*asked, [None, tag.clone(), tag.clone(), tag]);
}

#[tokio::test]
async fn the_store_is_not_asked_again_before_the_models_time_is_over() {
    let handler = handler();
    for _ in 0..3 {
        call(&handler, apple()).await;
    }
    assert_eq!(*handler.model.store().asked.lock().unwrap(), [None]);
}

#[tokio::test]
async fn a_store_that_hangs_holds_no_answer_back_and_the_last_good_model_serves() {
    let handler = always_looking();
    let first = call(&handler, apple()).await;
    *handler.model.store().delay.lock().unwrap() = LONG;
    let started = Instant::now();
    let reply = {
        let mut waiting = std::pin::pin!(call(&handler, apple_from_rule()));
        let early = tokio::time::timeout(REFRESH_TIMEOUT / 4, waiting.as_mut()).await;
        assert!(early.is_err(), "the call looks for a newer model");
        assert_eq!(handler.publisher.take().len(), 1);
        waiting.await
    };
    let took = started.elapsed();
    assert!(
        took >= REFRESH_TIMEOUT && took < REFRESH_TIMEOUT * 3,
        "{took:?}"
    );
    assert_eq!(reply["model"], first["model"]);

    *handler.model.store().delay.lock().unwrap() = Duration::ZERO;
    *handler.model.store().model.lock().unwrap() = Some(newer_model());
    call(&handler, apple()).await;
    assert_eq!(
        call(&handler, apple()).await["model"],
        newer_model().sha256()
    );
}

#[tokio::test]
async fn the_last_good_model_serves_while_the_store_is_away() {
    let handler = always_looking();
    call(&handler, apple()).await;
    *handler.model.store().model.lock().unwrap() = None;
    for _ in 0..3 {
        assert_eq!(call(&handler, apple()).await["fruit"], "apple");
    }
}

#[tokio::test]
async fn a_store_that_hangs_leaves_the_time_to_say_that_there_is_no_model() {
    let handler = handler();
    *handler.model.store().delay.lock().unwrap() = LONG;
    let deadline = SystemTime::now() + TIME_TO_REPORT + Duration::from_millis(200);
    let event = raw(&apple_from_rule());
    handler.handle(&event, deadline).await.unwrap();
    let left = deadline.duration_since(SystemTime::now()).unwrap();
    assert!(
        left > TIME_TO_REPORT,
        "{left:?}: half of the time is there to publish"
    );
    let [(_, refusal)] = &handler.publisher.take()[..] else {
        panic!("one answer")
    };
    assert_eq!(refusal["error"]["code"], "model_unavailable");
    let [line] = &LINES.take()[..] else {
        panic!("one line a call")
    };
    let [_, ("model_error", why)] = &line.fields[..] else {
        panic!("{line:?}")
    };
    assert!(why.contains("did not answer in the time"), "{why}");
}

#[tokio::test]
async fn a_look_for_a_newer_model_ends_before_the_call_must() {
    let handler = always_looking();
    call(&handler, apple()).await;
    *handler.model.store().delay.lock().unwrap() = LONG;
    let deadline = SystemTime::now() + TIME_TO_REPORT + Duration::from_millis(200);
    handler.handle(&raw(&apple()), deadline).await.unwrap();
    assert!(SystemTime::now() < deadline);
}

fn refusals_counted(lines: &[iris_fn::metrics::Line]) -> Vec<bool> {
    let counted = |line: &iris_fn::metrics::Line| {
        let metric = line.metrics.iter().find(|m| m.name == "models_refused");
        metric.inspect(|m| assert_eq!(m.value, 1)).is_some()
    };
    lines.iter().map(counted).collect()
}

#[tokio::test]
async fn a_refused_model_is_counted_by_each_call_and_read_once() {
    let handler = always_looking();
    let first = call(&handler, apple()).await;
    *handler.model.store().refused.lock().unwrap() = Some("bad".into());
    for _ in 0..3 {
        assert_eq!(call(&handler, apple()).await["model"], first["model"]);
    }
    let good = handler.model.store().refused.lock().unwrap().take();
    assert_eq!(good.as_deref(), Some("bad"));
    call(&handler, apple()).await;
    let lines = LINES.take();
    assert_eq!(refusals_counted(&lines), [false, true, true, true, false]);
    assert!(
        lines[1]
            .fields
            .iter()
            .any(|(name, why)| *name == "model_error" && why.contains("{}"))
    );
    let tag = |tag: &str| Some(tag.to_owned());
    let model = first["model"].as_str().unwrap();
    let asked = handler.model.store().asked.lock().unwrap();
    let model = tag(model);
    let bad = [tag("bad"), tag("bad"), tag("bad")];
    assert_eq!(*asked, [&[None, model.clone(), model][..], &bad].concat());
}

#[tokio::test]
async fn a_refused_model_stays_refused_while_the_store_is_away() {
    let handler = always_looking();
    call(&handler, apple()).await;
    *handler.model.store().refused.lock().unwrap() = Some("bad".into());
    call(&handler, apple()).await;
    let store = handler.model.store();
    let model = store.model.lock().unwrap().take();
    *store.refused.lock().unwrap() = None;
    call(&handler, apple()).await;
    *store.model.lock().unwrap() = model;
    call(&handler, apple()).await;
    assert_eq!(refusals_counted(&LINES.take()), [false, true, true, false]);
}

#[tokio::test]
async fn a_container_whose_first_model_is_refused_reads_it_once_and_recovers() {
    let handler = always_looking();
    let store = handler.model.store();
    *store.refused.lock().unwrap() = Some("bad".into());
    for _ in 0..2 {
        let reply = call(&handler, apple()).await;
        assert_eq!(reply["error"]["code"], "model_unavailable");
    }
    *store.refused.lock().unwrap() = None;
    assert_eq!(call(&handler, apple()).await["fruit"], "apple");
    let bad = Some("bad".to_owned());
    assert_eq!(store.asked.lock().unwrap()[..3], [None, bad.clone(), bad]);
    assert_eq!(refusals_counted(&LINES.take()), [true, true, false]);
}

#[tokio::test]
async fn in_a_container_that_was_provisioned_no_call_is_cold() {
    let mut handler = handler();
    handler.invoked = true.into();
    assert_eq!(call(&handler, apple()).await["cold_start"], false);
}

proptest! {
    #[test]
    fn a_row_gets_the_same_answer_alone_and_in_a_batch(
        rows in prop::collection::vec((0.0..=5000.0f64, 0.0..=100.0f64, 0.0..=100.0f64, -1.0..=1.0f64), 1..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let handler = handler();
        let object = |(weight, width, height, sweetness): &(f64, f64, f64, f64)| {
            json!({"weight": weight, "width": width, "height": height, "sweetness": sweetness})
        };
        let objects: Vec<Value> = rows.iter().map(object).collect();
        let batch = runtime.block_on(call(&handler, json!({"request_id": "r", "instances": objects})));
        prop_assert_eq!(batch["predictions"].as_array().unwrap().len(), rows.len());
        for (mut single, prediction) in objects.into_iter().zip(batch["predictions"].as_array().unwrap()) {
            single["request_id"] = json!("r");
            let answer = runtime.block_on(call(&handler, single));
            for (key, value) in prediction.as_object().unwrap() {
                prop_assert_eq!(&answer[key], value);
            }
        }
    }
}
