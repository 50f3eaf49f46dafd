//! Calls to the two services whose SDKs would take longer to compile than the rest of the deployer: AWS IoT's control
//! plane and CloudWatch Logs. Each call is JSON over HTTPS as the service's API reference has it
//! (<https://docs.aws.amazon.com/iot/latest/apireference/>), signed by the SDK's own signer and sent by its own client.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use aws_config::SdkConfig;
use aws_sdk_s3::config::ProvideCredentials;
use aws_sdk_s3::config::http::{HttpRequest, HttpResponse};
use aws_sdk_s3::error::ConnectorError;
use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat, SdkBody};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorSettings};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::cloud::Cloud;

/// The wait before a retry doubles from the first to the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(20));

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The service refused it.
    #[error("{code}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The error's code, such as `ResourceNotFoundException`.
        code: String,
        /// The error's message.
        message: String,
    },
    /// The service did not answer.
    #[error("no answer from {0}")]
    NoAnswer(String, #[source] ConnectorError),
}

impl CallError {
    fn is_passing(&self) -> bool {
        match self {
            Self::Refused { status, code, .. } => {
                *status >= 500 || *status == 429 || code.contains("Throttl")
            }
            Self::NoAnswer(_, e) => e.is_io() || e.is_timeout(),
        }
    }
}

/// One service in one region.
pub struct Service<'a> {
    config: &'a SdkConfig,
    region: &'a str,
    name: &'static str,
    url: String,
    connector: Connector,
}

/// One call; [`Service::call`] sends it.
pub struct Call<'a> {
    method: &'a str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Value,
    form: Option<String>,
}

impl<'a> Call<'a> {
    /// `path` is encoded already, by [`encode`], where a part of it comes from outside.
    pub fn new(method: &'a str, path: impl Into<String>) -> Self {
        let (path, headers) = (path.into(), Vec::new());
        Self {
            method,
            path,
            headers,
            body: Value::Null,
            form: None,
        }
    }

    /// A call as IAM takes it: a form to `/`, answered in XML, which [`Service::call`] returns as text.
    pub fn form(fields: &[(String, String)]) -> Self {
        let fields = fields
            .iter()
            .map(|(key, value)| format!("{key}={}", encode(value)));
        let form = fields.collect::<Vec<_>>().join("&");
        Self {
            form: Some(form),
            ..Self::new("POST", "/").header("content-type", "application/x-www-form-urlencoded")
        }
    }

    /// With another header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With a JSON body.
    pub fn body(self, body: Value) -> Self {
        Self { body, ..self }
    }
}

/// A text as a part of a path or a query.
pub fn encode(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

impl<'a> Service<'a> {
    /// The service with this signing name, which is also that of its host.
    pub fn new(cloud: &'a Cloud, name: &'static str) -> Self {
        Self::of(&cloud.config, &cloud.region, name)
    }

    /// A global service: it has one host and signs for us-east-1.
    pub fn global(cloud: &'a Cloud, name: &'static str) -> Self {
        let mut service = Self::of(&cloud.config, "us-east-1", name);
        if cloud.config.endpoint_url().is_none() {
            service.url = format!("https://{name}.amazonaws.com");
        }
        service
    }

    /// The service's time, from the `Date` of its answer to an unsigned request.
    ///
    /// # Errors
    /// When there is no answer or no date in it.
    pub async fn time(&self) -> Result<SystemTime> {
        let mut request = HttpRequest::new(SdkBody::empty());
        request.set_uri(self.url.as_str())?;
        let response = self.connector.call(request).await;
        let response = response.map_err(|e| CallError::NoAnswer(self.url.clone(), e))?;
        let date = response
            .headers()
            .get("date")
            .context("no date in the answer")?;
        let date = DateTime::from_str(date, DateTimeFormat::HttpDate)?;
        Ok(SystemTime::try_from(date)?)
    }

    fn of(config: &'a SdkConfig, region: &'a str, name: &'static str) -> Self {
        let url = match config.endpoint_url() {
            Some(local) => local.trim_end_matches('/').to_owned(),
            None => format!("https://{name}.{}.amazonaws.com", region),
        };
        let timeouts = config.timeout_config();
        let settings = HttpConnectorSettings::builder();
        let settings = settings
            .connect_timeout(
                timeouts
                    .and_then(|t| t.connect_timeout())
                    .unwrap_or(BACKOFF.1),
            )
            .read_timeout(timeouts.and_then(|t| t.read_timeout()).unwrap_or(BACKOFF.1));
        let mut connector = Connector::builder();
        connector.set_sleep_impl(config.sleep_impl());
        let connector = connector
            .connector_settings(settings.build())
            .proxy_config(ProxyConfig::from_env())
            .tls_provider(Provider::rustls(CryptoMode::AwsLc))
            .build();
        Self {
            config,
            region,
            name,
            url,
            connector,
        }
    }

    /// Call, retry transient failures, and read the JSON of the answer.
    ///
    /// # Errors
    /// [`CallError`], with context; and when there are no credentials.
    pub async fn call(&self, call: &Call<'_>) -> Result<Value> {
        let attempts = self
            .config
            .retry_config()
            .map_or(3, |retry| retry.max_attempts());
        let (mut wait, longest) = BACKOFF;
        let mut attempt = 1;
        loop {
            match self.attempt(call).await? {
                Err(e) if e.is_passing() && attempt < attempts => {
                    tokio::time::sleep(wait).await;
                    (wait, attempt) = ((wait * 2).min(longest), attempt + 1);
                }
                answer => return Ok(answer?),
            }
        }
    }

    async fn attempt(&self, call: &Call<'_>) -> Result<Result<Value, CallError>> {
        let body = match &call.form {
            Some(form) => form.clone(),
            None if call.body.is_null() => String::new(),
            None => call.body.to_string(),
        };
        let request = self.signed(call, &body).await?;
        let response = match self.connector.call(request).await {
            Ok(response) => response,
            Err(e) => return Ok(Err(CallError::NoAnswer(self.url.clone(), e))),
        };
        let status = response.status();
        let code = response
            .headers()
            .get("x-amzn-errortype")
            .map(str::to_owned);
        let text = body_of(response)
            .await
            .with_context(|| format!("half an answer from {}", self.url))?;
        let text = String::from_utf8_lossy(&text);
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| text.as_ref().into());
        if status.is_success() {
            return Ok(Ok(answer));
        }
        // The name may have a namespace before it and a suffix after it.
        let code = code
            .or_else(|| answer["__type"].as_str().map(str::to_owned))
            .or_else(|| elements(&text, "Code").next().map(str::to_owned))
            .unwrap_or_default();
        let code = code
            .split(':')
            .next()
            .unwrap_or_default()
            .rsplit('#')
            .next()
            .unwrap_or_default();
        let message = answer["message"].as_str().or(answer["Message"].as_str());
        let message = message.or(elements(&text, "Message").next());
        let message = message.unwrap_or("it does not say why").to_owned();
        Ok(Err(CallError::Refused {
            status: status.as_u16(),
            code: code.to_owned(),
            message,
        }))
    }

    async fn signed(&self, call: &Call<'_>, body: &str) -> Result<HttpRequest> {
        let url = format!("{}{}", self.url, call.path);
        let credentials = self
            .config
            .credentials_provider()
            .context("there are no AWS credentials")?;
        let identity = credentials
            .provide_credentials()
            .await
            .context("could not get AWS credentials")?
            .into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name(self.name)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()?
            .into();
        let headers = call
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()));
        let signable = SignableBody::Bytes(body.as_bytes());
        let signable = SignableRequest::new(call.method, &url, headers.clone(), signable)?;
        let (signature, _) = sign(signable, &params)?.into_parts();
        let mut request = HttpRequest::new(SdkBody::from(body));
        request.set_method(call.method)?;
        request.set_uri(url.as_str())?;
        for (name, value) in headers {
            request
                .headers_mut()
                .insert(name.to_owned(), value.to_owned());
        }
        for (name, value) in signature.headers() {
            request
                .headers_mut()
                .insert(name.to_owned(), value.to_owned());
        }
        Ok(request)
    }
}

