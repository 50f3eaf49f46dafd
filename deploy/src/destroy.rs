//! Deletes everything that has the stack's name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aws_sdk_cloudformation::types::Stack;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};

use crate::cloud::Cloud;
use crate::device;
use crate::ours;
use crate::stack;

/// List what will be deleted, ask, delete it, and check that nothing is left.
///
/// `port` is that of MQTT: it distinguishes one local cloud's device folders from another's.
pub async fn destroy(cloud: &Cloud, devices: &Path, port: u16) -> Result<()> {
    let found = stack::to_delete(cloud).await?;
    let things = things(cloud).await?;
    let objects = objects(cloud, found.as_ref()).await?;
    let folders = device_folders(cloud, devices, port);
    if things.is_empty() && objects.is_none() && folders.is_empty() && found.is_none() {
        println!("nothing of stack {} is there", cloud.stack);
        return Ok(());
    }
    println!("to delete:");
    if let Some(found) = &found {
        println!(
            "  stack {} ({})",
            cloud.stack,
            found.stack_status().map_or("?", |s| s.as_str())
        );
    }
    if let Some(objects) = &objects {
        let bytes: i64 = objects.iter().map(|(_, size)| size).sum();
        println!(
            "  bucket {}: {} object versions, {:.1} MB",
            cloud.bucket(),
            objects.len(),
            bytes as f64 / 1e6
        );
    }
    for thing in &things {
        println!("  device {thing} and its certificate");
    }
    for folder in &folders {
        println!("  folder {}", folder.display());
    }
    cloud.confirm("Delete all of this")?;

    // During the prompt, another terminal may have made another stack of this name.
    let again = stack::to_delete(cloud).await?;
    ensure!(
        again.as_ref().and_then(Stack::stack_id) == found.as_ref().and_then(Stack::stack_id),
        "stack {} is not the one that was listed any more (another terminal?): nothing was deleted, look with `make status`",
        cloud.stack
    );
    // Devices first: a stack cannot be deleted while its device policy is attached to a certificate.
    let names = folders.iter().filter_map(|folder| folder.file_name());
    let names = names.map(|name| format!("{}-{}", cloud.stack, name.to_string_lossy()));
    for device in things.into_iter().chain(names).collect::<BTreeSet<_>>() {
        device::remove(cloud, devices, port, &device).await?;
    }
    // Only when it is empty.
    fs::remove_dir(devices).ok();
    if let Some(objects) = objects {
        empty(cloud, objects).await?;
    }
    if let Some(found) = &found {
        stack::delete(cloud, found).await?;
    }
    // Normally gone with the stack; a bucket that a half-made stack left behind is not.
    if self::objects(cloud, found.as_ref()).await?.is_some() {
        let bucket = cloud.s3().delete_bucket().bucket(cloud.bucket());
        let owner = bucket.expected_bucket_owner(&cloud.account);
        match owner.send().await {
            // The bucket was deleted; the list of its objects was out of date.
            Err(e) if e.code() == Some("NoSuchBucket") => {}
            deleted => {
                deleted.context("could not delete the bucket")?;
            }
        }
    }

    let left = self::things(cloud).await?;
    ensure!(
        left.is_empty(),
        "devices are left: {}: run `make destroy` again",
        left.join(", ")
    );
    ensure!(
        self::objects(cloud, found.as_ref()).await?.is_none(),
        "bucket {} is left: run `make destroy` again",
        cloud.bucket()
    );
    println!("nothing of stack {} is left", cloud.stack);
    Ok(())
}

/// Names of the stack's things.
pub async fn things(cloud: &Cloud) -> Result<Vec<String>> {
    let (iot, stack) = (cloud.iot(), cloud.stack.to_string());
    let things = iot.things(ours::STACK, &stack).await;
    let things = things.context("could not list the devices")?;
    let ours = things
        .into_iter()
        .filter(|(name, attributes)| ours::thing(cloud, name, attributes));
    Ok(ours.map(|(name, _)| name).collect())
}

/// Every object version and delete marker with its size; `None` when there is no bucket of ours: by its stack, or by its
/// tags where a stack has left it behind.
async fn objects(
    cloud: &Cloud,
    stack: Option<&Stack>,
) -> Result<Option<Vec<(ObjectIdentifier, i64)>>> {
    let of_stack = stack.and_then(|s| stack::output(s, "BucketName")) == Some(&cloud.bucket());
    if !of_stack && !has_our_tags(cloud).await? {
        return Ok(None);
    }
    let Some((versions, markers)) = cloud.object_versions("").await? else {
        return Ok(None);
    };
    let identify = |key: Option<&str>, version: Option<&str>| {
        let id = ObjectIdentifier::builder().key(key.unwrap_or_default());
        id.set_version_id(version.map(str::to_owned)).build()
    };
    let mut objects = Vec::new();
    for v in &versions {
        objects.push((identify(v.key(), v.version_id())?, v.size().unwrap_or(0)));
    }
    for m in &markers {
        objects.push((identify(m.key(), m.version_id())?, 0));
    }
    Ok(Some(objects))
}

async fn has_our_tags(cloud: &Cloud) -> Result<bool> {
    let bucket = cloud.bucket();
    let tags = cloud.s3().get_bucket_tagging().bucket(&bucket);
    match tags.expected_bucket_owner(&cloud.account).send().await {
        Ok(tags) => Ok(ours::bucket(cloud, tags.tag_set())),
        Err(e) if matches!(e.code(), Some("NoSuchBucket" | "NoSuchTagSet")) => Ok(false),
        Err(e) => Err(e).with_context(|| format!("could not read the tags of bucket {bucket}")),
    }
}

/// Delete object versions, a thousand a call as S3 allows.
async fn empty(cloud: &Cloud, objects: Vec<(ObjectIdentifier, i64)>) -> Result<()> {
    let (s3, bucket) = (cloud.s3(), cloud.bucket());
    let ids: Vec<_> = objects.into_iter().map(|(id, _)| id).collect();
    for chunk in ids.chunks(1000) {
        let delete = Delete::builder()
            .set_objects(Some(chunk.to_vec()))
            .quiet(true)
            .build()?;
        let reply = s3
            .delete_objects()
            .bucket(&bucket)
            .expected_bucket_owner(&cloud.account)
            .delete(delete)
            .send()
            .await
            .with_context(|| format!("could not empty bucket {bucket}"))?;
        if let Some(e) = reply.errors().first() {
            let (key, message) = (
                e.key().unwrap_or("?"),
                e.message().unwrap_or("no reason given"),
            );
            anyhow::bail!("could not delete s3://{bucket}/{key}: {message}");
        }
    }
    Ok(())
}

/// Folders of credentials that belong to this stack in this cloud.
fn device_folders(cloud: &Cloud, devices: &Path, port: u16) -> Vec<PathBuf> {
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|dir| device::belongs(cloud, dir, Some(port)))
        .collect()
}
