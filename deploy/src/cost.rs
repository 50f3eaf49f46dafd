//! What the stack costs on AWS: arithmetic on a price list, not a measurement.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The list that this program was built with.
const LIST: &str = include_str!("../../data/prices.json");

/// The part of `data/prices.json` that is needed here; US dollars, without free tiers.
#[derive(Debug, Deserialize)]
struct PriceList {
    region: String,
    as_of: String,
    note: String,
    prices: BTreeMap<String, Price>,
}

#[derive(Debug, Deserialize)]
struct Price {
    usd: f64,
}

impl PriceList {
    fn usd(&self, name: &str) -> Result<f64> {
        let price = self.prices.get(name);
        Ok(price
            .with_context(|| format!("the price list has no {name}"))?
            .usd)
    }
}

/// The template's `MemorySize`, in GB.
const MEMORY_GB: f64 = 128.0 / 1024.0;
/// Assumed duration of one call that publishes its answer to IoT, in seconds. Nothing here was measured
/// on AWS: look at `Duration` in the `REPORT` lines of `make logs TARGET=aws`.
const CALL_SECONDS: f64 = 0.020;
/// A call's own line (450 bytes) and Lambda's START, END and REPORT (350).
const LOG_GB_PER_MILLION: f64 = 0.8;
/// A device's request, the function's answer, and its delivery at `QoS` 0; each up to 5 KB. With Basic Ingest the
/// request costs nothing.
const MESSAGES: f64 = 3.0;
/// Ten builds of 3 MB, and models of 3 KB.
const STORED_GB: f64 = 0.03;
/// Assumed number of the model's classes: each is a metric.
const ASSUMED: f64 = 3.0;
/// Names times dimensions in `iris_fn/src/metrics.rs`: the classes, handler time, cold starts, refusals,
/// refusals by one code.
const METRICS: f64 = ASSUMED + 4.0;

const MINUTES_A_MONTH: f64 = 730.0 * 60.0;
const MINUTES_A_DAY: f64 = 24.0 * 60.0;
/// The default rate of `make live`, in rows a second.
const LIVE_RATE: f64 = 5.0;
/// The client's limit on one connection, in requests a second: with the answers, 80 of the 100 messages that AWS takes.
const FASTEST_DEVICE: f64 = 40.0;

/// How many alarms the template makes.
fn alarms() -> usize {
    include_str!("../template.yaml")
        .matches("Type: AWS::CloudWatch::Alarm")
        .count()
}

/// A line of the bill, in US dollars.
struct Item {
    what: String,
    dollars: f64,
    /// AWS's free tier covers it in an account that does little else.
    free: &'static str,
}

fn idle(p: &PriceList) -> Result<Vec<Item>> {
    let alarms = alarms();
    Ok(vec![
        item(
            "S3: 30 MB of code and models",
            STORED_GB * p.usd("s3_gb_month")?,
            "",
        ),
        item(
            &format!("CloudWatch: {alarms} alarms"),
            alarms as f64 * p.usd("alarm_month")?,
            "10 are free",
        ),
        item(
            "CloudWatch: one dashboard",
            p.usd("dashboard_month")?,
            "3 are free",
        ),
        item("Lambda, IoT rule, SQS, certificates", 0.0, ""),
        item("a budget that sends e-mail", p.usd("budget_month")?, ""),
    ])
}

/// What only calls cost, for a million predictions.
fn calls(p: &PriceList) -> Result<Vec<Item>> {
    let seconds = CALL_SECONDS * 1e6 * MEMORY_GB;
    let logs = p.usd("logs_gb_ingested")? + p.usd("logs_gb_month")? * 14.0 / 30.0;
    Ok(vec![
        item(
            "Lambda: 1,000,000 requests",
            p.usd("lambda_million_requests")?,
            "1,000,000 a month are free",
        ),
        item(
            &format!("Lambda, arm64: {:.0} ms each at 128 MB", CALL_SECONDS * 1e3),
            seconds * p.usd("lambda_gb_second_arm64")?,
            "400,000 GB-s a month are free",
        ),
        item(
            "IoT Core: request, answer, delivery",
            MESSAGES * p.usd("iot_million_messages")?,
            "",
        ),
        item(
            "IoT Core: one rule with one action",
            p.usd("iot_million_rules")? + p.usd("iot_million_actions")?,
            "",
        ),
        item(
            "CloudWatch Logs: 0.8 GB, kept 14 days",
            LOG_GB_PER_MILLION * logs,
            "5 GB a month are free",
        ),
    ])
}

fn item(what: &str, dollars: f64, free: &'static str) -> Item {
    let what = what.to_owned();
    Item {
        what,
        dollars,
        free,
    }
}

