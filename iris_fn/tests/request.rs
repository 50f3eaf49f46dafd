//! Requests: what is read, and what is refused with which code.

mod fakes;

use fakes::fruit;
use iris_fn::request::{Question, Refused, Request};
use iris_fn::{ModelFile, RequestError};
use proptest::prelude::*;
use serde_json::{Value, json};

const APPLE: &str = r#"{"request_id":"r","weight":180.0,"width":8.5,"height":7.5,"sweetness":0.5}"#;

fn read(text: &str) -> Result<Request, Refused> {
    Request::from_bytes(text.as_bytes(), &fruit())
}

fn code(text: &str) -> &'static str {
    read(text).expect_err(text).error.code()
}

fn row(weight: f64) -> Value {
    json!({"weight": weight, "width": 8, "height": 7, "sweetness": 0})
}

#[test]
fn one_row_in_any_order_of_its_fields() {
    let expected = Question::One(vec![180.0, 8.5, 7.5, 0.5]);
    let request = read(APPLE).unwrap();
    assert_eq!(
        (request.request_id.as_str(), &request.question),
        ("r", &expected)
    );
    let other = r#"{"sweetness":0.5,"color":["red"],"height":7.5,"w\u0065ight":180,"request_id":"r","width":8.5}"#;
    assert_eq!(read(other).unwrap().question, expected);
}

