//! The deployed function: its code, its versions and the alias `live`.

use std::cmp::Reverse;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_lambda::client::Waiters;
use aws_sdk_lambda::operation::get_function_configuration::GetFunctionConfigurationOutput;
use aws_sdk_lambda::primitives::Blob;
use aws_sdk_lambda::types::FunctionConfiguration;
use base64::prelude::{BASE64_STANDARD, Engine};
use iris_fn::Description;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cloud::Cloud;
use crate::stack;

/// The alias that everything calls.
pub const LIVE: &str = "live";
/// The code and settings that a version is published from.
pub const LATEST: &str = "$LATEST";
/// How long AWS may take to get a function or a version ready.
const READY: Duration = Duration::from_secs(120);

/// A zip of code, and the SHA-256 by which it is known.
pub struct Code {
    /// The zip's bytes.
    pub bytes: Vec<u8>,
    /// 64 hex digits.
    pub sha256: String,
}

impl Code {
    /// Its key in the bucket, which is never overwritten.
    pub fn key(&self) -> String {
        format!("code/{}.zip", self.sha256)
    }

    /// Upload it, if it is not in the bucket.
    pub async fn upload(&self, cloud: &Cloud) -> Result<()> {
        let (s3, bucket, key) = (cloud.s3(), cloud.bucket(), self.key());
        match s3.head_object().bucket(&bucket).key(&key).send().await {
            Ok(_) => println!("code is in s3://{bucket}/{key}"),
            Err(e) if e.as_service_error().is_some_and(|e| e.is_not_found()) => {
                s3.put_object()
                    .bucket(&bucket)
                    .key(&key)
                    .body(self.bytes.clone().into())
                    .send()
                    .await
                    .context("could not upload the code")?;
                let megabytes = self.bytes.len() as f64 / 1e6;
                println!("code uploaded to s3://{bucket}/{key} ({megabytes:.1} MB)");
            }
            Err(e) => return Err(e).context("could not look for the code in the bucket"),
        }
        Ok(())
    }

    /// Delete the zips that are older than the newest few. No version needs one: Lambda has a copy of its own.
    /// CloudFormation does, to go back to the stack's state before a change that failed. The bucket's lifecycle keeps
    /// what is deleted for another month.
    pub async fn delete_older(&self, cloud: &Cloud) -> Result<()> {
        const KEPT: usize = 5;
        let (s3, bucket) = (cloud.s3(), cloud.bucket());
        let Some((mut zips, _)) = cloud.object_versions("code/").await? else {
            return Ok(());
        };
        zips.retain(|zip| zip.is_latest() == Some(true) && zip.key() != Some(&self.key()));
        zips.sort_unstable_by_key(|zip| Reverse(zip.last_modified().copied()));
        for key in zips.iter().skip(KEPT).filter_map(|zip| zip.key()) {
            let deleted = s3.delete_object().bucket(&bucket).key(key).send().await;
            deleted.with_context(|| format!("could not delete the old code {key}"))?;
        }
        Ok(())
    }
}

