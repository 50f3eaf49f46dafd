//! What people send to the function, each with its answer: events of AWS's services, and messages of a device.

mod fakes;

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD as BASE64, Engine};
use fakes::{LINES, MemoryPublisher, checked, fruit, raw, soon};
use iris_fn::Model;
use iris_fn::error::details;
use serde_json::value::RawValue;
use serde_json::{Value, json};

const P1: &str = r#"{"request_id": "p1", "sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}"#;

fn iris() -> Model {
    let mut file = fruit();
    let names = ["sepal_length", "sepal_width", "petal_length", "petal_width"];
    for (feature, name) in file.features.iter_mut().zip(names) {
        feature.name = name.into();
        (feature.min, feature.max, feature.accept) = (0.1, 7.9, [0.0, 10.0]);
    }
    file.target = "species".into();
    file.classes = ["setosa", "versicolor", "virginica"].map(Into::into).into();
    file.weights = vec![
        vec![0.0, 1.0, -2.0, -1.0],
        vec![0.0; 4],
        vec![0.0, -1.0, 2.0, 2.0],
    ];
    file.intercepts = vec![4.0, 2.0, -8.0];
    file.golden.truncate(1);
    file.golden[0].features = vec![5.1, 3.5, 1.4, 0.2];
    checked(file)
}

/// An answer as `id label`, a refusal as `id code: message`, an HTTP response as `status` and one of both.
fn short(reply: &Value) -> String {
    let (id, error) = (&reply["request_id"], &reply["error"]);
    let text = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
    if reply["warm"] == true {
        "warm".to_owned()
    } else if let Some(status) = reply["statusCode"].as_u64() {
        assert_eq!(reply["headers"]["content-type"], "application/json");
        let body = serde_json::from_str(reply["body"].as_str().unwrap()).unwrap();
        format!("{status} {}", short(&body))
    } else if error.is_object() {
        format!(
            "{} {}: {}",
            text(id),
            text(&error["code"]),
            text(&error["message"])
        )
    } else {
        format!("{} {}", text(id), text(&reply["species"]))
    }
}

/// What becomes of an event, and of a line about it.
async fn outcome(event: &RawValue) -> String {
    let publisher = MemoryPublisher::default();
    let handler = fakes::handler(iris(), Duration::from_secs(3600), publisher);
    let reply = handler.handle(event, soon()).await;
    assert_eq!(LINES.take().len(), 1, "lines about {event}");
    match reply {
        Ok(reply) => short(&serde_json::from_str(reply.get()).unwrap()),
        Err(e) => format!("fails: {}", details(&e)),
    }
}

