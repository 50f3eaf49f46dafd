//! The model in use: read once per container, and replaced when the store has a newer one.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::error::{ModelError, details};
use crate::model::Model;

/// How long a call may wait for the store while it looks for a newer model.
pub const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The object could not be read.
    #[error("could not read {name}")]
    Read {
        /// Where it should be.
        name: String,
        /// The store's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
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

/// The model of one container, shared by its calls.
pub struct CurrentModel<S> {
    store: S,
    /// How long a model is used before the store is asked for a newer one.
    ttl: Duration,
    /// A std mutex, because it is never held across an await.
    held: Mutex<Option<Held>>,
}

struct Held {
    model: Arc<Model>,
    etag: Option<String>,
    /// When the store was last asked.
    checked: Instant,
}

impl<S: ModelStore> CurrentModel<S> {
    /// No model yet.
    pub fn new(store: S, ttl: Duration) -> Self {
        Self {
            store,
            ttl,
            held: Mutex::new(None),
        }
    }

    /// The model to answer with: the one in memory, or the store's where there is none yet.
    ///
    /// # Errors
    /// When there is no model and none can be read; the next call tries again.
    pub async fn get(&self) -> Result<Arc<Model>, StoreError> {
        if self.held().is_none() {
            self.refresh().await?;
        }
        let held = self.held();
        let held = held
            .as_ref()
            .expect("a store that is asked without a tag gives a model or an error");
        Ok(Arc::clone(&held.model))
    }

    /// Look for a newer model when the one in memory is older than its time. Whatever goes wrong, the last good model
    /// stays in use.
    pub async fn refresh_when_stale(&self) {
        match self.held().as_mut() {
            Some(held) if held.checked.elapsed() >= self.ttl => held.checked = Instant::now(),
            _ => return,
        }
        match tokio::time::timeout(REFRESH_TIMEOUT, self.refresh()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::error!(error = details(&e), "the last good model stays in use"),
            Err(_) => tracing::error!(
                error = "the store is slow",
                "the last good model stays in use"
            ),
        }
    }

    /// Replace the model in memory if the store has another one.
    async fn refresh(&self) -> Result<(), StoreError> {
        let known = self.held().as_ref().and_then(|held| held.etag.clone());
        if let Some(Loaded { model, etag }) = self.store.current(known.as_deref()).await? {
            *self.held() = Some(Held {
                model: Arc::new(model),
                etag,
                checked: Instant::now(),
            });
        }
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held
            .lock()
            .expect("nothing panics while it holds this lock")
    }

    /// Where models come from.
    pub fn store(&self) -> &S {
        &self.store
    }
}
