//! The run, the questions of the pages, and what became of each.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use client::{AskError, Client, Link, Reply, question};
use iris_fn::model::{FEATURE_NAMES, FEATURES};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::guard::Refusal;

/// How many questions of the run, and of the pages, may be open.
const RUN_OPEN: u16 = 16;
const PAGES_OPEN: u16 = 16;
/// What the client has to take: all of these and the one about the regions, so that a run which is too fast
/// never keeps a person waiting.
pub const OPEN: u16 = RUN_OPEN + PAGES_OPEN + 1;
/// How many pages may listen.
const PAGES: usize = 200;
/// A run that was held up makes up for this much of it, and lets the rest go.
const CATCH_UP: Duration = Duration::from_millis(250);
/// How often it is looked whether somebody looks.
const NOBODY: Duration = Duration::from_millis(100);
/// Answers that are kept for pages which are slow to fetch them.
const BEHIND: usize = 1024;

/// A flower as a page sends it, and as the data has it; centimetres.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flower {
    sepal_length: f64,
    sepal_width: f64,
    petal_length: f64,
    petal_width: f64,
}

impl From<Flower> for [f64; FEATURES] {
    fn from(flower: Flower) -> Self {
        let Flower {
            sepal_length,
            sepal_width,
            petal_length,
            petal_width,
        } = flower;
        [sepal_length, sepal_width, petal_length, petal_width]
    }
}

/// The flowers of the run.
pub struct Data {
    flowers: Vec<([f64; FEATURES], String)>,
    columns: [Column; FEATURES],
}

/// What a slider has to know about a measurement, in centimetres.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Column {
    name: &'static str,
    min: f64,
    max: f64,
    mean: f64,
}

impl Data {
    /// Read a CSV with the four measurements and the species.
    ///
    /// # Errors
    /// The file, and the line that is wrong.
    pub fn read(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Row {
            sepal_length: f64,
            sepal_width: f64,
            petal_length: f64,
            petal_width: f64,
            species: String,
        }
        let said = || format!("cannot read {}", path.display());
        let mut reader = csv::Reader::from_path(path).with_context(said)?;
        let mut flowers = Vec::new();
        for row in reader.deserialize() {
            let row: Row = row.with_context(said)?;
            let x = [
                row.sepal_length,
                row.sepal_width,
                row.petal_length,
                row.petal_width,
            ];
            flowers.push((x, row.species));
        }
        ensure!(!flowers.is_empty(), "{} has no flowers", path.display());
        let column = |k: usize| {
            let values = || flowers.iter().map(|(x, _)| x[k]);
            Column {
                name: FEATURE_NAMES[k],
                min: values().fold(f64::INFINITY, f64::min),
                max: values().fold(f64::NEG_INFINITY, f64::max),
                mean: values().sum::<f64>() / flowers.len() as f64,
            }
        };
        let columns = std::array::from_fn(column);
        Ok(Self { flowers, columns })
    }

    /// The mean flower.
    pub fn mean(&self) -> [f64; FEATURES] {
        self.columns.map(|column| column.mean)
    }
}

/// What became of a question, as a page is told.
#[derive(Debug, Serialize)]
struct Told<'a> {
    request_id: &'a str,
    /// In the order of the data's columns, cm.
    flower: [f64; FEATURES],
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
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Answer {
    species: String,
    probabilities: BTreeMap<String, f64>,
    in_distribution: bool,
    model: String,
    cold_start: bool,
}

