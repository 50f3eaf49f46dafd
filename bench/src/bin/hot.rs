//! The work of one call without the cloud around it: bytes in, prediction out, bytes back.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use iris_fn::model::{CLASSES, FEATURE_NAMES, FEATURES, KIND, SCHEMA};
use iris_fn::request::{Question, Request};
use iris_fn::{Feature, Flower, GoldenRow, Model, ModelFile, Training};

const SINGLE: &[u8] = br#"{"request_id":"3f1c9a52-7d0e-4b58-9a31-0c2d6e8f7b14","sepal_length":5.1,"sepal_width":3.5,"petal_length":1.4,"petal_width":0.2}"#;
const BATCH: usize = 10_000;

/// Weights and ranges of the usual size.
fn model() -> Model {
    let mut file = ModelFile {
        schema: SCHEMA,
        kind: KIND.into(),
        features: FEATURE_NAMES.map(|name| Feature {
            name: name.into(),
            unit: "cm".into(),
            min: 0.1,
            max: 7.9,
        }),
        classes: ["setosa", "versicolor", "virginica"].map(String::from),
        weights: [
            [-0.4, 1.0, -2.5, -1.1],
            [0.5, -0.3, -0.2, -0.9],
            [-0.1, -0.7, 2.7, 2.0],
        ],
        intercepts: [9.8, 2.2, -12.0],
        training: Training {
            rows: 150,
            alpha: 1.0,
            ..Training::default()
        },
        golden: vec![],
    };
    let features = [5.1, 3.5, 1.4, 0.2];
    let probabilities = file.probabilities(&features);
    file.golden.push(GoldenRow {
        features,
        probabilities,
    });
    Model::from_bytes(&file.to_bytes()).expect("the bench's own model is valid")
}

/// Flowers all over the plausible range.
fn flowers() -> Vec<Flower> {
    let spread = |i: usize, f: usize| 0.1 + ((i * 37 + f * 11) % 78) as f64 / 10.0;
    (0..BATCH)
        .map(|i| Flower::from(std::array::from_fn::<_, FEATURES, _>(|f| spread(i, f))))
        .collect()
}

fn hot(c: &mut Criterion) {
    let model = model();
    let flowers = flowers();
    c.bench_function("read one request", |b| {
        b.iter(|| Request::from_bytes(black_box(SINGLE)));
    });
    c.bench_function("predict one flower", |b| {
        b.iter(|| model.predict(black_box(&flowers[0])));
    });
    c.bench_function("write one prediction", |b| {
        let prediction = model.predict(&flowers[0]);
        b.iter(|| serde_json::to_vec(black_box(&prediction)));
    });

    let objects: Vec<serde_json::Value> = flowers
        .iter()
        .map(|flower| {
            FEATURE_NAMES
                .iter()
                .zip(flower.features())
                .map(|(n, x)| ((*n).to_owned(), serde_json::Value::from(x)))
                .collect()
        })
        .collect();
    let request = serde_json::json!({"request_id": "batch", "flowers": objects}).to_string();
    let mut group = c.benchmark_group("10,000 flowers");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("read", |b| {
        b.iter_batched(
            || request.as_bytes(),
            |bytes| match Request::from_bytes(bytes).map(|r| r.question) {
                Ok(Question::Batch(flowers)) => flowers,
                other => panic!("a batch was sent: {other:?}"),
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("predict", |b| {
        b.iter(|| {
            flowers
                .iter()
                .map(|f| model.predict(f).probabilities)
                .collect::<Vec<[f64; CLASSES]>>()
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = hot
}
criterion_main!(benches);
