//! A CSV file, as people have them, as rows that a model can be asked about.
//!
//! * [`text`]: decompresses and decodes the file. Where the encoding is not declared, chardetng detects it.
//! * csv-nose proposes the separator, by how even the table is; the model's own names decide.
//! * [`columns`]: which column is which feature, and in which unit.
//! * [`labels`]: which class a label is, however it is spelled.
//!
//! What is certain is accepted and listed in [`Table::notes`]. Everything else is an error that names what was found and
//! what would help: a wrong answer is worse than none.

mod columns;
mod labels;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use csv::{ReaderBuilder, StringRecord, Trim};
use csv_nose::{Quote, Sniffer};
use iris_fn::{Description, Feature};
use thiserror::Error;

use columns::{Unit, find, find_all, letters};
pub use labels::Label;
pub use text::MOST_BYTES;

/// A row as the model wants it, with its line in the file and the right answer where the file has one.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Line in the file, from 1.
    pub line: u64,
    /// In the order of the model's features, in its units.
    pub values: Vec<f64>,
    /// What the file's label column says; `None` without such a column or where it is empty.
    pub label: Option<Label>,
}

/// A file's rows, and how it was read.
#[derive(Debug)]
pub struct Table {
    /// The rows in their order, or why one cannot be asked about.
    pub rows: Vec<Result<Row, RowError>>,
    /// How the file was read, where it differs from a plain CSV with the model's names: a sentence each.
    pub notes: Vec<String>,
}

/// Why a file cannot be asked about: what was found, what is wanted, and what helps.
#[derive(Debug, Error)]
pub enum TableError {
    /// There is nothing in it.
    #[error(
        "the file is empty; expected a first line with the names {wanted}, and then a row for each prediction"
    )]
    Empty {
        /// The model's features.
        wanted: String,
    },
    /// There are names, and nothing below them.
    #[error(
        "the file has a line of names, and no row below it; expected a row for each prediction"
    )]
    NoRows,
    /// It is not text.
    #[error("the file is {found}, expected a text of rows: {instead}")]
    NotText {
        /// What it is.
        found: &'static str,
        /// What helps.
        instead: &'static str,
    },
    /// The gzip file is damaged.
    #[error("the gzip file is damaged or cut off ({0}): fetch or pack it again")]
    Gzip(std::io::Error),
    /// It has more bytes than are read.
    #[error("the file has more than {} MiB: ask about a part of it at a time", MOST_BYTES >> 20)]
    TooLarge,
    /// The file is not CSV.
    #[error("{0}")]
    Csv(#[from] csv::Error),
    /// No row has as many fields as there are names.
    #[error(
        "the line of names has {wanted} fields, and no row has as many (line {line} has {found}): let the names and the rows have \
         the same number of fields, with the same separator"
    )]
    Fields {
        /// Fields of the line of names.
        wanted: usize,
        /// The first row, by its line in the file.
        line: u64,
        /// Its fields.
        found: usize,
    },
    /// A feature of the model has no column in the file.
    #[error("no column is {missing}: the file has {found}, the model asks for {wanted}; {help}")]
    Missing {
        /// The features without a column.
        missing: String,
        /// The file's columns.
        found: String,
        /// The model's features.
        wanted: String,
        /// None has a column.
        all: bool,
        /// What to do.
        help: String,
    },
    /// More than one column of the file could be a feature or the target.
    #[error("columns {columns} could each be `{name}`: rename or delete all but one")]
    Ambiguous {
        /// The model's feature, or its target.
        name: String,
        /// The columns that are meant by it.
        columns: String,
    },
    /// A column in a unit that is not known.
    #[error(
        "column `{column}` seems to be `{name}` in {found:?}, the model asks for {unit}: convert its values, and call it `{name}`"
    )]
    Unit {
        /// The file's own name of the column.
        column: String,
        /// What stands in place of the unit.
        found: String,
        /// The model's feature.
        name: String,
        /// The unit of the feature.
        unit: String,
    },
    /// There are no names, and the columns are not those of the model.
    #[error(
        "the file's first line names no columns (it has {found}), and {why}: put a first line above it with the name of each \
         column, among them {wanted}"
    )]
    NoHeader {
        /// The first line.
        found: String,
        /// Why the columns cannot be recognized by their order.
        why: String,
        /// The model's features.
        wanted: String,
    },
    /// Values as they would be in another unit, in a file that does not say which.
    #[error(
        "`{column}` is {found} in the file, and {min} to {max} {unit} in training: it looks like {other}; let the first line \
         name it `{column} ({other})`, and it is converted, or `{column} ({unit})` if it is right"
    )]
    Scale {
        /// The file's own name of the column.
        column: String,
        /// Smallest and largest value in the file.
        found: String,
        /// Smallest value in training.
        min: f64,
        /// Largest value in training.
        max: f64,
        /// The model's unit.
        unit: String,
        /// The unit in which they would be like those of training.
        other: String,
    },
}

