//! Which column is which feature, and in which unit.

use csv::StringRecord;
use iris_fn::Feature;

use super::{TableError, list};

/// Units in which the same thing is measured, by all their names, and how many of the smallest each is.
const UNITS: [&[(&[&str], f64)]; 2] = [
    &[
        (&["µm", "um", "micrometre", "micrometer"], 1.0),
        (&["mm", "millimetre", "millimeter"], 1e3),
        (&["cm", "centimetre", "centimeter"], 1e4),
        (&["dm", "decimetre", "decimeter"], 1e5),
        (&["m", "metre", "meter"], 1e6),
        (&["in", "inch", "inche"], 25_400.0),
    ],
    &[
        (&["mg", "milligram"], 1.0),
        (&["g", "gram"], 1e3),
        (&["kg", "kilogram"], 1e6),
        (&["oz", "ounce"], 28_349.523_125),
        (&["lb", "pound"], 453_592.37),
    ],
];

/// In which unit a column is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Unit {
    /// The column's name has no unit.
    Unstated,
    /// The model's own unit.
    Own,
    /// Another one, of the same kind: value · `from` / `to` is in the model's unit.
    Other { name: String, from: f64, to: f64 },
    /// The text in place of a unit.
    Unknown(String),
}

impl Unit {
    /// A value of the column in the model's unit.
    pub(super) fn convert(&self, value: f64) -> f64 {
        match self {
            Self::Other { from, to, .. } => value * from / to,
            _ => value,
        }
    }

    /// The unit that a text names, compared with the model's.
    pub(super) fn of(text: &str, own: &str) -> Self {
        let text = text.trim();
        if text == own || (!own.is_empty() && letters(text) == letters(own)) {
            return Self::Own;
        }
        for kind in UNITS {
            let size = |name: &str| {
                let name = letters(name);
                let one = name
                    .strip_suffix('s')
                    .filter(|_| name.len() > 2)
                    .unwrap_or(&name);
                let unit = kind
                    .iter()
                    .find(|(names, _)| names.contains(&&*name) || names.contains(&one));
                unit.map(|(_, size)| *size)
            };
            if let (Some(from), Some(to)) = (size(text), size(own)) {
                if from == to {
                    return Self::Own;
                }
                let name = text.to_owned();
                return Self::Other { name, from, to };
            }
        }
        Self::Unknown(text.to_owned())
    }

    /// The other units of the same kind as the model's.
    pub(super) fn others(own: &str) -> impl Iterator<Item = Self> {
        let kind = UNITS
            .iter()
            .find(|kind| kind.iter().any(|(names, _)| names.contains(&own)));
        let names = kind
            .into_iter()
            .flat_map(|kind| kind.iter().map(|(names, _)| names[0]));
        names
            .map(|name| Self::of(name, own))
            .filter(|unit| matches!(unit, Self::Other { .. }))
    }
}

/// The one column that is a feature; `None` when there is none.
///
/// By its exact name first, then forgiving case, spaces, dots, underscores and the unit (`Plant.Height`,
/// `PlantHeightCm`, `plant height (mm)`).
pub(super) fn find(
    header: &StringRecord,
    name: &str,
    unit: &str,
) -> Result<Option<(usize, Unit)>, TableError> {
    let columns = header.iter().enumerate();
    let unit_of_name = if words(name).last() == words(unit).last() && !unit.is_empty() {
        Unit::Own
    } else {
        Unit::Unstated
    };
    let mut found: Vec<_> = columns
        .clone()
        .filter(|(_, column)| *column == name)
        .map(|(at, _)| (at, unit_of_name.clone()))
        .collect();
    if found.is_empty() {
        found = columns
            .filter_map(|(at, column)| Some((at, same(column, name, unit)?)))
            .collect();
    }
    if found.len() > 1 {
        let columns = found
            .iter()
            .map(|(at, _)| format!("{} (`{}`)", at + 1, &header[*at]));
        let columns = columns.collect::<Vec<_>>().join(" and ");
        return Err(TableError::Ambiguous {
            name: name.to_owned(),
            columns,
        });
    }
    match found.pop() {
        Some((at, Unit::Unknown(found))) => {
            let (column, name, unit) = (header[at].to_owned(), name.to_owned(), unit.to_owned());
            Err(TableError::Unit {
                column,
                found,
                name,
                unit,
            })
        }
        found => Ok(found),
    }
}

