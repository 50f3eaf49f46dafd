//! CSV files, as people name their columns.

mod fakes;

use fakes::fruit;
use iris_fn::table::{Row, Table, TableError};

fn open(text: &str) -> Result<Table<&[u8]>, TableError> {
    let file = fruit();
    Table::open(text.as_bytes(), &file.features, &file.target)
}

fn rows(text: &str) -> Result<Vec<Result<Row, TableError>>, TableError> {
    Ok(open(text)?.rows().collect())
}

fn error(text: &str) -> String {
    rows(text).expect_err(text).to_string()
}

#[test]
fn columns_are_found_by_name_in_any_order() {
    let rows =
        rows("fruit,sweetness, height,width,weight\npear,0.5,7.5,8,180\n,0,1,2,3\n").unwrap();
    let expected = Row {
        line: 2,
        values: vec![180.0, 8.0, 7.5, 0.5],
        label: Some("pear".into()),
    };
    assert_eq!(rows[0].as_ref().unwrap(), &expected);
    assert_eq!(rows[1].as_ref().unwrap().label, None);
}

#[test]
fn other_spellings_are_forgiven_and_said() {
    let text = "\"\",Weight (g),WidthCm,fruit.height,Height [cm],SWEETNESS,Fruit\n1,180,8,9,7.5,0.5,plum\n";
    let table = open(text).unwrap();
    let renamed: Vec<_> = table
        .renamed()
        .iter()
        .map(|(from, to)| format!("{from}={to}"))
        .collect();
    assert_eq!(
        renamed,
        [
            "Weight (g)=weight",
            "WidthCm=width",
            "Height [cm]=height",
            "SWEETNESS=sweetness",
            "Fruit=fruit"
        ]
    );
    let row = table.rows().next().unwrap().unwrap();
    assert_eq!(
        (row.values, row.label.as_deref()),
        (vec![180.0, 8.0, 7.5, 0.5], Some("plum"))
    );
}

#[test]
fn an_exact_name_wins_over_a_similar_one() {
    let rows = rows("Weight,weight,width,height,sweetness\n1,2,3,4,0.5\n").unwrap();
    assert_eq!(rows[0].as_ref().unwrap().values[0], 2.0);
}

#[test]
fn what_is_missing_doubled_or_ambiguous_is_named() {
    let missing = error("weight,width\n1,2\n");
    for part in [
        "no column is `height`, `sweetness`",
        "the file has `weight`, `width`",
        "asks for `weight`",
    ] {
        assert!(missing.contains(part), "{missing}");
    }
    assert!(
        error("weight,width,width,height,sweetness\n")
            .contains("`width`, `width` could each be `width`")
    );
    assert!(
        error("Weight,WEIGHT,width,height,sweetness\n")
            .contains("`Weight`, `WEIGHT` could each be `weight`")
    );
    assert!(error("").contains("the file is empty"));
}

#[test]
fn a_bad_row_is_named_by_its_line_and_column_and_the_others_are_read() {
    let rows =
        rows("weight,width,height,sweetness\n180,x,7,0\n180,8,NaN,0\n180,8\n180,8,7,0\n").unwrap();
    let said: Vec<_> = rows
        .iter()
        .map(|row| {
            row.as_ref()
                .map_or_else(ToString::to_string, |_| "ok".into())
        })
        .collect();
    assert_eq!(
        said[0],
        "line 2: `width` is \"x\", not a number that JSON knows"
    );
    assert_eq!(
        said[1],
        "line 3: `height` is \"NaN\", not a number that JSON knows"
    );
    assert!(said[2].contains("line: 4"), "{}", said[2]);
    assert_eq!(said[3], "ok");
}