/// Why one row cannot be asked about.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum RowError {
    /// There is no value.
    #[error("line {line}: `{column}` is missing ({found:?})")]
    MissingValue {
        /// Line in the file, from 1.
        line: u64,
        /// The file's own name of the column.
        column: String,
        /// What the file has instead.
        found: String,
    },
    /// A value is not a number.
    #[error("line {line}: `{column}` is {found:?}, expected a number such as {example}")]
    NotANumber {
        /// Line in the file, from 1.
        line: u64,
        /// The file's own name of the column.
        column: String,
        /// The text in the file.
        found: String,
        /// A value of the training data.
        example: f64,
    },
    /// Too many fields: the values may be in the wrong columns.
    #[error(
        "line {line} has {found} fields, the other lines have {wanted}: delete what is too much, or put it in quotes"
    )]
    TooMany {
        /// Line in the file, from 1.
        line: u64,
        /// Fields of the line.
        found: usize,
        /// Fields of the others.
        wanted: usize,
    },
    /// Too few fields: see [`RowError::TooMany`].
    #[error("line {line} has {found} of {wanted} fields: add what is missing")]
    TooFew {
        /// Line in the file, from 1.
        line: u64,
        /// Fields of the line.
        found: usize,
        /// Fields of the others.
        wanted: usize,
    },
}

/// Separators to try, after the one that the sniffer proposes.
const SEPARATORS: [u8; 6] = [b',', b';', b'\t', b'|', b':', b' '];
/// How many lines are searched for the line of names.
const HEAD: usize = 20;
/// How many names a message lists.
const LISTED: usize = 16;
/// How many bytes the sniffer reads.
const SAMPLE: usize = 64 << 10;
/// How a missing value is written, in lower case: by R, pandas, Excel in two languages, databases and people.
const MISSING: [&str; 15] = [
    "", "na", "n/a", "#n/a", "#na", "#nv", "nan", "null", "\\n", "nil", "none", "missing", "?",
    "-", ".",
];
/// Generic names of a label column.
const TARGETS: [&str; 4] = ["target", "class", "label", "y"];

/// Which column is what.
struct Layout {
    /// Where the rows begin.
    rows: usize,
    /// The columns' names; empty without a line of them.
    header: StringRecord,
    columns: Vec<(usize, Unit)>,
    label: Option<usize>,
    /// The class names that the numbers of the label column count, where the file has them.
    counted: Option<Vec<String>>,
    notes: Vec<String>,
}

type Line = (u64, StringRecord);

