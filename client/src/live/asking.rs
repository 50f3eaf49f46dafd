//! The run, the questions of the pages, and what became of each.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use client::{AskError, Client, Description, Link, Reply};
use iris_fn::Feature;
use iris_fn::table::{Table, TableError};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::guard::Refusal;
use super::regions::{self, GRIDS, Regions};
use crate::load::any_row;

/// How many questions of the run, and of the pages, may be open.
const RUN_OPEN: u16 = 16;
const PAGES_OPEN: u16 = 16;
/// What the client has to take: all of these, one for each grid, and a description, so that a run which is too fast
/// never keeps a person waiting.
pub const OPEN: u16 = RUN_OPEN + PAGES_OPEN + GRIDS + 1;
/// How many pages may listen.
const PAGES: usize = 200;
/// A run that was held up makes up for this much of it, and lets the rest go.
const CATCH_UP: Duration = Duration::from_millis(250);
/// How often it is looked whether somebody looks.
const NOBODY: Duration = Duration::from_millis(100);
/// Answers that are kept for pages which are slow to fetch them.
const BEHIND: usize = 1024;

/// Seconds between two looks at which model answers.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most rows of a file that are kept, and random ones where there is no file.
const ROWS: (usize, usize) = (100_000, 500);
/// Classes that an answer shows: the most probable ones.
const SHOWN: usize = 6;

/// The model that answers, and the rows that it is asked about.
pub struct Run {
    pub model: Description,
    /// Counts up when features, classes or the target change.
    pub shape: u64,
    /// The two features that move the answer most.
    pub axes: [usize; 2],
    pub middle: Vec<f64>,
    rows: Vec<(Vec<f64>, Option<String>)>,
    /// Where the rows are from, in words.
    source: String,
}

impl Run {
    /// The file's rows; random ones where it cannot be used.
    pub fn new(model: Description, csv: &Path, shape: u64) -> Self {
        let (rows, source) = match read(csv, &model) {
            Ok(rows) => {
                let source = format!("{} rows of {}", rows.len(), csv.display());
                (rows, source)
            }
            Err(e) => {
                let random = (0..ROWS.1).map(|_| (any_row(&model), None)).collect();
                (
                    random,
                    format!("random rows within the training ranges ({e})"),
                )
            }
        };
        let mean = |k: usize| rows.iter().map(|(row, _)| row[k] / rows.len() as f64).sum();
        let middle = (0..model.features.len()).map(mean).collect();
        Self {
            model,
            shape,
            axes: [0, 1],
            middle,
            rows,
            source,
        }
    }

    /// The first line that the terminal has of it.
    pub fn line(&self) -> String {
        format!(
            "model {}: {}, {}",
            &self.model.model.get(..8).unwrap_or_default(),
            self.model.target,
            self.source
        )
    }

    /// A page's row, in the model's order.
    ///
    /// # Errors
    /// [`Refusal::Row`] names the feature that is missing, or the field that is none.
    pub fn row(&self, fields: &BTreeMap<String, f64>) -> Result<Vec<f64>, Refusal> {
        let features = &self.model.features;
        if let Some(name) = fields
            .keys()
            .find(|name| features.iter().all(|f| f.name != **name))
        {
            return Err(Refusal::Row(format!("the model has no feature {name:?}")));
        }
        let value = |f: &Feature| {
            fields
                .get(&f.name)
                .copied()
                .ok_or_else(|| Refusal::Row(format!("`{}` is missing", f.name)))
        };
        features.iter().map(value).collect()
    }
}

/// The rows of a CSV that fits the model.
fn read(path: &Path, model: &Description) -> Result<Vec<(Vec<f64>, Option<String>)>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let table = Table::open(BufReader::new(file), &model.features, &model.target)
        .with_context(|| format!("{} does not fit", path.display()))?;
    let rows = table.rows().take(ROWS.0).map(|row| {
        let row = row?;
        Ok((
            row.values,
            row.label.filter(|label| model.classes.contains(label)),
        ))
    });
    let rows: Vec<_> = rows
        .collect::<Result<_, TableError>>()
        .with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(!rows.is_empty(), "{} has no rows", path.display());
    Ok(rows)
}

