//! `client predict`: requests from arguments, a file or standard input; an answer for each, and a summary.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use client::table::{Label, MOST_BYTES, Table};
use client::{AskError, Client, Counters, Description, Device, Reply, Settings};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::latency::Latency;
use crate::limits::{Limits, warn_of_another};

/// Options of `predict`.
#[derive(Args)]
pub struct Predict {
    /// One row: a number for each feature of the model, in its order
    #[arg(allow_negative_numbers = true, value_name = "ROW")]
    row: Vec<String>,
    /// A CSV with a column for each feature of the model, and one for its target where that is known; - for standard
    /// input, which is read to its end first
    #[arg(long, value_name = "CSV")]
    csv: Option<PathBuf>,
    /// Requests, one JSON object a line, each with a `request_id`; - for standard input
    #[arg(long, conflicts_with_all = ["row", "csv"], value_name = "FILE")]
    requests: Option<PathBuf>,
    /// Requests a second; without it as fast as they are answered, and at most as many as a device may send
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Print one JSON object for each request, and the counters at the end
    #[arg(long)]
    json: bool,
    /// The device that sends the requests
    #[arg(long, default_value = "terminal")]
    device: String,
    /// Another port of this machine through which to reach the broker
    #[arg(long, hide = true)]
    port: Option<u16>,
    /// Timeout of a request in seconds, retries included
    #[arg(long, default_value = "15", value_parser = positive)]
    deadline: f64,
    #[command(flatten)]
    limits: Limits,
}

/// Parse a rate or a time.
pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if (1e-3..=1e6).contains(&x) => Ok(x),
        _ => Err("expected a number from 0.001 to 1,000,000".to_owned()),
    }
}

/// A request to send.
#[derive(Debug)]
struct Request {
    id: String,
    text: String,
    /// The right answer, where it is known.
    truth: Option<Label>,
}

/// How a request ended.
struct Outcome {
    id: String,
    truth: Option<Label>,
    reply: Result<Reply, AskError>,
    took: Duration,
}