impl Table {
    /// Read a whole file.
    ///
    /// # Errors
    /// [`TableError`] where the file cannot be read with certainty.
    pub fn read(bytes: &[u8], model: &Description) -> Result<Self, TableError> {
        let wanted = || list(model.features.iter().map(|feature| &*feature.name));
        let (text, mut form) = text::read(bytes)?;
        let (separator, text) = excel_separator(&text);
        if text.trim().is_empty() {
            return Err(TableError::Empty { wanted: wanted() });
        }
        let end = text.floor_char_boundary(SAMPLE);
        let sample = &text[..text[..end]
            .rfind('\n')
            .filter(|_| end < text.len())
            .unwrap_or(end)];
        let mut sniffer = Sniffer::new();
        if let Some(separator) = separator {
            sniffer.delimiter(separator);
        }
        let sniffed = sniffer
            .sniff_bytes(sample.as_bytes())
            .map(|found| found.dialect)
            .unwrap_or_default();
        let quote = match sniffed.quote {
            Quote::Some(quote) => quote,
            Quote::None => b'"',
        };
        let mut separators = SEPARATORS.to_vec();
        // A space last: there is one behind each comma of many files.
        if !separators.contains(&sniffed.delimiter) {
            separators.push(sniffed.delimiter);
        }
        separators.sort_by_key(|other| (*other == b' ', *other != sniffed.delimiter));
        if let Some(separator) = separator {
            separators = vec![separator];
        }
        let mut error: Option<TableError> = None;
        for separator in separators {
            let head = lines(sample, separator, quote)
                .take(HEAD)
                .collect::<Result<Vec<_>, _>>()?;
            match Layout::find(&head, model) {
                Ok(_) => {
                    let lines = lines(text, separator, quote).collect::<Result<Vec<_>, _>>()?;
                    let layout = Layout::find(&lines, model)?;
                    if separator != b',' {
                        form.push(format!("separated by {}", named(separator)));
                    }
                    return layout.table(&lines, form, model);
                }
                // The other separators find no names at all.
                Err(e @ (TableError::Ambiguous { .. } | TableError::Unit { .. })) => return Err(e),
                Err(e) => {
                    let better = matches!(
                        e,
                        TableError::Missing { all: false, .. } | TableError::NoHeader { .. }
                    );
                    if error.is_none()
                        || (better && matches!(error, Some(TableError::Missing { all: true, .. })))
                    {
                        error = Some(e);
                    }
                }
            }
        }
        Err(error.unwrap_or(TableError::Empty { wanted: wanted() }))
    }
}

impl Layout {
    /// Find the line of names; without one, recognize the columns by their order where that is certain.
    fn find(lines: &[Line], model: &Description) -> Result<Self, TableError> {
        for (at, (number, line)) in lines.iter().enumerate().take(HEAD) {
            // numpy writes the names as a comment.
            let header: StringRecord = line
                .iter()
                .enumerate()
                .map(|(k, name)| {
                    if k == 0 {
                        name.trim_start_matches('#').trim()
                    } else {
                        name
                    }
                })
                .collect();
            match find_all(&header, &model.features) {
                Ok(columns) => {
                    return Self::named(at, *number, header, columns, &lines[at + 1..], model);
                }
                Err(TableError::Missing { all: true, .. }) => {}
                Err(_) if is_comment(line) => {}
                Err(e) => return Err(e),
            }
        }
        let content = || {
            lines
                .iter()
                .enumerate()
                .filter(|(_, (_, line))| is_row(line))
        };
        let Some((at, (_, first))) = content().next() else {
            return Err(TableError::NoRows);
        };
        if let Some(layout) = Self::of_scikit_learn(at, first, model) {
            return Ok(layout);
        }
        let numbers = first
            .iter()
            .filter(|field| number(field, ',').is_some())
            .count();
        if numbers < model.features.len() {
            // A title has fewer fields than the names below it.
            let names = content()
                .map(|(_, (_, line))| line)
                .rev()
                .max_by_key(|line| line.len())
                .unwrap_or(first);
            return find_all(names, &model.features).and(Err(TableError::NoRows));
        }
        Self::unnamed(at, content().map(|(_, (_, line))| line).collect(), model)
    }

