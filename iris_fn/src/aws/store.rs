//! Where the model comes from.

use std::time::Instant;

use aws_sdk_s3::Client;

use crate::current::{Loaded, ModelStore, StoreError};
use crate::error::ModelError;
use crate::model::{CURRENT_KEY, MAX_BYTES, Model, ModelFile, sha256_hex};

/// The stack's bucket.
pub struct S3Store {
    client: Client,
    bucket: String,
}

impl S3Store {
    /// The current model of `bucket`.
    pub fn new(client: Client, bucket: String) -> Self {
        Self { client, bucket }
    }
}

impl ModelStore for S3Store {
    async fn current(&self, known: Option<&str>) -> Result<Option<Loaded>, StoreError> {
        let name = format!("s3://{}/{CURRENT_KEY}", self.bucket);
        let unread = |source| {
            let name = name.clone();
            StoreError::Read { name, source }
        };
        let started = Instant::now();
        let get = self.client.get_object().bucket(&self.bucket);
        let get = get.set_if_none_match(known.map(str::to_owned));
        let object = match get.key(CURRENT_KEY).send().await {
            Ok(object) => object,
            // Not an error here: 304, the object has not changed.
            Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 304) => {
                return Ok(None);
            }
            Err(e) => return Err(unread(e.into())),
        };
        let etag = object.e_tag().map(str::to_owned);
        let length = object.content_length().unwrap_or(0);
        if length > MAX_BYTES as i64 {
            // Not downloaded: a container has 128 MB in all.
            let source = ModelError::TooLarge {
                bytes: length as usize,
            };
            return Err(StoreError::Refused { name, etag, source });
        }
        let body = object.body.collect().await;
        let bytes = body.map_err(|e| unread(e.into()))?.into_bytes();
        let s3 = started.elapsed();

        let started = Instant::now();
        let sha256 = sha256_hex(&bytes);
        let checked = ModelFile::from_bytes(&bytes).and_then(|file| {
            let parse = started.elapsed();
            Ok((Model::check(file, sha256.clone())?, parse))
        });
        let (model, parse) = match checked {
            Ok(checked) => checked,
            Err(source) => {
                let name = format!("{name} (sha256 {sha256})");
                return Err(StoreError::Refused { name, etag, source });
            }
        };
        // Only the container's first model: later, the line about each call names the model.
        if known.is_none() {
            tracing::info!(
                model = sha256,
                s3_us = s3.as_micros() as u64,
                parse_us = parse.as_micros() as u64,
                golden_us = (started.elapsed() - parse).as_micros() as u64,
                "model loaded"
            );
        }
        Ok(Some(Loaded { model, etag }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::{ATTEMPT, OPERATION, timeouts, whole};
    use aws_sdk_s3::config::{BehaviorVersion, Builder, Credentials, Region};
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};
    use std::time::Duration;

    const FRUIT: &[u8] = include_bytes!("../../fuzz/corpus/model/fruit.json");

    /// A store on an S3 that returns these answers, one after the other, and then the requests that it got.
    fn store(answers: Vec<(&'static str, Vec<u8>)>) -> (S3Store, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = move |(head, body): (&str, Vec<u8>)| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            let length = body.len();
            let head =
                format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            stream
                .write_all(&[head.into_bytes(), body].concat())
                .unwrap();
            String::from_utf8(request).unwrap().to_lowercase()
        };
        let asked = thread::spawn(|| answers.into_iter().map(answer).collect());
        (client(url), asked)
    }

    fn client(url: String) -> S3Store {
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .http_client(whole(aws_smithy_http_client::Builder::new().build_http()))
            .timeout_config(timeouts())
            .endpoint_url(url)
            .build();
        S3Store::new(Client::from_conf(config), "b".into())
    }

    #[tokio::test]
    async fn s3_is_asked_by_the_tag_it_gave_and_only_its_304_means_unchanged() {
        let (store, asked) = store(vec![
            ("200 OK\r\nETag: \"t\"", FRUIT.to_vec()),
            ("304 Not Modified", vec![]),
            ("412 Precondition Failed", vec![]),
        ]);
        let loaded = store.current(None).await.unwrap().unwrap();
        assert_eq!(loaded.model.sha256(), sha256_hex(FRUIT));
        let tag = loaded.etag.as_deref();
        assert_eq!(tag, Some("\"t\""));
        assert!(store.current(tag).await.unwrap().is_none());
        let error = store.current(tag).await.unwrap_err();
        assert!(matches!(error, StoreError::Read { .. }), "{error}");
        let asked = asked.join().unwrap();
        let tagged = |request: &String| request.contains("\r\nif-none-match: \"t\"\r\n");
        assert_eq!(
            asked.iter().map(tagged).collect::<Vec<_>>(),
            [false, true, true]
        );
    }

    #[tokio::test]
    async fn an_object_that_is_too_large_is_not_downloaded() {
        let (store, _) = store(vec![("200 OK", vec![b' '; MAX_BYTES + 1])]);
        let error = store.current(None).await.unwrap_err();
        let StoreError::Refused { source, .. } = error else {
            panic!("{error}")
        };
        let bytes = MAX_BYTES + 1;
        assert_eq!(source, ModelError::TooLarge { bytes });
    }

    #[tokio::test]
    async fn an_object_that_is_no_model_is_refused_by_its_name() {
        let (store, _) = store(vec![("200 OK\r\nETag: \"t\"", b"{}".to_vec())]);
        let error = store.current(None).await.unwrap_err();
        let name = format!(
            "s3://b/{CURRENT_KEY} (sha256 {}) is refused",
            sha256_hex(b"{}")
        );
        assert_eq!(error.to_string(), name);
        let StoreError::Refused { etag, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(etag.as_deref(), Some("\"t\""));
    }

    /// A body whose last byte never comes, in every attempt.
    fn stalled() -> (S3Store, std::sync::mpsc::Receiver<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, times) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let length = FRUIT.len();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                let most = &FRUIT[..length - 1];
                stream.write_all(&[head.as_bytes(), most].concat()).unwrap();
                open.push(stream);
                asked.send(()).unwrap();
            }
        });
        (client(url), times)
    }

    #[tokio::test]
    async fn a_body_that_stalls_is_asked_for_again_and_given_up_in_time() {
        let (store, times) = stalled();
        let started = Instant::now();
        let error = store.current(None).await.unwrap_err();
        let took = started.elapsed();
        assert!(matches!(error, StoreError::Read { .. }), "{error}");
        assert!(
            took > ATTEMPT && took < OPERATION + Duration::from_secs(1),
            "{took:?}"
        );
        assert!(times.try_iter().count() >= 2, "asked once only");
    }
}
