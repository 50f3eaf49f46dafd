//! From a zip to `live`, and back: plan, deploy, roll back, and list the versions.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use aws_sdk_cloudformation::types::Stack;
use aws_sdk_s3::primitives::DateTimeFormat;
use clap::{Args, ValueEnum};
use iris_fn::Model;
use iris_fn::model::{CURRENT_KEY, sha256_hex};

use crate::check;
use crate::cloud::{Architecture, Cloud, Target};
use crate::cost;
use crate::function::{
    self, Code, LATEST, LIVE, code_sha256, configuration, live_version, move_live, same_behaviour,
};
use crate::models::{self, PUBLISH_ONE};
use crate::policy;
use crate::stack::{self, ChangeSet};

/// The settings of `plan` and `up`.
#[derive(Args)]
pub struct Settings {
    /// Processor that the code was built for
    #[arg(long, env = "ARCH", default_value = "host")]
    arch: Architecture,
    /// Call the function this often, so that a container stays ready: rate(5 minutes)
    #[arg(long, env = "KEEP_WARM", default_value = "", value_parser = schedule)]
    keep_warm: String,
    /// Who gets an e-mail when the account spends more than the budget; without it, as deployed before
    #[arg(long, env = "BUDGET_EMAIL")]
    budget_email: Option<String>,
    /// The budget, in US dollars a month for the whole account
    #[arg(long, env = "BUDGET_DOLLARS", value_parser = clap::value_parser!(u32).range(1..))]
    budget_dollars: Option<u32>,
    /// ARN of an SNS topic that alarms notify; without it, as deployed before
    #[arg(long, env = "ALARM_TOPIC")]
    alarm_topic: Option<String>,
    /// How many of the compared rows may get another label than `live` gives them
    #[arg(long, env = "MAX_CHANGED", default_value_t = 0)]
    max_changed: usize,
}

/// `rate(1 minute)` or `rate(<n> minutes)`, as the template has it; nothing for never.
fn schedule(text: &str) -> Result<String, String> {
    let rate = text
        .strip_prefix("rate(")
        .and_then(|rest| rest.strip_suffix(')'));
    let minutes = rate.and_then(|rate| rate.strip_suffix(" minutes"));
    let many = minutes.and_then(|n| {
        n.parse::<u32>()
            .ok()
            .filter(|m| *m > 1 && m.to_string() == n)
    });
    if text.is_empty() || rate == Some("1 minute") || many.is_some() {
        Ok(text.to_owned())
    } else {
        Err(
            "it takes minutes: try KEEP_WARM='rate(5 minutes)', or leave it empty for never"
                .to_owned(),
        )
    }
}

impl Settings {
    /// The template's parameters about money. What is not set stays as it was deployed: a later deploy by somebody else
    /// takes no budget away. A budget is the account's, so a class has none in each stack.
    fn about_money(&self, cloud: &Cloud, deployed: Option<&Stack>) -> [(&'static str, String); 3] {
        let parameter = |key: &'static str, given: Option<String>, first: &str| {
            let before = deployed.and_then(|s| stack::parameter(s, key));
            (
                key,
                given.unwrap_or_else(|| before.unwrap_or(first).to_owned()),
            )
        };
        let budget = match &cloud.class {
            Some(_) => Some(String::new()),
            None => self.budget_email.clone(),
        };
        let dollars = self.budget_dollars.map(|dollars| dollars.to_string());
        [
            parameter("BudgetEmail", budget, ""),
            parameter("BudgetDollars", dollars, "10"),
            parameter("AlarmTopic", self.alarm_topic.clone(), ""),
        ]
    }
}

/// What to read before the first deploy that may cost something.
fn warning(target: Target, is_new: bool) -> Result<Option<String>> {
    let costs = is_new && target == Target::Aws;
    costs.then(cost::forgotten).transpose()
}

/// What would change, if anything.
struct Plan {
    code: Code,
    changes: Option<ChangeSet>,
    /// The template's parameters, except the one about the checks.
    parameters: Vec<(&'static str, String)>,
    /// `$LATEST` or the zip is not what `live` runs.
    new_version: bool,
    /// A version has passed the checks: the rule may call `live`.
    checked: bool,
}

/// The template's parameter that lets the rule call `live`.
const CHECKED: &str = "Checked";

/// The template's parameters, and whether the rule may call `live`.
fn all<'p>(
    parameters: &'p [(&'static str, String)],
    checked: bool,
) -> Vec<(&'static str, &'p str)> {
    let others = parameters.iter().map(|(key, value)| (*key, value.as_str()));
    let checked = if checked { "true" } else { "false" };
    others.chain([(CHECKED, checked)]).collect()
}