    fn named(
        at: usize,
        line: u64,
        mut header: StringRecord,
        mut columns: Vec<(usize, Unit)>,
        below: &[Line],
        model: &Description,
    ) -> Result<Self, TableError> {
        let rows = || {
            below
                .iter()
                .map(|(_, line)| line)
                .filter(|line| is_row(line))
        };
        let mut notes = Vec::new();
        if at > 0 {
            notes.push(format!(
                "the names are in line {line}; what is above it is left out"
            ));
        }
        // R leaves the name of the rows' own names out: texts or whole numbers, each of them once.
        let width = header.len();
        let mut names = BTreeSet::new();
        let is_name = |line: &StringRecord| {
            let name = line
                .get(0)
                .filter(|name| number(name, ',').is_none_or(|x| x.fract() == 0.0));
            line.len() == width + 1 && name.is_some_and(|name| names.insert(name.to_owned()))
        };
        if rows().all(is_name) && rows().any(|line| !line[width].is_empty()) {
            notes.push("each row has one field more than there are names: the first is the row's own name, as R writes it".to_owned());
            columns.iter_mut().for_each(|(at, _)| *at += 1);
            header = std::iter::once("").chain(header.iter()).collect();
        }
        let mut label = find(&header, &model.target, "")?.map(|(at, _)| at);
        let is_free = |at: &usize| columns.iter().all(|(column, _)| column != at);
        if label.is_none() {
            // Which column holds the model's classes, or numbers under a name that says as much.
            let holds = |at: &usize| {
                let found: BTreeSet<_> = rows()
                    .filter_map(|line| label_in(line, *at, model))
                    .collect();
                let spelled = labels::read(&found, &model.classes);
                !found.is_empty()
                    && spelled.all
                    && (!spelled.counted || TARGETS.contains(&&*letters(&header[*at])))
            };
            let holding: Vec<_> = (0..header.len()).filter(is_free).filter(holds).collect();
            if let [one] = holding[..] {
                label = Some(one);
            }
        }
        let of_model = model
            .features
            .iter()
            .map(|feature| &*feature.name)
            .zip(columns.iter().map(|(at, _)| *at));
        let renamed = of_model
            .chain(label.map(|at| (&*model.target, at)))
            .filter(|(name, at)| header[*at] != **name);
        let renamed: Vec<_> = renamed
            .map(|(name, at)| format!("`{}` is `{name}`", &header[at]))
            .collect();
        if !renamed.is_empty() {
            notes.push(format!(
                "columns have other names here: {}",
                renamed.join(", ")
            ));
        }
        let unused = (0..header.len())
            .filter(is_free)
            .filter(|at| Some(*at) != label);
        let unused = unused
            .filter(|at| rows().any(|line| line.get(*at).is_some_and(|field| !field.is_empty())));
        let unused: Vec<_> = unused
            .map(|at| {
                if header[at].is_empty() {
                    format!("number {} (without a name)", at + 1)
                } else {
                    format!("`{}`", &header[at])
                }
            })
            .collect();
        if !unused.is_empty() {
            notes.push(format!("columns that are not used: {}", unused.join(", ")));
        }
        Ok(Self {
            rows: at + 1,
            header,
            columns,
            label,
            counted: None,
            notes,
        })
    }

    /// A file as scikit-learn keeps its own: rows, features and the names of the classes; then numbers only.
    fn of_scikit_learn(at: usize, first: &StringRecord, model: &Description) -> Option<Self> {
        let features = model.features.len();
        let mut fields = first.iter();
        let (rows, counted) = (
            fields.next()?.parse::<usize>().ok()?,
            fields.next()?.parse::<usize>().ok()?,
        );
        let names: Vec<String> = fields
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        if counted != features
            || names.len() < 2
            || names.iter().any(|name| name.parse::<f64>().is_ok())
        {
            return None;
        }
        let notes = vec![format!(
            "the first line is scikit-learn's: {rows} rows, {features} features, classes {}; the columns are taken in the \
             model's order, {}, and then the class by its number",
            names.join(", "),
            list(model.features.iter().map(|feature| &*feature.name)),
        )];
        let columns = (0..features).map(|at| (at, Unit::Unstated)).collect();
        let (header, label) = (StringRecord::new(), Some(features));
        Some(Self {
            rows: at + 1,
            header,
            columns,
            label,
            counted: Some(names),
            notes,
        })
    }