/// The SHA-256 of a function's code in hex: Lambda writes it in base64.
pub fn code_sha256(base64: Option<&str>) -> String {
    let digest = BASE64_STANDARD.decode(base64.unwrap_or_default());
    let digits = digest.unwrap_or_default();
    digits.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The function's settings at a version or an alias; `None` when there is no such thing.
pub async fn configuration(
    cloud: &Cloud,
    qualifier: &str,
) -> Result<Option<GetFunctionConfigurationOutput>> {
    let name = cloud.function();
    let found = cloud
        .lambda()
        .get_function_configuration()
        .function_name(&name)
        .qualifier(qualifier)
        .send()
        .await;
    match found {
        Err(e)
            if e.as_service_error()
                .is_some_and(|e| e.is_resource_not_found_exception()) =>
        {
            Ok(None)
        }
        found => {
            Ok(Some(found.with_context(|| {
                format!("could not read {name}:{qualifier}")
            })?))
        }
    }
}

/// The number of the version behind `live`; `None` when nothing is deployed.
pub async fn live_version(cloud: &Cloud) -> Result<Option<String>> {
    Ok(configuration(cloud, LIVE).await?.and_then(|c| c.version))
}

/// Whether two versions have the same code and settings. A description, for example, does not count.
pub fn same_behaviour(
    a: &GetFunctionConfigurationOutput,
    b: &GetFunctionConfigurationOutput,
) -> bool {
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
    behaviour(a) == behaviour(b)
}

/// Publish `$LATEST` as a version, unless `live` already has the same code and settings. Returns the version's number,
/// and whether this call has made it: Lambda returns its last version where `$LATEST` has not changed since.
///
/// # Errors
/// When another deploy has changed the code in the meantime: it wins.
pub async fn publish(cloud: &Cloud, code: &Code) -> Result<(String, bool)> {
    let (lambda, name) = (cloud.lambda(), cloud.function());
    let latest = put_right(cloud, code).await?;
    if let Some(live) = configuration(cloud, LIVE).await?
        && same_behaviour(&latest, &live)
    {
        ours(code, latest.code_sha256())?;
        let version = live.version.context("`live` points to no version")?;
        return Ok((version, false));
    }
    let before = versions(cloud).await?;
    let published = lambda
        .publish_version()
        .function_name(&name)
        .set_code_sha256(latest.code_sha256.clone())
        .send()
        .await
        .context("could not publish a version (is another deploy running? it wins: try again when it is done)")?;
    ours(code, published.code_sha256())?;
    let version = published.version.context("the new version has no number")?;
    lambda
        .wait_until_published_version_active()
        .function_name(&name)
        .qualifier(&version)
        .wait(READY)
        .await
        .with_context(|| format!("version {version} of {name} does not become active"))?;
    let made = before.iter().all(|b| b.version() != Some(&version));
    Ok((version, made))
}

/// `$LATEST`, once it is ready and has the code that the stack defines. It may have other code: CloudFormation does not
/// check for drift, which is what somebody changed by hand.
async fn put_right(cloud: &Cloud, code: &Code) -> Result<GetFunctionConfigurationOutput> {
    let latest = ready(cloud).await?;
    let stack = stack::describe(cloud).await?;
    let asked = stack.as_ref().and_then(|s| stack::parameter(s, "CodeKey"));
    if code_sha256(latest.code_sha256()) == code.sha256 || asked != Some(&code.key()) {
        return Ok(latest);
    }
    println!(
        "the function's code is {:.12}, not what the stack defines (drift): correcting it",
        code_sha256(latest.code_sha256())
    );
    cloud
        .lambda()
        .update_function_code()
        .function_name(cloud.function())
        .s3_bucket(cloud.bucket())
        .s3_key(code.key())
        .send()
        .await
        .with_context(|| format!("could not change the code of {}", cloud.function()))?;
    ready(cloud).await
}

/// `$LATEST`, once no update of it is in progress.
async fn ready(cloud: &Cloud) -> Result<GetFunctionConfigurationOutput> {
    let name = cloud.function();
    cloud
        .lambda()
        .wait_until_function_updated_v2()
        .function_name(&name)
        .wait(READY)
        .await
        .with_context(|| format!("function {name} does not become ready"))?;
    let latest = configuration(cloud, LATEST).await?;
    latest.with_context(|| format!("function {name} is gone"))
}

fn ours(code: &Code, found: Option<&str>) -> Result<()> {
    ensure!(
        code_sha256(found) == code.sha256,
        "another deploy has changed the code to {:.12} meanwhile: it wins, and `live` is left to it",
        code_sha256(found)
    );
    Ok(())
}

/// Delete a version that nothing points to.
pub async fn discard(cloud: &Cloud, version: &str) -> Result<()> {
    let name = cloud.function();
    cloud
        .lambda()
        .delete_function()
        .function_name(&name)
        .qualifier(version)
        .send()
        .await
        .with_context(|| format!("could not delete version {version} of {name}"))?;
    Ok(())
}

/// Every published version, oldest first.
pub async fn versions(cloud: &Cloud) -> Result<Vec<FunctionConfiguration>> {
    let mut pages = cloud
        .lambda()
        .list_versions_by_function()
        .function_name(cloud.function())
        .into_paginator()
        .items()
        .send();
    let mut versions = Vec::new();
    while let Some(version) = pages.next().await {
        let version =
            version.context("could not list the versions (is it deployed? `make status` tells)")?;
        if version.version() != Some(LATEST) {
            versions.push(version);
        }
    }
    versions.sort_by_key(number);
    Ok(versions)
}

/// A published version's number.
fn number(version: &FunctionConfiguration) -> u64 {
    version.version().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Point `live` to a version.
pub async fn move_live(cloud: &Cloud, version: &str) -> Result<()> {
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

/// Call one version or alias; a failed invocation is an error with the function's error message.
pub async fn call(cloud: &Cloud, qualifier: &str, request: &str) -> Result<Value> {
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
    serde_json::from_slice(&payload)
        .with_context(|| format!("the answer of {name}:{qualifier} is not JSON"))
}

/// Which model a version or an alias answers with, and which features it needs.
///
/// # Errors
/// When it has no model, or is older than models that describe themselves.
pub async fn describe(cloud: &Cloud, qualifier: &str) -> Result<Description> {
    let request = json!({"request_id": "describe", "describe": true});
    let answer = call(cloud, qualifier, &request.to_string()).await?;
    if let Some(refusal) = refusal(&answer) {
        bail!(
            "{}:{qualifier} does not describe its model: {refusal}",
            cloud.function()
        );
    }
    Description::deserialize(&answer)
        .with_context(|| format!("{}:{qualifier} answered {answer:.300}", cloud.function()))
}

/// Why the function refuses a request.
pub fn refusal(answer: &Value) -> Option<&str> {
    let error = answer.get("error")?;
    Some(error["message"].as_str().unwrap_or("no reason given"))
}

/// Call `live` with `request` and print its answer; without one, with a row in the middle of its model's training data.
pub async fn invoke(cloud: &Cloud, request: Option<&str>) -> Result<()> {
    let answer = match request {
        Some(request) => {
            serde_json::from_str::<Value>(request)
                .with_context(|| format!("REQUEST is not JSON: {request}"))?;
            call(cloud, LIVE, request).await?
        }
        None => any_answer(cloud).await?,
    };
    println!("{answer:#}");
    if let Some(refusal) = refusal(&answer) {
        bail!("the request was refused: {refusal}");
    }
    Ok(())
}

async fn any_answer(cloud: &Cloud) -> Result<Value> {
    let mut model = describe(cloud, LIVE).await?;
    loop {
        let request = model.request("hello", &model.middle()).to_string();
        let answer = call(cloud, LIVE, &request).await?;
        if refusal(&answer).is_some() {
            // A new model with other features may have come between the two calls.
            let asked = std::mem::replace(&mut model, describe(cloud, LIVE).await?);
            if asked.model != model.model {
                continue;
            }
        }
        eprintln!("asked {request}");
        return Ok(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lambdas_base64_is_the_same_hash() {
        let empty = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert!(code_sha256(Some(empty)).starts_with("e3b0c44298fc1c149afbf4c8996fb92427ae41e4"));
        assert_eq!(code_sha256(None), "");
    }
}
