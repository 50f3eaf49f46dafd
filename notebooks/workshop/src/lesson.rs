//! Exercises that answer: [`check`] says what is right, or what is not right yet, and never ends the kernel.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::show::escape;

/// Right, or what is not right yet.
type Verdict = Result<(), String>;

struct Exercise {
    name: &'static str,
    check: fn(&Value) -> Verdict,
    /// What a right answer shows.
    right: &'static str,
}

/// Check the answer to an exercise, `check("1.3", &value)`, and record it when it is right. `make progress` lists what
/// is recorded.
pub fn check(name: &str, answer: &impl Serialize) {
    println!("{}", reply(name, answer, &folder()));
}

fn reply(name: &str, answer: &impl Serialize, folder: &Path) -> String {
    let Some(exercise) = EXERCISES.iter().find(|exercise| exercise.name == name) else {
        return format!("There is no exercise {name}: the first line of the cell has its number.");
    };
    let verdict = match serde_json::to_value(answer) {
        Ok(answer) => (exercise.check)(&answer),
        Err(e) => Err(format!("the answer cannot be read: {e}")),
    };
    if let Err(wrong) = verdict {
        return format!("{name}  not yet: {wrong}");
    }
    let noted =
        std::fs::create_dir_all(folder).and_then(|()| std::fs::write(folder.join(name), ""));
    let trouble = noted
        .err()
        .map(|e| format!("\n(It could not be noted in {}: {e})", folder.display()));
    format!(
        "{name}  right: {}{}",
        exercise.right,
        trouble.unwrap_or_default()
    )
}

/// A page that can be printed, `target/certificate.html`: the model, how many live answers of how many were right, and
/// the exercises that are solved.
pub fn certificate(model: &str, answered: usize, correct: usize) {
    let (folder, page) = (folder(), Path::new("target/certificate.html"));
    let solved = solved(&folder);
    let written = std::fs::write(page, certificate_page(model, answered, correct, &solved));
    println!(
        "model {model:.12}, {correct} of {answered} live answers right, {} of {} exercises solved",
        solved.len(),
        EXERCISES.len()
    );
    match written {
        Ok(()) => println!("{}: open it in a browser to print it", page.display()),
        Err(e) => println!("{} could not be written: {e}", page.display()),
    }
}

/// Where each solved exercise has a file: `PROGRESS_DIR`, else `target/progress`.
fn folder() -> PathBuf {
    std::env::var_os("PROGRESS_DIR").map_or_else(|| "target/progress".into(), PathBuf::from)
}

fn solved(folder: &Path) -> BTreeSet<&'static str> {
    let names = EXERCISES.iter().map(|exercise| exercise.name);
    names.filter(|name| folder.join(name).exists()).collect()
}

