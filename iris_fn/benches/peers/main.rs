//! The function against its peers, in one run on this machine: `make bench`.
//!
//! A Runtime API server starts each contender as Lambda does and times it from outside, so that no
//! number depends on what a contender says of itself, but for `handler_us`. Rounds go through all
//! contenders in turn: whatever else this machine does, it does to each of them.

mod chart;
mod runtime_api;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use axum::body::Bytes;
use iris_fn::model::{CURRENT_KEY, FEATURE_NAMES, KIND, SCHEMA};
use iris_fn::predict::Flower;
use iris_fn::{Feature, GoldenRow, Model, ModelFile, Training};
use runtime_api::{Container, Contender};
use serde_json::{Value, json};

const CSV: &str = include_str!("../../../data/iris.csv");
const REFERENCE: &str = include_str!("../../tests/reference.json");
/// Contenders, as the report names them.
const OURS: &str = "iris_fn";
const EMPTY: &str = "empty lambda_runtime";
const PLAIN: &str = "plain Python";
const SKLEARN: &str = "scikit-learn";
const ONNX: &str = "onnxruntime";
/// Cold starts of each contender; the slow ones get fewer.
const COLD_ROUNDS: usize = 25;
const COLD_ROUNDS_SLOW: usize = 7;
/// Rounds through all contenders, and the calls of each within one: few calls, so that a slow moment of
/// the machine falls on all of them alike, and many rounds.
const WARM_ROUNDS: usize = 80;
const WARM_CALLS: usize = 50;
const BATCH_100_CALLS: usize = 3;
/// One call with 10,000 flowers every so many rounds.
const BATCH_10000_EVERY: usize = 5;
/// Rounds before those, which do not count.
const WARM_UP_ROUNDS: usize = 10;
/// Calls of the test for memory growth, and those before its first look.
const GROWTH_CALLS: usize = 100_000;
const GROWTH_WARM_UP: usize = 2_000;

/// All samples of one measurement.
#[derive(Default)]
struct Samples(Vec<f64>);

impl Samples {
    /// The value below which the share `q` of the samples lies, by the nearest rank.
    fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (q * sorted.len() as f64).ceil() as usize;
        sorted
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or(f64::NAN)
    }

    fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// What is measured of one contender, by name.
type Measures = BTreeMap<&'static str, Samples>;

#[tokio::main]
async fn main() {
    // `cargo test --benches` only wants to see that this starts.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    match run().await {
        Ok(true) => {}
        Ok(false) => std::process::exit(1),
        Err(e) => {
            eprintln!("bench: {e:#}");
            std::process::exit(2);
        }
    }
}

async fn run() -> Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    ensure!(
        Path::new("/proc/self/status").exists(),
        "memory and CPU time are read from /proc, which only Linux has"
    );
    let machine = machine();
    let model = Model::from_bytes(&model_file().to_bytes())?;
    let s3 = S3::prepare(&model).await?;
    let contenders = contenders(&root, &s3)?;
    let result = measure(&root, &contenders, &model, &s3).await;
    s3.clean_up().await?;
    let (measured, details) = result?;

    let cases = cases(&measured);
    let ok = cases.iter().all(|case| case.ok());
    let report = json!({
        "machine": machine,
        "cases": cases.iter().map(Case::to_json).collect::<Vec<_>>(),
        "contenders": to_json(&measured),
        "init_us": details,
    });
    fs::write(root.join("target/bench.json"), format!("{report:#}\n"))?;
    chart::draw(&root.join("target/bench.svg"), &measured)?;
    println!("\n{machine}");
    cases.iter().for_each(Case::print);
    println!("written: target/bench.json and target/bench.svg");
    Ok(ok)
}

