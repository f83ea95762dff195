//! `walhouse explain`: finds the entry of the troubleshooting topic for a line of the log. The page
//! is the data: each row of its tables has the messages, the cause, and what to do.

use std::collections::BTreeSet;

use super::blocks::{Line, ManualBlock, Style, parse};
use super::find;

/// Fewer letters would match any line.
pub const LETTERS_MIN: usize = 6;

/// A row of the page.
pub struct Explanation {
    /// As they are printed; `...` stands for what varies.
    pub messages: Vec<String>,
    pub cause: String,
    pub remedy: String,
}

/// All that the topic `troubleshooting` has.
pub fn entries() -> Vec<Explanation> {
    let topic = find("troubleshooting").expect("it is a topic of the manual");
    let tables = parse(topic.text).into_iter().filter_map(|block| match block {
        ManualBlock::Table { rows, .. } => Some(rows),
        _ => None,
    });
    tables.flatten().filter_map(|row| entry(&row)).collect()
}

fn entry(row: &[Line]) -> Option<Explanation> {
    let [messages, cause, remedy] = row else { return None };
    let messages = messages.iter().filter(|span| span.style == Style::Code);
    let plain = |line: &Line| line.iter().map(|span| span.text.as_str()).collect::<String>();
    Some(Explanation {
        messages: messages.map(|span| span.text.clone()).collect(),
        cause: plain(cause),
        remedy: plain(remedy),
    })
}

/// The entry for a line; `None` if there is none.
fn find_entry<'a>(entries: &'a [Explanation], line: &str) -> Option<&'a Explanation> {
    let line = line.replace(['`', '\\'], "");
    let matched = |entry: &Explanation| {
        let parts = entry.messages.iter().map(|message| fixed_parts(message));
        let fitting = parts.filter(|parts| has_in_order(&line, parts));
        fitting.map(|parts| letters(&parts)).filter(|&letters| LETTERS_MIN <= letters).max()
    };
    let found = entries.iter().filter_map(|entry| Some((matched(entry)?, entry)));
    // The entry that says most of the line.
    found.max_by_key(|(letters, _)| *letters).map(|(_, entry)| entry)
}

/// For lines of a log, or one; each entry once. The second is whether one was found for each line
/// of level WARN or ERROR, and for each line without a level.
pub fn explain(text: &str) -> (String, bool) {
    let entries = entries();
    let (mut out, mut all_known) = (String::new(), true);
    let mut told = BTreeSet::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        // journald and Compose write something of their own before the time.
        let mut words = line.split_whitespace().skip_while(|word| !is_time(word));
        let level = words.nth(1).unwrap_or_default();
        let is_hint = line.contains("  hint: ");
        if matches!(level, "INFO" | "DEBUG" | "TRACE") || is_hint {
            continue;
        }
        match find_entry(&entries, line) {
            Some(entry) if !told.insert(&entry.messages) => {}
            Some(entry) => out.push_str(&format!(
                "{}\n    {}\n    What to do: {}\n\n",
                entry.messages.join(", "),
                entry.cause,
                entry.remedy
            )),
            None => {
                all_known = false;
                out.push_str(&format!("{line}\n    This line is not known.\n\n"));
            }
        }
    }
    (out.trim_end().to_owned() + "\n", all_known)
}

/// Such as `2026-11-30T17:27:46.511Z`.
fn is_time(word: &str) -> bool {
    word.ends_with('Z') && word.get(10..11) == Some("T")
}

/// The fixed text of a message, in the code or on the page, between the variable parts, without
/// backticks, and without punctuation at its edges.
pub fn fixed_parts(text: &str) -> Vec<String> {
    const EDGES: &[char] = &[' ', ':', ';', ',', '(', ')', '"', '.'];
    let text = text.replace(['`', '\\'], "");
    let mut parts = vec![String::new()];
    let mut rest = text.as_str();
    while let Some(next) = rest.chars().next() {
        let varies = match next {
            '{' => rest.find('}').map(|end| end + 1),
            '.' => rest.starts_with("...").then_some(3),
            _ => None,
        };
        match varies {
            Some(len) => {
                parts.push(String::new());
                rest = &rest[len..];
            }
            None => {
                parts.last_mut().expect("there is always one").push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    let parts = parts.iter().map(|part| part.trim_matches(EDGES).to_owned());
    parts.filter(|part| !part.is_empty()).collect()
}

pub fn letters(parts: &[String]) -> usize {
    parts.iter().flat_map(|part| part.chars()).filter(char::is_ascii_alphabetic).count()
}

pub fn has_in_order(text: &str, parts: &[String]) -> bool {
    let mut rest = text;
    parts.iter().all(|part| match rest.find(part.as_str()) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_log_find_their_entries_once() {
        let log = "\
2026-11-30T17:27:46.511Z WARN  coordinator/runs: runs: reconnecting in 0.1 s (attempt 1)
2026-11-30T17:27:46.512Z INFO  lock_keeper/runs: runs: leader lock released
2026-11-30T17:27:47.472Z WARN  coordinator/sessions: sessions: reconnecting in 0.2 s (attempt 2)
2026-11-30T17:27:48.472Z WARN  coordinator/sessions: TRUNCATE of `TaskRun` was not applied
";
        let (text, all_known) = explain(log);
        assert!(all_known, "{text}");
        assert_eq!(text.matches("What to do:").count(), 2, "{text}");
        assert!(text.contains("reconnecting in ... s") && text.contains("TRUNCATE of"), "{text}");
        let (text, all_known) = explain("something that walhouse never says");
        assert!(!all_known && text.contains("is not known"), "{text}");
    }

    #[test]
    fn a_level_is_found_behind_what_a_collector_of_logs_writes() {
        for before in ["Nov 30 17:27:46 vm walhouse[123]: ", "walhouse-1  | "] {
            let line = |rest: &str| format!("{before}2026-11-30T17:27:46.511Z {rest}\n");
            let quiet = line("INFO  main: metrics and health on http://127.0.0.1:9465");
            let (text, all_known) =
                explain(&(quiet + &line("WARN  x: runs: reconnecting in 0.1 s (attempt 1)")));
            assert!(all_known && text.starts_with("reconnecting in"), "{text}");
        }
    }

    #[test]
    fn the_entry_that_says_most_is_taken() {
        let (text, _) = explain("repair: done after 1.7 s: both sides are equal again; 3 rows");
        assert!(text.starts_with("repair: done after"), "{text}");
    }

    #[test]
    fn what_varies_is_left_out() {
        assert_eq!(fixed_parts("slot `{slot}` is gone: ..."), ["slot", "is gone"]);
        assert!(has_in_order("a slot x is gone", &fixed_parts("slot ... gone")));
        assert!(!has_in_order("gone is the slot", &fixed_parts("slot ... gone")));
    }
}
