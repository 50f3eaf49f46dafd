//! The model file: what training writes, S3 keeps and the function trusts only after checking it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::ModelError;

/// Measurements of a flower.
pub const FEATURES: usize = 4;
/// Species the model tells apart.
pub const CLASSES: usize = 3;
/// The one schema that this build writes and reads.
pub const SCHEMA: u64 = 1;
/// The one kind of model that this build computes.
pub const KIND: &str = "multinomial_logistic_regression";
/// Column order of the weights, of `features` and of a golden row.
pub const FEATURE_NAMES: [&str; FEATURES] =
    ["sepal_length", "sepal_width", "petal_length", "petal_width"];
/// The object that says which model is in use: a byte-for-byte copy of one [`Model::key`].
pub const CURRENT_KEY: &str = "models/current.json";
/// Largest difference between a golden probability and the one computed here. `exp` may differ by a
/// few units in the last place between platforms; a wrong weight differs by far more.
pub const GOLDEN_TOLERANCE: f64 = 1e-9;

/// The file's content, as it is written. Floats are written in their shortest form that reads back
/// to the same bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// Format of this file, [`SCHEMA`].
    pub schema: u64,
    /// Family of model, [`KIND`].
    pub kind: String,
    /// The columns, in order.
    pub features: [Feature; FEATURES],
    /// Class names, in the order of `weights` and `intercepts`.
    pub classes: [String; CLASSES],
    /// Class × feature, per centimetre.
    pub weights: [[f64; FEATURES]; CLASSES],
    /// One per class.
    pub intercepts: [f64; CLASSES],
    /// How the model came to be.
    pub training: Training,
    /// Flowers with the probabilities that training computed for them.
    pub golden: Vec<GoldenRow>,
}

/// A column of the data: its name, its unit and the range that training saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// One of [`FEATURE_NAMES`].
    pub name: String,
    /// Unit of the values, `cm`.
    pub unit: String,
    /// Smallest value in the training data.
    pub min: f64,
    /// Largest value in the training data.
    pub max: f64,
}

/// How the model was trained. The default is a model without a history, for tests and benchmarks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// SHA-256 of the CSV file, hex.
    pub data_sha256: String,
    /// Rows in it.
    pub rows: usize,
    /// L2 penalty on the weights, α = 1/C of scikit-learn. Intercepts are not penalised.
    pub alpha: f64,
    /// L-BFGS iterations that were enough for that: the smallest limit that notebook 1 tried.
    pub iterations: u64,
    /// Euclidean norm of the objective's gradient at the fitted parameters; 0 at the optimum.
    pub gradient_norm: f64,
    /// Mean −ln P(true class) over the training rows.
    pub log_loss: f64,
    /// Mean accuracy of 5-fold cross-validation.
    pub cv_accuracy: f64,
}

/// A flower and the answer that every correct build must give.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenRow {
    /// In the order of [`FEATURE_NAMES`], cm.
    pub features: [f64; FEATURES],
    /// In the order of the file's `classes`.
    pub probabilities: [f64; CLASSES],
}

impl ModelFile {
    /// Read a model file of the schema and kind that this build knows, without trusting it yet.
    ///
    /// # Errors
    /// [`ModelError::Malformed`], [`ModelError::Schema`] or [`ModelError::Kind`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ModelError> {
        // The schema is read on its own first: another schema may have other fields.
        #[derive(Deserialize)]
        struct Head {
            schema: u64,
            kind: String,
        }
        let malformed = |e: serde_json::Error| ModelError::Malformed(e.to_string());
        let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
        if head.schema != SCHEMA {
            return Err(ModelError::Schema {
                found: head.schema,
                expected: SCHEMA,
            });
        }
        if head.kind != KIND {
            return Err(ModelError::Kind {
                found: head.kind,
                expected: KIND,
            });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// The file's bytes: pretty-printed JSON with a final newline.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .expect("strings, numbers and arrays always serialize as JSON");
        bytes.push(b'\n');
        bytes
    }
}

/// A model that has passed every check. There is no other way to get one, so there is no way to
/// serve from an unchecked file.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    file: ModelFile,
    sha256: String,
}

impl Model {
    /// Read a model file and check it: [`ModelFile::from_bytes`], then [`Model::check`].
    ///
    /// # Errors
    /// A [`ModelError`] that names the first thing that is wrong. Never panics, whatever the bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ModelError> {
        Self::check(ModelFile::from_bytes(bytes)?, sha256_hex(bytes))
    }

    /// Trust a file, whose bytes have this SHA-256, once its column order, class names and ranges are
    /// right and this build reproduces every golden row to [`GOLDEN_TOLERANCE`].
    ///
    /// # Errors
    /// A [`ModelError`] that names the first thing that is wrong.
    pub fn check(file: ModelFile, sha256: String) -> Result<Self, ModelError> {
        file.check()?;
        Ok(Self { file, sha256 })
    }

    /// What the file says.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// The model's name: SHA-256 of the file's bytes, 64 hex digits.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Where the model lies in the bucket: `models/<sha256>.json`, never overwritten.
    pub fn key(&self) -> String {
        format!("models/{}.json", self.sha256)
    }
}