/// The model that all contenders serve: scikit-learn's own fit of the workshop's data.
fn model_file() -> ModelFile {
    let reference: Value = serde_json::from_str(REFERENCE).expect("the reference is JSON");
    let numbers = |v: &Value| -> Vec<f64> {
        let list = v.as_array().map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(Value::as_f64).collect()
    };
    let weights = &reference["weights_class_by_feature"];
    let row = |k: usize| {
        numbers(&weights[k])
            .try_into()
            .expect("four weights a class")
    };
    let column = |f: usize| flowers().map(move |flower| flower.features()[f]);
    let mut file = ModelFile {
        schema: SCHEMA,
        kind: KIND.into(),
        features: std::array::from_fn(|f| Feature {
            name: FEATURE_NAMES[f].into(),
            unit: "cm".into(),
            min: column(f).fold(f64::INFINITY, f64::min),
            max: column(f).fold(f64::NEG_INFINITY, f64::max),
        }),
        classes: ["setosa", "versicolor", "virginica"].map(String::from),
        weights: [row(0), row(1), row(2)],
        intercepts: numbers(&reference["intercepts"])
            .try_into()
            .expect("three intercepts"),
        training: Training {
            data_sha256: iris_fn::model::sha256_hex(CSV.as_bytes()),
            rows: 150,
            alpha: 1.0,
            ..Training::default()
        },
        golden: vec![],
    };
    // As many as notebook 1 writes.
    file.golden = flowers()
        .step_by(10)
        .map(|flower| GoldenRow {
            features: flower.features(),
            probabilities: file.probabilities(&flower.features()),
        })
        .collect();
    file
}

/// The 150 flowers of the data.
fn flowers() -> impl Iterator<Item = Flower> {
    CSV.lines().skip(1).map(|line| {
        let mut numbers = line.split(',').map_while(|field| field.parse::<f64>().ok());
        Flower::from(std::array::from_fn(|_| {
            numbers.next().expect("a row has four numbers")
        }))
    })
}

fn to_object(flower: &Flower) -> Value {
    FEATURE_NAMES
        .iter()
        .zip(flower.features())
        .map(|(n, x)| ((*n).to_owned(), json!(x)))
        .collect()
}

fn single(flower: &Flower) -> Bytes {
    let mut request = to_object(flower);
    request["request_id"] = json!("3f1c9a52-7d0e-4b58-9a31-0c2d6e8f7b14");
    request.to_string().into()
}

fn batch(size: usize) -> Bytes {
    let all: Vec<Value> = flowers().map(|flower| to_object(&flower)).collect();
    let flowers: Vec<&Value> = all.iter().cycle().take(size).collect();
    json!({"request_id": "batch", "flowers": flowers})
        .to_string()
        .into()
}

/// The bucket that the function reads its model from: in the local cloud, made for this run.
struct S3 {
    client: aws_sdk_s3::Client,
    bucket: String,
    /// A signed address of the model, for whoever has no SDK.
    url: String,
}

impl S3 {
    async fn prepare(model: &Model) -> Result<Self> {
        let config = iris_fn::aws::config().map_err(anyhow::Error::from_boxed)?;
        ensure!(
            config
                .endpoint_url()
                .is_some_and(|url| url.starts_with("http://127.0.0.1:")),
            "the bench uses the local cloud only: run it by `make bench`"
        );
        let client = aws_sdk_s3::Client::new(&config);
        let bucket = format!("bench-{}", std::process::id());
        client
            .create_bucket()
            .bucket(&bucket)
            .send()
            .await
            .context("no bucket for the bench")?;
        let body = model.file().to_bytes().into();
        let put = client
            .put_object()
            .bucket(&bucket)
            .key(CURRENT_KEY)
            .body(body);
        put.send().await.context("could not put the model")?;
        let valid =
            aws_sdk_s3::presigning::PresigningConfig::expires_in(Duration::from_secs(3600))?;
        let get = client
            .get_object()
            .bucket(&bucket)
            .key(CURRENT_KEY)
            .presigned(valid)
            .await?;
        Ok(Self {
            url: get.uri().to_owned(),
            client,
            bucket,
        })
    }

    /// One GET of the model on a new connection, as a container's first one is.
    fn round_trip(&self) -> Result<Duration> {
        let agent = ureq::Agent::new_with_defaults();
        let started = Instant::now();
        agent.get(&self.url).call()?.body_mut().read_to_vec()?;
        Ok(started.elapsed())
    }

    async fn clean_up(&self) -> Result<()> {
        self.client
            .delete_object()
            .bucket(&self.bucket)
            .key(CURRENT_KEY)
            .send()
            .await?;
        self.client
            .delete_bucket()
            .bucket(&self.bucket)
            .send()
            .await?;
        Ok(())
    }
}

