//! What is right, worked out anew: from `serde_json`'s values, and without the function's own code.
// Each target uses a part of it.
#![allow(dead_code)]

use serde_json::{Map, Value, json};

/// A model file of this seed: some features and classes with odd names, and any bounds and weights. It has no golden
/// rows yet.
pub fn random_file(seed: u8) -> Value {
    let mut random = fastrand::Rng::with_seed(seed.into());
    let names = [
        "weight",
        "é",
        "a b",
        "x\"y",
        "1",
        "leaf.length",
        "\u{1f338}",
        "Weight",
    ];
    let features: Vec<Value> = (names.iter().take(random.usize(1..=8)))
        .map(|name| {
            let mut bounds =
                [0.0; 4].map(|_: f64| (random.f64() - 0.5) * 10f64.powi(random.i32(-3..=6)));
            bounds.sort_by(f64::total_cmp);
            let [low, min, max, high] = bounds;
            json!({"name": name, "unit": "", "min": min, "max": max, "accept": [low, high]})
        })
        .collect();
    let classes: Vec<String> = (0..random.usize(2..=5)).map(|k| format!("c{k}")).collect();
    let weights: Vec<Vec<f64>> = classes
        .iter()
        .map(|_| features.iter().map(|_| random.f64() - 0.5).collect())
        .collect();
    let intercepts: Vec<f64> = classes.iter().map(|_| random.f64()).collect();
    json!({
        "schema": 2, "kind": "multinomial_logistic_regression", "target": "kind", "features": features,
        "classes": classes, "weights": weights, "intercepts": intercepts, "golden": [],
        "training": {"data_sha256": "", "rows": 0, "alpha": 1.0, "iterations": 0, "gradient_norm": 0.0,
                     "log_loss": 0.0, "cv_accuracy": 0.0},
    })
}

pub fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

pub fn numbers(value: &Value) -> Vec<f64> {
    list(value).iter().map(number).collect()
}

pub fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

pub fn name(feature: &Value) -> &str {
    feature["name"].as_str().expect("a name")
}

/// Every code that a request may be refused with; none when nothing is wrong with it. (No input of a fuzzer is
/// long enough for too many instances.)
pub fn refusals(file: &Value, request: &Value) -> Vec<&'static str> {
    let Some(fields) = request.as_object() else {
        return vec!["malformed_json"];
    };
    let mut codes = Vec::new();
    match fields.get("request_id") {
        Some(Value::String(id)) if id.len() <= 128 => {}
        Some(_) => codes.push("malformed_json"),
        None => codes.push("missing_field"),
    }
    let describe = match fields.get("describe") {
        Some(Value::Bool(describe)) => *describe,
        None => false,
        Some(_) => {
            codes.push("malformed_json");
            false
        }
    };
    let has_features = list(&file["features"])
        .iter()
        .any(|feature| fields.contains_key(name(feature)));
    match fields.get("instances") {
        Some(_) if describe => codes.push("malformed_json"),
        None if describe => {}
        None => codes.extend(refusals_of_row(file, fields)),
        Some(Value::Array(_)) if has_features => codes.push("malformed_json"),
        Some(Value::Array(rows)) => {
            for row in rows {
                match row.as_object() {
                    Some(fields) => codes.extend(refusals_of_row(file, fields)),
                    None => codes.push("malformed_json"),
                }
            }
        }
        Some(_) => codes.push("malformed_json"),
    }
    codes
}

fn refusals_of_row(file: &Value, fields: &Map<String, Value>) -> Vec<&'static str> {
    let refusal = |feature: &Value| match fields.get(name(feature)).map(Value::as_f64) {
        None => Some("missing_field"),
        Some(None) => Some("not_a_number"),
        Some(Some(x)) => {
            let accept = numbers(&feature["accept"]);
            (x < accept[0] || x > accept[1]).then_some("out_of_range")
        }
    };
    list(&file["features"]).iter().filter_map(refusal).collect()
}

/// A row as a request has it, in the order of the model's features.
pub fn row(file: &Value, fields: &Value) -> Vec<f64> {
    list(&file["features"])
        .iter()
        .map(|feature| number(&fields[name(feature)]))
        .collect()
}

/// Panics unless `code` is right for a request that was refused, and the refusal names the request where it can.
pub fn check_refusal(file: &Value, bytes: &[u8], request: &Value, code: &str, request_id: &Value) {
    let twice = appears_twice(bytes, request);
    let right = refusals(file, request).contains(&code) || (twice && code == "malformed_json");
    assert!(right, "{code} for {request}");
    let echoed = match &request["request_id"] {
        Value::String(id) if id.len() <= 128 => json!(id),
        Value::Number(id) => json!(id),
        _ => Value::Null,
    };
    assert!(twice || *request_id == echoed, "{request_id} for {request}");
}

/// Whether some field appears twice: a `Value` keeps the last of them, and so has fewer than the text.
pub fn appears_twice(text: &[u8], value: &Value) -> bool {
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

/// P(k) = 1 / Σ_j exp(z_j − z_k), z = intercepts + weights · x, by the numbers of a model file.
pub fn probabilities(file: &Value, x: &[f64]) -> Vec<f64> {
    let logit = |(weights, intercept): (&Value, &Value)| {
        numbers(weights)
            .into_iter()
            .zip(x)
            .fold(number(intercept), |z, (w, x)| z + w * x)
    };
    let z: Vec<f64> = list(&file["weights"])
        .iter()
        .zip(list(&file["intercepts"]))
        .map(logit)
        .collect();
    z.iter()
        .map(|k| 1.0 / z.iter().map(|j| (j - k).exp()).sum::<f64>())
        .collect()
}

/// Panics unless this is what the model file says of the row `x`.
pub fn check_prediction(file: &Value, x: &[f64], prediction: &Value) {
    let classes = list(&file["classes"]);
    let of = |class: &Value| {
        let p = &prediction["probabilities"][class.as_str().expect("a name")];
        // What is not finite is written as null.
        p.as_f64().expect("a finite number")
    };
    let p: Vec<f64> = classes.iter().map(of).collect();
    assert!(p.iter().all(|p| (0.0..=1.0).contains(p)), "{prediction}");
    assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{prediction}");
    // Logits may be large, and so may be the rounding of their sums.
    let largest = x.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
    for (found, expected) in p.iter().zip(probabilities(file, x)) {
        assert!(
            (found - expected).abs() < 1e-13 * largest.max(100.0),
            "{prediction}: {expected}"
        );
    }
    let mut best = 0;
    for k in 1..p.len() {
        if p[k] > p[best] {
            best = k;
        }
    }
    assert_eq!(
        prediction[file["target"].as_str().expect("a name")],
        classes[best]
    );
    let within = |(feature, x): (&Value, &f64)| {
        number(&feature["min"]) <= *x && *x <= number(&feature["max"])
    };
    assert_eq!(
        prediction["in_distribution"],
        list(&file["features"]).iter().zip(x).all(within)
    );
}
