//! The infrastructure: `template.yaml` through CloudFormation change sets.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_cloudformation::Client;
use aws_sdk_cloudformation::error::ProvideErrorMetadata;
use aws_sdk_cloudformation::types::{
    Capability, ChangeSetStatus, ChangeSetType, OperationEvent, Parameter, ResourceChange, Stack,
    StackStatus, Tag,
};

use crate::cloud::{Cloud, StackName, Target};
use crate::ours;

const TEMPLATE: &str = include_str!("../template.yaml");
/// Timeout of an operation: long enough for the slowest resource on AWS.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// The tag by which `class-destroy` finds a class's stacks.
const CLASS_TAG: &str = "class";

/// A client for CloudFormation.
fn client(cloud: &Cloud) -> Client {
    Client::new(&cloud.config)
}

/// The stack as it is now, or `None`.
pub async fn describe(cloud: &Cloud) -> Result<Option<Stack>> {
    look_at(cloud, &cloud.stack.to_string()).await
}

/// The stack of this name or id.
async fn look_at(cloud: &Cloud, name: &str) -> Result<Option<Stack>> {
    match client(cloud)
        .describe_stacks()
        .stack_name(name)
        .send()
        .await
    {
        Ok(found) => Ok(found.stacks.unwrap_or_default().into_iter().next()),
        // CloudFormation has no error code of its own for "there is no such stack".
        Err(e) if e.message().is_some_and(|m| m.contains("does not exist")) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("could not read stack {}", cloud.stack)),
    }
}

/// Names of the stacks that were made for the class of this stack's name.
pub async fn of_class(cloud: &Cloud) -> Result<Vec<StackName>> {
    let wanted = cloud.stack.to_string();
    let mut pages = client(cloud)
        .describe_stacks()
        .into_paginator()
        .items()
        .send();
    let mut names = Vec::new();
    while let Some(stack) = pages.next().await {
        let stack = stack.context("could not list the stacks")?;
        let name = stack.stack_name().unwrap_or_default();
        if stack.stack_status() == Some(&StackStatus::DeleteComplete) || !name.starts_with(&wanted)
        {
            continue;
        }
        let Ok(name) = name.parse::<StackName>() else {
            continue;
        };
        let member = cloud.member(name.clone());
        // A stack with the tag and another name was tagged by mistake.
        let ours = |s: &Stack| class_of(s) == Some(&wanted) && ours::stack(&member, s).is_ok();
        let tagged = tagged(&member, stack).await?;
        if !tagged.is_empty() && tagged.iter().all(ours) {
            names.push(name);
        }
    }
    names.sort_unstable_by_key(StackName::to_string);
    Ok(names)
}

/// The class that a stack was made for.
pub fn class_of(stack: &Stack) -> Option<&str> {
    let class = stack.tags().iter().find(|t| t.key() == Some(CLASS_TAG))?;
    class.value()
}

/// An output of a deployed stack.
pub fn output<'s>(stack: &'s Stack, key: &str) -> Option<&'s str> {
    stack
        .outputs()
        .iter()
        .find(|o| o.output_key() == Some(key))
        .and_then(|o| o.output_value())
}

/// A parameter that a stack was last deployed with.
pub fn parameter<'s>(stack: &'s Stack, key: &str) -> Option<&'s str> {
    let mut parameters = stack.parameters().iter();
    parameters
        .find(|p| p.parameter_key() == Some(key))
        .and_then(|p| p.parameter_value())
}

