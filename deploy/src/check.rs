//! What a version must show before `live` moves to it: the model's golden rows, an answer that it
//! publishes, and the same answers as `live` to a broad set of flowers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use iris_fn::Model;
use iris_fn::model::{FEATURE_NAMES, FEATURES, GOLDEN_TOLERANCE};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cloud::{Cloud, Target};
use crate::function::{LIVE, SAMPLE_REQUEST, call};

/// Longer than the template's MODEL_TTL, after which a container looks for a newer model.
const MODEL_WAIT: Duration = Duration::from_secs(30);
const IRIS: &str = include_str!("../../data/iris.csv");
/// Points along each measurement of the grid, from half the smallest to one and a half times the
/// largest that training saw.
const GRID: usize = 5;

/// The answer to a batch.
#[derive(Debug, Clone, Deserialize)]
struct Answer {
    model: String,
    predictions: Vec<Prediction>,
}

#[derive(Debug, Clone, Deserialize)]
struct Prediction {
    species: String,
    probabilities: BTreeMap<String, f64>,
}

/// The function says that it has no model.
#[derive(Debug, thiserror::Error)]
#[error("version {0} has no model: `make logs` says why it cannot read it")]
struct NoModel(String);

type Features = [f64; FEATURES];

/// Ask `version` about all these flowers in one request.
async fn ask(cloud: &Cloud, version: &str, flowers: &[Features]) -> Result<Answer> {
    let object = |features: &Features| -> Value {
        let fields = FEATURE_NAMES.iter().zip(features);
        fields
            .map(|(name, x)| ((*name).to_owned(), json!(x)))
            .collect()
    };
    let flowers: Vec<Value> = flowers.iter().map(object).collect();
    let request = json!({"request_id": "deploy", "flowers": flowers}).to_string();
    let answer = call(cloud, version, &request).await?;
    let expected = flowers.len();
    if answer["error"]["code"] == "model_unavailable" {
        return Err(NoModel(version.to_owned()).into());
    }
    let answer: Answer = Deserialize::deserialize(&answer)
        .with_context(|| format!("version {version} answered {answer:.300}"))?;
    let found = answer.predictions.len();
    ensure!(
        found == expected,
        "version {version} answered {found} of {expected} flowers"
    );
    Ok(answer)
}

