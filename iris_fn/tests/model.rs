//! Model files: what is right is served, and every way to be wrong has a sentence of its own.

mod fakes;

use std::collections::HashSet;
use std::time::Duration;

use fakes::{FRUIT, MemoryPublisher, checked, fruit, raw, soon};
use iris_fn::model::{MAX_BYTES, sha256_hex};
use iris_fn::{Model, ModelError, ModelFile};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Changes of the fixture, and what the loader says of each.
fn wrong_files() -> Vec<(Value, &'static str)> {
    let file: Value = serde_json::from_slice(FRUIT).unwrap();
    let change = |path: &str, to: Value| {
        let mut file = file.clone();
        *file.pointer_mut(path).expect(path) = to;
        file
    };
    let without = |path: &str, field: &str| {
        let mut file = file.clone();
        file.pointer_mut(path)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(field);
        file
    };
    let list = |path: &str, length: usize| {
        let mut file = file.clone();
        let all = file.pointer_mut(path).unwrap().as_array_mut().unwrap();
        all.resize(length, all[0].clone());
        file
    };
    let name = "/features/1/name";
    vec![
        (json!([]), "not a model file"),
        (json!({}), "missing field `schema`"),
        (
            change("/schema", json!(1)),
            "model schema 1 is not supported, this build reads schema 2: write the file again",
        ),
        (change("/schema", json!(3)), "model schema 3"),
        (change("/schema", json!("2")), "invalid type: string"),
        (change("/kind", json!("tree")), "model kind \"tree\""),
        (without("", "kind"), "missing field `kind`"),
        (without("", "target"), "missing field `target`"),
        (without("", "golden"), "missing field `golden`"),
        (without("/training", "alpha"), "missing field `alpha`"),
        (without("/features/0", "accept"), "missing field `accept`"),
        (
            change("/training/rows", json!(-1)),
            "invalid value: integer `-1`",
        ),
        (
            change("/features/0", json!({"name": "weight", "color": 1})),
            "unknown field `color`",
        ),
        (change("/weights/0/0", Value::Null), "invalid type: null"),
        (
            change("/features/0/accept", json!([0.0])),
            "invalid length 1",
        ),
        (change("/target", json!("")), "a target has an empty name"),
        (
            change("/target", json!("request_id")),
            "the target name \"request_id\" is reserved",
        ),
        (
            change("/target", json!("probabilities")),
            "\"probabilities\" is reserved",
        ),
        (
            change("/target", json!("weight")),
            "a feature is called \"weight\" as the target is",
        ),
        (
            list("/features", 0),
            "the model has 0 features, expected 1 to 256",
        ),
        (list("/features", 257), "the model has 257 features"),
        (change(name, json!("")), "a feature has an empty name"),
        (
            change(name, json!("weight")),
            "two features are called \"weight\"",
        ),
        (
            change(name, json!("x".repeat(65))),
            "is longer than 64 bytes",
        ),
        (
            change(name, json!("é".repeat(33))),
            "is longer than 64 bytes",
        ),
        (change(name, json!("width ")), "begins or ends with a space"),
        (change(name, json!("wi\ndth")), "holds a control character"),
        (
            change(name, json!("instances")),
            "the feature name \"instances\" is reserved",
        ),
        (change(name, json!("describe")), "\"describe\" is reserved"),
        (change(name, json!("warmup")), "\"warmup\" is reserved"),
        (change(name, json!("payload")), "\"payload\" is reserved"),
        (
            change("/features/2/min", json!(15.0)),
            "feature height: min is 15 and max is 14",
        ),
        (
            change("/features/2/accept", json!([9.0, 3.0])),
            "feature height: accept is 9 to 3",
        ),
        (
            change("/features/2/accept", json!([3.0, 20.0])),
            "training saw 2 to 14, but only 3 to 20 is accepted",
        ),
        (
            change("/features/2/accept", json!([0.0, 10.0])),
            "training saw 2 to 14, but only 0 to 10",
        ),
        (
            list("/classes", 1),
            "the model has 1 classes, expected 2 to 256",
        ),
        (list("/classes", 257), "the model has 257 classes"),
        (change("/classes/1", json!("")), "a class has an empty name"),
        (
            change("/classes/1", json!("apple")),
            "two classes are called \"apple\"",
        ),
        (change("/classes/1", json!("p".repeat(65))), "\"pppp"),
        (
            list("/weights", 2),
            "the model has 2 rows of weights, expected 3",
        ),
        (list("/weights/2", 3), "class plum has 3 weights"),
        (list("/weights/0", 5), "class apple has 5 weights"),
        (list("/intercepts", 4), "the model has 4 intercepts"),
        (list("/golden", 0), "no golden rows"),
        (list("/golden/1/features", 3), "golden row 1 has 3 features"),
        (
            list("/golden/1/probabilities", 2),
            "golden row 1 has 2 probabilities",
        ),
        (
            change("/golden/0/features/0", json!(5001.0)),
            "golden row 0: weight is 5001, which the model itself",
        ),
        (
            change("/golden/2/probabilities/0", json!(0.5)),
            "golden row 2: P(apple)",
        ),
        (
            change("/weights/0/1", json!(0.9000001)),
            "golden row 0: P(apple)",
        ),
        (
            change("/weights/1/0", json!(1e307)),
            "class pear: an accepted row could overflow",
        ),
        (change("/intercepts/2", json!(f64::MAX)), "golden row 0"),
    ]
}

