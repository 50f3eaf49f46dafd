//! What may be deleted or changed: only what has our tag, on this target, in this account and region.
//!
//! Everything that deletes checks here first, with freshly read data. A stack has the tag as a tag, and passes it on to
//! its resources; a thing has it as attributes; a folder on this machine has it in a file.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use aws_sdk_cloudformation::types::Stack;
use serde_json::{Value, json};

use crate::cloud::{Cloud, Target};

/// The tag with the project that made something.
pub const PROJECT: (&str, &str) = ("project", "iris-workshop");
/// The tag with the stack that it belongs to.
pub const STACK: &str = "stack";

/// The rule: both tags exist, with this project and this stack.
fn carries<'v>(cloud: &Cloud, tag: impl Fn(&str) -> Option<&'v str>) -> bool {
    tag(PROJECT.0) == Some(PROJECT.1) && tag(STACK) == Some(&cloud.stack.to_string())
}

/// Refuse a stack that is not ours.
///
/// # Errors
/// With the next step.
pub fn stack(cloud: &Cloud, stack: &Stack) -> Result<()> {
    let tags = stack.tags();
    let tagged = carries(cloud, |key| {
        tags.iter().find(|t| t.key() == Some(key))?.value()
    });
    // arn:<partition>:cloudformation:<region>:<account>:stack/<name>/<unique>
    let arn: Vec<_> = stack.stack_id().unwrap_or_default().split(':').collect();
    let here = arn.get(3..5) == Some(&[cloud.region.as_str(), cloud.account.as_str()]);
    ensure!(
        tagged && here,
        "stack {} in account {}, region {} has no tag {}={}: somebody else made it, or an older version of this \
         project. It is left alone: choose another STACK{}",
        cloud.stack,
        cloud.account,
        cloud.region,
        PROJECT.0,
        PROJECT.1,
        match cloud.target {
            Target::Local => ", or begin anew: `make stop`, then delete the folder target/local",
            Target::Aws => ", or delete it in the CloudFormation console",
        }
    );
    Ok(())
}

/// Whether a thing is the stack's, by its name and attributes.
pub fn thing(cloud: &Cloud, name: &str, attributes: &Value) -> bool {
    name.starts_with(&format!("{}-", cloud.stack)) && carries(cloud, |key| attributes[key].as_str())
}

/// The attributes of such a thing.
pub fn attributes(cloud: &Cloud) -> Value {
    json!({PROJECT.0: PROJECT.1, STACK: cloud.stack.to_string()})
}

/// Whether a bucket without a stack is the stack's, by its tags.
pub fn bucket(cloud: &Cloud, tags: &[aws_sdk_s3::types::Tag]) -> bool {
    carries(cloud, |key| {
        tags.iter().find(|t| t.key() == key).map(|t| t.value())
    })
}

/// Whether a file on this machine marks its folder as this stack's, on this target, in this account and region.
pub fn file(cloud: &Cloud, file: &Path) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    let found: Value = serde_json::from_str(&text).unwrap_or_default();
    let (place, found) = (mark(cloud), found.as_object());
    let mut wanted = place.as_object().into_iter().flatten();
    found.is_some_and(|found| wanted.all(|(key, value)| found.get(key) == Some(value)))
}

/// The contents of such a file.
pub fn mark(cloud: &Cloud) -> Value {
    let mut mark = attributes(cloud);
    mark["target"] = json!(cloud.target.name());
    mark["account"] = json!(cloud.account);
    mark["region"] = json!(cloud.region);
    mark
}