    /// Numbers without names: as many as the model has features, perhaps with a label before or after them, and within
    /// the ranges of training.
    fn unnamed(
        at: usize,
        lines: Vec<&StringRecord>,
        model: &Description,
    ) -> Result<Self, TableError> {
        let first = lines[0];
        let features = model.features.len();
        let wanted = list(model.features.iter().map(|feature| &*feature.name));
        let refuse = |why: String| TableError::NoHeader {
            found: list(first.iter().take(8)),
            why,
            wanted: wanted.clone(),
        };
        let is_label = |at: usize| {
            let found: BTreeSet<_> = lines
                .iter()
                .filter_map(|line| label_in(line, at, model))
                .collect();
            labels::read(&found, &model.classes).all
        };
        let label = match first.len().checked_sub(features) {
            Some(0) => None,
            Some(1) => match (is_label(0), is_label(features)) {
                (true, false) => Some(0),
                (false, true) => Some(features),
                _ => {
                    return Err(refuse(format!(
                        "which of its {} columns is `{}` is not certain",
                        first.len(),
                        model.target
                    )));
                }
            },
            _ => {
                return Err(refuse(format!(
                    "it has {} columns for the model's {features}",
                    first.len()
                )));
            }
        };
        let from = usize::from(label == Some(0));
        // Values of another order are seldom all such as training saw.
        let fits = |line: &&&StringRecord| {
            model.features.iter().enumerate().all(|(k, feature)| {
                let value = line.get(from + k).and_then(|field| number(field, ','));
                value.is_none_or(|x| {
                    Unit::others(&feature.unit)
                        .chain([Unit::Own])
                        .any(|unit| near(feature, unit.convert(x)))
                })
            })
        };
        if lines.iter().filter(fits).count() * 2 < lines.len() {
            return Err(refuse(
                "the values are not like those of training in the model's order".to_owned(),
            ));
        }
        let mut order: Vec<&str> = model
            .features
            .iter()
            .map(|feature| &*feature.name)
            .collect();
        if let Some(at) = label {
            order.insert(at, &model.target);
        }
        let notes = vec![format!(
            "no line of names: the columns are taken in the model's order, {}",
            list(order.into_iter())
        )];
        let columns = (from..from + features)
            .map(|at| (at, Unit::Unstated))
            .collect();
        Ok(Self {
            rows: at,
            header: StringRecord::new(),
            columns,
            label,
            counted: None,
            notes,
        })
    }

    /// Read the rows.
    fn table(
        mut self,
        lines: &[Line],
        mut form: Vec<String>,
        model: &Description,
    ) -> Result<Table, TableError> {
        let below = &lines[self.rows..];
        let empty = below.iter().filter(|(_, line)| is_empty(line)).count();
        let rows: Vec<&Line> = below.iter().filter(|(_, line)| is_row(line)).collect();
        let comments = below.len() - rows.len() - empty;
        if rows.is_empty() {
            return Err(TableError::NoRows);
        }
        let width = if self.header.is_empty() {
            rows[0].1.len()
        } else {
            self.header.len()
        };
        let fields = rows
            .iter()
            .flat_map(|(_, line)| self.columns.iter().filter_map(move |(at, _)| line.get(*at)));
        let comma = decimal_comma(fields);
        if comma {
            form.push("decimal commas".to_owned());
        }
        let decimal = if comma { ',' } else { '.' };
        let mut read: Vec<Result<Row, RowError>> = Vec::new();
        let mut in_cells = BTreeSet::new();
        let mut labels = BTreeMap::new();
        for (line, record) in rows {
            let row = self.row(*line, record, width, decimal, model, &mut in_cells);
            if let (Ok(_), Some(label)) =
                (&row, self.label.and_then(|at| label_in(record, at, model)))
            {
                labels.insert(read.len(), label);
            }
            read.push(row);
        }
        let uneven = |row: &Result<Row, RowError>| {
            matches!(row, Err(RowError::TooMany { .. } | RowError::TooFew { .. }))
        };
        if let (
            Some(Err(
                RowError::TooMany {
                    line,
                    found,
                    wanted,
                }
                | RowError::TooFew {
                    line,
                    found,
                    wanted,
                },
            )),
            true,
        ) = (read.first(), read.iter().all(uneven))
        {
            let (line, found, wanted) = (*line, *found, *wanted);
            return Err(TableError::Fields {
                wanted,
                line,
                found,
            });
        }
        self.check_scale(&read, &in_cells, model)?;
        let mut notes = Vec::new();
        if !form.is_empty() {
            notes.push(format!("the file's form: {}", form.join(", ")));
        }
        notes.append(&mut self.notes);
        let converted = self.columns.iter().zip(&model.features).filter_map(
            |((at, unit), feature)| match unit {
                Unit::Other { name, .. } => Some(format!(
                    "`{}` from {name} to {}",
                    self.name(*at, feature),
                    feature.unit
                )),
                _ => None,
            },
        );
        let converted: Vec<_> = converted.collect();
        if !converted.is_empty() {
            notes.push(format!("units are converted: {}", converted.join(", ")));
        }
        if !in_cells.is_empty() {
            let units: Vec<_> = in_cells.into_iter().collect();
            notes.push(format!("units in the cells are read: {}", units.join(", ")));
        }
        for (count, what) in [(empty, "empty line"), (comments, "comment")] {
            if count > 0 {
                notes.push(format!(
                    "{count} {what}{} left out",
                    if count == 1 { " is" } else { "s are" }
                ));
            }
        }
        self.label(&mut read, &labels, &mut notes, model);
        Ok(Table { rows: read, notes })
    }