/// Make the first stage, unless the stack exists in either stage. First repair what an earlier deploy left in a state
/// that no change set can start from.
pub async fn ensure_bucket(cloud: &Cloud) -> Result<()> {
    if let State::There(stack) = repaired(cloud).await?
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
async fn apply(cloud: &Cloud, parameters: &[(&str, &str)]) -> Result<()> {
    let Some(changes) = ChangeSet::prepare(cloud, parameters).await? else {
        return Ok(());
    };
    changes.print();
    if let Err(refused) = cloud.confirm(&format!("Make these changes to stack {}", cloud.stack)) {
        changes.discard(cloud).await?;
        return Err(refused);
    }
    changes.execute(cloud).await
}

/// What CloudFormation would do to the stack. Executed or discarded, it is gone afterwards.
pub struct ChangeSet {
    id: String,
    stack_id: String,
    /// The stack would be new.
    creates: bool,
    /// The empty stack was created for this change set.
    made_stack: bool,
    changes: Vec<Change>,
}

impl ChangeSet {
    /// Compare the stack with the template and these parameters; `None` when nothing would change.
    pub async fn prepare(cloud: &Cloud, parameters: &[(&str, &str)]) -> Result<Option<Self>> {
        let cf = client(cloud);
        let stack = cloud.stack.to_string();
        let (there, made_stack) = match state(cloud).await? {
            State::There(stack) => (Some(stack), false),
            State::Absent { review } => (None, !review),
            State::Unfinished(stack) | State::Stuck(stack) => {
                bail!("{}: `make deploy` repairs it", condition(&stack))
            }
        };
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let name = format!("deploy-{}", since_1970.as_millis());
        let tls_only = match cloud.target {
            Target::Local => "false",
            Target::Aws => "true",
        };
        let parameter = |(key, value): &(&str, &str)| {
            Parameter::builder()
                .parameter_key(*key)
                .parameter_value(*value)
                .build()
        };
        let mut tags = vec![
            tag(ours::PROJECT.0, ours::PROJECT.1),
            tag(ours::STACK, &stack),
        ];
        // A stack that was made for a class stays in it, whoever deploys it next.
        let class = cloud.class.as_deref();
        let class = class.or(there.as_ref().and_then(class_of));
        tags.extend(class.map(|c| tag(CLASS_TAG, c)));
        let dashboard = if class.is_some() { "false" } else { "true" };
        let always = [("TlsOnly", tls_only), ("Dashboard", dashboard)];
        let parameters = parameters.iter().chain(&always);
        let creates = there.is_none();
        let made = cf
            .create_change_set()
            .stack_name(&stack)
            .change_set_name(&name)
            .change_set_type(if creates {
                ChangeSetType::Create
            } else {
                ChangeSetType::Update
            })
            .template_body(TEMPLATE)
            .set_parameters(Some(parameters.map(parameter).collect()))
            .capabilities(Capability::CapabilityNamedIam)
            .set_tags(Some(tags))
            .send()
            .await
            .with_context(|| format!("could not make a change set for stack {stack}"))?;
        let mut set = Self {
            id: made.id.context("the change set has no id")?,
            stack_id: made.stack_id.context("the change set has no stack")?,
            creates,
            made_stack,
            changes: Vec::new(),
        };
        match ready(&cf, &stack, &set.id, cloud.poll()).await {
            Ok(Some(changes)) => {
                set.changes = changes;
                Ok(Some(set))
            }
            Ok(None) => set.discard(cloud).await.map(|()| None),
            Err(e) => {
                // Report the first failure; a failed change set that is left behind does no harm.
                set.discard(cloud).await.ok();
                Err(e)
            }
        }
    }

    /// Print one line for each resource.
    pub fn print(&self) {
        let verb = if self.creates { "is new, " } else { "" };
        println!("stack     {verb}{}:", count(self.changes.len(), "change"));
        for Change {
            action,
            resource,
            kind,
            what,
        } in &self.changes
        {
            println!("  {action:<8} {resource:<17} {kind:<32} {what}");
        }
    }

    /// Execute the changes, and wait until all are made or rolled back.
    pub async fn execute(self, cloud: &Cloud) -> Result<()> {
        let (cf, stack) = (client(cloud), cloud.stack.to_string());
        let before = events(&cf, &stack).await?;
        let seen = before.into_iter().map(|event| event.id).collect();
        cf.execute_change_set()
            .stack_name(&stack)
            .change_set_name(&self.id)
            .send()
            .await
            .with_context(|| {
                format!("could not change stack {stack} (is another deploy running? it wins: try again when it is done)")
            })?;
        follow(&cf, &stack, seen, cloud.poll()).await
    }

    /// Discard the change set, and leave the stack as it is.
    pub async fn discard(self, cloud: &Cloud) -> Result<()> {
        client(cloud)
            .delete_change_set()
            .stack_name(cloud.stack.to_string())
            .change_set_name(&self.id)
            .send()
            .await
            .with_context(|| format!("could not delete change set {}", self.id))?;
        // A change set that would create a stack has made an empty one. By now, another terminal may have added its own
        // change set to it, or may have created it.
        if !self.made_stack {
            return Ok(());
        }
        let Some(stack) = look_at(cloud, &self.stack_id).await? else {
            return Ok(());
        };
        let empty = stack.stack_status() == Some(&StackStatus::ReviewInProgress)
            && change_sets(cloud, &stack).await?.is_empty();
        if empty {
            client(cloud)
                .delete_stack()
                .stack_name(&self.stack_id)
                .send()
                .await
                .with_context(|| format!("could not delete the empty stack {}", cloud.stack))?;
            deleted(cloud, &self.stack_id).await?;
        }
        Ok(())
    }
}

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build()
}

