//! Which of the model's classes a file's labels are.

use std::collections::{BTreeMap, BTreeSet};

use super::columns::words;

/// A label of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Label {
    /// One of the model's classes.
    Class(String),
    /// None of them: the text of the file.
    Other(String),
}

/// Which classes the labels of a file are.
#[derive(Default)]
pub(super) struct Spelled {
    /// Of labels that are spelled otherwise.
    pub(super) classes: BTreeMap<String, String>,
    /// They are numbers, which count the classes in their order.
    pub(super) counted: bool,
    /// Each label is a class.
    pub(super) all: bool,
}

/// Read the labels of a file: all that are spelled otherwise in one way, or none.
pub(super) fn read(labels: &BTreeSet<&str>, classes: &[String]) -> Spelled {
    let exact = |label: &&&str| classes.iter().any(|class| class == **label);
    let exact = labels.iter().filter(exact).count();
    let spelled = spelled(labels, classes).unwrap_or_default();
    let counted = if exact + spelled.len() == 0 {
        counted(labels, classes)
    } else {
        None
    };
    let (counted, classes) = (counted.is_some(), counted.unwrap_or(spelled));
    Spelled {
        counted,
        all: exact + classes.len() == labels.len(),
        classes,
    }
}

/// Labels in another case or punctuation, all of them with the same words in front (`Iris-setosa`), or without the words
/// in front of the classes (`0` for `class_0`).
fn spelled(labels: &BTreeSet<&str>, classes: &[String]) -> Option<BTreeMap<String, String>> {
    let (mut read, mut fronts, mut forms) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
    for label in labels {
        let label_words = whole(label);
        let alike = |class: &&String| {
            class.as_str() == *label || words(class).concat() == label_words.concat()
        };
        let at_the_end = |class: &&String| {
            let class = words(class);
            !label_words.is_empty()
                && !class.is_empty()
                && (label_words.ends_with(&class) || class.ends_with(&label_words))
        };
        let mut fitting: Vec<_> = classes.iter().filter(alike).collect();
        let alike = !fitting.is_empty();
        if !alike {
            fitting = classes.iter().filter(at_the_end).collect();
        }
        let class = match fitting[..] {
            [] => continue,
            [class] => class,
            [..] => return None,
        };
        let before = |long: &[String], short: &[String]| match long.len().checked_sub(short.len()) {
            Some(front) if !alike => long[..front].concat(),
            _ => String::new(),
        };
        let class_words = words(class);
        fronts.insert((
            before(&label_words, &class_words),
            before(&class_words, &label_words),
        ));
        // Two forms of one class are perhaps two things: `ripe` and `not ripe`.
        if forms
            .insert(class, label_words.concat())
            .is_some_and(|other| other != label_words.concat())
        {
            return None;
        }
        if class.as_str() != *label {
            read.insert((*label).to_owned(), class.clone());
        }
    }
    (fronts.len() == 1).then_some(read)
}

/// Numbers of the classes, counted from 0, or from 1 where the last one is there.
fn counted(labels: &BTreeSet<&str>, classes: &[String]) -> Option<BTreeMap<String, String>> {
    let number = |label: &&str| {
        Some((
            (*label).to_owned(),
            whole(label).concat().parse::<usize>().ok()?,
        ))
    };
    let numbers: BTreeMap<_, _> = labels.iter().map(number).collect::<Option<_>>()?;
    let first = [0, classes.len()]
        .into_iter()
        .position(|n| numbers.values().any(|number| *number == n))?;
    let class = |(label, number): (String, usize)| {
        Some((label, classes.get(number.checked_sub(first)?)?.clone()))
    };
    numbers.into_iter().map(class).collect()
}

/// The words of a label; a whole number that was written with a fraction, as pandas writes it, without.
fn whole(label: &str) -> Vec<String> {
    words(
        label
            .strip_suffix(".0")
            .filter(|whole| whole.parse::<u64>().is_ok())
            .unwrap_or(label),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(labels: &[&str], classes: &[&str]) -> Vec<String> {
        let classes: Vec<_> = classes.iter().map(|class| (*class).to_owned()).collect();
        let read = read(&labels.iter().copied().collect(), &classes).classes;
        read.into_iter()
            .map(|(label, class)| format!("{label}={class}"))
            .collect()
    }

    #[test]
    fn a_label_is_a_class_where_that_is_certain() {
        let cases: [(&[&str], &[&str], &[&str]); 13] = [
            (
                &["Ripe", "ripe", "SO-SO"],
                &["ripe", "so so"],
                &["Ripe=ripe", "SO-SO=so so"],
            ),
            (
                &["plum ripe", "Plum-Raw"],
                &["raw", "ripe"],
                &["Plum-Raw=raw", "plum ripe=ripe"],
            ),
            (
                &["0", "1"],
                &["class_0", "class_1"],
                &["0=class_0", "1=class_1"],
            ),
            (&["7.0", "8.0"], &["7", "8"], &["7.0=7", "8.0=8"]),
            (&["0", "2"], &["a", "b", "c"], &["0=a", "2=c"]),
            (&["1.0", "2.0"], &["a", "b"], &["1.0=a", "2.0=b"]),
            (&["1"], &["a", "b", "c"], &[]), // counted from 0, or from 1?
            (&["0", "3"], &["a", "b", "c"], &[]), // one too many
            (&["0", "a"], &["a", "b"], &[]), // names, and a number
            (&["not ripe", "ripe"], &["raw", "ripe"], &[]),
            (&["ripe", "unripe"], &["raw", "ripe"], &[]),
            (&["not ripe", "Ripe"], &["not ripe", "ripe"], &["Ripe=ripe"]),
            (&["half ripe", "very ripe"], &["raw", "ripe"], &[]),
        ];
        for (labels, classes, expected) in cases {
            assert_eq!(reading(labels, classes), expected, "{labels:?} {classes:?}");
        }
    }
}