impl Plan {
    /// Compare the zip, the model and the template with what is deployed, and print it.
    async fn make(cloud: &Cloud, zip: &Path, settings: &Settings) -> Result<Self> {
        let bytes = fs::read(zip)
            .with_context(|| format!("cannot read {}: run `make build` first", zip.display()))?;
        let sha256 = sha256_hex(&bytes);
        let code = Code { bytes, sha256 };
        let live = configuration(cloud, LIVE).await?;
        let latest = configuration(cloud, LATEST).await?;
        let new_version = match (&live, &latest) {
            (Some(live), Some(latest)) => {
                let deployed = code_sha256(live.code_sha256());
                let version = live.version().unwrap_or("?");
                if deployed == code.sha256 {
                    println!("code      {deployed:.12} is live, version {version}");
                } else {
                    println!(
                        "code      {deployed:.12} is live, version {version}; new is {:.12}",
                        code.sha256
                    );
                }
                deployed != code.sha256 || !same_behaviour(live, latest)
            }
            _ => {
                println!("code      nothing is live; new is {:.12}", code.sha256);
                true
            }
        };
        match models::current(cloud).await {
            Ok(Some(current)) => print_model(cloud, &current.model, live.is_some()).await,
            Ok(None) => println!("model     none: {PUBLISH_ONE}"),
            Err(e) => println!("model     {e:#}"),
        }
        if let Some(warning) = warning(cloud.target, live.is_none())? {
            println!("cost      {warning}");
        }
        let deployed = stack::describe(cloud).await?;
        let before = deployed.as_ref();
        let checked = before.and_then(|s| stack::parameter(s, CHECKED)) == Some("true");
        if !checked {
            println!("rule      is off until the new version has passed the checks");
        }
        let mut parameters = vec![
            ("CodeKey", code.key()),
            ("Architecture", settings.arch.as_lambda().to_owned()),
            ("KeepWarm", settings.keep_warm.clone()),
        ];
        parameters.extend(settings.about_money(cloud, before));
        let changes = ChangeSet::prepare(cloud, &all(&parameters, checked)).await?;
        match &changes {
            Some(changes) => changes.print(),
            None => println!("stack     {}: no changes", cloud.stack),
        }
        Ok(Self {
            code,
            changes,
            parameters,
            new_version,
            checked,
        })
    }
}

/// Which model is current, and which one `live` answers with.
async fn print_model(cloud: &Cloud, model: &Model, deployed: bool) {
    let current = &model.sha256()[..12];
    if !deployed {
        return println!("model     {current} is current");
    }
    match function::describe(cloud, LIVE).await {
        Ok(live) if live.model == model.sha256() => {
            println!("model     {current} is current, and answers");
        }
        Ok(live) => println!("model     {current} is current, {:.12} answers", live.model),
        Err(e) => println!("model     {current} is current; {e:#}"),
    }
}

/// Print what a deploy would do, and change nothing. Returns whether there is anything to do.
pub async fn plan(cloud: &Cloud, zip: &Path, settings: &Settings) -> Result<bool> {
    if let Some(what) = stack::to_repair(cloud).await? {
        println!("{what}\n`make deploy` would do this");
        return Ok(true);
    }
    let plan = Plan::make(cloud, zip, settings).await?;
    let something = plan.new_version || plan.changes.is_some() || !plan.checked;
    if let Some(changes) = plan.changes {
        changes.discard(cloud).await?;
    }
    println!(
        "{}",
        if something {
            "`make deploy` would do this"
        } else {
            "nothing to do"
        }
    );
    Ok(something)
}

