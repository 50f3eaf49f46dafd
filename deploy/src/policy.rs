//! The permissions of a person who deploys one stack, and the permissions boundary of the stack's roles.
//!
//! Whoever deploys writes the roles of their function, passes them to it and may change its code. So the policy demands
//! the boundary on each role that is written, and permits nobody to change the boundary: a role's permissions end at its
//! own stack (`boundary-policy.json`). The account's owner makes the boundary, once.

use anyhow::{Context, Result, ensure};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::cloud::{Cloud, Target};
use crate::ours;
use crate::rest::{Call, CallError, Service, elements};

const POLICY: &str = include_str!("../deployer-policy.json");
const BOUNDARY: &str = include_str!("../boundary-policy.json");
/// The template and the deployer's policy name it, too.
const BOUNDARY_NAME: &str = "iris-workshop-boundary";

/// Print the policy for this stack, account and region, ready for `aws iam create-policy`.
pub fn print(cloud: &Cloud) -> Result<()> {
    println!(
        "{:#}",
        fill(&cloud.stack.to_string(), &cloud.account, &cloud.region)?
    );
    Ok(())
}

/// The policy with these names in it.
pub fn fill(stack: &str, account: &str, region: &str) -> Result<Value> {
    // China and GovCloud have other partitions, which this project does not support.
    let text = POLICY
        .replace("<STACK>", stack)
        .replace("<ACCOUNT>", account)
        .replace("<REGION>", region);
    serde_json::from_str(&text).context("deployer-policy.json")
}

/// The boundary of an account.
fn boundary(account: &str) -> Result<Value> {
    serde_json::from_str(&BOUNDARY.replace("<ACCOUNT>", account)).context("boundary-policy.json")
}

/// The boundary's ARN in this account.
pub fn boundary_arn(cloud: &Cloud) -> String {
    format!("arn:aws:iam::{}:policy/{BOUNDARY_NAME}", cloud.account)
}

/// A call of IAM.
pub fn iam_call(action: &str, more: &[(&str, &str)]) -> Call<'static> {
    let own = [("Action", action), ("Version", "2010-05-08")];
    let all = own.iter().chain(more);
    let all = all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Call::form(&all.collect::<Vec<_>>())
}

/// Whether IAM refused a call for this reason.
fn refused<T>(answer: &Result<T>, reason: &str) -> bool {
    let error = answer.as_ref().err().and_then(|e| e.downcast_ref());
    matches!(error, Some(CallError::Refused { code, .. }) if code == reason)
}

/// The boundary as IAM has it; `None` when there is none.
///
/// # Errors
/// When IAM does not answer.
pub async fn find_boundary(cloud: &Cloud) -> Result<Option<String>> {
    let call = iam_call("GetPolicy", &[("PolicyArn", &boundary_arn(cloud))]);
    let answer = Service::global(cloud, "iam").call(&call).await;
    if refused(&answer, "NoSuchEntity") {
        return Ok(None);
    }
    Ok(Some(answer?.as_str().unwrap_or_default().to_owned()))
}

/// Check for the boundary before a stack with roles is made. In the local cloud, which nobody else uses, make it.
///
/// # Errors
/// When there is none on AWS.
pub async fn ensure_boundary(cloud: &Cloud) -> Result<()> {
    let found = find_boundary(cloud).await;
    let done = match (found, cloud.target) {
        (Err(e), _) => Err(e),
        (Ok(found), Target::Local) => bring_boundary(cloud, found).await.map(drop),
        (Ok(found), Target::Aws) => {
            ensure!(
                found.is_some(),
                "account {} has no permissions boundary {BOUNDARY_NAME} yet: its owner runs `make boundary TARGET=aws`, \
                 once for all stacks",
                cloud.account
            );
            Ok(())
        }
    };
    // Without the permission to read it, continue: CloudFormation reports when it does not exist.
    if refused(&done, "AccessDenied") {
        Ok(())
    } else {
        done
    }
}

/// Make the boundary, or update the one that this project made.
///
/// # Errors
/// When the policy of this name is somebody else's, or the caller may not make it.
pub async fn make_boundary(cloud: &Cloud) -> Result<()> {
    let done = match find_boundary(cloud).await {
        Ok(found) => bring_boundary(cloud, found).await,
        Err(e) => Err(e),
    };
    ensure!(
        !refused(&done, "AccessDenied"),
        "{} may not make the permissions boundary {BOUNDARY_NAME}: the owner of account {} runs `make boundary`, once \
         for all stacks",
        cloud.caller,
        cloud.account
    );
    println!("boundary {} {}", boundary_arn(cloud), done?);
    Ok(())
}

