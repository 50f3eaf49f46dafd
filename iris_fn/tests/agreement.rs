//! What the function computes, against two others: linfa, which fitted the weights, and scikit-learn,
//! which fitted the same data on its own (`reference.json`).

use iris_fn::model::{KIND, SCHEMA};
use iris_fn::predict::softmax;
use iris_fn::{Feature, GoldenRow, Model, ModelFile, Training};
use linfa::prelude::*;
use linfa_logistic::{MultiFittedLogisticRegression, MultiLogisticRegression};
use ndarray::{Array1, Array2};
use serde_json::Value;

const CSV: &str = include_str!("../../data/iris.csv");
const REFERENCE: &str = include_str!("reference.json");

/// The data's four features, its target and its classes; the file names them.
struct Data {
    features: Vec<Feature>,
    target: String,
    classes: Vec<String>,
    x: Array2<f64>,
    y: Array1<usize>,
}

fn data() -> Data {
    let header: Vec<&str> = CSV.lines().next().unwrap().split(',').collect();
    let (target, names) = header.split_last().unwrap();
    let feature = |name: &&str| Feature {
        name: (*name).into(),
        unit: "cm".into(),
        min: 0.0,
        max: 10.0,
        accept: [0.0, 100.0],
    };
    let features: Vec<Feature> = names.iter().map(feature).collect();
    let (mut x, mut y, mut classes) = (Vec::new(), Vec::new(), Vec::<String>::new());
    for line in CSV.lines().skip(1) {
        let (values, label) = line.rsplit_once(',').unwrap();
        if !classes.iter().any(|class| class == label) {
            classes.push(label.to_owned());
        }
        y.extend(classes.iter().position(|class| class == label));
        x.extend(values.split(',').map(|x| x.parse::<f64>().unwrap()));
    }
    let x = Array2::from_shape_vec((y.len(), features.len()), x).unwrap();
    Data {
        features,
        target: (*target).into(),
        classes,
        x,
        y: y.into(),
    }
}

type Fitted = MultiFittedLogisticRegression<f64, usize>;

/// The fit of notebook 1: α = 1 is scikit-learn's C = 1.
fn fit(data: &Data) -> Fitted {
    MultiLogisticRegression::default()
        .alpha(1.0)
        .max_iterations(1_000)
        .gradient_tolerance(1e-8)
        .fit(&Dataset::new(data.x.clone(), data.y.clone()))
        .unwrap()
}

/// Our model with the fit's numbers.
fn model(data: &Data, fitted: &Fitted) -> Model {
    let mut file = ModelFile {
        schema: SCHEMA,
        kind: KIND.into(),
        target: data.target.clone(),
        features: data.features.clone(),
        classes: data.classes.clone(),
        weights: fitted
            .params()
            .columns()
            .into_iter()
            .map(|class| class.to_vec())
            .collect(),
        intercepts: fitted.intercept().to_vec(),
        training: Training {
            rows: data.x.nrows(),
            alpha: 1.0,
            ..Training::default()
        },
        golden: vec![],
    };
    let features = data.x.row(0).to_vec();
    let probabilities = file.probabilities(&features);
    file.golden.push(GoldenRow {
        features,
        probabilities,
    });
    Model::from_bytes(&file.to_bytes()).unwrap()
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
    let data = data();
    let fitted = fit(&data);
    let (model, theirs) = (model(&data, &fitted), fitted.predict_probabilities(&data.x));
    for (row, theirs) in data.x.rows().into_iter().zip(theirs.rows()) {
        let ours = model.predict(&row.to_vec()).probabilities;
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() < 1e-12, "{ours:?} is not {theirs}");
        }
    }
}

#[test]
fn the_fit_is_scikit_learns() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let data = data();
    let fitted = fit(&data);
    let model = model(&data, &fitted);
    for k in 0..data.classes.len() {
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
        let x = numbers(&probe["x"]);
        let ours = model.predict(&x).probabilities;
        for (ours, theirs) in ours.iter().zip(numbers(&probe["p"])) {
            assert!(
                (ours - theirs).abs() < 1e-4,
                "{x:?}: {ours} is not {theirs}"
            );
        }
    }
    let mut confusion = vec![vec![0u64; data.classes.len()]; data.classes.len()];
    for (truth, row) in data.y.iter().zip(data.x.rows()) {
        let label = model.predict(&row.to_vec()).label().to_owned();
        confusion[*truth][data
            .classes
            .iter()
            .position(|class| *class == label)
            .unwrap()] += 1;
    }
    assert_eq!(serde_json::json!(confusion), reference["confusion"]);
}

#[test]
fn softmax_of_the_reference_logits_gives_the_reference_probabilities() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    for probe in reference["probes"].as_array().unwrap() {
        let x = numbers(&probe["x"]);
        let weights = reference["weights_class_by_feature"].as_array().unwrap();
        let logit = |(weights, intercept): (&Value, f64)| {
            intercept
                + numbers(weights)
                    .iter()
                    .zip(&x)
                    .map(|(w, x)| w * x)
                    .sum::<f64>()
        };
        let logits = weights
            .iter()
            .zip(numbers(&reference["intercepts"]))
            .map(logit)
            .collect();
        for (ours, theirs) in softmax(logits).iter().zip(numbers(&probe["p"])) {
            assert!((ours - theirs).abs() < 1e-12, "{ours} is not {theirs}");
        }
    }
}
