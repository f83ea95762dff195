//! The manual against the code: variables, metrics, messages, links.

use std::collections::BTreeSet;

use regex::Regex;
use walhouse::cli::manual::explain::{
    LETTERS_MIN, entries, explain, fixed_parts, has_in_order, letters,
};
use walhouse::cli::manual::{TOPICS, find};
use walhouse::clickhouse::own;
use walhouse::config::variables;
use walhouse::metrics::{Metrics, ServerWal};
use walhouse::overview::RetainedWal;

use super::{assert_none, identifier, is_word, read, src};

const FOLDER: &str = "src/cli/manual";

fn topic(name: &str) -> &'static str {
    find(name).unwrap_or_else(|| panic!("{name} is a topic")).text
}

/// README and every topic, by path.
fn documents() -> Vec<(String, String)> {
    let topics = TOPICS.iter().map(|t| (format!("{FOLDER}/{}.md", t.name), t.text.to_owned()));
    topics.chain([("README.md".to_owned(), read("README.md"))]).collect()
}

#[test]
fn readme_is_short_and_lists_every_topic() {
    let readme = read("README.md");
    assert!(readme.lines().count() <= 250, "details belong into a topic");
    for topic in TOPICS {
        let about = topic.about.replace('`', "");
        let row = format!("| [{0}]({FOLDER}/{0}.md) | {about} |", topic.name);
        assert!(readme.replace('`', "").contains(&row), "README.md has no row: {row}");
    }
}

#[test]
fn every_file_of_the_manual_is_a_topic() {
    let files = super::sources(FOLDER, &[".md"]);
    assert_eq!(files.len(), TOPICS.len());
}

/// As GitHub makes them of headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let heading = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    let (mut broken, mut found) = (Vec::new(), 0);
    for (path, text) in documents() {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.starts_with("http") {
                continue;
            }
            found += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.clone(),
                file => format!("{folder}/{file}").trim_start_matches('/').to_owned(),
            };
            let exists = super::root().join(&file).exists();
            if !exists || !anchor.is_empty() && !anchors(&read(&file)).contains(anchor) {
                broken.push(format!("{path}: {target}"));
            }
        }
    }
    assert!(30 < found, "links are found");
    assert_none("these links lead nowhere", &broken);
}

#[test]
fn the_topic_of_variables_has_their_tables() {
    let table = variables::markdown_table();
    assert!(
        topic("variables").contains(&table),
        "the tables of {FOLDER}/variables.md are to be exactly these:\n\n{table}"
    );
}

/// The words of a text that look like variables of ours.
fn variables_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !is_word(c) && c != '*')
        .map(|word| word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '*'))
        .filter(|word| word.contains("REPLICATION_"))
        // Commands of a walsender: CREATE_, ALTER_, DROP_, READ_.
        .filter(|word| !word.ends_with("_REPLICATION_SLOT"))
        .filter(|word| word.chars().all(|c| c.is_ascii_uppercase() || is_word(c) || c == '*'))
        .filter(|word| !word.contains(|c: char| c.is_ascii_lowercase()))
        .collect()
}

fn is_known(name: &str) -> bool {
    // `RUN_REPLICATION_REDIS_*` stands for all that begin so.
    if let Some(beginning) = name.strip_suffix('*') {
        return variables::all()
            .flat_map(|variable| variable.names())
            .any(|known| known.starts_with(beginning));
    }
    variables::find(name).is_some() || variables::all().any(|variable| variable.name == name)
}

#[test]
fn documents_and_hints_name_only_variables_that_exist() {
    let mut texts: Vec<(String, String)> = documents();
    texts.push(("CHANGELOG.md".to_owned(), read("CHANGELOG.md")));
    for source in src().iter().filter(|source| source.room() != "config") {
        let code: Vec<&str> = source.code().map(|(_, line)| line).collect();
        texts.push((source.path.clone(), code.join("\n")));
    }
    let mut found = Vec::new();
    for (path, text) in &texts {
        for name in variables_in(text).into_iter().filter(|name| !is_known(name)) {
            found.push(format!("{path}: {name}"));
        }
    }
    assert_none("no such variable", &found);
    let known = texts.iter().flat_map(|(_, text)| variables_in(text));
    assert!(20 < known.count(), "variables are found in the manual");
}

