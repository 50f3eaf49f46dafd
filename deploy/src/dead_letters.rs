//! Requests that failed: list them, and send them again once the fault is fixed.
//!
//! The queue has two kinds of message: what Lambda writes when an asynchronous call has failed
//! (<https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html>), and what the IoT
//! rule's error action writes when the call could not even be made
//! (<https://docs.aws.amazon.com/iot/latest/developerguide/rule-error-handling.html>).

use std::collections::HashSet;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{ChangeMessageVisibilityBatchRequestEntry, Message};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use crate::cloud::Cloud;
use crate::function::{LIVE, call};
use crate::stack;

/// Visibility timeout of the messages that are read, in seconds. A call may take a quarter of it (the function's own
/// timeout, three times), and begins with at least half of it left, however long the calls before it took.
pub const OURS: u16 = 120;
/// The most that SQS hands out at once.
const AT_ONCE: i32 = 10;
/// The most that is listed; `redrive` takes all.
const LISTED: usize = 100;

/// A message of the queue.
struct DeadLetter {
    receipt: String,
    /// What the function is called with; `None` where the message is of neither kind.
    event: Option<Value>,
    /// Why the call failed.
    reason: String,
}

impl DeadLetter {
    fn read(message: &Message) -> Self {
        let body: Value =
            serde_json::from_str(message.body().unwrap_or_default()).unwrap_or_default();
        let (event, reason) = if body["requestPayload"].is_object() {
            (Some(body["requestPayload"].clone()), failed_call(&body))
        } else if body["base64OriginalPayload"].is_string() {
            (Some(from_rule(&body)), failed_action(&body))
        } else {
            (None, "not a dead letter of this stack".to_owned())
        };
        Self {
            receipt: message.receipt_handle().unwrap_or_default().to_owned(),
            event,
            reason,
        }
    }

    /// `client_id request_id`, as far as they can be read.
    fn name(&self) -> String {
        let event = self.event.clone().unwrap_or_default();
        let payload = BASE64_STANDARD.decode(event["payload"].as_str().unwrap_or_default());
        let request: Value =
            serde_json::from_slice(&payload.unwrap_or_default()).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        format!(
            "{}  {}",
            text(&event["client_id"]),
            text(&request["request_id"])
        )
    }
}

/// The reason in Lambda's record of a failed asynchronous call.
fn failed_call(body: &Value) -> String {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let condition = text(&body["requestContext"]["condition"]).unwrap_or_else(|| "failed".into());
    let tries = body["requestContext"]["approximateInvokeCount"].as_u64();
    let tries = stack::count(tries.unwrap_or_default() as usize, "call");
    let message = text(&body["responsePayload"]["errorMessage"]).unwrap_or_default();
    format!("{condition} after {tries}: {message}")
}

/// The reason in the rule's record of a call that it could not make.
fn failed_action(body: &Value) -> String {
    let message = body["failures"][0]["errorMessage"].as_str();
    format!(
        "the rule could not call the function: {}",
        message.unwrap_or("no reason given")
    )
}

/// The event that the rule would have made: see its SQL in the template.
fn from_rule(body: &Value) -> Value {
    let topic = body["topic"].as_str().unwrap_or_default();
    json!({"payload": body["base64OriginalPayload"], "client_id": topic.split('/').nth(2),
           "mqtt_client_id": body["clientId"]})
}

/// The stack's queue.
struct Queue {
    sqs: Client,
    url: String,
}

impl Queue {
    async fn of(cloud: &Cloud) -> Result<Self> {
        let stack = stack::describe(cloud).await?;
        let url = stack
            .as_ref()
            .and_then(|s| stack::output(s, "DeadLettersUrl"));
        let Some(url) = url.map(str::to_owned) else {
            bail!(
                "stack {} has no queue of dead letters: `make deploy` makes it",
                cloud.stack
            )
        };
        Ok(Self {
            sqs: Client::new(&cloud.config),
            url,
        })
    }

    /// Up to ten messages, with a visibility timeout of `ours` seconds; none when the queue is empty.
    async fn next(&self, ours: u16) -> Result<Vec<Message>> {
        let got = self
            .sqs
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(AT_ONCE)
            .visibility_timeout(ours.into())
            // Long polling asks all of SQS's servers: without it, some messages may not be found.
            .wait_time_seconds(1)
            .send()
            .await
            .context("could not read the dead letters")?;
        Ok(got.messages.unwrap_or_default())
    }

    /// Make these visible again.
    async fn put_back(&self, receipts: &[String]) -> Result<()> {
        self.hide(receipts, 0).await.context(
            "could not put the dead letters back; they become visible again in two minutes",
        )
    }

    /// Hide these from all others for so many seconds from now on.
    async fn hide(&self, receipts: &[String], seconds: u16) -> Result<()> {
        for ten in receipts.chunks(AT_ONCE as usize) {
            let mut hide = self
                .sqs
                .change_message_visibility_batch()
                .queue_url(&self.url);
            for (n, receipt) in ten.iter().enumerate() {
                let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(n.to_string())
                    .receipt_handle(receipt)
                    .visibility_timeout(seconds.into())
                    .build()?;
                hide = hide.entries(entry);
            }
            hide.send().await?;
        }
        Ok(())
    }

