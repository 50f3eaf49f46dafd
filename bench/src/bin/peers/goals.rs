//! What was measured, and the goals.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::contenders::{EMPTY, OURS, PLAIN, SKLEARN};

/// All samples of one measurement.
#[derive(Default)]
pub struct Samples(pub Vec<f64>);

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

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// What is measured of one contender, by name.
pub type Measures = BTreeMap<&'static str, Samples>;

/// A goal: the ratio must be at least, or at most, a number.
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

pub struct Case {
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

    pub fn ok(&self) -> bool {
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

    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name, "ours": self.ours, "peer": self.peer, "unit": self.unit,
            "ratio": self.ratio(), "goal": self.goal(), "ok": self.ok(),
        })
    }

    pub fn print(&self) {
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
pub fn cases(measured: &BTreeMap<&'static str, Measures>) -> Vec<Case> {
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
            "one row in the handler, plain Python ÷ ours",
            "handler_us",
            PLAIN,
            "µs",
            4.0,
        ),
        at_most(
            "one row, round trip, ours ÷ empty function",
            median(OURS, "warm_us"),
            Some(median(EMPTY, "warm_us")),
            "µs",
            1.25,
        ),
        at_least(
            "10,000 rows without JSON, scikit-learn ÷ ours",
            "arithmetic_us",
            SKLEARN,
            "µs",
            1.0,
        ),
        at_least(
            "10,000 rows with JSON, scikit-learn ÷ ours",
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
pub fn to_json(measured: &BTreeMap<&'static str, Measures>) -> Value {
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
