//! What a template cannot do with a function: upload its code, test a version, move `live`.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_lambda::client::Waiters;
use aws_sdk_lambda::operation::get_function_configuration::GetFunctionConfigurationOutput;
use aws_sdk_lambda::primitives::Blob;
use iris_fn::Model;
use iris_fn::model::{CURRENT_KEY, FEATURE_NAMES, sha256_hex};
use serde_json::{Value, json};
use std::time::Duration;

use crate::cloud::{Architecture, Cloud};
use crate::stack;

/// The alias that everything calls.
pub const LIVE: &str = "live";
/// What `make invoke` asks: the first flower of the data.
pub const SAMPLE_REQUEST: &str = r#"{"request_id": "hello", "sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}"#;
/// Longer than the template's MODEL_TTL, after which a container looks for a newer model.
const MODEL_WAIT: Duration = Duration::from_secs(30);
/// Probabilities travel as decimal text and come from another processor: see the model's own check.
const TOLERANCE: f64 = iris_fn::model::GOLDEN_TOLERANCE;

/// Deploy a code zip: bucket, upload, stack, new version, smoke test, and only then `live`.
pub async fn deploy(cloud: &Cloud, zip: &Path, arch: Architecture) -> Result<()> {
    let started = Instant::now();
    let code = fs::read(zip)
        .with_context(|| format!("cannot read {}: run `make build` first", zip.display()))?;
    stack::ensure_bucket(cloud).await?;

    let model = current_model(cloud).await?.with_context(|| {
        format!(
            "no model in s3://{}/{CURRENT_KEY}: publish one with notebook 02 (make run NB=notebooks/02_publish.ipynb)",
            cloud.bucket()
        )
    })?;
    let key = upload(cloud, code).await?;
    stack::apply(
        cloud,
        &[("CodeKey", &key), ("Architecture", arch.as_lambda())],
    )
    .await?;

    let lambda = cloud.lambda();
    let name = cloud.function();
    lambda
        .wait_until_function_updated_v2()
        .function_name(&name)
        .wait(Duration::from_secs(120))
        .await
        .with_context(|| format!("function {name} does not become ready"))?;
    let version = publish(cloud).await?;
    lambda
        .wait_until_published_version_active()
        .function_name(&name)
        .qualifier(&version)
        .wait(Duration::from_secs(120))
        .await
        .with_context(|| format!("version {version} of {name} does not become active"))?;
    smoke_test(cloud, &version, &model).await?;
    move_live(cloud, &version).await?;
    println!(
        "deployed in {:.1} s: try `make invoke`",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The checked model in `models/current.json`; `None` when there is no such object.
pub async fn current_model(cloud: &Cloud) -> Result<Option<Model>> {
    let bucket = cloud.bucket();
    let object = match cloud
        .s3()
        .get_object()
        .bucket(&bucket)
        .key(CURRENT_KEY)
        .send()
        .await
    {
        Err(e) if e.as_service_error().is_some_and(|e| e.is_no_such_key()) => return Ok(None),
        object => object.with_context(|| format!("could not read s3://{bucket}/{CURRENT_KEY}"))?,
    };
    let body = object.body.collect().await;
    let bytes = body
        .with_context(|| format!("could not read s3://{bucket}/{CURRENT_KEY}"))?
        .into_bytes();
    let model = Model::from_bytes(&bytes)
        .with_context(|| format!("s3://{bucket}/{CURRENT_KEY} is refused"))?;
    Ok(Some(model))
}

/// Upload the zip once, under the SHA-256 of its bytes; gives back its key.
async fn upload(cloud: &Cloud, code: Vec<u8>) -> Result<String> {
    let (s3, bucket) = (cloud.s3(), cloud.bucket());
    let key = format!("code/{}.zip", sha256_hex(&code));
    match s3.head_object().bucket(&bucket).key(&key).send().await {
        Ok(_) => println!("code is in s3://{bucket}/{key}"),
        Err(e) if e.as_service_error().is_some_and(|e| e.is_not_found()) => {
            let megabytes = code.len() as f64 / 1e6;
            s3.put_object()
                .bucket(&bucket)
                .key(&key)
                .body(code.into())
                .send()
                .await
                .context("could not upload the code")?;
            println!("code uploaded to s3://{bucket}/{key} ({megabytes:.1} MB)");
        }
        Err(e) => return Err(e).context("could not look for the code in the bucket"),
    }
    Ok(key)
}

/// Publish the function's code and settings as a version, unless `live` has just these already.
async fn publish(cloud: &Cloud) -> Result<String> {
    let (lambda, name) = (cloud.lambda(), cloud.function());
    let latest = lambda
        .get_function_configuration()
        .function_name(&name)
        .send()
        .await
        .with_context(|| format!("could not look at function {name}"))?;
    let live = lambda
        .get_function_configuration()
        .function_name(&name)
        .qualifier(LIVE)
        .send()
        .await
        .with_context(|| format!("could not look at {name}:{LIVE}"))?;
    // What decides how a call is answered; a description, say, does not.
    let behaviour = |c: &GetFunctionConfigurationOutput| {
        let code = (
            c.code_sha256.clone(),
            c.runtime.clone(),
            c.handler.clone(),
            c.architectures.clone(),
        );
        let variables = c.environment().and_then(|e| e.variables()).cloned();
        (code, variables, c.memory_size, c.timeout, c.role.clone())
    };
    if behaviour(&latest) == behaviour(&live) {
        return live.version.context("`live` points to no version");
    }
    let published = lambda
        .publish_version()
        .function_name(&name)
        .send()
        .await
        .context("could not publish a version")?;
    published.version.context("the new version has no number")
}

/// Ask `version` for the model's golden rows, past `live`, and compare.
async fn smoke_test(cloud: &Cloud, version: &str, model: &Model) -> Result<()> {
    let golden = &model.file().golden;
    let flowers: Vec<Value> = golden
        .iter()
        .map(|row| {
            FEATURE_NAMES
                .iter()
                .zip(row.features)
                .map(|(name, x)| ((*name).to_owned(), json!(x)))
                .collect()
        })
        .collect();
    let request = json!({"request_id": "smoke-test", "flowers": flowers}).to_string();
    // A warm container may still hold the model before this one; it looks for a newer one by itself.
    let deadline = Instant::now() + MODEL_WAIT;
    let mut answer: Value = serde_json::from_slice(&call(cloud, version, &request).await?)?;
    while answer["model"] != model.sha256() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(500)).await;
        answer = serde_json::from_slice(&call(cloud, version, &request).await?)?;
    }

    let refuse =
        |what: String| format!("version {version} is not put live: {what}\n  it answered {answer}");
    ensure!(
        answer["model"] == model.sha256(),
        refuse(format!("it does not serve model {}", model.sha256()))
    );
    let predictions = answer["predictions"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    ensure!(
        predictions.len() == golden.len(),
        refuse(format!("{} golden rows were asked", golden.len()))
    );
    for (row, (golden, prediction)) in golden.iter().zip(predictions).enumerate() {
        for (class, expected) in model.file().classes.iter().zip(golden.probabilities) {
            let found = prediction["probabilities"][class].as_f64();
            ensure!(
                found.is_some_and(|p| (p - expected).abs() <= TOLERANCE),
                refuse(format!(
                    "golden row {row}: P({class}) is {found:?}, expected {expected}"
                ))
            );
        }
    }
    println!(
        "version {version} answers all {} golden rows of model {}",
        golden.len(),
        &model.sha256()[..12]
    );
    Ok(())
}

async fn move_live(cloud: &Cloud, version: &str) -> Result<()> {
    let (lambda, name) = (cloud.lambda(), cloud.function());
    let alias = lambda
        .get_alias()
        .function_name(&name)
        .name(LIVE)
        .send()
        .await
        .context("the stack has no alias `live`")?;
    let before = alias.function_version().unwrap_or("?");
    if before == version {
        println!("live is version {version}");
        return Ok(());
    }
    // The revision makes this a compare-and-swap: of two deploys at once, only one moves `live`.
    lambda
        .update_alias()
        .function_name(&name)
        .name(LIVE)
        .function_version(version)
        .set_revision_id(alias.revision_id().map(str::to_owned))
        .send()
        .await
        .context(
            "could not move `live` (did another deploy just move it? look with `make status`)",
        )?;
    println!("live moved from version {before} to version {version}");
    Ok(())
}

/// Call one version or alias; a failed invocation is an error that carries the function's own words.
async fn call(cloud: &Cloud, qualifier: &str, request: &str) -> Result<Vec<u8>> {
    let name = cloud.function();
    let reply = cloud
        .lambda()
        .invoke()
        .function_name(&name)
        .qualifier(qualifier)
        .payload(Blob::new(request))
        .send()
        .await
        .with_context(|| {
            format!("could not call {name}:{qualifier} (is it deployed? `make status` tells)")
        })?;
    let payload = reply.payload.map(Blob::into_inner).unwrap_or_default();
    if let Some(error) = reply.function_error {
        bail!(
            "{name}:{qualifier} failed ({error}): {}\n  `make logs` shows more",
            String::from_utf8_lossy(&payload)
        );
    }
    Ok(payload)
}

/// Call `live` with `request` and print its answer.
pub async fn invoke(cloud: &Cloud, request: &str) -> Result<()> {
    serde_json::from_str::<Value>(request)
        .with_context(|| format!("REQUEST is not JSON: {request}"))?;
    let payload = call(cloud, LIVE, request).await?;
    let answer: Value = serde_json::from_slice(&payload).context("the answer is not JSON")?;
    println!("{answer:#}");
    if answer.get("error").is_some() {
        bail!(
            "the request was refused: {}",
            answer["error"]["message"].as_str().unwrap_or("no message")
        );
    }
    Ok(())
}