    /// What a column is called.
    fn name<'a>(&'a self, at: usize, feature: &'a Feature) -> &'a str {
        self.header.get(at).unwrap_or(&feature.name)
    }

    fn row(
        &self,
        line: u64,
        record: &StringRecord,
        wanted: usize,
        decimal: char,
        model: &Description,
        in_cells: &mut BTreeSet<String>,
    ) -> Result<Row, RowError> {
        let found = record.len();
        if record.iter().skip(wanted).any(|field| !field.is_empty()) {
            return Err(RowError::TooMany {
                line,
                found,
                wanted,
            });
        }
        if self.header.iter().skip(found).any(|name| !name.is_empty())
            || (self.header.is_empty() && found < wanted)
        {
            return Err(RowError::TooFew {
                line,
                found,
                wanted,
            });
        }
        let value = |((at, unit), feature): (&(usize, Unit), &Feature)| {
            let found = record.get(*at).unwrap_or_default();
            let column = || self.name(*at, feature).to_owned();
            if is_missing(found) {
                return Err(RowError::MissingValue {
                    line,
                    column: column(),
                    found: found.to_owned(),
                });
            }
            let mut read = number(found, decimal).map(|x| unit.convert(x));
            let letter = |c: char| c.is_alphabetic() || c == '%';
            if let (None, Some(at)) = (read, found.find(letter)) {
                // A number with its unit.
                let (x, text) = (&found[..at], &found[at..]);
                let unit = Unit::of(text, &feature.unit);
                if !matches!(unit, Unit::Unknown(_)) {
                    read = number(x.trim(), decimal).map(|x| unit.convert(x));
                    in_cells.insert(text.to_owned());
                }
            }
            read.filter(|x| x.is_finite())
                .ok_or_else(|| RowError::NotANumber {
                    line,
                    column: column(),
                    found: found.to_owned(),
                    example: feature.min,
                })
        };
        let values = self
            .columns
            .iter()
            .zip(&model.features)
            .map(value)
            .collect::<Result<_, _>>()?;
        Ok(Row {
            line,
            values,
            label: None,
        })
    }

    /// Refuse numbers that are all outside the training data, and within it in another unit, where the file does not
    /// name the unit.
    fn check_scale(
        &self,
        rows: &[Result<Row, RowError>],
        in_cells: &BTreeSet<String>,
        model: &Description,
    ) -> Result<(), TableError> {
        if !in_cells.is_empty() {
            return Ok(());
        }
        let values = |k: usize| rows.iter().flatten().map(move |row| row.values[k]);
        let of = rows.iter().flatten().count();
        // One in ten may be a mistake.
        let like = |k: usize, unit: &Unit| {
            values(k)
                .filter(|x| near(&model.features[k], unit.convert(*x)))
                .count()
        };
        let unstated = |k: &usize| self.columns[*k].1 == Unit::Unstated;
        for (k, feature) in model
            .features
            .iter()
            .enumerate()
            .filter(|(k, _)| unstated(k))
        {
            if like(k, &Unit::Own) * 10 >= of {
                continue;
            }
            let alike = |unit: &Unit| {
                let mut same = (0..model.features.len())
                    .filter(|k| model.features[*k].unit == feature.unit && unstated(k));
                same.all(|k| like(k, unit) * 10 >= of * 9)
            };
            if let Some(Unit::Other { name: other, .. }) = Unit::others(&feature.unit).find(alike) {
                let low = values(k).fold(f64::INFINITY, f64::min);
                let high = values(k).fold(f64::NEG_INFINITY, f64::max);
                return Err(TableError::Scale {
                    column: self.name(self.columns[k].0, feature).to_owned(),
                    found: if low == high {
                        low.to_string()
                    } else {
                        format!("{low} to {high}")
                    },
                    min: feature.min,
                    max: feature.max,
                    unit: feature.unit.clone(),
                    other,
                });
            }
        }
        Ok(())
    }

