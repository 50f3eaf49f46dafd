//! What is deployed, and what it logged.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use serde_json::Value;

use crate::cloud::{Cloud, Target};
use crate::function::{LIVE, current_model};
use crate::{destroy, stack};

/// Print what stands in the cloud, and the next step where something is missing.
pub async fn status(cloud: &Cloud) -> Result<()> {
    let target = match cloud.target {
        Target::Local => format!("local, {}", cloud.config.endpoint_url().unwrap_or("?")),
        Target::Aws => "AWS".to_owned(),
    };
    let line = |name: &str, text: &str| println!("{name:<10}{text}");
    line(
        "cloud",
        &format!(
            "{target}, account {}, region {}",
            cloud.account, cloud.region
        ),
    );
    let Some(stack) = stack::describe(cloud).await? else {
        line(
            "stack",
            &format!(
                "{} is not deployed: `make bucket`, notebook 02, then `make deploy`",
                cloud.stack
            ),
        );
        return Ok(());
    };
    line(
        "stack",
        &format!(
            "{} {}",
            cloud.stack,
            stack.stack_status().map_or("?", |s| s.as_str())
        ),
    );
    line(
        "bucket",
        stack::output(&stack, "BucketName").unwrap_or("none: run `make bucket`"),
    );
    match current_model(cloud).await {
        Ok(Some(model)) => {
            let training = &model.file().training;
            line(
                "model",
                &format!(
                    "{} (cross-validated accuracy {:.4})",
                    model.sha256(),
                    training.cv_accuracy
                ),
            );
        }
        Ok(None) => line(
            "model",
            "none: run notebook 02 (make run NB=notebooks/02_publish.ipynb)",
        ),
        Err(e) => line("model", &format!("{e:#}")),
    }
    if stack::output(&stack, "FunctionName").is_none() {
        line("function", "none: run `make deploy`");
        return Ok(());
    }
    let live = cloud
        .lambda()
        .get_function_configuration()
        .function_name(cloud.function())
        .qualifier(LIVE)
        .send()
        .await
        .with_context(|| format!("could not look at {}:{LIVE}", cloud.function()))?;
    line(
        "function",
        &format!(
            "{} live is version {}, {} MB of memory, code {:.1} MB, changed {}",
            cloud.function(),
            live.version().unwrap_or("?"),
            live.memory_size().unwrap_or(0),
            live.code_size() as f64 / 1e6,
            live.last_modified().unwrap_or("?"),
        ),
    );
    let things = destroy::things(cloud).await?;
    line(
        "devices",
        &if things.is_empty() {
            "none: run `make device NAME=lily`".to_owned()
        } else {
            things.join(", ")
        },
    );
    Ok(())
}

/// Print the function's log of the last `minutes`, oldest first, one line an event.
pub async fn logs(cloud: &Cloud, minutes: u32) -> Result<()> {
    let since = SystemTime::now() - Duration::from_secs(u64::from(minutes) * 60);
    let since = i64::try_from(since.duration_since(SystemTime::UNIX_EPOCH)?.as_millis())?;
    let group = format!("/aws/lambda/{}", cloud.function());
    let mut pages = aws_sdk_cloudwatchlogs::Client::new(&cloud.config)
        .filter_log_events()
        .log_group_name(&group)
        .start_time(since)
        .into_paginator()
        .send();
    let mut seen = HashSet::new();
    while let Some(page) = pages.next().await {
        let page = page.with_context(|| {
            format!("could not read {group} (is the stack deployed? `make status` tells)")
        })?;
        for event in page.events() {
            if seen.insert(event.event_id().unwrap_or_default().to_owned()) {
                let time = DateTime::from_millis(event.timestamp().unwrap_or(0))
                    .fmt(DateTimeFormat::DateTime)?;
                println!(
                    "{time}  {}",
                    readable(event.message().unwrap_or_default().trim_end())
                );
            }
        }
    }
    if seen.is_empty() {
        println!("nothing in {group} in the last {minutes} minutes");
    }
    Ok(())
}

/// The function's own JSON lines as `LEVEL message key=value …`; Lambda's lines as they are.
fn readable(message: &str) -> String {
    let Ok(Value::Object(mut fields)) = serde_json::from_str(message) else {
        return message.to_owned();
    };
    // When, and what tells CloudWatch which of the rest are metrics.
    fields.remove("timestamp");
    fields.remove("_aws");
    let mut take = |key: &str| {
        fields
            .remove(key)
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    };
    let (level, message) = (
        take("level").unwrap_or_default(),
        take("message").unwrap_or_default(),
    );
    let rest: Vec<_> = fields
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    format!("{level} {message} {}", rest.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_become_readable_and_others_stay() {
        let line = r#"{"level":"INFO","message":"answered","handler_us":7,"_aws":{}}"#;
        assert_eq!(readable(line), "INFO answered handler_us=7");
        assert_eq!(readable("START RequestId: 1"), "START RequestId: 1");
    }
}
