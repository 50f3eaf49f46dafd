//! The code zip.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use iris_fn::model::sha256_hex;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// Zip `bootstrap` for Lambda. Timestamps and mode are fixed, so that the same program always has the same SHA-256,
/// which is its name in the bucket.
pub fn package(bootstrap: &Path, zip: &Path) -> Result<()> {
    let program = fs::read(bootstrap).with_context(|| {
        format!(
            "cannot read {}: run `make build` first",
            bootstrap.display()
        )
    })?;
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .compression_level(Some(9))
        .last_modified_time(DateTime::default())
        .unix_permissions(0o755);
    fs::create_dir_all(zip.parent().unwrap_or(Path::new(".")))?;
    // Write to another name, then rename: a killed build never leaves half a zip under the real name.
    let partial = zip.with_extension("partial");
    let mut writer = ZipWriter::new(
        File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?,
    );
    writer.start_file("bootstrap", options)?;
    writer.write_all(&program)?;
    writer.finish()?;
    fs::rename(&partial, zip)?;

    let bytes = fs::read(zip)?;
    println!(
        "{}  {:.1} MB  sha256 {}",
        zip.display(),
        bytes.len() as f64 / 1e6,
        sha256_hex(&bytes)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_program_always_gives_the_same_zip() {
        let dir = std::env::temp_dir().join(format!("iris-package-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let bootstrap = dir.join("bootstrap");
        fs::write(&bootstrap, b"a program").unwrap();
        package(&bootstrap, &dir.join("1.zip")).unwrap();
        package(&bootstrap, &dir.join("2.zip")).unwrap();
        assert_eq!(
            fs::read(dir.join("1.zip")).unwrap(),
            fs::read(dir.join("2.zip")).unwrap()
        );
        fs::remove_dir_all(&dir).unwrap();
    }
}
