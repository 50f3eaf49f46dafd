//! Which cloud, which account, and the names in it.

use std::collections::BTreeMap;
use std::env;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::types::{DeleteMarkerEntry, ObjectVersion};
use aws_types::service_config::ServiceConfigKey;
use clap::ValueEnum;
use std::time::Duration;

use crate::iot::Iot;

/// `TARGET`: the same code, other endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// MiniStack on this machine
    Local,
    /// A real account, by the standard AWS credential chain
    Aws,
}

impl Target {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Aws => "aws",
        }
    }
}

/// Processor of the function, as Lambda names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Architecture {
    /// The processor of this machine
    Host,
    /// Intel and AMD
    #[value(name = "x86_64")]
    X86_64,
    /// AWS Graviton
    Arm64,
}

impl Architecture {
    /// Lambda's name for it.
    pub fn as_lambda(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "arm64",
            Self::Host if cfg!(target_arch = "aarch64") => "arm64",
            Self::Host => "x86_64",
        }
    }
}

/// `STACK`: prefix of every name. It must fit a bucket (lower case), an IoT rule (no hyphen) and a
/// CloudFormation stack (a letter first).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackName(String);

impl StackName {
    const MAX: usize = 20;
}

impl FromStr for StackName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let valid = s.len() <= Self::MAX
            && s.starts_with(|c: char| c.is_ascii_lowercase())
            && s.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if valid {
            Ok(Self(s.to_owned()))
        } else {
            Err(format!(
                "a stack name is 1 to {} lower-case letters and digits, a letter first: try STACK=iris2",
                Self::MAX
            ))
        }
    }
}

impl std::fmt::Display for StackName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A connection to the chosen cloud, and every name the stack uses there.
#[derive(Clone)]
pub struct Cloud {
    /// The standard SDK configuration; clients are made from it.
    pub config: SdkConfig,
    /// Which cloud.
    pub target: Target,
    /// Prefix of every name.
    pub stack: StackName,
    /// 12 digits.
    pub account: String,
    /// ARN of the caller.
    pub caller: String,
    /// Such as `eu-west-1`.
    pub region: String,
    /// The class that the stack is made for, if it is one of many.
    pub class: Option<String>,
    yes: bool,
}

