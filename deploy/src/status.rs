//! What is deployed, and what it logged.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use serde_json::{Value, json};

use crate::cloud::{Cloud, Target};
use crate::function::{LIVE, configuration};
use crate::models::{self, PUBLISH_ONE};
use crate::rest::{Call, Service};
use crate::{destroy, stack};

/// Print what is deployed, and the next step where something is missing.
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
                "{} is not deployed: `make bucket`, `make publish`, then `make deploy`",
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
    match models::current(cloud).await {
        Ok(Some(models::Published { model, .. })) => {
            let file = model.file();
            line(
                "model",
                &format!(
                    "{} ({} from {}, cross-validated accuracy {:.4})",
                    model.sha256(),
                    file.target,
                    stack::count(file.features.len(), "feature"),
                    file.training.cv_accuracy
                ),
            );
        }
        Ok(None) => line("model", &format!("none: {PUBLISH_ONE}")),
        Err(e) => line("model", &format!("{e:#}")),
    }
    if stack::output(&stack, "FunctionName").is_none() {
        line("function", "none: run `make deploy`");
        return Ok(());
    }
    let live = configuration(cloud, LIVE).await?;
    let live = live.with_context(|| format!("{}:{LIVE} is gone", cloud.function()))?;
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

/// How often to poll a followed log: CloudWatch allows an account 10 such calls a second.
const FOLLOW_EVERY: Duration = Duration::from_secs(2);
/// How far back each poll of a followed log reads: lines may arrive late and out of order.
const LATE: Duration = Duration::from_secs(30);

/// Print the function's log of the last `minutes`, oldest first, one line for each event; with `follow`, continue with
/// new lines; with `request_id`, only the lines about that request.
pub async fn logs(
    cloud: &Cloud,
    minutes: u32,
    follow: bool,
    request_id: Option<&str>,
) -> Result<()> {
    let group = format!("/aws/lambda/{}", cloud.function());
    let service = Service::new(cloud, "logs");
    let milliseconds = |time: SystemTime| -> Result<i64> {
        let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH)?;
        Ok(i64::try_from(since_1970.as_millis())?)
    };
    let ago = Duration::from_secs(u64::from(minutes) * 60);
    let mut since = milliseconds(SystemTime::now() - ago)?;
    let mut seen = HashSet::new();
    loop {
        let next = milliseconds(SystemTime::now() - LATE)?;
        let mut wanted = json!({"logGroupName": group, "startTime": since});
        if let Some(id) = request_id {
            // A quoted text matches anywhere in the line.
            wanted["filterPattern"] = json!(format!("{id:?}"));
        }
        loop {
            let call =
                Call::new("POST", "/").header("x-amz-target", "Logs_20140328.FilterLogEvents");
            let call = call
                .header("content-type", "application/x-amz-json-1.1")
                .body(wanted.clone());
            let page = service.call(&call).await.with_context(|| {
                format!("could not read {group} (is the stack deployed? `make status` tells)")
            })?;
            for event in page["events"].as_array().into_iter().flatten() {
                let message = event["message"].as_str().unwrap_or_default().trim_end();
                if !is_about(message, request_id) {
                    continue;
                }
                // The local cloud's events have no id.
                let id = event["eventId"]
                    .as_str()
                    .map(str::to_owned)
                    .unwrap_or_else(|| {
                        format!(
                            "{} {} {message}",
                            event["logStreamName"], event["timestamp"]
                        )
                    });
                if seen.insert(id) {
                    let time = DateTime::from_millis(event["timestamp"].as_i64().unwrap_or(0))
                        .fmt(DateTimeFormat::DateTime)?;
                    println!("{time}  {}", readable(message));
                }
            }
            match page["nextToken"].as_str() {
                Some(token) => wanted["nextToken"] = json!(token),
                None => break,
            }
        }
        if !follow {
            break;
        }
        since = since.max(next);
        tokio::time::sleep(FOLLOW_EVERY).await;
    }
    if seen.is_empty() {
        let about = request_id.map_or(String::new(), |id| format!(" about {id}"));
        println!("nothing{about} in {group} in the last {minutes} minutes");
    }
    Ok(())
}

/// Whether a line is about this request: `id` may also appear in another field.
fn is_about(message: &str, request_id: Option<&str>) -> bool {
    let Some(wanted) = request_id else {
        return true;
    };
    let line: Value = serde_json::from_str(message).unwrap_or_default();
    line["request_id"] == wanted
}

/// The function's own JSON lines as `LEVEL message key=value …`; Lambda's lines as they are.
fn readable(message: &str) -> String {
    let Ok(Value::Object(mut fields)) = serde_json::from_str(message) else {
        return message.to_owned();
    };
    // The time, and the metadata by which CloudWatch finds the metrics.
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

    #[test]
    fn a_line_is_about_the_request_that_it_names() {
        let line = r#"{"request_id":"a","reason":"b"}"#;
        assert!(is_about(line, None) && is_about(line, Some("a")));
        assert!(!is_about(line, Some("b")) && !is_about("START a", Some("a")));
    }
}
