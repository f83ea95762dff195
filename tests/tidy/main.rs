//! What the compiler does not check: the direction between the rooms of `src`, what a room must not
//! touch, and that the manual tells the truth.

mod manual;
mod order;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From the top to the bottom. A room uses those below its own row, and itself; the ports, in one
/// row, do not know each other.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["threads"],
    &["mending"],
    &["delivery"],
    &["overview"],
    &["config"],
    &["postgres", "clickhouse", "redis"],
    &["services"],
    &["machines"],
    &["rows"],
    &["documents"],
    &["wal"],
];
/// Words that every room may use.
const WORDS: &[&str] = &["error", "finding", "halt", "secret", "telling"];
/// For the rooms that act; both keep their facts as they are shown, in the types of `overview`.
const SEEING: &[&str] = &["health", "metrics"];

/// Rooms that decide or convert, and do nothing: no clock, no environment.
const PURE: &[&str] = &["overview", "machines", "services", "rows", "documents", "wal"];

const WIDTH_MAX: usize = 100;
const LINES_MAX: usize = 700;
/// Longer files, each with the reason.
const LONG: &[(&str, &str)] = &[
    ("tests/postgres_connection.rs", "one server's starter and everything it may answer"),
    ("tests/clickhouse_port.rs", "one server's starter and everything it may answer"),
    ("tests/front/test_front.py", "each behaviour of the HTTP interface is a test"),
];

/// Functions of tests that may sleep. All but one poll, with a deadline.
const SLEEPERS: &[(&str, &str)] = &[
    ("tests/support/wait.rs", "within"),
    ("tests/support/wait.rs", "stays_true"),
    ("tests/bench/clock.rs", "poll_at"),
    // Silence is measured, and a slow server.
    ("tests/bench/clock.rs", "pause"),
    ("tests/clickhouse_port.rs", "start"),
    ("tests/http_port.rs", "until_served"),
    // The pauses of the client are what is tested.
    ("tests/http_port.rs", "a_dripping_client_is_cut"),
    ("tests/postgres_connection.rs", "eventually"),
    ("tests/postgres_sql.rs", "wait_until"),
    ("tests/postgres_sql/server.rs", "run"),
    ("tests/redis_lock.rs", "wait_until"),
    ("tests/redis_lock.rs", "wait_until_listening"),
];

struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
}

impl Source {
    /// The room, or the file, right below `src`.
    fn room(&self) -> &str {
        let below = self.path.strip_prefix("src/").expect("a source lies in src");
        below.split(['/', '.']).next().expect("split gives one piece at least")
    }

    fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().expect("split gives one piece at least");
        self.path.starts_with("tests/")
            || matches!(name, "tests.rs" | "testing.rs")
            || name.ends_with("_tests.rs")
    }

    /// Numbered lines without comments, up to the tests at the end of the file.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = match self.is_test() {
            true => 0,
            // `#[cfg(test)]` before a `mod name;` belongs to that line alone.
            false => self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len()),
        };
        numbered(&self.text[..end]).filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("read {path}: {e}"))
}

/// All files below `folder` whose names end in one of `endings`.
fn sources(folder: &str, endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().expect("names are UTF-8").to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The sources of `src`.
fn src() -> Vec<Source> {
    let found = sources("src", &[".rs"]);
    assert!(50 < found.len(), "src was found");
    found
}

#[track_caller]
fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

// ---- the rooms ----

/// The row of a room in [`LAYERS`].
fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&room))
}

fn may_use(room: &str, used: &str) -> bool {
    if room == used || WORDS.contains(&used) {
        return true;
    }
    match (room, used) {
        // They make the program of the rooms.
        ("lib" | "main", _) => true,
        // An error may name the place in the WAL that it was met at.
        ("health", "metrics" | "overview") | ("metrics", "overview" | "wal") | ("error", "wal") => {
            true
        }
        (room, used) if SEEING.contains(&used) => {
            matches!(room, "cli" | "threads" | "mending" | "delivery")
        }
        (room, used) => match (layer(room), layer(used)) {
            (Some(room), Some(used)) => room < used,
            _ => false,
        },
    }
}

