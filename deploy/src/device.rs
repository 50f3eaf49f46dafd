//! A device's identity: a thing, a certificate with its private key, and the stack's device policy.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::cloud::{Cloud, Target};
use crate::iot::Iot;
use crate::rest::CallError;

/// AWS IoT's own port of MQTT over TLS.
const AWS_PORT: u16 = 8883;
/// The roots of AWS IoT's server certificates: which of them depends on what the two sides agree on
/// (<https://docs.aws.amazon.com/iot/latest/developerguide/server-authentication.html>).
const AMAZON_ROOTS: &str = include_str!("../../iris_fn/src/aws/amazon-roots.pem");
/// The local cloud listens here, and its certificate says so.
const LOCAL_HOST: &str = "127.0.0.1";
/// A certificate's status in which it may connect.
const ACTIVE: &str = "ACTIVE";
/// How long AWS may take to let go of a certificate.
const PATIENCE: Duration = Duration::from_secs(60);
/// The thing attribute by which `destroy` finds the stack's devices.
pub const STACK_ATTRIBUTE: &str = "stack";

/// A device's name within its stack.
#[derive(Debug, Clone)]
pub struct DeviceName(String);

impl DeviceName {
    /// `<name>-1` to `<name>-<count>`.
    pub fn numbered(&self, count: u16) -> Result<Vec<Self>> {
        (1..=count)
            .map(|n| {
                format!("{}-{n}", self.0)
                    .parse()
                    .map_err(anyhow::Error::msg)
            })
            .collect()
    }

    /// The thing's name is the MQTT client id, of which an account has only one: so it is prefixed.
    fn client_id(&self, cloud: &Cloud) -> String {
        format!("{}-{}", cloud.stack, self.0)
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let valid = (1..=64).contains(&s.len())
            && s.chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if valid {
            Ok(Self(s.to_owned()))
        } else {
            Err("a device name is 1 to 64 letters, digits, `-` or `_`: try NAME=lily".to_owned())
        }
    }
}

/// Where a cloud's devices connect to, and whom they believe.
struct Broker {
    host: String,
    port: u16,
    ca: String,
}

impl Broker {
    /// `port` is the local cloud's.
    async fn of(cloud: &Cloud, port: u16) -> Result<Self> {
        if cloud.target == Target::Local {
            let ca = local_ca(cloud)?;
            return Ok(Self {
                host: LOCAL_HOST.to_owned(),
                port,
                ca,
            });
        }
        let host = cloud.iot().endpoint().await;
        Ok(Self {
            host: host.context("could not ask for the account's IoT endpoint")?,
            port: AWS_PORT,
            ca: AMAZON_ROOTS.to_owned(),
        })
    }
}

/// Make the device, or find that it is there, and write `<dir>/<name>/{cert,key,ca}.pem` and
/// `endpoint.json`.
pub async fn create(cloud: &Cloud, name: &DeviceName, dir: &Path, port: u16) -> Result<()> {
    let client_id = name.client_id(cloud);
    cloud.confirm(&format!("Make device {client_id} with a certificate"))?;
    let broker = Broker::of(cloud, port).await?;
    let dir = dir.join(&name.0);
    let done = if ensure(cloud, &client_id, &dir, &broker).await? {
        "created"
    } else {
        "is there"
    };
    println!("device {client_id} {done}: {}", dir.display());
    Ok(())
}

/// The same for many, with a line about how far it is every two seconds.
pub async fn create_all(cloud: &Cloud, names: &[DeviceName], dir: &Path, port: u16) -> Result<()> {
    cloud.confirm(&format!("Make {} devices with certificates", names.len()))?;
    let broker = Broker::of(cloud, port).await?;
    let (mut created, mut said) = (0, Instant::now());
    for (n, name) in names.iter().enumerate() {
        let made = ensure(cloud, &name.client_id(cloud), &dir.join(&name.0), &broker).await?;
        created += usize::from(made);
        if said.elapsed() > Duration::from_secs(2) {
            said = Instant::now();
            println!("{} of {} devices", n + 1, names.len());
        }
    }
    println!(
        "{} devices, {created} of them new: {}",
        names.len(),
        dir.display()
    );
    Ok(())
}

/// Make a device unless it is there; whether it was made.
async fn ensure(cloud: &Cloud, client_id: &str, dir: &Path, broker: &Broker) -> Result<bool> {
    let iot = cloud.iot();
    if dir.join("endpoint.json").exists() && !belongs(cloud, dir, None) {
        bail!(
            "{} belongs to another stack or cloud: choose another NAME, or delete the folder",
            dir.display()
        );
    }
    let attributes = json!({STACK_ATTRIBUTE: cloud.stack.to_string()});
    iot.create_thing(client_id, attributes).await.with_context(|| {
        format!("could not create thing {client_id} (one with other attributes exists? `make destroy` removes it)")
    })?;

    let known = holds_active_certificate(&iot, client_id, dir).await?;
    private_folder(dir)?;
    // First, so that `destroy` knows the folder whatever happens next.
    let Broker { host, port, ca } = broker;
    let endpoint = json!({"host": host, "port": port, "client_id": client_id, "stack": cloud.stack.to_string()});
    write_private(&dir.join("endpoint.json"), format!("{endpoint:#}\n"))?;
    write_private(&dir.join("ca.pem"), ca)?;
    if !known {
        remove_certificates(&iot, client_id).await?;
        // From here on a Ctrl-C waits: a certificate that is not attached yet would never be found again.
        let _ctrl_c = signal(SignalKind::interrupt())?;
        new_certificate(cloud, &iot, client_id, dir).await?;
    }
    Ok(!known)
}