#[test]
fn every_wrong_file_is_refused_with_a_sentence_of_its_own() {
    let wrong = wrong_files();
    assert!(wrong.len() >= 50);
    let mut sentences = HashSet::new();
    for (file, expected) in &wrong {
        let error = Model::from_bytes(file.to_string().as_bytes())
            .expect_err(expected)
            .to_string();
        assert!(
            error.contains(expected),
            "{error}\n  should hold: {expected}"
        );
        assert!(sentences.insert(error.clone()), "said twice: {error}");
    }
}

#[test]
fn what_json_cannot_say_and_what_is_too_large_is_refused() {
    let text = String::from_utf8(FRUIT.to_vec()).unwrap();
    for (from, to) in [
        ("0.9", "NaN"),
        ("0.9", "Infinity"),
        ("0.9", "1e400"),
        ("{", "\u{feff}{"),
        ("}", ""),
    ] {
        let error = Model::from_bytes(text.replacen(from, to, 1).as_bytes()).unwrap_err();
        assert!(matches!(error, ModelError::Malformed(_)), "{to}: {error}");
    }
    let mut large = FRUIT.to_vec();
    large.resize(MAX_BYTES, b' ');
    assert!(Model::from_bytes(&large).is_ok());
    large.push(b' ');
    assert_eq!(
        Model::from_bytes(&large),
        Err(ModelError::TooLarge {
            bytes: MAX_BYTES + 1
        })
    );
}

#[test]
fn weights_that_only_some_accepted_row_overflows_are_refused() {
    let mut file = fruit();
    for row in &mut file.golden {
        row.features = vec![0.0; 4];
    }
    file.weights = vec![vec![1e307; 4]; 3];
    for n in 0..file.golden.len() {
        file.golden[n].probabilities = file.probabilities(&[0.0; 4]);
    }
    let error = Model::from_bytes(&file.to_bytes()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("class apple: an accepted row could overflow"),
        "{error}"
    );
}

#[tokio::test]
async fn the_last_good_model_serves_while_a_wrong_one_is_published() {
    use iris_fn::current::{CurrentModel, Loaded, ModelStore, StoreError};
    use iris_fn::handler::Handler;
    use std::sync::Mutex;

    /// Gives these files, one after the other.
    struct Files(Mutex<Vec<Vec<u8>>>);
    impl ModelStore for Files {
        async fn current(&self, _: Option<&str>) -> Result<Option<Loaded>, StoreError> {
            let file = self.0.lock().unwrap().pop().expect("a file for each call");
            let model = Model::from_bytes(&file);
            let model = model.map_err(|source| StoreError::Refused {
                name: "k".into(),
                etag: None,
                source,
            })?;
            Ok(Some(Loaded { model, etag: None }))
        }
    }
    let wrong = wrong_files();
    let mut files: Vec<Vec<u8>> = wrong
        .iter()
        .map(|(file, _)| file.to_string().into_bytes())
        .collect();
    files.push(FRUIT.to_vec());
    let handler = Handler {
        model: CurrentModel::new(Files(Mutex::new(files)), Duration::ZERO),
        publisher: MemoryPublisher::default(),
        stack: "lab".into(),
        log: |_| {},
        invoked: false.into(),
    };
    let request = raw(
        &json!({"request_id": "r", "weight": 180, "width": 8, "height": 7.5, "sweetness": 0.5}),
    );
    for _ in &wrong {
        let reply = handler.handle(&request, soon()).await.unwrap();
        assert!(reply.get().contains(&sha256_hex(FRUIT)), "{reply}");
    }
}

