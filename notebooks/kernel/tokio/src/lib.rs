//! The Tokio that is linked into `workshop`, under the name that evcxr looks for.
pub use workshop::kernel::tokio::*;
