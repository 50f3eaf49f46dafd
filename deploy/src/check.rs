//! The checks of a version before `live` moves to it: it answers the model's golden rows, it publishes an answer, and
//! its answers to a broad set of rows are those of `live`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use client::table::Table;
use iris_fn::model::GOLDEN_TOLERANCE;
use iris_fn::{Description, Feature, Model};
use serde_json::Value;

use crate::cloud::{Cloud, Target};
use crate::function::{LIVE, call, describe, refusal};

/// Longer than the template's MODEL_TTL, after which a container looks for a newer model.
const MODEL_WAIT: Duration = Duration::from_secs(30);
/// Data to compare as well, where their columns are the model's features.
const DATA: &str = include_str!("../../data/iris.csv");
/// How many rows are generated for a comparison, and the fewest of them.
const SAMPLE: (usize, usize) = (600, 60);
/// Requests and answers of those rows, in bytes: a model of 256 features and classes gets fewer rows.
const SAMPLE_BYTES: usize = 4 << 20;
/// Most bytes of a request or its answer. Lambda takes 6 MB; this much is answered well within the function's
/// 10 seconds and 128 MB.
const BATCH_BYTES: usize = 1 << 20;
type Row = Vec<f64>;

/// A version's answers to some rows.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    /// SHA-256 of the model that answered.
    model: String,
    predictions: Vec<Prediction>,
}

#[derive(Debug, Clone, PartialEq)]
struct Prediction {
    label: String,
    probabilities: BTreeMap<String, f64>,
}

/// Why there is no answer by the expected model; a later call may have one.
#[derive(Debug, thiserror::Error)]
enum NotYet {
    #[error("it has no model: `make logs` says why it cannot read it")]
    NoModel,
    #[error("it serves model {0:.12}")]
    OtherModel(String),
    /// By a model of other features, unless they are the model's own.
    #[error("it refuses the rows: {0}")]
    Refused(String),
}

/// Ask `version` about these rows of `model`, in as many requests as they need.
async fn ask(cloud: &Cloud, version: &str, model: &Description, rows: &[Row]) -> Result<Answer> {
    let deadline = Instant::now() + MODEL_WAIT;
    let mut predictions = Vec::new();
    for batch in rows.chunks(per_request(model)) {
        predictions.extend(ask_until(deadline, cloud, version, model, batch).await?);
    }
    let model = model.model.clone();
    Ok(Answer { model, predictions })
}