    async fn delete(&self, receipt: &str) -> Result<()> {
        let deleted = self
            .sqs
            .delete_message()
            .queue_url(&self.url)
            .receipt_handle(receipt);
        deleted.send().await.context(
            "could not delete a dead letter that was answered: it may be answered twice",
        )?;
        Ok(())
    }
}

/// Print the messages of the queue, and leave them there.
pub async fn list(cloud: &Cloud) -> Result<()> {
    let queue = Queue::of(cloud).await?;
    let mut receipts = Vec::new();
    while receipts.len() < LISTED {
        let messages = queue.next(OURS).await?;
        if messages.is_empty() {
            break;
        }
        for message in &messages {
            let letter = DeadLetter::read(message);
            println!("{}  {}", letter.name(), letter.reason);
            receipts.push(letter.receipt);
        }
    }
    queue.put_back(&receipts).await?;
    match receipts.len() {
        0 => println!("no dead letters: every request was answered or refused"),
        n if n >= LISTED => {
            println!("{n} listed, there may be more; make redrive sends all of them again")
        }
        n => println!(
            "{}; make redrive sends them again",
            stack::count(n, "dead letter")
        ),
    }
    Ok(())
}

/// Call `live` with the messages of the queue, and delete those that it answers. The answers go to the devices' topics;
/// a device that has given up the request, or has an answer from a retry, drops them.
///
/// # Errors
/// When some fail again: they stay in the queue.
pub async fn redrive(cloud: &Cloud, ours: u16) -> Result<()> {
    let queue = Queue::of(cloud).await?;
    let a_call = Duration::from_secs(ours.into()) / 4;
    let (mut answered, mut failed) = (0_usize, Vec::new());
    let mut seen = HashSet::new();
    'queue: loop {
        let messages = queue.next(ours).await?;
        if messages.is_empty() {
            break;
        }
        let mut held = Instant::now();
        for (n, message) in messages.iter().enumerate() {
            if held.elapsed() > a_call * 2 {
                let rest = messages[n..].iter().filter_map(|m| m.receipt_handle());
                let rest: Vec<_> = rest.map(str::to_owned).collect();
                held = Instant::now();
                queue.hide(&rest, ours).await.context(
                    "could not hide the dead letters from others: they become visible again in two minutes",
                )?;
            }
            let letter = DeadLetter::read(message);
            // A message that failed before and is visible again: all others were processed.
            if !seen.insert(message.message_id().unwrap_or_default().to_owned()) {
                failed.push(letter.receipt);
                break 'queue;
            }
            let again = match &letter.event {
                Some(event) => {
                    let request = event.to_string();
                    match tokio::time::timeout(a_call, call(cloud, LIVE, &request)).await {
                        Ok(answer) => answer.map(drop),
                        Err(_) => Err(anyhow::anyhow!("no answer within {a_call:?}")),
                    }
                }
                None => Err(anyhow::anyhow!(letter.reason.clone())),
            };
            match again {
                Ok(()) => {
                    queue.delete(&letter.receipt).await?;
                    answered += 1;
                    if std::io::stdout().is_terminal() || answered.is_multiple_of(25) {
                        println!("{answered} answered");
                    }
                }
                Err(e) => {
                    println!("{}  stays: {e:#}", letter.name());
                    failed.push(letter.receipt);
                }
            }
        }
    }
    queue.put_back(&failed).await?;
    println!(
        "{} sent again and answered",
        stack::count(answered, "dead letter")
    );
    if !failed.is_empty() {
        bail!(
            "{} failed again and stay in the queue: `make logs` says why",
            failed.len()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> DeadLetter {
        DeadLetter::read(
            &Message::builder()
                .body(body.to_string())
                .receipt_handle("r")
                .build(),
        )
    }

    #[test]
    fn a_failed_call_is_sent_again_as_it_was() {
        let event = json!({"payload": BASE64_STANDARD.encode(r#"{"request_id": "a"}"#), "client_id": "iris-lily"});
        let letter = read(json!({
            "requestContext": {"condition": "RetriesExhausted", "approximateInvokeCount": 1},
            "requestPayload": event,
            "responsePayload": {"errorMessage": "no route"},
        }));
        assert_eq!(letter.event, Some(event));
        assert_eq!(letter.name(), "iris-lily  a");
        assert_eq!(letter.reason, "RetriesExhausted after 1 call: no route");
    }

    #[test]
    fn a_failed_rule_becomes_the_event_that_its_sql_makes() {
        let letter = read(json!({
            "ruleName": "iris_rule", "topic": "iris/request/iris-lily", "clientId": "iris-lily",
            "base64OriginalPayload": "e30=", "failures": [{"errorMessage": "throttled"}],
        }));
        let event =
            json!({"payload": "e30=", "client_id": "iris-lily", "mqtt_client_id": "iris-lily"});
        assert_eq!(letter.event, Some(event));
        assert!(letter.reason.contains("throttled"));
    }

    #[test]
    fn what_is_neither_is_left_alone() {
        assert!(read(json!({"hello": 1})).event.is_none());
        assert!(read(json!("hello")).event.is_none());
    }
}