/// The texts of all elements of a name in XML that has no attributes, as AWS's has none.
pub fn elements<'t>(xml: &'t str, name: &str) -> impl Iterator<Item = &'t str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(&open)?;
        let (text, behind) = after.split_once(&close)?;
        rest = behind;
        Some(text)
    })
}

async fn body_of(response: HttpResponse) -> Result<Vec<u8>> {
    Ok(ByteStream::new(response.into_body())
        .collect()
        .await?
        .to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_config::{BehaviorVersion, Region};
    use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
    use serde_json::json;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    /// A service that returns these answers, one after the other, and then the requests that it got.
    fn service(answers: Vec<(&'static str, &'static str)>) -> (SdkConfig, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let credentials = Credentials::new("AKID", "secret", Some("token".into()), None, "test");
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(format!("http://{}", listener.local_addr().unwrap()))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .region(Region::new("eu-west-1"))
            .build();
        let answer = move |(head, body): (&str, &str)| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            let close = format!("Connection: close\r\nContent-Length: {}", body.len());
            let answer = format!("HTTP/1.1 {head}\r\n{close}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        };
        let asked = thread::spawn(|| answers.into_iter().map(answer).collect());
        (config, asked)
    }

    #[tokio::test]
    async fn a_call_is_signed_and_made_again_while_it_fails_for_a_passing_reason() {
        let (config, asked) = service(vec![
            ("503 Busy", ""),
            ("429 Slow", ""),
            ("200 OK", r#"{"a": 1}"#),
        ]);
        let service = Service::of(&config, "eu-west-1", "iot");
        let path = format!("/attached-policies/{}", encode("arn:aws:iot:1:cert/a"));
        let call = Call::new("POST", path)
            .header("x-other", "b")
            .body(json!({"c": 2}));
        assert_eq!(service.call(&call).await.unwrap(), json!({"a": 1}));
        let asked = asked.join().unwrap();
        assert_eq!(asked.len(), 3);
        let request = asked[2].to_lowercase();
        for part in [
            "post /attached-policies/arn%3aaws%3aiot%3a1%3acert%2fa http/1.1",
            "x-other: b",
            "x-amz-security-token: token",
            "/eu-west-1/iot/aws4_request",
            r#"{"c":2}"#,
        ] {
            assert!(request.contains(part), "{part} is not in {request}");
        }
    }

    #[tokio::test]
    async fn a_refusal_has_the_services_name_and_sentence() {
        for refusal in [
            (
                "404 No\r\nx-amzn-errortype: NotFound:http://x",
                r#"{"message": "no thing"}"#,
            ),
            (
                "400 No",
                r#"{"__type": "a.b#NotFound", "Message": "no thing"}"#,
            ),
        ] {
            let (config, _) = service(vec![refusal]);
            let service = Service::of(&config, "eu-west-1", "iot");
            let error = service
                .call(&Call::new("GET", "/things/a"))
                .await
                .unwrap_err();
            assert_eq!(error.to_string(), "NotFound: no thing");
        }
    }
}