    /// Give each row its class.
    fn label(
        &self,
        rows: &mut [Result<Row, RowError>],
        labels: &BTreeMap<usize, &str>,
        notes: &mut Vec<String>,
        model: &Description,
    ) {
        let distinct: BTreeSet<&str> = labels.values().copied().collect();
        let classes = self.counted.as_ref().unwrap_or(&model.classes);
        let spelled = labels::read(&distinct, classes);
        if self.counted.is_none() && !spelled.classes.is_empty() {
            let read: Vec<_> = spelled
                .classes
                .iter()
                .take(6)
                .map(|(label, class)| format!("{label:?} is `{class}`"))
                .collect();
            let more = if spelled.classes.len() > 6 {
                ", …"
            } else {
                ""
            };
            let how = if spelled.counted {
                "counted in the model's order"
            } else {
                "spelled otherwise"
            };
            notes.push(format!("labels are {how}: {}{more}", read.join(", ")));
        }
        let mut empty = 0;
        for (k, row) in rows.iter_mut().enumerate() {
            let Ok(row) = row else { continue };
            let Some(label) = labels.get(&k) else {
                empty += 1;
                continue;
            };
            let class = spelled.classes.get(*label).map_or(*label, String::as_str);
            row.label = Some(if model.classes.iter().any(|known| known == class) {
                Label::Class(class.to_owned())
            } else {
                Label::Other(class.to_owned())
            });
        }
        if self.label.is_some() && empty > 0 {
            let rows = if empty == 1 { "row" } else { "rows" };
            notes.push(format!(
                "`{}` is empty in {empty} {rows}: nothing to compare the answer with",
                model.target
            ));
        }
    }
}

/// The lines of a text, with the number of each.
fn lines(text: &str, separator: u8, quote: u8) -> impl Iterator<Item = csv::Result<Line>> {
    let mut reader = ReaderBuilder::new();
    reader
        .has_headers(false)
        .flexible(true)
        .trim(Trim::All)
        .delimiter(separator)
        .quote(quote);
    let (mut number, mut counted) = (1, 0);
    reader
        .from_reader(text.as_bytes())
        .into_records()
        .map(move |record| {
            let mut record = record?;
            // Skip empty lines before the record.
            let start = record
                .position()
                .map_or(0, |position| position.byte() as usize);
            let start =
                start + text[start..].len() - text[start..].trim_start_matches(['\r', '\n']).len();
            number += text[counted..start].matches('\n').count() as u64;
            counted = start;
            if separator == b' ' {
                // Aligned columns: any number of spaces is one separator.
                record = record.iter().filter(|field| !field.is_empty()).collect();
            }
            Ok((number, record))
        })
}

/// Excel's first line `sep=;`. The rest of the text still counts that line.
fn excel_separator(text: &str) -> (Option<u8>, &str) {
    let end = text.find(['\r', '\n']).unwrap_or(text.len());
    let line = text[..end].trim_matches('"').as_bytes();
    match line {
        [b's' | b'S', b'e' | b'E', b'p' | b'P', b'=', separator] => {
            (Some(*separator), &text[end..])
        }
        _ => (None, text),
    }
}

fn named(separator: u8) -> String {
    match separator {
        b'\t' => "tabs".to_owned(),
        b' ' => "spaces".to_owned(),
        other => format!("`{}`", char::from(other)),
    }
}

