//! One service on the page: its state, its graphs, and what else there is to know of it.

use std::fmt::Write;

use super::{escaped, state_words};
use crate::overview::{
    Overview, RetainedWal, ServiceOverview, StateChange, Trouble, Who, graph, words,
};

pub(super) fn add_service(
    out: &mut String,
    overview: &Overview,
    name: &str,
    service: &ServiceOverview,
) {
    let now = overview.now_unix_seconds;
    let id = escaped(name);
    let _ = write!(
        out,
        "<section class=\"service\" id=\"{id}\" aria-labelledby=\"{id}-name\">\
         <header class=\"head\"><h2 id=\"{id}-name\">{id}</h2>\
         <p class=\"state {}\" id=\"{id}-state\">{} {}</p>",
        class_of(service),
        mark_of(service),
        state_words(&service.state)
    );
    let mut about = Vec::new();
    if let Some(since) = service.since_unix_seconds {
        let (at, age) = (words::time(since), words::span(now.saturating_sub(since)));
        about.push(format!("for <time title=\"{at}\">{age}</time>"));
    }
    if service.healthy {
        about.extend(service.reason.as_deref().map(escaped));
    }
    about.push(format!("leader: {}", leader(service)));
    about.push(format!("slot <code>{}</code>", escaped(&service.slot)));
    let _ = write!(out, "<p class=\"soft words\">{}</p></header>", about.join(" &middot; "));
    add_why_not(out, service);
    if let Some(outage) = &service.insert_outage {
        add_trouble(
            out,
            now,
            "\u{25a0} ClickHouse accepts no rows; nothing is dropped",
            "bad",
            outage,
        );
    }
    add_tiles(out, service);
    out.push_str("<div class=\"parts\">");
    add_positions(out, now, &id, service);
    add_repair(out, service);
    add_refused(out, service);
    if !service.notes.is_empty() {
        out.push_str("<section class=\"wide\"><h3>Notes</h3>");
        for note in &service.notes {
            let _ = write!(out, "<p class=\"words\">{}</p>", escaped(note));
        }
        out.push_str("</section>");
    }
    out.push_str("<section class=\"wide\"><h3>Last error</h3>");
    match &service.last_error {
        Some(error) => {
            let heading = words::ago(now, error.at_unix_seconds);
            let _ = write!(
                out,
                "<p class=\"words\"><span class=\"soft\">{heading}:</span> {}</p>",
                escaped(&error.error)
            );
            if let Some(hint) = &error.hint {
                let _ = write!(out, "<p class=\"words soft\">Hint: {}</p>", escaped(hint));
            }
        }
        None => out.push_str("<p>none since the process started</p>"),
    }
    out.push_str("</section>");
    add_changes(out, &id, service);
    out.push_str("</div></section>");
}

/// Why it is not healthy, and the hint.
fn add_why_not(out: &mut String, service: &ServiceOverview) {
    let reason = service.reason.as_deref().filter(|_| !service.healthy);
    let hint = service.hint.as_deref().map(|hint| format!("Hint: {hint}"));
    let lines: Vec<String> = reason.map(str::to_owned).into_iter().chain(hint).collect();
    if !lines.is_empty() {
        out.push_str("<div class=\"note bad\">");
        for line in lines {
            let _ = write!(out, "<p class=\"words\">{}</p>", escaped(&line));
        }
        out.push_str("</div>");
    }
}

fn add_trouble(out: &mut String, now: u64, heading: &str, class: &str, trouble: &Trouble) {
    let _ = write!(
        out,
        "<div class=\"note {class}\"><p><strong>{heading}</strong>, since {}</p>\
         <p class=\"words\">{}</p>",
        words::ago(now, trouble.at_unix_seconds),
        escaped(&trouble.error)
    );
    if let Some(hint) = &trouble.hint {
        let _ = write!(out, "<p class=\"words\">Hint: {}</p>", escaped(hint));
    }
    out.push_str("</div>");
}

/// A number of now, its last hour, and what else there is to say.
struct Tile<'a> {
    id: &'a str,
    caption: &'a str,
    value: Option<String>,
    unit: &'a str,
    values: Vec<Option<f64>>,
    words: fn(f64) -> String,
    below: Vec<String>,
}