#[tokio::test]
async fn an_event_of_another_service_is_answered_or_fails_with_the_next_step() {
    let sqs = |n: u8| json!({"messageId": n.to_string(), "body": P1, "eventSource": "aws:sqs", "attributes": {}});
    let http = |body: Value| {
        json!({"version": "2.0", "rawPath": "/", "headers": {"content-type": "application/json"},
               "requestContext": {"http": {"method": "POST", "path": "/"}}, "body": body, "isBase64Encoded": false})
    };
    let rest = json!({"resource": "/", "httpMethod": "POST", "headers": null, "requestContext": {"stage": "prod"},
                      "body": BASE64.encode(P1), "isBase64Encoded": true});
    let load_balancer = json!({"httpMethod": "GET", "path": "/", "headers": {}, "body": "", "isBase64Encoded": false,
                               "requestContext": {"elb": {"targetGroupArn": "arn"}}});
    let scheduled = json!({"version": "0", "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa", "detail-type": "Scheduled Event",
                           "source": "aws.events", "account": "123456789012", "time": "2026-01-01T00:00:00Z",
                           "region": "us-east-1", "detail": {},
                           "resources": ["arn:aws:events:us-east-1:123456789012:rule/iris-keep-warm"]});
    let request: Value = serde_json::from_str(P1).unwrap();
    let not_ours = |service| {
        format!(
            "fails: this is an event of {service}, to which nobody can answer: send a request, or add what it means to \
             `Event::read` in iris_fn/src/event.rs"
        )
    };
    let nothing = r#"null malformed_json: found nothing: send a JSON object, such as {"request_id": "1", "describe": true}"#;
    let table = [
        ("the console's test event", json!({"key1": "value1", "key2": "value2", "key3": "value3"}),
         r#"null missing_field: `request_id` is missing: to learn what to send, send {"request_id": "1", "describe": true}"#.to_owned()),
        ("a schedule without `Input`", scheduled.clone(), "warm".to_owned()),
        ("the warm-up plugin", json!({"Event": {"source": "serverless-plugin-warmup"}}), "warm".to_owned()),
        ("the warm-up plugin, later versions", json!({"source": "serverless-plugin-warmup"}), "warm".to_owned()),
        ("SQS", json!({"Records": [sqs(1), sqs(2)]}), not_ours("aws:sqs")),
        ("a pipe from SQS", json!([sqs(1), sqs(2)]), not_ours("aws:sqs")),
        ("S3", json!({"Records": [{"eventSource": "aws:s3", "s3": {"object": {"key": "row.json"}}}]}), not_ours("aws:s3")),
        ("SNS", json!({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": P1}}]}), not_ours("aws:sns")),
        ("Kafka", json!({"eventSource": "aws:kafka", "records": {"rows-0": []}}), not_ours("aws:kafka")),
        ("EventBridge", json!({"detail-type": "Object Created", "source": "aws.s3", "detail": {}}), not_ours("aws.s3")),
        ("a function URL", http(json!(P1)), "200 p1 setosa".to_owned()),
        ("a function URL, a bad request", http(json!(r#"{"request_id": 1}"#)),
         "400 1 malformed_json: `request_id` must be a string, found a number".to_owned()),
        ("a function URL without a body", http(Value::Null), format!("400 {nothing}")),
        ("API Gateway's REST API", rest, "200 p1 setosa".to_owned()),
        ("a load balancer", load_balancer, format!("400 {nothing}")),
        ("a request with fields of other services", {
            let mut event = scheduled;
            event["detail-type"] = "Row".into();
            event.as_object_mut().unwrap().extend(request.as_object().unwrap().clone());
            event
        }, "p1 setosa".to_owned()),
        ("a rule with other SQL", json!({"payload": P1, "client_id": "iris-lily"}),
         "fails: the rule's `payload` is not base64: its SQL must say `encode(*, 'base64') AS payload`, and `make deploy` \
          sets it so: Invalid symbol 123, offset 0.".to_owned()),
        ("a list of requests", json!([request, request]),
         "null malformed_json: found a list: send one request, many rows as its `instances`".to_owned()),
        ("an empty list", json!([]),
         "null malformed_json: found a list: send one request, many rows as its `instances`".to_owned()),
        ("JSON in a string", json!(P1),
         "null malformed_json: found a string: send the object itself, not JSON in a string".to_owned()),
    ];
    for (name, event, expected) in table {
        assert_eq!(outcome(&raw(&event)).await, expected, "{name}");
    }
}

#[tokio::test]
async fn a_message_is_answered_or_refused_with_the_next_step() {
    let utf_16 = |text: &str| {
        text.encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<u8>>()
    };
    let with_mark = [b"\xff\xfe".to_vec(), utf_16(P1)].concat();
    let (large, number) = (
        P1.replace(
            '}',
            &format!(r#", "pad": "{}"}}"#, "x".repeat(131_073 - P1.len() - 11)),
        ),
        "5.1",
    );
    assert_eq!(large.len(), 131_073);
    let replaced = |from, to| P1.replace(from, to).into_bytes();
    let send = r#"send a JSON object, such as {"request_id": "1", "describe": true}"#;
    let table = [
        ("a request", P1.into(), "p1 setosa".to_owned()),
        ("more bytes than MQTT takes", large.into(), "p1 setosa".to_owned()),
        ("Python's NaN", replaced("1.4", "NaN"),
         "p1 malformed_json: not JSON, which has no NaN and no Infinity: expected value at line 1 column 79".to_owned()),
        ("a byte order mark", format!("\u{feff}{P1}").into(),
         "p1 malformed_json: the text begins with a byte order mark: send UTF-8 without one".to_owned()),
        ("UTF-16", utf_16(P1), "null malformed_json: the text is UTF-16: send UTF-8".to_owned()),
        ("UTF-16 with its mark", with_mark, "null malformed_json: the text is UTF-16: send UTF-8".to_owned()),
        ("Latin-1", b"{\"request_id\": \"p1\", \"x\": \"\xe9\"}".into(),
         "p1 malformed_json: not UTF-8: invalid utf-8 sequence of 1 bytes from index 27".to_owned()),
        ("a number as text", replaced(number, "\"5.1\""),
         "p1 not_a_number: `sepal_length` must be a number, found a string".to_owned()),
        ("camelCase", replaced("sepal_length", "sepalLength"),
         "p1 missing_field: `sepal_length` is missing: rename `sepalLength`, names are compared letter by letter".to_owned()),
        ("camelCase in a list", format!(r#"{{"request_id": "p1", "instances": [{}]}}"#, P1.replace("sepal_l", "Sepal.L")).into(),
         "p1 missing_field: instances[0]: `sepal_length` is missing: rename `Sepal.Length`, names are compared letter by letter".to_owned()),
        ("another id", replaced("request_id", "requestId"),
         "null missing_field: `request_id` is missing: rename `requestId`, names are compared letter by letter".to_owned()),
        ("a number as id", replaced("\"p1\"", "1"),
         "1 malformed_json: `request_id` must be a string, found a number".to_owned()),
        ("nothing", Vec::new(), format!("null malformed_json: found nothing: {send}")),
        ("a CSV line", b"5.1,3.5,1.4,0.2".into(), format!("null malformed_json: found text that is not JSON: {send}")),
        ("a CSV header", b"sepal_length,sepal_width".into(),
         format!("null malformed_json: found text that is not JSON: {send}")),
        ("a number", b"5.1".into(), format!("null malformed_json: found a number: {send}")),
        ("a half", P1.as_bytes()[..30].into(),
         "p1 malformed_json: not JSON: EOF while parsing a string at line 1 column 30".to_owned()),
    ];
    for (name, message, expected) in table {
        let event =
            json!({"payload": BASE64.encode::<&Vec<u8>>(&message), "client_id": "iris-lily"});
        assert_eq!(outcome(&raw(&event)).await, expected, "{name}");
    }
}