/// A feature's slider, and its axis: a little wider than what training saw, in steps of a power of ten.
pub fn slider(feature: &Feature) -> (f64, f64, f64) {
    let [accept_low, accept_high] = feature.accept;
    let wider = match feature.max - feature.min {
        0.0 => feature.max.abs().max(1.0) / 2.0,
        range => range / 10.0,
    };
    let (low, high) = (
        (feature.min - wider).max(accept_low),
        (feature.max + wider).min(accept_high),
    );
    let step = 10f64.powf(
        ((high - low).clamp(1e-300, f64::MAX) / 50.0)
            .log10()
            .floor(),
    );
    // Written and read back, so that 73 steps of 0.1 are 7.3.
    let tidy = |x: f64| format!("{x:.12e}").parse().unwrap_or(x);
    let (tidy_low, tidy_high) = (
        tidy((low / step).ceil() * step),
        tidy((high / step).floor() * step),
    );
    if tidy_low < tidy_high {
        (tidy_low, tidy_high, tidy(step))
    } else {
        (low, high, (high - low) / 50.0)
    }
}

/// What became of a question, as a page is told.
#[derive(Debug, Serialize)]
struct Told<'a> {
    request_id: &'a str,
    shape: u64,
    /// In the order of the features.
    values: &'a [f64],
    /// The right answer, where it is known.
    truth: Option<&'a str>,
    #[serde(flatten)]
    outcome: Outcome,
    /// From asking to the reply, waiting for room included.
    ms: f64,
    /// When the reply was here, in milliseconds since 1970.
    at: f64,
}

#[derive(Debug, Serialize, PartialEq)]
#[serde(tag = "outcome", rename_all = "lowercase")]
enum Outcome {
    Answered(Answer),
    Refused { error: Value },
    Failed { error: Value },
}

/// What a page shows of an answer.
#[derive(Debug, PartialEq, Serialize)]
struct Answer {
    label: String,
    probabilities: BTreeMap<String, f64>,
    in_distribution: bool,
    model: String,
    cold_start: bool,
}

impl Outcome {
    fn of(reply: Result<Reply, AskError>, target: &str) -> Self {
        let failed = |code: &str, message: String| Self::Failed {
            error: json!({"code": code, "message": message}),
        };
        match reply {
            Ok(Reply::Answer(answer)) => match Answer::read(&answer, target) {
                Some(answer) => Self::Answered(answer),
                None => failed(
                    "unreadable_answer",
                    format!("the answer has no `{target}` with its probabilities"),
                ),
            },
            Ok(Reply::Refusal(error)) => Self::Refused { error },
            Err(e) => failed(e.code(), e.to_string()),
        }
    }
}

impl Answer {
    fn read(answer: &Value, target: &str) -> Option<Self> {
        let mut probabilities: Vec<(String, f64)> =
            serde_json::from_value::<BTreeMap<_, _>>(answer["probabilities"].clone())
                .ok()?
                .into_iter()
                .collect();
        probabilities.sort_by(|a, b| b.1.total_cmp(&a.1));
        probabilities.truncate(SHOWN);
        Some(Self {
            label: answer[target].as_str()?.to_owned(),
            probabilities: probabilities.into_iter().collect(),
            in_distribution: answer["in_distribution"].as_bool()?,
            model: answer["model"].as_str()?.to_owned(),
            cold_start: answer["cold_start"].as_bool()?,
        })
    }
}

/// A message for all pages.
pub struct Shown {
    /// The text of a [`Told`].
    pub json: String,
    /// Asked by a page: never left out.
    pub from_page: bool,
}

