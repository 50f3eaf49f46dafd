//! The model that answers, and the rows of the run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use client::Description;
use client::table::{Label, Table};
use iris_fn::Feature;

use super::guard::Refusal;
use crate::load::any_row;

/// Most rows of a file that are kept.
const OF_A_FILE: usize = 100_000;
/// Random ones, where there is no file.
const RANDOM: usize = 500;

/// The model that answers, and the rows that it is asked about.
pub struct Run {
    pub model: Description,
    /// Incremented when features, classes or the target change.
    pub shape: u64,
    /// The two features that change the answer most.
    pub axes: [usize; 2],
    pub middle: Vec<f64>,
    pub rows: Vec<(Vec<f64>, Option<String>)>,
    /// Where the rows come from, as text.
    pub source: String,
}

impl Run {
    /// The file's rows; random ones where it cannot be used.
    pub fn new(model: Description, csv: &Path, shape: u64) -> Self {
        let (rows, source) = match read(csv, &model) {
            Ok(rows) => {
                let source = format!("{} rows of {}", rows.len(), csv.display());
                (rows, source)
            }
            Err(e) => {
                let random = (0..RANDOM).map(|_| (any_row(&model), None)).collect();
                (
                    random,
                    format!("random rows within the training ranges ({e})"),
                )
            }
        };
        let mean = |k: usize| rows.iter().map(|(row, _)| row[k] / rows.len() as f64).sum();
        let middle = (0..model.features.len()).map(mean).collect();
        Self {
            model,
            shape,
            axes: [0, 1],
            middle,
            rows,
            source,
        }
    }

    /// The line that describes the run in the terminal.
    pub fn line(&self) -> String {
        format!(
            "model {}: {}, {}",
            &self.model.model.get(..8).unwrap_or_default(),
            self.model.target,
            self.source
        )
    }

    /// A page's row, in the model's order.
    ///
    /// # Errors
    /// [`Refusal::Row`] names the feature that is missing, or the field that is not a feature.
    pub fn row(&self, fields: &BTreeMap<String, f64>) -> Result<Vec<f64>, Refusal> {
        let features = &self.model.features;
        if let Some(name) = fields
            .keys()
            .find(|name| features.iter().all(|f| f.name != **name))
        {
            return Err(Refusal::Row(format!("the model has no feature {name:?}")));
        }
        let value = |f: &Feature| {
            fields
                .get(&f.name)
                .copied()
                .ok_or_else(|| Refusal::Row(format!("`{}` is missing", f.name)))
        };
        features.iter().map(value).collect()
    }
}

/// The rows of a CSV that fits the model.
fn read(path: &Path, model: &Description) -> Result<Vec<(Vec<f64>, Option<String>)>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let table =
        Table::read(&bytes, model).with_context(|| format!("{} does not fit", path.display()))?;
    let class = |label| match label {
        Label::Class(class) => Some(class),
        Label::Other(_) => None,
    };
    // A row that cannot be asked about is left out.
    let rows = table.rows.into_iter().flatten().take(OF_A_FILE);
    let rows: Vec<_> = rows
        .map(|row| (row.values, row.label.and_then(class)))
        .collect();
    ensure!(!rows.is_empty(), "{} has no rows", path.display());
    Ok(rows)
}

/// Range and step of a feature's slider and axis: a little wider than the training data, in steps of a power of ten.
pub fn slider(feature: &Feature) -> (f64, f64, f64) {
    let [accept_low, accept_high] = feature.accept;
    let wider = match feature.max - feature.min {
        0.0 => feature.max.abs().max(1.0) / 2.0,
        range => range / 10.0,
    };
    let (low, high) = (
        (feature.min - wider).max(accept_low),
        (feature.max + wider).min(accept_high),
    );
    let step = 10f64.powf(
        ((high - low).clamp(1e-300, f64::MAX) / 50.0)
            .log10()
            .floor(),
    );
    // Format and parse, so that 73 steps of 0.1 are 7.3.
    let tidy = |x: f64| format!("{x:.12e}").parse().unwrap_or(x);
    let (tidy_low, tidy_high) = (
        tidy((low / step).ceil() * step),
        tidy((high / step).floor() * step),
    );
    if tidy_low < tidy_high {
        (tidy_low, tidy_high, tidy(step))
    } else {
        (low, high, (high - low) / 50.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(min: f64, max: f64, accept: [f64; 2]) -> Feature {
        Feature {
            name: "a".into(),
            unit: String::new(),
            min,
            max,
            accept,
        }
    }

    #[test]
    fn a_slider_is_a_little_wider_than_training_and_within_what_is_accepted() {
        assert_eq!(slider(&feature(1.0, 6.9, [0.0, 100.0])), (0.5, 7.4, 0.1));
        assert_eq!(slider(&feature(0.0, 16.0, [0.0, 16.0])), (0.0, 16.0, 0.1));
        assert_eq!(
            slider(&feature(2700.0, 6300.0, [0.0, 1e5])),
            (2340.0, 6660.0, 10.0)
        );
    }

    #[test]
    fn a_feature_that_never_varied_still_has_a_range() {
        let (low, high, step) = slider(&feature(0.0, 0.0, [-1.0, 1.0]));
        assert!(low < 0.0 && high > 0.0 && step > 0.0);
    }

    #[test]
    fn a_pages_row_has_every_feature_and_no_other() {
        let model = Description {
            target: "t".into(),
            features: vec![feature(0.0, 1.0, [0.0, 1.0])],
            classes: vec![],
            model: "m".into(),
        };
        let run = Run::new(model, Path::new("/nowhere"), 0);
        assert!(run.source.starts_with("random rows"));
        assert_eq!(run.row(&[("a".to_owned(), 0.5)].into()).unwrap(), [0.5]);
        for wrong in [BTreeMap::new(), [("b".to_owned(), 0.5)].into()] {
            assert!(matches!(run.row(&wrong), Err(Refusal::Row(_))), "{wrong:?}");
        }
    }
}
