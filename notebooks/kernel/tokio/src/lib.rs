//! The Tokio that is linked into `workshop`, under the name that evcxr looks for.
pub use workshop::kernel::tokio::*;

/// Tokio's own, but for the runtime in which evcxr runs each cell.
pub mod runtime {
    use std::future::Future;
    use std::pin::pin;

    pub use workshop::kernel::tokio::runtime::*;

    /// The kernel's runtime. It lives as long as the kernel, and drives a cell's future behind a pointer: so a cell
    /// compiles neither Tokio's scheduler nor its destructors, which would take longer than the cell itself.
    pub struct Runtime(&'static workshop::kernel::tokio::runtime::Runtime);

    impl Runtime {
        /// A runtime with a thread for each core.
        pub fn new() -> std::io::Result<Self> {
            workshop::kernel::runtime().map(Self)
        }

        /// Run `future` to its end.
        pub fn block_on<F: Future>(&self, future: F) -> F::Output {
            let mut output = None;
            workshop::kernel::block_on(self.0, pin!(async { output = Some(future.await) }));
            output.expect("block_on returns when the future is done")
        }
    }
}
