pub use workshop::tokio::*;
