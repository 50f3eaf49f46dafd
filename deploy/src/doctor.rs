//! Checks beforehand what can be checked without creating anything: credentials, account, clock, quotas, permissions,
//! and what already exists under the stack's names.

use std::env;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use aws_config::SdkConfig;
use aws_sdk_s3::config::ProvideCredentials;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use serde_json::Value;

use crate::cloud::{Cloud, StackName, Target};
use crate::rest::{Call, Service, elements};
use crate::{policy, stack};

/// The time for a first demo on AWS, with all its builds and a margin.
const LONG_ENOUGH: Duration = Duration::from_secs(60 * 60);
/// AWS refuses signatures whose time is more than five minutes off.
const CLOCK: Duration = Duration::from_secs(4 * 60);
/// How many calls notebook 5 makes at once.
const AT_ONCE: i32 = 50;

/// The result of one check.
enum Finding {
    Ok(String),
    /// And the next step.
    NotOk(String, String),
    CouldNotAsk(String),
}

use Finding::{CouldNotAsk, NotOk};

impl Finding {
    /// A check that failed to run has no result.
    fn or_unasked(answer: Result<Self>) -> Self {
        answer.unwrap_or_else(|e| CouldNotAsk(format!("{e:#}")))
    }
}

/// Run all checks, print a line for each, and return whether nothing is wrong.
///
/// # Errors
/// When the target and the settings do not go together.
pub async fn examine(target: Target, stack: StackName) -> Result<bool> {
    let (config, called) = Cloud::configure(target).await?;
    let mut healthy = true;
    let mut print = |what: &str, finding: Finding| match finding {
        Finding::Ok(detail) => println!("ok             {what:<12} {detail}"),
        NotOk(detail, next) => {
            healthy = false;
            println!("NOT OK         {what:<12} {detail}\n{:27} next: {next}", "");
        }
        CouldNotAsk(why) => println!("could not ask  {what:<12} {why}"),
    };
    print(
        "credentials",
        Finding::or_unasked(credentials(&config).await),
    );
    let cloud = match Cloud::identify(config, &called, target, stack, false).await {
        Ok(cloud) => cloud,
        Err(e) => {
            let next = "set the region and the credentials as deploy/AWS.md says, then try again";
            print("account", NotOk(format!("{e:#}"), next.to_owned()));
            return Ok(false);
        }
    };
    print("account", account(&cloud));
    print("clock", Finding::or_unasked(clock(&cloud).await));
    print("AWS IoT", Finding::or_unasked(broker(&cloud).await));
    print("quota", Finding::or_unasked(quota(&cloud).await));
    print("stack", Finding::or_unasked(state(&cloud).await));
    print("bucket", Finding::or_unasked(bucket(&cloud).await));
    let iam = Service::global(&cloud, "iam");
    let policy = policy::fill(&cloud.stack.to_string(), &cloud.account, &cloud.region)?;
    print("boundary", Finding::or_unasked(boundary(&cloud).await));
    print(
        "rights",
        Finding::or_unasked(rights(&iam, &cloud.caller, &policy, cloud.target).await),
    );
    Ok(healthy)
}

async fn credentials(config: &SdkConfig) -> Result<Finding> {
    let provider = config
        .credentials_provider()
        .context("no credentials are set")?;
    let found = match provider.provide_credentials().await {
        Ok(found) => found,
        Err(e) => {
            let next = "log in, or set up credential_process as deploy/AWS.md says";
            return Ok(NotOk(format!("none: {e}"), next.to_owned()));
        }
    };
    // Credentials in the environment are not renewed.
    let frozen = env::var("AWS_SESSION_TOKEN").is_ok_and(|token| !token.is_empty());
    let expiry = env::var("AWS_CREDENTIAL_EXPIRATION").ok();
    let expiry = expiry.and_then(|text| DateTime::from_str(&text, DateTimeFormat::DateTime).ok());
    let ends = found
        .expiry()
        .or(expiry.and_then(|date| SystemTime::try_from(date).ok()));
    Ok(lasting(frozen, ends, SystemTime::now()))
}

/// Whether credentials last long enough: those in the environment (`frozen`) expire, others are renewed by themselves.
fn lasting(frozen: bool, ends: Option<SystemTime>, now: SystemTime) -> Finding {
    let next = "use credential_process instead of exporting them (deploy/AWS.md has the three lines): those of \
                `aws login` last 15 minutes, a first demo takes longer";
    match ends {
        None if frozen => CouldNotAsk(format!(
            "they are in the environment with a session token, and do not say when they end; {next}"
        )),
        None => Finding::Ok("they do not end".to_owned()),
        Some(at) => {
            let left = at.duration_since(now).unwrap_or_default();
            let minutes = left.as_secs() / 60;
            if !frozen {
                Finding::Ok(format!("renewed by themselves, next in {minutes} minutes"))
            } else if left < LONG_ENOUGH {
                NotOk(
                    format!("in the environment, ending in {minutes} minutes"),
                    next.to_owned(),
                )
            } else {
                Finding::Ok(format!("in the environment, for another {minutes} minutes"))
            }
        }
    }
}

