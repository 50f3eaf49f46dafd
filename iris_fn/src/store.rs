//! Where the model comes from.

use aws_sdk_s3::Client;
use aws_sdk_s3::error::DisplayErrorContext;
use thiserror::Error;

use crate::error::ModelError;
use crate::model::{CURRENT_KEY, Model};

/// Why there is no model.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The object could not be read.
    #[error("could not read s3://{bucket}/{key}: {message}")]
    Read {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
        /// The SDK's error with its causes: code, message and request id.
        message: String,
    },
    /// The object was read and is not a model to trust.
    #[error("{name} is refused: {source}")]
    Refused {
        /// Where the bytes came from.
        name: String,
        /// What is wrong with them.
        source: ModelError,
    },
}

/// Something that holds the current model.
pub trait ModelStore: Send + Sync {
    /// Read and check the current model.
    fn current(&self) -> impl Future<Output = Result<Model, StoreError>> + Send;
}

/// The stack's bucket.
pub struct S3Store {
    client: Client,
    bucket: String,
}

impl S3Store {
    /// The current model of `bucket`.
    pub fn new(client: Client, bucket: String) -> Self {
        Self { client, bucket }
    }
}

impl ModelStore for S3Store {
    async fn current(&self) -> Result<Model, StoreError> {
        let bucket = self.bucket.as_str();
        let read = |e: &dyn std::error::Error| StoreError::Read {
            bucket: bucket.to_owned(),
            key: CURRENT_KEY.to_owned(),
            message: DisplayErrorContext(e).to_string(),
        };
        let object = self
            .client
            .get_object()
            .bucket(bucket)
            .key(CURRENT_KEY)
            .send()
            .await
            .map_err(|e| read(&e))?;
        let bytes = object
            .body
            .collect()
            .await
            .map_err(|e| read(&e))?
            .into_bytes();
        Model::from_bytes(&bytes).map_err(|source| StoreError::Refused {
            name: format!("s3://{bucket}/{CURRENT_KEY}"),
            source,
        })
    }
}