impl From<Result<Reply, AskError>> for Outcome {
    fn from(reply: Result<Reply, AskError>) -> Self {
        let failed = |code: &str, message: String| Self::Failed {
            error: json!({"code": code, "message": message}),
        };
        match reply {
            Ok(Reply::Answer(answer)) => match serde_json::from_value(answer) {
                Ok(answer) => Self::Answered(answer),
                Err(e) => failed("unreadable_answer", format!("the answer is no answer: {e}")),
            },
            Ok(Reply::Refusal(error)) => Self::Refused { error },
            Err(e) => failed(e.code(), e.to_string()),
        }
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
    data: Data,
    rate: f64,
    /// What the ids of this server's questions begin with, and how many there were.
    name: u32,
    asked: AtomicU64,
    pages_open: Semaphore,
    pages: Arc<Semaphore>,
    answers: broadcast::Sender<Arc<Shown>>,
    /// The model that answered last.
    model: watch::Sender<String>,
    /// What is known of the regions: their text, and why there is nothing newer.
    pub regions: watch::Sender<Option<Arc<str>>>,
    pub trouble: watch::Sender<Option<String>>,
    status: watch::Sender<Arc<str>>,
    on: watch::Sender<bool>,
    over: watch::Sender<bool>,
}

impl Asking {
    /// Ready to ask; the run is on.
    pub fn new(client: Client, data: Data, rate: f64) -> Self {
        Self {
            client,
            data,
            rate,
            name: fastrand::u32(..),
            asked: AtomicU64::new(0),
            pages_open: Semaphore::new(PAGES_OPEN.into()),
            pages: Arc::new(Semaphore::new(PAGES)),
            answers: broadcast::Sender::new(BEHIND),
            model: watch::Sender::default(),
            regions: watch::Sender::default(),
            trouble: watch::Sender::default(),
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

    /// Ask about a flower, and tell all pages what became of it.
    async fn ask_and_tell(
        &self,
        flower: [f64; FEATURES],
        truth: Option<&str>,
        from_page: bool,
    ) -> Arc<Shown> {
        let id = self.id();
        let asked = Instant::now();
        let reply = self.ask(&question(&id, flower)).await;
        let (ms, at) = (millis(asked.elapsed()), since_1970());
        let outcome = Outcome::from(reply);
        if let Outcome::Answered(Answer { model, .. }) = &outcome {
            self.model.send_if_modified(|last| {
                let new = last != model;
                last.clone_from(model);
                new
            });
        }
        let told = Told {
            request_id: &id,
            flower,
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
    /// [`Refusal::Busy`] instead of a queue of people who have given up.
    pub async fn ask_for_page(&self, flower: [f64; FEATURES]) -> Result<String, Refusal> {
        let busy = |_| Refusal::Busy {
            waiting: PAGES_OPEN.into(),
        };
        let _permit = self.pages_open.try_acquire().map_err(busy)?;
        Ok(self.ask_and_tell(flower, None, true).await.json.clone())
    }

    /// Start or pause the run.
    pub fn turn(&self, on: bool) {
        self.on.send_replace(on);
    }

    /// What the sliders need, and the first thing that a page hears.
    pub fn about(&self, may_pause: bool) -> String {
        json!({"columns": self.data.columns, "flowers": self.data.flowers.len(), "may_pause": may_pause})
            .to_string()
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

    pub fn model(&self) -> watch::Receiver<String> {
        self.model.subscribe()
    }

    pub fn mean(&self) -> [f64; FEATURES] {
        self.data.mean()
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
               "rate": self.rate, "on": *self.on.borrow(), "regions": *self.trouble.borrow()})
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

/// Ask about the flowers of the data, round and round and each time in another order, while the run is on and
/// somebody looks: a forgotten terminal costs nothing.
pub async fn run(asking: Arc<Asking>) {
    let every = Duration::from_secs_f64(1.0 / asking.rate);
    let room = Arc::new(Semaphore::new(RUN_OPEN.into()));
    let mut on = asking.on.subscribe();
    let mut open = JoinSet::new();
    let mut due = tokio::time::Instant::now();
    let mut rows: Vec<usize> = (0..asking.data.flowers.len()).collect();
    for n in (0..rows.len()).cycle() {
        // The data is sorted by species.
        if n == 0 {
            fastrand::shuffle(&mut rows);
        }
        let row = rows[n];
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
        let asking = Arc::clone(&asking);
        open.spawn(async move {
            let (flower, species) = &asking.data.flowers[row];
            asking.ask_and_tell(*flower, Some(species), false).await;
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

    fn told(reply: Result<Reply, AskError>) -> Value {
        json!(Told {
            request_id: "a",
            flower: [5.1, 3.5, 1.4, 0.2],
            truth: Some("setosa"),
            outcome: reply.into(),
            ms: 4.25,
            at: 1.5,
        })
    }

    #[test]
    fn an_answer_is_told_with_all_that_the_page_shows() {
        let answer = json!({"request_id": "a", "species": "setosa", "probabilities": {"setosa": 1.0},
            "in_distribution": true, "model": "m", "cold_start": false, "handler_us": 7});
        assert_eq!(
            told(Ok(Reply::Answer(answer))),
            json!({"request_id": "a", "flower": [5.1, 3.5, 1.4, 0.2], "truth": "setosa", "outcome": "answered",
                "species": "setosa", "probabilities": {"setosa": 1.0}, "in_distribution": true, "model": "m",
                "cold_start": false, "ms": 4.25, "at": 1.5})
        );
    }

    #[test]
    fn a_refusal_and_a_failure_are_told_with_code_and_message() {
        let refusal = told(Ok(Reply::Refusal(
            json!({"code": "out_of_range", "message": "m"}),
        )));
        assert_eq!(refusal["outcome"], "refused");
        assert_eq!(
            refusal["error"],
            json!({"code": "out_of_range", "message": "m"})
        );
        let failure = told(Err(AskError::Closed));
        assert_eq!(failure["outcome"], "failed");
        assert_eq!(failure["error"]["code"], "closed");
        let strange = told(Ok(Reply::Answer(json!({"request_id": "a"}))));
        assert_eq!(
            (&strange["outcome"], &strange["error"]["code"]),
            (&json!("failed"), &json!("unreadable_answer"))
        );
    }

    #[test]
    fn the_data_is_fishers() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../data/iris.csv"));
        let data = Data::read(path).unwrap();
        assert_eq!(data.flowers.len(), 150);
        assert_eq!(data.flowers[0], ([5.1, 3.5, 1.4, 0.2], "setosa".to_owned()));
        let Column {
            name,
            min,
            max,
            mean,
        } = data.columns[2];
        assert_eq!((name, min, max), ("petal_length", 1.0, 6.9));
        assert!((mean - 3.758).abs() < 1e-9, "{mean}");
    }

    #[test]
    fn a_bad_row_is_named_by_its_line() {
        let path = std::env::temp_dir().join(format!("live-{}.csv", std::process::id()));
        std::fs::write(
            &path,
            "sepal_length,sepal_width,petal_length,petal_width,species\n5.1,x,1.4,0.2,setosa\n",
        )
        .unwrap();
        let error = Data::read(&path).err().map(|e| format!("{e:#}"));
        std::fs::remove_file(&path).unwrap();
        assert!(error.is_some_and(|e| e.contains("line: 2")));
    }
}