#[test]
fn reads_back_what_was_written_bit_for_bit() {
    let file = fruit();
    let model = Model::from_bytes(&file.to_bytes()).unwrap();
    assert_eq!(model.file(), &file);
    assert_eq!(model.file().to_bytes(), file.to_bytes());
    assert_eq!(model.sha256(), sha256_hex(&file.to_bytes()));
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let bytes = fruit().to_bytes();
    for end in 0..bytes.len() - 2 {
        assert!(
            Model::from_bytes(&bytes[..end]).is_err(),
            "accepted {end} of {} bytes",
            bytes.len()
        );
    }
}

#[test]
fn the_label_is_the_most_probable_class_and_the_first_of_equals() {
    let mut file = fruit();
    file.weights = vec![vec![0.0; 4]; 3];
    let label = |intercepts: [f64; 3]| {
        let model = checked(ModelFile {
            intercepts: intercepts.to_vec(),
            ..file.clone()
        });
        model.predict(&[1.0; 4]).label().to_owned()
    };
    assert_eq!(label([0.2, 0.5, 0.3]), "pear");
    assert_eq!(label([0.4, 0.2, 0.4]), "apple");
}

#[test]
fn a_row_outside_the_training_range_is_answered_and_marked() {
    let model = checked(fruit());
    assert!(model.predict(&[20.0, 2.5, 14.0, 0.9]).in_distribution);
    let unseen = model.predict(&[19.9, 2.5, 14.0, 0.9]);
    assert!(!unseen.in_distribution);
    assert!(unseen.probabilities.iter().all(|p| p.is_finite()));
}

#[test]
fn a_prediction_is_written_under_the_target_and_in_the_order_of_the_classes() {
    let mut file = fruit();
    (file.target, file.classes) = ("kind".into(), vec!["z".into(), "a".into(), "m".into()]);
    file.weights = vec![vec![0.0; 4]; 3];
    file.intercepts = vec![2.0_f64.ln(), 0.0, 0.0];
    let model = checked(file);
    let text = serde_json::to_string(&model.predict(&[100.0, 5.0, 5.0, 0.5])).unwrap();
    assert_eq!(
        text,
        r#"{"kind":"z","probabilities":{"z":0.5,"a":0.25,"m":0.25},"in_distribution":true}"#
    );
}

proptest! {
    #[test]
    fn any_weight_reads_back_to_the_same_bits(bits in any::<u64>()) {
        let weight = f64::from_bits(bits);
        prop_assume!(weight.is_finite());
        let mut file = fruit();
        file.intercepts[0] = weight;
        let back = ModelFile::from_bytes(&file.to_bytes()).unwrap();
        prop_assert_eq!(back.intercepts[0].to_bits(), weight.to_bits());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = Model::from_bytes(&bytes);
    }

    #[test]
    fn probabilities_of_accepted_rows_are_finite_and_sum_to_one(
        weights in prop::collection::vec(-1e300..1e300f64, 12), row in prop::collection::vec(-1.0..=1.0f64, 4),
    ) {
        let mut file = fruit();
        file.weights = weights.chunks(4).map(<[f64]>::to_vec).collect();
        let p = file.probabilities(&row);
        prop_assert!(p.iter().all(|p| (0.0..=1.0).contains(p)), "{:?}", p);
        prop_assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn softmax_ignores_a_constant_added_to_all_logits(
        z in prop::collection::vec(-700.0..700.0f64, 2..9), c in -1000.0..1000.0f64,
    ) {
        use iris_fn::predict::softmax;
        let shifted = softmax(z.iter().map(|z| z + c).collect());
        for (a, b) in softmax(z).into_iter().zip(shifted) {
            prop_assert!((a - b).abs() < 1e-9);
        }
    }
}
