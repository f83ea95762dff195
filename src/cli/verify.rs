//! `walhouse verify <service>`: what differs between Postgres and ClickHouse, in words or as JSON.

use std::fmt::Write;

use serde_json::json;

use super::progress::Display;
use crate::config::ServiceConfig;
use crate::error::Result;
use crate::machines::verify::Difference;
use crate::mending::verifier::{self, Extent, VerifyFinding, VerifyReport, VerifyRequest};

/// Rows of each side, by default.
const SAMPLE_ROWS: u64 = 1_000;

/// The result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VerifyOutcome {
    Equal,
    Differing,
    /// Nothing is known to differ, but some keys could not be compared.
    Unknown,
}

fn outcome(report: &VerifyReport) -> VerifyOutcome {
    match (report.is_equal(), report.unsettled + report.unreadable) {
        (false, _) => VerifyOutcome::Differing,
        (true, 0) => VerifyOutcome::Equal,
        (true, _) => VerifyOutcome::Unknown,
    }
}

/// The text to print, and the exit code.
pub(super) fn verify(
    config: &ServiceConfig,
    sample: Option<u64>,
    full: bool,
    repair: bool,
    as_json: bool,
) -> Result<(String, VerifyOutcome)> {
    let extent = match full {
        true => Extent::Full,
        false => Extent::Sample(sample.unwrap_or(SAMPLE_ROWS)),
    };
    let display = Display::new(&format!("verify {}", config.name.as_str()));
    let show = |progress: crate::mending::command::CommandProgress<'_>| display.show(&progress);
    let report = verifier::verify(config, VerifyRequest { extent, repair }, &show)?;
    drop(display);
    let service = config.name.as_str();
    let text = if as_json { json(service, &report) } else { text(service, extent, &report) };
    Ok((text, outcome(&report)))
}

fn text(service: &str, extent: Extent, report: &VerifyReport) -> String {
    let mut out = String::new();
    if let Some(reason) = &report.repair_under_way {
        let _ = writeln!(
            out,
            "{service}: a repair is under way ({reason}): rows that it has not reached yet differ"
        );
    }
    for VerifyFinding { table, id, difference, columns, is_mended, .. } in &report.findings {
        let columns = match columns.is_empty() {
            true => String::new(),
            false => format!(": {}", columns.join(", ")),
        };
        let mended = if *is_mended { " (mended)" } else { "" };
        let _ = writeln!(out, "{table}: {} `{id}`{columns}{mended}", difference.as_str());
    }
    let told = report.findings.len() as u64;
    if told < report.differing() {
        let _ = writeln!(out, "... and {} more", report.differing() - told);
    }
    let sampled = if extent == Extent::Full { "" } else { ", chosen at random" };
    let _ = writeln!(
        out,
        "{service}: {} rows of Postgres and {} keys of ClickHouse compared{sampled}",
        report.rows_compared, report.keys_compared
    );
    if 0 < report.unsettled {
        let _ =
            writeln!(out, "{service}: {} keys changed too fast to be compared", report.unsettled);
    }
    if 0 < report.dropped {
        let _ = writeln!(
            out,
            "{service}: {} of them left out: ClickHouse drops rows of their age (TTL)",
            report.dropped
        );
    }
    if 0 < report.unreadable {
        let _ = writeln!(
            out,
            "{service}: {} rows could not be compared: they contain a character that UTF-8 cannot \
             represent",
            report.unreadable
        );
    }
    for question in &report.questions {
        let _ = writeln!(out, "{service}: {question}");
        if let Some(hint) = question.hint_text() {
            let _ = writeln!(out, "  hint: {hint}");
        }
    }
    let _ = match report.differing() {
        0 if outcome(report) == VerifyOutcome::Unknown => {
            writeln!(out, "{service}: all else is equal")
        }
        0 => writeln!(out, "{service}: both sides are equal"),
        differing => {
            let count = |difference| report.counts.get(&difference).copied().unwrap_or(0);
            let counts = Difference::ALL.map(|d| format!("{} {}", count(d), d.as_str()));
            let mended = report.mended;
            writeln!(
                out,
                "{service}: {differing} keys differ: {}; {mended} mended",
                counts.join(", ")
            )
        }
    };
    out
}