fn certificate_page(
    model: &str,
    answered: usize,
    correct: usize,
    solved: &BTreeSet<&str>,
) -> String {
    let list: Vec<&str> = solved.iter().copied().collect();
    let list = if list.is_empty() {
        "none yet".to_owned()
    } else {
        list.join(", ")
    };
    format!(
        r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Certificate: from a notebook to live predictions</title>
<style>
body {{ font: 1.1rem/1.6 sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem; color: #222; background: #fff }}
h1 {{ font-size: 1.6rem }}
dt {{ font-weight: bold }}
dd {{ margin: 0 0 1rem; overflow-wrap: anywhere }}
</style>
<h1>From a notebook to live predictions, in Rust</h1>
<p>Name: ______________________________ &nbsp; Date: ______________</p>
<dl>
<dt>Trained, published and deployed a model</dt><dd>SHA-256 {}</dd>
<dt>Asked it over MQTT</dt><dd>{answered} flowers asked and answered, {correct} named correctly</dd>
<dt>Exercises solved</dt><dd>{} of {}: {list}</dd>
</dl>
</html>
"#,
        escape(model),
        solved.len(),
        EXERCISES.len()
    )
}

/// What a JSON value is called.
fn kind(answer: &Value) -> &'static str {
    match answer {
        Value::Null => "nothing, or NaN",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn number(answer: &Value) -> Result<f64, String> {
    answer
        .as_f64()
        .ok_or_else(|| format!("a number is expected, and this is {}", kind(answer)))
}

fn list(answer: &Value, length: usize) -> Result<&[Value], String> {
    let found = answer
        .as_array()
        .ok_or_else(|| format!("a list is expected, and this is {}", kind(answer)))?;
    if found.len() != length {
        return Err(format!(
            "the list has {} values, and {length} are expected",
            found.len()
        ));
    }
    Ok(found)
}

fn text(answer: &Value) -> Result<&str, String> {
    answer
        .as_str()
        .ok_or_else(|| format!("a text is expected, and this is {}", kind(answer)))
}

/// `expected` within `tolerance`; a known mistake gets its own sentence.
fn near(answer: &Value, expected: f64, tolerance: f64, mistakes: &[(f64, &str)]) -> Verdict {
    let found = number(answer)?;
    let is = |value: f64| (found - value).abs() <= tolerance;
    if is(expected) {
        return Ok(());
    }
    let known = mistakes.iter().find(|(mistake, _)| is(*mistake));
    Err(known.map_or_else(
        || {
            format!(
                "{found} is too {}",
                if found > expected { "large" } else { "small" }
            )
        },
        |(_, sentence)| format!("{found}: {sentence}"),
    ))
}

fn numbers(answer: &Value, expected: &[f64], tolerance: f64) -> Verdict {
    for (i, (found, expected)) in list(answer, expected.len())?
        .iter()
        .zip(expected)
        .enumerate()
    {
        near(found, *expected, tolerance, &[]).map_err(|wrong| format!("value {i}: {wrong}"))?;
    }
    Ok(())
}

fn texts(answer: &Value, expected: &[&str]) -> Verdict {
    for (i, (found, expected)) in list(answer, expected.len())?
        .iter()
        .zip(expected)
        .enumerate()
    {
        let found = text(found)?;
        if found != *expected {
            return Err(format!("value {i} is `{found}`, and that is not it"));
        }
    }
    Ok(())
}

fn one_text(answer: &Value, expected: &str, hint: &str) -> Verdict {
    match text(answer)? {
        found if found == expected => Ok(()),
        found => Err(format!("`{found}` is not it: {hint}")),
    }
}

const SPECIES: [&str; 3] = ["setosa", "versicolor", "virginica"];
/// What the function's answers hold without any change.
const ANSWER: [&str; 7] = [
    "request_id",
    "species",
    "probabilities",
    "in_distribution",
    "model",
    "cold_start",
    "handler_us",
];

const EXERCISES: &[Exercise] = &[
    // ---- 0: Rust
    Exercise {
        name: "0.1",
        check: |answer| {
            near(
                answer,
                2.0,
                0.0,
                &[
                    (3.0, "1.4 is not longer than 2 cm"),
                    (1.0, "more than one is longer"),
                ],
            )
        },
        right: "4.7 and 6.0 pass the filter.",
    },
    Exercise {
        name: "0.2",
        check: |answer| {
            near(
                answer,
                2.55,
                1e-9,
                &[(10.2, "that is the sum: divide it by the number of values")],
            )
        },
        right: "the sum over the length, and the length as f64: Rust converts no number by itself.",
    },
    Exercise {
        name: "0.3",
        check: |answer| numbers(answer, &[5.1, 1.4], 1e-12),
        right: "`filter_map` keeps what is `Some` and drops what is `None`.",
    },
    Exercise {
        name: "0.4",
        check: |answer| {
            near(
                answer,
                0.28,
                1e-9,
                &[
                    (1.6, "that is length + width"),
                    (0.0, "that is where you began"),
                ],
            )
        },
        right: "a method is a function whose first argument is `&self`.",
    },
    Exercise {
        name: "0.5",
        check: |answer| texts(answer, &SPECIES),
        right: "`match` takes the first arm that fits, and the compiler checks that one always does.",
    },
    // ---- 1: Train
    Exercise {
        name: "1.1",
        check: |answer| {
            near(
                answer,
                4.0,
                0.0,
                &[
                    (3.0, "and one more, in the last row"),
                    (146.0, "those are the right ones"),
                ],
            )
        },
        right: "3 versicolor are called virginica, and 1 virginica is called versicolor.",
    },
    Exercise {
        name: "1.2",
        check: |answer| near(answer, 83.0, 0.0, &[(84.0, "rows are counted from 0 here")]),
        right: "row 83 is a versicolor; the model calls it virginica and gives the truth 0.35.",
    },
    Exercise {
        name: "1.3",
        check: |answer| {
            near(
                answer,
                7.92,
                0.02,
                &[
                    (2.72, "that is the largest weight at alpha 1"),
                    (-7.92, "take the absolute value"),
                ],
            )
        },
        right: "a weaker penalty lets the weights grow, and the model becomes more certain.",
    },
    Exercise {
        name: "1.4",
        check: |answer| numbers(answer, &[0.8378, 0.9794], 2e-3),
        right: "50 flowers say less than 150: the interval is more than twice as wide.",
    },
    Exercise {
        name: "1.5",
        check: |answer| {
            near(
                answer,
                FOLDS_BY_TURNS,
                2e-3,
                &[(0.9733, "that is with the folds of this chapter")],
            )
        },
        right: "other folds give another number: the third digit of an accuracy on 150 flowers means nothing.",
    },
    // ---- 2: Publish
    Exercise {
        name: "2.1",
        check: |answer| {
            near(
                answer,
                2.0,
                0.0,
                &[
                    (1.0, "and which object says that it is the current one?"),
                    (4.0, "the same bytes have the same name: S3 keeps them once"),
                    (
                        6.0,
                        "the same bytes have the same name, and the copy is replaced",
                    ),
                ],
            )
        },
        right: "the model under its own name, and the copy models/current.json.",
    },
    Exercise {
        name: "2.2",
        check: |answer| {
            let ids = answer
                .as_array()
                .ok_or("a list of version ids is expected")?;
            let ids: Vec<&str> = ids.iter().map(text).collect::<Result<_, _>>()?;
            let different: BTreeSet<&str> = ids.iter().copied().collect();
            match ids.len() {
                0 => Err("the list is empty: list the versions of models/current.json".into()),
                n if n > different.len() => Err("an id appears twice".into()),
                _ if ids.iter().any(|id| id.ends_with(".json")) => {
                    Err("those are keys, not version ids".into())
                }
                _ => Ok(()),
            }
        },
        right: "S3 keeps each version of the copy: `make rollback WHAT=model` goes back through them.",
    },
    Exercise {
        name: "2.3",
        check: |answer| match text(answer)? {
            found if found.contains("schema 1 is not supported") => Ok(()),
            found if found.contains("golden row") => {
                Err("that is the refusal of a changed weight; change `schema`".into())
            }
            _ => Err("a sentence about the schema is expected".into()),
        },
        right: "a program that meets a newer or older file says so, and names the next step.",
    },
    Exercise {
        name: "2.4",
        check: |answer| one_text(answer, "NoSuchKey", "the error has a method `code()`"),
        right: "an error of the SDK keeps the code that the service sent.",
    },
    Exercise {
        name: "2.5",
        check: |answer| {
            one_text(
                answer,
                "Iris setosa",
                "give the first class of the model that you read back",
            )
        },
        right: "golden rows check numbers, not names. But the SHA-256 is another one, so it is another model.",
    },
    // ---- 3: Deploy
    Exercise {
        name: "3.1",
        check: |answer| texts(answer, &SPECIES),
        right: "the answers come in the order of the request.",
    },
    Exercise {
        name: "3.2",
        check: |answer| match (&answer["in_distribution"], answer["species"].is_string()) {
            (Value::Bool(false), true) => Ok(()),
            (Value::Bool(true), true) => Err(
                "this flower is in the range of the training data: give it longer petals".into(),
            ),
            _ if answer["error"].is_object() => {
                Err(format!("refused: {}", answer["error"]["message"]))
            }
            _ => Err("the whole answer of the function is expected".into()),
        },
        right: "it is answered, and marked: the model has never seen such a flower.",
    },
    Exercise {
        name: "3.3",
        check: |answer| {
            one_text(
                answer,
                "missing_field",
                "leave a measurement out, and take `code` from the answer's `error`",
            )
        },
        right: "programs act on the code; the sentence beside it is for people.",
    },
    Exercise {
        name: "3.4",
        check: |answer| match (answer["features"].as_array(), answer["classes"].as_array()) {
            (Some(features), Some(classes)) if features.len() == 4 && classes.len() == 3 => Ok(()),
            (Some(_), Some(_)) => Err("this describes another model than Iris".into()),
            _ => Err(
                "a description has `features` and `classes`: ask with `\"describe\": true`".into(),
            ),
        },
        right: "whoever asks need not know the model beforehand.",
    },
    Exercise {
        name: "3.5",
        check: |answer| {
            let answer = answer
                .as_object()
                .ok_or("the whole answer of the function is expected")?;
            if !answer.contains_key("species") {
                return Err("this is not an answer about one flower".into());
            }
            if answer.keys().all(|key| ANSWER.contains(&key.as_str())) {
                return Err("it has the usual fields only: is the new version deployed, and did you ask `live`?".into());
            }
            Ok(())
        },
        right: "your own code answers, behind the same alias.",
    },
    // ---- 4: Predict
    Exercise {
        name: "4.1",
        check: |answer| match (answer["error"]["code"].as_str(), &answer["request_id"]) {
            (Some("malformed_json"), Value::Null) => Ok(()),
            (Some(code), _) => Err(format!(
                "this was refused with `{code}`: send bytes that are no JSON"
            )),
            _ => Err("the refusal that came back is expected, whole".into()),
        },
        right: "what cannot be read has no request_id to send back, but it is answered.",
    },
    Exercise {
        name: "4.2",
        check: |answer| match number(answer)? {
            share if share <= 0.0 => Err("a share of the time is above zero".into()),
            share if share > 50.0 => Err(
                "more than half? Divide the handler's time by the round trip, in the same unit"
                    .into(),
            ),
            _ => Ok(()),
        },
        right: "TLS, the broker, the rule and the way back take far longer than the model.",
    },
    Exercise {
        name: "4.3",
        check: |answer| {
            let species = list(answer, 10)?;
            match species
                .iter()
                .find(|name| !SPECIES.contains(&name.as_str().unwrap_or("")))
            {
                Some(odd) => Err(format!(
                    "{odd} is no species: give the label of each prediction"
                )),
                None if species.iter().all(|name| name == "setosa") => Ok(()),
                None => Err("the first ten flowers of the file are all setosa".into()),
            }
        },
        right: "ten flowers, one message: AWS counts it once as long as it has at most 5 KB.",
    },
    Exercise {
        name: "4.4",
        check: |answer| {
            near(
                answer,
                450.0,
                0.0,
                &[
                    (
                        300.0,
                        "the function's answer is a message, and its delivery to the device is another",
                    ),
                    (
                        600.0,
                        "a fourth would be the device's acknowledgement: at QoS 0 there is none",
                    ),
                    (150.0, "the request is only the first message"),
                ],
            )
        },
        right: "the request, the answer, and its delivery: three each.",
    },
    Exercise {
        name: "4.5",
        check: |answer| {
            let [p50, p90, p99] =
                [0, 1, 2].map(|i| list(answer, 3).and_then(|list| number(&list[i])));
            match (p50?, p90?, p99?) {
                (p50, ..) if p50 <= 0.0 => Err("a round trip takes longer than nothing".into()),
                (p50, p90, p99) if p50 > p90 || p90 > p99 => {
                    Err("more answers arrive in more time: p50 ≤ p90 ≤ p99".into())
                }
                (p50, p90, p99) if p50 == p90 && p90 == p99 => {
                    Err("three times the same: give q as 0.50, 0.90, 0.99".into())
                }
                _ => Ok(()),
            }
        },
        right: "one answer in ten took longer than p90.",
    },
    // ---- 5: Keep it warm
    Exercise {
        name: "5.1",
        check: |answer| {
            near(
                answer,
                4.0,
                1e-9,
                &[
                    (4000.0, "20 ms are 0.020 s"),
                    (10.0, "that is 200 / 20: multiply"),
                ],
            )
        },
        right: "L = λ · W = 200/s · 0.020 s.",
    },
    Exercise {
        name: "5.2",
        check: |answer| {
            near(
                answer,
                8760.0,
                120.0,
                &[(43_800.0, "that is every minute"), (288.0, "that is a day")],
            )
        },
        right: "730 hours with twelve calls each.",
    },
    Exercise {
        name: "5.3",
        check: |answer| {
            let pair = list(answer, 2)?;
            match (number(&pair[0])?, number(&pair[1])?) {
                (cold, warm) if cold <= 0.0 || warm <= 0.0 => {
                    Err("a call takes longer than nothing".into())
                }
                (cold, warm) if cold <= warm => Err("the cold one first: it takes longer".into()),
                _ => Ok(()),
            }
        },
        right: "the difference is the start: the process, the connections, the model.",
    },
    Exercise {
        name: "5.4",
        check: |answer| {
            one_text(
                answer,
                "cold_starts",
                "a call that starts a container has one metric more in its line",
            )
        },
        right: "on AWS you would see it on the dashboard, without another request.",
    },
    Exercise {
        name: "5.5",
        check: |answer| {
            near(
                answer,
                100.0,
                1e-9,
                &[
                    (20.0, "each container takes one call at a time"),
                    (1000.0, "ten work side by side"),
                ],
            )
        },
        right: "five rounds of ten calls, 20 ms each.",
    },
    // ---- 6: Your own data
    Exercise {
        name: "6.1",
        check: |answer| near(answer, 0.9534, 2e-3, &[(0.9854, "that is with all four")]),
        right: "the bill alone names 95 of 100 penguins; the other two measurements add three.",
    },
    Exercise {
        name: "6.2",
        check: |answer| match number(answer)? {
            norm if norm < 10.0 => Err(
                "that is as near to zero as the scaled fit: pass `x` instead of `scaled`, twice"
                    .into(),
            ),
            _ => Ok(()),
        },
        right: "after as many steps, the unscaled fit is nowhere near the optimum.",
    },
    Exercise {
        name: "6.3",
        check: |answer| {
            near(
                answer,
                151.0 / 342.0,
                1e-3,
                &[
                    (151.0, "as a share of all rows"),
                    (1.0 / 3.0, "the classes differ in size"),
                ],
            )
        },
        right: "a model must beat this number to be worth anything.",
    },
    Exercise {
        name: "6.4",
        check: |answer| near(answer, 11.0, 0.0, &[(2.0, "that is another column")]),
        right: "`sex` is missing for 11 penguins; we do not use it, so they stay.",
    },
    Exercise {
        name: "6.5",
        check: |answer| numbers(answer, &[0.0, 1.0], 1e-9),
        right: "scaled: mean 0, standard deviation 1, for each column.",
    },
    // ---- 7: Trained elsewhere
    Exercise {
        name: "7.1",
        check: |answer| {
            near(
                answer,
                42.0,
                0.0,
                &[
                    (39.0, "and the intercepts?"),
                    (13.0, "for each of three classes"),
                ],
            )
        },
        right: "13 weights and an intercept, three times: that is the whole model.",
    },
    Exercise {
        name: "7.2",
        check: |answer| {
            one_text(
                answer,
                "out_of_range",
                "send a wine with 50 % alcohol, and take the refusal's `code`",
            )
        },
        right: "the bounds in the file keep typing errors out.",
    },
    Exercise {
        name: "7.3",
        check: |answer| {
            one_text(
                answer,
                "class_1",
                "`predict` gives a prediction, and that has a `label()`",
            )
        },
        right: "the same answer without a network: it is the same code.",
    },
    Exercise {
        name: "7.4",
        check: |answer| {
            one_text(
                answer,
                LARGEST_WINE_WEIGHT,
                "compare absolute values, for the first class",
            )
        },
        right: "the weights are for the values as measured: a small unit makes a large weight, not an important one.",
    },
    Exercise {
        name: "7.5",
        check: |answer| {
            near(
                answer,
                NEGATIVE_BOUNDS,
                0.0,
                &[(13.0, "only those whose lower bound is below zero")],
            )
        },
        right: "\"three times as wide\" knows no chemistry: who knows more gives bounds of their own.",
    },
    // ---- 8: What it costs
    Exercise {
        name: "8.1",
        check: |answer| {
            near(
                answer,
                6146.0,
                60.0,
                &[
                    (30_874.0, "that is the bill before"),
                    (2573.0, "a device stays connected, whether it asks or not"),
                ],
            )
        },
        right: "now the connection minutes are most of the bill.",
    },
    Exercise {
        name: "8.2",
        check: |answer| {
            near(
                answer,
                2000.0,
                1.0,
                &[
                    (67.0, "that is over five minutes"),
                    (100_000.0, "that is the rate: times the duration"),
                ],
            )
        },
        right: "twice the default quota. Let each device wait a random part of its five minutes.",
    },
    Exercise {
        name: "8.3",
        check: |answer| {
            near(
                answer,
                6132.0,
                60.0,
                &[
                    (12_964.0, "that is what is left to pay"),
                    (6365.0, "the tiers make the first messages dearer"),
                ],
            )
        },
        right: "a third of the messages, and nearly a third of their price.",
    },
    Exercise {
        name: "8.4",
        check: |answer| {
            near(
                answer,
                333.3,
                1.0,
                &[(67.0, "that is at 20 ms"), (33.0, "100 ms are 0.1 s")],
            )
        },
        right: "five times as long, five times as many at once.",
    },
    Exercise {
        name: "8.5",
        check: |answer| {
            near(
                answer,
                29.4,
                0.3,
                &[(31.5, "that is at 128 MB"), (20.4, "that is at 1024 MB")],
            )
        },
        right: "a call with 256 MB costs a little more, so the machine pays off a little earlier.",
    },
];

/// Accuracy with flower i of each species in fold i % 5.
const FOLDS_BY_TURNS: f64 = 0.96;
/// Of the first class of examples/wine.json.
const LARGEST_WINE_WEIGHT: &str = "ash";
/// Features of examples/wine.json whose `accept` begins below zero.
const NEGATIVE_BOUNDS: f64 = 12.0;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An exercise, an answer that is right, and answers that are not.
    fn answers() -> Vec<(&'static str, Value, Vec<Value>)> {
        let answer =
            json!({"request_id": "1", "species": "setosa", "in_distribution": true, "model": "0"});
        let odd = json!({"request_id": "1", "species": "virginica", "in_distribution": false});
        let refusal = |code: &str, id: Value| json!({"request_id": id, "error": {"code": code, "message": "no"}});
        let mut own = answer.clone();
        own["greeting"] = json!("hello");
        let iris = json!({"features": [1, 2, 3, 4], "classes": SPECIES});
        vec![
            ("0.1", json!(2), vec![json!(3), json!(0), json!("two")]),
            ("0.2", json!(2.55), vec![json!(10.2), json!(2)]),
            (
                "0.3",
                json!([5.1, 1.4]),
                vec![json!([5.1]), json!([5.1, 3.5]), json!(2)],
            ),
            ("0.4", json!(0.28), vec![json!(1.6), json!(null)]),
            (
                "0.5",
                json!(SPECIES),
                vec![json!(vec!["setosa"; 3]), json!("setosa")],
            ),
            ("1.1", json!(4), vec![json!(3), json!(146)]),
            ("1.2", json!(83), vec![json!(84), json!(0)]),
            ("1.3", json!(7.92), vec![json!(2.72), json!(7.5)]),
            (
                "1.4",
                json!([0.838, 0.979]),
                vec![json!([0.933, 0.99]), json!(0.94), json!([0.874, 1.006])],
            ),
            (
                "1.5",
                json!(FOLDS_BY_TURNS),
                vec![json!(0.9733), json!(1.0)],
            ),
            ("2.1", json!(2), vec![json!(6), json!(3), json!(1)]),
            (
                "2.2",
                json!(["a", "b"]),
                vec![json!([]), json!(["a", "a"]), json!(["models/current.json"])],
            ),
            (
                "2.3",
                json!("model schema 1 is not supported, this build reads schema 2"),
                vec![json!("golden row 0: P(setosa) is 1"), json!("no")],
            ),
            (
                "2.4",
                json!("NoSuchKey"),
                vec![json!("AccessDenied"), json!(404)],
            ),
            (
                "2.5",
                json!("Iris setosa"),
                vec![json!("setosa"), json!(true)],
            ),
            (
                "3.1",
                json!(SPECIES),
                vec![json!(["virginica", "versicolor", "setosa"]), json!([])],
            ),
            (
                "3.2",
                odd.clone(),
                vec![
                    answer.clone(),
                    refusal("out_of_range", json!("1")),
                    json!(false),
                ],
            ),
            (
                "3.3",
                json!("missing_field"),
                vec![json!("not_a_number"), json!({"error": 1})],
            ),
            (
                "3.4",
                iris.clone(),
                vec![
                    answer.clone(),
                    json!({"features": [1], "classes": ["a", "b"]}),
                ],
            ),
            ("3.5", own, vec![answer.clone(), iris, json!(2)]),
            (
                "4.1",
                refusal("malformed_json", json!(null)),
                vec![refusal("out_of_range", json!("bad")), answer],
            ),
            (
                "4.2",
                json!(0.9),
                vec![json!(110.0), json!(0), json!("little")],
            ),
            (
                "4.3",
                json!(vec!["setosa"; 10]),
                vec![
                    json!(vec!["setosa"; 9]),
                    json!(vec!["virginica"; 10]),
                    json!(vec!["rose"; 10]),
                ],
            ),
            ("4.4", json!(450), vec![json!(300), json!(600), json!(151)]),
            (
                "4.5",
                json!([5.0, 7.5, 31.0]),
                vec![
                    json!([31.0, 7.5, 5.0]),
                    json!([5.0, 5.0, 5.0]),
                    json!([5.0]),
                ],
            ),
            ("5.1", json!(4.0), vec![json!(4000), json!(10)]),
            (
                "5.2",
                json!(8760),
                vec![json!(43_800), json!(288), json!(12)],
            ),
            (
                "5.3",
                json!([40.0, 16.0]),
                vec![json!([16.0, 40.0]), json!([1.0])],
            ),
            (
                "5.4",
                json!("cold_starts"),
                vec![json!("handler_us"), json!(1)],
            ),
            ("5.5", json!(100), vec![json!(20), json!(1000)]),
            ("6.1", json!(0.9534), vec![json!(0.9854), json!(0.5)]),
            ("6.2", json!(2000.0), vec![json!(8e-8), json!(null)]),
            ("6.3", json!(0.4415), vec![json!(151), json!(0.333)]),
            ("6.4", json!(11), vec![json!(2), json!(0)]),
            (
                "6.5",
                json!([1e-15, 1.0]),
                vec![json!([43.9, 5.4]), json!([1.0, 0.0])],
            ),
            ("7.1", json!(42), vec![json!(39), json!(13)]),
            (
                "7.2",
                json!("out_of_range"),
                vec![json!("missing_field"), json!(null)],
            ),
            ("7.3", json!("class_1"), vec![json!("class_0"), json!(1)]),
            (
                "7.4",
                json!(LARGEST_WINE_WEIGHT),
                vec![json!("proline"), json!(0)],
            ),
            ("7.5", json!(NEGATIVE_BOUNDS), vec![json!(13), json!(0)]),
            ("8.1", json!(6146.4), vec![json!(30_874), json!(2573)]),
            ("8.2", json!(2000), vec![json!(67), json!(100_000)]),
            ("8.3", json!(6132), vec![json!(12_964), json!(6365)]),
            ("8.4", json!(333.33), vec![json!(67), json!(33)]),
            ("8.5", json!(29.44), vec![json!(31.5), json!(20.4)]),
        ]
    }

    #[test]
    fn each_exercise_takes_its_solution_and_refuses_wrong_answers() {
        let answers = answers();
        let names: Vec<&str> = answers.iter().map(|(name, ..)| *name).collect();
        assert_eq!(
            names,
            EXERCISES
                .iter()
                .map(|exercise| exercise.name)
                .collect::<Vec<_>>()
        );
        for ((name, right, wrong), exercise) in answers.iter().zip(EXERCISES) {
            assert_eq!((exercise.check)(right), Ok(()), "{name}: {right}");
            assert!(wrong.len() >= 2, "{name} has too few wrong answers");
            for answer in wrong {
                let verdict = (exercise.check)(answer);
                assert!(
                    verdict.is_err_and(|sentence| sentence.len() > 10),
                    "{name}: {answer}"
                );
            }
        }
    }

    #[test]
    fn no_answer_whatever_its_type_ends_the_kernel() {
        let odd = [
            json!(null),
            json!([]),
            json!({}),
            json!([null, {}]),
            json!(-1e308),
            json!(""),
            json!(true),
        ];
        for (exercise, answer) in EXERCISES
            .iter()
            .flat_map(|e| odd.iter().map(move |a| (e, a)))
        {
            assert!(
                (exercise.check)(answer).is_err(),
                "{}: {answer}",
                exercise.name
            );
        }
        let folder = std::env::temp_dir();
        assert!(reply("0.1", &f64::NAN, &folder).contains("nothing, or NaN"));
        let not_json = std::collections::HashMap::from([((1, 2), 3)]);
        assert!(reply("0.1", &not_json, &folder).contains("cannot be read"));
        assert!(reply("9.9", &1, &folder).starts_with("There is no exercise 9.9"));
    }

    #[test]
    fn a_right_answer_is_noted_and_a_folder_that_cannot_be_is_reported() {
        let folder = std::env::temp_dir().join(format!("progress-{}", std::process::id()));
        assert!(reply("1.1", &3, &folder).starts_with("1.1  not yet: 3: and one more"));
        assert!(solved(&folder).is_empty());
        assert!(reply("1.1", &4, &folder).starts_with("1.1  right: "));
        assert!(
            reply("1.1", &5, &folder).starts_with("1.1  not yet"),
            "and what is noted stays"
        );
        assert_eq!(solved(&folder), BTreeSet::from(["1.1"]));
        let file = folder.join("1.1");
        let found = reply("1.2", &83, &file);
        assert!(
            found.starts_with("1.2  right: ") && found.contains("could not be noted"),
            "{found}"
        );
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_certificate_has_the_model_the_answers_and_the_exercises() {
        let page = certificate_page("0<1", 150, 146, &BTreeSet::from(["1.1", "4.2"]));
        let expected = [
            "0&lt;1",
            "150 flowers asked and answered, 146 named correctly",
            ": 1.1, 4.2<",
        ];
        assert!(expected.iter().all(|text| page.contains(text)), "{page}");
    }
}
