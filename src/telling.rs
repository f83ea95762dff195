//! How the log shows an error: in one line, and its hint in the next.

use std::fmt;

use log::Level;

use crate::error::Error;

/// A line about a service, and below it what can be done about that.
pub fn tell(level: Level, service: &str, line: fmt::Arguments<'_>, hint: Option<&str>) {
    log::log!(level, "{service}: {line}");
    if let Some(hint) = hint {
        log::log!(level, "{service}:   hint: {hint}");
    }
}

/// Logs a failure that is retried; `meanwhile` says what that means for the data.
pub fn tell_attempt(
    level: Level,
    (service, of): (&str, &str),
    error: &Error,
    meanwhile: &str,
    attempt: u32,
) {
    let line = format_args!("{of}{error}; {meanwhile}, attempt {attempt}");
    tell(level, service, line, error.hint_text());
}
