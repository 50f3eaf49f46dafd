//! The infrastructure: `template.yaml` through CloudFormation change sets.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use aws_sdk_cloudformation::Client;
use aws_sdk_cloudformation::error::ProvideErrorMetadata;
use aws_sdk_cloudformation::types::{
    Capability, ChangeSetStatus, ChangeSetType, Parameter, Stack, StackStatus, Tag,
};

use crate::cloud::{Cloud, Target};

const TEMPLATE: &str = include_str!("../template.yaml");
/// Long enough for the slowest resource on AWS; a wait without an end helps nobody.
const DEADLINE: Duration = Duration::from_secs(15 * 60);
/// Between two looks at a stack: AWS limits how often an account may ask.
const POLL: Duration = Duration::from_secs(1);

/// A client for CloudFormation.
fn client(cloud: &Cloud) -> Client {
    Client::new(&cloud.config)
}

/// The stack as it is now, or `None`.
pub async fn describe(cloud: &Cloud) -> Result<Option<Stack>> {
    match client(cloud)
        .describe_stacks()
        .stack_name(cloud.stack.to_string())
        .send()
        .await
    {
        Ok(found) => Ok(found.stacks.unwrap_or_default().into_iter().next()),
        // CloudFormation has no error code of its own for "there is no such stack".
        Err(e) if e.message().is_some_and(|m| m.contains("does not exist")) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("could not look at stack {}", cloud.stack)),
    }
}

/// An output of a deployed stack.
pub fn output<'s>(stack: &'s Stack, key: &str) -> Option<&'s str> {
    stack
        .outputs()
        .iter()
        .find(|o| o.output_key() == Some(key))
        .and_then(|o| o.output_value())
}

/// Make the first stage, unless the stack is there in either stage.
pub async fn ensure_bucket(cloud: &Cloud) -> Result<()> {
    if let Some(stack) = settled(cloud).await?
        && let Some(bucket) = output(&stack, "BucketName")
    {
        println!("bucket {bucket} is there");
        return Ok(());
    }
    apply(cloud, &[("CodeKey", "")]).await?;
    println!("bucket {} is there", cloud.bucket());
    Ok(())
}

/// Bring the stack to the template with these parameters. Doing nothing is a success.
pub async fn apply(cloud: &Cloud, parameters: &[(&str, &str)]) -> Result<()> {
    let cf = client(cloud);
    let name = cloud.stack.to_string();
    let exists = settled(cloud).await?.is_some();
    let change_set = format!(
        "deploy-{}",
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_millis()
    );
    let tls_only = if cloud.target == Target::Local {
        "false"
    } else {
        "true"
    };
    let parameter = |(key, value): &(&str, &str)| {
        Parameter::builder()
            .parameter_key(*key)
            .parameter_value(*value)
            .build()
    };

    cf.create_change_set()
        .stack_name(&name)
        .change_set_name(&change_set)
        .change_set_type(if exists {
            ChangeSetType::Update
        } else {
            ChangeSetType::Create
        })
        .template_body(TEMPLATE)
        .set_parameters(Some(
            parameters
                .iter()
                .chain(&[("TlsOnly", tls_only)])
                .map(parameter)
                .collect(),
        ))
        .capabilities(Capability::CapabilityNamedIam)
        .tags(Tag::builder().key("stack").value(&name).build())
        .send()
        .await
        .with_context(|| format!("could not make a change set for stack {name}"))?;

    let discard = || async {
        cf.delete_change_set()
            .stack_name(&name)
            .change_set_name(&change_set)
            .send()
            .await
            .with_context(|| format!("could not delete change set {change_set}"))
    };
    if !ready(&cf, &name, &change_set).await? {
        discard().await?;
        println!("stack {name}: no changes");
        return Ok(());
    }
    if let Err(refused) = cloud.confirm(&format!("Make these changes to stack {name}")) {
        discard().await?;
        return Err(refused);
    }
    let seen = events(&cf, &name)
        .await?
        .into_iter()
        .map(|event| event.id)
        .collect();
    cf.execute_change_set()
        .stack_name(&name)
        .change_set_name(&change_set)
        .send()
        .await
        .with_context(|| format!("could not execute the change set of stack {name}: try again"))?;
    follow(&cf, &name, seen).await
}

/// Wait for a change set and print it; false when it holds no change.
async fn ready(cf: &Client, stack: &str, change_set: &str) -> Result<bool> {
    let started = Instant::now();
    loop {
        let set = cf
            .describe_change_set()
            .stack_name(stack)
            .change_set_name(change_set)
            .send()
            .await
            .with_context(|| format!("could not look at change set {change_set}"))?;
        match set.status() {
            Some(ChangeSetStatus::CreateComplete) => {
                let changes = set.changes().len();
                println!(
                    "stack {stack}: {changes} change{}",
                    if changes == 1 { "" } else { "s" }
                );
                for change in set.changes().iter().filter_map(|c| c.resource_change()) {
                    let action = change.action().map_or("?", |a| a.as_str());
                    let replaced = change.replacement().is_some_and(|r| r.as_str() == "True");
                    println!(
                        "  {action:<8} {:<16} {}{}",
                        change.logical_resource_id().unwrap_or("?"),
                        change.resource_type().unwrap_or("?"),
                        if replaced { "  (replaced)" } else { "" },
                    );
                }
                return Ok(true);
            }
            Some(ChangeSetStatus::Failed) => {
                let reason = set.status_reason().unwrap_or("no reason given");
                // CloudFormation reports "nothing to do" as a failure, in one of two wordings.
                if reason.contains("didn't contain changes")
                    || reason.contains("No updates are to be performed")
                {
                    return Ok(false);
                }
                bail!("stack {stack}: the change set failed: {reason}");
            }
            _ if started.elapsed() > DEADLINE => {
                bail!("stack {stack}: the change set is not ready after {DEADLINE:?}")
            }
            _ => tokio::time::sleep(Duration::from_millis(300)).await,
        }
    }
}

