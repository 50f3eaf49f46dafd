//! `client predict`: questions from arguments, a file or standard input; an answer each, and a summary.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use client::{AskError, Client, Counters, Description, Device, Reply, Settings};
use iris_fn::table::Table;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::latency::Latency;
use crate::limits::{Limits, warn_of_another};

/// What `predict` may be told.
#[derive(Args)]
pub struct Predict {
    /// One row: a number for each feature of the model, in its order
    #[arg(allow_negative_numbers = true, value_name = "VALUE")]
    row: Vec<f64>,
    /// A CSV with a column for each feature of the model, and one for its target where that is known; - for standard
    /// input
    #[arg(long, conflicts_with = "row", value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Requests, one JSON object a line, each with a `request_id`; - for standard input
    #[arg(long, conflicts_with_all = ["row", "csv"], value_name = "FILE")]
    requests: Option<PathBuf>,
    /// Questions a second; without it as fast as they are answered, and at most as many as a device may send
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
    #[command(flatten)]
    limits: Limits,
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
    truth: Option<String>,
}

/// How a question ended.
struct Outcome {
    id: String,
    truth: Option<String>,
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
        let settings = Settings {
            deadline: Duration::from_secs_f64(self.deadline),
            ..self.limits.settings(self.rate.unwrap_or_default(), 1)?
        };
        let client = Arc::new(Client::connect(&device, settings).await?);
        warn_of_another(&client);