/// `1 change`, `2 changes`
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// What would happen to one resource.
struct Change {
    action: String,
    resource: String,
    kind: String,
    /// The properties that differ, and whether the resource is replaced.
    what: String,
}

impl Change {
    fn of(change: &ResourceChange) -> Self {
        let text = |value: Option<&str>| value.unwrap_or("?").to_owned();
        let mut what: Vec<&str> = change
            .details()
            .iter()
            .filter_map(|detail| {
                let target = detail.target()?;
                let property = target.name().filter(|name| !name.is_empty());
                property.or(target.attribute().map(|attribute| attribute.as_str()))
            })
            .collect();
        what.sort_unstable();
        what.dedup();
        let replaced = change.replacement().is_some_and(|r| r.as_str() == "True");
        Self {
            action: text(change.action().map(|a| a.as_str())),
            resource: text(change.logical_resource_id()),
            kind: text(change.resource_type()),
            what: what.join(", ") + if replaced { " (replaced)" } else { "" },
        }
    }
}

/// Wait for a change set; `None` when it holds no change.
async fn ready(
    cf: &Client,
    stack: &str,
    change_set: &str,
    poll: Duration,
) -> Result<Option<Vec<Change>>> {
    let started = Instant::now();
    loop {
        let set = cf
            .describe_change_set()
            .stack_name(stack)
            .change_set_name(change_set)
            .send()
            .await
            .with_context(|| {
                format!("could not read change set {change_set} (did another deploy just finish? it wins: try again)")
            })?;
        match set.status() {
            Some(ChangeSetStatus::CreateComplete) => {
                let changes = set.changes().iter().filter_map(|c| c.resource_change());
                return Ok(Some(changes.map(Change::of).collect()));
            }
            Some(ChangeSetStatus::Failed) => {
                let reason = set.status_reason().unwrap_or("no reason given");
                // CloudFormation reports "nothing to do" as a failure, in one of two wordings.
                if reason.contains("didn't contain changes")
                    || reason.contains("No updates are to be performed")
                {
                    return Ok(None);
                }
                // The failed resources, where CloudFormation has validated them beforehand.
                let id = set.change_set_id().unwrap_or(change_set);
                let found = cf.describe_events().change_set_name(id).send().await;
                let details = found.map(|found| failures(stack, found.operation_events()));
                let why = format!("{reason}{}", details.unwrap_or_default());
                bail!(
                    "stack {stack}: the change set failed: {why}{}",
                    in_the_way(stack, &why).unwrap_or_default()
                );
            }
            _ if started.elapsed() > DEADLINE => {
                bail!("stack {stack}: the change set is not ready after {DEADLINE:?}")
            }
            _ => tokio::time::sleep(poll).await,
        }
    }
}

/// `; resource: reason` for each of the stack's resources that has a reason.
fn failures(stack: &str, events: &[OperationEvent]) -> String {
    let line = |event: &OperationEvent| {
        let reason = event
            .validation_status_reason()
            .or(event.resource_status_reason())?;
        let resource = event.logical_resource_id().unwrap_or("the stack");
        (resource != stack).then(|| format!("; {resource}: {reason}"))
    };
    events.iter().filter_map(line).collect()
}