/// Everybody who takes part.
fn contenders(root: &Path, s3: &S3) -> Result<Vec<Contender>> {
    let peers = root.join("target/bench/peers");
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let aws = [
        "AWS_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_REGION",
    ];
    let mut common: Vec<(String, String)> = aws
        .into_iter()
        .map(|name| {
            Ok((
                name.to_owned(),
                std::env::var(name).with_context(|| format!("{name} is not set"))?,
            ))
        })
        .collect::<Result<_>>()?;
    let settings = [
        ("AWS_LAMBDA_FUNCTION_NAME", "bench"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/bench"),
        ("AWS_LAMBDA_LOG_STREAM_NAME", "bench"),
        ("STACK", "bench"),
        ("BUCKET", &s3.bucket),
        ("MODEL_TTL", "5"),
        ("PATH", "/usr/bin:/bin"),
        ("LANG", "C.UTF-8"),
    ];
    common.extend(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let rust = |name, program: &str| Contender {
        name,
        command: vec![root.join(program).display().to_string()],
        env: common.clone(),
        log: root.join(format!("target/bench/{}.log", name.replace(' ', "-"))),
    };
    let python = |name, folder: &str| {
        let paths = [peers.join(folder), peers.join("awslambdaric")];
        let paths = paths.map(|p| p.display().to_string()).join(":");
        let mut env = common.clone();
        env.push(("PYTHONPATH".into(), paths));
        env.push((
            "LAMBDA_TASK_ROOT".into(),
            peers.join(folder).display().to_string(),
        ));
        env.push(("_HANDLER".into(), "fn.handler".into()));
        Contender {
            name,
            command: [&python, "-m", "awslambdaric", "fn.handler"]
                .map(str::to_owned)
                .into(),
            env,
            log: root.join(format!("target/bench/{folder}.log")),
        }
    };
    let all = vec![
        rust(OURS, "target/release/bootstrap"),
        rust(EMPTY, "target/release/examples/empty"),
        python(PLAIN, "plain"),
        python(SKLEARN, "sklearn"),
        python(ONNX, "onnx"),
    ];
    for contender in &all {
        let program = &contender.command[0];
        ensure!(
            !program.contains('/') || Path::new(program).exists(),
            "{program} is missing: run `make bench`"
        );
    }
    Ok(all)
}

/// From here on this process keeps to core 1 and leaves core 0 to the contenders. A warm call is a few dozen
/// microseconds: where the scheduler may choose on which cores both ends run, it is its choice that is measured.
fn run_on_one_core() -> Result<()> {
    let pid = std::process::id().to_string();
    let taskset = ["--all-tasks", "--cpu-list", "--pid", "1", &pid];
    let output = Command::new("taskset").args(taskset).output();
    let output = output.context("could not run taskset (it is in util-linux)")?;
    ensure!(
        output.status.success(),
        "the bench needs cores 0 and 1: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Run everything; the measures of each contender, and where the time of our own start goes.
async fn measure(
    root: &Path,
    contenders: &[Contender],
    model: &Model,
    s3: &S3,
) -> Result<(BTreeMap<&'static str, Measures>, Value)> {
    let mut all: BTreeMap<&'static str, Measures> = BTreeMap::new();
    let mut add = |name: &'static str, what: &'static str, value: f64| {
        all.entry(name)
            .or_default()
            .entry(what)
            .or_default()
            .0
            .push(value);
    };
    let started = Instant::now();
    let step = |text: &str| println!("{:>6.1} s  {text}", started.elapsed().as_secs_f64());

    step("all contenders answer the same 150 flowers");
    for contender in contenders.iter().filter(|c| c.name != EMPTY) {
        agree(contender, model).await?;
    }

    let first = single(&flowers().next().context("no data")?);
    let mut init: BTreeMap<String, Samples> = BTreeMap::new();
    for round in 0..COLD_ROUNDS {
        if round % 5 == 0 {
            step(&format!(
                "cold starts, round {} of {COLD_ROUNDS}",
                round + 1
            ));
        }
        for contender in contenders {
            let slow = contender.name == SKLEARN || contender.name == ONNX;
            if slow && round >= COLD_ROUNDS_SLOW {
                continue;
            }
            let mut container = Container::start(contender).await?;
            let (time, _) = container.cold(first.clone()).await?;
            add(contender.name, "cold_ms", milliseconds(time));
            container.stop().await?;
            if contender.name == OURS {
                for (phase, us) in init_phases(&contender.log)? {
                    init.entry(phase).or_default().0.push(us);
                }
            }
        }
        add("S3", "get_ms", milliseconds(s3.round_trip()?));
    }

    run_on_one_core()?;
    let mut containers = Vec::new();
    for contender in contenders {
        let mut container = Container::start(&contender.on_one_core()).await?;
        container.idle().await?;
        add(contender.name, "init_cpu_ms", milliseconds(container.cpu()));
        containers.push((contender.name, container));
    }
    let (hundred, ten_thousand) = (batch(100), batch(10_000));
    for round in 0..WARM_UP_ROUNDS + WARM_ROUNDS {
        let counts = round >= WARM_UP_ROUNDS;
        if round % 30 == 0 {
            step(&format!(
                "warm calls, round {} of {} (the first {WARM_UP_ROUNDS} warm up)",
                round + 1,
                WARM_UP_ROUNDS + WARM_ROUNDS
            ));
        }
        let plan = [
            ("warm_us", &first, WARM_CALLS),
            ("batch_100_us", &hundred, BATCH_100_CALLS),
            (
                "batch_10000_us",
                &ten_thousand,
                usize::from(round % BATCH_10000_EVERY == 0),
            ),
        ];
        for (name, container) in &mut containers {
            for (what, event, calls) in plan {
                for _ in 0..calls {
                    let (time, answer) = container.invoke(event.clone()).await?;
                    if !counts {
                        continue;
                    }
                    add(name, what, time.as_secs_f64() * 1e6);
                    if what == "warm_us" && *name != EMPTY {
                        let answer: Value = serde_json::from_slice(&answer)?;
                        let us = answer["handler_us"].as_f64().context("no handler_us")?;
                        add(name, "handler_us", us);
                    }
                }
            }
        }
    }
    for (name, container) in containers {
        add(name, "peak_rss_mb", container.memory_kb("VmHWM") / 1e3);
        container.stop().await?;
    }

    step("throughput on one core");
    for contender in contenders {
        let mut container = Container::start(&contender.on_one_core()).await?;
        container.idle().await?;
        for _ in 0..WARM_ROUNDS {
            let started = Instant::now();
            for _ in 0..WARM_CALLS {
                container.invoke(first.clone()).await?;
            }
            add(
                contender.name,
                "per_second",
                WARM_CALLS as f64 / started.elapsed().as_secs_f64(),
            );
        }
        container.stop().await?;
    }

    step("10,000 flowers without JSON");
    let many: Vec<Flower> = flowers()
        .collect::<Vec<_>>()
        .into_iter()
        .cycle()
        .take(10_000)
        .collect();
    for _ in 0..200 {
        let started = Instant::now();
        let predictions: Vec<_> = many.iter().map(|flower| model.predict(flower)).collect();
        std::hint::black_box(&predictions);
        add(OURS, "arithmetic_us", started.elapsed().as_secs_f64() * 1e6);
    }
    let named = |name| {
        let found = contenders.iter().find(|contender| contender.name == name);
        found.with_context(|| format!("no contender {name}"))
    };
    let sklearn = named(SKLEARN)?;
    let script = root.join("iris_fn/benches/peers/vectorised.py");
    let output = Command::new(&sklearn.command[0])
        .arg(script)
        .env_clear()
        .envs(sklearn.env.iter().cloned())
        .output()?;
    ensure!(
        output.status.success(),
        "vectorised.py: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let times: Vec<f64> = serde_json::from_slice(&output.stdout)?;
    times
        .into_iter()
        .for_each(|us| add(SKLEARN, "arithmetic_us", us));

    let mut container = Container::start(named(OURS)?).await?;
    let mut before = 0.0;
    for call in 0..GROWTH_CALLS {
        if call % 25_000 == 0 {
            step(&format!("memory over {GROWTH_CALLS} calls: {call}"));
        }
        if call == GROWTH_WARM_UP {
            before = container.memory_kb("VmRSS");
        }
        container.invoke(first.clone()).await?;
    }
    add(
        OURS,
        "growth_mb",
        (container.memory_kb("VmRSS") - before) / 1e3,
    );
    container.stop().await?;

    for (name, zip, folder) in [
        (
            OURS,
            "target/lambda/local/iris_fn.zip",
            "target/release/bootstrap",
        ),
        (
            PLAIN,
            "target/bench/peers/plain.zip",
            "target/bench/peers/plain",
        ),
        (
            SKLEARN,
            "target/bench/peers/sklearn.zip",
            "target/bench/peers/sklearn",
        ),
        (
            ONNX,
            "target/bench/peers/onnx.zip",
            "target/bench/peers/onnx",
        ),
    ] {
        add(
            name,
            "zip_mb",
            fs::metadata(root.join(zip)).context(zip)?.len() as f64 / 1e6,
        );
        add(name, "unpacked_mb", size(&root.join(folder))? as f64 / 1e6);
    }
    let init = init
        .iter()
        .map(|(phase, samples)| (phase.clone(), json!(samples.median())))
        .collect();
    Ok((all, init))
}

/// Refuse a contender whose probabilities are not the model's.
async fn agree(contender: &Contender, model: &Model) -> Result<()> {
    let mut container = Container::start(contender).await?;
    for (row, flower) in flowers().enumerate() {
        let (_, answer) = container.invoke(single(&flower)).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let expected = model.predict(&flower);
        for (class, p) in model.file().classes.iter().zip(expected.probabilities) {
            let found = answer["probabilities"][class].as_f64();
            if !found.is_some_and(|found| (found - p).abs() <= 1e-4) {
                bail!(
                    "{}: flower {row}: P({class}) is {found:?}, expected {p}",
                    contender.name
                );
            }
        }
    }
    container.stop().await?;
    Ok(())
}

/// Microseconds of each phase that the function logged until it was ready.
fn init_phases(log: &Path) -> Result<Vec<(String, f64)>> {
    let text = fs::read_to_string(log)?;
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let before_the_call = lines.take_while(|line| line["message"] != "answered");
    let mut phases = Vec::new();
    for line in before_the_call {
        for (name, value) in line.as_object().into_iter().flatten() {
            if let (Some(phase), Some(us)) = (name.strip_suffix("_us"), value.as_f64()) {
                phases.push((phase.to_owned(), us));
            }
        }
    }
    ensure!(!phases.is_empty(), "no phases in {}", log.display());
    Ok(phases)
}

/// Bytes of all files below a path, without Python's bytecode.
fn size(path: &Path) -> Result<u64> {
    if path.is_file() {
        return Ok(fs::metadata(path)?.len());
    }
    let mut total = 0;
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.file_name().is_none_or(|name| name != "__pycache__") {
            total += size(&path)?;
        }
    }
    Ok(total)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A goal: the ratio must be at least, or at most, a number.
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

struct Case {
    name: &'static str,
    ours: f64,
    /// `None` where the goal is about our number alone.
    peer: Option<f64>,
    unit: &'static str,
    goal: Goal,
}

impl Case {
    /// The better our number, the larger for `AtLeast` (peer ÷ ours), the smaller for `AtMost`
    /// (ours ÷ peer, or ours alone).
    fn ratio(&self) -> f64 {
        match (&self.goal, self.peer) {
            (Goal::AtLeast(_), peer) => peer.unwrap_or(f64::NAN) / self.ours,
            (Goal::AtMost(_), peer) => self.ours / peer.unwrap_or(1.0),
        }
    }

    fn ok(&self) -> bool {
        match self.goal {
            Goal::AtLeast(goal) => self.ratio() >= goal,
            Goal::AtMost(goal) => self.ratio() <= goal,
        }
    }

    fn goal(&self) -> String {
        match self.goal {
            Goal::AtLeast(goal) => format!(">= {goal}"),
            Goal::AtMost(goal) => format!("<= {goal}"),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "name": self.name, "ours": self.ours, "peer": self.peer, "unit": self.unit,
            "ratio": self.ratio(), "goal": self.goal(), "ok": self.ok(),
        })
    }

    fn print(&self) {
        let peer = self
            .peer
            .map_or_else(|| "-".to_owned(), |peer| format!("{peer:.3}"));
        println!(
            "{:<7}{:<58} ours {:>10.3}  peer {peer:>10}  {:<3} ratio {:>7.2}  goal {}",
            if self.ok() { "ok" } else { "MISSED" },
            self.name,
            self.ours,
            self.unit,
            self.ratio(),
            self.goal(),
        );
    }
}

/// The goals, by the medians.
fn cases(measured: &BTreeMap<&'static str, Measures>) -> Vec<Case> {
    let median = |name: &str, what: &str| {
        measured
            .get(name)
            .and_then(|m| m.get(what))
            .map_or(f64::NAN, Samples::median)
    };
    let at_least = |name, what, peer, unit, goal| Case {
        name,
        ours: median(OURS, what),
        peer: Some(median(peer, what)),
        unit,
        goal: Goal::AtLeast(goal),
    };
    let at_most = |name, ours, peer, unit, goal| Case {
        name,
        ours,
        peer,
        unit,
        goal: Goal::AtMost(goal),
    };
    let floor = median(EMPTY, "cold_ms") + median("S3", "get_ms");
    vec![
        at_least(
            "cold start, scikit-learn ÷ ours",
            "cold_ms",
            SKLEARN,
            "ms",
            50.0,
        ),
        at_least(
            "cold start, plain Python ÷ ours",
            "cold_ms",
            PLAIN,
            "ms",
            2.0,
        ),
        at_most(
            "cold start, ours ÷ (empty function + one S3 GET)",
            median(OURS, "cold_ms"),
            Some(floor),
            "ms",
            1.5,
        ),
        at_least(
            "one flower in the handler, plain Python ÷ ours",
            "handler_us",
            PLAIN,
            "µs",
            4.0,
        ),
        at_most(
            "one flower, round trip, ours ÷ empty function",
            median(OURS, "warm_us"),
            Some(median(EMPTY, "warm_us")),
            "µs",
            1.15,
        ),
        at_least(
            "10,000 flowers without JSON, scikit-learn ÷ ours",
            "arithmetic_us",
            SKLEARN,
            "µs",
            1.0,
        ),
        at_least(
            "10,000 flowers with JSON, scikit-learn ÷ ours",
            "batch_10000_us",
            SKLEARN,
            "µs",
            5.0,
        ),
        at_least(
            "peak memory, scikit-learn ÷ ours",
            "peak_rss_mb",
            SKLEARN,
            "MB",
            8.0,
        ),
        at_most("zip", median(OURS, "zip_mb"), None, "MB", 3.0),
        at_least("zip, scikit-learn ÷ ours", "zip_mb", SKLEARN, "MB", 20.0),
        at_most(
            "memory growth over 100,000 calls",
            median(OURS, "growth_mb"),
            None,
            "MB",
            1.0,
        ),
    ]
}

/// Median, quartiles and 99th percentile of everything.
fn to_json(measured: &BTreeMap<&'static str, Measures>) -> Value {
    let one = |samples: &Samples| {
        json!({
            "median": samples.median(), "p25": samples.quantile(0.25), "p75": samples.quantile(0.75),
            "p99": samples.quantile(0.99), "samples": samples.0.len(),
        })
    };
    let contender = |m: &Measures| {
        m.iter()
            .map(|(what, s)| ((*what).to_owned(), one(s)))
            .collect::<Value>()
    };
    measured
        .iter()
        .map(|(name, m)| ((*name).to_owned(), contender(m)))
        .collect()
}

/// Processor, system and compilers, in a line.
fn machine() -> String {
    let first_line = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let text = output
            .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
            .unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    [
        format!(
            "{cores} cores of {}",
            cpu.trim_start_matches([' ', '\t', ':'])
        ),
        first_line("uname", "-sr"),
        first_line("rustc", "--version"),
        first_line(&python, "--version"),
    ]
    .join(", ")
}
