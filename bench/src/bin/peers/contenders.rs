//! Who takes part, what all of them serve, and what they are asked.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::body::Bytes;
use client::table::{Label, Table};
use iris_fn::model::{CURRENT_KEY, KIND, SCHEMA};
use iris_fn::{Description, Feature, GoldenRow, Model, ModelFile, Training};
use serde_json::Value;

use crate::runtime_api::Contender;

const CSV: &str = include_str!("../../../../data/iris.csv");
const REFERENCE: &str = include_str!("../../../../iris_fn/tests/reference.json");
/// Contenders, as the report names them.
pub const OURS: &str = "iris_fn";
pub const EMPTY: &str = "empty lambda_runtime";
pub const PLAIN: &str = "plain Python";
pub const SKLEARN: &str = "scikit-learn";
pub const ONNX: &str = "onnxruntime";

/// The model that all contenders serve, scikit-learn's own fit of the workshop's data; and the data's rows.
pub fn model_and_rows() -> Result<(ModelFile, Vec<Vec<f64>>)> {
    let reference: Value = serde_json::from_str(REFERENCE)?;
    let numbers = |v: &Value| -> Vec<f64> {
        let list = v.as_array().map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(Value::as_f64).collect()
    };
    let header: Vec<&str> = CSV.lines().next().unwrap_or_default().split(',').collect();
    let (target, names) = header.split_last().context("the data has no header")?;
    let feature = |name: &&str| Feature {
        name: (*name).into(),
        unit: "cm".into(),
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
        accept: [0.0, 100.0],
    };
    let mut features: Vec<Feature> = names.iter().map(feature).collect();
    let (mut rows, mut classes) = (Vec::new(), Vec::new());
    let description = Description {
        target: (*target).into(),
        features: features.clone(),
        classes: Vec::new(),
        model: String::new(),
    };
    for row in Table::read(CSV.as_bytes(), &description)?.rows {
        let row = row?;
        for (feature, x) in features.iter_mut().zip(&row.values) {
            (feature.min, feature.max) = (feature.min.min(*x), feature.max.max(*x));
        }
        if let Some(Label::Class(label) | Label::Other(label)) = row.label
            && !classes.contains(&label)
        {
            classes.push(label);
        }
        rows.push(row.values);
    }
    let weights = reference["weights_class_by_feature"].as_array();
    let mut file = ModelFile {
        schema: SCHEMA,
        kind: KIND.into(),
        target: (*target).into(),
        features,
        classes,
        weights: weights.into_iter().flatten().map(numbers).collect(),
        intercepts: numbers(&reference["intercepts"]),
        training: Training {
            data_sha256: iris_fn::model::sha256_hex(CSV.as_bytes()),
            rows: rows.len(),
            alpha: 1.0,
            ..Training::default()
        },
        golden: vec![],
    };
    // As many as notebook 1 writes.
    let golden = |row: &Vec<f64>| GoldenRow {
        features: row.clone(),
        probabilities: file.probabilities(row),
    };
    file.golden = rows.iter().step_by(10).map(golden).collect();
    Ok((file, rows))
}

/// What the contenders are asked.
pub struct Requests {
    description: Description,
    rows: Vec<Vec<f64>>,
}

impl Requests {
    pub fn new(model: &Model, rows: Vec<Vec<f64>>) -> Self {
        Self {
            description: Description::of(model),
            rows,
        }
    }

    /// The data's rows, again and again.
    pub fn rows(&self, count: usize) -> impl Iterator<Item = &[f64]> {
        self.rows.iter().map(Vec::as_slice).cycle().take(count)
    }

    /// A request about one row of the data, from 0.
    pub fn single(&self, row: usize) -> Bytes {
        let request = self
            .description
            .request("3f1c9a52-7d0e-4b58-9a31-0c2d6e8f7b14", &self.rows[row]);
        request.to_string().into()
    }

    /// A request about `size` rows.
    pub fn batch(&self, size: usize) -> Bytes {
        self.description
            .batch("batch", self.rows(size))
            .to_string()
            .into()
    }
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