/// The next step where something of this stack's name exists without the stack.
fn in_the_way(stack: &str, why: &str) -> Option<String> {
    why.contains("already exists").then(|| {
        format!(
            ": if an earlier stack {stack} left it behind, `make destroy` removes it; if it is somebody else's, choose \
             another STACK"
        )
    })
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

/// Print the stack's events, except those `seen` before, until one reports that the stack itself is done.
///
/// It polls the events, not the stack: right after a change set is executed, the stack may still show its previous
/// state.
async fn follow(cf: &Client, stack: &str, mut seen: HashSet<String>, poll: Duration) -> Result<()> {
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
                        let mut why = failure.unwrap_or_else(|| "no reason given".to_owned());
                        if why.contains("DescribeEvents") {
                            let found = cf.describe_events().stack_name(stack).send().await;
                            let found =
                                found.map(|found| failures(stack, found.operation_events()));
                            why = found.unwrap_or(why).trim_start_matches("; ").to_owned();
                        }
                        let next = match s {
                            "UPDATE_ROLLBACK_COMPLETE" => " (everything is as it was before)",
                            "UPDATE_ROLLBACK_FAILED" => {
                                ": clear what stands in the way, then `make deploy` continues the rollback"
                            }
                            _ => ": `make deploy` deletes what is left, and tries again",
                        };
                        let in_the_way = in_the_way(stack, &why);
                        bail!(
                            "stack {stack} ended in {s}: {why}{}",
                            in_the_way.as_deref().unwrap_or(next)
                        )
                    }
                    _ => {}
                }
            }
        }
        tokio::time::sleep(poll).await;
    }
    bail!("stack {stack} is still working after {DEADLINE:?}: look again with `make status`")
}

/// What a deploy can start from.
enum State {
    /// No stack, or one in `review`, which only holds change sets that were never executed.
    Absent { review: bool },
    /// One that a change set can update.
    There(Stack),
    /// Its first creation failed: it can only be deleted.
    Unfinished(Stack),
    /// An update failed, and its rollback failed too: the rollback can be continued.
    Stuck(Stack),
}

/// The stack once no operation is in progress. Changes nothing.
///
/// # Errors
/// When it is not ours, or in a state that needs a person: with the next step.
async fn state(cloud: &Cloud) -> Result<State> {
    let Some(stack) = quiet(cloud).await? else {
        return Ok(State::Absent { review: false });
    };
    let status = stack.stack_status().context("the stack has no status")?;
    let review = *status == StackStatus::ReviewInProgress;
    if review || *status == StackStatus::DeleteComplete {
        return Ok(State::Absent { review });
    }
    ours::stack(cloud, &stack)?;
    Ok(match status {
        StackStatus::RollbackComplete | StackStatus::RollbackFailed | StackStatus::CreateFailed => {
            State::Unfinished(stack)
        }
        StackStatus::UpdateRollbackFailed => State::Stuck(stack),
        StackStatus::DeleteFailed => {
            let left = causes(cloud, &stack, "DELETE").await?;
            bail!(
                "{}{left}: clear that, then `make destroy` again",
                condition(&stack)
            )
        }
        s if s.as_str().ends_with("_FAILED") => bail!(
            "{}, which no command here leads to: roll it back in the CloudFormation console, then deploy again",
            condition(&stack)
        ),
        _ => State::There(stack),
    })
}

/// `stack iris is in ROLLBACK_COMPLETE`
fn condition(stack: &Stack) -> String {
    let name = stack.stack_name().unwrap_or("?");
    let status = stack.stack_status().map_or("?", |s| s.as_str());
    format!("stack {name} is in {status}")
}

/// The stack once no operation is in progress, or an error after the timeout.
async fn quiet(cloud: &Cloud) -> Result<Option<Stack>> {
    let started = Instant::now();
    let mut reported = None;
    loop {
        let Some(stack) = describe(cloud).await? else {
            return Ok(None);
        };
        let status = stack.stack_status().map_or("?", |s| s.as_str()).to_owned();
        if !status.ends_with("_IN_PROGRESS") || status == "REVIEW_IN_PROGRESS" {
            return Ok(Some(stack));
        }
        ensure!(
            started.elapsed() < DEADLINE,
            "{} for {DEADLINE:?} already: `make status` and the CloudFormation console say what it waits for; then try again",
            condition(&stack)
        );
        if reported.as_ref() != Some(&status) {
            println!(
                "{}: waiting for it, {} minutes at most",
                condition(&stack),
                DEADLINE.as_secs() / 60
            );
            reported = Some(status);
        }
        tokio::time::sleep(cloud.poll()).await;
    }
}

/// What a deploy has to repair in the stack before it can begin.
pub async fn to_repair(cloud: &Cloud) -> Result<Option<String>> {
    Ok(match state(cloud).await? {
        State::Absent { .. } | State::There(_) => None,
        State::Unfinished(stack) => {
            Some(unfinished(cloud, &stack).await? + "would be deleted and created again")
        }
        State::Stuck(stack) => {
            Some(stuck(cloud, &stack).await? + "its rollback would be continued")
        }
    })
}

