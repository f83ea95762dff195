//! What was printed against what is shown. Of numbers and blanks only counts that there are some;
//! `...` stands for anything, and alone on a line for any lines.

use std::sync::LazyLock;

use regex::Regex;

/// The first line of what is shown that was not printed where it has to be.
pub fn missing<'a>(printed: &str, shown: &'a [String]) -> Option<&'a str> {
    // What the program logs comes beside what commands print, whenever it comes: apart from them
    // it keeps its order, and no more.
    let (logged, said): (Vec<&str>, Vec<&str>) = lines(printed).partition(|line| is_of_log(line));
    let (of_log, of_commands): (Vec<&str>, Vec<&str>) =
        shown.iter().flat_map(|line| lines(line)).partition(|line| is_of_log(line));
    let mut anywhere: Vec<&str> = of_log.iter().flat_map(|line| ["...", line]).collect();
    anywhere.push("...");
    missing_in(&logged, &anywhere).or_else(|| missing_in(&said, &of_commands))
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim_end).filter(|line| !line.is_empty())
}

pub fn is_of_log(line: &str) -> bool {
    static LEVEL: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^\S+ (INFO|WARN|ERROR) +\S").expect("it is one"));
    LEVEL.is_match(line)
}

fn missing_in<'a>(printed: &[&str], shown: &[&'a str]) -> Option<&'a str> {
    let printed: String = printed.iter().map(|line| normal(line) + "\n").collect();
    let mut pattern = String::from("^");
    for line in shown {
        pattern.push_str(&of_line(line));
        let is_printed = Regex::new(&pattern).expect("lines are escaped").is_match(&printed);
        if !is_printed {
            return Some(line);
        }
    }
    let goes_on = !Regex::new(&(pattern + "$")).expect("lines are escaped").is_match(&printed);
    (goes_on && !shown.is_empty()).then_some("(the end)")
}

fn of_line(shown: &str) -> String {
    if shown.trim() == "..." {
        return r"(?:.*\n)*?".to_owned();
    }
    let parts: Vec<String> = shown.split("...").map(|part| regex::escape(&normal(part))).collect();
    parts.join(".*") + r"\n"
}

/// Without what differs from run to run.
fn normal(line: &str) -> String {
    let mut out = String::new();
    for c in line.trim().chars() {
        match c {
            '0'..='9' if out.ends_with('0') => {}
            '0'..='9' => out.push('0'),
            c if c.is_whitespace() && out.ends_with(' ') => {}
            c if c.is_whitespace() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[test]
fn what_is_shown_is_compared_line_by_line() {
    let printed = "12:00 INFO  runs: streaming\na   1\nb 2\nc http://127.0.0.1:9465\n";
    let missing = |shown: &[&str]| {
        let shown: Vec<String> = shown.iter().map(|line| (*line).to_owned()).collect();
        missing(printed, &shown).map(str::to_owned)
    };
    assert_eq!(missing(&["a 7", "b 2", "c http://...:80"]), None);
    assert_eq!(missing(&["a 7", "...", "..."]), None);
    assert_eq!(missing(&["a 1", "b 2", "... INFO  runs: stream...", "c ..."]), None);
    assert_eq!(missing(&["a 1", "c ..."]).as_deref(), Some("c ..."));
    assert_eq!(missing(&["b 2", "..."]).as_deref(), Some("b 2"));
    assert_eq!(missing(&["a 1"]).as_deref(), Some("(the end)"));
    assert_eq!(missing(&["... INFO  sessions: ..."]).as_deref(), Some("... INFO  sessions: ..."));
}
