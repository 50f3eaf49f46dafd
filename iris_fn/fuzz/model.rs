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
                let right = |(name, value): (&String, &Value)| known.get(name).is_some_and(|e| is_like(value, e));
                fields.len() == known.len() && fields.iter().all(right)
            }
            (Value::Array(list), Value::Array(known)) => list.iter().all(|value| is_like(value, &known[0])),
            // The schema, rows and iterations are counts.
            (Value::Number(number), Value::Number(known)) => number.is_u64() || !known.is_u64(),
            (Value::String(_), Value::String(_)) => true,
            _ => false,
        }
    }
    let example: Value = serde_json::from_slice(include_bytes!("corpus/model/fruit.json")).expect("JSON");
    is_like(file, &example) && list(&file["features"]).iter().all(|feature| list(&feature["accept"]).len() == 2)
}

/// serde reads a list of values as an object's fields in order; nobody writes a model so.
fn has_lists_for_objects(file: &Value) -> bool {
    let lists = |field: &str| file[field].as_array().is_some_and(|all| all.iter().any(Value::is_array));
    file.is_array() || file["training"].is_array() || lists("features") || lists("golden")
}

/// The logit of each class at the accepted row where it is largest.
fn largest_logits(file: &Value) -> Vec<f64> {
    let reach = |feature: &Value| numbers(&feature["accept"]).into_iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let reaches: Vec<f64> = list(&file["features"]).iter().map(reach).collect();
    let logit = |(weights, intercept): (&Value, &Value)| {
        numbers(weights).iter().zip(&reaches).fold(number(intercept).abs(), |sum, (w, reach)| sum + w.abs() * reach)
    };
    list(&file["weights"]).iter().zip(list(&file["intercepts"])).map(logit).collect()
}

fn check_model(file: &Value, model: &Model) {
    assert!(is_model_file(file), "{file}");
    assert_eq!((&file["schema"], &file["kind"]), (&json!(2), &json!(KIND)));
    let (features, classes) = (list(&file["features"]), list(&file["classes"]));
    assert!((1..=256).contains(&features.len()) && (2..=256).contains(&classes.len()));
    let names: Vec<_> = features.iter().map(|feature| &feature["name"]).chain([&file["target"]]).collect();
    for names in [names, classes.iter().collect()] {
        let texts: HashSet<_> = names.iter().map(|name| name.as_str().expect("a name")).collect();
        assert!(texts.len() == names.len() && texts.iter().all(|name| (1..=64).contains(&name.len())));
    }
    for feature in features {
        let ([low, high], (min, max)) =
            (numbers(&feature["accept"])[..].try_into().expect("two"), (number(&feature["min"]), number(&feature["max"])));
        assert!(low <= min && min <= max && max <= high, "{feature}");
    }
    assert!(largest_logits(file).iter().all(|z| z.is_finite()), "{file}");
    let golden = list(&file["golden"]);
    assert!(!golden.is_empty());
    for row in golden {
        let x = numbers(&row["features"]);
        for (p, expected) in probabilities(file, &x).iter().zip(numbers(&row["probabilities"])) {
            assert!((p - expected).abs() <= TOLERANCE + ROUNDING || largest_logits(file).iter().any(|z| *z > 1e4));
        }
        let prediction = serde_json::to_value(model.predict(&x)).expect("JSON");
        if largest_logits(file).iter().all(|z| *z < 1e4) {
            check_prediction(file, &x, &prediction);
        }
    }
    // Written again it is the same model, to the bit.
    let again = Model::from_bytes(&model.file().to_bytes()).expect("it was good before");
    assert_eq!(again.file(), model.file());
}

fn check_reason(bytes: &[u8], file: &Value, error: &ModelError) {
    let feature = |name: &str| list(&file["features"]).iter().find(|feature| feature["name"] == *name).expect(name);
    let accept = |name: &str| numbers(&feature(name)["accept"]);
    let is_so = match error {
        ModelError::TooLarge { bytes: found } => bytes.len() == *found && *found > 1 << 20,
        ModelError::Malformed(_) => !is_model_file(file) || appears_twice(bytes, file),
        ModelError::Schema { found } => *found != 2 && file["schema"] == *found,
        ModelError::Kind { found } => found != KIND && file["kind"] == *found,
        ModelError::Count { what, found, min, max } => {
            list(&file[*what]).len() == *found && !(*min..=*max).contains(found)
        }
        ModelError::Name { what, name, .. } => {
            let names: Vec<&Value> = match *what {
                "target" => vec![&file["target"]],
                "class" => list(&file["classes"]).iter().collect(),
                _ => list(&file["features"]).iter().map(|feature| &feature["name"]).collect(),
            };
            names.contains(&&json!(name))
        }
        ModelError::Range { min, max, .. } => min > max,
        ModelError::Accept { name, low, high } => low > high && accept(name) == [*low, *high],
        ModelError::AcceptTooNarrow { name, min, max, low, high } => {
            accept(name) == [*low, *high] && (low > min || high < max)
        }
        ModelError::Shape { found, expected, .. } => found != expected,
        ModelError::Overflow { .. } => largest_logits(file).iter().any(|z| !z.is_finite()),
        ModelError::NoGolden => file["golden"] == json!([]),
        ModelError::GoldenOutside { name, value, .. } => {
            let accept = accept(name);
            *value < accept[0] || *value > accept[1]
        }
        ModelError::Golden { row, class, expected, found } => {
            let golden = &file["golden"][row];
            let k = list(&file["classes"]).iter().position(|name| name == class).expect("a class");
            let p = probabilities(file, &numbers(&golden["features"]))[k];
            numbers(&golden["probabilities"])[k] == *expected
                && ((p - found).abs() < ROUNDING || largest_logits(file).iter().any(|z| *z > 1e4))
                && (found - expected).abs() > TOLERANCE
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