async fn unfinished(cloud: &Cloud, stack: &Stack) -> Result<String> {
    let why = causes(cloud, stack, "CREATE").await?;
    Ok(format!("{}: its creation failed{why}; ", condition(stack)))
}

async fn stuck(cloud: &Cloud, stack: &Stack) -> Result<String> {
    let why = causes(cloud, stack, "UPDATE").await?;
    Ok(format!(
        "{}: an update could not be rolled back{why}; ",
        condition(stack)
    ))
}

/// Repair what an earlier deploy left behind, after a prompt.
async fn repaired(cloud: &Cloud) -> Result<State> {
    match state(cloud).await? {
        State::Unfinished(stack) => {
            println!(
                "{}it is deleted and created again",
                unfinished(cloud, &stack).await?
            );
            cloud.confirm(&format!("Delete what is left of stack {}", cloud.stack))?;
            let again = describe(cloud).await?;
            ensure!(
                again.is_some_and(|again| again.stack_id() == stack.stack_id()
                    && again.stack_status() == stack.stack_status()),
                "stack {} has changed meanwhile (another terminal?): nothing was deleted, try again",
                cloud.stack
            );
            delete(cloud, &stack).await?;
            Ok(State::Absent { review: false })
        }
        State::Stuck(stack) => {
            println!("{}its rollback continues", stuck(cloud, &stack).await?);
            cloud.confirm(&format!("Continue the rollback of stack {}", cloud.stack))?;
            let id = stack.stack_id().unwrap_or_default();
            let continued = client(cloud).continue_update_rollback().stack_name(id);
            continued.send().await.with_context(|| {
                format!("could not continue the rollback of stack {}", cloud.stack)
            })?;
            match state(cloud).await? {
                State::Stuck(stack) => bail!(
                    "{}clear what stands in the way, then `make deploy` continues again (`make destroy` would take all models along)",
                    stuck(cloud, &stack).await?
                ),
                state => Ok(state),
            }
        }
        state => Ok(state),
    }
}

/// `; resource: reason` for each resource that failed in the stack's last operation of this kind.
async fn causes(cloud: &Cloud, stack: &Stack, kind: &str) -> Result<String> {
    let failed = format!("{kind}_FAILED");
    let found = failures_since_begin(cloud, stack, &failed).await?;
    Ok(listed(&found))
}

fn listed(failures: &[(String, String)]) -> String {
    let line = |(resource, reason): &(String, String)| format!("; {resource}: {reason}");
    failures.iter().map(line).collect()
}

/// Resource and reason for each that is `failed` since the stack's last operation began.
async fn failures_since_begin(
    cloud: &Cloud,
    stack: &Stack,
    failed: &str,
) -> Result<Vec<(String, String)>> {
    let events = events(&client(cloud), stack.stack_id().unwrap_or_default()).await?;
    let name = cloud.stack.to_string();
    // A failed creation is followed by its rollback: the failed resources are in the creation.
    let begins = |event: &Event| {
        event.resource == name
            && event.state.ends_with("_IN_PROGRESS")
            && (failed != "CREATE_FAILED" || event.state == "CREATE_IN_PROGRESS")
            && !event.state.contains("CLEANUP")
    };
    let begin = events.iter().rposition(begins).unwrap_or(0);
    let mut found = Vec::new();
    for event in &events[begin..] {
        let line = (event.resource.clone(), event.reason.clone());
        let cancelled = event.reason.contains("cancelled");
        if event.state == failed && event.resource != name && !cancelled && !found.contains(&line) {
            found.push(line);
        }
    }
    Ok(found)
}

/// The change sets of a stack.
async fn change_sets(cloud: &Cloud, stack: &Stack) -> Result<Vec<String>> {
    let mut pages = client(cloud)
        .list_change_sets()
        .stack_name(cloud.stack.to_string())
        .into_paginator()
        .items()
        .send();
    let mut ids = Vec::new();
    while let Some(set) = pages.next().await {
        let set = set.context("could not list the change sets")?;
        if set.stack_id() == stack.stack_id() {
            ids.extend(set.change_set_id);
        }
    }
    Ok(ids)
}

