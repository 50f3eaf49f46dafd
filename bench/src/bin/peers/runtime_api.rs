//! Lambda's side of the Runtime API, as far as a function sees it, with a clock at both ends.
//!
//! <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Error, Result, anyhow};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

/// Longest wait for anything a function does.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a contender is started, and where its output goes.
#[derive(Clone)]
pub struct Contender {
    /// Its name in the report.
    pub name: &'static str,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its whole environment but for `AWS_LAMBDA_RUNTIME_API`.
    pub env: Vec<(String, String)>,
    /// Its standard output and error.
    pub log: PathBuf,
}

impl Contender {
    /// The same, on core 0 only.
    pub fn on_one_core(&self) -> Self {
        let taskset = ["taskset", "--cpu-list", "0"].map(str::to_owned);
        Self {
            command: [&taskset[..], &self.command].concat(),
            ..self.clone()
        }
    }
}

/// What the server tells the bench.
enum Seen {
    /// The function asked for an event.
    Asked,
    /// It was given one.
    Given(Instant),
    /// It answered.
    Answered(Instant, Bytes),
    /// It says that it failed.
    Failed(String),
}

struct Server {
    events: Mutex<mpsc::UnboundedReceiver<Bytes>>,
    seen: mpsc::UnboundedSender<Seen>,
}

/// One running function.
pub struct Container {
    name: &'static str,
    log: PathBuf,
    child: Child,
    events: mpsc::UnboundedSender<Bytes>,
    seen: mpsc::UnboundedReceiver<Seen>,
    /// Just before the process was started.
    pub started: Instant,
    /// The event that the function has asked for and not been given.
    waiting: bool,
}

impl Container {
    /// Start the process; it initialises while the caller does what it likes.
    pub async fn start(contender: &Contender) -> Result<Self> {
        let (events, receiver) = mpsc::unbounded_channel();
        let (sender, seen) = mpsc::unbounded_channel();
        let server = Arc::new(Server {
            events: Mutex::new(receiver),
            seen: sender,
        });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route(
                "/2018-06-01/runtime/invocation/{id}/response",
                post(response),
            )
            .route("/2018-06-01/runtime/invocation/{id}/error", post(failure))
            .route("/2018-06-01/runtime/init/error", post(failure))
            .layer(DefaultBodyLimit::disable())
            .with_state(server);
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("no port for the Runtime API")?;
        let address = listener
            .local_addr()
            .context("no port for the Runtime API")?;
        let listener = listener.tap_io(|stream| {
            // Otherwise Nagle's algorithm is what is measured. A closed socket shows at the next read.
            let _ = stream.set_nodelay(true);
        });
        tokio::spawn(async move { axum::serve(listener, router).await });

        let log = || contender.log.display().to_string();
        let output = fs::File::create(&contender.log).with_context(log)?;
        let started = Instant::now();
        let child = Command::new(&contender.command[0])
            .args(&contender.command[1..])
            .env_clear()
            .envs(contender.env.iter().cloned())
            .env("AWS_LAMBDA_RUNTIME_API", address.to_string())
            .stdin(Stdio::null())
            .stderr(output.try_clone().with_context(log)?)
            .stdout(output)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| contender.command[0].clone())?;
        Ok(Self {
            name: contender.name,
            log: contender.log.clone(),
            child,
            events,
            seen,
            started,
            waiting: false,
        })
    }

    /// Wait until the function asks for its next event: it is initialised, and idle.
    pub async fn idle(&mut self) -> Result<()> {
        while !self.waiting {
            if let Seen::Asked = self.next_seen().await? {
                self.waiting = true;
            }
        }
        Ok(())
    }

    /// Send one event to an idle function; its answer, and the time from one to the other.
    pub async fn invoke(&mut self, event: Bytes) -> Result<(Duration, Bytes)> {
        self.idle().await?;
        let (_, given, answered, answer) = self.exchange(event).await?;
        Ok((answered - given, answer))
    }

    /// Send the first event before the function is up; the time from its start to its answer.
    pub async fn cold(&mut self, event: Bytes) -> Result<(Duration, Bytes)> {
        let (started, _, answered, answer) = self.exchange(event).await?;
        Ok((answered - started, answer))
    }

    async fn exchange(&mut self, event: Bytes) -> Result<(Instant, Instant, Instant, Bytes)> {
        self.events
            .send(event)
            .map_err(|_| self.died("its server ended"))?;
        let mut given = self.started;
        loop {
            match self.next_seen().await? {
                Seen::Asked => {}
                Seen::Given(at) => (given, self.waiting) = (at, false),
                Seen::Answered(at, answer) => return Ok((self.started, given, at, answer)),
                Seen::Failed(error) => return Err(self.died(&error)),
            }
        }
    }

    async fn next_seen(&mut self) -> Result<Seen> {
        tokio::select! {
            seen = timeout(PATIENCE, self.seen.recv()) => {
                seen.ok().flatten().ok_or_else(|| self.died("no answer within a minute"))
            }
            status = self.child.wait() => {
                Err(self.died(&status.map_or_else(|e| e.to_string(), |s| s.to_string())))
            }
        }
    }

    fn died(&self, why: &str) -> Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(8)..].join("\n  ");
        anyhow!(
            "{}: {why}; the end of {}:\n  {end}",
            self.name,
            self.log.display()
        )
    }

    /// CPU time that its threads have used.
    pub fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(self.proc("task"))
            .into_iter()
            .flatten()
            .flatten();
        let nanoseconds = tasks
            .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
            .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
            .sum();
        Duration::from_nanos(nanoseconds)
    }

    /// A line of `/proc/<pid>/status` in KB: `VmHWM` is the peak of the memory, `VmRSS` what it is now.
    pub fn memory_kb(&self, field: &str) -> f64 {
        let status = fs::read_to_string(self.proc("status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok())
            .unwrap_or(f64::NAN)
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.child.id().unwrap_or(0).to_string())
            .join(file)
    }

    /// End the process and wait until it is gone.
    pub async fn stop(mut self) -> Result<()> {
        self.child.kill().await.context(self.name)
    }
}

