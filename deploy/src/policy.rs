//! What a person may do who deploys one stack, and no more.

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

fn fill(stack: &str, account: &str, region: &str) -> Result<Value> {
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

    #[test]
    fn every_statement_is_about_the_stack_or_says_why_it_cannot_be() {
        let policy = fill("iris", "123456789012", "eu-west-1").unwrap();
        for statement in policy["Statement"].as_array().unwrap() {
            let resources = match &statement["Resource"] {
                Value::Array(list) => list.clone(),
                one => vec![one.clone()],
            };
            let sid = statement["Sid"].as_str().unwrap();
            for resource in resources {
                let name = resource.as_str().unwrap();
                let certificates = name.ends_with(":cert/*");
                assert!(
                    name.contains("iris") || certificates || sid.starts_with("NoNameTo"),
                    "{sid}: {name}"
                );
            }
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
