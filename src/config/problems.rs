//! All problems of the configuration at once, one per line, each with its variable.
//!
//! A value is shown so that the operator recognizes it, without what may be a secret in it.

use std::fmt;

/// Why there is no `Config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    pub list: Vec<Problem>,
    /// A misspelt variable is often the reason for a problem.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub variable: String,
    pub text: String,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.list.len();
        write!(f, "config: {count} problem{}", if count == 1 { "" } else { "s" })?;
        for problem in &self.list {
            write!(f, "\n    {problem}")?;
        }
        for warning in &self.warnings {
            write!(f, "\n    warning: {warning}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.text)
    }
}

/// Longer values are cut: a certificate pasted by mistake does not belong in a log line.
const SHOWN_CHARS_MAX: usize = 120;

/// A value as one short line, without what may be a secret: any value with `://` or `@` is treated
/// as a URL, in any variable.
pub(super) fn shown(value: &str) -> String {
    let masked = match value.split_once("://") {
        Some((scheme, rest)) => mask_url(scheme, rest),
        None if value.contains('@') => "***".into(),
        None => value.into(),
    };
    let mut out: String = masked.chars().take(SHOWN_CHARS_MAX).collect();
    if out.len() < masked.len() {
        out.push_str("...");
    }
    out.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'")
}

/// Shows a URL only; other text where a URL is expected may be a secret itself.
pub(super) fn shown_url(value: &str) -> String {
    if value.contains("://") { shown(value) } else { "***".into() }
}

/// Masks the text before it is known to be well formed: a password with a stray `/`, `?`, `#` or
/// `@` ends at the last `@`, and text in the place of the port that is not a port is masked too.
fn mask_url(scheme: &str, rest: &str) -> String {
    if !is_plain(scheme) {
        return "***".into();
    }
    let mut out = format!("{scheme}://");
    let rest = match rest.rsplit_once('@') {
        Some((userinfo, rest)) => {
            match userinfo.split_once(':') {
                Some((user, _)) if is_plain(user) => out.push_str(&format!("{user}:***@")),
                None if is_plain(userinfo) => out.push_str(&format!("{userinfo}@")),
                Some(_) | None => out.push_str("***@"),
            }
            rest
        }
        None => rest,
    };
    let (place, query) = match rest.split_once('?') {
        Some((place, query)) => (place, Some(query)),
        None => (rest, None),
    };
    let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    let hosts: Vec<String> = authority.split(',').map(mask_port).collect();
    out.push_str(&hosts.join(","));
    out.push_str(path);
    if let Some(query) = query {
        let pairs: Vec<String> = query.split('&').map(mask_pair).collect();
        out.push('?');
        out.push_str(&pairs.join("&"));
    }
    out
}

fn mask_port(host: &str) -> String {
    let (name, rest) = match host.split_once(']') {
        Some((address, rest)) if address.starts_with('[') => (&host[..address.len() + 1], rest),
        Some(_) | None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = rest.strip_prefix(':').unwrap_or(rest);
    if port.bytes().all(|b| b.is_ascii_digit()) { host.into() } else { format!("{name}:***") }
}

fn mask_pair(pair: &str) -> String {
    // A list of what may be seen: a list of what may not would miss the next `sslpassword`.
    const SEEN: [&str; 15] = [
        "compress",
        "connect_timeout",
        "database",
        "dbname",
        "host",
        "hostaddr",
        "pgbouncer",
        "port",
        "request_timeout",
        "schema",
        "secure",
        "sslmode",
        "sslrootcert",
        "target_session_attrs",
        "user",
    ];
    match pair.split_once('=') {
        Some((key, _)) if SEEN.contains(&key) => pair.into(),
        Some((key, _)) if is_plain(key) => format!("{key}=***"),
        Some(_) | None => "***".into(),
    }
}

fn is_plain(text: &str) -> bool {
    text.len() <= 63 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.+%".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &str, expected: &str) {
        assert_eq!(shown(value), expected, "{value}");
    }

    #[test]
    fn a_url_is_shown_without_its_password() {
        check("postgres://u:pw@h:5432/db?sslmode=x", "postgres://u:***@h:5432/db?sslmode=x");
        check("postgres://u@h1:1,[::1]:2/db", "postgres://u@h1:1,[::1]:2/db");
        check("http://h/?password=pw&user=u", "http://h/?password=***&user=u");
        check("http://h/?p%61ssword=pw", "http://h/?p%61ssword=***");
        check("redis://:pw@h:6379", "redis://:***@h:6379");
    }

    #[test]
    fn a_password_that_breaks_the_url_is_masked_to_the_last_at_sign() {
        check("postgres://u:p/w@h/db", "postgres://u:***@h/db");
        check("postgres://u:p@w?x#y@h/db", "postgres://u:***@h/db");
        check("postgres://u:1/w@h/db", "postgres://u:***@h/db");
        check("postgres://u:pw", "postgres://u:***");
        check("postgres://u:pw/db", "postgres://u:***/db");
        check("postgres://u:pw:5432/db", "postgres://u:***/db");
        check("postgres://[::1]pw/db", "postgres://[::1]:***/db");
        check("pw@h", "***");
    }

    #[test]
    fn text_where_a_url_belongs_is_not_shown() {
        assert_eq!(shown_url("hunter2"), "***");
        assert_eq!(shown_url("host=h password=hunter2"), "***");
        assert_eq!(shown_url("http://h"), "http://h");
    }

    #[test]
    fn a_value_is_one_short_line() {
        check("a\nb", "a\\nb");
        check("\"1\"", "\"1\"");
        check(&"x".repeat(200), &format!("{}...", "x".repeat(120)));
    }

    #[test]
    fn problems_print_one_line_each() {
        let problem =
            |variable: &str| Problem { variable: variable.into(), text: "not set".into() };
        let mut problems = Problems { list: vec![problem("A"), problem("B")], warnings: vec![] };
        assert_eq!(problems.to_string(), "config: 2 problems\n    A: not set\n    B: not set");
        problems.list.truncate(1);
        problems.warnings.push("`X` is not known".into());
        assert_eq!(
            problems.to_string(),
            "config: 1 problem\n    A: not set\n    warning: `X` is not known"
        );
    }
}
