//! An [`Overview`] for a terminal: a column for each service, and below what needs whole lines.

use std::fmt::Write;

use super::{Overview, RetainedWal, ServiceOverview, SourceServer, Trouble, Who, words};

/// Between two columns.
const GAP: usize = 3;

pub fn table(overview: &Overview) -> String {
    let mut out = String::new();
    let now = overview.now_unix_seconds;
    let mut head = vec![format!("walhouse {}", plain(&overview.version))];
    match overview.source {
        SourceServer::Process => {
            head.extend(overview.instance.as_deref().map(plain));
            let up = overview.started_unix_seconds;
            head.extend(up.map(|at| format!("up {}", words::span(now.saturating_sub(at)))));
        }
        SourceServer::Servers => head.push("no process asked: as the servers report".to_owned()),
    }
    head.push(words::time(now));
    let verdict = match overview.healthy {
        true if overview.has_outage() => "healthy, but CLICKHOUSE ACCEPTS NO ROWS",
        true => "healthy",
        false => "UNHEALTHY",
    };
    let _ = writeln!(out, "{}: {verdict}", head.join(", "));
    for reason in &overview.reasons {
        let _ = writeln!(out, "  {}", plain(reason));
    }
    out.push('\n');
    add_columns(&mut out, overview);
    for (name, service) in &overview.services {
        add_lines(&mut out, now, name, service);
    }
    out
}

