//! The Iris classifier that runs in AWS Lambda, and the model that the notebooks train for it.
//!
//! | module | what it holds | knows AWS |
//! | --- | --- | --- |
//! | [`model`] | the model file, its checks and its SHA-256 name | no |
//! | [`predict`] | softmax regression on one flower | no |
//! | [`request`] | bytes in, validated flowers or a typed refusal out | no |
//! | [`error`] | every way a model or a request can be wrong | no |
//! | `handler` | a Lambda event in, a reply out | by its event's shape only |
//! | `metrics` | the log line of a call, which is also its metrics | by that line's format only |
//! | `store`, `publish` | the model from S3, the answer to MQTT | yes |
//! | `aws` | region, credentials, whom to trust | yes |
//!
//! The last four rows are behind the `lambda` feature (on by default). The notebooks load the crate
//! without it: training and serving share one model type and one arithmetic, so they cannot drift.

pub mod error;
pub mod model;
pub mod predict;
pub mod request;

#[cfg(feature = "lambda")]
pub mod aws;
#[cfg(feature = "lambda")]
pub mod handler;
#[cfg(feature = "lambda")]
pub mod metrics;
#[cfg(feature = "lambda")]
pub mod publish;
#[cfg(feature = "lambda")]
pub mod store;

pub use error::{ModelError, RequestError};
pub use model::{Feature, GoldenRow, Model, ModelFile, Training};
pub use predict::{Flower, Prediction};
pub use request::Request;
