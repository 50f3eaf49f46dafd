//! Softmax (multinomial logistic) regression on one row.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::model::{Model, ModelFile};

/// The prediction for one row. Serializes as the protocol's
/// `{<target>: class, "probabilities": {class: p}, "in_distribution"}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction<'m> {
    model: &'m ModelFile,
    /// P(class), in the order of the model's classes. They sum to 1.
    pub probabilities: Vec<f64>,
    /// Whether every value is within the range of the training data.
    pub in_distribution: bool,
}

impl<'m> Prediction<'m> {
    /// The most probable class (the first of equals).
    pub fn label(&self) -> &'m str {
        let p = &self.probabilities;
        let best = (0..p.len()).rev().max_by(|a, b| p[*a].total_cmp(&p[*b]));
        &self.model.classes[best.unwrap_or(0)]
    }
}

impl Serialize for Prediction<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry(&self.model.target, self.label())?;
        map.serialize_entry("probabilities", &ByClass(self))?;
        map.serialize_entry("in_distribution", &self.in_distribution)?;
        map.end()
    }
}

/// `{"apple": 0.98, …}` in the model's own class order.
struct ByClass<'a>(&'a Prediction<'a>);

impl Serialize for ByClass<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.model.classes.iter().zip(&self.0.probabilities))
    }
}

/// P(k) = exp(z_k − max z) / Σ_j exp(z_j − max z).
///
/// Subtracting the largest logit changes nothing in the result and keeps `exp` from overflowing
/// (Goodfellow, Bengio, Courville: Deep Learning, section 4.1).
///
/// ```
/// let p = iris_fn::predict::softmax(vec![1000.0, 1000.0, 0.0]);
/// assert_eq!(p, [0.5, 0.5, 0.0]);
/// ```
pub fn softmax(logits: Vec<f64>) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.into_iter().map(|z| (z - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}

impl ModelFile {
    /// z_k = intercept_k + Σ_f weight_kf · x_f for each class k.
    pub fn logits(&self, row: &[f64]) -> Vec<f64> {
        let logit = |(weights, intercept): (&Vec<f64>, &f64)| {
            let products = weights.iter().zip(row).map(|(w, x)| w * x);
            products.fold(*intercept, |z, product| z + product)
        };
        let classes = self.weights.iter().zip(&self.intercepts);
        classes.map(logit).collect()
    }

    /// P(class | row), in the order of `classes`.
    pub fn probabilities(&self, row: &[f64]) -> Vec<f64> {
        softmax(self.logits(row))
    }
}

impl Model {
    /// Classify one row, whose values are in the order of the file's features.
    ///
    /// `in_distribution` is true when each value lies within the training data's
    /// `min`–`max` of that feature. It warns; it never refuses.
    pub fn predict(&self, row: &[f64]) -> Prediction<'_> {
        let mut values = self.file().features.iter().zip(row);
        Prediction {
            model: self.file(),
            probabilities: self.file().probabilities(row),
            in_distribution: values.all(|(feature, x)| feature.has_seen(*x)),
        }
    }
}