impl Predict {
    /// Send the requests and print the replies. The exit code is 0 when every request was answered or refused.
    pub async fn run(self, dir: &Path) -> Result<ExitCode> {
        ensure!(
            self.row.is_empty() || self.csv.is_none(),
            "ROW and CSV are both set, and one is asked about at a time: leave one of them out"
        );
        let csv = self.csv.as_deref().map(read).transpose()?;
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
        let (mut requests, total) = self.requests(model.as_ref(), csv)?;
        // At the client's own pace at most: a request that waits there would count the wait as its round trip.
        let rate = self.rate.unwrap_or(self.limits.pace);
        if let Some(total) =
            total.filter(|total| *total as f64 / rate >= REPORT_EVERY.as_secs_f64())
        {
            let time = duration(total as f64 / rate);
            eprintln!(
                "{total} rows at {rate} a second: {time}; Ctrl-C stops, and reports how many were not asked"
            );
        }
        let mut summary = Summary::new(self.json, model, total);
        let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let max_pending = usize::from(Settings::default().max_pending);
        let mut pending = JoinSet::new();
        let (mut more, mut stopped) = (true, false);
        // One listener for both: a second Ctrl-C that follows at once must not fall between two.
        let mut stop = signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?;
        while more || !pending.is_empty() {
            tokio::select! {
                request = next(&mut requests, &mut tick), if more && pending.len() < max_pending => match request {
                    Some(request) => {
                        summary.taken += 1;
                        match request {
                            Ok(request) => {
                                let client = Arc::clone(&client);
                                pending.spawn(async move { ask(&client, request).await });
                            }
                            Err(unreadable) => summary.unreadable(&unreadable),
                        }
                    }
                    None => more = false,
                },
                Some(outcome) = pending.join_next() => summary.add(outcome.context("a request's task panicked")?),
                _ = stop.recv() => {
                    if !more {
                        summary.failed += pending.len() as u64;
                        for _ in 0..pending.len() {
                            summary.latency.record(Duration::from_secs_f64(self.deadline));
                        }
                        pending.shutdown().await; // the client counts them as failed
                        break;
                    }
                    eprintln!("stopped: waiting for pending requests; press Ctrl-C once more to end these too");
                    (more, stopped) = (false, true);
                }
            }
            summary.progress(&client);
        }
        summary.print(&client, stopped);
        let all_well = summary.all_well(&client, stopped);
        if let Some(client) = Arc::into_inner(client) {
            client.close().await;
        }
        Ok(if all_well {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// The requests, as they are read, and how many there are where that is known. They are read in a thread of their
    /// own, because standard input blocks.
    fn requests(&self, model: Option<&Description>, csv: Option<Vec<u8>>) -> Result<Requests> {
        let (to, requests) = mpsc::channel(1);
        let run = format!("{:08x}", fastrand::u32(..));
        let mut total = None;
        if let (Some(path), Some(csv), Some(model)) = (&self.csv, csv, model.cloned()) {
            let table = Table::read(&csv, &model);
            let table = table.with_context(|| format!("cannot use CSV={}", path.display()))?;
            for note in &table.notes {
                eprintln!("{note}");
            }
            total = Some(table.rows.len());
            std::thread::spawn(move || {
                for (n, row) in table.rows.into_iter().enumerate() {
                    let request = row.map_err(|e| e.to_string()).map(|row| {
                        let id = format!("{run}-{}", n + 1);
                        let text = model.request(&id, &row.values).to_string();
                        Request {
                            id,
                            text,
                            truth: row.label,
                        }
                    });
                    if to.blocking_send(request).is_err() {
                        return;
                    }
                }
            });
        } else if let Some(path) = self.requests.as_deref() {
            let reader = BufReader::new(open(path)?);
            std::thread::spawn(move || {
                for (line, text) in reader.lines().enumerate() {
                    let request = text
                        .map_err(|e| e.to_string())
                        .and_then(ready_made)
                        .map_err(|e| format!("line {}: {e}", line + 1));
                    if to.blocking_send(request).is_err() {
                        return;
                    }
                }
            });
        } else if let Some(model) = model {
            let text = model.request(&run, &row(&self.row, model)?).to_string();
            to.try_send(Ok(Request {
                id: run,
                text,
                truth: None,
            }))
            .ok();
        }
        Ok((requests, total))
    }
}

type Requests = (mpsc::Receiver<Result<Request, String>>, Option<usize>);

/// Parse a row as people write it: numbers with spaces, commas or semicolons between them, or decimal commas.
fn row(words: &[String], model: &Description) -> Result<Vec<f64>> {
    let (text, wanted) = (words.join(" "), model.features.len());
    let mut values: Vec<String> = text
        .split_whitespace()
        .map(|x| x.replace(',', "."))
        .collect();
    if values.len() != wanted || text.contains('.') {
        let parts = text
            .split([' ', '\t', ',', ';'])
            .filter(|part| !part.is_empty());
        values = parts.map(str::to_owned).collect();
    }
    let names: Vec<&str> = model
        .features
        .iter()
        .map(|feature| &*feature.name)
        .collect();
    let help = format!(
        "The model asks for {}, in this order: make predict ROW='{}', or CSV=file.csv, or CSV=- for standard input",
        names.join(", "),
        example(model)
    );
    if values.is_empty() {
        bail!("which row? {help}");
    }
    ensure!(
        values.len() == wanted,
        "ROW has {} values, not {wanted}. {help}",
        values.len()
    );
    let number = |text: &String| match text.parse::<f64>() {
        Ok(x) if x.is_finite() => Ok(x),
        _ => bail!("{text:?} in ROW is not a number. {help}"),
    };
    values.iter().map(number).collect()
}

/// Read a file, up to one byte more than the limit, by which a file that is too large is recognized.
fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open(path)?
        .take(MOST_BYTES as u64 + 1)
        .read_to_end(&mut bytes);
    read.with_context(|| format!("cannot read CSV={}", path.display()))?;
    Ok(bytes)
}

/// A row in the middle of the training data.
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
    let file = std::fs::File::open(path).with_context(|| {
        let help = if path.starts_with("~") {
            ": your shell left the ~ as it is, write $HOME for it"
        } else {
            ""
        };
        format!("cannot read {}{help}", path.display())
    })?;
    Ok(Box::new(file))
}

/// The next request, when it is due. Cancel-safe: a request is received last, and a tick is not a request.
async fn next(
    requests: &mut mpsc::Receiver<Result<Request, String>>,
    tick: &mut tokio::time::Interval,
) -> Option<Result<Request, String>> {
    tick.tick().await;
    requests.recv().await
}

async fn ask(client: &Client, Request { id, text, truth }: Request) -> Outcome {
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
fn ready_made(text: String) -> Result<Request, String> {
    let request: Value = serde_json::from_str(&text).map_err(|e| format!("not JSON: {e}"))?;
    let id = request["request_id"]
        .as_str()
        .ok_or("there is no `request_id`")?
        .to_owned();
    Ok(Request {
        id,
        text,
        truth: None,
    })
}

/// A run longer than this reports its progress, this often.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How many unreadable rows, and labels that are not classes, are listed with a line each.
const MAX_LISTED: u64 = 10;

/// The results of a run.
struct Summary {
    json: bool,
    /// The model that is asked; `None` for ready-made requests, whose answers name it.
    model: Option<Description>,
    /// Rewrite one line of progress: standard error is a terminal, and standard output is not.
    live: bool,
    began: Instant,
    reported: Instant,
    /// Rows of the file, where that is known, and how many of them were read.
    total: Option<usize>,
    taken: usize,
    unreadable: u64,
    failed: u64,
    /// How many rows of each class got each answer.
    known: BTreeMap<String, BTreeMap<String, u64>>,
    /// The same for labels that are none of the model's classes.
    unknown: BTreeMap<String, BTreeMap<String, u64>>,
    latency: Latency,
}

impl Summary {
    fn new(json: bool, model: Option<Description>, total: Option<usize>) -> Self {
        Self {
            json,
            model,
            live: std::io::stderr().is_terminal() && !std::io::stdout().is_terminal(),
            began: Instant::now(),
            reported: Instant::now(),
            total,
            taken: 0,
            unreadable: 0,
            failed: 0,
            known: BTreeMap::new(),
            unknown: BTreeMap::new(),
            latency: Latency::new(),
        }
    }

    fn unreadable(&mut self, what: &str) {
        self.unreadable += 1;
        if self.unreadable <= MAX_LISTED {
            eprintln!("not asked: {what}");
        } else if self.unreadable == MAX_LISTED + 1 {
            eprintln!("not asked: more rows, which are counted at the end");
        }
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
        // A failed request counts with its whole wait: left out, it would hide the worst.
        self.latency.record(took);
        self.failed += u64::from(reply.is_err());
        if let (Some(truth), Ok(Reply::Answer(answer)), Some(model)) = (truth, &reply, &self.model)
        {
            let (labels, truth) = match truth {
                Label::Class(truth) => (&mut self.known, truth),
                Label::Other(truth) => (&mut self.unknown, truth),
            };
            let predicted = answer[&model.target].as_str().unwrap_or("?").to_owned();
            let answers = labels.entry(truth).or_default();
            *answers.entry(predicted).or_default() += 1;
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
                println!("{id}  {}  {ms:.1} ms", brief(self.model.as_ref(), &answer))
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
        let every = if self.live {
            Duration::from_millis(500)
        } else {
            REPORT_EVERY
        };
        if self.reported.elapsed() <= every {
            return;
        }
        self.reported = Instant::now();
        let counters = client.counters();
        let mut line = format!("{} asked, {} answered", counters.asked, counters.answered);
        if let Some(total) = self.total.filter(|_| self.taken > 0) {
            let each = self.began.elapsed().as_secs_f64() / self.taken as f64;
            let left = duration((total - self.taken) as f64 * each);
            line = format!("{line} of {total}, {left} to go");
        }
        if self.live {
            eprint!("\r\x1b[K{line}");
        } else {
            eprintln!("{line}");
        }
    }

    fn print(&self, client: &Client, stopped: bool) {
        let counters = client.counters();
        if self.live {
            eprint!("\r\x1b[K");
        }
        let left = self.total.map(|total| total - self.taken);
        if let (Some(total), Some(left @ 1..)) = (self.total, left) {
            eprintln!("stopped: {left} of {total} rows were not asked");
        } else if stopped && self.total.is_none() {
            eprintln!("stopped: requests that were not read yet were not sent");
        }
        if self.unreadable > 0 {
            let of = self
                .total
                .map_or(String::new(), |total| format!(" of {total}"));
            eprintln!(
                "{}{of} rows were not asked: correct or delete these lines",
                self.unreadable
            );
        }
        if self.json {
            println!(
                "{}",
                json!({"counters": counters, "unreadable": self.unreadable, "unasked": left, "ms": self.latency.json()})
            );
            return;
        }
        // For one row, its own line has everything.
        if counters.asked > 1 {
            println!("{}", nonzero(&counters));
            println!("round trip: {}", self.latency.line());
        }
        let count = |of: &BTreeMap<String, u64>| of.values().sum::<u64>();
        let known: u64 = self.known.values().map(count).sum();
        let right = self
            .known
            .iter()
            .filter_map(|(label, answers)| answers.get(label));
        let correct: u64 = right.sum();
        if known > 0 {
            println!("correct: {correct} of {known}");
        }
        let Some(model) = &self.model else { return };
        if correct * 2 < known {
            println!(
                "most labels and answers differ: is this the model for this file, and do its labels mean the model's classes?"
            );
            self.compare(&self.known);
        }
        if !self.unknown.is_empty() {
            let labels = self
                .unknown
                .iter()
                .map(|(label, answers)| format!("{label:?} ({})", count(answers)));
            let labels: Vec<_> = labels.take(MAX_LISTED as usize).collect();
            println!(
                "not compared: {}{} as `{}`; the model's classes are {}: give the labels these names",
                labels.join(", "),
                if self.unknown.len() > labels.len() {
                    ", …"
                } else {
                    ""
                },
                model.target,
                model.classes.join(", ")
            );
            self.compare(&self.unknown);
        }
    }

    /// Print which answers the rows of each label got.
    fn compare(&self, labels: &BTreeMap<String, BTreeMap<String, u64>>) {
        for (label, answers) in labels.iter().take(MAX_LISTED as usize) {
            let answers: Vec<_> = answers
                .iter()
                .map(|(class, n)| format!("{class} ({n})"))
                .collect();
            println!("  {label:?} was answered by {}", answers.join(", "));
        }
    }

    /// Whether at least one request was sent, and each one was answered or refused.
    fn all_well(&self, client: &Client, stopped: bool) -> bool {
        if client.counters().asked == 0 {
            eprintln!("nothing was asked");
            return false;
        }
        let left = self.total.map_or(stopped, |total| total > self.taken);
        self.unreadable == 0 && self.failed == 0 && !left
    }
}

/// A time, for people.
fn duration(seconds: f64) -> String {
    match seconds {
        ..100.0 => format!("{seconds:.0} s"),
        ..6_000.0 => format!("about {:.0} min", seconds / 60.0),
        _ => format!("about {:.0} h", seconds / 3_600.0),
    }
}

/// The counters that are not zero, as text.
pub fn nonzero(counters: &Counters) -> String {
    let numbers = serde_json::to_value(counters).unwrap_or_default();
    let numbers = numbers.as_object().into_iter().flatten();
    let nonzero = numbers
        .filter(|(_, n)| **n != json!(0))
        .map(|(name, n)| format!("{name} {n}"));
    nonzero.collect::<Vec<_>>().join(", ")
}

/// An answer on one line. Without a model, its label is the text that is one of its own classes.
fn brief(model: Option<&Description>, answer: &Value) -> String {
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
    fn an_answer_to_a_ready_made_request_has_its_label_by_its_own_classes() {
        let answer = json!({"request_id": "pear", "fruit": "apple", "probabilities": {"apple": 0.75, "pear": 0.25},
                            "in_distribution": false, "model": "m"});
        assert_eq!(
            brief(None, &answer),
            "apple       0.750, outside of the training data"
        );
    }
}