fn json(service: &str, report: &VerifyReport) -> String {
    let count = |difference| report.counts.get(&difference).copied().unwrap_or(0);
    let finding = |finding: &VerifyFinding| {
        let key: serde_json::Map<_, _> =
            finding.key.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
        json!({
            "table": &*finding.table,
            "id": finding.id,
            "key": key,
            "difference": finding.difference.as_str(),
            "columns": finding.columns.iter().map(|name| &**name).collect::<Vec<_>>(),
            "mended": finding.is_mended,
        })
    };
    let value = json!({
        "service": service,
        "equal": outcome(report) == VerifyOutcome::Equal,
        "rows_compared": report.rows_compared,
        "keys_compared": report.keys_compared,
        "missing": count(Difference::Missing),
        "different": count(Difference::Different),
        "extra": count(Difference::Extra),
        "mended": report.mended,
        "unsettled": report.unsettled,
        "dropped_by_ttl": report.dropped,
        "unreadable": report.unreadable,
        "questions": report.questions.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "repair_under_way": report.repair_under_way,
        "differences": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "left_out": report.differing().saturating_sub(report.findings.len() as u64),
    });
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> VerifyReport {
        let finding = |difference, columns, is_mended| VerifyFinding {
            table: "sessions_v1".into(),
            key: vec![
                ("organization_id".into(), "o".to_owned()),
                ("session_id".into(), "s1".to_owned()),
            ],
            id: "s1".to_owned(),
            difference,
            columns,
            is_mended,
        };
        VerifyReport {
            rows_compared: 7,
            keys_compared: 8,
            counts: [(Difference::Missing, 1), (Difference::Different, 2)].into(),
            mended: 1,
            findings: vec![
                finding(Difference::Missing, vec![], true),
                finding(Difference::Different, vec!["tags".into(), "metadata".into()], false),
            ],
            ..VerifyReport::default()
        }
    }

    #[test]
    fn each_difference_is_a_line_without_values() {
        assert_eq!(
            text("sessions", Extent::Full, &report()),
            "sessions_v1: missing `s1` (mended)\n\
             sessions_v1: different `s1`: tags, metadata\n\
             ... and 1 more\n\
             sessions: 7 rows of Postgres and 8 keys of ClickHouse compared\n\
             sessions: 3 keys differ: 1 missing, 2 different, 0 extra; 1 mended\n"
        );
        let equal = text("runs", Extent::Sample(1), &VerifyReport::default());
        assert!(equal.ends_with("runs: both sides are equal\n"), "{equal}");
        assert!(equal.contains("chosen at random"));
    }

    #[test]
    fn keys_that_could_not_be_compared_are_not_called_equal() {
        let unsettled = |report| VerifyReport { unsettled: 2, ..report };
        let report = unsettled(VerifyReport::default());
        assert_eq!(outcome(&report), VerifyOutcome::Unknown);
        let told = text("runs", Extent::Full, &report);
        assert!(
            told.ends_with("2 keys changed too fast to be compared\nruns: all else is equal\n")
        );
        let value: serde_json::Value =
            serde_json::from_str(&json("runs", &report)).expect("it is JSON");
        assert_eq!((&value["equal"], &value["unsettled"]), (&json!(false), &json!(2)));
        assert_eq!(outcome(&unsettled(self::report())), VerifyOutcome::Differing);
        assert_eq!(outcome(&VerifyReport::default()), VerifyOutcome::Equal);
    }

    #[test]
    fn json_has_the_same() {
        let value: serde_json::Value =
            serde_json::from_str(&json("sessions", &report())).expect("it is JSON");
        assert_eq!((&value["equal"], &value["left_out"]), (&json!(false), &json!(1)));
        assert_eq!(value["differences"][1]["columns"], json!(["tags", "metadata"]));
        assert_eq!(value["differences"][1]["key"]["session_id"], json!("s1"));
    }
}