#[test]
fn a_description_is_asked_for_with_true() {
    assert_eq!(
        read(r#"{"request_id":"r","describe":true}"#)
            .unwrap()
            .question,
        Question::Describe
    );
    assert!(matches!(
        read(&APPLE.replace('{', r#"{"describe":false,"#))
            .unwrap()
            .question,
        Question::One(_)
    ));
    assert_eq!(code(r#"{"request_id":"r","describe":1}"#), "malformed_json");
    assert_eq!(
        code(r#"{"request_id":"r","describe":true,"instances":[]}"#),
        "malformed_json"
    );
}

#[test]
fn a_field_that_appears_twice_is_refused_by_its_name_and_the_requests() {
    let refused = read(&APPLE.replace('{', r#"{"sweetness":0.3,"#)).unwrap_err();
    assert_eq!(refused.request_id, "r");
    assert_eq!(refused.error.to_string(), "`sweetness` appears twice");
    let json = r#"{"request_id":"r","instances":[{"weight":1,"weight":2,"width":8,"height":7,"sweetness":0}]}"#;
    assert_eq!(
        read(json).unwrap_err().error.to_string(),
        "instances[0]: `weight` appears twice"
    );
    for field in ["request_id", "instances", "describe"] {
        let twice =
            format!(r#"{{"request_id":"a","instances":[],"describe":false,"{field}":{{}}}}"#);
        assert_eq!(
            read(&twice).unwrap_err().error.to_string(),
            format!("`{field}` appears twice")
        );
    }
}

#[test]
fn a_batch_keeps_its_order() {
    let request =
        read(&json!({"request_id": "r", "instances": [row(1.0), row(2.0)]}).to_string()).unwrap();
    let expected = [1.0, 2.0].map(|x| vec![x, 8.0, 7.0, 0.0]);
    assert_eq!(request.question, Question::Batch(expected.to_vec()));
}

#[test]
fn every_refusal_has_its_code() {
    for text in [
        "",
        "[1, 2]",
        "7",
        r#"{"request_id": 7}"#,
        r#"{"request_id":"r","instances":{}}"#,
    ] {
        assert_eq!(code(text), "malformed_json");
    }
    assert_eq!(code(&format!("{APPLE}{APPLE}")), "malformed_json");
    assert_eq!(
        code(&APPLE.replace('}', r#","instances":[]}"#)),
        "malformed_json"
    );
    assert_eq!(
        code(r#"{"request_id":"r","instances":[7]}"#),
        "malformed_json"
    );
    assert_eq!(
        code(&APPLE.replace(r#""request_id":"r","#, "")),
        "missing_field"
    );
    assert_eq!(code(&APPLE.replace("width", "depth")), "missing_field");
    for (number, expected) in [
        ("NaN", "malformed_json"),
        ("1e400", "malformed_json"),
        ("-1e400", "malformed_json"),
        (r#""180""#, "not_a_number"),
        ("null", "not_a_number"),
        ("true", "not_a_number"),
        ("[180]", "not_a_number"),
        ("1e308", "out_of_range"),
        ("-0.1", "out_of_range"),
    ] {
        assert_eq!(code(&APPLE.replace("180.0", number)), expected, "{number}");
    }
}

#[test]
fn a_value_is_answered_within_the_models_bounds_exactly() {
    for x in [0.0, -0.0, 5000.0] {
        let request = read(&APPLE.replace("180.0", &format!("{x:?}"))).unwrap();
        assert_eq!(request.question, Question::One(vec![x, 8.5, 7.5, 0.5]));
    }
    for x in [0.0_f64.next_down(), 5000.0_f64.next_up()] {
        assert_eq!(
            code(&APPLE.replace("180.0", &x.to_string())),
            "out_of_range"
        );
    }
}

#[test]
fn a_refusal_says_where_and_in_which_unit() {
    let message = |text: &str| read(text).unwrap_err().error.to_string();
    assert_eq!(
        message(&APPLE.replace("180.0", "9000")),
        "`weight` is 9000 g, outside 0 to 5000 g"
    );
    assert_eq!(
        message(&APPLE.replace("0.5", "2")),
        "`sweetness` is 2, outside -1 to 1"
    );
    let batch =
        r#"{"request_id":"r","instances":[{"weight":1,"width":8,"height":7,"sweetness":"x"}]}"#;
    assert_eq!(
        message(batch),
        "instances[0]: `sweetness` must be a number, found a string"
    );
    assert_eq!(read(batch).unwrap_err().request_id, "r");
}

#[test]
fn a_request_id_has_at_most_128_bytes() {
    for longest in ["r".repeat(128), "é".repeat(64)] {
        let text = |id: &str| json!({"request_id": id, "instances": []}).to_string();
        assert_eq!(read(&text(&longest)).unwrap().request_id, longest);
        let refused = read(&text(&format!("{longest}r"))).unwrap_err();
        assert!(refused.error.to_string().contains("129 bytes"));
        assert_eq!(refused.request_id, Value::Null);
    }
}

#[test]
fn a_request_has_from_none_to_10_000_instances() {
    let ask =
        |rows| read(&json!({"request_id": "r", "instances": vec![row(1.0); rows]}).to_string());
    for rows in [0, 10_000] {
        let Question::Batch(batch) = ask(rows).unwrap().question else {
            panic!("a list was sent")
        };
        assert_eq!(batch.len(), rows);
    }
    let expected = RequestError::TooManyInstances {
        found: 10_001,
        max: 10_000,
    };
    assert_eq!(ask(10_001).unwrap_err().error, expected);
}

#[test]
fn bytes_that_are_not_utf8_are_refused_by_their_id() {
    let refused =
        Request::from_bytes(b"{\"request_id\": \"r\", \"x\": \"\xff\"}", &fruit()).unwrap_err();
    assert_eq!(
        (refused.error.code(), &refused.request_id),
        ("malformed_json", &json!("r"))
    );
}

#[test]
fn a_model_of_256_features_reads_them_in_any_order() {
    let mut file: ModelFile = fruit();
    let feature = file.features[0].clone();
    let name = |n: usize| format!("f{n}");
    file.features = (0..256)
        .map(|n| iris_fn::Feature {
            name: name(n),
            ..feature.clone()
        })
        .collect();
    let mut fields: serde_json::Map<String, Value> =
        (0..256).rev().map(|n| (name(n), json!(n))).collect();
    fields.insert("request_id".into(), json!("r"));
    let request = Request::from_bytes(Value::Object(fields).to_string().as_bytes(), &file).unwrap();
    assert_eq!(
        request.question,
        Question::One((0..256).map(f64::from).collect())
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = Request::from_bytes(&bytes, &fruit());
    }

    #[test]
    fn arbitrary_brackets_and_quotes_never_panic(text in r#"[{}\[\]":,\\ a"request_id"]{0,80}"#) {
        let _ = read(&text);
    }

    #[test]
    fn whatever_number_is_sent_is_answered_in_range_or_refused(bits in any::<u64>()) {
        let x = f64::from_bits(bits);
        prop_assume!(x.is_finite());
        match read(&APPLE.replace("180.0", &serde_json::to_string(&x).unwrap())) {
            Ok(request) => {
                let Question::One(row) = request.question else { panic!("one row was sent") };
                prop_assert_eq!(row[0].to_bits(), x.to_bits());
                prop_assert!((0.0..=5000.0).contains(&x));
            }
            Err(refused) => prop_assert_eq!(refused.error.code(), "out_of_range"),
        }
    }
}