/// In which unit a column is `name`; `None` when it is something else.
fn same(column: &str, name: &str, unit: &str) -> Option<Unit> {
    let (outside, inside) = column.split_once(['(', '[']).unwrap_or((column, ""));
    // Without the unit that the model's own name ends with.
    let mut stem = words(name);
    let has_unit = stem.len() > 1 && !unit.is_empty() && stem.last() == words(unit).last();
    if has_unit {
        stem.pop();
    }
    let stem = stem.concat();
    if stem.is_empty() {
        return None;
    }
    let outside = letters(outside);
    let rest = outside.strip_prefix(&*stem)?;
    let inside = inside.trim_end_matches([')', ']', ' ']).trim();
    let inside = inside.strip_prefix("in ").unwrap_or(inside);
    match (rest, inside) {
        ("", "") => Some(Unit::Unstated),
        ("", _) if unit.is_empty() => Some(Unit::Unstated), // a remark
        ("", inside) => Some(Unit::of(inside, unit)),
        _ if unit.is_empty() => None,
        (rest, _) => {
            let spelled = [Some(rest), rest.strip_prefix("in")].into_iter().flatten();
            let mut known = spelled
                .map(|rest| Unit::of(rest, unit))
                .filter(|unit| !matches!(unit, Unit::Unknown(_)));
            known.next()
        }
    }
}

/// A name without case and punctuation.
pub(super) fn letters(name: &str) -> String {
    words(name).concat()
}

/// The words of a name, in lower case.
pub(super) fn words(name: &str) -> Vec<String> {
    let words = name
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

/// All features' columns.
pub(super) fn find_all(
    header: &StringRecord,
    features: &[Feature],
) -> Result<Vec<(usize, Unit)>, TableError> {
    let mut columns = Vec::new();
    let mut missing = Vec::new();
    for feature in features {
        match find(header, &feature.name, &feature.unit)? {
            Some(column) => columns.push(column),
            None => missing.push(&*feature.name),
        }
    }
    if missing.is_empty() {
        return Ok(columns);
    }
    // Suggest the nearest name, as clap does for options.
    let free: Vec<&str> = (0..header.len())
        .filter(|at| columns.iter().all(|(column, _)| column != at))
        .map(|at| &header[at])
        .collect();
    let nearest = missing
        .iter()
        .flat_map(|name| free.iter().map(move |column| (*column, *name)))
        .map(|(column, name)| {
            let likeness = strsim::jaro_winkler(&letters(column), &letters(name));
            (likeness, column, name)
        })
        .filter(|(likeness, ..)| *likeness > 0.9)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    // None of them is a file about something else.
    let all = missing.len() == features.len();
    let help = match nearest {
        Some((_, column, name)) => format!("perhaps `{column}` is `{name}`: rename it"),
        None if all => "rename its columns if they are these; else publish a model for it (`make publish`), or choose the stack that has one with \
                     STACK=…"
                .to_owned(),
        None => "give the columns that you mean the model's names".to_owned(),
    };
    Err(TableError::Missing {
        missing: list(missing.into_iter()),
        found: list(header.iter()),
        wanted: list(features.iter().map(|feature| &*feature.name)),
        all,
        help,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_a_feature_by_its_name_and_in_the_unit_that_it_says() {
        let other = |name: &str, from, to| {
            Some(Unit::Other {
                name: name.into(),
                from,
                to,
            })
        };
        let unknown = |text: &str| Some(Unit::Unknown(text.into()));
        let cases = [
            ("Plant Height", "plant_height", "cm", Some(Unit::Unstated)),
            ("PlantHeightCm", "plant_height", "cm", Some(Unit::Own)),
            (
                "plant height [in centimetres]",
                "plant_height",
                "cm",
                Some(Unit::Own),
            ),
            (
                "plant.height.in.mm",
                "plant_height",
                "cm",
                other("mm", 1e3, 1e4),
            ),
            (
                "plant height (inches)",
                "plant_height",
                "cm",
                other("inches", 25_400.0, 1e4),
            ),
            (
                "plant height (µm)",
                "plant_height",
                "cm",
                other("µm", 1.0, 1e4),
            ),
            ("plant height (ell)", "plant_height", "cm", unknown("ell")),
            ("plant height (kg)", "plant_height", "cm", unknown("kg")),
            (
                "plant height (dry)",
                "plant_height",
                "",
                Some(Unit::Unstated),
            ),
            ("plant heights", "plant_height", "cm", None),
            ("height", "plant_height", "cm", None),
            ("body mass", "body_mass_g", "g", Some(Unit::Unstated)),
            (
                "body mass (lbs)",
                "body_mass_g",
                "g",
                other("lbs", 453_592.37, 1e3),
            ),
            ("body_mass_kg", "body_mass_g", "g", other("kg", 1e6, 1e3)),
        ];
        for (column, name, unit, expected) in cases {
            assert_eq!(same(column, name, unit), expected, "{column}");
        }
    }

    #[test]
    fn a_conversion_keeps_the_digits() {
        assert_eq!(Unit::of("mm", "cm").convert(51.0), 5.1);
        assert_eq!(Unit::of("kg", "g").convert(3.75), 3750.0);
    }
}
