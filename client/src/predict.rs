//! `client predict`: questions from arguments, a file or standard input; an answer each, and a summary.

use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use client::{AskError, Client, Counters, Device, Reply, Settings, question};
use iris_fn::model::{FEATURE_NAMES, FEATURES};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::latency::Latency;

/// What `predict` may be told.
#[derive(Args)]
pub struct Predict {
    /// Sepal length and width, petal length and width of one flower, in cm: 5.1 3.5 1.4 0.2
    #[arg(num_args = FEATURES, value_names = ["SEPAL_LENGTH", "SEPAL_WIDTH", "PETAL_LENGTH", "PETAL_WIDTH"])]
    flower: Vec<f64>,
    /// A CSV with these columns, and `species` where it is known; - for standard input
    #[arg(long, conflicts_with = "flower", value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Requests, one JSON object a line, each with a `request_id`; - for standard input
    #[arg(long, conflicts_with_all = ["flower", "csv"], value_name = "FILE")]
    requests: Option<PathBuf>,
    /// Questions a second; without it as fast as they are answered
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Print one JSON object a question, and the counters at the end
    #[arg(long)]
    json: bool,
    /// The device that asks
    #[arg(long, default_value = "terminal")]
    device: String,
    /// Another port of this machine to reach the broker by
    #[arg(long, hide = true)]
    port: Option<u16>,
    /// Seconds that a question may stay open
    #[arg(long, default_value = "15", value_parser = positive)]
    deadline: f64,
}

/// A rate or a time.
pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if (1e-3..=1e6).contains(&x) => Ok(x),
        _ => Err("a number from 0.001 to 1,000,000".to_owned()),
    }
}

/// A question on its way out.
#[derive(Debug)]
struct Question {
    id: String,
    text: String,
    /// The right answer, where it is known.
    species: Option<String>,
}

/// How a question ended.
struct Outcome {
    id: String,
    species: Option<String>,
    reply: Result<Reply, AskError>,
    took: Duration,
}

impl Predict {
    /// Ask, print, and say by the exit code whether every question was answered or refused.
    pub async fn run(self, dir: &Path) -> Result<ExitCode> {
        let mut device = Device::open(&dir.join(&self.device))?;
        if let Some(port) = self.port {
            device = device.through(port);
        }
        let mut questions = self.questions()?;
        let settings = Settings {
            deadline: Duration::from_secs_f64(self.deadline),
            ..Settings::default()
        };
        let client = Arc::new(Client::connect(&device, settings).await?);

        let mut summary = Summary::new(self.json);
        let mut tick = self
            .rate
            .map(|rate| tokio::time::interval(Duration::from_secs_f64(1.0 / rate)));
        let mut open = JoinSet::new();
        let mut more = true;
        let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
        while more || !open.is_empty() {
            tokio::select! {
                question = next(&mut questions, &mut tick), if more && open.len() < usize::from(Settings::default().open) => match question {
                    Some(Ok(question)) => {
                        let client = Arc::clone(&client);
                        open.spawn(async move { ask(&client, question).await });
                    }
                    Some(Err(unreadable)) => summary.unreadable(&unreadable),
                    None => more = false,
                },
                Some(outcome) = open.join_next() => summary.add(outcome.context("a question ended badly")?),
                _ = &mut stop => {
                    if !more {
                        summary.failed += open.len() as u64;
                        open.shutdown().await; // the client counts them as failed
                        break;
                    }
                    eprintln!("stopped: waiting for what is open; once more ends that too");
                    more = false;
                    stop.set(tokio::signal::ctrl_c());
                }
            }
            summary.progress(&client);
        }
        summary.print(&client);
        if let Some(client) = Arc::into_inner(client) {
            client.close().await;
        }
        Ok(if summary.all_well() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// The questions, as they are read; in a thread of their own, since standard input blocks.
    fn questions(&self) -> Result<mpsc::Receiver<Result<Question, String>>> {
        let (to, questions) = mpsc::channel(1);
        let run = format!("{:08x}", fastrand::u32(..));
        if let Some(path) = self.csv.as_deref() {
            let mut reader = csv::ReaderBuilder::new()
                .trim(csv::Trim::All)
                .from_reader(open(path)?);
            let columns = Columns::find(
                reader
                    .headers()
                    .with_context(|| format!("cannot read {}", path.display()))?,
            )
            .with_context(|| format!("{}: the first line", path.display()))?;
            std::thread::spawn(move || {
                for (row, record) in reader.into_records().enumerate() {
                    let question = match record {
                        Ok(record) => columns.question(&format!("{run}-{}", row + 1), &record),
                        Err(e) => Err(e.to_string()),
                    };
                    if to.blocking_send(question).is_err() {
                        return;
                    }
                }
            });
        } else if let Some(path) = self.requests.as_deref() {
            let reader = BufReader::new(open(path)?);
            std::thread::spawn(move || {
                for (line, text) in reader.lines().enumerate() {
                    let question = text
                        .map_err(|e| e.to_string())
                        .and_then(ready_made)
                        .map_err(|e| format!("line {}: {e}", line + 1));
                    if to.blocking_send(question).is_err() {
                        return;
                    }
                }
            });
        } else {
            ensure!(
                self.flower.len() == FEATURES,
                "which flower? make predict FLOWER='5.1 3.5 1.4 0.2', or CSV=data/iris.csv, or CSV=- for standard input"
            );
            let flower = self
                .flower
                .clone()
                .try_into()
                .expect("there are as many as features");
            let text = question(&run, flower).to_string();
            let only = Question {
                id: run,
                text,
                species: None,
            };
            to.try_send(Ok(only)).ok();
        }
        Ok(questions)
    }
}

fn open(path: &Path) -> Result<Box<dyn Read + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    let file =
        std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Box::new(file))
}

