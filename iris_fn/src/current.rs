//! The model in use: read once per container, and replaced when the store has a newer one.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::error::{BoxError, ModelError};
use crate::model::Model;

/// How long a call may wait for the store when it refreshes the model: a connection that died while the container was
/// frozen, the SDK's backoff, and a second attempt fit.
pub const REFRESH_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the published model is not in use.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The object could not be read.
    #[error("could not read {name}")]
    Read {
        /// Its location.
        name: String,
        /// The store's own error.
        source: BoxError,
    },
    /// The object did not arrive within the time that the call has for it.
    #[error("the model's store did not answer in the time of this call")]
    Late,
    /// The object was read and failed the checks of a model.
    #[error("{name} is refused")]
    Refused {
        /// Its location.
        name: String,
        /// The object's ETag.
        etag: Option<String>,
        /// What is wrong with them.
        source: ModelError,
    },
}

/// A model as it was read, with the ETag of that version of the object.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The checked model.
    pub model: Model,
    /// The object's ETag.
    pub etag: Option<String>,
}

/// Something that holds the current model.
pub trait ModelStore: Send + Sync + 'static {
    /// Read and check the current model; `None` when the object still is the one tagged `known`.
    fn current(
        &self,
        known: Option<&str>,
    ) -> impl Future<Output = Result<Option<Loaded>, StoreError>> + Send;
}

/// The model of one container, shared by its calls.
pub struct CurrentModel<S> {
    store: S,
    /// How long a model is used before a refresh.
    ttl: Duration,
    /// A std mutex, because it is never held across an await.
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    model: Option<Arc<Model>>,
    /// ETag of the object that was read last, also when it was refused: it is not downloaded again.
    etag: Option<String>,
    /// Why the published model is not in use, as of the last refresh.
    trouble: Option<Arc<StoreError>>,
    /// Time of the last refresh.
    checked: Option<Instant>,
}

impl<S: ModelStore> CurrentModel<S> {
    /// No model yet.
    pub fn new(store: S, ttl: Duration) -> Self {
        Self {
            store,
            ttl,
            held: Mutex::default(),
        }
    }

    /// The model to answer with: the one in memory, or the store's where there is none yet. `None` when none can be
    /// read by `end`: [`CurrentModel::trouble`] says why, and the next call tries again.
    pub async fn get(&self, end: Instant) -> Option<Arc<Model>> {
        if self.held().model.is_none() {
            self.refresh(end).await;
        }
        self.held().model.clone()
    }

    /// Refresh the model when the one in memory is older than its TTL, until `end` at the latest. Whatever fails, the
    /// last good model stays in use.
    pub async fn refresh_when_stale(&self, end: Instant) {
        let now = Instant::now();
        match &mut *self.held() {
            Held {
                model: Some(_),
                checked: Some(checked),
                ..
            } if now - *checked >= self.ttl => *checked = now,
            _ => return,
        }
        self.refresh(end.min(now + REFRESH_TIMEOUT)).await;
    }

    /// Replace the model in memory if the store has another one.
    async fn refresh(&self, end: Instant) {
        let known = self.held().etag.clone();
        let read = timeout_at(end, self.store.current(known.as_deref())).await;
        let mut held = self.held();
        let refused = matches!(held.trouble.as_deref(), Some(StoreError::Refused { .. }));
        held.checked = Some(Instant::now());
        match read.unwrap_or(Err(StoreError::Late)) {
            Ok(Some(Loaded { model, etag })) => {
                held.model = Some(Arc::new(model));
                held.etag = etag;
                held.trouble = None;
            }
            Err(StoreError::Refused { name, etag, source }) => {
                held.etag.clone_from(&etag);
                held.trouble = Some(Arc::new(StoreError::Refused { name, etag, source }));
            }
            // As far as anybody knows, the object is the one that was refused.
            _ if refused => {}
            other => held.trouble = other.err().map(Arc::new),
        }
    }

    /// Why the published model is not in use, as of the last refresh.
    pub fn trouble(&self) -> Option<Arc<StoreError>> {
        self.held().trouble.clone()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held
            .lock()
            .expect("nothing panics while it holds this lock")
    }

    /// Where models come from.
    pub fn store(&self) -> &S {
        &self.store
    }
}
