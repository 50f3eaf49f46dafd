//! Everything the notebooks use, linked once into one shared library, so that a cell compiles in under
//! a second: the crates themselves, re-exported as they are, and the few helpers that show things.
//!
//! A notebook starts with `use workshop::*;` and from there on names each crate as anywhere else.

pub use {
    aws_config, aws_sdk_lambda, aws_sdk_s3, base64, client, iris_fn, linfa, linfa_logistic,
    ndarray, plotters, polars, rumqttc, serde_json,
};

/// The one Tokio in a kernel. Cells reach it as the crate `tokio`, by way of `notebooks/kernel/tokio`.
pub mod kernel {
    use std::pin::Pin;

    pub use tokio;
    use tokio::runtime::Runtime;

    /// A runtime that is never dropped.
    ///
    /// # Errors
    /// When the system gives it no threads.
    pub fn runtime() -> std::io::Result<&'static Runtime> {
        Ok(Box::leak(Box::new(Runtime::new()?)))
    }

    /// Run `future` to its end: compiled here, once, and not in each cell.
    pub fn block_on(runtime: &Runtime, future: Pin<&mut dyn Future<Output = ()>>) {
        runtime.block_on(future);
    }
}

mod before;
mod figure;
mod lesson;
mod show;

pub use before::{Missing, live_function, trained_model};
pub use figure::{COLOURS, Drawn, Figure, figure};
pub use lesson::{certificate, check};
use show::escape;
pub use show::{excerpt, report, table};

/// A setting that `make` hands to the kernel, such as `STACK`.
///
/// # Panics
/// When the notebook was opened without `make lab`; the message says so.
pub fn setting(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: start JupyterLab with `make lab`"))
}

/// The folder that `make device` wrote for a device: another one for each stack, account and region.
///
/// # Errors
/// When `make` fails, with its message.
pub fn device_folder(name: &str, stack: &str) -> std::io::Result<String> {
    let settings = [format!("NAME={name}"), format!("STACK={stack}")];
    let make = std::process::Command::new("make")
        .args(["-s", "device-dir"])
        .args(settings)
        .output()?;
    if !make.status.success() {
        return Err(std::io::Error::other(String::from_utf8_lossy(&make.stderr)));
    }
    Ok(String::from_utf8_lossy(&make.stdout).trim().to_owned())
}

/// Before the first cell runs: choose which of the linked cryptographic libraries rustls uses, and make a panic in a
/// cell print a line or two, with what happened and what it means for the reader.
extern "C" fn prepare() {
    use rumqttc::tokio_rustls::rustls::crypto::aws_lc_rs;
    let _ = aws_lc_rs::default_provider().install_default();
    std::panic::set_hook(Box::new(|info| {
        // A second panic follows at the edge of the cell, in the compiler's own code; it adds nothing.
        if !info
            .location()
            .is_some_and(|location| location.file().starts_with("/rustc/"))
        {
            let message = info.payload_as_str().unwrap_or("a panic");
            eprintln!(
                "{message}\nThe kernel's process has ended and its variables are lost: run the notebook from the top."
            );
        }
    }));
}

// Runs when the library is loaded, before any cell.
#[used]
#[allow(
    unsafe_code,
    reason = "placing a function pointer where the loader looks for constructors"
)]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_os = "macos"), unsafe(link_section = ".init_array"))]
static ON_LOAD: extern "C" fn() = prepare;