#[test]
fn monitoring_names_every_metric_and_no_other() {
    let metrics = Metrics::new(&["runs"]);
    let runs = metrics.service("runs");
    // These come with their first table, column or confirmation.
    runs.table("t").rows_inserted.inc();
    runs.adjusted_values("c").inc();
    runs.on_confirmed(walhouse::wal::Lsn(1));
    runs.on_server_wal(ServerWal {
        retained: RetainedWal { bytes: Some(1), left_bytes: Some(1), ..RetainedWal::default() },
        ..ServerWal::default()
    });
    let text = metrics.encode();
    let real: BTreeSet<&str> =
        (text.lines()).filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(10 < real.len(), "metrics have names: {text}");
    let page = topic("monitoring");
    let told: BTreeSet<&str> = (page.split('`'))
        .map(identifier)
        .filter(|word| word.starts_with("walhouse_"))
        .filter(|word| !own::tables::names().contains(word))
        .collect();
    // A counter's samples, and so what people look for, end in `_total`.
    let base = |name: &str| name.trim_end_matches("_total").to_owned();
    let real: BTreeSet<String> = real.iter().map(|name| base(name)).collect();
    let told: BTreeSet<String> = told.iter().map(|name| base(name)).collect();
    let hidden: Vec<String> = real.difference(&told).cloned().collect();
    let invented: Vec<String> = told.difference(&real).cloned().collect();
    // The state is a metric and a table of one name.
    let hidden: Vec<String> = hidden.into_iter().filter(|name| name != "walhouse_state").collect();
    assert_none("monitoring.md does not name these metrics", &hidden);
    assert_none("monitoring.md names metrics that do not exist", &invented);
}

// ---- the log ----

/// What the code logs by this macro: its literals, as they are written.
fn logged<'a>(code: &'a str, call: &'a str) -> impl Iterator<Item = String> + 'a {
    code.match_indices(call).filter_map(move |(at, _)| {
        let text = code[at + call.len()..].trim_start().strip_prefix('"')?;
        let mut end = text.find('"')?;
        while text[..end].ends_with('\\') {
            end += 1 + text[end + 1..].find('"')?;
        }
        let lines = text[..end].split("\\\n").map(str::trim_start);
        Some(lines.collect::<String>())
    })
}

/// Messages at WARN and ERROR, in pieces, each with its file.
fn messages() -> Vec<(String, Vec<String>, String)> {
    let mut found = Vec::new();
    for source in src().iter().filter(|source| !source.is_test()) {
        let code: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
        // A line with a hint is handed on as arguments.
        for message in ["log::warn!(", "log::error!(", "format_args!("]
            .iter()
            .flat_map(|call| logged(&code, call))
        {
            let parts = fixed_parts(&message);
            // An error or a hint as a whole is not worded here.
            if LETTERS_MIN <= letters(&parts) && !message.contains("  hint: ") {
                found.push((source.path.clone(), parts, message.replace(['`', '\\'], "")));
            }
        }
    }
    assert!(40 < found.len(), "messages were found: {}", found.len());
    found
}

#[test]
fn every_warning_and_error_can_be_explained() {
    let entries = entries();
    let patterns: Vec<Vec<String>> = (entries.iter())
        .flat_map(|entry| &entry.messages)
        .map(|message| fixed_parts(message))
        .filter(|parts| LETTERS_MIN <= letters(parts))
        .collect();
    assert!(50 < patterns.len(), "the entries were found");
    let mut unexplained = Vec::new();
    for (path, parts, message) in messages() {
        let is_told = |pattern: &Vec<String>| {
            has_in_order(&message, pattern) || has_in_order(&pattern.join(" ... "), &parts)
        };
        if !patterns.iter().any(is_told) {
            unexplained.push(format!("{path}: {}", parts.join(" ... ")));
        }
    }
    assert_none("the topic of troubleshooting does not have these", &unexplained);
}