fn sum(items: &[Item]) -> f64 {
    items.iter().map(|item| item.dollars).sum()
}

/// What one connected device costs that sends so many requests a second for a whole day.
fn a_day(p: &PriceList, rate: f64) -> Result<f64> {
    let millions = rate * 86_400.0 / 1e6;
    let connected = MINUTES_A_DAY / 1e6 * p.usd("iot_million_connection_minutes")?;
    Ok(millions * sum(&calls(p)?) + connected)
}

/// What a forgotten command costs: one sentence to read before the first deploy that may cost something.
///
/// # Errors
/// When the price list that this was built with is incomplete.
pub fn forgotten() -> Result<String> {
    sentence(&serde_json::from_str(LIST).context("data/prices.json")?)
}

fn sentence(p: &PriceList) -> Result<String> {
    Ok(format!(
        "a `make live` that is forgotten ({LIVE_RATE} rows a second) costs about ${:.2} a day, one device at \
         {FASTEST_DEVICE} requests a second ${:.0} a day (list prices of {}, {}; `make cost` has the sum)",
        a_day(p, LIVE_RATE)?,
        a_day(p, FASTEST_DEVICE)?,
        p.as_of,
        p.region,
    ))
}

/// Print what the stack costs when it is idle, what a million predictions cost, and what a forgotten command costs a
/// day.
pub fn print(path: &Path) -> Result<()> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let p: PriceList = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    println!(
        "On AWS in {}, prices looked up on {}; {} has the source of each.",
        p.region,
        p.as_of,
        path.display()
    );
    println!("{}", p.note);
    println!("Arithmetic, not a bill. The local cloud costs nothing.");
    table("A month in which nobody asks", &idle(&p)?);
    let mut million = calls(&p)?;
    million.push(item(
        &format!("CloudWatch: {METRICS} metrics, a month"),
        METRICS * p.usd("metric_month")?,
        "10 are free",
    ));
    table("A million predictions over MQTT, one row each", &million);
    let minutes = p.usd("iot_million_connection_minutes")?;
    println!(
        "\nEvery connected device: ${minutes:.2} per million minutes, {:.2} cents a month.",
        minutes / 1e6 * MINUTES_A_MONTH * 100.0
    );
    println!(
        "The model is assumed to have {ASSUMED} classes: each class more is a metric more, ${:.2} a month.",
        p.usd("metric_month")?
    );
    println!("\nBeware: {}.", sentence(&p)?);
    println!(
        "A budget sends an e-mail, hours later: make deploy TARGET=aws BUDGET_EMAIL=you@example.com"
    );
    println!("`make destroy TARGET=aws` ends all of it.");
    Ok(())
}

fn table(title: &str, items: &[Item]) {
    println!("\n{title}");
    for Item {
        what,
        dollars,
        free,
    } in items
    {
        println!("  {what:<40} {dollars:>8.4}  {free}");
    }
    println!("  {:<40} {:>8.4}", "all, US dollars", sum(items));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_own_prices_give_a_bill() {
        let p: PriceList = serde_json::from_str(LIST).unwrap();
        // 30 MB, four alarms, one dashboard.
        assert!((sum(&idle(&p).unwrap()) - 3.400_69).abs() < 1e-4);
        // 0.20 + 0.0333 + 3.00 + 0.30 + 0.4112
        assert!((sum(&calls(&p).unwrap()) - 3.9445).abs() < 1e-3);
    }

    #[test]
    fn what_is_forgotten_has_a_price_a_day() {
        let p: PriceList = serde_json::from_str(LIST).unwrap();
        // 8.64 million at $3.9445, and 1,440 minutes of connection.
        assert!((a_day(&p, 100.0).unwrap() - 34.081).abs() < 1e-2);
        assert!(
            forgotten().unwrap().contains("$1.70 a day"),
            "{}",
            forgotten().unwrap()
        );
    }

    #[test]
    fn each_price_and_quota_names_a_source_with_a_date() {
        let list: serde_json::Value = serde_json::from_str(LIST).unwrap();
        let all = ["prices", "quotas"].map(|part| list[part].as_object().unwrap());
        for (name, each) in all.into_iter().flatten() {
            let source = &list["sources"][each["source"].as_str().unwrap_or_default()];
            let dated = source["dated"].as_str().unwrap_or_default();
            assert!(!dated.is_empty(), "{name} has no dated source");
            assert!(
                source["url"]
                    .as_str()
                    .unwrap_or_default()
                    .starts_with("https://"),
                "{name}"
            );
        }
    }
}