fn add_tiles(out: &mut String, service: &ServiceOverview) {
    let history = &service.history;
    let whole = |values: &[Option<u64>]| -> Vec<Option<f64>> {
        values.iter().map(|value| value.map(|value| value as f64)).collect()
    };
    let size = |value: f64| words::bytes(value as u64);
    let throughput = service.throughput;
    let mut of_rows = Vec::new();
    if let Some(speed) = throughput {
        of_rows.push(format!("{} changes/s", words::rate(speed.changes_per_second)));
        of_rows.push(format!("{}/s read", words::bytes(speed.bytes_per_second as u64)));
    }
    let unflushed: Vec<_> =
        history.unflushed_bytes.iter().map(|value| Some(*value as f64)).collect();
    let tiles = [
        Tile {
            id: "lag",
            caption: "Lag",
            value: service.lag.seconds.map(words::seconds),
            unit: "",
            values: history.lag_seconds.clone(),
            words: words::seconds,
            below: service
                .lag
                .bytes
                .map(|b| format!("{} behind the server", words::bytes(b)))
                .into_iter()
                .collect(),
        },
        Tile {
            id: "rows",
            caption: "Rows into ClickHouse",
            value: throughput.map(|speed| words::rate(speed.rows_per_second)),
            unit: " rows/s",
            values: history.rows_per_second.clone(),
            words: |value| format!("{}/s", words::rate(value)),
            below: of_rows,
        },
        Tile {
            id: "retained",
            caption: "WAL kept by the slot",
            value: service.retained_wal.bytes.map(words::bytes),
            unit: "",
            values: whole(&history.retained_wal_bytes),
            words: size,
            below: forecast(&service.retained_wal),
        },
        Tile {
            id: "unflushed",
            caption: "In memory, not yet durable",
            value: service.unflushed_bytes.map(words::bytes),
            unit: "",
            values: unflushed,
            words: size,
            below: vec![],
        },
    ];
    out.push_str("<div class=\"tiles\">");
    for tile in &tiles {
        add_tile(out, tile, &history.at_unix_seconds);
    }
    out.push_str("</div>");
}

fn add_tile(out: &mut String, tile: &Tile<'_>, at: &[u64]) {
    let Tile { id, caption, value, unit, values, words, below } = tile;
    let high = values.iter().flatten().copied().filter(|v| v.is_finite()).fold(0.0, f64::max);
    let value = match value {
        Some(value) => format!("{value}<small>{unit}</small>"),
        None => "<small>not known</small>".to_owned(),
    };
    let over = match (at.first(), at.last()) {
        (Some(first), Some(last)) => last.saturating_sub(*first),
        _ => 0,
    };
    let range = match over == 0 || values.iter().all(Option::is_none) {
        true => "no history yet".to_owned(),
        false => format!("highest in the last {}: {}", words::about(over), words(high)),
    };
    let label = format!("{caption}: {range}");
    let marks = graph::paths(at, values, high);
    let _ = write!(
        out,
        "<figure class=\"tile\" data-of=\"{id}\"><figcaption>{caption}</figcaption>\
         <p class=\"value\">{value}</p>{}<p class=\"soft\">{range}</p>",
        graph::svg(&marks, &escaped(&label))
    );
    for line in below {
        let _ = write!(out, "<p class=\"soft\">{line}</p>");
    }
    out.push_str("</figure>");
}

fn forecast(retained: &RetainedWal) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(growth) = retained.growth_bytes_per_second {
        let size = words::bytes(growth.abs() as u64);
        lines.push(match growth {
            g if 1.0 <= g => format!("grows by {size}/s"),
            g if g <= -1.0 => format!("shrinks by {size}/s"),
            _ => "does not grow".to_owned(),
        });
    }
    match (retained.limit_bytes, retained.left_bytes, retained.seconds_left) {
        (_, Some(0), _) => lines.push("\u{25a0} the limit is reached".to_owned()),
        (_, Some(left), Some(seconds)) => {
            let left = words::bytes(left);
            lines.push(format!("{left} left, for {} at this rate", words::seconds(seconds)));
        }
        (_, Some(left), None) => lines.push(format!("{} left", words::bytes(left))),
        (None, None, _) if retained.bytes.is_some() => {
            lines.push("no limit (<code>max_slot_wal_keep_size</code>)".to_owned());
        }
        _ => {}
    }
    lines
}

fn add_positions(out: &mut String, now: u64, id: &str, service: &ServiceOverview) {
    let wal = &service.wal;
    out.push_str(
        "<section><h3>Positions in the WAL</h3><table><thead><tr><th scope=\"col\">Where</th>\
         <th scope=\"col\">LSN</th><th scope=\"col\">Behind the server</th></tr></thead><tbody>",
    );
    let seen = wal.server_seen_unix_seconds.map(|seen| format!("seen {}", words::ago(now, seen)));
    let rows = [
        ("server", "Server", &wal.server_lsn, seen),
        ("received", "Received", &wal.received_lsn, None),
        ("flushed", "In ClickHouse", &wal.flushed_lsn, None),
        ("confirmed", "Confirmed", &wal.confirmed_lsn, None),
    ];
    for (key, name, lsn, note) in rows {
        let note = note.or_else(|| wal.behind(lsn).map(words::bytes)).unwrap_or_default();
        let lsn = lsn.as_deref().map_or_else(|| "not known".to_owned(), escaped);
        let _ = write!(
            out,
            "<tr><th scope=\"row\">{name}</th><td class=\"lsn\" id=\"{id}-{key}-lsn\">{lsn}</td>\
             <td class=\"soft\">{note}</td></tr>"
        );
    }
    out.push_str("</tbody></table>");
    if let Some(since) = service.lag.seconds_since_confirmed {
        let _ = write!(out, "<p class=\"soft\">confirmed {} ago</p>", words::seconds(since));
    }
    out.push_str("</section>");
}