/// What an error says was being done, in pieces, each with its file. Any may end a stream, or be
/// tried again, and is logged then. What `check` finds has a hint of its own.
fn errands() -> Vec<(String, Vec<String>)> {
    let named = Regex::new(
        r#"(?x) (?: \bError::new\(\s*[\w:.()]+,\s* | \blet\ doing\ =\ (?:\|\|\ )? | \bdoing:\s
            | \bDOING:\ &str\ =\s* | \bfn\ doing\([^)]*\)\ ->\ String\ \{\s* )
            (?: format!\(\s* )? "((?:[^"\\]|\\(?s:.))*)""#,
    )
    .expect("it is one");
    let mut found = Vec::new();
    for source in src().iter().filter(|source| !source.is_test() && source.room() != "cli") {
        if source.path.contains("/survey") {
            continue;
        }
        let code: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
        for captures in named.captures_iter(&code) {
            let text: Vec<&str> = captures[1].split("\\\n").map(str::trim_start).collect();
            let parts = fixed_parts(&text.concat());
            // Put together from pieces that are errands themselves.
            if LETTERS_MIN <= letters(&parts) {
                found.push((source.path.clone(), parts));
            }
        }
    }
    assert!(80 < found.len(), "errors were found: {}", found.len());
    found
}

#[test]
fn every_error_can_be_explained() {
    let mut unexplained = BTreeSet::new();
    for (path, parts) in errands() {
        // The cause follows.
        let line = format!("runs: {} ... x: y", parts.join(" ... "));
        if !explain(&line).1 && !CAUSES.contains(&parts.join(" ... ").as_str()) {
            unexplained.insert(format!("{path}: {}", parts.join(" ... ")));
        }
    }
    let unexplained: Vec<String> = unexplained.into_iter().collect();
    assert_none("the topic of troubleshooting does not have these", &unexplained);
}

/// `walhouse explain` prints one without the others.
#[test]
fn every_explanation_stands_by_itself() {
    let refers = |text: &&str| {
        let text = text.to_lowercase();
        text.starts_with("the same") || text.starts_with("as above") || text.contains("see above")
    };
    let entries = entries();
    let texts = entries.iter().flat_map(|entry| [entry.cause.as_str(), &entry.remedy]);
    let referring: Vec<String> = texts.filter(refers).map(str::to_owned).collect();
    assert_none("these refer to another entry", &referring);
}

/// Only ever the cause or a piece of an error that is explained.
const CAUSES: &[&str] = &[
    "lookup of the name hangs",
    "name has no address",
    "no answer in time",
    "server does not offer TLS",
    "service",
];

/// What a look at the source finds is logged as it is worded there.
#[test]
fn every_change_of_the_source_can_be_explained() {
    let code = read("src/machines/catalog.rs");
    let worded = code.split('"').skip(1).step_by(2).filter(|text| {
        ["was ", "is ", "has ", "no longer "].iter().any(|verb| text.starts_with(verb))
    });
    let all: Vec<&str> = worded.collect();
    assert!(10 < all.len(), "they were found: {all:?}");
    let unknown = all.iter().filter(|text| !explain(&format!("runs: table x {text}")).1);
    let unknown: Vec<String> = unknown.map(|text| (*text).to_owned()).collect();
    assert_none("the topic of troubleshooting does not have these", &unknown);
}

/// Put together from several pieces, or said by a server.
const COMPOSED: &[&str] = &[
    "initial backfill: done",
    "verify service",
    "diverged: expected timeline",
    "terminating connection",
    "nothing is dropped, attempt",
    "repair: done",
    "repair: going on",
    "repair: done after",
    "equal but for",
    "code 285 (TOO_FEW_LIVE_REPLICAS",
    "code 319 (UNKNOWN_STATUS_OF_INSERT",
];

/// What the page explains is still said: each part that does not vary stands in the code.
#[test]
fn nothing_is_explained_that_is_never_said() {
    let code: String = (src().iter().filter(|source| !source.is_test()))
        .flat_map(|source| {
            source.code().map(|(_, line)| line.trim().to_owned()).collect::<Vec<_>>()
        })
        .map(|line| line.trim_end_matches('\\').to_owned())
        .collect();
    let code = code.replace(['`', '\\'], "");
    let mut never = Vec::new();
    for message in entries().iter().flat_map(|entry| &entry.messages) {
        let parts = fixed_parts(message);
        for part in parts.iter().filter(|part| 12 <= part.len()) {
            if COMPOSED.contains(&part.as_str()) {
                continue;
            }
            let words: Vec<&str> = part.split(' ').collect();
            let is_said =
                words.windows(words.len().min(3)).any(|few| code.contains(&few.join(" ")));
            if !is_said {
                never.push(format!("{message}: {part}"));
            }
        }
    }
    assert_none("no code says this", &never);
}
