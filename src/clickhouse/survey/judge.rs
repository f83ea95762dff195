//! Judges the facts about ClickHouse for future rows. No I/O.

use super::super::client::quote_name;
use super::ClickHouseFacts;
use crate::finding::Finding;
use crate::rows::{ColumnType, Scalar};

/// The JSON type works as a column from here on.
const VERSION_MIN: (u32, u32) = (24, 8);
/// It is sent as such: see `document_types`.
const VERSION_TYPED: (u32, u32) = (25, 1);
/// An array of several types is no longer a tuple. Before, an array that came with it in one INSERT
/// at the same path was read as that tuple, and got the elements that it lacked. Of 1,800 small
/// random documents 125 were other ones with 25.5, by a plain INSERT as well, and 8 with 25.8.
const VERSION_GOOD: (u32, u32) = (25, 8);

/// `database` has our tables.
pub fn server(facts: &ClickHouseFacts, database: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let version = &facts.version;
    found.push(match number(version) {
        Some(found) if found < VERSION_MIN => Finding::problem(
            "version",
            format!("ClickHouse {version} is too old"),
            "Install ClickHouse 25.8 or newer; 24.8 is the minimum.",
        ),
        Some(found) if found < VERSION_TYPED => Finding::warning(
            "version",
            format!("ClickHouse {version} takes documents as text only"),
            "Install ClickHouse 25.8 or newer.",
        ),
        Some(found) if found < VERSION_GOOD => Finding::warning(
            "version",
            format!(
                "ClickHouse {version} adds elements to arrays in documents that come with an \
                 array of several types"
            ),
            "Install ClickHouse 25.8 or newer.",
        ),
        Some(_) | None => Finding::ok("version", format!("ClickHouse {version}")),
    });
    if facts.readonly != "0" {
        found.push(Finding::problem(
            "user",
            format!("user `{}` is readonly ({})", facts.user, facts.readonly),
            format!(
                "Run on ClickHouse: ALTER USER {} SETTINGS readonly = 0; or change the user's \
                 profile.",
                quote_name(&facts.user)
            ),
        ));
    }
    for table in &facts.leftovers {
        found.push(Finding::warning(
            "trial table",
            format!("a killed check left table `{table}` behind"),
            format!("Run on ClickHouse: DROP TABLE {}.{}", quote_name(database), quote_name(table)),
        ));
    }
    found
}

/// `25.3.1.1` as (25, 3).
fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// How well a column of a table accepts what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnFit {
    Whole,
    /// Some values arrive changed.
    Narrow,
    /// The INSERT is refused, or means something else.
    Not,
}

/// `type_text` as ClickHouse prints it.
pub fn fit(kind: &ColumnType, type_text: &str) -> ColumnFit {
    let (bare, is_nullable) = bare(type_text);
    let takes_null = is_nullable || bare.starts_with("Variant") || bare == "Dynamic";
    let of = |whole: &[&str], narrow: &[&str]| {
        let named = |list: &[&str]| list.iter().any(|name| is_type(bare, name));
        match (named(whole), named(narrow)) {
            (true, _) => ColumnFit::Whole,
            (false, true) => ColumnFit::Narrow,
            (false, false) => ColumnFit::Not,
        }
    };
    let scalar = match kind {
        ColumnType::Of(scalar) | ColumnType::Nullable(scalar) => *scalar,
        ColumnType::Array(of) => {
            return inside(bare, "Array(").map_or(ColumnFit::Not, |inner| fit(of, inner));
        }
        // As we make it, or not at all.
        ColumnType::Tuple(_) | ColumnType::Map(_) => {
            let is_same = bare == kind.to_string();
            return if is_same { ColumnFit::Whole } else { ColumnFit::Not };
        }
    };
    let single = match scalar {
        Scalar::String => of(&["String"], &["FixedString", "Enum8", "Enum16"]),
        Scalar::Json => of(&["JSON", "String", "Object"], &["Map", "Tuple"]),
        Scalar::UInt8 => of(
            &["UInt8", "UInt16", "UInt32", "UInt64", "Int16", "Int32", "Int64", "Bool"],
            &["Int8"],
        ),
        Scalar::UInt32 => {
            of(&["UInt32", "UInt64", "Int64"], &["UInt8", "UInt16", "Int8", "Int16", "Int32"])
        }
        Scalar::UInt64 => of(&["UInt64", "UInt128", "UInt256", "Int128", "Int256"], &[]),
        Scalar::UInt128 => of(&["UInt128", "UInt256", "Int256"], &[]),
        Scalar::Bool => of(&["Bool", "UInt8"], &[]),
        Scalar::Int8 => of(&["Int8", "Int16", "Int32", "Int64", "Int128", "Int256"], &[]),
        Scalar::Int16 => of(&["Int16", "Int32", "Int64", "Int128", "Int256"], &["Int8"]),
        Scalar::Int32 => of(&["Int32", "Int64", "Int128", "Int256"], &["Int8", "Int16"]),
        Scalar::Int64 => of(&["Int64", "Int128", "Int256"], &["Int8", "Int16", "Int32"]),
        Scalar::Float32 => of(&["Float32", "Float64"], &["Decimal"]),
        Scalar::Float64 => of(&["Float64"], &["Float32", "Decimal"]),
        Scalar::Date32 => of(&["Date32"], &["Date"]),
        Scalar::Uuid => of(&["UUID"], &[]),
        Scalar::DateTime64 { precision, .. } => moments(bare, precision),
        Scalar::Time64 { .. } => exactly(bare, scalar),
        Scalar::Decimal { precision, scale } => decimal(bare, precision, scale),
    };
    if kind.is_nullable() && !takes_null { ColumnFit::Not } else { single }
}

