//! What a notebook shows: tables, parts of files, results.

use std::io::{Error, Result};

use polars::prelude::{AnyValue, DataFrame};

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Show a data frame as a table, floats with up to four decimals.
pub fn table(frame: &DataFrame) {
    let cell = |value: &AnyValue| match value {
        AnyValue::Float64(x) => format!("{}", (x * 1e4).round() / 1e4),
        value => escape(&value.str_value()),
    };
    let mut html = String::from("<table><thead><tr>");
    for name in frame.get_column_names() {
        html += &format!("<th>{}</th>", escape(name));
    }
    html += "</tr></thead><tbody>";
    for row in 0..frame.height() {
        html += "<tr>";
        for column in frame.columns() {
            html += &format!(
                "<td>{}</td>",
                column.get(row).as_ref().map(cell).unwrap_or_default()
            );
        }
        html += "</tr>";
    }
    evcxr_runtime::mime_type("text/html").text(html + "</tbody></table>");
}

/// Print part of a file of the project: from the line that contains `first` to the next one that contains `last`.
/// A notebook that shows code this way cannot differ from it.
///
/// # Errors
/// When the file cannot be read, or has no such lines.
pub fn excerpt(file: &str, first: &str, last: &str) -> Result<()> {
    println!("{}", part(file, first, last)?);
    Ok(())
}

fn part(file: &str, first: &str, last: &str) -> Result<String> {
    let text =
        std::fs::read_to_string(file).map_err(|e| Error::new(e.kind(), format!("{file}: {e}")))?;
    let lines: Vec<&str> = text.lines().collect();
    let missing =
        |what: &str| Error::other(format!("{file} has no line with `{what}`: was it changed?"));
    let from = lines
        .iter()
        .position(|line| line.contains(first))
        .ok_or_else(|| missing(first))?;
    let length = lines[from..]
        .iter()
        .position(|line| line.contains(last))
        .ok_or_else(|| missing(last))?;
    let chosen = &lines[from..=from + length];
    let indent = chosen
        .iter()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.len() - line.trim_start().len());
    let indent = indent.min().unwrap_or(0);
    let text: Vec<&str> = chosen
        .iter()
        .map(|line| line.get(indent..).unwrap_or(""))
        .collect();
    Ok(format!(
        "{file}, from line {}\n\n{}",
        from + 1,
        text.join("\n")
    ))
}

/// Publish a notebook's results as data: displayed as JSON, and collected by `make demo`.
pub fn report(results: &serde_json::Value) {
    evcxr_runtime::mime_type("application/json").text(results.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_file_comes_without_its_indentation() {
        let found = part("src/show.rs", "fn a_part_of_a_file_comes", "let found").unwrap();
        assert!(found.starts_with("src/show.rs, from line "), "{found}");
        assert_eq!(found.lines().count(), 4);
        assert!(
            found.lines().nth(3).unwrap().starts_with("    let found"),
            "{found}"
        );
    }

    #[test]
    fn a_part_that_is_not_there_is_an_error_that_says_so() {
        let error_of = |file, first, last| part(file, first, last).unwrap_err().to_string();
        assert!(error_of("src/none.rs", "a", "b").starts_with("src/none.rs: "));
        let gone = ["no", "where"].concat();
        let expected = format!("src/show.rs has no line with `{gone}`: was it changed?");
        assert_eq!(error_of("src/show.rs", &gone, "b"), expected);
    }
}
