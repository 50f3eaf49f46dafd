//! `client load`: many devices, a steady rate, and how long the answers took.
//!
//! The rate does not wait for the answers (an open loop). A latency counts from when its request was due, not from
//! when it could be sent: otherwise a slow moment would hide all the requests that had to wait for it ("coordinated
//! omission", Gil Tene, How NOT to Measure Latency, 2015).
//!
//! When the time is over, requests that still wait to be sent are not sent, and are counted: the result then shows how
//! much of the rate was reached, and the run ends in time.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use client::{AskError, Client, Counters, Description, Device, Reply, Settings};
use iris_fn::Feature;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::latency::Latency;
use crate::limits::{Limits, warn_of_another};
use crate::predict::{nonzero, positive};

/// Options of `load`.
#[derive(Args)]
pub struct Load {
    /// Requests a second, of all devices together
    #[arg(long, env = "RATE", default_value = "50", value_parser = positive)]
    rate: f64,
    /// For how many seconds
    #[arg(long, env = "SECONDS", default_value = "10", value_parser = positive)]
    seconds: f64,
    /// How many devices send in turn: `<name>-1`, `<name>-2` …
    #[arg(long, env = "DEVICES", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    devices: u16,
    /// What their names begin with
    #[arg(long, default_value = "load")]
    name: String,
    /// Another port of this machine through which to reach the broker
    #[arg(long, hide = true)]
    port: Option<u16>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Timeout of a request in seconds, retries included
    #[arg(long, default_value = "15", value_parser = positive)]
    deadline: f64,
    #[command(flatten)]
    limits: Limits,
}

/// A request's reply, unless it was not sent; and how long it took since it was due, and since it was sent.
type Ended = (Option<Result<Reply, AskError>>, Duration, Duration);

