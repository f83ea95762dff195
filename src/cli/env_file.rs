//! `--env-file`: commands see what systemd gives the service, from the same file.
//!
//! The program starts itself again with these variables, so that the code that reads the
//! environment need not know of it. The file is read as systemd reads an `EnvironmentFile=`, which
//! is not as a shell would.

use std::ffi::OsString;
use std::io::{self, Write};
use std::iter::Peekable;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::str::Chars;

use crate::config::effective;

const OPTION: &str = "--env-file";

/// Where the package has it.
const INSTALLED: &str = "/etc/walhouse/walhouse.env";

/// Operators have the service's variables in a file, seldom in the shell.
pub fn point_to_it() {
    let set = |setting: &effective::Setting| setting.origin == effective::Origin::Environment;
    if Path::new(INSTALLED).exists() && !effective::from_env().iter().any(set) {
        let hint = format!("hint: no variable is set here: try {OPTION} {INSTALLED}");
        // If stderr is closed there is nobody to report it to.
        let _ = writeln!(io::stderr(), "walhouse: {hint}");
    }
}

/// Becomes the same command with the variables of the file, which outrank those of the shell. Comes
/// back only if that fails.
pub fn restart(file: &Path, arguments: &[OsString]) -> String {
    let doing = |cause: io::Error| format!("read variables of {}: {cause}", file.display());
    let variables = match std::fs::read_to_string(file) {
        Ok(text) => parse(&text),
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            return format!("{}\n  hint: It may be readable by root only; try sudo.", doing(cause));
        }
        Err(cause) => return doing(cause),
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(cause) => return format!("find the program itself: {cause}"),
    };
    let cause = Command::new(&program).args(without_option(arguments)).envs(variables).exec();
    format!("start {} with the variables of {}: {cause}", program.display(), file.display())
}

/// The arguments behind the program's name that are not this option or its value.
fn without_option(arguments: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        if argument == OPTION {
            rest.next();
        } else if !argument.to_string_lossy().starts_with("--env-file=") {
            kept.push(argument.clone());
        }
    }
    kept
}

/// `NAME=value`, one per line; other lines are skipped, as systemd does.
fn parse(text: &str) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(&first) = rest.peek() {
        if matches!(first, ' ' | '\t' | '\n' | '\r') {
            rest.next();
        } else if first == '#' || first == ';' {
            skip_line(&mut rest);
        } else if let Some(name) = name(&mut rest) {
            let value = value(&mut rest);
            if is_name(&name) {
                variables.push((name, value));
            }
        }
    }
    variables
}

/// A backslash at the end of a comment does not carry it on, as of systemd 254.
fn skip_line(rest: &mut Peekable<Chars>) {
    rest.by_ref().find(|c| *c == '\n');
}

/// The text before the `=`; nothing for a line without one.
fn name(rest: &mut Peekable<Chars>) -> Option<String> {
    let mut name = String::new();
    for c in rest.by_ref() {
        match c {
            '=' => return Some(name.trim_end().to_owned()),
            '\n' => return None,
            _ => name.push(c),
        }
    }
    None
}

/// Whether this is a valid name of a variable: a process cannot be started with another.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Up to the end of its line. A quoted part may go over several; another part may follow it.
fn value(rest: &mut Peekable<Chars>) -> String {
    let mut value = String::new();
    while let Some(c) = rest.next() {
        match c {
            '\n' => break,
            '\'' => value.extend(rest.by_ref().take_while(|&c| c != '\'')),
            '"' => in_double_quotes(rest, &mut value),
            c if c.is_whitespace() => {}
            c => {
                bare(c, rest, &mut value);
                break;
            }
        }
    }
    value.retain(|c| c != '\0');
    value
}

fn in_double_quotes(rest: &mut Peekable<Chars>, value: &mut String) {
    while let Some(c) = rest.next() {
        match c {
            '"' => return,
            '\\' => match rest.next() {
                Some(c @ ('"' | '\\' | '`' | '$')) => value.push(c),
                Some('\n') | None => {}
                Some(c) => value.extend(['\\', c]),
            },
            c => value.push(c),
        }
    }
}

/// Quotes within it are its own; blanks at its end are not.
fn bare(first: char, rest: &mut Peekable<Chars>, value: &mut String) {
    let mut next = Some(first);
    let mut end = value.len();
    while let Some(c) = next {
        match c {
            '\n' => break,
            '\\' => {
                if let Some(c) = rest.next().filter(|&c| c != '\n') {
                    value.push(c);
                }
                end = value.len();
            }
            c => {
                value.push(c);
                if !c.is_whitespace() {
                    end = value.len();
                }
            }
        }
        next = rest.next();
    }
    value.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<(String, String)> {
        parse(text)
    }

    fn one(text: &str) -> String {
        let variables = parse(text);
        assert_eq!(variables.len(), 1, "{variables:?}");
        variables.into_iter().next().map(|(_, value)| value).unwrap_or_default()
    }

    #[test]
    fn each_line_is_a_variable_and_comments_are_none() {
        let text = "# of C:\\\n; and\n\nA=1\n  B = two words  \nexport C=3\nno line\nD=";
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(of(text), [pair("A", "1"), pair("B", "two words"), pair("D", "")]);
    }

    #[test]
    fn what_a_shell_would_expand_or_cut_is_taken_as_it_is() {
        assert_eq!(
            one("A=postgres://u:$p`&x#y@h/d?a=b&c='d'"),
            "postgres://u:$p`&x#y@h/d?a=b&c='d'"
        );
    }

    #[test]
    fn quotes_around_a_value_are_not_its_own() {
        assert_eq!(one("A='s e $c \\ '\n"), "s e $c \\ ");
        assert_eq!(one(r#"A="q \" b \\ d \$ n \n""#), r#"q " b \ d $ n \n"#);
        assert_eq!(one("A=\"a\" b"), "ab");
        assert_eq!(one("A='over\nlines'"), "over\nlines");
    }

    #[test]
    fn a_backslash_takes_the_next_character_as_it_is_and_joins_lines() {
        assert_eq!(one("A=a\\\\b\\ \n"), "a\\b ");
        assert_eq!(one("A=a\\\nb\n"), "ab");
    }

    #[test]
    fn the_command_that_is_started_anew_lacks_the_option() {
        let given = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let kept = given(&["verify", "runs", "--full"]);
        assert_eq!(
            without_option(&given(&["w", "--env-file", "f", "verify", "runs", "--full"])),
            kept
        );
        assert_eq!(
            without_option(&given(&["w", "verify", "--env-file=f", "runs", "--full"])),
            kept
        );
    }
}