/// Whether the certificate in `dir` is the thing's own and active.
async fn holds_active_certificate(iot: &Iot<'_>, thing: &str, dir: &Path) -> Result<bool> {
    let Ok(pem) = fs::read_to_string(dir.join("cert.pem")) else {
        return Ok(false);
    };
    if !dir.join("key.pem").exists() {
        return Ok(false);
    }
    for id in certificate_ids(iot, thing).await? {
        let found = iot.certificate(&id).await;
        let found =
            found.with_context(|| format!("could not look at the certificate of {thing}"))?;
        if found.status == ACTIVE && found.certificate_pem.trim() == pem.trim() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A new certificate. It is attached to its thing first, so that `destroy` finds it, and made active
/// last, when everything around it stands.
async fn new_certificate(cloud: &Cloud, iot: &Iot<'_>, thing: &str, dir: &Path) -> Result<()> {
    let made = iot
        .create_certificate()
        .await
        .context("could not make a certificate")?;
    let (arn, id) = (&made.certificate_arn, &made.certificate_id);
    if let Err(e) = iot.attach_to_thing(thing, arn).await {
        // Attached to nothing, nobody would ever find it again.
        let deleted = iot.delete_certificate(id).await;
        let left = deleted.map_or(format!("; certificate {id} is left over"), |()| {
            String::new()
        });
        return Err(e.context(format!(
            "could not attach the certificate to thing {thing}{left}: try again"
        )));
    }
    write_private(&dir.join("key.pem"), made.key_pair.private_key)?;
    write_private(&dir.join("cert.pem"), made.certificate_pem)?;
    let policy = cloud.device_policy();
    iot.attach_policy(&policy, arn).await.with_context(|| {
        format!("could not attach policy {policy} (is the stack deployed? `make deploy`)")
    })?;
    iot.set_status(id, ACTIVE)
        .await
        .with_context(|| format!("could not activate the certificate of {thing}: try again"))
}

/// Ids of the certificates attached to a thing.
async fn certificate_ids(iot: &Iot<'_>, thing: &str) -> Result<Vec<String>> {
    let found = iot.certificates(thing).await;
    found.with_context(|| format!("could not look at thing {thing}"))
}

/// Detach, deactivate and delete every certificate of a thing.
pub async fn remove_certificates(iot: &Iot<'_>, thing: &str) -> Result<()> {
    for id in certificate_ids(iot, thing).await? {
        remove_certificate(iot, thing, &id).await.with_context(|| {
            format!("could not remove the certificate of {thing}: run the same command again")
        })?;
    }
    Ok(())
}

async fn remove_certificate(iot: &Iot<'_>, thing: &str, id: &str) -> Result<()> {
    let arn = &iot.certificate(id).await?.certificate_arn;
    for policy in iot.policies(arn).await? {
        iot.detach_policy(&policy, arn).await?;
    }
    iot.detach_from_thing(thing, arn).await?;
    iot.set_status(id, "INACTIVE").await?;
    patiently(&format!("the certificate of {thing}"), || {
        iot.delete_certificate(id)
    })
    .await
}

/// The local cloud's own certificate authority.
fn local_ca(cloud: &Cloud) -> Result<String> {
    let endpoint = cloud
        .config
        .endpoint_url()
        .context("the local cloud has no endpoint")?;
    let url = format!("{}/_ministack/iot/ca.pem", endpoint.trim_end_matches('/'));
    let mut reply = ureq::get(&url)
        .config()
        .timeout_global(Some(Duration::from_secs(10)))
        .build()
        .call()
        .with_context(|| format!("no certificate authority at {url}"))?;
    reply
        .body_mut()
        .read_to_string()
        .with_context(|| format!("no certificate authority at {url}"))
}

/// Make a folder that only its owner may enter, unless it is there.
pub fn private_folder(dir: &Path) -> Result<()> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))
}

/// Write a file that only its owner may read; never half of it under its own name.
pub fn write_private(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let partial = path.with_extension("partial");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)?;
    file.write_all(content.as_ref())?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Whether a device folder is this stack's, in this cloud, by its `endpoint.json`. Local clouds differ by
/// their port, where it matters.
pub fn belongs(cloud: &Cloud, dir: &Path, port: Option<u16>) -> bool {
    let text = fs::read_to_string(dir.join("endpoint.json")).unwrap_or_default();
    let endpoint: Value = serde_json::from_str(&text).unwrap_or_default();
    let ours = match cloud.target {
        Target::Local => {
            endpoint["host"] == LOCAL_HOST && port.is_none_or(|port| endpoint["port"] == port)
        }
        Target::Aws => endpoint["host"] != LOCAL_HOST,
    };
    ours && endpoint["stack"] == cloud.stack.to_string()
}

/// Whether AWS is still at work on the call before: each kind of thing says so in words of its own.
fn is_busy(e: &anyhow::Error) -> bool {
    let Some(CallError::Refused { code, message, .. }) = e.downcast_ref() else {
        return false;
    };
    match code.as_str() {
        "DeleteConflictException" | "CertificateStateException" => true,
        "InvalidRequestException" => message.contains("still attached"),
        _ => false,
    }
}

/// Call again while AWS is still at work on the call before: it detaches and deletes at its own pace.
pub async fn patiently<F>(what: &str, call: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let started = Instant::now();
    loop {
        match call().await {
            Err(e) if is_busy(&e) && started.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            result => {
                return result
                    .with_context(|| format!("could not delete {what}: run `make destroy` again"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_name_cannot_leave_its_folder_or_its_topic() {
        for good in ["lily", "device-1", "A_b"] {
            assert!(good.parse::<DeviceName>().is_ok(), "{good}");
        }
        for bad in ["", "..", "a/b", "a+b", "#", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad}");
        }
    }
}