/// The same in one request, repeated until the answer is this model's: a warm container may still have the previous
/// model until it refreshes, and a role that is seconds old may not read anything yet.
async fn ask_until(
    deadline: Instant,
    cloud: &Cloud,
    version: &str,
    model: &Description,
    rows: &[Row],
) -> Result<Vec<Prediction>> {
    let (mut reported, mut refusals) = (false, 0);
    loop {
        let error = match ask_once(cloud, version, model, rows).await {
            Ok(answer) if answer.model == model.model => return Ok(answer.predictions),
            Ok(answer) => NotYet::OtherModel(answer.model),
            Err(e) => e.downcast()?,
        };
        if matches!(error, NotYet::Refused(_))
            && describe(cloud, version).await?.model == model.model
        {
            // It may have come between the two calls; if it refuses its own rows again, it means that.
            refusals += 1;
        }
        if refusals > 1 || Instant::now() >= deadline {
            return Err(error).with_context(|| {
                format!(
                    "version {version} does not answer by model {:.12}",
                    model.model
                )
            });
        }
        if matches!(error, NotYet::NoModel) && !reported {
            reported = true;
            println!(
                "version {version} cannot read the model yet (a new role takes a moment), waiting"
            );
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The answer to rows of `model`, by whichever model `version` has.
async fn ask_once(
    cloud: &Cloud,
    version: &str,
    model: &Description,
    rows: &[Row],
) -> Result<Answer> {
    let request = model.batch("deploy", rows.iter().map(Vec::as_slice));
    let reply = call(cloud, version, &request.to_string()).await?;
    if reply["error"]["code"] == "model_unavailable" {
        return Err(NotYet::NoModel.into());
    }
    if let Some(refusal) = refusal(&reply) {
        return Err(NotYet::Refused(refusal.to_owned()).into());
    }
    match (Answer::read(&reply, &model.target), reply["model"].as_str()) {
        (Some(answer), _) if answer.predictions.len() == rows.len() => Ok(answer),
        // It predicts another target.
        (None, Some(found)) if found != model.model => {
            Err(NotYet::OtherModel(found.to_owned()).into())
        }
        _ => bail!(
            "version {version}, asked about {} rows, answered {reply:.300}",
            rows.len()
        ),
    }
}

impl Answer {
    /// `None` when it does not match the contract, with a label under `target`.
    fn read(answer: &Value, target: &str) -> Option<Self> {
        let prediction = |prediction: &Value| {
            let probabilities = prediction["probabilities"].as_object()?.iter();
            let probabilities = probabilities.map(|(class, p)| Some((class.clone(), p.as_f64()?)));
            Some(Prediction {
                label: prediction[target].as_str()?.to_owned(),
                probabilities: probabilities.collect::<Option<_>>()?,
            })
        };
        let predictions = answer["predictions"].as_array()?.iter().map(prediction);
        Some(Self {
            model: answer["model"].as_str()?.to_owned(),
            predictions: predictions.collect::<Option<_>>()?,
        })
    }
}

/// How many rows go into a request, so that neither it nor its answer is too large.
fn per_request(model: &Description) -> usize {
    let (row, prediction) = model.most_bytes();
    (BATCH_BYTES / row.max(prediction)).max(1)
}

/// Ask `version` directly, not through `live`, for the model's golden rows, and compare.
///
/// # Errors
/// When an answer differs: with the row.
pub async fn golden_rows(cloud: &Cloud, version: &str, model: &Model) -> Result<()> {
    let golden = &model.file().golden;
    let rows: Vec<Row> = golden.iter().map(|row| row.features.clone()).collect();
    let answer = ask(cloud, version, &Description::of(model), &rows).await?;
    for (row, (golden, prediction)) in golden.iter().zip(&answer.predictions).enumerate() {
        for (class, expected) in model.file().classes.iter().zip(&golden.probabilities) {
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

/// Call `version` with the event that the rule would make, so that it also publishes its answer: that needs a
/// permission and a connection that no direct call uses. No device can have the client id `deploy`, so nobody receives
/// the answer.
///
/// # Errors
/// When the invocation fails, with the function's error message.
pub async fn rule_event(cloud: &Cloud, version: &str, model: &Model) -> Result<()> {
    let request = Description::of(model).request("deploy", &model.file().golden[0].features);
    let payload = BASE64_STANDARD.encode(request.to_string());
    let event = serde_json::json!({"payload": payload, "client_id": "deploy"}).to_string();
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
        answer[&model.file().target].is_string(),
        "version {version}, called as the rule does, answered {answer:.300}"
    );
    println!("version {version} publishes its answer");
    Ok(())
}

/// How two answers to the same rows differ.
#[derive(Debug, PartialEq)]
struct Difference {
    /// Rows that get another label.
    labels: usize,
    /// Largest change of any probability.
    probability: f64,
    /// Rows that were asked.
    asked: usize,
}

impl Difference {
    fn between(before: &Answer, after: &Answer) -> Self {
        let pairs = before.predictions.iter().zip(&after.predictions);
        let labels = pairs.clone().filter(|(a, b)| a.label != b.label).count();
        let change = |(a, b): (&Prediction, &Prediction)| {
            let of = |class: &String| b.probabilities.get(class).copied().unwrap_or(0.0);
            let changes = a
                .probabilities
                .iter()
                .map(|(class, p)| (p - of(class)).abs());
            changes.fold(0.0, f64::max)
        };
        Self {
            labels,
            probability: pairs.map(change).fold(0.0, f64::max),
            asked: before.predictions.len(),
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            labels,
            probability,
            asked,
        } = self;
        write!(
            f,
            "{labels} of {asked} rows get another label, probabilities differ by up to {probability:.1e}"
        )
    }
}

/// Compare `version` with `live` on a sample of rows within and beyond the training ranges, and on the project's own
/// data where they have the model's features.
///
/// A newly published model changes `live`'s answers by itself, so that difference is reported separately, and the code
/// is compared with the same model on both sides.
///
/// # Errors
/// When more than `max_changed` rows get another label.
pub async fn shadow(cloud: &Cloud, version: &str, model: &Model, max_changed: usize) -> Result<()> {
    let model = Description::of(model);
    let rows: Vec<Row> = data(&model).into_iter().chain(sample(&model)).collect();
    let after = ask(cloud, version, &model, &rows).await?;
    let nothing = |e: anyhow::Error| {
        println!("nothing to compare with: `live` does not answer: {e:#}");
        Ok(())
    };
    let old_model = match by_old_model(cloud, &model, &rows).await {
        Ok(answer) => answer,
        // A broken `live` must not block its own repair.
        Err(e) => return nothing(e),
    };
    if let Some(before) = &old_model {
        let difference = Difference::between(before, &after);
        let (from, to) = (&before.model, &after.model);
        println!("the model changed from {from:.12} to {to:.12}: {difference}");
    }
    let before = match (ask(cloud, LIVE, &model, &rows).await, old_model) {
        (Ok(before), _) => before,
        // `live` does not load the new model: the difference above is all that can be compared.
        (Err(_), Some(before)) => before,
        (Err(e), None) => return nothing(e),
    };
    let difference = Difference::between(&before, &after);
    println!("compared with `live`: {difference}");
    let Difference { labels, asked, .. } = difference;
    ensure!(
        labels <= max_changed,
        "version {version} gives {labels} of {asked} rows another label than `live` does, and MAX_CHANGED is {max_changed}: if that is what you want, make deploy MAX_CHANGED={labels}"
    );
    Ok(())
}

/// The answers of `live` by the previous model, while it still has it; `None` when it has this one, or when the previous
/// one has other features.
async fn by_old_model(cloud: &Cloud, model: &Description, rows: &[Row]) -> Result<Option<Answer>> {
    let mut before: Option<Answer> = None;
    for batch in rows.chunks(per_request(model)) {
        let answer = match ask_once(cloud, LIVE, model, batch).await {
            Err(e) if !e.is::<NotYet>() => return Err(e),
            Err(e) if matches!(e.downcast_ref(), Some(NotYet::NoModel)) => return Err(e),
            Err(e) => {
                println!(
                    "`live` has a model of other features or classes ({e:#}): the code is compared once it has {:.12}",
                    model.model
                );
                return Ok(None);
            }
            Ok(answer) => answer,
        };
        match &mut before {
            _ if answer.model == model.model => break,
            None => before = Some(answer),
            Some(before) if before.model == answer.model => {
                before.predictions.extend(answer.predictions);
            }
            Some(_) => break,
        }
    }
    Ok(before)
}

/// The rows of the project's data, where their columns are the model's features and it accepts them.
fn data(model: &Description) -> Vec<Row> {
    let Ok(table) = Table::read(DATA.as_bytes(), model) else {
        return Vec::new();
    };
    let rows = table.rows.into_iter().flatten().map(|row| row.values);
    let accepted = |row: &Row| {
        let mut values = model.features.iter().zip(row);
        values.all(|(feature, x)| feature.accepts(*x))
    };
    rows.filter(accepted).collect()
}

/// Rows for a comparison, always the same for a model: half of them within the training ranges, half up to a range
/// beyond them, where that is accepted.
fn sample(model: &Description) -> Vec<Row> {
    let (row, prediction) = model.most_bytes();
    let count = (SAMPLE_BYTES / (row + prediction)).clamp(SAMPLE.1, SAMPLE.0);
    let mut random = fastrand::Rng::with_seed(14);
    let mut value = |feature: &Feature, beyond: bool| {
        let Feature {
            min,
            max,
            accept: [low, high],
            ..
        } = *feature;
        let reach = if beyond { max - min } else { 0.0 };
        let (from, to) = ((min - reach).max(low), (max + reach).min(high));
        let part = random.f64();
        (from * (1.0 - part) + to * part).clamp(from, to)
    };
    let row = |n: usize| {
        model
            .features
            .iter()
            .map(|f| value(f, n % 2 == 1))
            .collect()
    };
    (0..count).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const FRUIT: &[u8] = include_bytes!("../../iris_fn/fuzz/corpus/model/fruit.json");

    fn fruit() -> Description {
        Description::of(&Model::from_bytes(FRUIT).unwrap())
    }

    /// A model of the largest size, with the longest names that JSON makes of 64 bytes.
    fn largest() -> Description {
        let name = |n: usize| format!("{n:03}{}", "\"".repeat(61));
        let feature = |n| Feature {
            name: name(n),
            unit: String::new(),
            min: -1e300,
            max: 1e300,
            accept: [-1.7e308, 1.7e308],
        };
        Description {
            target: name(999),
            features: (0..256).map(feature).collect(),
            classes: (0..256).map(name).collect(),
            model: "m".repeat(64),
        }
    }

    fn answer(predictions: &[(&str, f64)]) -> Answer {
        let prediction = |(label, p): &(&str, f64)| Prediction {
            label: (*label).to_owned(),
            probabilities: [("apple".to_owned(), *p), ("pear".to_owned(), 1.0 - p)].into(),
        };
        Answer {
            model: "m".to_owned(),
            predictions: predictions.iter().map(prediction).collect(),
        }
    }

    #[test]
    fn a_sample_is_within_and_beyond_what_training_saw_and_always_accepted() {
        for model in [fruit(), largest()] {
            let rows = sample(&model);
            assert!((SAMPLE.1..=SAMPLE.0).contains(&rows.len()));
            assert_eq!(rows, sample(&model));
            let seen = |row: &Row| {
                let mut values = model.features.iter().zip(row);
                values.all(|(feature, x)| feature.has_seen(*x))
            };
            let inside = rows.iter().filter(|row| seen(row)).count();
            assert!(inside >= rows.len() / 2 && inside < rows.len() * 3 / 4);
            for (column, feature) in model.features.iter().enumerate() {
                let values = || rows.iter().map(move |row| row[column]);
                assert!(values().all(|x| feature.accepts(x)), "{feature:?}");
                assert!(values().any(|x| x > feature.max) || feature.max == feature.accept[1]);
            }
        }
    }

    #[test]
    fn a_feature_of_one_value_is_sampled_too() {
        let mut model = fruit();
        model.features[0].max = model.features[0].min;
        let value = model.features[0].min;
        assert!(sample(&model).iter().all(|row| row[0] == value));
    }

    #[test]
    fn no_request_and_no_answer_is_larger_than_a_batch_may_be() {
        let model = largest();
        let rows = sample(&model);
        assert!(per_request(&model) < rows.len());
        let number = -2.2250738585072014e-308;
        let row = vec![number; 256];
        let most = vec![&row[..]; per_request(&model)];
        let request = model.batch("deploy", most.iter().copied()).to_string();
        assert!(request.len() < BATCH_BYTES + 100, "{}", request.len());
        let probabilities: BTreeMap<_, _> = model.classes.iter().map(|c| (c, number)).collect();
        let prediction = json!({&*model.target: model.classes[0], "probabilities": probabilities, "in_distribution": false});
        let answer = json!({"predictions": vec![prediction; most.len()]}).to_string();
        assert!(answer.len() < BATCH_BYTES + 100, "{}", answer.len());
        assert_eq!(sample(&fruit()).len(), SAMPLE.0);
        assert!(
            per_request(&fruit()) > SAMPLE.0,
            "one request is enough for a small model"
        );
    }

    #[test]
    fn the_data_are_compared_where_they_are_the_models() {
        let mut lines = DATA.lines();
        let columns = lines.next().unwrap().split(',').collect::<Vec<_>>();
        let mut model = fruit();
        assert!(data(&model).is_empty());
        for (feature, column) in model.features.iter_mut().zip(&columns) {
            feature.name = (*column).to_owned();
            feature.accept = [0.0, 100.0];
        }
        assert_eq!(data(&model).len(), lines.count());
        model.features[0].accept = [0.0, 5.0];
        assert!(!data(&model).is_empty() && data(&model).iter().all(|row| row[0] <= 5.0));
    }

    #[test]
    fn a_prediction_is_read_under_the_models_target() {
        let answer = json!({"model": "m", "predictions": [{"fruit": "pear", "probabilities": {"apple": 0.25, "pear": 0.75}}]});
        let found = Answer::read(&answer, "fruit").unwrap();
        assert_eq!(found.predictions[0].label, "pear");
        assert_eq!(found.predictions[0].probabilities["apple"], 0.25);
        assert_eq!(Answer::read(&answer, "vegetable"), None);
        assert_eq!(Answer::read(&json!({"model": "m"}), "fruit"), None);
    }

    #[test]
    fn a_difference_counts_labels_and_measures_probabilities() {
        let before = answer(&[("apple", 0.75), ("pear", 0.25)]);
        let after = answer(&[("apple", 0.75), ("apple", 0.5)]);
        let none = Difference {
            labels: 0,
            probability: 0.0,
            asked: 2,
        };
        assert_eq!(Difference::between(&before, &before), none);
        let one = Difference {
            labels: 1,
            probability: 0.25,
            asked: 2,
        };
        assert_eq!(Difference::between(&before, &after), one);
    }
}