fn account(cloud: &Cloud) -> Finding {
    let caller = cloud.caller.as_str();
    let partition = caller.split(':').nth(1).unwrap_or("?");
    let detail = format!(
        "{} in {}, partition {partition}, as {}",
        cloud.account,
        cloud.region,
        caller.rsplit(':').next().unwrap_or(caller)
    );
    if cloud.target == Target::Aws && caller.ends_with(":root") {
        let next = "make a user or role, with what `make policy TARGET=aws` prints, and use that";
        return NotOk(
            detail + ": the root user may do anything, also by mistake",
            next.to_owned(),
        );
    }
    Finding::Ok(detail)
}

async fn clock(cloud: &Cloud) -> Result<Finding> {
    let there = Service::new(cloud, "sts").time().await?;
    let here = SystemTime::now();
    let apart = here
        .duration_since(there)
        .or_else(|_| there.duration_since(here))?;
    let detail = format!("{} s apart from the cloud's", apart.as_secs());
    Ok(if apart > CLOCK {
        NotOk(
            detail,
            "set this machine's clock (timedatectl set-ntp true)".to_owned(),
        )
    } else {
        Finding::Ok(detail)
    })
}

async fn broker(cloud: &Cloud) -> Result<Finding> {
    let host = cloud.iot().endpoint().await?;
    Ok(Finding::Ok(format!("the broker is {host}")))
}

async fn quota(cloud: &Cloud) -> Result<Finding> {
    let settings = cloud.lambda().get_account_settings().send().await?;
    let limit = settings
        .account_limit()
        .context("the answer has no limit")?;
    let most = limit.concurrent_executions();
    let detail = format!("{most} calls of functions at once");
    Ok(if most < AT_ONCE {
        let next = "notebooks 1 to 4 and a device work; for notebook 5 or a class ask for 1,000 in Service Quotas, \
                    Lambda, Concurrent executions (it may take a day)";
        NotOk(detail, next.to_owned())
    } else {
        Finding::Ok(detail)
    })
}

async fn state(cloud: &Cloud) -> Result<Finding> {
    let Some(found) = stack::describe(cloud).await? else {
        return Ok(Finding::Ok(format!("{} is not there yet", cloud.stack)));
    };
    let status = found.stack_status().map_or("?", |status| status.as_str());
    let detail = format!("{} is there, {status}", cloud.stack);
    Ok(
        if status.contains("FAILED") || status == "ROLLBACK_COMPLETE" {
            NotOk(detail, "`make status TARGET=aws` says more".to_owned())
        } else {
            Finding::Ok(detail)
        },
    )
}

async fn bucket(cloud: &Cloud) -> Result<Finding> {
    let name = cloud.bucket();
    let asked = cloud.s3().head_bucket().bucket(&name).send().await;
    let status = asked.as_ref().err().and_then(|e| e.raw_response());
    Ok(match (asked.is_ok(), status.map(|r| r.status().as_u16())) {
        (true, _) => Finding::Ok(format!("{name} is there")),
        (_, Some(404)) => Finding::Ok(format!("{name} is free")),
        (_, Some(403)) => CouldNotAsk(format!(
            "{name}: somebody has it, or you may not ask for it (s3:ListBucket)"
        )),
        _ => CouldNotAsk(format!("{name}: {:?}", asked.err())),
    })
}

/// The boundary that the policy demands on every role that is made.
async fn boundary(cloud: &Cloud) -> Result<Finding> {
    let (arn, found) = (
        policy::boundary_arn(cloud),
        policy::find_boundary(cloud).await?,
    );
    Ok(match (found, cloud.target) {
        (Some(_), _) => Finding::Ok(format!("{arn} is there")),
        (None, Target::Local) => Finding::Ok("the first deploy makes it".to_owned()),
        (None, Target::Aws) => NotOk(
            format!("{arn} is not there"),
            "who owns the account runs `make boundary TARGET=aws`, once".to_owned(),
        ),
    })
}

/// (key, first value) of each condition of a statement.
fn conditions(statement: &Value) -> Vec<(String, String)> {
    let operators = statement["Condition"].as_object();
    let pairs = operators.into_iter().flat_map(|all| all.values());
    let pairs = pairs.filter_map(Value::as_object).flatten();
    let first = |value: &Value| value.as_str().or(value[0].as_str()).map(str::to_owned);
    pairs
        .filter_map(|(key, value)| Some((key.clone(), first(value)?)))
        .collect()
}

fn list(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    }
}

