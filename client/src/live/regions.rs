//! The model's predictions over a plane of two features, the others fixed.
//!
//! They come from the function and are not computed here, so that the page shows the model that answers, whatever that
//! is. That costs requests, of at most [`BATCH`] rows and as many bytes as an MQTT message holds: 2 for a plane of 4
//! features, about 20 for 64, never more than [`REQUESTS`]; and about as many at the start, for the axes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use client::{AskError, Description, Reply};
use iris_fn::request::MAX_PAYLOAD;
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::asking::Asking;
use super::guard::Refusal;
use super::rows::{Run, slider};

/// Grids that may be pending at once, of all pages together.
pub const GRIDS: u16 = 4;
/// Rows in one request, and requests for one grid.
const BATCH: usize = 500;
const REQUESTS: usize = 24;
/// Grid points along each axis; in between the page interpolates.
const COLUMNS: usize = 33;
const LINES: usize = 25;
/// Grids that are kept.
const KEPT: usize = 64;

/// Why there are no regions.
#[derive(Debug, Error)]
pub enum NoRegions {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the function refuses: {0}")]
    Refused(Value),
    #[error("the answer is not what a batch has: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("{found} answers to {asked} rows")]
    Count { found: usize, asked: usize },
    #[error("the model changed in between")]
    Changed,
}

/// An answer to a batch.
#[derive(Deserialize)]
struct Batch {
    model: String,
    predictions: Vec<Prediction>,
}

#[derive(Deserialize)]
struct Prediction {
    probabilities: BTreeMap<String, f64>,
}

/// The latest grids, and permits to ask for more.
pub struct Regions {
    known: Mutex<HashMap<String, Arc<str>>>,
    permits: Semaphore,
}

impl Default for Regions {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            permits: Semaphore::new(GRIDS.into()),
        }
    }
}

/// Rows that fit into one request and whose answer fits into one message.
fn per_request(model: &Description) -> usize {
    let (row, prediction) = model.most_bytes();
    ((MAX_PAYLOAD - 1024) / row.max(prediction)).clamp(1, BATCH)
}

/// P(class) of each row, in the order of the classes.
async fn ask(
    asking: &Asking,
    model: &Description,
    rows: &[Vec<f64>],
) -> Result<Vec<Vec<f64>>, NoRegions> {
    let mut all = Vec::with_capacity(rows.len());
    for rows in rows.chunks(per_request(model)) {
        let request = model.batch(&asking.id(), rows.iter().map(Vec::as_slice));
        let batch: Batch = match asking.ask(&request).await? {
            Reply::Answer(answer) => serde_json::from_value(answer)?,
            Reply::Refusal(error) => return Err(NoRegions::Refused(error)),
        };
        if batch.model != model.model {
            return Err(NoRegions::Changed);
        }
        let (found, asked) = (batch.predictions.len(), rows.len());
        if found != asked {
            return Err(NoRegions::Count { found, asked });
        }
        let in_order = |one: Prediction| {
            model
                .classes
                .iter()
                .map(|c| one.probabilities.get(c).copied().unwrap_or(0.0))
                .collect()
        };
        all.extend(batch.predictions.into_iter().map(in_order));
    }
    Ok(all)
}

/// The two features that change the answer most when each alone goes from the middle row to its min and its max.
pub async fn axes(asking: &Asking, run: &Run) -> Result<[usize; 2], NoRegions> {
    let mut rows = vec![run.middle.clone()];
    for (k, feature) in run.model.features.iter().enumerate() {
        for end in [feature.min, feature.max] {
            let mut row = run.middle.clone();
            row[k] = end;
            rows.push(row);
        }
    }
    Ok(most(&ask(asking, &run.model, &rows).await?))
}

/// The first answer is the middle's; then two for each feature.
fn most(answers: &[Vec<f64>]) -> [usize; 2] {
    let change = |of: &Vec<f64>| {
        of.iter()
            .zip(&answers[0])
            .map(|(a, b)| (a - b).abs())
            .sum::<f64>()
    };
    let moved: Vec<f64> = answers[1..]
        .chunks(2)
        .map(|ends| ends.iter().map(change).sum())
        .collect();
    let mut order: Vec<usize> = (0..moved.len()).collect();
    order.sort_by(|a, b| moved[*b].total_cmp(&moved[*a]));
    let mut axes = [order[0], order.get(1).copied().unwrap_or(order[0])];
    axes.sort_unstable();
    axes
}

/// The grid for a page: from memory, or from the function.
pub async fn grid(
    asking: &Asking,
    axes: &[String; 2],
    row: &BTreeMap<String, f64>,
) -> Result<Arc<str>, Refusal> {
    let run = asking.current();
    let mut row = run.row(row)?;
    let column = |name: &String| {
        let found = run
            .model
            .features
            .iter()
            .position(|feature| feature.name == *name);
        found.ok_or_else(|| Refusal::Row(format!("the model has no feature {name:?}")))
    };
    let [x, y] = [column(&axes[0])?, column(&axes[1])?];
    row[x] = 0.0;
    row[y] = 0.0;
    let key = json!([run.model.model, x, y, row]).to_string();
    let known = || {
        asking
            .regions
            .known
            .lock()
            .expect("nothing panics while it holds this lock")
    };
    if let Some(grid) = known().get(&key) {
        return Ok(Arc::clone(grid));
    }
    let busy = |_| Refusal::Busy {
        pending: GRIDS.into(),
    };
    let _permit = asking.regions.permits.try_acquire().map_err(busy)?;
    let (columns, lines) = size(per_request(&run.model));
    let points = points(&run.model, &row, [x, y], columns, lines);
    let answers = ask(asking, &run.model, &points).await.map_err(|e| {
        asking.doubt.notify_one();
        Refusal::NoRegions(e.to_string())
    })?;
    let grid: Arc<str> = text(&run.model.model, columns, lines, &answers).into();
    let mut known = known();
    if known.len() == KEPT {
        known.clear();
    }
    known.insert(key, Arc::clone(&grid));
    Ok(grid)
}

