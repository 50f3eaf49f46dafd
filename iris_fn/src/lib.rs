//! A linear classifier that runs in AWS Lambda, and the model file that training writes for it. Iris is its example and
//! its name; what a model predicts, and from what, is all in the file.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`model`] | the model file, its checks and its SHA-256 name |
//! | [`predict`] | softmax regression on one row |
//! | [`request`] | bytes in, rows that the model accepts or a typed refusal out |
//! | [`event`], [`handler`], [`reply`] | a Lambda event in, an answer out and published |
//! | [`current`] | the model in use, and its refresh |
//! | [`metrics`] | the log line of a call, which is also its metrics |
//! | [`error`] | every way a model or a request can be wrong |
//! | `aws` | S3, AWS IoT, credentials: the only module that needs the SDKs (feature `aws`, on by default) |
//!
//! The notebooks load the crate without `aws`: training and serving share one model type and one arithmetic, so they
//! cannot diverge.

#[cfg(feature = "aws")]
pub mod aws;
pub mod current;
pub mod error;
pub mod event;
pub mod handler;
pub mod metrics;
pub mod model;
pub mod predict;
pub mod reply;
pub mod request;

pub use error::{ModelError, RequestError};
pub use model::{Feature, GoldenRow, Model, ModelFile, Training};
pub use predict::Prediction;
pub use reply::Description;
pub use request::Request;