/// The stack, if there is one that may be deleted, as it is now.
///
/// # Errors
/// When it is not ours.
pub async fn to_delete(cloud: &Cloud) -> Result<Option<Stack>> {
    let Some(stack) = quiet(cloud).await? else {
        return Ok(None);
    };
    deletable(cloud, &stack).await?;
    Ok(Some(stack))
}

/// Refuse a stack that is not ours.
async fn deletable(cloud: &Cloud, stack: &Stack) -> Result<()> {
    for tagged in tagged(cloud, stack.clone()).await? {
        ours::stack(cloud, &tagged)?;
    }
    Ok(())
}

/// The stack with its tags. One that was never created has none yet, but each of its change sets has them.
pub async fn tagged(cloud: &Cloud, stack: Stack) -> Result<Vec<Stack>> {
    if stack.stack_status() != Some(&StackStatus::ReviewInProgress) {
        return Ok(vec![stack]);
    }
    let mut tagged = Vec::new();
    for id in change_sets(cloud, &stack).await? {
        let set = client(cloud).describe_change_set().change_set_name(&id);
        let set = set.send().await;
        let set = set.with_context(|| format!("could not read change set {id}"))?;
        let tags = Some(set.tags().to_vec());
        tagged.push(
            Stack::builder()
                .set_stack_id(set.stack_id)
                .set_tags(tags)
                .build(),
        );
    }
    Ok(tagged)
}

/// How long AWS may keep a device policy in use after it was detached: up to five minutes, in which its stack cannot be
/// deleted
/// (<https://docs.aws.amazon.com/iot/latest/apireference/API_DeletePolicy.html>).
const LET_GO: Duration = Duration::from_secs(420);
/// The resource that AWS keeps in use.
const HELD: &str = "DevicePolicy";

/// Whether what failed is that resource alone. Where no resource failed, waiting does not help either.
fn only_held(failed: &[(String, String)]) -> bool {
    !failed.is_empty() && failed.iter().all(|(resource, _)| resource == HELD)
}

/// Delete this very stack, not another of its name, and wait until it is gone.
pub async fn delete(cloud: &Cloud, stack: &Stack) -> Result<()> {
    let id = stack.stack_id().context("the stack has no id")?;
    let name = &cloud.stack;
    let started = Instant::now();
    loop {
        let Some(now) = look_at(cloud, id).await? else {
            return Ok(());
        };
        if now.stack_status() == Some(&StackStatus::DeleteComplete) {
            return Ok(());
        }
        deletable(cloud, &now).await?;
        client(cloud)
            .delete_stack()
            .stack_name(id)
            .send()
            .await
            .with_context(|| format!("could not delete stack {name}"))?;
        let Some(failed) = deleted(cloud, id).await? else {
            return Ok(());
        };
        let left = failures_since_begin(cloud, &failed, "DELETE_FAILED").await?;
        let mut reason = listed(&left);
        if reason.is_empty() {
            reason = failed
                .stack_status_reason()
                .unwrap_or("no reason given")
                .to_owned();
        }
        let reason = reason.trim_start_matches("; ");
        ensure!(
            only_held(&left) && started.elapsed() < LET_GO,
            "stack {name} could not be deleted ({reason}): clear that, then run `make destroy` again"
        );
        println!("AWS still uses resources of {name} ({reason}): trying again");
        tokio::time::sleep(cloud.poll() * 7).await;
    }
}

/// Wait until the stack is deleted; returns what is left when it could not be.
async fn deleted(cloud: &Cloud, id: &str) -> Result<Option<Stack>> {
    let started = Instant::now();
    while let Some(stack) = look_at(cloud, id).await? {
        match stack.stack_status() {
            Some(StackStatus::DeleteComplete) => break,
            Some(StackStatus::DeleteFailed) => return Ok(Some(stack)),
            _ => ensure!(
                started.elapsed() < DEADLINE,
                "stack {} is not deleted after {DEADLINE:?}: `make destroy` waits on",
                cloud.stack
            ),
        }
        tokio::time::sleep(cloud.poll()).await;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_policy_that_aws_holds_is_waited_for() {
        let failed = |names: &[&str]| -> Vec<_> {
            let failure = |name: &&str| ((*name).to_owned(), "in use".to_owned());
            names.iter().map(failure).collect()
        };
        assert!(only_held(&failed(&["DevicePolicy"])));
        for others in [&["DevicePolicy", "Bucket"][..], &["Bucket"], &[]] {
            assert!(!only_held(&failed(others)), "{others:?}");
        }
    }
}
