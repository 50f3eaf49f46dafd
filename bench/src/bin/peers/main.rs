//! The function against its peers, in one run on this machine: `make bench`.
//!
//! A Runtime API server starts each contender as Lambda does and times it from outside, so that no
//! number depends on what a contender says of itself, but for `handler_us`. Rounds go through all
//! contenders in turn: whatever else this machine does, it does to each of them.

mod chart;
mod contenders;
mod goals;
mod runtime_api;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use contenders::{EMPTY, ONNX, OURS, PLAIN, Requests, S3, SKLEARN, contenders, model_and_rows};
use goals::{Case, Measures, Samples, cases, to_json};
use iris_fn::Model;
use runtime_api::{Container, Contender};
use serde_json::{Value, json};

/// Cold starts of each contender; the slow ones get fewer.
const COLD_ROUNDS: usize = 25;
const COLD_ROUNDS_SLOW: usize = 7;
/// Rounds through all contenders, and the calls of each within one: few calls, so that a slow moment of
/// the machine falls on all of them alike, and many rounds.
const WARM_ROUNDS: usize = 80;
const WARM_CALLS: usize = 50;
const BATCH_100_CALLS: usize = 3;
/// One call with 10,000 rows every so many rounds.
const BATCH_10000_EVERY: usize = 5;
/// Rounds before those, which do not count.
const WARM_UP_ROUNDS: usize = 10;
/// Calls of the test for memory growth, and those before its first look.
const GROWTH_CALLS: usize = 100_000;
const GROWTH_WARM_UP: usize = 2_000;

#[tokio::main]
async fn main() {
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
    let (file, rows) = model_and_rows()?;
    let model = Model::from_bytes(&file.to_bytes())?;
    let requests = Requests::new(&model, rows);
    // For the round trip, which serves the same.
    fs::write(
        root.join("target/bench/model.json"),
        model.file().to_bytes(),
    )?;
    let s3 = S3::prepare(&model).await?;
    let contenders = contenders(&root, &s3)?;
    let result = measure(&root, &contenders, &model, &requests, &s3).await;
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
    requests: &Requests,
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

    step("all contenders give the data the same answers");
    for contender in contenders.iter().filter(|c| c.name != EMPTY) {
        agree(contender, model, requests).await?;
    }

    let first = requests.single(0);
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
    let (hundred, ten_thousand) = (requests.batch(100), requests.batch(10_000));
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

    step("10,000 rows without JSON");
    let many: Vec<&[f64]> = requests.rows(10_000).collect();
    for _ in 0..200 {
        let started = Instant::now();
        let predictions: Vec<_> = many.iter().map(|row| model.predict(row)).collect();
        std::hint::black_box(&predictions);
        add(OURS, "arithmetic_us", started.elapsed().as_secs_f64() * 1e6);
    }
    let named = |name| {
        let found = contenders.iter().find(|contender| contender.name == name);
        found.with_context(|| format!("no contender {name}"))
    };
    let sklearn = named(SKLEARN)?;
    let script = root.join("bench/peers/vectorised.py");
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
        (OURS, "target/bench/iris_fn.zip", "target/release/bootstrap"),
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
async fn agree(contender: &Contender, model: &Model, requests: &Requests) -> Result<()> {
    let mut container = Container::start(contender).await?;
    for (n, row) in requests.rows(model.file().training.rows).enumerate() {
        let (_, answer) = container.invoke(requests.single(n)).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let expected = model.predict(row);
        for (class, p) in model.file().classes.iter().zip(expected.probabilities) {
            let found = answer["probabilities"][class].as_f64();
            if !found.is_some_and(|found| (found - p).abs() <= 1e-4) {
                bail!(
                    "{}: row {n}: P({class}) is {found:?}, expected {p}",
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