impl ModelFile {
    fn check(&self) -> Result<(), ModelError> {
        for (index, (feature, expected)) in self.features.iter().zip(FEATURE_NAMES).enumerate() {
            if feature.name != expected {
                return Err(ModelError::Feature {
                    index,
                    found: feature.name.clone(),
                    expected,
                });
            }
            if feature.min > feature.max {
                let Feature { name, min, max, .. } = feature.clone();
                return Err(ModelError::Range { name, min, max });
            }
        }
        let [a, b, c] = &self.classes;
        if a == b || b == c || a == c || self.classes.iter().any(String::is_empty) {
            return Err(ModelError::Classes(self.classes.to_vec()));
        }
        if self.golden.is_empty() {
            return Err(ModelError::NoGolden);
        }
        for (row, golden) in self.golden.iter().enumerate() {
            let found = self.probabilities(&golden.features);
            for (k, (found, expected)) in found.into_iter().zip(golden.probabilities).enumerate() {
                // Finite weights can still overflow into NaN, and a NaN is close to nothing.
                if found.is_nan() || (found - expected).abs() > GOLDEN_TOLERANCE {
                    return Err(ModelError::Golden {
                        row,
                        class: self.classes[k].clone(),
                        expected,
                        found,
                    });
                }
            }
        }
        Ok(())
    }
}

/// SHA-256 of `bytes` as 64 lower-case hex digits.
///
/// ```
/// assert!(iris_fn::model::sha256_hex(b"abc").starts_with("ba7816bf"));
/// ```
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A small valid file: scikit-learn's weights on the Iris data, rounded.
    pub(crate) fn iris_file() -> ModelFile {
        let feature = |(name, min, max): (&str, f64, f64)| Feature {
            name: name.into(),
            unit: "cm".into(),
            min,
            max,
        };
        let mut file = ModelFile {
            schema: SCHEMA,
            kind: KIND.into(),
            features: [
                ("sepal_length", 4.3, 7.9),
                ("sepal_width", 2.0, 4.4),
                ("petal_length", 1.0, 6.9),
                ("petal_width", 0.1, 2.5),
            ]
            .map(feature),
            classes: ["setosa", "versicolor", "virginica"].map(String::from),
            weights: [
                [-0.42, 0.97, -2.52, -1.08],
                [0.53, -0.32, -0.21, -0.94],
                [-0.11, -0.65, 2.72, 2.02],
            ],
            intercepts: [9.85, 2.24, -12.09],
            training: Training {
                data_sha256: "0".repeat(64),
                rows: 150,
                alpha: 1.0,
                iterations: 50,
                gradient_norm: 1e-9,
                log_loss: 0.12,
                cv_accuracy: 0.97,
            },
            golden: vec![],
        };
        let features = [5.1, 3.5, 1.4, 0.2];
        file.golden.push(GoldenRow {
            features,
            probabilities: file.probabilities(&features),
        });
        file
    }

    pub(crate) fn iris_model() -> Model {
        Model::from_bytes(&iris_file().to_bytes()).expect("the test's own file is valid")
    }

    fn refused(change: impl FnOnce(&mut ModelFile)) -> ModelError {
        let mut file = iris_file();
        change(&mut file);
        Model::from_bytes(&file.to_bytes()).expect_err("the file should be refused")
    }

    #[test]
    fn reads_back_what_was_written_bit_for_bit() {
        let file = iris_file();
        let model = Model::from_bytes(&file.to_bytes()).unwrap();
        assert_eq!(model.file(), &file);
        assert_eq!(model.file().to_bytes(), file.to_bytes());
        assert_eq!(model.sha256(), sha256_hex(&file.to_bytes()));
    }

    #[test]
    fn names_what_is_wrong() {
        assert_eq!(
            refused(|f| f.schema = 2),
            ModelError::Schema {
                found: 2,
                expected: 1
            }
        );
        assert!(
            matches!(refused(|f| f.kind = "tree".into()), ModelError::Kind { found, .. } if found == "tree")
        );
        assert!(matches!(
            refused(|f| f.features.swap(0, 1)),
            ModelError::Feature { index: 0, .. }
        ));
        assert!(
            matches!(refused(|f| f.features[2].min = 9.0), ModelError::Range { name, .. } if name == "petal_length")
        );
        assert!(matches!(
            refused(|f| f.classes[1] = "setosa".into()),
            ModelError::Classes(_)
        ));
        assert_eq!(refused(|f| f.golden.clear()), ModelError::NoGolden);
    }

    #[test]
    fn a_changed_weight_is_caught_by_the_golden_rows() {
        let error = refused(|f| f.weights[0][0] += 1e-6);
        assert!(
            matches!(error, ModelError::Golden { row: 0, .. }),
            "{error}"
        );
    }

    #[test]
    fn weights_that_overflow_are_refused() {
        assert!(matches!(
            refused(|f| f.weights = [[1e308; 4]; 3]),
            ModelError::Golden { .. }
        ));
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused() {
        let bytes = iris_file().to_bytes();
        for end in 0..bytes.len() - 2 {
            assert!(
                Model::from_bytes(&bytes[..end]).is_err(),
                "accepted {end} of {} bytes",
                bytes.len()
            );
        }
    }

    proptest! {
        #[test]
        fn any_weight_reads_back_to_the_same_bits(bits in any::<u64>()) {
            let weight = f64::from_bits(bits);
            prop_assume!(weight.is_finite());
            let mut file = iris_file();
            file.intercepts[0] = weight;
            let back: ModelFile = serde_json::from_slice(&file.to_bytes()).unwrap();
            prop_assert_eq!(back.intercepts[0].to_bits(), weight.to_bits());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = Model::from_bytes(&bytes);
        }
    }
}