impl Cloud {
    /// The SDK's configuration for the target, and its name for messages.
    ///
    /// # Errors
    /// When the target and `AWS_ENDPOINT_URL` do not go together, or another setting sends calls elsewhere.
    pub async fn configure(target: Target) -> Result<(SdkConfig, String)> {
        let endpoint = env::var("AWS_ENDPOINT_URL").ok();
        let cloud = match (target, &endpoint) {
            (Target::Local, None) => {
                bail!(
                    "TARGET=local needs AWS_ENDPOINT_URL: call this through `make`, which sets it"
                )
            }
            (Target::Local, Some(url)) => {
                ensure!(
                    is_loopback(url),
                    "TARGET=local, but AWS_ENDPOINT_URL={url} is not on this machine"
                );
                format!("the local cloud at {url} (is it running? `make local` starts it)")
            }
            (Target::Aws, Some(url)) => {
                bail!("TARGET=aws, but AWS_ENDPOINT_URL={url} points elsewhere: unset it")
            }
            (Target::Aws, None) => {
                "AWS (are you logged in? `aws sts get-caller-identity` must work; after `aws login` set up \
                 credential_process, see deploy/AWS.md; `make doctor TARGET=aws` looks at the rest)"
                    .to_owned()
            }
        };
        // Without these timeouts, a cloud that accepts connections and never answers would block the deployer forever.
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(5))
            .read_timeout(Duration::from_secs(60))
            .build();
        let attempts = if target == Target::Local { 2 } else { 10 };
        let config = aws_config::defaults(BehaviorVersion::latest())
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(attempts))
            .load()
            .await;
        let mut elsewhere: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for service in SERVICES {
            let configured = endpoint_of(service, &config);
            if configured == endpoint {
                continue;
            }
            let there = configured.unwrap_or_else(|| "AWS itself".to_owned());
            // A company may have endpoints of its own on AWS. The local target stays on this machine.
            ensure!(
                target == Target::Aws,
                "TARGET=local, but calls to {service} would go to {there}: unset AWS_ENDPOINT_URL_{}, or take endpoint_url \
                 out of your AWS profile",
                service.to_uppercase().replace(' ', "_"),
            );
            elsewhere.entry(there).or_default().push(service);
        }
        for (there, services) in elsewhere {
            eprintln!(
                "note: your AWS settings send calls to {there}: {}",
                services.join(", ")
            );
        }
        Ok((config, cloud))
    }

    /// Connect, and learn the account and region.
    ///
    /// # Errors
    /// When the cloud does not answer or the credentials are refused, with the next step.
    pub async fn connect(target: Target, stack: StackName, yes: bool) -> Result<Self> {
        let (config, called) = Self::configure(target).await?;
        Self::identify(config, &called, target, stack, yes).await
    }

    /// [`Self::connect`] with a given configuration.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn identify(
        config: SdkConfig,
        called: &str,
        target: Target,
        stack: StackName,
        yes: bool,
    ) -> Result<Self> {
        let region = config
            .region()
            .context("no AWS region is set: export AWS_REGION=…")?
            .to_string();
        ensure!(
            !["cn-", "us-gov-", "us-iso"]
                .iter()
                .any(|p| region.starts_with(p)),
            "region {region} is in a partition of its own, with other names and certificates, which this \
             workshop does not know: choose another"
        );
        let identity = aws_sdk_sts::Client::new(&config)
            .get_caller_identity()
            .send()
            .await
            .with_context(|| format!("no answer from {called}"))?;
        let account = identity
            .account()
            .context("the caller's identity has no account")?
            .to_owned();
        Ok(Self {
            config,
            target,
            stack,
            account,
            caller: identity.arn.unwrap_or_default(),
            region,
            class: None,
            yes,
        })
    }

    /// The same cloud and account, for a stack of this stack's class.
    pub fn member(&self, stack: StackName) -> Self {
        Self {
            class: Some(self.stack.to_string()),
            stack,
            ..self.clone()
        }
    }

    /// How often to ask whether something is done. AWS allows an account only some such calls a second,
    /// and a class makes six stacks at once.
    pub fn poll(&self) -> Duration {
        match self.target {
            Target::Local => Duration::from_millis(300),
            Target::Aws => Duration::from_secs(3),
        }
    }

    /// `target/<what>/<target>/<account>-<region>/<STACK>`: separate folders for stacks of the same name elsewhere.
    pub fn folder(&self, what: &str) -> PathBuf {
        let place = format!("{}-{}", self.account, self.region);
        let folder = Path::new("target").join(what).join(self.target.name());
        folder.join(place).join(self.stack.to_string())
    }

    /// `<STACK>-<account>-<region>`
    pub fn bucket(&self) -> String {
        format!("{}-{}-{}", self.stack, self.account, self.region)
    }

    /// `<STACK>-fn`
    pub fn function(&self) -> String {
        format!("{}-fn", self.stack)
    }

    /// `<STACK>-device`, the IoT policy of every device
    pub fn device_policy(&self) -> String {
        format!("{}-device", self.stack)
    }

    /// A client for S3.
    pub fn s3(&self) -> aws_sdk_s3::Client {
        aws_sdk_s3::Client::new(&self.config)
    }

    /// Every version of the bucket's objects under `prefix`, newest first for each, and every delete
    /// marker; `None` when there is no bucket.
    pub async fn object_versions(
        &self,
        prefix: &str,
    ) -> Result<Option<(Vec<ObjectVersion>, Vec<DeleteMarkerEntry>)>> {
        let (s3, bucket) = (self.s3(), self.bucket());
        let (mut versions, mut markers) = (Vec::new(), Vec::new());
        let (mut next_key, mut next_version) = (None, None);
        loop {
            let page = s3
                .list_object_versions()
                .bucket(&bucket)
                // Bucket names are global: refuse a bucket of another account.
                .expected_bucket_owner(&self.account)
                .prefix(prefix)
                .set_key_marker(next_key)
                .set_version_id_marker(next_version)
                .send()
                .await;
            let page = match page {
                Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 404) => {
                    return Ok(None);
                }
                page => page.with_context(|| format!("could not list bucket {bucket}"))?,
            };
            versions.extend(page.versions.unwrap_or_default());
            markers.extend(page.delete_markers.unwrap_or_default());
            if page.is_truncated != Some(true) {
                return Ok(Some((versions, markers)));
            }
            (next_key, next_version) = (page.next_key_marker, page.next_version_id_marker);
        }
    }

    /// A client for Lambda.
    pub fn lambda(&self) -> aws_sdk_lambda::Client {
        aws_sdk_lambda::Client::new(&self.config)
    }

    /// A client for IoT's control plane.
    pub fn iot(&self) -> Iot<'_> {
        Iot::new(self)
    }

    /// Ask before something that costs or deletes. The local cloud does neither to anybody else.
    ///
    /// # Errors
    /// When the answer is not yes, or nobody can be asked.
    pub fn confirm(&self, what: &str) -> Result<()> {
        if self.target == Target::Local || self.yes {
            return Ok(());
        }
        let prompt = format!(
            "{what} in AWS account {}, region {}",
            self.account, self.region
        );
        ensure!(
            std::io::stdin().is_terminal(),
            "{prompt}: there is no terminal to ask; set YES=1 if that is what you want"
        );
        print!("{prompt}? [y/N] ");
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        ensure!(
            matches!(answer.trim(), "y" | "Y" | "yes"),
            "stopped, nothing was changed"
        );
        Ok(())
    }
}

/// The services that the deployer calls, as AWS's settings name them.
const SERVICES: [&str; 10] = [
    "Budgets",
    "CloudFormation",
    "CloudWatch Logs",
    "IAM",
    "IoT",
    "IoT Data Plane",
    "Lambda",
    "S3",
    "SQS",
    "STS",
];

/// A service's endpoint from the environment or the AWS profile; `None` for AWS itself.
fn endpoint_of(service: &str, config: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id(service);
    let key = key.env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    config.service_config()?.load_config(key.ok()?)
}

fn is_loopback(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|l| {
        host.strip_prefix(l)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stack_names_fit_every_service() {
        for good in ["iris", "a", "iris2", "abcdefghijklmnopqrst"] {
            assert!(good.parse::<StackName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "Iris",
            "2iris",
            "iris-2",
            "iris_2",
            "íris",
            "abcdefghijklmnopqrstu",
            "a b",
            "$(x)",
        ] {
            assert!(bad.parse::<StackName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback_is_this_machine_only() {
        for good in [
            "http://127.0.0.1:4566",
            "http://localhost/",
            "http://[::1]:1",
        ] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in [
            "http://127.0.0.1.example.com",
            "https://s3.amazonaws.com",
            "http://localhost.evil",
        ] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }
}