/// The connection, and everything that the pages hear about it.
pub struct Asking {
    client: Client,
    csv: PathBuf,
    run: watch::Sender<Arc<Run>>,
    /// Another model may answer than the one that was described.
    doubt: Notify,
    pub regions: Regions,
    rate: f64,
    /// What the ids of this server's questions begin with, and how many there were.
    name: u32,
    asked: AtomicU64,
    pages_open: Semaphore,
    pages: Arc<Semaphore>,
    answers: broadcast::Sender<Arc<Shown>>,
    status: watch::Sender<Arc<str>>,
    on: watch::Sender<bool>,
    over: watch::Sender<bool>,
}

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
            pages_open: Semaphore::new(PAGES_OPEN.into()),
            pages: Arc::new(Semaphore::new(PAGES)),
            answers: broadcast::Sender::new(BEHIND),
            status: watch::Sender::new("{}".into()),
            on: watch::Sender::new(true),
            over: watch::Sender::new(false),
        }
    }

    /// A request id that was never used.
    pub fn id(&self) -> String {
        let n = self.asked.fetch_add(1, Ordering::Relaxed);
        format!("live-{:08x}-{n}", self.name)
    }

    /// Ask, unless it is over first.
    pub async fn ask(&self, request: &Value) -> Result<Reply, AskError> {
        let mut over = self.ending();
        tokio::select! {
            reply = self.client.ask(request) => reply,
            _ = over.wait_for(|over| *over) => Err(AskError::Closed),
        }
    }

    /// Ask about a row, and tell all pages what became of it.
    async fn ask_and_tell(
        &self,
        run: &Run,
        values: &[f64],
        truth: Option<&str>,
        from_page: bool,
    ) -> Arc<Shown> {
        let id = self.id();
        let asked = Instant::now();
        let reply = self.ask(&run.model.request(&id, values)).await;
        let (ms, at) = (millis(asked.elapsed()), since_1970());
        let outcome = Outcome::of(reply, &run.model.target);
        // A model with other features refuses, and a refusal does not say whose it is.
        if !matches!(&outcome, Outcome::Answered(answer) if answer.model == run.model.model) {
            self.doubt.notify_one();
        }
        let shape = run.shape;
        let told = Told {
            request_id: &id,
            shape,
            values,
            truth,
            outcome,
            ms,
            at,
        };
        let shown = Arc::new(Shown {
            json: json!(told).to_string(),
            from_page,
        });
        // No page is listening, perhaps.
        let _ = self.answers.send(Arc::clone(&shown));
        shown
    }

    /// Ask for a page, which hears it as all the others do, and here.
    ///
    /// # Errors
    /// [`Refusal::Row`], or [`Refusal::Busy`] instead of a queue of people who have given up.
    pub async fn ask_for_page(&self, fields: &BTreeMap<String, f64>) -> Result<String, Refusal> {
        let run = self.current();
        let row = run.row(fields)?;
        let busy = |_| Refusal::Busy {
            waiting: PAGES_OPEN.into(),
        };
        let _permit = self.pages_open.try_acquire().map_err(busy)?;
        Ok(self.ask_and_tell(&run, &row, None, true).await.json.clone())
    }

    /// Start or pause the run.
    pub fn turn(&self, on: bool) {
        self.on.send_replace(on);
    }

    /// What a page is built from.
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

    /// Another model may answer by now.
    pub fn doubts(&self) {
        self.doubt.notify_one();
    }

    pub fn current(&self) -> Arc<Run> {
        Arc::clone(&self.run.borrow())
    }

    pub fn runs(&self) -> watch::Receiver<Arc<Run>> {
        self.run.subscribe()
    }

    /// A place for a page.
    pub fn page(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Refusal> {
        let full = |_| Refusal::TooManyPages(PAGES);
        Arc::clone(&self.pages).try_acquire_owned().map_err(full)
    }

    pub fn answers(&self) -> broadcast::Receiver<Arc<Shown>> {
        self.answers.subscribe()
    }

    pub fn status(&self) -> watch::Receiver<Arc<str>> {
        self.status.subscribe()
    }

    /// Becomes true when it is over.
    pub fn ending(&self) -> watch::Receiver<bool> {
        self.over.subscribe()
    }

    /// It is over: open questions end, and the pages hear no more.
    pub fn end(&self) {
        self.over.send_replace(true);
    }

    /// Say goodbye to the broker.
    pub async fn close(self) {
        self.client.close().await;
    }

    fn status_text(&self, per_second: f64) -> Arc<str> {
        let (state, reason) = match &*self.client.link().borrow() {
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

/// Have the model described anew when another one seems to answer.
pub async fn keep(asking: Arc<Asking>) {
    loop {
        asking.doubt.notified().await;
        if let Ok(model) = asking.client.describe().await {
            let old = asking.current();
            if old.model.model != model.model {
                let same = (&old.model.features, &old.model.classes, &old.model.target)
                    == (&model.features, &model.classes, &model.target);
                let mut run = Run::new(model, &asking.csv, old.shape + u64::from(!same));
                run.axes = if same {
                    old.axes
                } else {
                    regions::axes(&asking, &run).await.unwrap_or(run.axes)
                };
                println!("{}", run.line());
                asking.run.send_replace(Arc::new(run));
            }
        }
        sleep(PATIENCE).await;
    }
}

/// Ask about the rows, round and round and each time in another order, while the run is on and somebody looks: a
/// forgotten terminal costs nothing.
pub async fn run(asking: Arc<Asking>) {
    let every = Duration::from_secs_f64(1.0 / asking.rate);
    let room = Arc::new(Semaphore::new(RUN_OPEN.into()));
    let mut on = asking.on.subscribe();
    let mut open = JoinSet::new();
    let mut due = tokio::time::Instant::now();
    let (mut shape, mut order) = (u64::MAX, Vec::new());
    loop {
        if on.wait_for(|on| *on).await.is_err() {
            return;
        }
        while asking.answers.receiver_count() == 0 {
            sleep(NOBODY).await;
        }
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        while open.try_join_next().is_some() {}
        let now = tokio::time::Instant::now();
        due = (due + every).max(now.checked_sub(CATCH_UP).unwrap_or(now));
        sleep_until(due).await;
        let run = asking.current();
        if order.is_empty() || shape != run.shape {
            // A file is often sorted by class.
            shape = run.shape;
            order = (0..run.rows.len()).collect();
            fastrand::shuffle(&mut order);
        }
        let row = order.pop().unwrap_or(0);
        let asking = Arc::clone(&asking);
        open.spawn(async move {
            if let Some((values, truth)) = run.rows.get(row) {
                asking
                    .ask_and_tell(&run, values, truth.as_deref(), false)
                    .await;
            }
            drop(permit);
        });
    }
}

/// Say once a second how it goes, and at once when the run is started or paused.
pub async fn report(asking: Arc<Asking>) {
    let replies = || {
        let counters = asking.client.counters();
        counters.answered + counters.refused
    };
    let (mut before, mut since) = (replies(), Instant::now());
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut on = asking.on.subscribe();
    let mut per_second = 0.0;
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let now = replies();
                per_second = (now - before) as f64 / since.elapsed().as_secs_f64().max(1e-3);
                (before, since) = (now, Instant::now());
            }
            // Whoever pressed the button sees it at once.
            _ = on.changed() => {}
        }
        asking.status.send_replace(asking.status_text(per_second));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(min: f64, max: f64, accept: [f64; 2]) -> Feature {
        Feature {
            name: "a".into(),
            unit: String::new(),
            min,
            max,
            accept,
        }
    }

    #[test]
    fn a_slider_is_a_little_wider_than_training_and_within_what_is_accepted() {
        assert_eq!(slider(&feature(1.0, 6.9, [0.0, 100.0])), (0.5, 7.4, 0.1));
        assert_eq!(slider(&feature(0.0, 16.0, [0.0, 16.0])), (0.0, 16.0, 0.1));
        assert_eq!(
            slider(&feature(2700.0, 6300.0, [0.0, 1e5])),
            (2340.0, 6660.0, 10.0)
        );
    }

    #[test]
    fn a_feature_that_never_varied_still_has_a_range() {
        let (low, high, step) = slider(&feature(0.0, 0.0, [-1.0, 1.0]));
        assert!(low < 0.0 && high > 0.0 && step > 0.0);
    }

    #[test]
    fn an_answer_shows_the_label_under_the_target_and_the_most_probable_classes() {
        let probabilities: Value = (0..9)
            .map(|k| (k.to_string(), json!(f64::from(k) / 36.0)))
            .collect();
        let answer = json!({"digit": "8", "probabilities": probabilities, "in_distribution": true, "model": "m", "cold_start": false});
        let read = Answer::read(&answer, "digit").unwrap();
        assert_eq!(read.label, "8");
        assert_eq!(
            read.probabilities.keys().collect::<Vec<_>>(),
            ["3", "4", "5", "6", "7", "8"]
        );
        assert_eq!(Answer::read(&answer, "species"), None);
    }

    #[test]
    fn a_pages_row_has_every_feature_and_no_other() {
        let model = Description {
            target: "t".into(),
            features: vec![feature(0.0, 1.0, [0.0, 1.0])],
            classes: vec![],
            model: "m".into(),
        };
        let run = Run::new(model, Path::new("/nowhere"), 0);
        assert!(run.source.starts_with("random rows"));
        assert_eq!(run.row(&[("a".to_owned(), 0.5)].into()).unwrap(), [0.5]);
        for wrong in [BTreeMap::new(), [("b".to_owned(), 0.5)].into()] {
            assert!(matches!(run.row(&wrong), Err(Refusal::Row(_))), "{wrong:?}");
        }
    }
}