fn add_repair(out: &mut String, service: &ServiceOverview) {
    out.push_str("<section><h3>Repair</h3>");
    let Some(repair) = &service.repair else {
        out.push_str("<p>none under way</p></section>");
        return;
    };
    let pass = escaped(&repair.pass);
    if let Some(fraction) = repair.fraction {
        let percent = (fraction * 100.0).clamp(0.0, 100.0);
        let left = repair
            .seconds_left
            .map_or_else(String::new, |left| format!(", about {} left", words::span(left)));
        let _ = write!(
            out,
            "<p>Pass {pass}: {percent:.1} %{left}</p>\
             <progress max=\"100\" value=\"{percent:.1}\" \
             aria-label=\"Repair, pass {pass}\"></progress>"
        );
    } else {
        let _ = write!(out, "<p>Pass {pass}</p>");
    }
    let _ = write!(
        out,
        "<p class=\"soft\">{} rows read, {} written, {} marked as deleted</p>\
         <p class=\"soft words\">{}</p>",
        words::count(repair.rows_read),
        words::count(repair.rows_written),
        words::count(repair.tombstones_written),
        escaped(&repair.reason)
    );
    if let Some(error) = &repair.error {
        let _ = write!(
            out,
            "<p class=\"words\">\u{25b2} failed {} times in a row: {}</p>",
            repair.failed_attempts,
            escaped(error)
        );
    }
    out.push_str("</section>");
}

fn add_refused(out: &mut String, service: &ServiceOverview) {
    out.push_str("<section><h3>Rows that ClickHouse refused</h3>");
    let refused: Vec<_> = service.refused_rows.iter().filter(|(_, rows)| 0 < **rows).collect();
    if refused.is_empty() {
        out.push_str("<p>none since the process started</p></section>");
        return;
    }
    out.push_str(
        "<table><thead><tr><th scope=\"col\">Table</th><th scope=\"col\">Kept \
         rows</th></tr></thead><tbody>",
    );
    for (table, rows) in refused {
        let _ = write!(
            out,
            "<tr><th scope=\"row\" class=\"words\">{}</th><td>\u{25b2} {}</td></tr>",
            escaped(table),
            words::count(*rows)
        );
    }
    out.push_str(
        "</tbody></table><p class=\"soft\">in full in <code>walhouse_refused_rows</code></p>\
         </section>",
    );
}

/// Shown without a click.
const CHANGES_SHOWN: usize = 8;

fn add_changes(out: &mut String, id: &str, service: &ServiceOverview) {
    out.push_str("<section class=\"wide\"><h3>Recent changes</h3>");
    let (first, rest) = service.changes.split_at(CHANGES_SHOWN.min(service.changes.len()));
    let list = |out: &mut String, changes: &[StateChange]| {
        out.push_str("<ol class=\"changes\">");
        for change in changes {
            let _ = write!(
                out,
                "<li><span class=\"soft\">{}</span><span>{}</span>\
                 <span class=\"words\">{}</span></li>",
                words::time(change.at_unix_seconds),
                state_words(&change.state),
                escaped(change.reason.as_deref().unwrap_or_default())
            );
        }
        out.push_str("</ol>");
    };
    match first.is_empty() {
        true => out.push_str("<p>none</p>"),
        false => list(out, first),
    }
    if !rest.is_empty() {
        let count = rest.len();
        let _ = write!(out, "<details id=\"{id}-older\"><summary>{count} older</summary>");
        list(out, rest);
        out.push_str("</details>");
    }
    out.push_str("</section>");
}

fn leader(service: &ServiceOverview) -> String {
    let name = service.leader.name.as_deref().map(escaped);
    let who = match service.leader.who {
        Who::ThisProcess => "this process",
        Who::Another => "another instance",
        Who::Somebody => return name.unwrap_or_else(|| "somebody".to_owned()),
        Who::Nobody => "nobody",
        Who::Unknown => "not known",
    };
    match (service.leader.who, name) {
        (Who::Another, Some(name)) => format!("{who} ({name})"),
        _ => who.to_owned(),
    }
}

fn class_of(service: &ServiceOverview) -> &'static str {
    match service.state.as_str() {
        _ if !service.healthy => "bad",
        "streaming" if service.insert_outage.is_none() => "good",
        "standing_by" => "good",
        _ => "warn",
    }
}

/// No meaning is in a colour alone.
fn mark_of(service: &ServiceOverview) -> char {
    match class_of(service) {
        "good" if service.state == "standing_by" => '\u{25d0}',
        "good" => '\u{25cf}',
        "warn" => '\u{25b2}',
        _ => '\u{25a0}',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overview::testing::busy;

    #[test]
    fn states_differ_by_their_mark_and_not_by_colour_alone() {
        let mut service = busy().services.remove("runs").expect("it is there");
        let mut marks = Vec::new();
        for (state, healthy) in
            [("streaming", true), ("standing_by", true), ("backing_off", true), ("failed", false)]
        {
            (service.state, service.healthy) = (state.to_owned(), healthy);
            marks.push(mark_of(&service));
        }
        marks.dedup();
        assert_eq!(marks.len(), 4);
    }
}