/// The rooms named behind `crate::`, one by one or in braces.
fn rooms_used(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    let mut rest = code;
    while let Some(at) = rest.find("crate::") {
        rest = &rest[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => {
                rooms.insert(identifier(rest).to_owned());
            }
            Some(group) => {
                let mut depth = 0_usize;
                let mut expects_room = true;
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => expects_room = true,
                        c if expects_room && depth == 0 && is_word(c) => {
                            rooms.insert(identifier(&group[at..]).to_owned());
                            expects_room = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    rooms
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn identifier(text: &str) -> &str {
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

/// How many modules a file lies below the root of the crate.
fn module_depth(path: &str) -> usize {
    let below = path.strip_prefix("src/").expect("a source lies in src");
    let folders = below.matches('/').count();
    folders + usize::from(!below.ends_with("mod.rs"))
}

#[test]
fn rooms_use_only_rooms_below_their_own() {
    let mut found = Vec::new();
    for source in src() {
        let room = source.room();
        assert!(
            layer(room).is_some()
                || WORDS.contains(&room)
                || SEEING.contains(&room)
                || matches!(room, "lib" | "main"),
            "{} is in no layer of this test",
            source.path
        );
        // Tests of a room follow its direction too.
        let code: Vec<&str> =
            (source.text.lines()).filter(|line| !line.trim_start().starts_with("//")).collect();
        for used in rooms_used(&code.join("\n")) {
            if !may_use(room, &used) {
                found.push(format!("{}: `{room}` uses `{used}`", source.path));
            }
        }
        let climb = "super::".repeat(module_depth(&source.path));
        for line in code.iter().filter(|line| line.contains(&climb) && !climb.is_empty()) {
            let tests_climb_one_further = line.starts_with(' ');
            if !tests_climb_one_further {
                found.push(format!("{}: leaves its room without `crate::`: {line}", source.path));
            }
        }
    }
    assert_none("a room may use only what is below it", &found);
}

#[test]
fn directions_are_told_apart() {
    for (room, used, expected) in [
        ("cli", "threads", true),
        ("threads", "cli", false),
        ("config", "postgres", true),
        ("postgres", "redis", false),
        ("postgres", "config", false),
        ("clickhouse", "wal", true),
        ("wal", "rows", false),
        ("wal", "error", true),
        ("threads", "metrics", true),
        ("redis", "metrics", false),
        ("metrics", "health", false),
        ("machines", "nowhere", false),
    ] {
        assert_eq!(may_use(room, used), expected, "{room} -> {used}");
    }
    let used = rooms_used("use crate::{a::{b, c}, d, e::f};\nlet x = crate::g::h;");
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["a", "d", "e", "g"]);
    assert_eq!(module_depth("src/wal/mod.rs"), 1);
    assert_eq!(module_depth("src/postgres/slot/takeover.rs"), 3);
}

#[test]
fn rooms_that_decide_read_no_clock_and_no_environment() {
    let forbidden = ["Instant::now", "SystemTime::now", "std::env", "env::var", "thread::spawn"];
    let mut found = Vec::new();
    for source in src().iter().filter(|source| PURE.contains(&source.room())) {
        for (number, line) in source.code() {
            for word in forbidden.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    assert_none("give it as an argument", &found);
}

#[test]
fn only_config_reads_the_environment() {
    let mut found = Vec::new();
    for source in src().iter().filter(|source| source.room() != "config") {
        for (number, line) in source.code() {
            if ["env::var", "env::vars"].iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none("variables belong into config::variables", &found);
}

// ---- the text of the sources ----

#[test]
fn files_say_what_they_are_for_and_stay_within_their_size() {
    let mut found = Vec::new();
    let mut all = src();
    all.extend(sources("tests", &[".rs", ".py"]));
    all.extend(sources("scripts", &[".py", ".sh"]));
    for source in &all {
        let lines = source.text.lines().count();
        let is_listed = LONG.iter().any(|(path, _)| *path == source.path);
        if LINES_MAX < lines && !is_listed {
            found.push(format!("{}: {lines} lines, expected at most {LINES_MAX}", source.path));
        }
        // Parts of a test binary are explained where they are put together.
        let is_part_of_tests = source.is_test() && source.path.matches('/').count() != 1;
        let is_rust = source.path.ends_with(".rs");
        if is_rust && !is_part_of_tests && !source.text.starts_with("//!") {
            found.push(format!("{}: does not begin with //!", source.path));
        }
        let is_source = source.path.starts_with("src/");
        for (number, line) in numbered(&source.text).filter(|_| is_source) {
            let width = line.chars().count();
            // Links, rows of tables and raw strings cannot be broken.
            let is_whole = line.contains("https://")
                || line.starts_with("//! |")
                || line.contains("r#\"")
                || line.contains("\"#");
            if WIDTH_MAX < width && !is_whole {
                found.push(format!("{}:{number}: {width} characters", source.path));
            }
        }
    }
    for (path, _) in LONG {
        let lines = read(path).lines().count();
        if lines <= LINES_MAX {
            found.push(format!("{path}: {lines} lines, so it needs no exception"));
        }
    }
    assert_none("shorten it, or give a reason in this test", &found);
}

#[test]
fn nothing_is_left_for_later() {
    // In two pieces, or this file would be found.
    let words: Vec<String> =
        [("to", "do!"), ("unimpl", "emented!"), ("db", "g!("), ("FIX", "ME"), ("TO", "DO")]
            .map(|(a, b)| format!("{a}{b}"))
            .to_vec();
    let mut found = Vec::new();
    let mut all = src();
    all.extend(sources("tests", &[".rs", ".py"]));
    all.extend(sources("scripts", &[""]));
    for source in all.iter().filter(|source| !source.path.ends_with(".pyc")) {
        for (number, line) in numbered(&source.text) {
            for word in words.iter().filter(|word| line.contains(*word)) {
                found.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    assert_none("do it, or open an issue", &found);
}

#[test]
fn nothing_outside_of_tests_unwraps() {
    let mut found = Vec::new();
    for source in src() {
        for (number, line) in source.code() {
            if line.contains(".unwrap()") {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none("say with `expect` which invariant holds", &found);
}

#[test]
fn tests_wait_for_something_and_never_just_sleep() {
    let mut found = Vec::new();
    let mut all = sources("tests", &[".rs"]);
    all.extend(src());
    for source in &all {
        let tests_begin = match source.is_test() {
            true => Some(0),
            false => source.text.find("#[cfg(test)]\nmod tests {"),
        };
        let Some(begin) = tests_begin else { continue };
        let mut function = "";
        for (number, line) in numbered(&source.text[begin..]) {
            if let Some((_, name)) = line.split_once("fn ") {
                function = identifier(name);
            }
            let sleeps = concat!("thread::", "sleep(");
            let may_sleep = SLEEPERS.contains(&(source.path.as_str(), function));
            if line.contains(sleeps) && !may_sleep {
                found.push(format!("{}: line {number} of its tests: {function}", source.path));
            }
        }
    }
    assert_none("poll for an event with a deadline", &found);
}
