//! When a target table drops rows by itself: in the statement that makes it, and as ClickHouse
//! prints it of one that exists.
//!
//! An existing table may keep rows for longer or shorter than ours, or for ever; what is compared
//! follows the table.

use std::time::Duration;

use super::client::quote_name;
use crate::rows::Scalar;
use crate::rows::target::Target;
use crate::rows::ttl::Ttl;

const DAY: u64 = 86_400;
/// Functions that a time may go through on its way, each with what it takes off at most.
const ROUNDED: [(&str, u64); 3] = [("toDateTime", 0), ("toDate", DAY), ("toDate32", DAY)];
/// Units of an interval, with the shortest that each can be.
const UNITS: [(&str, u64); 8] = [
    ("Second", 1),
    ("Minute", 60),
    ("Hour", 3600),
    ("Day", DAY),
    ("Week", 7 * DAY),
    ("Month", 28 * DAY),
    ("Quarter", 89 * DAY),
    ("Year", 365 * DAY),
];

/// What a table that we make says about it.
pub(super) fn ddl(target: &Target) -> String {
    let Some(ttl) = target.ttl else { return String::new() };
    let column = quote_name(&target.columns[ttl.column].name);
    // Whole parts are dropped, and no part is written anew for a few old rows in it.
    format!(
        "\nTTL toDateTime({column}) + toIntervalDay({})\nSETTINGS ttl_only_drop_parts = 1",
        ttl.keeps.as_secs() / DAY
    )
}

/// The rule of an existing table. What lies behind a Distributed one or a view cannot be seen: it
/// is taken to be as we would make it.
pub fn of_table(target: &Target, engine: &str, engine_full: &str) -> Option<Ttl> {
    if !engine.ends_with("MergeTree") {
        return target.ttl.map(|ttl| Ttl { is_certain: false, ..ttl });
    }
    let column_of = |name: &str| {
        let at = target.columns.iter().position(|column| *column.name == *name)?;
        (target.columns[at].kind.scalar() == Some(Scalar::MILLIS)).then_some(at)
    };
    rules(engine_full).filter_map(|rule| parse(rule, column_of)).min_by_key(|ttl| ttl.keeps)
}

/// A rule by which rows are dropped and that is not understood.
pub(super) fn unknown_rule(engine_full: &str) -> Option<&str> {
    rules(engine_full).find(|rule| parse(rule, |_| Some(0)).is_none())
}

/// Those by which rows are dropped: not those that move or compress them.
fn rules(engine_full: &str) -> impl Iterator<Item = &str> {
    let (_, rest) = engine_full.split_once(" TTL ").unwrap_or_default();
    let all = rest.split_once(" SETTINGS ").map_or(rest, |(all, _)| all);
    let keeps = |rule: &&str| {
        let others = [" TO VOLUME ", " TO DISK ", " RECOMPRESS ", " GROUP BY "];
        !rule.is_empty() && !others.iter().any(|word| rule.contains(word))
    };
    split(all).into_iter().filter(keeps)
}

/// At the commas between rules.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(text[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[begin..].trim());
    parts
}

/// `toDateTime(created_at) + toIntervalDay(60)`, with or without the function. Of a rule with a
/// condition any row may be one that it meets.
fn parse(rule: &str, column_of: impl Fn(&str) -> Option<usize>) -> Option<Ttl> {
    let is_certain = !rule.contains(" WHERE ");
    let rule = rule.split_once(" WHERE ").map_or(rule, |(rule, _)| rule);
    let (time, interval) = rule.trim_end_matches(" DELETE").split_once(" + ")?;
    let (unit, count) = call(interval.strip_prefix("toInterval")?)?;
    let (_, seconds) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    let (name, rounded) = match call(time) {
        Some((function, name)) => {
            let (_, rounded) = ROUNDED.into_iter().find(|(known, _)| *known == function)?;
            (name, rounded)
        }
        None => (time, 0),
    };
    let keeps = count.parse::<u64>().ok()?.checked_mul(seconds)?.saturating_sub(rounded);
    let column = column_of(name.trim_matches('`'))?;
    Some(Ttl { column, keeps: Duration::from_secs(keeps), is_certain })
}

/// `f(x)` as `f` and `x`.
fn call(text: &str) -> Option<(&str, &str)> {
    text.strip_suffix(')')?.split_once('(')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::mapping::Mapping;
    use crate::services::webhooks::Webhooks;

    fn full(engine: &str, rest: &str) -> String {
        format!("{engine}(_version, _is_deleted) ORDER BY (a, b){rest}")
    }

    fn days(engine: &str, rest: &str) -> Option<u64> {
        let target = &Webhooks.targets()[0];
        let ttl = of_table(target, engine, &full(engine, rest))?;
        assert_eq!(*target.columns[ttl.column].name, *"created_at");
        Some(ttl.keeps.as_secs() / DAY)
    }

    #[test]
    fn the_rule_of_a_table_is_read_in_each_of_its_forms() {
        for (rest, expected) in [
            ("", None),
            (" SETTINGS index_granularity = 8192", None),
            (" TTL toDateTime(created_at) + toIntervalDay(60) SETTINGS x = 1, y = 2", Some(60)),
            (" TTL created_at + toIntervalWeek(2)", Some(14)),
            (" TTL toDate(created_at) + toIntervalYear(1)", Some(364)),
            (" TTL `created_at` + toIntervalMonth(3) WHERE status = 'x'", Some(84)),
            (" TTL created_at + toIntervalHour(240), created_at + toIntervalDay(9)", Some(9)),
            (
                " TTL created_at + toIntervalDay(9) TO VOLUME 'cold', created_at + \
                 toIntervalDay(90)",
                Some(90),
            ),
            (" TTL created_at + toIntervalDay(9) RECOMPRESS CODEC(ZSTD(17))", None),
        ] {
            assert_eq!(days("ReplacingMergeTree", rest), expected, "{rest}");
            assert_eq!(unknown_rule(&full("ReplacingMergeTree", rest)), None, "{rest}");
        }
        assert_eq!(days("SharedReplacingMergeTree", ""), None);
        assert_eq!(days("Distributed", ""), Some(60));
    }

    #[test]
    fn a_rule_of_another_form_is_told() {
        for rule in ["f(created_at)", "created_at + toIntervalDay(days)", "g(x) + toIntervalDay(1)"]
        {
            let full = full("MergeTree", &format!(" TTL {rule} SETTINGS x = 1"));
            assert_eq!(unknown_rule(&full), Some(rule));
        }
    }
}
