//! A device's identity: a thing, a certificate with its private key, and the stack's device policy.

use std::fs;
use std::future::poll_fn;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::cloud::{Cloud, Target};
use crate::iot::Iot;
use crate::ours;
use crate::rest::CallError;

/// AWS IoT's own port of MQTT over TLS.
const AWS_PORT: u16 = 8883;
/// The roots of AWS IoT's server certificates: the key type that both sides agree on decides which one is used
/// (<https://docs.aws.amazon.com/iot/latest/developerguide/server-authentication.html>).
const AMAZON_ROOTS: &str = include_str!("../../iris_fn/src/aws/amazon-roots.pem");
/// The address of the local cloud, which its certificate names.
const LOCAL_HOST: &str = "127.0.0.1";
/// A certificate's status in which it may connect.
const ACTIVE: &str = "ACTIVE";
/// How long AWS may take to detach a certificate.
const PATIENCE: Duration = Duration::from_secs(60);
/// The file with a device's identity and endpoint, by which `destroy` recognizes a folder.
const ENDPOINT: &str = "endpoint.json";
/// The field of [`ENDPOINT`] with the id of the certificate, from its creation until its deletion: also where an
/// interruption left it attached to nothing.
const CERTIFICATE: &str = "certificate_id";

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

    /// Its folder among the stack's.
    pub fn folder(&self, devices: &Path) -> PathBuf {
        devices.join(&self.0)
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

/// Where a cloud's devices connect to, and the certificate authority that they trust.
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

/// Make the device if it does not exist, and write `<dir>/<name>/{cert,key,ca}.pem` and `endpoint.json`. `mosquitto`:
/// also print the line that asks as this device with mosquitto.
pub async fn create(
    cloud: &Cloud,
    name: &DeviceName,
    dir: &Path,
    port: u16,
    mosquitto: bool,
) -> Result<()> {
    let client_id = name.client_id(cloud);
    cloud.confirm(&format!("Make device {client_id} with a certificate"))?;
    let broker = Broker::of(cloud, port).await?;
    let dir = name.folder(dir);
    let done = if make(cloud, &client_id, &dir, &broker).await? {
        "created"
    } else {
        "is there"
    };
    println!("device {client_id} {done}: {}", dir.display());
    if mosquitto {
        println!("{}", mosquitto_line(cloud, &client_id, &dir, &broker));
    }
    Ok(())
}

/// A shell command that asks as this device which model answers. It works from the folder in which it was printed.
fn mosquitto_line(cloud: &Cloud, client_id: &str, dir: &Path, broker: &Broker) -> String {
    let (stack, Broker { host, port, .. }) = (&cloud.stack, broker);
    let dir = dir.display().to_string().replace('\'', r"'\''");
    format!(
        "(cd '{dir}' && mosquitto_rr -h {host} -p {port} -i {client_id} --cafile ca.pem --cert cert.pem --key key.pem \
         -q 1 -t {stack}/request/{client_id} -e {stack}/response/{client_id} -m '{{\"request_id\": \"1\", \"describe\": true}}')"
    )
}

/// The same for many, with a line of progress every two seconds.
pub async fn create_all(cloud: &Cloud, names: &[DeviceName], dir: &Path, port: u16) -> Result<()> {
    cloud.confirm(&format!("Make {} devices with certificates", names.len()))?;
    let broker = Broker::of(cloud, port).await?;
    // Ctrl-C stops between devices only: a certificate that is not attached yet is hard to find again.
    let mut ctrl_c = signal(SignalKind::interrupt())?;
    let (mut created, mut reported) = (0, Instant::now());
    for (n, name) in names.iter().enumerate() {
        let stop = poll_fn(|context| Poll::Ready(ctrl_c.poll_recv(context).is_ready())).await;
        ensure!(
            !stop,
            "stopped after {n} of {} devices: the same command continues, `make destroy` deletes them",
            names.len()
        );
        let made = make(cloud, &name.client_id(cloud), &name.folder(dir), &broker).await?;
        created += usize::from(made);
        if reported.elapsed() > Duration::from_secs(2) {
            reported = Instant::now();
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

/// Make a device if it does not exist; returns whether it was made.
async fn make(cloud: &Cloud, client_id: &str, dir: &Path, broker: &Broker) -> Result<bool> {
    let iot = cloud.iot();
    if dir.join(ENDPOINT).exists() && !belongs(cloud, dir, None) {
        bail!(
            "{} belongs to another stack, account or region: choose another NAME, or delete the folder",
            dir.display()
        );
    }
    let made = iot.create_thing(client_id, ours::attributes(cloud)).await;
    made.with_context(|| {
        format!("could not create thing {client_id} (one with other attributes is not ours: choose another NAME)")
    })?;

    let known = holds_active_certificate(&iot, client_id, dir).await?;
    private_folder(dir)?;
    // First, so that `destroy` knows the folder whatever happens next.
    let Broker { host, port, ca } = broker;
    let mut endpoint = ours::mark(cloud);
    endpoint["host"] = json!(host);
    endpoint["port"] = json!(port);
    endpoint["client_id"] = json!(client_id);
    endpoint[CERTIFICATE] = json!(recorded(dir));
    write_endpoint(dir, &endpoint)?;
    write_private(&dir.join("ca.pem"), ca)?;
    if !known {
        remove_certificates(cloud, &iot, client_id, Some((dir, endpoint.clone()))).await?;
        // From here on Ctrl-C waits: a certificate that is not attached yet is hard to find again.
        let _ctrl_c = signal(SignalKind::interrupt())?;
        new_certificate(cloud, &iot, client_id, dir, endpoint).await?;
    }
    Ok(!known)
}

/// The endpoint file of a device's folder.
fn read_endpoint(dir: &Path) -> Option<Value> {
    let text = fs::read_to_string(dir.join(ENDPOINT)).ok()?;
    serde_json::from_str(&text).ok()
}

/// The id of the certificate that is recorded in a device's folder.
fn recorded(dir: &Path) -> Option<String> {
    let id = read_endpoint(dir)?[CERTIFICATE].as_str()?.to_owned();
    Some(id)
}

fn write_endpoint(dir: &Path, endpoint: &Value) -> Result<()> {
    write_private(&dir.join(ENDPOINT), format!("{endpoint:#}\n"))
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
        let found = found.with_context(|| format!("could not read the certificate of {thing}"))?;
        if found.is_some_and(|c| c.status == ACTIVE && c.certificate_pem.trim() == pem.trim()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A new certificate. It is attached to its thing first, so that `destroy` finds it, and activated last, when everything
/// else is done.
async fn new_certificate(
    cloud: &Cloud,
    iot: &Iot<'_>,
    thing: &str,
    dir: &Path,
    mut endpoint: Value,
) -> Result<()> {
    let made = iot
        .create_certificate()
        .await
        .context("could not make a certificate")?;
    let (arn, id) = (&made.certificate_arn, &made.certificate_id);
    endpoint[CERTIFICATE] = json!(id);
    write_endpoint(dir, &endpoint)?;
    iot.attach_to_thing(thing, arn).await.with_context(|| {
        format!("could not attach the certificate to thing {thing}: try again, or `make destroy`")
    })?;
    write_private(&dir.join("key.pem"), made.key_pair.private_key)?;
    write_private(&dir.join("cert.pem"), made.certificate_pem)?;
    let policy = cloud.device_policy();
    iot.attach_policy(&policy, arn).await.with_context(|| {
        format!(
            "could not attach policy {policy} (is the stack deployed? `make deploy`, or notebook 3)"
        )
    })?;
    iot.set_status(id, ACTIVE)
        .await
        .with_context(|| format!("could not activate the certificate of {thing}: try again"))
}

/// Ids of the certificates attached to a thing.
async fn certificate_ids(iot: &Iot<'_>, thing: &str) -> Result<Vec<String>> {
    let found = iot.certificates(thing).await;
    found.with_context(|| format!("could not read thing {thing}"))
}

/// Deactivate, detach and delete every certificate of a thing, and the one that is recorded in its folder. Where there
/// is a folder, the id of each is written to disk before it is detached.
async fn remove_certificates(
    cloud: &Cloud,
    iot: &Iot<'_>,
    name: &str,
    mut folder: Option<(&Path, Value)>,
) -> Result<()> {
    let remove = async |thing, id: &str| {
        let removed = remove_certificate(cloud, iot, thing, id).await;
        removed.with_context(|| {
            format!("could not remove certificate {id} of {name}: run the same command again")
        })
    };
    let attached = certificate_ids(iot, name).await?;
    if let Some(id) = folder.as_ref().and_then(|(_, e)| e[CERTIFICATE].as_str())
        && !attached.iter().any(|other| other == id)
    {
        remove(None, id).await?;
    }
    for id in &attached {
        if let Some((dir, endpoint)) = &mut folder
            && endpoint[CERTIFICATE] != *id.as_str()
        {
            endpoint[CERTIFICATE] = json!(id);
            write_endpoint(dir, endpoint)?;
        }
        remove(Some(name), id).await?;
    }
    Ok(())
}

/// It is deactivated first, and detached from its thing last: while it is attached, the next attempt finds it.
async fn remove_certificate(
    cloud: &Cloud,
    iot: &Iot<'_>,
    thing: Option<&str>,
    id: &str,
) -> Result<()> {
    let Some(certificate) = iot.certificate(id).await? else {
        return Ok(());
    };
    let arn = &certificate.certificate_arn;
    let policies = iot.policies(arn).await?;
    // A certificate with other policies was attached to our thing by somebody else, or is also used elsewhere.
    let ours = policies.iter().all(|p| *p == cloud.device_policy());
    if ours {
        iot.set_status(id, "INACTIVE").await?;
        for policy in policies {
            iot.detach_policy(&policy, arn).await?;
        }
    } else {
        println!(
            "certificate {id} has other policies ({}): it stays, detached from the device",
            policies.join(", ")
        );
    }
    if let Some(thing) = thing {
        iot.detach_from_thing(thing, arn).await?;
    }
    if ours {
        patiently(&format!("certificate {id}"), || iot.delete_certificate(id)).await?;
    }
    Ok(())
}

/// Remove a device of which `destroy` has found the thing, the folder, or both.
pub async fn remove(cloud: &Cloud, devices: &Path, port: u16, client_id: &str) -> Result<()> {
    let iot = cloud.iot();
    let name = client_id
        .strip_prefix(&format!("{}-", cloud.stack))
        .unwrap_or(client_id);
    let dir = devices.join(name);
    let ours = || belongs(cloud, &dir, Some(port));
    match iot.thing(client_id).await? {
        // Check again: since the list was made, it may have become somebody else's.
        Some(attributes) if ours::thing(cloud, client_id, &attributes) => {
            if !dir.exists() {
                private_folder(&dir)?;
                let mut endpoint = ours::mark(cloud);
                endpoint["client_id"] = json!(client_id);
                write_endpoint(&dir, &endpoint)?;
            }
            let endpoint = read_endpoint(&dir).filter(|_| ours());
            let folder = endpoint.map(|endpoint| (dir.as_path(), endpoint));
            remove_certificates(cloud, &iot, client_id, folder).await?;
            patiently(&format!("thing {client_id}"), || {
                iot.delete_thing(client_id)
            })
            .await?;
        }
        Some(_) => println!("thing {client_id} is not ours any more: it stays"),
        None => {
            if let Some(id) = recorded(&dir).filter(|_| ours()) {
                remove_certificate(cloud, &iot, None, &id).await.with_context(|| {
                    format!("could not remove certificate {id} of {client_id}: run `make destroy` again")
                })?;
            }
        }
    }
    if ours() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot delete {}", dir.display()))?;
    }
    Ok(())
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

/// Make a folder that only its owner may enter, if it does not exist.
pub fn private_folder(dir: &Path) -> Result<()> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))
}

/// Write a file that only its owner may read, atomically: never half of it under its own name.
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

/// Whether a device folder is this stack's, in this cloud. Local clouds differ by their port, where it matters: one
/// that was made when there was no broker to connect to has none.
pub fn belongs(cloud: &Cloud, dir: &Path, port: Option<u16>) -> bool {
    let endpoint = read_endpoint(dir).unwrap_or_default();
    let elsewhere = port.filter(|_| cloud.target == Target::Local);
    ours::file(cloud, &dir.join(ENDPOINT))
        && elsewhere.is_none_or(|port| endpoint["port"].is_null() || endpoint["port"] == port)
}

/// Whether AWS is still processing the previous call: each kind of resource has an error of its own for that.
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

/// Retry while AWS is still processing the previous call: detaching and deleting take time.
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

    #[test]
    fn only_what_aws_says_while_it_is_at_work_is_tried_again() {
        let refused = |code: &str, message: &str| {
            anyhow::Error::new(CallError::Refused {
                status: 409,
                code: code.to_owned(),
                message: message.to_owned(),
            })
        };
        assert!(is_busy(&refused("DeleteConflictException", "")));
        assert!(is_busy(&refused("CertificateStateException", "")));
        assert!(is_busy(&refused(
            "InvalidRequestException",
            "a principal is still attached"
        )));
        assert!(!is_busy(&refused("InvalidRequestException", "no")));
        assert!(!is_busy(&refused("AccessDeniedException", "")));
        assert!(!is_busy(&anyhow::anyhow!("DeleteConflictException")));
    }
}
