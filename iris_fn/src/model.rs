//! The model file: what training writes, S3 keeps and the function trusts only after checking it.

use std::collections::HashMap;
use std::fmt::Display;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::ModelError;

/// The one schema that this build writes and reads.
pub const SCHEMA: u64 = 2;
/// The one kind of model that this build computes.
pub const KIND: &str = "multinomial_logistic_regression";
/// Largest model file, in bytes: a container has 128 MB, and a device waits for its first answer.
pub const MAX_BYTES: usize = 1 << 20;
/// Most features of a model.
pub const MAX_FEATURES: usize = 256;
/// Fewest and most classes of a model.
pub const CLASSES: (usize, usize) = (2, 256);
/// Longest name of a feature, a class or the target, in bytes.
pub const MAX_NAME: usize = 64;
/// Names that neither a feature nor the target may have: fields of a request, of an answer, or of an event.
pub const RESERVED: [&str; 15] = [
    "request_id",
    "instances",
    "describe",
    "warmup",
    "warm",
    "payload",
    "client_id",
    "mqtt_client_id",
    "probabilities",
    "predictions",
    "in_distribution",
    "model",
    "cold_start",
    "handler_us",
    "error",
];
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
    /// What is predicted, such as a species: the label's name in an answer.
    pub target: String,
    /// The columns, in order; at most [`MAX_FEATURES`].
    pub features: Vec<Feature>,
    /// Class names, in the order of `weights` and `intercepts`.
    pub classes: Vec<String>,
    /// Class × feature, per unit of the feature.
    pub weights: Vec<Vec<f64>>,
    /// One per class.
    pub intercepts: Vec<f64>,
    /// How the model was trained.
    pub training: Training,
    /// Rows with the probabilities that training computed for them.
    pub golden: Vec<GoldenRow>,
}

/// A column of the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// The field of a request that holds it.
    pub name: String,
    /// Unit of the values, such as `cm`; may be empty.
    pub unit: String,
    /// Smallest value in the training data.
    pub min: f64,
    /// Largest value in the training data.
    pub max: f64,
    /// Smallest and largest value that is accepted. Wider than `min` to `max`: it excludes impossible values, not values
    /// beyond the training data.
    pub accept: [f64; 2],
}

/// How the model was trained. The default is a model without a history, for tests and benchmarks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// SHA-256 of the training data, hex.
    pub data_sha256: String,
    /// Rows in it.
    pub rows: usize,
    /// L2 penalty on the weights, α = 1/C of scikit-learn. Intercepts are not penalised.
    pub alpha: f64,
    /// Iterations of the optimiser that were enough for that.
    pub iterations: u64,
    /// Euclidean norm of the objective's gradient at the fitted parameters; 0 at the optimum.
    pub gradient_norm: f64,
    /// Mean −ln P(true class) over the training rows.
    pub log_loss: f64,
    /// Mean accuracy of 5-fold cross-validation.
    pub cv_accuracy: f64,
}

/// A row and the answer that every correct build must give.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenRow {
    /// In the order of the file's `features`.
    pub features: Vec<f64>,
    /// In the order of the file's `classes`.
    pub probabilities: Vec<f64>,
}

/// Refuse the model with this sentence, unless this holds.
macro_rules! require {
    ($holds:expr, $($sentence:tt)*) => {
        let holds: bool = $holds;
        if !holds {
            return Err(ModelError::Invalid(format!($($sentence)*)));
        }
    };
}

