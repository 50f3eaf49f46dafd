//! A store, a publisher and a log that need no cloud, and a model: for the tests of the function and its fuzz targets.
#![allow(
    dead_code,
    missing_docs,
    reason = "each of those who include it uses a part"
)]

use std::cell::RefCell;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use iris_fn::current::{CurrentModel, Loaded, ModelStore, StoreError};
use iris_fn::error::BoxError;
use iris_fn::handler::{Handler, Publisher};
use iris_fn::metrics::Line;
use iris_fn::{Model, ModelError, ModelFile};
use serde_json::Value;
use serde_json::value::RawValue;

pub const FRUIT: &[u8] = include_bytes!("../../fuzz/corpus/model/fruit.json");

pub fn fruit() -> ModelFile {
    ModelFile::from_bytes(FRUIT).expect("the fixture is a model file")
}

/// A file's model, with its golden rows computed anew.
pub fn checked(mut file: ModelFile) -> Model {
    for n in 0..file.golden.len() {
        file.golden[n].probabilities = file.probabilities(&file.golden[n].features);
    }
    Model::from_bytes(&file.to_bytes()).expect("the file is right but for its golden rows")
}

/// Fails until it is given a model, takes its time, and notes by which tag it is asked.
#[derive(Default)]
pub struct MemoryStore {
    pub model: Mutex<Option<Model>>,
    /// The tag of an object that is refused.
    pub refused: Mutex<Option<String>>,
    pub delay: Mutex<Duration>,
    pub asked: Mutex<Vec<Option<String>>>,
}

impl ModelStore for MemoryStore {
    async fn current(&self, known: Option<&str>) -> Result<Option<Loaded>, StoreError> {
        self.asked.lock().unwrap().push(known.map(str::to_owned));
        let delay = *self.delay.lock().unwrap();
        if delay > Duration::ZERO {
            tokio::time::sleep(delay).await;
        }
        if let Some(etag) = self.refused.lock().unwrap().clone() {
            if known == Some(etag.as_str()) {
                return Ok(None);
            }
            return Err(StoreError::Refused {
                name: "s3://b/k".into(),
                etag: Some(etag),
                source: ModelError::Malformed("{}".into()),
            });
        }
        let model = self.model.lock().unwrap().clone();
        let model = model.ok_or_else(|| StoreError::Read {
            name: "s3://b/k".into(),
            source: "NoSuchKey".into(),
        })?;
        let etag = model.sha256().to_owned();
        Ok((known != Some(etag.as_str())).then_some(Loaded {
            model,
            etag: Some(etag),
        }))
    }
}

/// Keeps what is published, refuses it, or never answers.
#[derive(Default)]
pub struct MemoryPublisher {
    pub sent: Mutex<Vec<(String, Vec<u8>)>>,
    pub broken: bool,
    pub hangs: bool,
}

impl MemoryPublisher {
    /// What was published since the last look.
    pub fn take(&self) -> Vec<(String, Value)> {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        let json = |payload: Vec<u8>| serde_json::from_slice(&payload).expect("a reply is JSON");
        sent.into_iter()
            .map(|(topic, payload)| (topic, json(payload)))
            .collect()
    }
}

impl Publisher for MemoryPublisher {
    async fn publish(&self, topic: &str, payload: Vec<u8>) -> Result<(), BoxError> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        if self.broken {
            return Err("connection refused".into());
        }
        self.sent.lock().unwrap().push((topic.to_owned(), payload));
        Ok(())
    }
}

// One for each test: each runs in a thread of its own.
thread_local!(pub static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) });

pub type TestHandler = Handler<MemoryStore, MemoryPublisher>;

pub fn handler(model: Model, ttl: Duration, publisher: MemoryPublisher) -> TestHandler {
    let store = MemoryStore {
        model: Mutex::new(Some(model)),
        ..MemoryStore::default()
    };
    Handler {
        model: CurrentModel::new(store, ttl),
        publisher,
        stack: "lab".into(),
        log: |line| LINES.with_borrow_mut(|lines| lines.push(line)),
        invoked: false.into(),
    }
}

pub fn soon() -> SystemTime {
    SystemTime::now() + Duration::from_secs(10)
}

pub fn raw(event: &Value) -> Box<RawValue> {
    RawValue::from_string(event.to_string()).expect("this is JSON")
}
