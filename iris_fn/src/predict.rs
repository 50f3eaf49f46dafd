//! Softmax (multinomial logistic) regression on one flower.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::model::{CLASSES, FEATURES, Model, ModelFile};

/// One flower's four measurements, each in centimetres, finite and within
/// [`crate::request::CENTIMETRES`] when it came through [`crate::request`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flower {
    /// Length of a sepal, cm.
    pub sepal_length: f64,
    /// Width of a sepal, cm.
    pub sepal_width: f64,
    /// Length of a petal, cm.
    pub petal_length: f64,
    /// Width of a petal, cm.
    pub petal_width: f64,
}

impl Flower {
    /// The measurements in the model's column order ([`crate::model::FEATURE_NAMES`]).
    pub fn features(&self) -> [f64; FEATURES] {
        [
            self.sepal_length,
            self.sepal_width,
            self.petal_length,
            self.petal_width,
        ]
    }
}

impl From<[f64; FEATURES]> for Flower {
    fn from([sepal_length, sepal_width, petal_length, petal_width]: [f64; FEATURES]) -> Self {
        Self {
            sepal_length,
            sepal_width,
            petal_length,
            petal_width,
        }
    }
}

/// What the model says of one flower. Serializes as the protocol's
/// `{"species", "probabilities": {class: p}, "in_distribution"}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction<'m> {
    classes: &'m [String; CLASSES],
    /// P(class), in the order of the model's classes. They sum to 1.
    pub probabilities: [f64; CLASSES],
    /// Whether every measurement lies within what the model saw in training.
    pub in_distribution: bool,
}

impl Prediction<'_> {
    /// The most probable class (the first of equals).
    pub fn species(&self) -> &str {
        let mut best = 0;
        for (class, p) in self.probabilities.iter().enumerate() {
            if *p > self.probabilities[best] {
                best = class;
            }
        }
        &self.classes[best]
    }
}

impl Serialize for Prediction<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("species", self.species())?;
        map.serialize_entry("probabilities", &ByClass(self))?;
        map.serialize_entry("in_distribution", &self.in_distribution)?;
        map.end()
    }
}

/// `{"setosa": 0.98, …}` in the model's own class order.
struct ByClass<'a>(&'a Prediction<'a>);

impl Serialize for ByClass<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.classes.iter().zip(self.0.probabilities))
    }
}

/// P(k) = exp(z_k − max z) / Σ_j exp(z_j − max z).
///
/// Subtracting the largest logit changes nothing in the result and keeps `exp` from overflowing
/// (Goodfellow, Bengio, Courville: Deep Learning, section 4.1).
///
/// ```
/// let p = iris_fn::predict::softmax([1000.0, 1000.0, 0.0]);
/// assert_eq!(p, [0.5, 0.5, 0.0]);
/// ```
pub fn softmax(logits: [f64; CLASSES]) -> [f64; CLASSES] {
    let max = logits.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let exp = logits.map(|z| (z - max).exp());
    let sum: f64 = exp.iter().sum();
    exp.map(|e| e / sum)
}

impl ModelFile {
    /// z_k = intercept_k + Σ_f weight_kf · x_f for each class k.
    pub fn logits(&self, features: &[f64; FEATURES]) -> [f64; CLASSES] {
        std::array::from_fn(|k| {
            self.weights[k]
                .iter()
                .zip(features)
                .fold(self.intercepts[k], |z, (w, x)| z + w * x)
        })
    }

    /// P(class | features), in the order of `classes`.
    pub fn probabilities(&self, features: &[f64; FEATURES]) -> [f64; CLASSES] {
        softmax(self.logits(features))
    }
}

impl Model {
    /// Classify one flower.
    ///
    /// `in_distribution` is true when each measurement lies within the training data's
    /// `min`–`max` of that feature. It warns; it never refuses.
    pub fn predict(&self, flower: &Flower) -> Prediction<'_> {
        let x = flower.features();
        let in_distribution = self
            .file()
            .features
            .iter()
            .zip(x)
            .all(|(feature, x)| (feature.min..=feature.max).contains(&x));
        Prediction {
            classes: &self.file().classes,
            probabilities: self.file().probabilities(&x),
            in_distribution,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::iris_model;
    use proptest::prelude::*;

    fn measurement() -> impl Strategy<Value = f64> {
        crate::request::CENTIMETRES.0..=crate::request::CENTIMETRES.1
    }

    proptest! {
        #[test]
        fn probabilities_are_finite_and_sum_to_one(x in prop::array::uniform4(measurement())) {
            let model = iris_model();
            let prediction = model.predict(&Flower::from(x));
            prop_assert!(prediction.probabilities.iter().all(|p| (0.0..=1.0).contains(p)));
            prop_assert!((prediction.probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }

        #[test]
        fn softmax_ignores_a_constant_added_to_all_logits(
            z in prop::array::uniform3(-700.0..700.0f64), c in -1000.0..1000.0f64,
        ) {
            for (a, b) in softmax(z).into_iter().zip(softmax(z.map(|z| z + c))) {
                prop_assert!((a - b).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn species_is_the_most_probable_class_and_the_first_of_equals() {
        let classes = ["a", "b", "c"].map(String::from);
        let species = |probabilities| {
            Prediction {
                classes: &classes,
                probabilities,
                in_distribution: true,
            }
            .species()
            .to_owned()
        };
        assert_eq!(species([0.2, 0.5, 0.3]), "b");
        assert_eq!(species([0.4, 0.2, 0.4]), "a");
    }

    #[test]
    fn a_flower_outside_the_training_range_is_answered_and_marked() {
        let model = iris_model();
        let seen = model.predict(&Flower::from([5.1, 3.5, 1.4, 0.2]));
        assert!(seen.in_distribution);
        let unseen = model.predict(&Flower::from([5.1, 3.5, 14.0, 0.2]));
        assert!(!unseen.in_distribution);
        assert!(unseen.probabilities.iter().all(|p| p.is_finite()));
    }

    #[test]
    fn serializes_in_the_order_of_the_classes() {
        let classes = ["virginica", "setosa", "other"].map(String::from);
        let prediction = Prediction {
            classes: &classes,
            probabilities: [0.5, 0.25, 0.25],
            in_distribution: true,
        };
        assert_eq!(
            serde_json::to_string(&prediction).unwrap(),
            r#"{"species":"virginica","probabilities":{"virginica":0.5,"setosa":0.25,"other":0.25},"in_distribution":true}"#
        );
    }
}
