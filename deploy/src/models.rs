//! The models in the bucket: publish one, list them, roll back.
//!
//! A model's key has the SHA-256 of its bytes and is never overwritten; `models/current.json` is a copy of the one in
//! use. The function loads a new one by itself, without a deploy.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::DateTime;
use iris_fn::model::{CURRENT_KEY, MAX_BYTES};
use iris_fn::{Model, ModelError, ModelFile};

use crate::cloud::Cloud;
use crate::stack;

/// What to do where there is no model.
pub const PUBLISH_ONE: &str = "publish one with `make publish MODEL=target/model.json`; notebook 1 \
     (make run NB=notebooks/01_train.ipynb) trains and writes that";
/// How many names are listed before the rest is counted.
const LISTED: usize = 8;

/// A checked model, and the bytes that it was read from: serialized again, it might have another SHA-256.
pub struct Published {
    /// The model that the function would load.
    pub model: Model,
    /// The file, byte for byte.
    pub bytes: Vec<u8>,
}

/// The checked model in `models/current.json`; `None` when there is no such object.
///
/// # Errors
/// When it cannot be read, or the function would refuse it.
pub async fn current(cloud: &Cloud) -> Result<Option<Published>> {
    read(cloud, CURRENT_KEY).await
}

/// The checked model in an object of the bucket; `None` when there is no such object.
async fn read(cloud: &Cloud, key: &str) -> Result<Option<Published>> {
    let Some(bytes) = object(cloud, key).await? else {
        return Ok(None);
    };
    let model = Model::from_bytes(&bytes)
        .with_context(|| format!("s3://{}/{key} is refused", cloud.bucket()))?;
    Ok(Some(Published { model, bytes }))
}

/// An object's bytes; `None` when there is no such object.
async fn object(cloud: &Cloud, key: &str) -> Result<Option<Vec<u8>>> {
    let bucket = cloud.bucket();
    let name = format!("s3://{bucket}/{key}");
    let object = match cloud
        .s3()
        .get_object()
        .bucket(&bucket)
        .key(key)
        .send()
        .await
    {
        Err(e) if e.as_service_error().is_some_and(|e| e.is_no_such_key()) => return Ok(None),
        // Before the first stage there is no bucket either.
        Err(e) if e.code() == Some("NoSuchBucket") => return Ok(None),
        object => object.with_context(|| format!("could not read {name}"))?,
    };
    let body = object.body.collect().await;
    let body = body.with_context(|| format!("could not read {name}"))?;
    Ok(Some(body.to_vec()))
}

/// Check a model file as the function does, put it into the bucket and make it the current one.
///
/// # Errors
/// When the function would refuse the file, with its message; then nothing is uploaded.
pub async fn publish(cloud: &Cloud, path: &Path) -> Result<()> {
    let bytes = read_file(path)?;
    let model =
        Model::from_bytes(&bytes).with_context(|| format!("{} is refused", path.display()))?;
    let (file, sha256) = (model.file(), &model.sha256()[..12]);
    println!(
        "model {sha256} says which {} it is ({}), by {}",
        file.target,
        list(&file.classes),
        list(&names(file))
    );
    let stack = stack::describe(cloud).await?;
    let bucket = stack
        .as_ref()
        .and_then(|stack| stack::output(stack, "BucketName"));
    ensure!(
        bucket.is_some(),
        "stack {} has no bucket: run `make bucket` first",
        cloud.stack
    );
    // A current model that the function refuses is replaced like any other.
    let before = object(cloud, CURRENT_KEY).await?;
    if before.as_ref() == Some(&bytes) && object(cloud, &model.key()).await?.is_some() {
        println!("it is current already");
    } else {
        let before = before.and_then(|bytes| Model::from_bytes(&bytes).ok());
        if let Some(before) = before.filter(|before| names(before.file()) != names(file)) {
            println!(
                "the current model, {:.12}, asks for {}: requests with those features will be refused",
                before.sha256(),
                list(&names(before.file()))
            );
        }
        cloud.confirm(&format!(
            "Make model {sha256} the current one of stack {}",
            cloud.stack
        ))?;
        put(cloud, &model, bytes).await?;
    }
    println!(
        "`make versions` lists the models, `make rollback WHAT=model` goes back to the one before"
    );
    Ok(())
}

/// A file that may be a model: one that is too large for it is not read.
fn read_file(path: &Path) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    let bytes = fs::metadata(path).with_context(cannot)?.len() as usize;
    if bytes > MAX_BYTES {
        let error = ModelError::TooLarge { bytes };
        return Err(error).with_context(|| format!("{} is refused", path.display()));
    }
    fs::read(path).with_context(cannot)
}

fn names(file: &ModelFile) -> Vec<String> {
    let names = file.features.iter().map(|feature| feature.name.clone());
    names.collect()
}

/// `a, b, c`; of many only the first, and how many more there are.
fn list(names: &[String]) -> String {
    match names.len().checked_sub(LISTED) {
        Some(more @ 1..) => format!("{} and {more} more", names[..LISTED].join(", ")),
        _ => names.join(", "),
    }
}

