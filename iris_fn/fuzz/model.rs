//! Whatever lies in the bucket: a model that reproduces its golden rows, or a reason that the file itself shows.
#![no_main]

mod expected;

use std::collections::HashSet;

use expected::{appears_twice, check_prediction, list, number, numbers, probabilities};
use iris_fn::{Model, ModelError};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const KIND: &str = "multinomial_logistic_regression";
/// How far a golden probability may be off, and what rounding may add to that.
const TOLERANCE: f64 = 1e-9;
const ROUNDING: f64 = 1e-11;

/// Whether this has the fields of a model file, and nothing else: those of the corpus' one, and lists of any length.
fn is_model_file(file: &Value) -> bool {
    fn is_like(value: &Value, example: &Value) -> bool {
        match (value, example) {
            (Value::Object(fields), Value::Object(known)) => {
                let right = |(name, value): (&String, &Value)| {
                    known.get(name).is_some_and(|e| is_like(value, e))
                };
                fields.len() == known.len() && fields.iter().all(right)
            }
            (Value::Array(list), Value::Array(known)) => {
                list.iter().all(|value| is_like(value, &known[0]))
            }
            // The schema, rows and iterations are counts.
            (Value::Number(number), Value::Number(known)) => number.is_u64() || !known.is_u64(),
            (Value::String(_), Value::String(_)) => true,
            _ => false,
        }
    }
    let example: Value =
        serde_json::from_slice(include_bytes!("corpus/model/fruit.json")).expect("JSON");
    is_like(file, &example)
        && list(&file["features"])
            .iter()
            .all(|feature| list(&feature["accept"]).len() == 2)
}

/// serde reads a list of values as an object's fields in order; nobody writes a model so.
fn has_lists_for_objects(file: &Value) -> bool {
    let lists = |field: &str| {
        file[field]
            .as_array()
            .is_some_and(|all| all.iter().any(Value::is_array))
    };
    file.is_array() || file["training"].is_array() || lists("features") || lists("golden")
}

/// The logit of each class at the accepted row where it is largest.
fn largest_logits(file: &Value) -> Vec<f64> {
    let reach = |feature: &Value| {
        numbers(&feature["accept"])
            .into_iter()
            .fold(0.0, |m: f64, x| m.max(x.abs()))
    };
    let reaches: Vec<f64> = list(&file["features"]).iter().map(reach).collect();
    let logit = |(weights, intercept): (&Value, &Value)| {
        numbers(weights)
            .iter()
            .zip(&reaches)
            .fold(number(intercept).abs(), |sum, (w, reach)| {
                sum + w.abs() * reach
            })
    };
    list(&file["weights"])
        .iter()
        .zip(list(&file["intercepts"]))
        .map(logit)
        .collect()
}

/// Whether a file of the right form describes a model: names, sizes, bounds and numbers. `slack` is what rounding may
/// change of a golden probability, for or against the model.
fn is_right(file: &Value, slack: f64) -> bool {
    let (features, classes) = (list(&file["features"]), list(&file["classes"]));
    let lengths = |value: &Value, rows: usize, of: usize| {
        list(value).len() == rows && list(value).iter().all(|row| list(row).len() == of)
    };
    let golden = list(&file["golden"]);
    let shapes = (1..=256).contains(&features.len())
        && (2..=256).contains(&classes.len())
        && lengths(&file["weights"], classes.len(), features.len())
        && list(&file["intercepts"]).len() == classes.len()
        && golden.iter().all(|row| {
            list(&row["features"]).len() == features.len()
                && list(&row["probabilities"]).len() == classes.len()
        });
    let fields: Vec<_> = features
        .iter()
        .map(|feature| &feature["name"])
        .chain([&file["target"]])
        .collect();
    let names = [fields.clone(), classes.iter().collect()]
        .iter()
        .all(|names| {
            let texts: HashSet<_> = names
                .iter()
                .map(|name| name.as_str().expect("a name"))
                .collect();
            let is_name = |name: &&str| {
                (1..=64).contains(&name.len())
                    && name.trim() == *name
                    && !name.chars().any(char::is_control)
            };
            texts.len() == names.len() && texts.iter().all(is_name)
        });
    let reserved = fields
        .iter()
        .any(|name| iris_fn::model::RESERVED.contains(&name.as_str().expect("a name")));
    let bounds = features.iter().all(|feature| {
        let (accept, min, max) = (
            numbers(&feature["accept"]),
            number(&feature["min"]),
            number(&feature["max"]),
        );
        accept[0] <= min && min <= max && max <= accept[1]
    });
    shapes && names && !reserved && bounds && !golden.is_empty() && {
        let largest = largest_logits(file).into_iter().fold(0.0, f64::max);
        largest.is_finite()
            && golden.iter().all(|row| {
                let x = numbers(&row["features"]);
                let accepted = features.iter().zip(&x).all(|(feature, x)| {
                    let accept = numbers(&feature["accept"]);
                    accept[0] <= *x && *x <= accept[1]
                });
                // Logits of 1e4 and more have too few digits behind the point to tell.
                let agree = |(found, expected): (f64, f64)| {
                    largest > 1e4 || (found - expected).abs() <= TOLERANCE + slack
                };
                accepted
                    && probabilities(file, &x)
                        .into_iter()
                        .zip(numbers(&row["probabilities"]))
                        .all(agree)
            })
    }
}

fn check_model(file: &Value, model: &Model) {
    assert!(is_model_file(file) && is_right(file, ROUNDING), "{file}");
    assert_eq!((&file["schema"], &file["kind"]), (&json!(2), &json!(KIND)));
    if largest_logits(file).iter().all(|z| *z < 1e4) {
        for row in list(&file["golden"]) {
            let x = numbers(&row["features"]);
            let prediction = serde_json::to_value(model.predict(&x)).expect("JSON");
            check_prediction(file, &x, &prediction);
        }
    }
    // Written again it is the same model, to the bit.
    let again = Model::from_bytes(&model.file().to_bytes()).expect("it was good before");
    assert_eq!(again.file(), model.file());
}

fn check_reason(bytes: &[u8], file: &Value, error: &ModelError) {
    let is_so = match error {
        ModelError::TooLarge { bytes: found } => bytes.len() == *found && *found > 1 << 20,
        ModelError::Malformed(_) => !is_model_file(file) || appears_twice(bytes, file),
        ModelError::Schema { found } => *found != 2 && file["schema"] == *found,
        ModelError::Kind { found } => found != KIND && file["kind"] == *found,
        ModelError::Invalid(_) => {
            let exact = largest_logits(file).iter().all(|z| *z < 1e4);
            !exact || !is_right(file, -ROUNDING)
        }
    };
    assert!(is_so, "{error}: {file}");
}

fuzz_target!(|bytes: &[u8]| {
    let model = Model::from_bytes(bytes);
    let Ok(file) = serde_json::from_slice::<Value>(bytes) else {
        assert!(model.is_err());
        return;
    };
    match model {
        _ if has_lists_for_objects(&file) => {}
        Ok(model) => check_model(&file, &model),
        Err(error) => check_reason(bytes, &file, &error),
    }
});