/// Deploy a code zip: boundary, bucket, upload, stack, new version, checks, and only then `live`.
///
/// Each step is idempotent, and starts from what exists: after a deploy was killed anywhere, the same command continues.
pub async fn deploy(cloud: &Cloud, zip: &Path, settings: &Settings) -> Result<()> {
    let started = Instant::now();
    policy::ensure_boundary(cloud).await?;
    stack::ensure_bucket(cloud).await?;
    let model = models::current(cloud).await?.with_context(|| {
        format!(
            "no model in s3://{}/{CURRENT_KEY}: {PUBLISH_ONE}",
            cloud.bucket()
        )
    })?;
    let model = model.model;
    let Plan {
        code,
        changes,
        parameters,
        new_version,
        checked,
    } = Plan::make(cloud, zip, settings).await?;
    if changes.is_some() || new_version || !checked {
        let go = cloud.confirm(&format!("Deploy this to stack {}", cloud.stack));
        if let Err(refused) = go {
            if let Some(changes) = changes {
                changes.discard(cloud).await?;
            }
            return Err(refused);
        }
    }
    code.upload(cloud).await?;
    if let Some(changes) = changes {
        changes.execute(cloud).await?;
    }

    let (version, made) = function::publish(cloud, &code).await?;
    let live = live_version(cloud).await?;
    let is_new = live.as_ref() != Some(&version);
    let mut passed = check::golden_rows(cloud, &version, &model).await;
    if passed.is_ok() {
        passed = check::rule_event(cloud, &version, &model).await;
    }
    // Compare with `live` only once it has passed the checks itself.
    if passed.is_ok() && is_new && checked {
        passed = check::shadow(cloud, &version, &model, settings.max_changed).await;
    }
    if let Err(e) = passed {
        if made && is_new {
            // So that no rollback ever takes it for a version that has passed.
            function::discard(cloud, &version).await?;
            let kept = live.as_deref().unwrap_or("none");
            bail!("version {version} is deleted, `live` stays at version {kept}: {e:#}");
        }
        let rule = if checked {
            ""
        } else {
            " (the rule stays off, so that no device is answered by it)"
        };
        return Err(e).with_context(|| format!("version {version} fails, and stays{rule}"));
    }
    move_live(cloud, &version).await?;
    if !checked && let Some(changes) = ChangeSet::prepare(cloud, &all(&parameters, true)).await? {
        println!("the version has passed: the rule is switched on");
        changes.execute(cloud).await?;
    }
    code.delete_older(cloud).await?;
    println!(
        "deployed in {:.1} s: try `make invoke`",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// What to roll back.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum What {
    /// The version behind `live`
    Code,
    /// The model in `models/current.json`
    Model,
}

/// Go back to the version or the model before, or to the one named.
pub async fn rollback(cloud: &Cloud, what: What, to: Option<&str>) -> Result<()> {
    match what {
        What::Code => rollback_code(cloud, to).await,
        What::Model => models::rollback(cloud, to).await,
    }
}

async fn rollback_code(cloud: &Cloud, to: Option<&str>) -> Result<()> {
    let live = live_version(cloud).await?;
    let live = live.context("nothing is deployed: there is nothing to go back from")?;
    let versions = function::versions(cloud).await?;
    let known = versions.iter().filter_map(|v| v.version());
    let target = match to {
        Some(to) => known.clone().find(|v| *v == to),
        None => known.clone().take_while(|v| *v != live).last(),
    };
    let target = target.with_context(|| match to {
        Some(to) => format!("there is no version {to}: `make versions` lists them"),
        None => format!("version {live} is the first: there is nothing to go back to"),
    })?;
    cloud.confirm(&format!(
        "Move `live` from version {live} to version {target}"
    ))?;
    if let Some(current) = models::current(cloud).await? {
        check::golden_rows(cloud, target, &current.model)
            .await
            .context("`live` is left where it was")?;
    }
    move_live(cloud, target).await
}

/// Print the versions of the code and the models, oldest first.
pub async fn versions(cloud: &Cloud) -> Result<()> {
    let live = live_version(cloud).await?;
    println!("code");
    if live.is_none() {
        println!("  none: run `make deploy`");
    } else {
        for version in function::versions(cloud).await? {
            let number = version.version().unwrap_or("?");
            let mark = if live.as_deref() == Some(number) {
                "live"
            } else {
                ""
            };
            let modified = version.last_modified().unwrap_or("?");
            println!(
                "  {mark:<8} version {number:<4} {:.12}  published {modified:.19}",
                code_sha256(version.code_sha256()),
            );
        }
    }
    println!("models");
    let models = if stack::describe(cloud).await?.is_some() {
        models::history(cloud).await?
    } else {
        Vec::new()
    };
    if models.is_empty() {
        println!("  none: {PUBLISH_ONE}");
    }
    for model in models {
        let mark = if model.current { "current" } else { "" };
        let first = model.first.fmt(DateTimeFormat::DateTime)?;
        println!(
            "  {mark:<8} {:.12}  first current {first:.19}",
            model.sha256
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_what_the_template_takes() {
        for good in ["", "rate(1 minute)", "rate(2 minutes)", "rate(90 minutes)"] {
            assert_eq!(schedule(good).as_deref(), Ok(good));
        }
        for bad in [
            "every day",
            "5",
            "rate(1 minutes)",
            "rate(05 minutes)",
            "rate(1 day)",
            "rate(5 minutes",
        ] {
            assert!(
                schedule(bad).unwrap_err().contains("rate(5 minutes)"),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_first_deploy_to_aws_says_what_is_forgotten_costs() {
        let warning = |target, is_new| warning(target, is_new).unwrap();
        assert!(warning(Target::Aws, true).unwrap().contains("a day"));
        assert_eq!(warning(Target::Aws, false), None);
        assert_eq!(warning(Target::Local, true), None);
    }
}