/// The next question, when it is time for it.
async fn next(
    questions: &mut mpsc::Receiver<Result<Question, String>>,
    tick: &mut Option<tokio::time::Interval>,
) -> Option<Result<Question, String>> {
    // Both can be left off at any time without losing anything: a tick is not a question.
    if let Some(tick) = tick {
        tick.tick().await;
    }
    questions.recv().await
}

async fn ask(client: &Client, Question { id, text, species }: Question) -> Outcome {
    let asked = Instant::now();
    let reply = client.ask_text(&id, text).await;
    Outcome {
        id,
        species,
        reply,
        took: asked.elapsed(),
    }
}

/// Where the measurements stand in a row.
struct Columns {
    features: [usize; FEATURES],
    species: Option<usize>,
}

impl Columns {
    fn find(header: &csv::StringRecord) -> Result<Self> {
        let find = |name: &str| header.iter().position(|column| column == name);
        let mut features = [0; FEATURES];
        for (column, name) in features.iter_mut().zip(FEATURE_NAMES) {
            *column = find(name).with_context(|| format!("there is no column `{name}`"))?;
        }
        Ok(Self {
            features,
            species: find("species"),
        })
    }

    fn question(&self, id: &str, record: &csv::StringRecord) -> Result<Question, String> {
        let line = record.position().map_or(0, csv::Position::line);
        let mut flower = [0.0_f64; FEATURES];
        for ((x, column), name) in flower.iter_mut().zip(self.features).zip(FEATURE_NAMES) {
            let text = record.get(column).unwrap_or_default();
            *x = text
                .parse()
                .map_err(|_| format!("line {line}: `{name}` is {text:?}, not a number"))?;
            if !x.is_finite() {
                return Err(format!(
                    "line {line}: `{name}` is {text:?}, not a number that JSON knows"
                ));
            }
        }
        Ok(Question {
            id: id.to_owned(),
            text: question(id, flower).to_string(),
            species: self
                .species
                .and_then(|column| record.get(column))
                .map(str::to_owned),
        })
    }
}

/// A line of `--requests`.
fn ready_made(text: String) -> Result<Question, String> {
    let request: Value = serde_json::from_str(&text).map_err(|e| format!("not JSON: {e}"))?;
    let id = request["request_id"]
        .as_str()
        .ok_or("there is no `request_id`")?
        .to_owned();
    Ok(Question {
        id,
        text,
        species: None,
    })
}

/// What came of it all.
struct Summary {
    json: bool,
    /// Rewrites one line, where a person looks and answers do not scroll by.
    live: bool,
    shown: Instant,
    unreadable: u64,
    failed: u64,
    known: u64,
    correct: u64,
    latency: Latency,
}

impl Summary {
    fn new(json: bool) -> Self {
        Self {
            json,
            live: std::io::stderr().is_terminal() && !std::io::stdout().is_terminal(),
            shown: Instant::now(),
            unreadable: 0,
            failed: 0,
            known: 0,
            correct: 0,
            latency: Latency::new(),
        }
    }

    fn unreadable(&mut self, what: &str) {
        self.unreadable += 1;
        eprintln!("not asked: {what}");
    }