fn add_columns(out: &mut String, overview: &Overview) {
    let mut rows: Vec<(&str, Vec<String>)> =
        vec![("", overview.services.keys().map(|name| plain(name)).collect())];
    for (label, fact) in FACTS {
        let cells: Vec<Option<String>> =
            overview.services.values().map(|s| fact(overview, s)).collect();
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
            rows.push((label, cells.collect()));
        }
    }
    let label_width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|(_, cells)| cells.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..overview.services.len()).map(width).collect();
    for (label, cells) in &rows {
        let mut line = format!("{label:label_width$}");
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(line, "{:GAP$}{cell:width$}", "");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

type Fact = fn(&Overview, &ServiceOverview) -> Option<String>;

const FACTS: [(&str, Fact); 16] = [
    ("state", |_, s| Some(plain(&words::state(&s.state)))),
    ("since", |o, s| s.since_unix_seconds.map(|at| words::ago(o.now_unix_seconds, at))),
    ("leader", |_, s| Some(leader(s))),
    ("slot", |_, s| Some(plain(&s.slot))),
    ("lag", |_, s| s.lag.seconds.map(words::seconds)),
    ("behind the server", |_, s| s.lag.bytes.map(words::bytes)),
    ("server LSN", |_, s| s.wal.server_lsn.as_deref().map(plain)),
    ("received LSN", |_, s| s.wal.received_lsn.as_deref().map(plain)),
    ("flushed LSN", |_, s| s.wal.flushed_lsn.as_deref().map(plain)),
    ("confirmed LSN", |_, s| s.wal.confirmed_lsn.as_deref().map(plain)),
    ("WAL kept", |_, s| s.retained_wal.bytes.map(|bytes| kept(bytes, &s.retained_wal))),
    ("until the limit", |_, s| limit(&s.retained_wal)),
    ("rows written", |_, s| s.throughput.map(|t| format!("{}/s", words::rate(t.rows_per_second)))),
    ("stream read", |_, s| {
        let speed = s.throughput?;
        let bytes = words::bytes(speed.bytes_per_second as u64);
        Some(format!("{} changes/s, {bytes}/s", words::rate(speed.changes_per_second)))
    }),
    ("in memory", |_, s| s.unflushed_bytes.map(words::bytes)),
    ("refused rows", |o, s| {
        let rows: u64 = s.refused_rows.values().sum();
        (o.source == SourceServer::Process || 0 < rows).then(|| words::count(rows))
    }),
];

fn kept(bytes: u64, retained: &RetainedWal) -> String {
    let bytes = words::bytes(bytes);
    match retained.growth_bytes_per_second {
        Some(growth) if 1.0 <= growth => {
            format!("{bytes}, growing {}/s", words::bytes(growth as u64))
        }
        _ => bytes,
    }
}

fn limit(retained: &RetainedWal) -> Option<String> {
    match (retained.left_bytes, retained.seconds_left) {
        (Some(left), Some(seconds)) => {
            Some(format!("{}, in {}", words::bytes(left), words::seconds(seconds)))
        }
        (Some(left), None) => Some(words::bytes(left)),
        (None, _) => retained.bytes.map(|_| "no limit".to_owned()),
    }
}

fn leader(service: &ServiceOverview) -> String {
    let name = service.leader.name.as_deref().map(plain);
    match service.leader.who {
        Who::ThisProcess => "this process".to_owned(),
        Who::Another => name.unwrap_or_else(|| "another instance".to_owned()),
        Who::Somebody => name.unwrap_or_else(|| "somebody".to_owned()),
        Who::Nobody => "nobody".to_owned(),
        Who::Unknown => "not known".to_owned(),
    }
}

fn add_lines(out: &mut String, now: u64, name: &str, service: &ServiceOverview) {
    let name = plain(name);
    if let Some(reason) = &service.reason {
        let _ = writeln!(out, "\n{name}: {}", plain(reason));
        if let Some(hint) = &service.hint {
            let _ = writeln!(out, "  hint: {}", plain(hint));
        }
    }
    if let Some(outage) = &service.insert_outage {
        add_trouble(out, now, &format!("{name}: ClickHouse accepts no rows, since"), outage);
    }
    if let Some(repair) = &service.repair {
        let progress = repair.fraction.map_or_else(String::new, |f| format!(" {:.1} %", f * 100.0));
        let left = repair
            .seconds_left
            .map_or_else(String::new, |left| format!(", about {} left", words::span(left)));
        let _ = writeln!(
            out,
            "\n{name}: repair: {}{progress}{left}; {} rows read, {} written, {} marked as deleted\n\
             \u{20} {}",
            plain(&repair.pass),
            words::count(repair.rows_read),
            words::count(repair.rows_written),
            words::count(repair.tombstones_written),
            plain(&repair.reason)
        );
        if let Some(error) = &repair.error {
            let attempts = repair.failed_attempts;
            let _ = writeln!(out, "  failed {attempts} times in a row: {}", plain(error));
        }
    }
    for note in &service.notes {
        let _ = writeln!(out, "\n{name}: note: {}", plain(note));
    }
    if let Some(error) = &service.last_error {
        add_trouble(out, now, &format!("{name}: last error,"), error);
    }
}

fn add_trouble(out: &mut String, now: u64, heading: &str, trouble: &Trouble) {
    let ago = words::ago(now, trouble.at_unix_seconds);
    let _ = writeln!(out, "\n{heading} {ago}: {}", plain(&trouble.error));
    if let Some(hint) = &trouble.hint {
        let _ = writeln!(out, "  hint: {}", plain(hint));
    }
}

/// No text from elsewhere can control the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if words::is_unseen(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::busy;
    use super::*;

    #[test]
    fn services_stand_side_by_side() {
        let mut overview = busy();
        let mut other = overview.services["runs"].clone();
        other.state = "standing_by".to_owned();
        other.lag.seconds = None;
        other.leader = super::super::LeaderOverview { who: Who::Another, name: None };
        overview.services.insert("sessions".to_owned(), other);
        let text = table(&overview);
        for line in [
            "walhouse 0.1.0, host pid 7, up 3 h 46 m, 2023-11-14 23:13:20 UTC: healthy",
            "                    runs                         sessions",
            "state               streaming                    standing by",
            "leader              this process                 another instance",
            "lag                 0.4 s                        -",
            "WAL kept            48.0 MiB, growing 2.0 KiB/s   48.0 MiB, growing 2.0 KiB/s",
            "until the limit      900.0 MiB, in 5 d 8 h        900.0 MiB, in 5 d 8 h",
            "refused rows        3                            3",
            "runs: the stream is open",
        ] {
            let found =
                text.lines().any(|found| found.split_whitespace().eq(line.split_whitespace()));
            assert!(found, "{line}\nin\n{text}");
        }
        assert!(text.contains("runs: repair: read 42.2 %, about 1 m 35 s left; 12,345 rows read"));
    }

    #[test]
    fn an_outage_is_in_the_first_line() {
        let mut overview = busy();
        let service = overview.services.get_mut("runs").expect("it is there");
        service.insert_outage = service.last_error.clone();
        let text = table(&overview);
        let first = text.lines().next().unwrap_or_default();
        assert!(first.ends_with(": healthy, but CLICKHOUSE ACCEPTS NO ROWS"), "{first}");
    }

    #[test]
    fn texts_cannot_steer_the_terminal() {
        let mut overview = busy();
        overview.reasons.push("\u{1b}[2Jgone\u{9b}31m\r\nx".to_owned());
        let text = table(&overview);
        assert!(text.chars().all(|c| c == '\n' || !words::is_unseen(c)), "{text:?}");
    }
}