async fn next(
    State(server): State<Arc<Server>>,
) -> std::result::Result<(HeaderMap, Bytes), StatusCode> {
    let _ = server.seen.send(Seen::Asked);
    let event = server
        .events
        .lock()
        .await
        .recv()
        .await
        .ok_or(StatusCode::GONE)?;
    let deadline = SystemTime::now() + PATIENCE;
    let deadline = deadline
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let headers = [
        ("content-type", "application/json".to_owned()),
        (
            "lambda-runtime-aws-request-id",
            "8476a536-e9f4-11e8-9739-2dfe598c3fcd".to_owned(),
        ),
        ("lambda-runtime-deadline-ms", deadline.to_string()),
        (
            "lambda-runtime-invoked-function-arn",
            "arn:aws:lambda:us-east-1:123456789012:function:bench".to_owned(),
        ),
        (
            "lambda-runtime-trace-id",
            "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Sampled=0".to_owned(),
        ),
    ];
    let headers = headers.into_iter().map(|(name, value)| {
        let value = value
            .parse()
            .expect("digits and letters are a header's value");
        (HeaderName::from_static(name), value)
    });
    let headers = headers.collect();
    let _ = server.seen.send(Seen::Given(Instant::now()));
    Ok((headers, event))
}

async fn response(State(server): State<Arc<Server>>, body: Bytes) -> StatusCode {
    let _ = server.seen.send(Seen::Answered(Instant::now(), body));
    StatusCode::ACCEPTED
}

async fn failure(State(server): State<Arc<Server>>, body: Bytes) -> StatusCode {
    let _ = server
        .seen
        .send(Seen::Failed(String::from_utf8_lossy(&body).into_owned()));
    StatusCode::ACCEPTED
}