fn exactly(bare: &str, scalar: Scalar) -> ColumnFit {
    if bare == scalar.name() { ColumnFit::Whole } else { ColumnFit::Not }
}

/// One with fewer digits on either side of the point is filled beyond its range without a word.
fn decimal(bare: &str, precision: u8, scale: u8) -> ColumnFit {
    let parts = inside(bare, "Decimal(").and_then(|parts| parts.split_once(", "));
    let Some((there, there_scale)) = parts
        .and_then(|(precision, scale)| Some((precision.parse::<u8>().ok()?, scale.parse().ok()?)))
    else {
        return ColumnFit::Not;
    };
    let is_wider = scale <= there_scale
        && precision.saturating_sub(scale) <= there.saturating_sub(there_scale);
    if is_wider { ColumnFit::Whole } else { ColumnFit::Not }
}

fn moments(bare: &str, precision: u8) -> ColumnFit {
    match bare.strip_prefix("DateTime64(") {
        Some(rest) => {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            if digits.parse::<u8>().is_ok_and(|scale| precision <= scale) {
                ColumnFit::Whole
            } else {
                ColumnFit::Narrow
            }
        }
        None if is_type(bare, "DateTime") => ColumnFit::Narrow,
        None => ColumnFit::Not,
    }
}

/// Without `LowCardinality` and `Nullable`, and whether it was nullable.
fn bare(type_text: &str) -> (&str, bool) {
    let text = inside(type_text, "LowCardinality(").unwrap_or(type_text);
    match inside(text, "Nullable(") {
        Some(text) => (text, true),
        None => (text, false),
    }
}

fn inside<'a>(text: &'a str, opening: &str) -> Option<&'a str> {
    text.strip_prefix(opening)?.strip_suffix(')')
}

fn is_type(bare: &str, name: &str) -> bool {
    bare.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('('))
}

/// The finding about a sorting key other than ours; `None` if it does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Rows with different keys replace each other.
    WithoutKey,
    /// An older version of a row may stay, or a delete not find its row.
    Other,
}

