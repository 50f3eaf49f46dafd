//! The work of one call without the cloud around it: bytes in, prediction out, bytes back; for a model of 4 features
//! and 3 classes, and for one of 64 and 10.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use iris_fn::model::{KIND, SCHEMA};
use iris_fn::request::{Question, Request};
use iris_fn::{Description, Feature, GoldenRow, Model, ModelFile, Training};

const BATCH: usize = 10_000;

/// A model of this size, with weights and ranges as they usually are.
fn model(features: usize, classes: usize) -> Model {
    let feature = |f| Feature {
        name: format!("feature_number_{f}"),
        unit: "cm".into(),
        min: 0.1,
        max: 7.9,
        accept: [0.0, 100.0],
    };
    let weight = |k: usize, f: usize| ((k * 37 + f * 11) % 50) as f64 / 10.0 - 2.5;
    let mut file = ModelFile {
        schema: SCHEMA,
        kind: KIND.into(),
        target: "target".into(),
        features: (0..features).map(feature).collect(),
        classes: (0..classes).map(|k| format!("class_{k}")).collect(),
        weights: (0..classes)
            .map(|k| (0..features).map(|f| weight(k, f)).collect())
            .collect(),
        intercepts: (0..classes).map(|k| k as f64).collect(),
        training: Training::default(),
        golden: vec![],
    };
    let features = row(features, 0);
    let probabilities = file.probabilities(&features);
    file.golden.push(GoldenRow {
        features,
        probabilities,
    });
    Model::from_bytes(&file.to_bytes()).expect("the bench's own model is valid")
}

/// Values all over the range.
fn row(features: usize, n: usize) -> Vec<f64> {
    (0..features)
        .map(|f| 0.1 + ((n * 37 + f * 11) % 78) as f64 / 10.0)
        .collect()
}

fn hot(c: &mut Criterion) {
    for (features, classes) in [(4, 3), (64, 10)] {
        let model = model(features, classes);
        let description = Description::of(&model);
        let one = row(features, 1);
        let request = description
            .request("3f1c9a52-7d0e-4b58-9a31-0c2d6e8f7b14", &one)
            .to_string();
        let mut group = c.benchmark_group(format!("one row, {features} × {classes}"));
        group.bench_function("read", |b| {
            b.iter(|| Request::from_bytes(black_box(request.as_bytes()), model.file()))
        });
        group.bench_function("predict", |b| b.iter(|| model.predict(black_box(&one))));
        let prediction = model.predict(&one);
        group.bench_function("write", |b| {
            b.iter(|| serde_json::to_vec(black_box(&prediction)))
        });
        group.finish();

        let rows: Vec<Vec<f64>> = (0..BATCH).map(|n| row(features, n)).collect();
        let request = description
            .batch("batch", rows.iter().map(Vec::as_slice))
            .to_string();
        let mut group = c.benchmark_group(format!("10,000 rows, {features} × {classes}"));
        group.throughput(Throughput::Elements(BATCH as u64));
        group.bench_function("read", |b| {
            b.iter_batched(
                || request.as_bytes(),
                |bytes| match Request::from_bytes(bytes, model.file()).map(|r| r.question) {
                    Ok(Question::Batch(rows)) => rows,
                    other => panic!("a batch was sent: {other:?}"),
                },
                BatchSize::LargeInput,
            );
        });
        group.bench_function("predict", |b| {
            b.iter(|| {
                rows.iter()
                    .map(|row| model.predict(row).probabilities)
                    .collect::<Vec<_>>()
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = hot
}
criterion_main!(benches);
