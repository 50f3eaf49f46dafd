//! The deployer and the client are built together with the notebooks' library, against the shared standard
//! library (see setup.py); this tells them where that lies, so that they run without Cargo.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=../notebooks/kernel/rpath.rs");
    let rustc = std::env::var_os("RUSTC").expect("Cargo sets RUSTC for build scripts");
    let output = Command::new(rustc)
        .args(["--print", "target-libdir"])
        .output();
    let libdir = output
        .expect("the compiler that runs this build also answers questions")
        .stdout;
    println!(
        "cargo::rustc-link-arg-bins=-Wl,-rpath,{}",
        String::from_utf8_lossy(&libdir).trim()
    );
}
