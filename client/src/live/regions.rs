//! What the model would say all over the petal plane.
//!
//! It is asked, over the same way as everything else, and not computed here: the page then shows the model that
//! answers, whatever that is, and there is no second place that knows how to compute it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::{AskError, Reply};
use iris_fn::model::{FEATURE_NAMES, FEATURES};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use thiserror::Error;
use tokio::time::sleep;

use super::asking::Asking;

/// The plane, in centimetres: petal length, petal width.
const PLANE: (f64, f64) = (7.5, 2.8);
/// Grid points along each; in between the page interpolates.
const COLUMNS: usize = 51;
const ROWS: usize = 29;
/// Flowers in one question: their answer stays below MQTT's 128 KB with room to spare.
const BATCH: usize = 500;
/// Between two tries, and between two models that take turns while one replaces the other.
const PATIENCE: Duration = Duration::from_secs(2);
/// Models whose regions are kept.
const KEPT: usize = 8;

/// Why there are no regions.
#[derive(Debug, Error)]
enum NoRegions {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the function refuses: {0}")]
    Refused(Value),
    #[error("the answer is not what a batch has: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("{found} answers to {asked} flowers")]
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
    /// By class name, in the order of the names.
    probabilities: BTreeMap<String, f64>,
}

/// Have the regions of whichever model answers, as long as the page is there.
pub async fn keep(asking: Arc<Asking>) {
    let mut answering = asking.model();
    let mut known: HashMap<String, Arc<str>> = HashMap::new();
    let mut model = String::new();
    loop {
        match known.get(&model) {
            Some(regions) => drop(asking.regions.send_replace(Some(Arc::clone(regions)))),
            None => match grid(&asking).await {
                Ok((of, regions)) => {
                    if known.len() == KEPT {
                        known.clear();
                    }
                    known.insert(of.clone(), Arc::clone(&regions));
                    model = of;
                    asking.regions.send_replace(Some(regions));
                    asking.trouble.send_replace(None);
                }
                Err(e) => {
                    asking.trouble.send_replace(Some(e.to_string()));
                    sleep(PATIENCE).await;
                    continue;
                }
            },
        }
        match answering
            .wait_for(|name| !name.is_empty() && *name != model)
            .await
        {
            Ok(other) => model.clone_from(&other),
            Err(_) => return,
        }
        sleep(PATIENCE).await;
    }
}

/// Ask for the whole grid: the model's name, and the text for the page.
async fn grid(asking: &Asking) -> Result<(String, Arc<str>), NoRegions> {
    let points = points(asking.mean());
    let (mut model, mut predictions) = (String::new(), Vec::new());
    for flowers in points.chunks(BATCH) {
        let request = json!({"request_id": asking.id(), "flowers": flowers.iter().map(flower).collect::<Vec<_>>()});
        let batch: Batch = match asking.ask(&request).await? {
            Reply::Answer(answer) => serde_json::from_value(answer)?,
            Reply::Refusal(error) => return Err(NoRegions::Refused(error)),
        };
        if batch.predictions.len() != flowers.len() {
            let (found, asked) = (batch.predictions.len(), flowers.len());
            return Err(NoRegions::Count { found, asked });
        }
        if !model.is_empty() && model != batch.model {
            return Err(NoRegions::Changed);
        }
        model = batch.model;
        predictions.extend(batch.predictions);
    }
    let text = text(&model, asking.mean(), &predictions);
    Ok((model, text.into()))
}

fn flower(x: &[f64; FEATURES]) -> Value {
    FEATURE_NAMES
        .iter()
        .zip(x)
        .map(|(name, x)| ((*name).to_owned(), json!(x)))
        .collect()
}

/// Row by row from the origin, the sepal as it is on average.
fn points([sepal_length, sepal_width, ..]: [f64; FEATURES]) -> Vec<[f64; FEATURES]> {
    let part = |k: usize, of: usize, length: f64| length * k as f64 / (of - 1) as f64;
    let point = |k: usize| {
        [
            sepal_length,
            sepal_width,
            part(k % COLUMNS, COLUMNS, PLANE.0),
            part(k / COLUMNS, ROWS, PLANE.1),
        ]
    };
    (0..COLUMNS * ROWS).map(point).collect()
}

/// Probabilities in thousandths: more would not be seen.
fn text(model: &str, mean: [f64; FEATURES], predictions: &[Prediction]) -> String {
    let classes: Vec<_> = predictions
        .first()
        .map_or(vec![], |one| one.probabilities.keys().collect());
    let thousandths = predictions
        .iter()
        .flat_map(|one| one.probabilities.values())
        .map(|p| (p * 1e3).round() as u16);
    json!({"model": model, "classes": classes, "columns": COLUMNS, "rows": ROWS, "plane": PLANE,
           "sepal": [mean[0], mean[1]], "thousandths": thousandths.collect::<Vec<_>>()})
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_covers_the_plane_row_by_row_with_the_sepal_fixed() {
        let points = points([5.8, 3.0, 9.9, 9.9]);
        assert_eq!(points.len(), COLUMNS * ROWS);
        assert_eq!(points[0], [5.8, 3.0, 0.0, 0.0]);
        assert_eq!(points[COLUMNS - 1], [5.8, 3.0, PLANE.0, 0.0]);
        assert_eq!(points[COLUMNS * ROWS - 1], [5.8, 3.0, PLANE.0, PLANE.1]);
    }

    #[test]
    fn a_question_about_a_part_of_it_fits_into_mqtt_and_its_longest_answer_too() {
        let x = [1.0 / 3.0; FEATURES];
        assert!(flower(&x).to_string().len() * BATCH < iris_fn::request::MAX_PAYLOAD);
        let prediction = json!({"species": "versicolor", "in_distribution": false, "probabilities":
            {"setosa": f64::MIN_POSITIVE, "versicolor": f64::MIN_POSITIVE, "virginica": f64::MIN_POSITIVE}});
        assert!((prediction.to_string().len() + 1) * BATCH < iris_fn::request::MAX_PAYLOAD - 1024);
    }

    #[test]
    fn classes_stand_in_the_order_of_their_names() {
        let prediction = Prediction {
            probabilities: [("virginica", 0.2), ("setosa", 0.1004), ("versicolor", 0.7)]
                .map(|(name, p)| (name.to_owned(), p))
                .into(),
        };
        let text: Value = serde_json::from_str(&text("m", [0.0; 4], &[prediction])).unwrap();
        assert_eq!(
            text["classes"],
            json!(["setosa", "versicolor", "virginica"])
        );
        assert_eq!(text["thousandths"], json!([100, 700, 200]));
    }
}
