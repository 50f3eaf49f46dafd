//! What is right, worked out anew: from `serde_json`'s values, and without the function's own code.
// Each target uses a part of it.
#![allow(dead_code)]

use serde_json::{Map, Value};

pub const NAMES: [&str; 4] = ["sepal_length", "sepal_width", "petal_length", "petal_width"];

/// Every code that a request may be refused with; none when nothing is wrong with it. (No input of a fuzzer is
/// long enough for too many flowers.)
pub fn refusals(request: &Value) -> Vec<&'static str> {
    let Some(fields) = request.as_object() else {
        return vec!["malformed_json"];
    };
    let mut codes = Vec::new();
    match fields.get("request_id") {
        Some(Value::String(id)) if id.len() <= 128 => {}
        Some(_) => codes.push("malformed_json"),
        None => codes.push("missing_field"),
    }
    match fields.get("flowers") {
        None => codes.extend(refusals_of_flower(fields)),
        Some(Value::Array(_)) if NAMES.iter().any(|name| fields.contains_key(*name)) => {
            codes.push("malformed_json");
        }
        Some(Value::Array(list)) => {
            for flower in list {
                match flower.as_object() {
                    Some(fields) => codes.extend(refusals_of_flower(fields)),
                    None => codes.push("malformed_json"),
                }
            }
        }
        Some(_) => codes.push("malformed_json"),
    }
    codes
}

fn refusals_of_flower(fields: &Map<String, Value>) -> impl Iterator<Item = &'static str> {
    NAMES
        .iter()
        .filter_map(move |name| match fields.get(*name).map(Value::as_f64) {
            None => Some("missing_field"),
            Some(None) => Some("not_a_number"),
            Some(Some(x)) if x < 0.0 || x > 100.0 => Some("out_of_range"),
            Some(Some(_)) => None,
        })
}

/// Panics unless `code` is right for a request that was refused, and the refusal names the request where it can.
pub fn check_refusal(bytes: &[u8], request: &Value, code: &str, request_id: Option<&str>) {
    let twice = stands_twice(bytes, request);
    let right = refusals(request).contains(&code) || (twice && code == "malformed_json");
    assert!(right, "{code} for {request}");
    let asked = request["request_id"].as_str().filter(|id| id.len() <= 128);
    assert!(twice || request_id == asked, "{request_id:?} for {request}");
}

/// Whether some field stands twice: a `Value` keeps the last of them, and so has fewer than the text.
pub fn stands_twice(text: &[u8], value: &Value) -> bool {
    fn fields(value: &Value) -> usize {
        match value {
            Value::Object(map) => map.len() + map.values().map(fields).sum::<usize>(),
            Value::Array(list) => list.iter().map(fields).sum(),
            _ => 0,
        }
    }
    let (mut colons, mut quoted, mut escaped) = (0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b':' if !quoted => colons += 1,
            _ => {}
        }
    }
    colons > fields(value)
}

pub fn numbers(list: &Value) -> Vec<f64> {
    let list = list.as_array().expect("a list");
    list.iter().map(|n| n.as_f64().expect("a number")).collect()
}

/// P(k) = 1 / Σ_j exp(z_j − z_k), z = intercepts + weights · x, by the numbers of a model file.
pub fn probabilities(file: &Value, x: &[f64]) -> Vec<f64> {
    let intercepts = numbers(&file["intercepts"]);
    let z: Vec<f64> = (0..3)
        .map(|k| {
            let products = numbers(&file["weights"][k]).into_iter().zip(x);
            products.fold(intercepts[k], |z, (w, x)| z + w * x)
        })
        .collect();
    z.iter()
        .map(|k| 1.0 / z.iter().map(|j| (j - k).exp()).sum::<f64>())
        .collect()
}

/// Panics unless this is what the model file says of the flower `x`.
pub fn check_prediction(file: &Value, x: &[f64], prediction: &Value) {
    let classes = file["classes"].as_array().expect("a list");
    let p: Vec<f64> = classes
        .iter()
        .map(|class| {
            let p = &prediction["probabilities"][class.as_str().expect("a name")];
            // What is not finite is written as null.
            p.as_f64().expect("a finite number")
        })
        .collect();
    assert!(p.iter().all(|p| (0.0..=1.0).contains(p)), "{prediction}");
    assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{prediction}");
    for (found, expected) in p.iter().zip(probabilities(file, x)) {
        assert!((found - expected).abs() < 1e-11, "{prediction}: {expected}");
    }
    let mut best = 0;
    for k in [1, 2] {
        if p[k] > p[best] {
            best = k;
        }
    }
    assert_eq!(prediction["species"], classes[best]);
    let features = file["features"].as_array().expect("a list");
    let within = features.iter().zip(x).all(|(feature, x)| {
        feature["min"].as_f64().expect("a number") <= *x
            && *x <= feature["max"].as_f64().expect("a number")
    });
    assert_eq!(prediction["in_distribution"], within);
}
