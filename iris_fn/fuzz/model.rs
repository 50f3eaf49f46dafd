//! Whatever lies in the bucket: a model that keeps its word, or the reason why it is not trusted.
#![no_main]

use iris_fn::model::GOLDEN_TOLERANCE;
use iris_fn::{Flower, Model};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Model::from_bytes(bytes) {
        Ok(model) => {
            for row in &model.file().golden {
                let found = model.predict(&Flower::from(row.features)).probabilities;
                for (p, expected) in found.into_iter().zip(row.probabilities) {
                    assert!((p - expected).abs() <= GOLDEN_TOLERANCE);
                }
            }
            // Written again it is the same model, to the bit.
            let again = Model::from_bytes(&model.file().to_bytes()).expect("it was good before");
            assert_eq!(again.file(), model.file());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
