//! The connection, the requests of the pages, and what the pages get.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use client::{AskError, Client, Link, Reply};
use iris_fn::Feature;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, broadcast, watch};

use super::guard::Refusal;
use super::outcome::{Encoded, Message, Outcome};
use super::regions::{self, GRIDS, Regions};
use super::rows::{Run, slider};

/// How many requests of the run, and of the pages, may be pending.
pub const RUN_PENDING: u16 = 16;
const PAGES_PENDING: u16 = 16;
/// The client's limit: room for all of these, one for each grid, and a description, so that a run which is too fast
/// never keeps a person waiting.
pub const MAX_PENDING: u16 = RUN_PENDING + PAGES_PENDING + GRIDS + 1;
/// How many pages may subscribe to the events.
const PAGES: usize = 200;
/// Answers that are kept for pages that read slowly.
const BEHIND: usize = 1024;

/// The connection, and everything that the pages get from it.
pub struct Asking {
    pub client: Client,
    pub csv: PathBuf,
    pub run: watch::Sender<Arc<Run>>,
    /// Notified when another model may answer than the one that was described.
    pub doubt: Notify,
    pub regions: Regions,
    pub rate: f64,
    /// Random prefix of the ids of this server's requests, and how many there were.
    name: u32,
    asked: AtomicU64,
    pages_pending: Semaphore,
    pages: Arc<Semaphore>,
    pub answers: broadcast::Sender<Arc<Encoded>>,
    pub status: watch::Sender<Arc<str>>,
    /// Whether the run is on; else it is paused.
    pub on: watch::Sender<bool>,
    /// Becomes true at the end: pending requests end, and the pages' streams close.
    pub over: watch::Sender<bool>,
    /// The stack was deleted, and this device with it.
    pub gone: AtomicBool,
}

/// What the terminal and the pages report then.
pub const GONE: &str = "The stack is gone: `make destroy` deleted it, and this page's device. `make deploy`, then `make live` again";

impl Asking {
    /// Ready to ask; the run is on.
    pub fn new(client: Client, csv: PathBuf, run: Run, rate: f64) -> Self {
        Self {
            client,
            csv,
            run: watch::Sender::new(Arc::new(run)),
            doubt: Notify::new(),
            regions: Regions::default(),
            rate,
            name: fastrand::u32(..),
            asked: AtomicU64::new(0),
            pages_pending: Semaphore::new(PAGES_PENDING.into()),
            pages: Arc::new(Semaphore::new(PAGES)),
            answers: broadcast::Sender::new(BEHIND),
            status: watch::Sender::new("{}".into()),
            on: watch::Sender::new(true),
            over: watch::Sender::new(false),
            gone: AtomicBool::new(false),
        }
    }

    /// A request id that was not used before.
    pub fn id(&self) -> String {
        let n = self.asked.fetch_add(1, Ordering::Relaxed);
        format!("live-{:08x}-{n}", self.name)
    }

    /// Ask, unless the server ends first.
    pub async fn ask(&self, request: &Value) -> Result<Reply, AskError> {
        let mut over = self.over.subscribe();
        tokio::select! {
            reply = self.client.ask(request) => reply,
            _ = over.wait_for(|over| *over) => Err(AskError::Closed),
        }
    }

    /// Ask about a row, and send the outcome to all pages.
    pub async fn ask_and_broadcast(
        &self,
        run: &Run,
        values: &[f64],
        truth: Option<&str>,
        from_page: bool,
    ) -> Arc<Encoded> {
        let id = self.id();
        let asked = Instant::now();
        let reply = self.ask(&run.model.request(&id, values)).await;
        let (ms, at) = (millis(asked.elapsed()), since_1970());
        let outcome = Outcome::of(reply, &run.model.target);
        // A model with other features refuses, and a refusal does not name its model.
        if !matches!(&outcome, Outcome::Answered(answer) if answer.model == run.model.model) {
            self.doubt.notify_one();
        }
        let shape = run.shape;
        let message = Message {
            request_id: &id,
            shape,
            values,
            truth,
            outcome,
            ms,
            at,
        };
        let encoded = Arc::new(Encoded {
            json: json!(message).to_string(),
            from_page,
        });
        // This fails when no page is subscribed.
        let _ = self.answers.send(Arc::clone(&encoded));
        encoded
    }

    /// Ask for a page: it gets the answer as the reply to its POST, and as an event like all pages.
    ///
    /// # Errors
    /// [`Refusal::Row`]; or [`Refusal::Busy`], because a queue would hold requests of people who have given up.
    pub async fn ask_for_page(&self, fields: &BTreeMap<String, f64>) -> Result<String, Refusal> {
        let run = self.current();
        let row = run.row(fields)?;
        let busy = |_| Refusal::Busy {
            pending: PAGES_PENDING.into(),
        };
        let _permit = self.pages_pending.try_acquire().map_err(busy)?;
        let encoded = self.ask_and_broadcast(&run, &row, None, true).await;
        Ok(encoded.json.clone())
    }

    /// The event from which a page builds itself.
    pub fn about(&self, may_pause: bool) -> String {
        let run = self.current();
        let feature = |(k, f): (usize, &Feature)| {
            let (low, high, step) = slider(f);
            json!({"name": f.name, "unit": f.unit, "min": f.min, "max": f.max, "accept": f.accept, "low": low, "high": high,
                   "step": step, "middle": run.middle[k]})
        };
        let features: Vec<_> = run.model.features.iter().enumerate().map(feature).collect();
        json!({"target": run.model.target, "features": features, "classes": run.model.classes, "model": run.model.model,
               "shape": run.shape, "axes": run.axes, "source": run.source, "may_pause": may_pause})
        .to_string()
    }

    /// Find the axes of the first model.
    pub async fn find_axes(&self) {
        let run = self.current();
        let found = regions::axes(self, &run).await;
        drop(run);
        if let Ok(axes) = found {
            self.run.send_modify(|run| {
                if let Some(run) = Arc::get_mut(run) {
                    run.axes = axes;
                }
            });
        }
    }

    pub fn current(&self) -> Arc<Run> {
        Arc::clone(&self.run.borrow())
    }

    /// A place for a page.
    pub fn page(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Refusal> {
        let full = |_| Refusal::TooManyPages(PAGES);
        Arc::clone(&self.pages).try_acquire_owned().map_err(full)
    }

    /// Disconnect from the broker.
    pub async fn close(self) {
        self.client.close().await;
    }

    pub fn status_text(&self, per_second: f64) -> Arc<str> {
        let (state, reason) = match &*self.client.link().borrow() {
            _ if self.gone.load(Ordering::Relaxed) => ("gone", Some(GONE.to_owned())),
            Link::Up { .. } => ("up", None),
            Link::Down { reason, .. } => ("down", Some(reason.clone())),
            Link::Closed => ("closed", None),
        };
        json!({"link": state, "reason": reason, "counters": self.client.counters(), "per_second": per_second,
               "rate": self.rate, "on": *self.on.borrow()})
        .to_string()
        .into()
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn since_1970() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, millis)
}