impl Load {
    /// Connect all devices, and send the requests. The exit code is 0 when every request was sent and answered.
    pub async fn run(self, dir: &Path) -> Result<ExitCode> {
        let deadline = Duration::from_secs_f64(self.deadline);
        let settings = Settings {
            deadline,
            ..self.limits.settings(self.rate, self.devices)?
        };
        let clients = self.connect(dir, &settings).await?;
        let model = clients[0].describe().await?;
        let run = format!("{:08x}", fastrand::u32(..));
        // Whole requests only; the last is due before the time is over.
        let count = (self.rate * self.seconds).round().max(1.0) as u64;
        let slots: Vec<_> = clients
            .iter()
            .map(|_| Arc::new(Semaphore::new(settings.max_pending.into())))
            .collect();
        let close = || slots.iter().for_each(|slots| slots.close());
        let mut pending: JoinSet<Ended> = JoinSet::new();
        let (mut due, mut sent) = (Latency::new(), Latency::new());
        // One listener for both: a second Ctrl-C that follows at once must not fall between two.
        let mut stop = signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?;
        let begin = Instant::now();
        let end = begin + Duration::from_secs_f64(self.seconds);
        let mut reported = begin;
        let mut next = 0;
        let mut last = count;
        let (mut over, mut unasked) = (false, 0);
        while next < last || !pending.is_empty() {
            let at = begin + Duration::from_secs_f64(next as f64 / self.rate);
            tokio::select! {
                () = sleep_until(at), if next < last => {
                    let device = next as usize % clients.len();
                    let (client, slots) = (Arc::clone(&clients[device]), Arc::clone(&slots[device]));
                    let id = format!("{run}-{next}");
                    // As text, which takes less memory than the JSON tree when many wait.
                    let request = model.request(&id, &any_row(&model)).to_string();
                    pending.spawn(async move {
                        let due = Instant::now();
                        let Ok(_slot) = slots.acquire().await else {
                            return (None, at.elapsed(), due.elapsed());
                        };
                        let reply = client.ask_text(&id, request).await;
                        (Some(reply), at.elapsed(), due.elapsed())
                    });
                    next += 1;
                }
                Some(done) = pending.join_next() => {
                    let (reply, since_due, since_sent) = done.context("a request's task panicked")?;
                    let Some(reply) = reply else {
                        // It would have waited for longer.
                        due.record(since_due);
                        unasked += 1;
                        continue;
                    };
                    // A failed request counts with its whole deadline: left out, it would hide the worst.
                    let least = if reply.is_ok() { Duration::ZERO } else { deadline };
                    due.record(since_due.max(least));
                    sent.record(since_sent.max(least));
                }
                () = sleep_until(end), if !over => {
                    over = true;
                    unasked += last - next;
                    last = next;
                    close();
                }
                _ = stop.recv() => {
                    if over {
                        for _ in 0..pending.len() {
                            due.record(deadline);
                            sent.record(deadline);
                        }
                        pending.shutdown().await; // each is counted as failed
                        break;
                    }
                    eprintln!("stopped: waiting for pending requests; press Ctrl-C once more to end these too");
                    over = true;
                    unasked += last - next;
                    last = next;
                    close();
                }
            }
            if reported.elapsed() > Duration::from_secs(2) {
                reported = Instant::now();
                let line = format!(
                    "{:4.0} s  {}",
                    begin.elapsed().as_secs_f64(),
                    nonzero(&sum(&clients))
                );
                if std::io::stderr().is_terminal() {
                    eprint!("\r\x1b[K{line}")
                } else {
                    eprintln!("{line}")
                }
            }
        }
        let took = begin.elapsed();
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        let counters = sum(&clients);
        let a_second = (counters.answered + counters.refused) as f64 / took.as_secs_f64();
        if self.json {
            println!(
                "{}",
                json!({"devices": clients.len(), "seconds": took.as_secs_f64(), "counters": counters,
                "answers_a_second": a_second, "unasked": unasked, "ms": due.json(), "ms_since_sent": sent.json()})
            );
        } else {
            println!(
                "{} devices, {:.1} s: {}",
                clients.len(),
                took.as_secs_f64(),
                nonzero(&counters)
            );
            println!("{a_second:.0} answers a second, {} were wanted", self.rate);
            if unasked > 0 {
                println!(
                    "{unasked} of {count} requests were not sent before the time was over: RATE={:.0} is what was reached; more DEVICES \
                     may reach more",
                    a_second.max(1.0)
                );
            }
            println!("since each was due:  {}", due.line());
            println!("since it was sent:   {}", sent.line());
            if counters.failed > 0 {
                println!(
                    "each of the {} that failed counts with its deadline, {deadline:?}, at least",
                    counters.failed
                );
            }
        }
        for client in clients.into_iter().filter_map(Arc::into_inner) {
            client.close().await;
        }
        Ok(if counters.failed + counters.refused + unasked == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// Connect all devices, ten at a time: a thousand connections at the same moment would test the broker, not the
    /// function.
    async fn connect(&self, dir: &Path, settings: &Settings) -> Result<Vec<Arc<Client>>> {
        let mut clients = Vec::new();
        for tens in (1..=self.devices).collect::<Vec<_>>().chunks(10) {
            let mut connecting = JoinSet::new();
            for n in tens {
                let mut device = Device::open(&dir.join(format!("{}-{n}", self.name)))?;
                if let Some(port) = self.port {
                    device = device.through(port);
                }
                let settings = settings.clone();
                connecting.spawn(async move { Client::connect(&device, settings).await });
            }
            for client in connecting.join_all().await {
                let client = client?;
                warn_of_another(&client);
                clients.push(Arc::new(client));
            }
        }
        Ok(clients)
    }
}

/// A random row within the ranges of the training data, to three digits of each range.
pub fn any_row(model: &Description) -> Vec<f64> {
    let value = |feature: &Feature| {
        let part = f64::from(fastrand::u16(0..=1000)) / 1e3;
        feature.min + (feature.max - feature.min) * part
    };
    model.features.iter().map(value).collect()
}

/// The counters of all clients together.
fn sum(clients: &[Arc<Client>]) -> Counters {
    clients.iter().map(|client| client.counters()).sum()
}
