//! Everything that carries the stack's name, taken away again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};

use crate::cloud::Cloud;
use crate::device::{self, STACK_ATTRIBUTE};
use crate::stack;

/// List what will be deleted, ask, delete it, and check that nothing is left.
///
/// `port` is that of MQTT: it tells one local cloud's device folders from another's.
pub async fn destroy(cloud: &Cloud, devices: &Path, port: u16) -> Result<()> {
    let things = things(cloud).await?;
    let objects = objects(cloud).await?;
    let folders = device_folders(cloud, devices, port);
    let found = stack::describe(cloud).await?;
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

    // Devices first: a stack cannot be deleted while its device policy hangs on a certificate.
    let iot = cloud.iot();
    for thing in &things {
        device::remove_certificates(&iot, thing).await?;
        device::patiently(&format!("thing {thing}"), || iot.delete_thing(thing)).await?;
    }
    if let Some(objects) = objects {
        empty(cloud, objects).await?;
    }
    stack::delete(cloud).await?;
    // Normally gone with the stack; a bucket that a half-made stack left behind is not.
    if self::objects(cloud).await?.is_some() {
        match cloud
            .s3()
            .delete_bucket()
            .bucket(cloud.bucket())
            .send()
            .await
        {
            // It was gone, and the list of its objects did not know yet.
            Err(e) if e.code() == Some("NoSuchBucket") => {}
            deleted => {
                deleted.context("could not delete the bucket")?;
            }
        }
    }
    for folder in folders {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot delete {}", folder.display()))?;
    }

    let left = self::things(cloud).await?;
    ensure!(
        left.is_empty(),
        "devices are left: {}: run `make destroy` again",
        left.join(", ")
    );
    ensure!(
        self::objects(cloud).await?.is_none(),
        "bucket {} is left: run `make destroy` again",
        cloud.bucket()
    );
    println!("nothing of stack {} is left", cloud.stack);
    Ok(())
}

/// Names of the stack's things.
pub async fn things(cloud: &Cloud) -> Result<Vec<String>> {
    let things = cloud
        .iot()
        .things(STACK_ATTRIBUTE, &cloud.stack.to_string())
        .await;
    things.context("could not list the devices")
}

/// Every object version and delete marker with its size; `None` when there is no bucket.
async fn objects(cloud: &Cloud) -> Result<Option<Vec<(ObjectIdentifier, i64)>>> {
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
