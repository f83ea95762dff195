//! One finding of `walhouse check`, before anything is started.
//!
//! An [`Error`] refuses a start; findings report it together with what is fine and with warnings.
//! Judgements return findings; nothing here queries a server.

use crate::error::Error;

/// From the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Ok,
    /// It starts, and something about it will be missed one day.
    Warning,
    /// It does not start, or does not do its job.
    Problem,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub level: Level,
    /// Which part of the set-up, in a word or two.
    pub about: &'static str,
    /// One line, without a full stop.
    pub text: String,
    /// The SQL, setting or variable that fixes it.
    pub hint: Option<String>,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        }
    }
}

impl Finding {
    pub fn ok(about: &'static str, text: impl Into<String>) -> Finding {
        Finding { level: Level::Ok, about, text: text.into(), hint: None }
    }

    pub fn warning(
        about: &'static str,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) -> Finding {
        Finding { level: Level::Warning, about, text: text.into(), hint: Some(hint.into()) }
    }

    pub fn problem(
        about: &'static str,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) -> Finding {
        Finding { level: Level::Problem, about, text: text.into(), hint: Some(hint.into()) }
    }

    /// The finding for an error that would end a start. `otherwise` is the hint if the error has
    /// none.
    pub fn of_error(about: &'static str, error: &Error, otherwise: &str) -> Finding {
        Finding::problem(about, error.to_string(), error.hint_text().unwrap_or(otherwise))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn an_error_keeps_its_own_hint() {
        let error = Error::new(ErrorKind::Setup, "check x").because("y");
        let finding = Finding::of_error("x", &error, "Do z.");
        assert_eq!((finding.level, finding.text.as_str()), (Level::Problem, "check x: y"));
        assert_eq!(finding.hint.as_deref(), Some("Do z."));
        let finding = Finding::of_error("x", &error.hint("Do w."), "Do z.");
        assert_eq!(finding.hint.as_deref(), Some("Do w."));
    }
}
