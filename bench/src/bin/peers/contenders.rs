//! Who takes part, what all of them serve, and what they are asked.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::body::Bytes;
use iris_fn::model::{CURRENT_KEY, FEATURE_NAMES, KIND, SCHEMA};
use iris_fn::predict::Flower;
use iris_fn::{Feature, GoldenRow, Model, ModelFile, Training};
use serde_json::{Value, json};

use crate::runtime_api::Contender;

const CSV: &str = include_str!("../../../../data/iris.csv");
const REFERENCE: &str = include_str!("../../../../iris_fn/tests/reference.json");
/// Contenders, as the report names them.
pub const OURS: &str = "iris_fn";
pub const EMPTY: &str = "empty lambda_runtime";
pub const PLAIN: &str = "plain Python";
pub const SKLEARN: &str = "scikit-learn";
pub const ONNX: &str = "onnxruntime";

/// The model that all contenders serve: scikit-learn's own fit of the workshop's data.
pub fn model_file() -> ModelFile {
    let reference: Value = serde_json::from_str(REFERENCE).expect("the reference is JSON");
    let numbers = |v: &Value| -> Vec<f64> {
        let list = v.as_array().map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(Value::as_f64).collect()
    };
    let weights = &reference["weights_class_by_feature"];
    let row = |k: usize| {
        numbers(&weights[k])
            .try_into()
            .expect("four weights a class")
    };
    let column = |f: usize| flowers().map(move |flower| flower.features()[f]);
    let mut file = ModelFile {
        schema: SCHEMA,
        kind: KIND.into(),
        features: std::array::from_fn(|f| Feature {
            name: FEATURE_NAMES[f].into(),
            unit: "cm".into(),
            min: column(f).fold(f64::INFINITY, f64::min),
            max: column(f).fold(f64::NEG_INFINITY, f64::max),
        }),
        classes: ["setosa", "versicolor", "virginica"].map(String::from),
        weights: [row(0), row(1), row(2)],
        intercepts: numbers(&reference["intercepts"])
            .try_into()
            .expect("three intercepts"),
        training: Training {
            data_sha256: iris_fn::model::sha256_hex(CSV.as_bytes()),
            rows: 150,
            alpha: 1.0,
            ..Training::default()
        },
        golden: vec![],
    };
    // As many as notebook 1 writes.
    file.golden = flowers()
        .step_by(10)
        .map(|flower| GoldenRow {
            features: flower.features(),
            probabilities: file.probabilities(&flower.features()),
        })
        .collect();
    file
}

/// The 150 flowers of the data.
pub fn flowers() -> impl Iterator<Item = Flower> {
    CSV.lines().skip(1).map(|line| {
        let mut numbers = line.split(',').map_while(|field| field.parse::<f64>().ok());
        Flower::from(std::array::from_fn(|_| {
            numbers.next().expect("a row has four numbers")
        }))
    })
}

fn to_object(flower: &Flower) -> Value {
    FEATURE_NAMES
        .iter()
        .zip(flower.features())
        .map(|(n, x)| ((*n).to_owned(), json!(x)))
        .collect()
}

/// A request about one flower.
pub fn single(flower: &Flower) -> Bytes {
    let mut request = to_object(flower);
    request["request_id"] = json!("3f1c9a52-7d0e-4b58-9a31-0c2d6e8f7b14");
    request.to_string().into()
}

/// A request about `size` flowers.
pub fn batch(size: usize) -> Bytes {
    let all: Vec<Value> = flowers().map(|flower| to_object(&flower)).collect();
    let flowers: Vec<&Value> = all.iter().cycle().take(size).collect();
    json!({"request_id": "batch", "flowers": flowers})
        .to_string()
        .into()
}

/// The bucket that the function reads its model from: in the local cloud, made for this run.
pub struct S3 {
    client: aws_sdk_s3::Client,
    bucket: String,
    /// A signed address of the model, for whoever has no SDK.
    url: String,
}

