//! A file's bytes as text: decompressed, and decoded.

use std::io::Read;

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use flate2::read::MultiGzDecoder;

use super::TableError;

/// The most decompressed bytes that are read: one device would need weeks to ask about so many rows.
pub const MOST_BYTES: usize = 256 << 20;

/// How files begin that are not CSV, what they are, and how to get a CSV from them.
const OTHERS: [(&[u8], &str, &str); 10] = [
    (
        b"PK\x03\x04",
        "an Excel workbook or a zip archive",
        "save it as \"CSV UTF-8\", or unpack it",
    ),
    (
        b"\xd0\xcf\x11\xe0",
        "an old Excel workbook",
        "save it as \"CSV UTF-8\"",
    ),
    (b"PAR1", "a Parquet file", "write it with `to_csv`"),
    (b"ARROW1", "an Arrow file", "write it with `to_csv`"),
    (b"BZh", "packed by bzip2", "unpack it, or pack it with gzip"),
    (
        b"\xfd7zXZ",
        "packed by xz",
        "unpack it, or pack it with gzip",
    ),
    (
        b"\x28\xb5\x2f\xfd",
        "packed by zstd",
        "unpack it, or pack it with gzip",
    ),
    (b"{", "JSON", "write it as CSV"),
    (b"@", "Weka's ARFF", "write it as CSV"),
    (b"<", "a web page or XML", "download the file itself"),
];

/// The text, and what else than plain UTF-8 the file was.
pub(super) fn read(bytes: &[u8]) -> Result<(String, Vec<String>), TableError> {
    let mut form = Vec::new();
    let mut unpacked = Vec::new();
    let bytes = if bytes.starts_with(b"\x1f\x8b") {
        form.push("unpacked by gzip".to_owned());
        let most = MOST_BYTES as u64 + 1;
        let packed = MultiGzDecoder::new(bytes)
            .take(most)
            .read_to_end(&mut unpacked);
        packed.map_err(TableError::Gzip)?;
        &unpacked[..]
    } else {
        bytes
    };
    if bytes.len() > MOST_BYTES {
        return Err(TableError::TooLarge);
    }
    if let Some((_, found, instead)) = OTHERS.iter().find(|other| bytes.starts_with(other.0)) {
        return Err(TableError::NotText { found, instead });
    }
    let encoding = match (Encoding::for_bom(bytes), bytes) {
        (Some((encoding, _)), _) => encoding,
        // Only UTF-16 has a zero next to each English letter.
        (None, [_, 0, ..]) => UTF_16LE,
        (None, [0, _, ..]) => UTF_16BE,
        (None, _) => {
            Encoding::for_label(csv_nose::detect_encoding(bytes).name.as_bytes()).unwrap_or(UTF_8)
        }
    };
    if encoding != UTF_8 {
        form.push(encoding.name().to_owned());
    }
    let (text, ..) = encoding.decode(bytes);
    // DOS ended a text file with this.
    let text = text.trim_end_matches('\x1a');
    if text.contains(|c: char| c.is_control() && !c.is_whitespace()) {
        let (found, instead) = ("not text", "save it as CSV");
        return Err(TableError::NotText { found, instead });
    }
    Ok((text.to_owned(), form))
}