fn is_empty(line: &StringRecord) -> bool {
    line.iter().all(str::is_empty)
}

fn is_row(line: &StringRecord) -> bool {
    !is_empty(line) && !is_comment(line)
}

fn is_comment(line: &StringRecord) -> bool {
    line.get(0)
        .is_some_and(|first| first.starts_with('#') && !is_missing(first))
}

fn is_missing(field: &str) -> bool {
    MISSING
        .iter()
        .any(|missing| missing.eq_ignore_ascii_case(field))
}

/// The label in a line, unless it is missing.
fn label_in<'a>(line: &'a StringRecord, at: usize, model: &Description) -> Option<&'a str> {
    line.get(at)
        .filter(|label| !is_missing(label) || model.classes.iter().any(|class| class == label))
}

/// A finite number, as JSON has no others. With `,` as the decimal mark, a point is accepted as well.
fn number(field: &str, decimal: char) -> Option<f64> {
    // The typographic minus sign.
    let field = field.replace('−', "-");
    let number = if decimal == ',' {
        field.replacen(',', ".", 1).parse()
    } else {
        field.parse::<f64>()
    };
    number.ok().filter(|x: &f64| x.is_finite())
}

/// Whether the decimal mark is a comma: there are commas and no points, and not all could be those of thousands.
fn decimal_comma<'a>(fields: impl Iterator<Item = &'a str>) -> bool {
    // Without the unit.
    let digits = |field: &'a str| {
        field
            .split(char::is_alphabetic)
            .next()
            .unwrap_or_default()
            .trim()
    };
    let numeric = |field: &&str| {
        field.contains([',', '.']) && number(field, ',').is_some() && !field.ends_with('.')
    };
    let fields: Vec<&str> = fields.map(digits).filter(numeric).collect();
    let thousands = |field: &&str| {
        field
            .split_once(',')
            .is_some_and(|(_, digits)| digits.len() == 3)
    };
    !fields.is_empty()
        && fields.iter().all(|field| !field.contains('.'))
        && !fields.iter().all(thousands)
}

/// Whether a value is in the training range, widened by half its width on each side.
fn near(feature: &Feature, x: f64) -> bool {
    let margin = (feature.max - feature.min) / 2.0;
    !margin.is_finite() || (feature.min - margin..=feature.max + margin).contains(&x)
}

/// Names as text; of many only the first, and how many more there are.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    match names.get(..LISTED) {
        Some(first) if names.len() > LISTED => {
            format!("{} and {} more", first.join(", "), names.len() - LISTED)
        }
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model() -> Description {
        let feature = |name: &str| Feature {
            name: name.into(),
            unit: "cm".into(),
            min: 1.0,
            max: 9.0,
            accept: [0.0, 100.0],
        };
        Description {
            target: "kind".into(),
            features: vec![feature("long_side"), feature("wide")],
            classes: vec!["a".into(), "b".into()],
            model: String::new(),
        }
    }

    fn holds(bytes: &[u8]) -> Result<(), TestCaseError> {
        if let Ok(table) = Table::read(bytes, &model()) {
            prop_assert!(!table.rows.is_empty());
            for row in table.rows.iter().flatten() {
                prop_assert!(row.values.len() == 2 && row.values.iter().all(|x| x.is_finite()));
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_a_row_has_all_its_values(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            holds(&bytes)?;
        }

        #[test]
        fn whatever_the_table_a_row_has_all_its_values(
            header in prop::sample::select(vec!["long_side wide kind", "kind Wide(mm) LongSide", "# wide long_side", "1 2 a", "x"]),
            rows in prop::collection::vec(
                prop::collection::vec(
                    prop::sample::select(vec!["1", "2,5", "3.5", "1e308", "1e308 in", "4 cm", "NA", "a", "A", "0", "#", "\"", "é", ""]),
                    2..5,
                ),
                0..6,
            ),
            separator in prop::sample::select(vec![",", ";", "\t", " "]),
        ) {
            let rows: Vec<_> = rows.iter().map(|row| row.join(separator)).collect();
            let text = format!("{}\n{}\n", header.replace(' ', separator), rows.join("\r\n"));
            holds(text.as_bytes())?;
        }
    }
}