/// The same, until the answer is this model's: a warm container may still hold the one before, and
/// looks for a newer one by itself; and a role that is seconds old may not read anything yet.
async fn ask_with(
    cloud: &Cloud,
    version: &str,
    flowers: &[Features],
    model: &str,
) -> Result<Answer> {
    let deadline = Instant::now() + MODEL_WAIT;
    let mut told = false;
    loop {
        let answer = ask(cloud, version, flowers).await;
        let wait = match &answer {
            Ok(answer) => answer.model != model,
            Err(e) => e.is::<NoModel>(),
        };
        if !wait || Instant::now() >= deadline {
            return answer;
        }
        if answer.is_err() && !told {
            told = true;
            println!(
                "version {version} cannot read the model yet (a new role takes a moment), waiting"
            );
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Ask `version` for the model's golden rows, past `live`, and compare.
///
/// # Errors
/// With what differed.
pub async fn golden_rows(cloud: &Cloud, version: &str, model: &Model) -> Result<()> {
    let golden = &model.file().golden;
    let flowers: Vec<Features> = golden.iter().map(|row| row.features).collect();
    let answer = ask_with(cloud, version, &flowers, model.sha256()).await?;
    ensure!(
        answer.model == model.sha256(),
        "version {version} serves model {:.12}, not {:.12}",
        answer.model,
        model.sha256()
    );
    for (row, (golden, prediction)) in golden.iter().zip(&answer.predictions).enumerate() {
        for (class, expected) in model.file().classes.iter().zip(golden.probabilities) {
            let found = prediction.probabilities.get(class).copied();
            if found.is_none_or(|p| (p - expected).abs() > GOLDEN_TOLERANCE) {
                let found = found.unwrap_or(f64::NAN);
                bail!(
                    "version {version}, golden row {row}: P({class}) is {found}, expected {expected}"
                );
            }
        }
    }
    println!(
        "version {version} answers all {} golden rows of model {:.12}",
        golden.len(),
        model.sha256()
    );
    Ok(())
}

/// Call `version` with the event that the rule would make, so that it also publishes its answer: that
/// takes a right and a connection that no direct call uses. No device can be called `deploy` alone, so
/// nobody hears it.
///
/// # Errors
/// When the invocation fails, with the function's own words.
pub async fn rule_event(cloud: &Cloud, version: &str) -> Result<()> {
    let payload = BASE64_STANDARD.encode(SAMPLE_REQUEST);
    let event = json!({"payload": payload, "client_id": "deploy"}).to_string();
    let deadline = Instant::now() + MODEL_WAIT;
    let mut answer = call(cloud, version, &event).await;
    // As above: a role that is seconds old. The local cloud's are in force at once.
    while answer.is_err() && cloud.target == Target::Aws && Instant::now() < deadline {
        println!("version {version} cannot publish yet (a new role takes a moment), waiting");
        tokio::time::sleep(Duration::from_secs(3)).await;
        answer = call(cloud, version, &event).await;
    }
    let answer = answer.context("called as the rule does")?;
    ensure!(
        answer["species"].is_string(),
        "version {version}, called as the rule does, answered {answer:.300}"
    );
    println!("version {version} publishes its answer");
    Ok(())
}

/// How two answers to the same flowers differ.
#[derive(Debug, PartialEq)]
struct Difference {
    /// Flowers that get another species.
    species: usize,
    /// Largest change of any probability.
    probability: f64,
}

impl Difference {
    fn between(before: &Answer, after: &Answer) -> Self {
        let pairs = before.predictions.iter().zip(&after.predictions);
        let species = pairs
            .clone()
            .filter(|(a, b)| a.species != b.species)
            .count();
        let change = |(a, b): (&Prediction, &Prediction)| {
            let of = |class: &String| b.probabilities.get(class).copied().unwrap_or(0.0);
            let changes = a
                .probabilities
                .iter()
                .map(|(class, p)| (p - of(class)).abs());
            changes.fold(0.0, f64::max)
        };
        Self {
            species,
            probability: pairs.map(change).fold(0.0, f64::max),
        }
    }
}

/// Ask `version` and `live` about the 150 flowers of the data and a grid that reaches beyond them.
///
/// A published model changes `live`'s answers by itself, so that difference is named and the code is
/// judged with one model on both sides.
///
/// # Errors
/// When more than `max_changed` flowers get another species.
pub async fn shadow(cloud: &Cloud, version: &str, model: &Model, max_changed: usize) -> Result<()> {
    let flowers: Vec<Features> = data()?.into_iter().chain(grid(model)).collect();
    let after = ask(cloud, version, &flowers).await?;
    let mut before = match ask(cloud, LIVE, &flowers).await {
        Ok(answer) => answer,
        // A broken `live` must not stand in the way of its own repair.
        Err(e) => {
            println!("nothing to compare with, `live` does not answer: {e:#}");
            return Ok(());
        }
    };
    let asked = flowers.len();
    if before.model != after.model {
        let Difference {
            species,
            probability,
        } = Difference::between(&before, &after);
        println!(
            "the model changed from {:.12} to {:.12}: {species} of {asked} flowers get another species, probabilities differ by up to {probability:.1e}",
            before.model, after.model
        );
        before = ask_with(cloud, LIVE, &flowers, &after.model).await?;
    }
    let Difference {
        species,
        probability,
    } = Difference::between(&before, &after);
    println!(
        "beside `live`: {species} of {asked} flowers get another species, probabilities differ by up to {probability:.1e}"
    );
    ensure!(
        species <= max_changed,
        "version {version} gives {species} of {asked} flowers another species than `live` does, and MAX_CHANGED is {max_changed}: if that is what you want, make deploy MAX_CHANGED={species}"
    );
    Ok(())
}

/// The 150 flowers that the project is about.
fn data() -> Result<Vec<Features>> {
    let flower = |line: &str| {
        let mut numbers = line.split(',').map(str::parse);
        let mut features = [0.0; FEATURES];
        for x in &mut features {
            *x = numbers.next().context("a column is missing")??;
        }
        Ok(features)
    };
    let rows = IRIS.lines().skip(1).map(flower);
    rows.collect::<Result<_>>().context("data/iris.csv")
}

/// [`GRID`]⁴ flowers, evenly spaced within and beyond what training saw.
fn grid(model: &Model) -> impl Iterator<Item = Features> {
    let ranges = model.file().features.clone();
    (0..GRID.pow(FEATURES as u32)).map(move |index| {
        std::array::from_fn(|column| {
            let step = index / GRID.pow(column as u32) % GRID;
            let (low, high) = (ranges[column].min * 0.5, ranges[column].max * 1.5);
            low + (high - low) * step as f64 / (GRID - 1) as f64
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(predictions: &[(&str, f64)]) -> Answer {
        let prediction = |(species, p): &(&str, f64)| Prediction {
            species: (*species).to_owned(),
            probabilities: [("setosa".to_owned(), *p), ("virginica".to_owned(), 1.0 - p)].into(),
        };
        Answer {
            model: "m".to_owned(),
            predictions: predictions.iter().map(prediction).collect(),
        }
    }

    #[test]
    fn the_data_are_150_flowers() {
        assert_eq!(data().unwrap().len(), 150);
    }

    #[test]
    fn a_difference_counts_species_and_measures_probabilities() {
        let before = answer(&[("setosa", 0.75), ("virginica", 0.25)]);
        let after = answer(&[("setosa", 0.75), ("setosa", 0.5)]);
        let none = Difference {
            species: 0,
            probability: 0.0,
        };
        assert_eq!(Difference::between(&before, &before), none);
        let one = Difference {
            species: 1,
            probability: 0.25,
        };
        assert_eq!(Difference::between(&before, &after), one);
    }
}