/// Let IAM simulate everything that `make policy` prints, for the caller.
async fn rights(
    iam: &Service<'_>,
    caller: &str,
    policy: &Value,
    target: Target,
) -> Result<Finding> {
    if caller.ends_with(":root") {
        return Ok(Finding::Ok("the root user has all".to_owned()));
    }
    let principal = principal(iam, caller).await;
    let (mut asked, mut missing) = (0, Vec::new());
    let statements = policy["Statement"]
        .as_array()
        .context("deployer-policy.json")?;
    // The local cloud's simulation ignores a call's context, so no condition is met.
    let simulated = |s: &&Value| target == Target::Aws || s.get("Condition").is_none();
    let allowed = statements.iter().filter(|s| s["Effect"] == "Allow");
    for statement in allowed.filter(simulated) {
        let actions = list(&statement["Action"]);
        for resource in list(&statement["Resource"]) {
            asked += actions.len();
            let call = simulation(&principal, &actions, resource, &conditions(statement));
            let answer = iam.call(&call).await.with_context(|| {
                "IAM does not simulate for you (iam:SimulatePrincipalPolicy is the account owner's): ask them to"
            })?;
            missing.extend(denied(answer.as_str().unwrap_or_default(), resource));
        }
    }
    let count = missing.len();
    missing.truncate(5);
    Ok(if count == 0 {
        Finding::Ok(format!(
            "all {asked} that a deploy may need (service control policies are not simulated)"
        ))
    } else {
        NotOk(
            format!(
                "{count} of {asked} are missing, such as {}",
                missing.join(", ")
            ),
            "who owns the account attaches what `make policy TARGET=aws` prints".to_owned(),
        )
    })
}

/// The principal whose policies apply: for a session, its role.
async fn principal(iam: &Service<'_>, caller: &str) -> String {
    let Some((start, session)) = caller.split_once(":assumed-role/") else {
        return caller.to_owned();
    };
    let role = session.split('/').next().unwrap_or_default();
    let call = policy::iam_call("GetRole", &[("RoleName", role)]);
    // Its path is in its own ARN only.
    let answer = iam.call(&call).await.unwrap_or_default();
    let arn = elements(answer.as_str().unwrap_or_default(), "Arn").next();
    arn.map_or_else(
        || format!("{}:role/{role}", start.replace(":sts:", ":iam:")),
        str::to_owned,
    )
}

fn simulation(
    principal: &str,
    actions: &[&str],
    resource: &str,
    conditions: &[(String, String)],
) -> Call<'static> {
    // A name that the pattern matches.
    let one = resource.replace('*', "x");
    let mut fields = vec![
        ("PolicySourceArn".to_owned(), principal),
        ("MaxItems".to_owned(), "1000"),
    ];
    if resource != "*" {
        fields.push(("ResourceArns.member.1".to_owned(), one.as_str()));
    }
    for (i, action) in (1..).zip(actions) {
        fields.push((format!("ActionNames.member.{i}"), *action));
    }
    for (i, (key, value)) in (1..).zip(conditions) {
        let entry = |part: &str| format!("ContextEntries.member.{i}.{part}");
        fields.push((entry("ContextKeyName"), key.as_str()));
        fields.push((entry("ContextKeyType"), "string"));
        fields.push((entry("ContextKeyValues.member.1"), value.as_str()));
    }
    let fields = fields.iter().map(|(key, value)| (key.as_str(), *value));
    policy::iam_call("SimulatePrincipalPolicy", &fields.collect::<Vec<_>>())
}

/// `action on resource` for each that the simulation does not allow.
fn denied(xml: &str, resource: &str) -> Vec<String> {
    let actions = elements(xml, "EvalActionName");
    actions
        .zip(elements(xml, "EvalDecision"))
        .filter(|(_, decision)| *decision != "allowed")
        .map(|(action, _)| format!("{action} on {resource}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ok(finding: &Finding) -> Option<bool> {
        match finding {
            Finding::Ok(_) => Some(true),
            NotOk(..) => Some(false),
            CouldNotAsk(_) => None,
        }
    }

    #[test]
    fn credentials_in_the_environment_must_outlast_the_first_demo() {
        let now = SystemTime::now();
        let minutes = |n: u64| Some(now + Duration::from_secs(n * 60));
        for (frozen, ends, expected) in [
            (true, minutes(15), Some(false)),
            (true, minutes(120), Some(true)),
            (true, None, None),
            (false, minutes(15), Some(true)),
            (false, None, Some(true)),
        ] {
            assert_eq!(
                is_ok(&lasting(frozen, ends, now)),
                expected,
                "{frozen} {ends:?}"
            );
        }
    }

    #[test]
    fn what_a_simulation_does_not_allow_is_named() {
        let member = |action: &str, decision: &str| {
            format!(
                "<member><EvalActionName>{action}</EvalActionName><EvalDecision>{decision}</EvalDecision></member>"
            )
        };
        let xml = member("s3:GetObject", "allowed") + &member("s3:PutObject", "implicitDeny");
        assert_eq!(denied(&xml, "arn:x"), ["s3:PutObject on arn:x"]);
    }

    #[test]
    fn a_condition_is_simulated_with_its_first_value() {
        let statement = serde_json::json!({"Condition": {"StringEquals": {
            "iam:PassedToService": ["lambda.amazonaws.com", "iot.amazonaws.com"], "a:b": "c"}}});
        let expected = [
            ("a:b", "c"),
            ("iam:PassedToService", "lambda.amazonaws.com"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(conditions(&statement), expected);
    }
}
