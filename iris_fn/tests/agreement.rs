//! What the function computes, against two others: linfa, which fitted the weights, and scikit-learn,
//! which fitted the same data on its own (`reference.json`).

use iris_fn::model::{FEATURE_NAMES, KIND, SCHEMA};
use iris_fn::predict::softmax;
use iris_fn::{Feature, Flower, GoldenRow, Model, ModelFile, Training};
use linfa::prelude::*;
use linfa_logistic::{MultiFittedLogisticRegression, MultiLogisticRegression};
use ndarray::{Array1, Array2, ArrayView1};
use serde_json::Value;

const CSV: &str = include_str!("../../data/iris.csv");
const REFERENCE: &str = include_str!("reference.json");
const CLASSES: [&str; 3] = ["setosa", "versicolor", "virginica"];

fn iris() -> (Array2<f64>, Array1<usize>) {
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for line in CSV.lines().skip(1) {
        let (species, numbers) = line
            .split(',')
            .collect::<Vec<_>>()
            .split_last()
            .map(|(s, n)| (*s, n.to_vec()))
            .unwrap();
        x.extend(numbers.iter().map(|n| n.parse::<f64>().unwrap()));
        y.push(CLASSES.iter().position(|c| *c == species).unwrap());
    }
    (
        Array2::from_shape_vec((y.len(), 4), x).unwrap(),
        Array1::from(y),
    )
}

/// The fit of notebook 1: α = 1 is scikit-learn's C = 1.
fn fit(x: &Array2<f64>, y: &Array1<usize>) -> MultiFittedLogisticRegression<f64, usize> {
    MultiLogisticRegression::default()
        .alpha(1.0)
        .max_iterations(1_000)
        .gradient_tolerance(1e-8)
        .fit(&Dataset::new(x.clone(), y.clone()))
        .unwrap()
}

/// Our model with the fit's numbers.
fn model(fitted: &MultiFittedLogisticRegression<f64, usize>) -> Model {
    let feature = |name: &str| Feature {
        name: name.into(),
        unit: "cm".into(),
        min: 0.0,
        max: 10.0,
    };
    let mut file = ModelFile {
        schema: SCHEMA,
        kind: KIND.into(),
        features: FEATURE_NAMES.map(feature),
        classes: CLASSES.map(String::from),
        weights: std::array::from_fn(|k| std::array::from_fn(|f| fitted.params()[[f, k]])),
        intercepts: std::array::from_fn(|k| fitted.intercept()[k]),
        training: Training {
            rows: 150,
            alpha: 1.0,
            ..Training::default()
        },
        golden: vec![],
    };
    let features = [5.1, 3.5, 1.4, 0.2];
    file.golden.push(GoldenRow {
        features,
        probabilities: file.probabilities(&features),
    });
    Model::from_bytes(&file.to_bytes()).unwrap()
}

fn flower(row: ArrayView1<f64>) -> Flower {
    Flower::from(std::array::from_fn(|f| row[f]))
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_f64().unwrap())
        .collect()
}

#[test]
fn probabilities_are_linfas_own_to_the_twelfth_digit() {
    let (x, y) = iris();
    let fitted = fit(&x, &y);
    let (model, theirs) = (model(&fitted), fitted.predict_probabilities(&x));
    for (row, theirs) in x.rows().into_iter().zip(theirs.rows()) {
        let ours = model.predict(&flower(row)).probabilities;
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() < 1e-12, "{ours:?} is not {theirs}");
        }
    }
}

#[test]
fn the_fit_is_scikit_learns() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let (x, y) = iris();
    let fitted = fit(&x, &y);
    let model = model(&fitted);
    for k in 0..3 {
        for (f, expected) in numbers(&reference["weights_class_by_feature"][k])
            .iter()
            .enumerate()
        {
            assert!(
                (fitted.params()[[f, k]] - expected).abs() < 1e-3,
                "weight {k},{f}"
            );
        }
        let expected = reference["intercepts"][k].as_f64().unwrap();
        assert!(
            (fitted.intercept()[k] - expected).abs() < 1e-3,
            "intercept {k}"
        );
    }
    for probe in reference["probes"].as_array().unwrap() {
        let features: [f64; 4] = numbers(&probe["x"]).try_into().unwrap();
        let ours = model.predict(&Flower::from(features)).probabilities;
        for (ours, theirs) in ours.iter().zip(numbers(&probe["p"])) {
            assert!(
                (ours - theirs).abs() < 1e-4,
                "{features:?}: {ours} is not {theirs}"
            );
        }
    }
    let mut confusion = [[0u64; 3]; 3];
    for (truth, row) in y.iter().zip(x.rows()) {
        let species = model.predict(&flower(row)).species().to_owned();
        confusion[*truth][CLASSES.iter().position(|c| *c == species).unwrap()] += 1;
    }
    assert_eq!(serde_json::json!(confusion), reference["confusion"]);
}

#[test]
fn softmax_of_the_reference_logits_gives_the_reference_probabilities() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    for probe in reference["probes"].as_array().unwrap() {
        let x = numbers(&probe["x"]);
        let logits = std::array::from_fn(|k| {
            let w = numbers(&reference["weights_class_by_feature"][k]);
            reference["intercepts"][k].as_f64().unwrap()
                + w.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>()
        });
        for (ours, theirs) in softmax(logits).iter().zip(numbers(&probe["p"])) {
            assert!((ours - theirs).abs() < 1e-12, "{ours} is not {theirs}");
        }
    }
}
