//! Latencies, as percentiles that keep the rare long ones.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Times from microseconds to ten minutes, to three digits (<http://hdrhistogram.org>).
pub struct Latency(Histogram<u64>);

impl Latency {
    /// None yet.
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are in order"))
    }

    /// One more.
    pub fn record(&mut self, time: Duration) {
        self.0
            .saturating_record(time.as_micros().try_into().unwrap_or(u64::MAX));
    }

    /// In milliseconds.
    pub fn quantile(&self, q: f64) -> f64 {
        self.0.value_at_quantile(q) as f64 / 1e3
    }

    /// For people.
    pub fn line(&self) -> String {
        let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|q| self.quantile(q));
        format!(
            "p50 {p50:.1} ms, p90 {p90:.1}, p99 {p99:.1}, p99.9 {p999:.1}, longest {:.1}",
            self.quantile(1.0)
        )
    }

    /// For programs, in milliseconds; `null` where nothing was recorded.
    pub fn json(&self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        json!({"p50": self.quantile(0.5), "p90": self.quantile(0.9), "p99": self.quantile(0.99),
               "p99.9": self.quantile(0.999), "max": self.quantile(1.0)})
    }
}
