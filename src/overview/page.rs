//! The page: an [`Overview`] as HTML that says everything without a script and refreshes itself
//! with one. Style and script are within, so that it is whole wherever it is opened.

mod service;

use std::fmt::Write;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::{Overview, words};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page's rights: its own style and script, and requests to its own server.
pub static SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

/// The whole page.
pub fn page(overview: &Overview) -> String {
    let title = title(overview);
    let instance = escaped(overview.instance.as_deref().unwrap_or("unknown host"));
    let version = escaped(&overview.version);
    // Only without a script does the browser load the page again.
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n\
         <noscript><meta http-equiv=\"refresh\" content=\"15\"></noscript>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n\
         <header class=\"top\"><h1>walhouse</h1><p class=\"soft\"><span class=\"words\">{instance}\
         </span> &middot; version {version}</p></header>\n\
         <p id=\"lost\" class=\"note warn\" role=\"status\" hidden></p>\n{}\n\
         <footer><a href=\"/status\">JSON</a><a href=\"/metrics\">Metrics</a>\
         <a href=\"/healthz\">Health</a></footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        live(overview)
    )
}

/// The part of it that changes.
pub fn live(overview: &Overview) -> String {
    let mut out = String::new();
    let now = overview.now_unix_seconds;
    let _ = write!(out, "<main id=\"live\" data-title=\"{}\">", title(overview));
    let (class, text) = match overview.healthy {
        true if overview.has_outage() => ("warn", "\u{25b2} ClickHouse accepts no rows"),
        true => ("good", "\u{25cf} healthy"),
        false => ("bad", "\u{25a0} unhealthy"),
    };
    let up = overview.started_unix_seconds.map_or_else(String::new, |started| {
        format!("up {} &middot; ", words::span(now.saturating_sub(started)))
    });
    let _ = write!(
        out,
        "<div class=\"overall\"><p class=\"state {class}\" id=\"health\">{text}</p>\
         <p class=\"soft\">{up}as of <time id=\"as-of\">{}</time></p></div>",
        words::time(now)
    );
    if !overview.reasons.is_empty() {
        out.push_str("<div class=\"note bad\">");
        for reason in &overview.reasons {
            let _ = write!(out, "<p class=\"words\">{}</p>", escaped(reason));
        }
        out.push_str("</div>");
    }
    for (name, service) in &overview.services {
        service::add_service(&mut out, overview, name, service);
    }
    out.push_str("</main>");
    out
}

fn title(overview: &Overview) -> String {
    let mark = if overview.healthy && !overview.has_outage() { "" } else { "! " };
    let states: Vec<String> = (overview.services.iter())
        .map(|(name, service)| format!("{} {}", escaped(name), state_words(&service.state)))
        .collect();
    format!("{mark}walhouse: {}", states.join(", "))
}

fn state_words(state: &str) -> String {
    escaped(&words::state(state))
}

/// For text and for quoted attributes. Characters that are not seen, or turn others around, are
/// shown as what they are: not text.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(' '),
            c if words::is_unseen(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::Who;
    use super::super::testing::{HOSTILE, busy};
    use super::*;

    #[test]
    fn hostile_texts_stay_texts() {
        let mut overview = busy();
        overview.reasons.push(HOSTILE.to_owned());
        overview.instance = Some(HOSTILE.to_owned());
        let service = overview.services.get_mut("runs").expect("it is there");
        let trouble = service.last_error.clone();
        service.insert_outage = trouble;
        for text in [
            &mut service.slot,
            &mut service.state,
            service.reason.as_mut().expect("it has one"),
            service.hint.insert(String::new()),
        ] {
            *text = HOSTILE.to_owned();
        }
        service.wal.server_lsn = Some(HOSTILE.to_owned());
        service.leader.name = Some(HOSTILE.to_owned());
        service.leader.who = Who::Another;
        service.refused_rows.insert(HOSTILE.to_owned(), 1);
        if let Some(repair) = &mut service.repair {
            repair.reason = HOSTILE.to_owned();
            repair.pass = HOSTILE.to_owned();
            repair.error = Some(HOSTILE.to_owned());
        }
        let service = service.clone();
        overview.services.insert(HOSTILE.to_owned(), service);
        let page = page(&overview);
        assert!(!page.contains("alert('x')") && !page.contains("<img"), "{page}");
        assert!(!page.contains('\u{202e}'));
        assert_eq!(page.matches("<script>").count(), 1, "its own");
        assert!(page.matches("&lt;script&gt;").count() > 20);
    }

    #[test]
    fn a_page_says_everything_there_is() {
        let page = page(&busy());
        for text in [
            "<html lang=\"en\">",
            "width=device-width",
            "\u{25cf} streaming",
            "leader: this process",
            "0.4 s",
            "1,235<small> rows/s</small>",
            "48.0 MiB",
            "grows by 2.0 KiB/s",
            "900.0 MiB left, for 5 d 8 h at this rate",
            "16/B374D848",
            "16/B3740000",
            "Pass read: 42.2 %, about 1 m 35 s left",
            "12,345 rows read, 67 written, 8 marked as deleted",
            "failed 2 times in a row: permission denied",
            "task_runs_v2",
            "2023-11-14 22:13:20 UTC",
            "highest in the last 40 s: 0.4 s",
        ] {
            assert!(page.contains(text), "{text} in {page}");
        }
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_style_is_not_inline() {
        let page = page(&busy());
        for text in
            ["http://", "https://", "<link", "<img", " style=", " onclick", "@import", "url("]
        {
            assert!(!page.contains(text), "{text}");
        }
        // A hash holds for exactly these bytes.
        assert!(page.contains(&format!("<style>{STYLE}</style>")));
        assert!(page.contains(&format!("<script>{SCRIPT}</script>")));
        assert_eq!(SECURITY_POLICY.matches("sha256-").count(), 2);
        assert!(SECURITY_POLICY.starts_with("default-src 'none'; "));
    }
}
