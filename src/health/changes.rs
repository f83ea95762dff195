//! What has become of a service lately: a bounded list of its changes of state, with reasons.

use std::collections::VecDeque;
use std::time::SystemTime;

use crate::metrics::StateName;

/// A service that fails over and over makes two changes a minute.
const CHANGES_MAX: usize = 50;
/// The text of an error may be as long as a server likes.
const REASON_CHARS_MAX: usize = 600;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthChange {
    pub at: SystemTime,
    /// The state since then; the same as before where something else is told.
    pub state: StateName,
    pub reason: Option<String>,
}

/// Oldest first.
#[derive(Debug, Clone, Default)]
pub struct Changes(VecDeque<HealthChange>);

impl Changes {
    pub(super) fn push(&mut self, at: SystemTime, state: StateName, reason: Option<String>) {
        if CHANGES_MAX <= self.0.len() {
            self.0.pop_front();
        }
        self.0.push_back(HealthChange { at, state, reason });
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &HealthChange> {
        self.0.iter()
    }
}

/// Cut to what a page can show.
pub(super) fn shortened(text: String) -> String {
    match text.char_indices().nth(REASON_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_changes_are_kept() {
        let mut changes = Changes::default();
        for n in 0..1000 {
            let reason = Some(n.to_string());
            changes.push(SystemTime::UNIX_EPOCH, StateName::Starting, reason);
        }
        assert_eq!(changes.iter().count(), CHANGES_MAX);
        let last = changes.iter().next_back().and_then(|change| change.reason.clone());
        assert_eq!(last.as_deref(), Some("999"));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("short".to_owned()), "short");
        let long = shortened("\u{e4}".repeat(10_000));
        assert_eq!(long.chars().count(), REASON_CHARS_MAX + 3);
    }
}
