//! Where the model comes from.

use std::error::Error;
use std::time::Instant;

use aws_sdk_s3::Client;

use crate::error::ModelError;
use crate::model::{CURRENT_KEY, Model, ModelFile, sha256_hex};

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The object could not be read.
    #[error("could not read s3://{bucket}/{key}")]
    Read {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
        /// The SDK's own error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The object was read and is not a model to trust.
    #[error("{name} is refused")]
    Refused {
        /// Where the bytes came from.
        name: String,
        /// What is wrong with them.
        source: ModelError,
    },
}

/// A model as it was read, with the tag by which the store knows that version of it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The checked model.
    pub model: Model,
    /// The object's ETag.
    pub etag: Option<String>,
}

/// Something that holds the current model.
pub trait ModelStore: Send + Sync + 'static {
    /// Read and check the current model; `None` when it still is the one tagged `known`.
    fn current(
        &self,
        known: Option<&str>,
    ) -> impl Future<Output = Result<Option<Loaded>, StoreError>> + Send;
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
    async fn current(&self, known: Option<&str>) -> Result<Option<Loaded>, StoreError> {
        let bucket = self.bucket.as_str();
        let read = |source| StoreError::Read {
            bucket: bucket.to_owned(),
            key: CURRENT_KEY.to_owned(),
            source,
        };
        let started = Instant::now();
        let get = self.client.get_object().bucket(bucket).key(CURRENT_KEY);
        let object = match get.set_if_none_match(known.map(str::to_owned)).send().await {
            // Not an error to us: 304, the object has not changed.
            Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 304) => {
                return Ok(None);
            }
            object => object.map_err(|e| read(e.into()))?,
        };
        let etag = object.e_tag().map(str::to_owned);
        let bytes = object
            .body
            .collect()
            .await
            .map_err(|e| read(e.into()))?
            .into_bytes();
        let s3 = started.elapsed();

        let started = Instant::now();
        let sha256 = sha256_hex(&bytes);
        let refused = |source| StoreError::Refused {
            name: format!("s3://{bucket}/{CURRENT_KEY} (sha256 {sha256})"),
            source,
        };
        let file = ModelFile::from_bytes(&bytes).map_err(refused)?;
        let parse = started.elapsed();
        let model = Model::check(file, sha256.clone()).map_err(refused)?;
        let golden = started.elapsed() - parse;
        tracing::info!(
            model = sha256,
            s3_us = s3.as_micros() as u64,
            parse_us = parse.as_micros() as u64,
            golden_us = golden.as_micros() as u64,
            "model loaded"
        );
        Ok(Some(Loaded { model, etag }))
    }
}