/// Upload a model under its own name, if it is not there, and make it the current one.
async fn put(cloud: &Cloud, model: &Model, bytes: Vec<u8>) -> Result<()> {
    let (bucket, key) = (cloud.bucket(), model.key());
    match object(cloud, &key).await? {
        None => {
            let put = cloud.s3().put_object().bucket(&bucket).key(&key);
            let put = put.body(bytes.into()).send().await;
            put.with_context(|| format!("could not write s3://{bucket}/{key}"))?;
            println!("uploaded to s3://{bucket}/{key}");
        }
        Some(there) => ensure!(
            there == bytes,
            "s3://{bucket}/{key} has another SHA-256 than its name: delete it, then publish again"
        ),
    }
    make_current(cloud, &key, model).await
}

/// Copy a model that is in the bucket to where the function looks.
async fn make_current(cloud: &Cloud, key: &str, model: &Model) -> Result<()> {
    let bucket = cloud.bucket();
    cloud
        .s3()
        .copy_object()
        .bucket(&bucket)
        .key(CURRENT_KEY)
        .copy_source(format!("{bucket}/{key}"))
        .send()
        .await
        .with_context(|| format!("could not copy {key} to {CURRENT_KEY}"))?;
    println!(
        "model {:.12} is current: `live` loads it within seconds, during its next calls",
        model.sha256()
    );
    Ok(())
}

/// Go back to the model before, or to the one whose SHA-256 begins with `to`.
pub async fn rollback(cloud: &Cloud, to: Option<&str>) -> Result<()> {
    let history = history(cloud).await?;
    let current = history.iter().position(|entry| entry.current);
    let target = match to {
        Some(to) => {
            let mut matching = history.iter().filter(|entry| entry.sha256.starts_with(to));
            let found = matching
                .next()
                .with_context(|| format!("there is no model {to}: `make versions` lists them"))?;
            if matching.next().is_some() {
                bail!("more than one model begins with {to}: give more digits");
            }
            found
        }
        None => match current {
            Some(index) => index
                .checked_sub(1)
                .and_then(|before| history.get(before))
                .context("there is no model before the current one: `make versions` lists them")?,
            None => {
                let last = history.iter().max_by_key(|entry| entry.last);
                let last = last.with_context(|| format!("there is no model: {PUBLISH_ONE}"))?;
                println!(
                    "no model is current ({CURRENT_KEY} was deleted): {:.12} was the last",
                    last.sha256
                );
                last
            }
        },
    };
    let key = format!("models/{}.json", target.sha256);
    // Read and check it before it becomes current.
    let published = read(cloud, &key).await?;
    let Published { model, .. } =
        published.with_context(|| format!("s3://{}/{key} is gone", cloud.bucket()))?;
    cloud.confirm(&format!("Make model {:.12} the current one", target.sha256))?;
    make_current(cloud, &key, &model).await
}

/// A model that is or was current.
pub struct Entry {
    /// Its name.
    pub sha256: String,
    /// When it first was current.
    pub first: DateTime,
    /// How many changes of the current model came before its last turn.
    last: usize,
    /// Whether it is.
    pub current: bool,
}

/// The models that were ever current, in the order in which they first were.
///
/// The bucket keeps every version of `models/current.json`; what they were copied from has the same
/// ETag, which for these objects is the MD5 of the bytes.
pub async fn history(cloud: &Cloud) -> Result<Vec<Entry>> {
    let (s3, bucket) = (cloud.s3(), cloud.bucket());
    let mut names: HashMap<String, String> = HashMap::new();
    let mut pages = s3
        .list_objects_v2()
        .bucket(&bucket)
        .prefix("models/")
        .into_paginator()
        .send();
    while let Some(page) = pages.next().await {
        let page = page.with_context(|| format!("could not list s3://{bucket}/models/"))?;
        for object in page.contents() {
            let (key, etag) = (object.key().unwrap_or_default(), object.e_tag());
            let name = key
                .strip_prefix("models/")
                .and_then(|k| k.strip_suffix(".json"));
            if let (Some(sha256), Some(etag), true) = (name, etag, key != CURRENT_KEY) {
                names.insert(etag.to_owned(), sha256.to_owned());
            }
        }
    }
    let found = cloud.object_versions(CURRENT_KEY).await?;
    let (versions, _) = found.unwrap_or_default();
    let mut history: Vec<Entry> = Vec::new();
    // The newest come first.
    for (n, version) in versions.iter().rev().enumerate() {
        let (Some(etag), Some(first)) = (version.e_tag(), version.last_modified()) else {
            continue;
        };
        let Some(sha256) = names.get(etag) else {
            continue;
        };
        let current = version.is_latest() == Some(true);
        match history.iter_mut().find(|entry| entry.sha256 == *sha256) {
            Some(known) => {
                known.current |= current;
                known.last = n;
            }
            None => history.push(Entry {
                sha256: sha256.clone(),
                first: *first,
                last: n,
                current,
            }),
        }
    }
    Ok(history)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_names_are_listed_in_part() {
        let names = |n: usize| -> Vec<String> { (1..=n).map(|i| i.to_string()).collect() };
        assert_eq!(list(&names(8)), "1, 2, 3, 4, 5, 6, 7, 8");
        assert_eq!(list(&names(256)), "1, 2, 3, 4, 5, 6, 7, 8 and 248 more");
    }
}