impl ModelFile {
    /// Read a model file of the schema and kind that this build knows, without trusting it yet.
    ///
    /// # Errors
    /// [`ModelError::TooLarge`], [`ModelError::Malformed`], [`ModelError::Schema`] or [`ModelError::Kind`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ModelError> {
        // The schema is read on its own first: another schema may have other fields.
        #[derive(Deserialize)]
        struct Head {
            schema: u64,
            kind: String,
        }
        if bytes.len() > MAX_BYTES {
            return Err(ModelError::TooLarge { bytes: bytes.len() });
        }
        let malformed = |e: serde_json::Error| ModelError::Malformed(e.to_string());
        let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
        if head.schema != SCHEMA {
            return Err(ModelError::Schema { found: head.schema });
        }
        if head.kind != KIND {
            return Err(ModelError::Kind { found: head.kind });
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

    fn check(&self) -> Result<(), ModelError> {
        self.check_names()?;
        self.check_shapes()?;
        for feature in &self.features {
            let (name, [low, high]) = (&feature.name, feature.accept);
            let (min, max) = (feature.min, feature.max);
            require!(
                min <= max,
                "feature {name}: min is {min} and max is {max}, which holds no value"
            );
            require!(
                low <= high,
                "feature {name}: accept is {low} to {high}, which holds no value"
            );
            require!(
                low <= min && max <= high,
                "feature {name}: training saw {min} to {max}, but only {low} to {high} is accepted"
            );
        }
        // |b_k| + Σ|w_kf| · max|accept_f|: no accepted row has a larger logit.
        let most = |feature: &Feature| feature.accept[0].abs().max(feature.accept[1].abs());
        let largest: Vec<f64> = self.features.iter().map(most).collect();
        for (k, class) in self.classes.iter().enumerate() {
            let products = self.weights[k]
                .iter()
                .zip(&largest)
                .map(|(w, x)| w.abs() * x);
            require!(
                products
                    .fold(self.intercepts[k].abs(), |z, product| z + product)
                    .is_finite(),
                "class {class}: an accepted row could overflow, its weights or the bounds are too large"
            );
        }
        self.check_golden()
    }

    fn check_names(&self) -> Result<(), ModelError> {
        let (features, classes) = (self.features.len(), self.classes.len());
        require!(
            (1..=MAX_FEATURES).contains(&features),
            "the model has {features} features, expected 1 to {MAX_FEATURES}"
        );
        let (min, max) = CLASSES;
        require!(
            (min..=max).contains(&classes),
            "the model has {classes} classes, expected {min} to {max}"
        );
        let features = self.features.iter().map(|f| ("feature", &f.name));
        let classes = self.classes.iter().map(|class| ("class", class));
        let target = [("target", &self.target)].into_iter();
        // Features and the target appear together in tables and on the live page: none of them has another's name.
        let mut seen = HashMap::new();
        for (what, name) in target.chain(features).chain(classes) {
            require!(!name.is_empty(), "a {what} has an empty name");
            require!(
                name.len() <= MAX_NAME,
                "the {what} name {name:?} is longer than {MAX_NAME} bytes"
            );
            require!(
                name.trim() == name && !name.contains(char::is_control),
                "the {what} name {name:?} begins or ends with a space, or holds a control character"
            );
            require!(
                what == "class" || !RESERVED.contains(&name.as_str()),
                "the {what} name {name:?} is reserved: requests and answers have a field of that name"
            );
            let twice = match seen.insert((what == "class", name), what) {
                None => continue,
                Some("target") => format!("a feature is called {name:?} as the target is"),
                Some("feature") => format!("two features are called {name:?}"),
                Some(_) => format!("two classes are called {name:?}"),
            };
            return Err(ModelError::Invalid(twice));
        }
        Ok(())
    }

    fn check_shapes(&self) -> Result<(), ModelError> {
        let (features, classes) = (self.features.len(), self.classes.len());
        let has = |who: &dyn Display, found: usize, what: &str, expected: usize| {
            require!(
                found == expected,
                "{who} has {found} {what}, expected {expected}"
            );
            Ok(())
        };
        has(&"the model", self.weights.len(), "rows of weights", classes)?;
        has(&"the model", self.intercepts.len(), "intercepts", classes)?;
        for (class, row) in self.classes.iter().zip(&self.weights) {
            has(&format!("class {class}"), row.len(), "weights", features)?;
        }
        for (n, row) in self.golden.iter().enumerate() {
            let golden = format!("golden row {n}");
            has(&golden, row.features.len(), "features", features)?;
            has(&golden, row.probabilities.len(), "probabilities", classes)?;
        }
        Ok(())
    }

    fn check_golden(&self) -> Result<(), ModelError> {
        require!(
            !self.golden.is_empty(),
            "the model has no golden rows to check it by"
        );
        for (n, row) in self.golden.iter().enumerate() {
            for (feature, x) in self.features.iter().zip(&row.features) {
                require!(
                    feature.accepts(*x),
                    "golden row {n}: {} is {x}, which the model itself does not accept",
                    feature.name
                );
            }
            let computed = self.probabilities(&row.features);
            for (k, class) in self.classes.iter().enumerate() {
                let (found, expected) = (computed[k], row.probabilities[k]);
                require!(
                    (found - expected).abs() <= GOLDEN_TOLERANCE,
                    "golden row {n}: P({class}) is {found}, the file says {expected}"
                );
            }
        }
        Ok(())
    }
}

impl Feature {
    /// Whether a value is accepted.
    pub fn accepts(&self, value: f64) -> bool {
        (self.accept[0]..=self.accept[1]).contains(&value)
    }

    /// Whether a value is within the range of the training data.
    pub fn has_seen(&self, value: f64) -> bool {
        (self.min..=self.max).contains(&value)
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

    /// Trust a file, whose bytes have this SHA-256, once its names, shapes and bounds are right, no accepted row can
    /// overflow, and this build reproduces every golden row to [`GOLDEN_TOLERANCE`].
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

    /// The model's key in the bucket: `models/<sha256>.json`, never overwritten.
    pub fn key(&self) -> String {
        format!("models/{}.json", self.sha256)
    }
}

/// SHA-256 of `bytes` as 64 lower-case hex digits.
///
/// ```
/// assert!(iris_fn::model::sha256_hex(b"abc").starts_with("ba7816bf"));
/// ```
pub fn sha256_hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
