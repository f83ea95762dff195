//! The text that every scraper reads: Prometheus's text format 0.0.4.
//!
//! The client library writes OpenMetrics only, which older scrapers misread (counters lose their
//! type). The two differ, for what we register, in the comments of counters alone.

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn encode(registry: &Registry) -> String {
    let mut open_metrics = String::new();
    encode_registry(&mut open_metrics, registry).expect("a String takes everything written to it");
    classic(&open_metrics)
}

/// In OpenMetrics the comments name the family `x`, in the older format the sample `x_total`.
fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ")
            && let Some((name, words)) = help.split_once(' ')
            && let Some(kind) = lines.peek().and_then(|next| next.strip_prefix("# TYPE "))
            && kind.strip_prefix(name) == Some(" counter")
        {
            lines.next();
            text.push_str(&format!("# HELP {name}_total {words}\n# TYPE {name}_total counter\n"));
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use crate::metrics::Metrics;
    use crate::overview::ServiceState;
    use crate::wal::Lsn;

    /// Every instrument used, and label values that need escaping.
    fn busy_text() -> String {
        let metrics = Metrics::new(&["runs", "sessions"]);
        let runs = metrics.service("runs");
        runs.replication_lag.observe(0.3);
        runs.replication_lag.observe(1e9);
        runs.on_confirmed(Lsn(u64::MAX >> 1));
        runs.set_state(ServiceState::BackingOff);
        runs.table("a\"b\\c\nd").refused_rows.inc();
        runs.table("task_runs_v2").insert_retries.inc();
        runs.adjusted_values("created_at").inc();
        metrics.encode()
    }

    struct Sample {
        name: String,
        labels: Vec<(String, String)>,
        value: f64,
    }

    /// Reads one sample line of the format and accepts nothing else.
    fn sample(line: &str) -> Sample {
        let fail = |why: &str| -> ! { panic!("{why}: {line:?}") };
        let is_name = |text: &str| {
            !text.is_empty()
                && !text.starts_with(|c: char| c.is_ascii_digit())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
        };
        let end = line.find(['{', ' ']).unwrap_or_else(|| fail("no value"));
        let (name, mut rest) = line.split_at(end);
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                let Some((label, after)) = rest.split_once("=\"") else { fail("no label") };
                let mut value = String::new();
                let mut chars = after.char_indices();
                let end = loop {
                    match chars.next() {
                        Some((i, '"')) => break i,
                        Some((_, '\\')) => match chars.next() {
                            Some((_, 'n')) => value.push('\n'),
                            Some((_, c @ ('\\' | '"'))) => value.push(c),
                            _ => fail("bad escape"),
                        },
                        Some((_, c)) => value.push(c),
                        None => fail("open quote"),
                    }
                };
                assert!(is_name(label), "label {label:?} in {line:?}");
                labels.push((label.to_owned(), value));
                rest = &after[end + 1..];
                match rest.strip_prefix(',') {
                    Some(more) => rest = more,
                    None => break,
                }
            }
            rest = rest.strip_prefix('}').unwrap_or_else(|| fail("open brace"));
        }
        assert!(is_name(name), "name {name:?} in {line:?}");
        let value = rest.strip_prefix(' ').unwrap_or_else(|| fail("no space before the value"));
        let value = value.parse().unwrap_or_else(|_| fail("no number"));
        Sample { name: name.to_owned(), labels, value }
    }

    /// Goal: a scraper that reads by the letter of the format takes every line, and the names keep
    /// to Prometheus's conventions. Method: a strict reader of our own.
    #[test]
    fn text_keeps_to_the_format_and_the_conventions() {
        let text = busy_text();
        assert!(text.ends_with('\n'));
        let mut types = HashMap::new();
        let mut helped = HashSet::new();
        let mut seen = HashSet::new();
        let mut buckets: HashMap<String, Vec<(String, f64)>> = HashMap::new();
        let mut counts = HashMap::new();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').unwrap();
                assert!(words.ends_with('.') && words.len() > 10, "{line}");
                assert!(helped.insert(name.to_owned()), "second help of {name}");
                current = name.to_owned();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, current, "type without help");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(name.starts_with("walhouse_") && !name.contains("_ms"), "{line}");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none());
            } else {
                let Sample { name, labels, value } = sample(line);
                assert!(seen.insert((name.clone(), format!("{labels:?}"))), "twice: {line}");
                let suffixes = match types[&current].as_str() {
                    "histogram" => &["_bucket", "_sum", "_count"][..],
                    _ => &[""][..],
                };
                let suffix = name.strip_prefix(&current).unwrap_or_else(|| panic!("{line}"));
                assert!(suffixes.contains(&suffix), "{line} under {current}");
                assert!(value >= 0.0, "{line}");
                let series = |labels: &[(String, String)]| format!("{current} {labels:?}");
                match suffix {
                    "_bucket" => {
                        let (le, others) = labels.split_first().unwrap();
                        assert_eq!(le.0, "le");
                        let bucket = (le.1.clone(), value);
                        buckets.entry(series(others)).or_default().push(bucket);
                    }
                    "_count" => assert!(counts.insert(series(&labels), value).is_none()),
                    _ => {}
                }
            }
        }
        assert_eq!(buckets.len(), 2 * 3, "three histograms of two services");
        for (series, buckets) in buckets {
            assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{series}");
            assert_eq!(buckets.last().unwrap(), &("+Inf".to_owned(), counts[&series]), "{series}");
        }
    }

    #[test]
    fn label_values_survive_quotes_and_line_ends() {
        let text = busy_text();
        let tables: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with("walhouse_refused_rows_total{"))
            .map(|line| sample(line).labels[1].1.clone())
            .collect();
        assert!(tables.iter().any(|table| table == "a\"b\\c\nd"), "{tables:?}");
    }
}
