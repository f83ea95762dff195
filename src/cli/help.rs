//! What help and the man page say beyond the commands: exit codes and every variable.

use std::fmt::Write as _;
use std::io::Write as _;

use super::manual;
use crate::config::variables::{Preset, SECTIONS, Variable};
use crate::config::{BuiltIn, SERVICES};

const WIDTH: usize = 80;
const INDENT: &str = "      ";

/// After the short help.
pub(super) fn more() -> String {
    let variables = "`walhouse --help` also lists the variables of the configuration.";
    format!("{}\n{variables}", manual::list())
}

const EXIT_CODES: &str = "Exit codes:
  0   stopped on request, done, or nothing is wrong
  1   failed, or something is wrong; strategy exit may have another code
  2   verify: nothing differs, but some keys changed too fast to be compared
  64  the arguments or the configuration are wrong
";

/// Exit codes, and how variables are called.
fn exit_codes() -> String {
    let mut out = format!("{EXIT_CODES}\n");
    let prefix = |service: &BuiltIn| {
        let BuiltIn { prefix, name, source, .. } = service;
        format!("`{prefix}_` (service {name}, table {source})")
    };
    let prefixes: Vec<String> = SERVICES.iter().map(prefix).collect();
    let (last, others) = prefixes.split_last().expect("there are services");
    wrap(
        &mut out,
        "",
        &format!(
            "The configuration is in the environment. `*_` stands for {} or {last}. An empty \
             variable counts as unset.",
            others.join(", ")
        ),
    );
    out
}

/// After the long help: exit codes and every variable.
pub(super) fn after() -> String {
    let mut out = exit_codes();
    for section in SECTIONS {
        let _ = writeln!(out, "\n{}:", section.title);
        for variable in section.variables {
            add(&mut out, variable);
        }
    }
    out
}

/// The same for the man page.
pub(super) fn roff_variables(out: &mut Vec<u8>) -> std::io::Result<()> {
    writeln!(out, ".SH EXIT STATUS\n.nf\n{}.fi", roff_escaped(&exit_codes()))?;
    writeln!(out, ".SH ENVIRONMENT")?;
    for section in SECTIONS {
        writeln!(out, ".SS {}", roff_escaped(section.title))?;
        for variable in section.variables {
            writeln!(out, ".TP\n.B {}", roff_escaped(variable.name))?;
            writeln!(out, "{}", roff_escaped(variable.about))?;
            writeln!(out, ".br\n{}", roff_escaped(&values_of(variable)))?;
        }
    }
    Ok(())
}

/// Escapes `text` so that roff takes no character for a request.
pub(super) fn roff_escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let guarded = |line: &str| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}\n"),
        false => format!("{line}\n"),
    };
    text.lines().map(guarded).collect::<String>().trim_end().to_owned()
}

fn add(out: &mut String, variable: &Variable) {
    let _ = writeln!(out, "  {}", variable.name);
    wrap(out, INDENT, variable.about);
    wrap(out, INDENT, &values_of(variable));
}

fn values_of(variable: &Variable) -> String {
    let accepted = variable.kind.accepted();
    match variable.preset {
        Preset::Unset => format!("({accepted})"),
        _ => format!("({accepted}; default: {})", variable.preset_text()),
    }
}

fn wrap(out: &mut String, indent: &str, text: &str) {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && indent.len() + line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "{indent}{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(out, "{indent}{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::variables;

    #[test]
    fn help_names_every_variable_in_lines_that_fit() {
        let text = after();
        for variable in variables::all() {
            assert!(text.contains(&format!("\n  {}\n", variable.name)), "{}", variable.name);
        }
        for line in text.lines() {
            assert!(line.len() <= WIDTH, "{line}");
        }
    }

    #[test]
    fn a_variable_reads_as_name_sentence_and_values() {
        let mut out = String::new();
        let variable = variables::find("REDIS_PORT").expect("it is known");
        add(&mut out, variable);
        assert_eq!(
            out,
            "  REDIS_PORT\n      Used where `RUN_REPLICATION_REDIS_PORT` is unset.\n      \
             (a whole number from 1 to 65535; default: 6379)\n"
        );
    }

    #[test]
    fn nothing_is_a_request_to_roff_by_accident() {
        assert_eq!(roff_escaped("a-b\n.c\n'd \\e"), "a\\-b\n\\&.c\n\\&'d \\ee");
    }
}