/// `engine` merges rows with the same `sorting_key`, as ClickHouse prints it.
pub fn order(engine: &str, sorting_key: &str, ours: &[&str], id: &[&str]) -> Option<Order> {
    if !engine.ends_with("ReplacingMergeTree") {
        return None;
    }
    // A key of one column in parentheses keeps them.
    let bare = inside(sorting_key, "(").unwrap_or(sorting_key);
    let columns: Vec<&str> =
        bare.split(',').map(|column| column.trim().trim_matches('`')).collect();
    if columns == ours {
        return None;
    }
    let has_key = id.iter().all(|column| columns.contains(column));
    Some(if has_key { Order::Other } else { Order::WithoutKey })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;
    use crate::rows::target::kind;

    fn facts(version: &str, readonly: &str) -> ClickHouseFacts {
        ClickHouseFacts {
            version: version.into(),
            user: "u".into(),
            readonly: readonly.into(),
            now_ms: 0,
            has_database: true,
            leftovers: Vec::new(),
        }
    }

    #[test]
    fn versions_are_old_good_or_too_old() {
        for (version, level) in [
            ("24.3.1.1", Level::Problem),
            ("24.8.14.39", Level::Warning),
            ("25.2.9.9", Level::Warning),
            ("25.5.2.1", Level::Warning),
            ("25.8.2.1", Level::Ok),
            ("26.9.2.1", Level::Ok),
            ("head", Level::Ok),
        ] {
            assert_eq!(server(&facts(version, "0"), "trigger_dev")[0].level, level, "{version}");
        }
        let told = |version: &str| server(&facts(version, "0"), "trigger_dev")[0].text.clone();
        assert!(told("24.12.1.1").contains("as text only"));
        assert!(told("25.1.1.1").contains("arrays") && told("25.7.9.9").contains("arrays"));
        let found = server(&facts("26.9.2.1", "2"), "trigger_dev");
        assert!(found.iter().any(|finding| finding.text.contains("readonly")));
    }

    #[test]
    fn a_table_that_was_left_is_told_with_its_drop() {
        let mut facts = facts("26.9.2.1", "0");
        facts.leftovers.push("walhouse_check_1".into());
        let hint = server(&facts, "mine")[1].hint.clone().expect("it has one");
        assert_eq!(hint, "Run on ClickHouse: DROP TABLE `mine`.`walhouse_check_1`");
    }

    #[test]
    fn types_take_all_some_or_nothing() {
        for (kind, type_text, expected) in [
            (kind!(String), "String", ColumnFit::Whole),
            (kind!(String), "LowCardinality(Nullable(String))", ColumnFit::Whole),
            (kind!(String), "FixedString(3)", ColumnFit::Narrow),
            (kind!(String), "UUID", ColumnFit::Not),
            (kind!(Json), "JSON(max_dynamic_paths=1024)", ColumnFit::Whole),
            (kind!(Json), "String", ColumnFit::Whole),
            (kind!(Json), "UInt8", ColumnFit::Not),
            (kind!(StringArray), "Array(LowCardinality(String))", ColumnFit::Whole),
            (kind!(StringArray), "String", ColumnFit::Not),
            (kind!(UInt8), "Bool", ColumnFit::Whole),
            (kind!(UInt32), "UInt16", ColumnFit::Narrow),
            (kind!(UInt32), "UInt64", ColumnFit::Whole),
            (kind!(UInt64), "UInt32", ColumnFit::Not),
            (kind!(Float64), "Decimal(9, 2)", ColumnFit::Narrow),
            (kind!(Millis), "DateTime64(3)", ColumnFit::Whole),
            (kind!(Millis), "DateTime64(6, 'UTC')", ColumnFit::Whole),
            (kind!(Millis), "DateTime64(0)", ColumnFit::Narrow),
            (kind!(Millis), "DateTime", ColumnFit::Narrow),
            (kind!(Millis), "Date", ColumnFit::Not),
            (kind!(NullableMillis), "Nullable(DateTime64(3))", ColumnFit::Whole),
            (kind!(NullableMillis), "DateTime64(3)", ColumnFit::Not),
            (kind!(NullableUInt8), "Nullable(UInt8)", ColumnFit::Whole),
        ] {
            assert_eq!(fit(&kind, type_text), expected, "{kind} {type_text}");
        }
    }

    #[test]
    fn an_order_without_the_key_loses_rows() {
        let of = |engine, key| order(engine, key, &["org", "run_id"], &["run_id"]);
        assert_eq!(of("ReplacingMergeTree", "org, run_id"), None);
        assert_eq!(of("ReplicatedReplacingMergeTree", "`org`, run_id"), None);
        assert_eq!(of("ReplacingMergeTree", "(org, run_id)"), None);
        assert_eq!(of("ReplacingMergeTree", "run_id"), Some(Order::Other));
        assert_eq!(of("ReplacingMergeTree", "org"), Some(Order::WithoutKey));
        assert_eq!(of("MergeTree", "org"), None);
        assert_eq!(of("Distributed", ""), None);
    }

    #[test]
    fn our_own_tables_fit() {
        use crate::services::{runs, sessions};
        for target in runs::TARGETS.iter().chain(sessions::TARGETS.iter()) {
            for column in target.columns.iter() {
                let type_text = column.ddl.split([' ']).next().expect("split gives one piece");
                assert_eq!(fit(&column.kind, type_text), ColumnFit::Whole, "{}", column.name);
            }
        }
    }
}
