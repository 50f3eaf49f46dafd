//! What the stack costs on AWS: arithmetic on a price list, not a measurement.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The part of `data/prices.json` that the stack pays; US dollars, without free tiers.
#[derive(Debug, Deserialize)]
struct Prices {
    region: String,
    as_of: String,
    lambda_million_requests: f64,
    lambda_gb_second_x86_64: f64,
    iot_million_messages: f64,
    iot_million_rules: f64,
    iot_million_actions: f64,
    iot_million_connection_minutes: f64,
    s3_gb_month: f64,
    logs_gb_ingested: f64,
    logs_gb_month: f64,
    alarm_month: f64,
    dashboard_month: f64,
    metric_month: f64,
}

/// The template's `MemorySize`, in GB.
const MEMORY_GB: f64 = 128.0 / 1024.0;
/// Assumed duration of one call that publishes its answer to IoT, in seconds. Nothing here was measured
/// on AWS: look at `Duration` in the `REPORT` lines of `make logs TARGET=aws`.
const CALL_SECONDS: f64 = 0.020;
/// A call's own line (450 bytes) and Lambda's START, END and REPORT (350).
const LOG_GB_PER_MILLION: f64 = 0.8;
/// A device's question, the function's answer, and its delivery; each up to 5 KB.
const MESSAGES: f64 = 3.0;
/// Ten builds of 3 MB, and models of 3 KB.
const STORED_GB: f64 = 0.03;
/// Assumed number of the model's classes: each is a metric.
const ASSUMED: f64 = 3.0;
/// Names times dimensions in `iris_fn/src/metrics.rs`: the classes, handler time, cold starts, refusals,
/// refusals by one code.
const METRICS: f64 = ASSUMED + 4.0;

const MINUTES_A_MONTH: f64 = 730.0 * 60.0;

/// A line of the bill, in US dollars.
struct Item {
    what: String,
    dollars: f64,
    /// AWS's free tier covers it in an account that does little else.
    free: &'static str,
}

fn idle(p: &Prices) -> Vec<Item> {
    vec![
        item(
            "S3: 30 MB of code and models",
            STORED_GB * p.s3_gb_month,
            "",
        ),
        item("CloudWatch: two alarms", 2.0 * p.alarm_month, "10 are free"),
        item("CloudWatch: one dashboard", p.dashboard_month, "3 are free"),
        item("Lambda, IoT rule, SQS, certificates", 0.0, ""),
    ]
}

fn million(p: &Prices) -> Vec<Item> {
    let seconds = CALL_SECONDS * 1e6 * MEMORY_GB;
    let logs = LOG_GB_PER_MILLION * (p.logs_gb_ingested + p.logs_gb_month * 14.0 / 30.0);
    vec![
        item(
            "Lambda: 1,000,000 requests",
            p.lambda_million_requests,
            "1,000,000 a month are free",
        ),
        item(
            &format!("Lambda: {:.0} ms each at 128 MB", CALL_SECONDS * 1e3),
            seconds * p.lambda_gb_second_x86_64,
            "400,000 GB-s a month are free",
        ),
        item(
            "IoT Core: question, answer, delivery",
            MESSAGES * p.iot_million_messages,
            "",
        ),
        item(
            "IoT Core: one rule with one action",
            p.iot_million_rules + p.iot_million_actions,
            "",
        ),
        item(
            "CloudWatch Logs: 0.8 GB, kept 14 days",
            logs,
            "5 GB a month are free",
        ),
        item(
            &format!("CloudWatch: {METRICS} metrics, a month"),
            METRICS * p.metric_month,
            "10 are free",
        ),
    ]
}

fn item(what: &str, dollars: f64, free: &'static str) -> Item {
    let what = what.to_owned();
    Item {
        what,
        dollars,
        free,
    }
}

/// Print what the stack costs when nobody asks, and what a million predictions cost.
pub fn print(path: &Path) -> Result<()> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let prices: Prices = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    println!(
        "On AWS in {}, list prices of {} (from memory, not looked up: compare with the pages in {} before you rely on them).",
        prices.region,
        prices.as_of,
        path.display()
    );
    println!("Arithmetic, not a bill. The local cloud costs nothing.");
    table("A month in which nobody asks", &idle(&prices));
    table(
        "A million predictions over MQTT, one row each",
        &million(&prices),
    );
    let minutes = prices.iot_million_connection_minutes;
    println!(
        "\nEvery connected device: ${minutes:.2} per million minutes, {:.2} cents a month.",
        minutes / 1e6 * MINUTES_A_MONTH * 100.0
    );
    println!(
        "The model is assumed to have {ASSUMED} classes: each class more is a metric more, ${:.2} a month.",
        prices.metric_month
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
    let sum: f64 = items.iter().map(|item| item.dollars).sum();
    println!("  {:<40} {sum:>8.4}", "all, US dollars");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_own_prices_give_a_bill() {
        let prices: Prices = serde_json::from_str(include_str!("../../data/prices.json")).unwrap();
        let sum = |items: Vec<Item>| items.iter().map(|item| item.dollars).sum::<f64>();
        // 30 MB, two alarms, one dashboard.
        assert!((sum(idle(&prices)) - 3.200_69).abs() < 1e-4);
        // 0.20 + 0.0417 + 3.00 + 0.30 + 0.4112 + 2.10
        assert!((sum(million(&prices)) - 6.0529).abs() < 1e-3);
    }
}