    fn add(
        &mut self,
        Outcome {
            id,
            species,
            reply,
            took,
        }: Outcome,
    ) {
        let ms = took.as_secs_f64() * 1e3;
        match &reply {
            Ok(_) => self.latency.record(took),
            Err(_) => self.failed += 1,
        }
        if let (Some(species), Ok(Reply::Answer(answer))) = (&species, &reply) {
            self.known += 1;
            self.correct += u64::from(answer["species"] == **species);
        }
        if self.json {
            println!(
                "{}",
                match reply {
                    Ok(Reply::Answer(answer)) =>
                        json!({"request_id": id, "outcome": "answered", "ms": ms, "answer": answer}),
                    Ok(Reply::Refusal(error)) =>
                        json!({"request_id": id, "outcome": "refused", "ms": ms, "error": error}),
                    Err(e) => json!({"request_id": id, "outcome": "failed", "ms": ms,
                                 "error": {"code": e.code(), "message": e.to_string()}}),
                }
            );
            return;
        }
        match reply {
            Ok(Reply::Answer(answer)) => println!("{id}  {}  {ms:.1} ms", told(&answer)),
            Ok(Reply::Refusal(error)) => println!(
                "{id}  refused: {} ({})  {ms:.1} ms",
                error["message"].as_str().unwrap_or_default(),
                error["code"].as_str().unwrap_or_default(),
            ),
            Err(e) => println!("{id}  failed: {e}"),
        }
    }

    fn progress(&mut self, client: &Client) {
        if self.live && self.shown.elapsed() > Duration::from_millis(500) {
            self.shown = Instant::now();
            let counters = client.counters();
            eprint!(
                "\r\x1b[K{} asked, {} answered",
                counters.asked, counters.answered
            );
        }
    }

    fn print(&self, client: &Client) {
        let counters = client.counters();
        if self.live {
            eprint!("\r\x1b[K");
        }
        if self.json {
            println!(
                "{}",
                json!({"counters": counters, "unreadable": self.unreadable, "ms": self.latency.json()})
            );
            return;
        }
        // What one flower has to say is said by its own line.
        if counters.asked > 1 {
            println!("{}", told_counters(&counters));
            println!("round trip: {}", self.latency.line());
        }
        if self.known > 0 {
            println!("correct: {} of {}", self.correct, self.known);
        }
    }

    fn all_well(&self) -> bool {
        self.unreadable == 0 && self.failed == 0
    }
}

/// The counters that are not zero.
pub fn told_counters(counters: &Counters) -> String {
    let numbers = serde_json::to_value(counters).unwrap_or_default();
    let numbers = numbers.as_object().into_iter().flatten();
    let told = numbers
        .filter(|(_, n)| **n != json!(0))
        .map(|(name, n)| format!("{name} {n}"));
    told.collect::<Vec<_>>().join(", ")
}

/// An answer in a few words.
fn told(answer: &Value) -> String {
    let one = |prediction: &Value| {
        let species = prediction["species"].as_str().unwrap_or("?");
        let probability = prediction["probabilities"][species]
            .as_f64()
            .unwrap_or_default();
        let far = if prediction["in_distribution"] == false {
            ", unlike any flower in the training data"
        } else {
            ""
        };
        format!("{species:<10}  {probability:.3}{far}")
    };
    match answer["predictions"].as_array() {
        None => one(answer),
        Some(predictions) => predictions.iter().map(one).collect::<Vec<_>>().join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Result<Vec<Result<Question, String>>> {
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .from_reader(text.as_bytes());
        let columns = Columns::find(reader.headers()?)?;
        Ok(reader
            .records()
            .map(|record| columns.question("a", &record.unwrap()))
            .collect())
    }

    #[test]
    fn columns_are_found_by_name() {
        let text =
            "species,petal_width, sepal_length,sepal_width,petal_length\nsetosa,0.2,5.1,3.5,1.4\n";
        let [Ok(question)] = &rows(text).unwrap()[..] else {
            panic!("one row")
        };
        assert_eq!(question.species.as_deref(), Some("setosa"));
        assert_eq!(
            question.text,
            super::question("a", [5.1, 3.5, 1.4, 0.2]).to_string()
        );
    }

    #[test]
    fn a_bad_row_is_named_by_its_line_and_column() {
        let text = "sepal_length,sepal_width,petal_length,petal_width\n5.1,3.5,1.4,0.2\n5.1,x,1.4,0.2\n5.1,3.5,NaN,0.2\n";
        let rows = rows(text).unwrap();
        assert!(rows[0].is_ok());
        assert!(
            rows[1]
                .as_ref()
                .is_err_and(|e| e.contains("line 3") && e.contains("sepal_width"))
        );
        assert!(
            rows[2]
                .as_ref()
                .is_err_and(|e| e.contains("line 4") && e.contains("petal_length"))
        );
    }

    #[test]
    fn a_missing_column_is_named() {
        let error = rows("sepal_length,sepal_width\n1,2\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("petal_length"), "{error}");
    }

    #[test]
    fn a_ready_made_request_keeps_its_bytes() {
        let text = r#"{ "request_id":"a","flowers":[]}"#.to_owned();
        assert_eq!(ready_made(text.clone()).unwrap().text, text);
        assert!(ready_made("{}".into()).is_err());
        assert!(ready_made("hello".into()).is_err());
    }
}