        let model = if self.requests.is_none() {
            Some(client.describe().await?)
        } else {
            None
        };
        let mut questions = self.questions(model.as_ref())?;
        let mut summary = Summary::new(self.json, model);
        // At the client's own pace at most: a question that waits there would count the wait as its round trip.
        let rate = self.rate.unwrap_or(self.limits.pace);
        let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
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
                        for _ in 0..open.len() {
                            summary.latency.record(Duration::from_secs_f64(self.deadline));
                        }
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
    fn questions(
        &self,
        model: Option<&Description>,
    ) -> Result<mpsc::Receiver<Result<Question, String>>> {
        let (to, questions) = mpsc::channel(1);
        let run = format!("{:08x}", fastrand::u32(..));
        if let (Some(path), Some(model)) = (self.csv.as_deref(), model.cloned()) {
            let table = Table::open(open(path)?, &model.features, &model.target);
            let table = table.with_context(|| format!("cannot use {}", path.display()))?;
            for (from, name) in table.renamed() {
                eprintln!("column `{from}` is taken for `{name}`");
            }
            std::thread::spawn(move || {
                for (n, row) in table.rows().enumerate() {
                    let question = row.map_err(|e| e.to_string()).map(|row| {
                        let id = format!("{run}-{}", n + 1);
                        let text = model.request(&id, &row.values).to_string();
                        Question {
                            id,
                            text,
                            truth: row.label,
                        }
                    });
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
        } else if let Some(model) = model {
            let names: Vec<&str> = model
                .features
                .iter()
                .map(|feature| &*feature.name)
                .collect();
            ensure!(
                self.row.len() == names.len(),
                "which row? The model asks for {}, in this order: make predict ROW='{}', or CSV=file.csv, or CSV=- for \
                 standard input{}",
                names.join(", "),
                example(model),
                if self.row.is_empty() {
                    String::new()
                } else {
                    format!(" (ROW has {} values)", self.row.len())
                },
            );
            let text = model.request(&run, &self.row).to_string();
            to.try_send(Ok(Question {
                id: run,
                text,
                truth: None,
            }))
            .ok();
        }
        Ok(questions)
    }
}

/// A row in the middle of what training saw.
fn example(model: &Description) -> String {
    let middle = model.middle();
    middle
        .iter()
        .map(f64::to_string)
        .collect::<Vec<_>>()
        .join(" ")
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
    tick: &mut tokio::time::Interval,
) -> Option<Result<Question, String>> {
    // Both can be left off at any time without losing anything: a tick is not a question.
    tick.tick().await;
    questions.recv().await
}

async fn ask(client: &Client, Question { id, text, truth }: Question) -> Outcome {
    let asked = Instant::now();
    let reply = client.ask_text(&id, text).await;
    Outcome {
        id,
        truth,
        reply,
        took: asked.elapsed(),
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
        truth: None,
    })
}

/// What came of it all.
struct Summary {
    json: bool,
    /// The model that is asked; `None` for ready-made requests, which say it themselves.
    model: Option<Description>,
    /// Rewrites one line, where a person looks and answers do not scroll by.
    live: bool,
    shown: Instant,
    unreadable: u64,
    failed: u64,
    /// Rows whose label is one of the model's classes, and how many of them it named.
    known: u64,
    correct: u64,
    /// Labels that are none of the model's classes, and how often each.
    strange: BTreeMap<String, u64>,
    latency: Latency,
}

impl Summary {
    fn new(json: bool, model: Option<Description>) -> Self {
        Self {
            json,
            model,
            live: std::io::stderr().is_terminal() && !std::io::stdout().is_terminal(),
            shown: Instant::now(),
            unreadable: 0,
            failed: 0,
            known: 0,
            correct: 0,
            strange: BTreeMap::new(),
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
            truth,
            reply,
            took,
        }: Outcome,
    ) {
        let ms = took.as_secs_f64() * 1e3;
        // One that failed counts with the time it was waited for: left out, it would hide the worst.
        self.latency.record(took);
        self.failed += u64::from(reply.is_err());
        if let (Some(truth), Ok(Reply::Answer(answer)), Some(model)) = (truth, &reply, &self.model)
        {
            if model.classes.contains(&truth) {
                self.known += 1;
                self.correct += u64::from(answer[&model.target] == *truth);
            } else {
                *self.strange.entry(truth).or_default() += 1;
            }
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
            Ok(Reply::Answer(answer)) => {
                println!("{id}  {}  {ms:.1} ms", told(self.model.as_ref(), &answer))
            }
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
        // What one row has to say is said by its own line.
        if counters.asked > 1 {
            println!("{}", told_counters(&counters));
            println!("round trip: {}", self.latency.line());
        }
        if self.known > 0 {
            println!("correct: {} of {}", self.correct, self.known);
        }
        if let (Some(model), false) = (&self.model, self.strange.is_empty()) {
            let labels: Vec<_> = self
                .strange
                .iter()
                .map(|(label, n)| format!("{label:?} ({n})"))
                .collect();
            println!(
                "not compared: {} as `{}`; the model's classes are {}",
                labels.join(", "),
                model.target,
                model.classes.join(", ")
            );
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

/// An answer in a few words. Without a model it says its target itself: the one field that is not the contract's.
fn told(model: Option<&Description>, answer: &Value) -> String {
    let one = |prediction: &Value| {
        let label = match model {
            Some(model) => prediction[&model.target].as_str(),
            None => label(prediction),
        };
        let label = label.unwrap_or("?");
        let probability = prediction["probabilities"][label]
            .as_f64()
            .unwrap_or_default();
        let far = if prediction["in_distribution"] == false {
            ", outside of the training data"
        } else {
            ""
        };
        format!("{label:<10}  {probability:.3}{far}")
    };
    match answer["predictions"].as_array() {
        None if answer["probabilities"].is_null() => answer.to_string(), // a description
        None => one(answer),
        Some(predictions) => predictions.iter().map(one).collect::<Vec<_>>().join("; "),
    }
}

/// The text that is one of the prediction's own classes.
fn label(prediction: &Value) -> Option<&str> {
    let classes = prediction["probabilities"].as_object()?;
    let mut texts = prediction.as_object()?.values().filter_map(Value::as_str);
    texts.find(|text| classes.contains_key(*text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_made_request_keeps_its_bytes() {
        let text = r#"{ "request_id":"a","instances":[]}"#.to_owned();
        assert_eq!(ready_made(text.clone()).unwrap().text, text);
        assert!(ready_made("{}".into()).is_err());
        assert!(ready_made("hello".into()).is_err());
    }

    #[test]
    fn an_answer_to_a_ready_made_request_is_told_by_its_own_classes() {
        let answer = json!({"request_id": "pear", "fruit": "apple", "probabilities": {"apple": 0.75, "pear": 0.25},
                            "in_distribution": false, "model": "m"});
        assert_eq!(
            told(None, &answer),
            "apple       0.750, outside of the training data"
        );
    }
}
