//! A CSV file's columns as a model's features: for all who ask about a file of rows.

use std::io::Read;

use csv::{Position, Reader, ReaderBuilder, StringRecord, Trim};
use thiserror::Error;

use crate::model::Feature;

/// A row as the model wants it, with its line in the file and the right answer where the file has one.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Line in the file, from 1.
    pub line: u64,
    /// In the order of the model's features.
    pub values: Vec<f64>,
    /// What the file's label column says; `None` without such a column or where it is empty.
    pub label: Option<String>,
}

/// Why a file or a row of it cannot be asked about.
#[derive(Debug, Error)]
pub enum TableError {
    /// The file is not CSV.
    #[error("{0}")]
    Csv(#[from] csv::Error),
    /// There is no first line.
    #[error("the file is empty: its first line names the columns, {0}")]
    Empty(String),
    /// A feature of the model that no column of the file is.
    #[error("no column is {missing}: the file has {found}, the model asks for {wanted}")]
    Missing {
        /// The features without a column.
        missing: String,
        /// The file's columns.
        found: String,
        /// The model's features.
        wanted: String,
    },
    /// More than one column of the file could be a feature.
    #[error("{columns} could each be `{feature}`: rename or delete all but one")]
    Ambiguous {
        /// The model's feature, or its target.
        feature: String,
        /// The columns that are meant by it.
        columns: String,
    },
    /// A value that is not a number.
    #[error("line {line}: `{column}` is {found:?}, not a number that JSON knows")]
    NotANumber {
        /// Line in the file, from 1.
        line: u64,
        /// The file's own name of the column.
        column: String,
        /// What the file says.
        found: String,
    },
}

/// A CSV file that is read row by row.
pub struct Table<R> {
    reader: Reader<R>,
    /// The file's own names.
    header: StringRecord,
    /// For each feature of the model, its column in the file.
    columns: Vec<usize>,
    label: Option<usize>,
    /// What became what, where the names differ.
    renamed: Vec<(String, String)>,
}

impl<R: Read> Table<R> {
    /// Read the header, and find a column for each feature, in whatever order: by its exact name first, then
    /// forgiving case, spaces, dots, underscores and units (`Plant.Height`, `PlantHeightCm`, `plant height (cm)`).
    ///
    /// # Errors
    /// [`TableError`] says which feature has no column, or more than one.
    pub fn open(input: R, features: &[Feature], target: &str) -> Result<Self, TableError> {
        let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(input);
        let header = reader.headers()?.clone();
        let wanted = list(features.iter().map(|feature| &*feature.name));
        if header.is_empty() {
            return Err(TableError::Empty(wanted));
        }
        let (mut columns, mut missing, mut renamed) = (Vec::new(), Vec::new(), Vec::new());
        let mut note = |column: usize, name: &str| {
            if &header[column] != name {
                renamed.push((header[column].to_owned(), name.to_owned()));
            }
            column
        };
        for feature in features {
            match find(&header, &feature.name, &feature.unit)? {
                Some(column) => columns.push(note(column, &feature.name)),
                None => missing.push(&*feature.name),
            }
        }
        if !missing.is_empty() {
            let (missing, found) = (list(missing.into_iter()), list(header.iter()));
            return Err(TableError::Missing {
                missing,
                found,
                wanted,
            });
        }
        let label = find(&header, target, "")?.map(|column| note(column, target));
        Ok(Self {
            reader,
            header,
            columns,
            label,
            renamed,
        })
    }

    /// Columns that were taken for a feature of another name: the file's name, and the model's.
    pub fn renamed(&self) -> &[(String, String)] {
        &self.renamed
    }

    /// The rows, or what is wrong with each.
    pub fn rows(self) -> impl Iterator<Item = Result<Row, TableError>> {
        let Self {
            reader,
            header,
            columns,
            label,
            ..
        } = self;
        reader.into_records().map(move |record| {
            let record = record?;
            let line = record.position().map_or(0, Position::line);
            let value = |column: &usize| {
                let found = record.get(*column).unwrap_or_default();
                match found.parse::<f64>() {
                    Ok(x) if x.is_finite() => Ok(x),
                    _ => {
                        let (column, found) = (header[*column].to_owned(), found.to_owned());
                        Err(TableError::NotANumber {
                            line,
                            column,
                            found,
                        })
                    }
                }
            };
            let values = columns.iter().map(value).collect::<Result<_, _>>()?;
            let label = label
                .and_then(|column| record.get(column))
                .filter(|label| !label.is_empty());
            Ok(Row {
                line,
                values,
                label: label.map(str::to_owned),
            })
        })
    }
}

/// The one column that is `name`; `None` when there is none.
fn find(header: &StringRecord, name: &str, unit: &str) -> Result<Option<usize>, TableError> {
    let columns = |is: &dyn Fn(&str) -> bool| -> Vec<usize> {
        (0..header.len()).filter(|c| is(&header[*c])).collect()
    };
    let mut found = columns(&|column| column == name);
    if found.is_empty() && !letters(name).is_empty() {
        let (bare, with_unit) = (letters(name), letters(name) + &letters(unit));
        found = columns(&|column| [&bare, &with_unit].contains(&&letters(column)));
    }
    if found.len() > 1 {
        let (feature, columns) = (name.to_owned(), list(found.iter().map(|c| &header[*c])));
        return Err(TableError::Ambiguous { feature, columns });
    }
    Ok(found.pop())
}

/// A name without case, punctuation and what stands in brackets.
fn letters(name: &str) -> String {
    let outside = name.split(['(', '[']).next().unwrap_or_default();
    outside
        .chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