/// The same; returns what was done, in a word.
async fn bring_boundary(cloud: &Cloud, found: Option<String>) -> Result<&'static str> {
    let (iam, arn) = (Service::global(cloud, "iam"), boundary_arn(cloud));
    let wanted = boundary(&cloud.account)?;
    let (text, arn) = (wanted.to_string(), arn.as_str());
    let Some(found) = found else {
        cloud.confirm(&format!("Make the permissions boundary {BOUNDARY_NAME}"))?;
        let call = iam_call(
            "CreatePolicy",
            &[
                ("PolicyName", BOUNDARY_NAME),
                ("PolicyDocument", text.as_str()),
                ("Tags.member.1.Key", ours::PROJECT.0),
                ("Tags.member.1.Value", ours::PROJECT.1),
            ],
        );
        let made = iam.call(&call).await;
        // Another terminal may have been faster.
        if !refused(&made, "EntityAlreadyExists") {
            made?;
        }
        return Ok("is made");
    };
    let version = elements(&found, "DefaultVersionId").next();
    let version = version.context("the boundary has no version")?;
    let version = [("PolicyArn", arn), ("VersionId", version)];
    let there = iam.call(&iam_call("GetPolicyVersion", &version)).await?;
    let document = elements(there.as_str().unwrap_or_default(), "Document").next();
    let document = percent_decode_str(document.unwrap_or_default()).decode_utf8_lossy();
    if serde_json::from_str::<Value>(&document).is_ok_and(|document| document == wanted) {
        return Ok("is there");
    }
    let mut tags = elements(&found, "Key").zip(elements(&found, "Value"));
    ensure!(
        tags.any(|tag| tag == ours::PROJECT),
        "policy {arn} has another text and no tag {}={}: somebody else made it. It is left alone: ask them to \
         delete it, or take an account that holds nothing else",
        ours::PROJECT.0,
        ours::PROJECT.1
    );
    cloud.confirm(&format!(
        "Bring the permissions boundary {BOUNDARY_NAME} up to date"
    ))?;
    let version = [
        ("PolicyArn", arn),
        ("PolicyDocument", text.as_str()),
        ("SetAsDefault", "true"),
    ];
    iam.call(&iam_call("CreatePolicyVersion", &version)).await?;
    Ok("is up to date now")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that the policy allows, as (action, resource).
    fn allowed(stack: &str) -> Vec<(String, String)> {
        let list = |value: &Value| -> Vec<String> {
            let texts = match value {
                Value::Array(list) => list.clone(),
                one => vec![one.clone()],
            };
            texts
                .iter()
                .map(|text| text.as_str().unwrap().to_owned())
                .collect()
        };
        let policy = fill(stack, "123456789012", "eu-west-1").unwrap();
        let mut pairs = Vec::new();
        for statement in policy["Statement"].as_array().unwrap() {
            for action in list(&statement["Action"]) {
                let resources = list(&statement["Resource"]).into_iter();
                pairs.extend(resources.map(|resource| (action.clone(), resource)));
            }
        }
        pairs
    }

    /// Whether a resource's name begins with the stack's and goes on with what no stack's name has in it: that
    /// of the stack `iris2` does not.
    fn is_of_the_stack(resource: &str) -> bool {
        const HERE: &str = "eu-west-1";
        const ME: &str = "123456789012";
        let parts: Vec<_> = resource.splitn(6, ':').collect();
        let ["arn", "aws", service, region, account, name] = parts[..] else {
            return false;
        };
        let kind = match (service, region, account) {
            ("budgets", "", ME) => "budget/",
            ("cloudformation", HERE, ME) => "stack/",
            ("cloudwatch", "", ME) => "dashboard/",
            ("cloudwatch", HERE, ME) => "alarm:",
            ("events", HERE, ME) => "rule/",
            ("iam", "", ME) => "role/",
            ("iot", HERE, ME) => name.split_inclusive('/').next().unwrap(),
            ("lambda", HERE, ME) => "function:",
            ("logs", HERE, ME) => "log-group:/aws/lambda/",
            // Names of buckets are the world's.
            ("s3", "", "") | ("sqs", HERE, ME) => "",
            _ => return false,
        };
        let rest = name.strip_prefix(kind).and_then(|n| n.strip_prefix("iris"));
        rest.is_some_and(|rest| rest.starts_with(['-', '_', '/']))
    }

    #[test]
    fn all_that_is_allowed_is_about_the_stack_but_for_what_has_no_name_to_ask_by() {
        let mut wide: Vec<_> = allowed("iris")
            .into_iter()
            .filter(|(_, resource)| !is_of_the_stack(resource))
            .collect();
        let certificates = [
            "iot:AttachPolicy",
            "iot:CreateThing",
            "iot:DeleteCertificate",
            "iot:DeleteThing",
            "iot:DescribeCertificate",
            "iot:DescribeThing",
            "iot:DetachPolicy",
            "iot:UpdateCertificate",
        ];
        let anything = [
            "iot:AttachThingPrincipal",
            "iot:CreateKeysAndCertificate",
            "iot:DescribeEndpoint",
            "iot:DetachThingPrincipal",
            "iot:ListAttachedPolicies",
            "iot:ListThingPrincipals",
            "iot:ListThings",
            "lambda:GetAccountSettings",
            "logs:DescribeIndexPolicies",
            "logs:DescribeLogGroups",
            "logs:DescribeResourcePolicies",
            "s3:ListAllMyBuckets",
        ];
        let certificate = "arn:aws:iot:eu-west-1:123456789012:cert/*";
        let of_roles: Vec<_> = wide
            .extract_if(.., |(_, resource)| resource.ends_with(BOUNDARY_NAME))
            .map(|(action, _)| action)
            .collect();
        // Reading is all that a policy can be the resource of, among these.
        let about_policies = of_roles
            .iter()
            .filter(|a| a.contains("Policy") && !a.contains("RolePolic"));
        assert_eq!(about_policies.collect::<Vec<_>>(), ["iam:GetPolicy"]);
        let expected: Vec<_> = certificates
            .map(|action| (action.to_owned(), certificate.to_owned()))
            .into_iter()
            .chain(anything.map(|action| (action.to_owned(), "*".to_owned())))
            .collect();
        assert_eq!(wide, expected);
    }

    #[test]
    fn every_action_is_named() {
        for (action, _) in allowed("iris") {
            assert!(!action.contains(['*', '?']), "{action}");
        }
    }

    #[test]
    fn it_fits_into_one_managed_policy() {
        // 6,144 characters without white space; here for the longest stack name.
        let policy = fill(&"s".repeat(20), "123456789012", "ap-southeast-1").unwrap();
        assert!(
            policy.to_string().len() <= 6144,
            "{}",
            policy.to_string().len()
        );
    }
}