/// Coarser where few rows fit into a request.
fn size(per_request: usize) -> (usize, usize) {
    let part = ((per_request * REQUESTS) as f64 / (COLUMNS * LINES) as f64)
        .sqrt()
        .min(1.0);
    let along = |full: usize| ((full as f64 * part) as usize).max(2);
    (along(COLUMNS), along(LINES))
}

/// Line by line from the lowest values on.
fn points(
    model: &Description,
    row: &[f64],
    [x, y]: [usize; 2],
    columns: usize,
    lines: usize,
) -> Vec<Vec<f64>> {
    let at = |feature: usize, k: usize, of: usize| {
        let (low, high, _) = slider(&model.features[feature]);
        let part = k as f64 / (of - 1) as f64;
        low * (1.0 - part) + high * part
    };
    let point = |n: usize| {
        let mut point = row.to_vec();
        point[y] = at(y, n / columns, lines);
        point[x] = at(x, n % columns, columns);
        point
    };
    (0..columns * lines).map(point).collect()
}

/// Probabilities in thousandths, of the classes that are the likeliest somewhere: more would not be seen.
fn text(model: &str, columns: usize, lines: usize, answers: &[Vec<f64>]) -> String {
    let best = |p: &Vec<f64>| (0..p.len()).max_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut classes: Vec<usize> = answers.iter().filter_map(best).collect();
    classes.sort_unstable();
    classes.dedup();
    let thousandths = answers
        .iter()
        .flat_map(|p| classes.iter().map(|k| (p[*k] * 1e3).round() as u16));
    let thousandths: Vec<u16> = thousandths.collect();
    json!({"model": model, "classes": classes, "columns": columns, "rows": lines, "thousandths": thousandths}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use iris_fn::Feature;

    fn model(features: usize, classes: usize, name: &str) -> Description {
        let feature = |k| Feature {
            name: format!("{name}{k}"),
            unit: "g".into(),
            min: 0.0,
            max: 10.0,
            accept: [0.0, 10.0],
        };
        let classes = (0..classes).map(|k| format!("{name}{k}")).collect();
        Description {
            target: "t".into(),
            features: (0..features).map(feature).collect(),
            classes,
            model: "m".into(),
        }
    }

    #[test]
    fn the_grid_covers_the_plane_line_by_line_with_the_others_fixed() {
        let points = points(&model(3, 2, "f"), &[0.0, 7.0, 0.0], [2, 0], COLUMNS, LINES);
        assert_eq!(points.len(), COLUMNS * LINES);
        assert_eq!(points[0], [0.0, 7.0, 0.0]);
        assert_eq!(points[COLUMNS - 1], [0.0, 7.0, 10.0]);
        assert_eq!(points[COLUMNS * LINES - 1], [10.0, 7.0, 10.0]);
    }

    #[test]
    fn a_request_and_its_longest_answer_fit_into_mqtt() {
        for (features, classes) in [(2, 2), (4, 3), (64, 10), (256, 256)] {
            let model = model(features, classes, &"\"".repeat(60));
            let rows = per_request(&model);
            let row = vec![-f64::MIN_POSITIVE / 3.0; features];
            let request = model.batch(
                "live-01234567-1234567890",
                std::iter::repeat_n(row.as_slice(), rows),
            );
            assert!(request.to_string().len() < MAX_PAYLOAD, "{features}");
            let probabilities: Value = model
                .classes
                .iter()
                .map(|c| (c.clone(), json!(f64::MIN_POSITIVE / 3.0)))
                .collect();
            let prediction = json!({"t": model.classes[0], "probabilities": probabilities, "in_distribution": false});
            assert!(
                (prediction.to_string().len() + 1) * rows < MAX_PAYLOAD - 512,
                "{features}"
            );
            let (columns, lines) = size(rows);
            assert!((columns * lines).div_ceil(rows) <= REQUESTS + 1);
        }
    }

    #[test]
    fn the_axes_are_the_features_that_change_the_answer_most() {
        let answers = [0.5, 0.4, 0.5, 0.5, 0.5, 0.1, 0.9].map(|p| vec![p, 1.0 - p]);
        assert_eq!(most(&answers), [0, 2]);
        assert_eq!(most(&answers[..3]), [0, 0]);
    }

    #[test]
    fn classes_that_win_nowhere_are_left_out() {
        let text: Value = serde_json::from_str(&text(
            "m",
            2,
            1,
            &[vec![0.1, 0.2, 0.7], vec![0.6, 0.1, 0.3]],
        ))
        .unwrap();
        assert_eq!(
            (&text["classes"], &text["thousandths"]),
            (&json!([0, 2]), &json!([100, 700, 600, 300]))
        );
    }
}
