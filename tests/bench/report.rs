//! The table, line by line as the figures come, and all of it as JSON.

use std::fs;

use serde_json::{Map, Value, json};

use crate::figures::Figure;

/// One row of the table; what does not apply is `None`.
#[derive(Debug, Clone, Default)]
pub struct Line {
    pub case: String,
    pub contender: String,
    pub changes: u64,
    pub wall_s: Option<Figure>,
    /// Against `pg_recvlogical`, like the other ratio.
    pub wall_ratio: Option<Figure>,
    pub cpu_us: Option<Figure>,
    pub cpu_ratio: Option<Figure>,
    pub peak_mb: Option<Figure>,
    /// What the servers used, also microseconds per change.
    pub walsender_us: Option<Figure>,
    pub clickhouse_us: Option<Figure>,
    /// Milliseconds from commit to visible: the middle, 95 and 99 of 100, the worst.
    pub latency_ms: Option<[Figure; 4]>,
    /// Of each target table, in ClickHouse.
    pub parts_per_minute: Option<Figure>,
    /// Anything else that belongs to the line.
    pub note: String,
}

const COLUMNS: [(&str, usize); 12] = [
    ("case", 23),
    ("changes", 8),
    ("contender", 27),
    ("wall s (min-max)", 19),
    ("/ pg_recvlogical", 18),
    ("changes/s", 9),
    ("CPU us/change", 18),
    ("peak RSS MB", 16),
    ("walsender us", 12),
    ("ClickHouse us", 13),
    ("ms p50 / p95 / p99 / max", 24),
    ("parts/min", 16),
];

pub fn head() -> String {
    let titles = row(COLUMNS.map(|(title, _)| title.to_owned()));
    let rules = COLUMNS.map(|(_, width)| "-".repeat(width));
    format!("{titles}\n{}", row(rules))
}

impl Line {
    pub fn text(&self) -> String {
        let text = |figure: &Option<Figure>| figure.as_ref().map(Figure::text).unwrap_or_default();
        let median = |figure: &Option<Figure>| {
            figure.as_ref().map(|figure| format!("{:.1}", figure.median())).unwrap_or_default()
        };
        let per_second = |wall: &Figure| format!("{:.0}", self.changes as f64 / wall.median());
        let latency = self.latency_ms.as_ref().map(|quantiles| {
            quantiles.each_ref().map(|figure| format!("{:.0}", figure.median())).join(" / ")
        });
        let cells = row([
            self.case.clone(),
            self.changes.to_string(),
            self.contender.clone(),
            text(&self.wall_s),
            text(&self.wall_ratio),
            self.wall_s.as_ref().map(per_second).unwrap_or_default(),
            text(&self.cpu_us),
            text(&self.peak_mb),
            median(&self.walsender_us),
            median(&self.clickhouse_us),
            latency.unwrap_or_default(),
            text(&self.parts_per_minute),
        ]);
        if self.note.is_empty() { cells } else { format!("{cells} {}", self.note) }
    }

    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("case".to_owned(), json!(self.case));
        object.insert("contender".to_owned(), json!(self.contender));
        object.insert("changes".to_owned(), json!(self.changes));
        object.insert("note".to_owned(), json!(self.note));
        let figures = [
            ("wall_s", &self.wall_s),
            ("wall_ratio", &self.wall_ratio),
            ("cpu_us_per_change", &self.cpu_us),
            ("cpu_ratio", &self.cpu_ratio),
            ("peak_rss_mb", &self.peak_mb),
            ("walsender_us_per_change", &self.walsender_us),
            ("clickhouse_us_per_change", &self.clickhouse_us),
            ("parts_per_minute", &self.parts_per_minute),
        ];
        for (name, figure) in figures {
            object.insert(name.to_owned(), figure.as_ref().map_or(Value::Null, Figure::json));
        }
        if let Some(latency) = &self.latency_ms {
            for (name, figure) in ["p50", "p95", "p99", "max"].iter().zip(latency) {
                object.insert(format!("latency_ms_{name}"), figure.json());
            }
        }
        Value::Object(object)
    }
}

/// As Markdown has it, aligned for those who read it as it is.
fn row(cells: [String; COLUMNS.len()]) -> String {
    let mut text = "|".to_owned();
    for (at, (cell, (_, width))) in cells.iter().zip(COLUMNS).enumerate() {
        // Words begin on the left, numbers end on the right.
        text += &match at {
            0 | 2 => format!(" {cell:<width$} |"),
            _ => format!(" {cell:>width$} |"),
        };
    }
    text
}

pub fn write_json(file: &str, about: &Value, lines: &[Line]) -> Result<(), String> {
    let all = json!({"about": about, "lines": lines.iter().map(Line::json).collect::<Vec<_>>()});
    fs::write(file, format!("{all:#}\n")).map_err(|e| format!("write {file}: {e}"))
}