/// One line of a stack's history.
struct Event {
    id: String,
    resource: String,
    state: String,
    reason: String,
}

/// The stack's newest events, oldest first.
async fn events(cf: &Client, stack: &str) -> Result<Vec<Event>> {
    let found = cf.describe_stack_events().stack_name(stack).send().await;
    let found = found.with_context(|| format!("could not read the events of stack {stack}"))?;
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let event = |e: &aws_sdk_cloudformation::types::StackEvent| Event {
        id: text(e.event_id()),
        resource: text(e.logical_resource_id()),
        state: text(e.resource_status().map(|s| s.as_str())),
        reason: text(e.resource_status_reason()),
    };
    Ok(found.stack_events().iter().rev().map(event).collect())
}

/// Print the stack's events, but for those `seen` before, until one says that the stack itself is done.
///
/// The events are asked, not the stack: right after a change set is executed the stack may still
/// show the state before.
async fn follow(cf: &Client, stack: &str, mut seen: HashSet<String>) -> Result<()> {
    let started = Instant::now();
    let mut failure: Option<String> = None;
    while started.elapsed() < DEADLINE {
        for Event {
            id,
            resource,
            state,
            reason,
        } in events(cf, stack).await?
        {
            if !seen.insert(id) {
                continue;
            }
            println!(
                "  {:>5.1} s  {state:<28} {resource}  {reason}",
                started.elapsed().as_secs_f64()
            );
            if state.ends_with("_FAILED") && failure.is_none() {
                failure = Some(format!("{resource}: {reason}"));
            }
            if resource == stack {
                match state.as_str() {
                    "CREATE_COMPLETE" | "UPDATE_COMPLETE" => return Ok(()),
                    s if s.ends_with("ROLLBACK_COMPLETE") || s.ends_with("ROLLBACK_FAILED") => {
                        bail!(
                            "stack {stack} ended in {s}: {}",
                            failure.as_deref().unwrap_or("no reason given")
                        )
                    }
                    _ => {}
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("stack {stack} is still working after {DEADLINE:?}: look again with `make status`")
}

/// The stack when nothing is moving in it any more; `None` when there is none to update.
///
/// What an earlier, killed deploy left behind is brought back to where a change set can start: a
/// running operation is waited for, a creation that failed is deleted.
async fn settled(cloud: &Cloud) -> Result<Option<Stack>> {
    let started = Instant::now();
    loop {
        let Some(stack) = describe(cloud).await? else {
            return Ok(None);
        };
        let status = stack
            .stack_status()
            .context("the stack has no status")?
            .clone();
        match status {
            // Only a change set that was never executed: as good as no stack.
            StackStatus::ReviewInProgress => return Ok(None),
            StackStatus::RollbackComplete
            | StackStatus::RollbackFailed
            | StackStatus::CreateFailed => {
                println!(
                    "stack {} was never finished ({status}): deleting what is there",
                    cloud.stack
                );
                delete(cloud).await?;
                return Ok(None);
            }
            s if s.as_str().ends_with("_IN_PROGRESS") => {
                if started.elapsed() > DEADLINE {
                    bail!(
                        "stack {} has been in {s} for {DEADLINE:?}: look at it before you go on",
                        cloud.stack
                    );
                }
                println!("stack {} is busy ({s}), waiting", cloud.stack);
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            s if s.as_str().ends_with("_FAILED") => {
                bail!(
                    "stack {} is in {s}: `make destroy` removes it, then deploy again",
                    cloud.stack
                )
            }
            _ => return Ok(Some(stack)),
        }
    }
}

/// Delete the stack and wait until it is gone.
pub async fn delete(cloud: &Cloud) -> Result<()> {
    let cf = client(cloud);
    let name = cloud.stack.to_string();
    cf.delete_stack()
        .stack_name(&name)
        .send()
        .await
        .with_context(|| format!("could not delete stack {name}"))?;
    let started = Instant::now();
    loop {
        match describe(cloud).await? {
            None => return Ok(()),
            Some(stack) => match stack.stack_status() {
                Some(StackStatus::DeleteComplete) => return Ok(()),
                Some(StackStatus::DeleteFailed) => {
                    let reason = stack.stack_status_reason().unwrap_or("no reason given");
                    bail!(
                        "stack {name} could not be deleted ({reason}): run `make destroy` again in a few minutes"
                    );
                }
                _ if started.elapsed() > DEADLINE => {
                    bail!("stack {name} is not deleted after {DEADLINE:?}")
                }
                _ => tokio::time::sleep(Duration::from_millis(500)).await,
            },
        }
    }
}
