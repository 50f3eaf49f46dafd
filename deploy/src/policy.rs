//! What a person may do who deploys one stack: all calls are about it. Its roles are theirs to write, so this is not yet
//! a limit on what they could reach (`deploy/AWS.md`, 3).

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cloud::Cloud;

const POLICY: &str = include_str!("../deployer-policy.json");

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
    // China and GovCloud have other partitions; nothing here has been thought through for them.
    let text = POLICY
        .replace("<STACK>", stack)
        .replace("<ACCOUNT>", account)
        .replace("<REGION>", region);
    serde_json::from_str(&text).context("deployer-policy.json")
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
        let wide: Vec<_> = allowed("iris")
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
            "logs:DescribeLogGroups",
            "s3:ListAllMyBuckets",
        ];
        let certificate = "arn:aws:iot:eu-west-1:123456789012:cert/*";
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
