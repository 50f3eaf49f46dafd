//! The dozen calls of AWS IoT's control plane that make and remove a device
//! (<https://docs.aws.amazon.com/iot/latest/apireference/API_Operations_AWS_IoT.html>).

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cloud::Cloud;
use crate::rest::{Call, CallError, Service, encode};

/// AWS IoT's control plane. Certificates are named by their id, things by their name.
pub struct Iot<'a>(Service<'a>);

/// A new certificate with its private key.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewCertificate {
    /// By which things and policies refer to it.
    pub certificate_arn: String,
    /// Its id.
    pub certificate_id: String,
    /// Its text.
    pub certificate_pem: String,
    /// Its private key; only the caller keeps it.
    pub key_pair: KeyPair,
}

/// The key of a new certificate.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyPair {
    /// PEM.
    pub private_key: String,
}

/// A certificate as the service knows it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// By which things and policies refer to it.
    pub certificate_arn: String,
    /// Its text.
    pub certificate_pem: String,
    /// `ACTIVE`, `INACTIVE`, `REVOKED` …
    pub status: String,
}

/// `None` where the service reports that there is no such resource.
fn unless_gone(answer: Result<Value>) -> Result<Option<Value>> {
    match answer {
        Err(e) if is_gone(&e) => Ok(None),
        answer => answer.map(Some),
    }
}

/// Whether a call failed because what it names is not there.
pub fn is_gone(e: &anyhow::Error) -> bool {
    matches!(e.downcast_ref(), Some(CallError::Refused { code, .. }) if code == "ResourceNotFoundException")
}

impl<'a> Iot<'a> {
    /// In the cloud's region.
    pub fn new(cloud: &'a Cloud) -> Self {
        Self(Service::new(cloud, "iot"))
    }

    async fn call(&self, method: &str, path: impl Into<String>) -> Result<Value> {
        self.0.call(&Call::new(method, path)).await
    }

    async fn send(&self, method: &str, path: String, body: Value) -> Result<()> {
        let call = Call::new(method, path).body(body);
        self.0.call(&call).await.map(drop)
    }

    /// Host of the account's MQTT broker.
    pub async fn endpoint(&self) -> Result<String> {
        let answer = self
            .call("GET", "/endpoint?endpointType=iot%3AData-ATS")
            .await?;
        let host = answer["endpointAddress"].as_str();
        Ok(host.context("the account has no IoT endpoint")?.to_owned())
    }

    /// Make a thing, if there is none with the same attributes.
    pub async fn create_thing(&self, thing: &str, attributes: Value) -> Result<()> {
        let body = json!({"attributePayload": {"attributes": attributes}});
        self.send("POST", format!("/things/{}", encode(thing)), body)
            .await
    }

    /// Delete a thing, which has no certificate any more.
    pub async fn delete_thing(&self, thing: &str) -> Result<()> {
        self.call("DELETE", format!("/things/{}", encode(thing)))
            .await
            .map(drop)
    }

    /// Name and attributes of the things with this attribute.
    pub async fn things(&self, attribute: &str, value: &str) -> Result<Vec<(String, Value)>> {
        let path = format!(
            "/things?attributeName={}&attributeValue={}&",
            encode(attribute),
            encode(value)
        );
        let things = self.pages(&path, "things").await?.into_iter();
        let things = things.filter_map(|mut thing| {
            let attributes = thing["attributes"].take();
            Some((thing["thingName"].as_str()?.to_owned(), attributes))
        });
        Ok(things.collect())
    }

    /// A thing's attributes; `None` when there is no such thing.
    pub async fn thing(&self, thing: &str) -> Result<Option<Value>> {
        let found = self.call("GET", format!("/things/{}", encode(thing))).await;
        Ok(unless_gone(found)?.map(|mut thing| thing["attributes"].take()))
    }

    /// Ids of the certificates attached to a thing.
    pub async fn certificates(&self, thing: &str) -> Result<Vec<String>> {
        let arns = self
            .pages(
                &format!("/things/{}/principals?", encode(thing)),
                "principals",
            )
            .await?;
        let ids = arns
            .iter()
            .filter_map(|arn| arn.as_str()?.split_once(":cert/"));
        Ok(ids.map(|(_, id)| id.to_owned()).collect())
    }

    /// The items of the list `field` of all pages. `path` ends with `?` or `&`.
    async fn pages(&self, path: &str, field: &str) -> Result<Vec<Value>> {
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let mut page = self.call("GET", format!("{path}{next}")).await?;
            if let Value::Array(list) = page[field].take() {
                all.extend(list);
            }
            match page["nextToken"].as_str() {
                Some(token) => next = format!("nextToken={}", encode(token)),
                None => return Ok(all),
            }
        }
    }

    /// Make a certificate and its key; it is inactive.
    pub async fn create_certificate(&self) -> Result<NewCertificate> {
        let made = self
            .call("POST", "/keys-and-certificate?setAsActive=false")
            .await?;
        NewCertificate::deserialize(made).context("the new certificate came without a part of it")
    }

    /// Read a certificate; `None` when there is no such certificate.
    pub async fn certificate(&self, id: &str) -> Result<Option<Certificate>> {
        let found = self
            .call("GET", format!("/certificates/{}", encode(id)))
            .await;
        let Some(mut found) = unless_gone(found)? else {
            return Ok(None);
        };
        let description = found["certificateDescription"].take();
        let certificate = Certificate::deserialize(description);
        Ok(Some(certificate.context(
            "a certificate without its ARN, text or status",
        )?))
    }

    /// Make it `ACTIVE` or `INACTIVE`.
    pub async fn set_status(&self, id: &str, status: &str) -> Result<()> {
        let path = format!("/certificates/{}?newStatus={status}", encode(id));
        self.call("PUT", path).await.map(drop)
    }

    /// Delete an inactive certificate that is attached to nothing.
    pub async fn delete_certificate(&self, id: &str) -> Result<()> {
        self.call("DELETE", format!("/certificates/{}", encode(id)))
            .await
            .map(drop)
    }

    /// Attach a certificate to a thing (`PUT`), or detach it (`DELETE`).
    async fn principal(&self, method: &str, thing: &str, arn: &str) -> Result<()> {
        let call = Call::new(method, format!("/things/{}/principals", encode(thing)));
        self.0
            .call(&call.header("x-amzn-principal", arn))
            .await
            .map(drop)
    }

    /// Attach a certificate to a thing.
    pub async fn attach_to_thing(&self, thing: &str, arn: &str) -> Result<()> {
        self.principal("PUT", thing, arn).await
    }

    /// Detach a certificate from a thing.
    pub async fn detach_from_thing(&self, thing: &str, arn: &str) -> Result<()> {
        self.principal("DELETE", thing, arn).await
    }

    /// Attach a policy to a certificate.
    pub async fn attach_policy(&self, policy: &str, arn: &str) -> Result<()> {
        let path = format!("/target-policies/{}", encode(policy));
        self.send("PUT", path, json!({"target": arn})).await
    }

    /// Detach a policy from a certificate.
    pub async fn detach_policy(&self, policy: &str, arn: &str) -> Result<()> {
        let path = format!("/target-policies/{}", encode(policy));
        self.send("POST", path, json!({"target": arn})).await
    }

    /// Names of a certificate's policies.
    pub async fn policies(&self, arn: &str) -> Result<Vec<String>> {
        let found = self
            .call("POST", format!("/attached-policies/{}", encode(arn)))
            .await?;
        let policies = found["policies"].as_array().into_iter().flatten();
        Ok(policies
            .filter_map(|policy| policy["policyName"].as_str().map(str::to_owned))
            .collect())
    }
}
