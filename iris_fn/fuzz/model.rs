//! Whatever lies in the bucket: a model that reproduces its golden rows, or a reason that the file itself shows.
#![no_main]

mod expected;

use expected::{NAMES, check_prediction, numbers, probabilities, stands_twice};
use iris_fn::{Flower, Model, ModelError};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const KIND: &str = "multinomial_logistic_regression";
/// How far a golden probability may be off, and what rounding may add to that.
const TOLERANCE: f64 = 1e-9;
const ROUNDING: f64 = 1e-11;

/// Whether this has the fields of a model file, and nothing else: those of the corpus' one.
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
                list.len() == known.len() && list.iter().zip(known).all(|(v, e)| is_like(v, e))
            }
            // The schema, rows and iterations are counts.
            (Value::Number(number), Value::Number(known)) => number.is_u64() || !known.is_u64(),
            (Value::String(_), Value::String(_)) => true,
            _ => false,
        }
    }
    let mut example: Value =
        serde_json::from_slice(include_bytes!("corpus/model/iris.json")).expect("JSON");
    let rows = file["golden"].as_array().map_or(0, Vec::len);
    let golden = example["golden"].as_array_mut().expect("a list");
    golden.resize(rows, golden[0].clone());
    is_like(file, &example)
}

/// serde reads a list of values as an object's fields in order; nobody writes a model so.
fn has_lists_for_objects(file: &Value) -> bool {
    let lists = |field: &str| {
        let all = file[field].as_array();
        all.is_some_and(|all| all.iter().any(Value::is_array))
    };
    file.is_array() || file["training"].is_array() || lists("features") || lists("golden")
}

fn names_are_right(classes: &[Value]) -> bool {
    let [a, b, c] = classes else { return false };
    a != b && b != c && a != c && classes.iter().all(|name| name != "")
}

fn check_model(file: &Value, model: &Model) {
    assert!(is_model_file(file), "{file}");
    assert_eq!((&file["schema"], &file["kind"]), (&json!(1), &json!(KIND)));
    for (feature, name) in file["features"]
        .as_array()
        .expect("a list")
        .iter()
        .zip(NAMES)
    {
        assert_eq!(feature["name"], name);
        assert!(feature["min"].as_f64() <= feature["max"].as_f64());
    }
    assert!(names_are_right(file["classes"].as_array().expect("a list")));
    let golden = file["golden"].as_array().expect("a list");
    assert!(!golden.is_empty());
    for row in golden {
        let x = numbers(&row["features"]);
        for (p, expected) in probabilities(file, &x)
            .iter()
            .zip(numbers(&row["probabilities"]))
        {
            assert!((p - expected).abs() <= TOLERANCE + ROUNDING, "{file}");
        }
        let flower = Flower::from(<[f64; 4]>::try_from(x.as_slice()).expect("four numbers"));
        let prediction = serde_json::to_value(model.predict(&flower)).expect("JSON");
        check_prediction(file, &x, &prediction);
    }
    // Written again it is the same model, to the bit.
    let again = Model::from_bytes(&model.file().to_bytes()).expect("it was good before");
    assert_eq!(again.file(), model.file());
}

fn check_reason(bytes: &[u8], file: &Value, error: &ModelError) {
    let is_so = match error {
        ModelError::Malformed(_) => !is_model_file(file) || stands_twice(bytes, file),
        ModelError::Schema { found, .. } => *found != 1 && file["schema"] == *found,
        ModelError::Kind { found, .. } => found != KIND && file["kind"] == *found,
        ModelError::Feature { index, found, .. } => {
            found != NAMES[*index] && file["features"][index]["name"] == *found
        }
        ModelError::Range { name, min, max } => {
            let column = NAMES
                .iter()
                .position(|known| known == name)
                .expect("a feature");
            let feature = &file["features"][column];
            min > max && feature["min"] == *min && feature["max"] == *max
        }
        ModelError::Classes(found) => {
            file["classes"] == json!(found)
                && !names_are_right(file["classes"].as_array().expect("a list"))
        }
        ModelError::NoGolden => file["golden"] == json!([]),
        ModelError::Golden { row, class, .. } => {
            let golden = &file["golden"][row];
            let classes = file["classes"].as_array().expect("a list");
            let k = classes
                .iter()
                .position(|name| name == class)
                .expect("a class");
            let found = probabilities(file, &numbers(&golden["features"]))[k];
            let off = (found - numbers(&golden["probabilities"])[k]).abs();
            off.is_nan() || off > TOLERANCE - ROUNDING
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