impl S3 {
    pub async fn prepare(model: &Model) -> Result<Self> {
        let config = iris_fn::aws::config().map_err(anyhow::Error::from_boxed)?;
        ensure!(
            config
                .endpoint_url()
                .is_some_and(|url| url.starts_with("http://127.0.0.1:")),
            "the bench uses the local cloud only: run it by `make bench`"
        );
        let client = aws_sdk_s3::Client::new(&config);
        let bucket = format!("bench-{}", std::process::id());
        client
            .create_bucket()
            .bucket(&bucket)
            .send()
            .await
            .context("no bucket for the bench")?;
        let body = model.file().to_bytes().into();
        let put = client
            .put_object()
            .bucket(&bucket)
            .key(CURRENT_KEY)
            .body(body);
        put.send().await.context("could not put the model")?;
        let valid =
            aws_sdk_s3::presigning::PresigningConfig::expires_in(Duration::from_secs(3600))?;
        let get = client
            .get_object()
            .bucket(&bucket)
            .key(CURRENT_KEY)
            .presigned(valid)
            .await?;
        Ok(Self {
            url: get.uri().to_owned(),
            client,
            bucket,
        })
    }

    /// One GET of the model on a new connection, as a container's first one is.
    pub fn round_trip(&self) -> Result<Duration> {
        let agent = ureq::Agent::new_with_defaults();
        let started = Instant::now();
        agent.get(&self.url).call()?.body_mut().read_to_vec()?;
        Ok(started.elapsed())
    }

    pub async fn clean_up(&self) -> Result<()> {
        self.client
            .delete_object()
            .bucket(&self.bucket)
            .key(CURRENT_KEY)
            .send()
            .await?;
        self.client
            .delete_bucket()
            .bucket(&self.bucket)
            .send()
            .await?;
        Ok(())
    }
}

/// Everybody who takes part.
pub fn contenders(root: &Path, s3: &S3) -> Result<Vec<Contender>> {
    let peers = root.join("target/bench/peers");
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let aws = [
        "AWS_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_REGION",
    ];
    let mut common: Vec<(String, String)> = aws
        .into_iter()
        .map(|name| {
            Ok((
                name.to_owned(),
                std::env::var(name).with_context(|| format!("{name} is not set"))?,
            ))
        })
        .collect::<Result<_>>()?;
    let settings = [
        ("AWS_LAMBDA_FUNCTION_NAME", "bench"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/bench"),
        ("AWS_LAMBDA_LOG_STREAM_NAME", "bench"),
        ("STACK", "bench"),
        ("BUCKET", &s3.bucket),
        ("MODEL_TTL", "5"),
        ("PATH", "/usr/bin:/bin"),
        ("LANG", "C.UTF-8"),
    ];
    common.extend(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let rust = |name, program: &str| Contender {
        name,
        command: vec![root.join(program).display().to_string()],
        env: common.clone(),
        log: root.join(format!("target/bench/{}.log", name.replace(' ', "-"))),
    };
    let python = |name, folder: &str| {
        let paths = [peers.join(folder), peers.join("awslambdaric")];
        let paths = paths.map(|p| p.display().to_string()).join(":");
        let mut env = common.clone();
        env.push(("PYTHONPATH".into(), paths));
        env.push((
            "LAMBDA_TASK_ROOT".into(),
            peers.join(folder).display().to_string(),
        ));
        env.push(("_HANDLER".into(), "fn.handler".into()));
        Contender {
            name,
            command: [&python, "-m", "awslambdaric", "fn.handler"]
                .map(str::to_owned)
                .into(),
            env,
            log: root.join(format!("target/bench/{folder}.log")),
        }
    };
    let all = vec![
        rust(OURS, "target/release/bootstrap"),
        rust(EMPTY, "target/release/empty"),
        python(PLAIN, "plain"),
        python(SKLEARN, "sklearn"),
        python(ONNX, "onnx"),
    ];
    for contender in &all {
        let program = &contender.command[0];
        ensure!(
            !program.contains('/') || Path::new(program).exists(),
            "{program} is missing: run `make bench`"
        );
    }
    Ok(all)
}
