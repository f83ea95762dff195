//! The text of `walhouse help`: usage, exit codes and every variable.

use std::fmt::Write;

use crate::config::variables::{Preset, SECTIONS, Variable};

const WIDTH: usize = 80;

const USAGE: &str = "\
walhouse replicates Postgres tables into ClickHouse through logical replication.

Usage:
  walhouse [run]      Replicate until told to stop by SIGTERM or SIGINT
  walhouse adopt runs|sessions
                      Follow the cluster that DATABASE_URL leads to from now on,
                      after pg_upgrade or a restore; the next start compares
                      the whole table and makes ClickHouse equal to it
  walhouse help       Print this (also --help, -h)
  walhouse version    Print the version (also --version, -V)

Exit codes:
  0   stopped as told
  1   failed; strategy exit may have another code
  64  the arguments or the configuration are wrong

The configuration is in the environment. `*_` stands for `RUN_` (service runs,
table TaskRun) or `SESSION_` (service sessions, table Session). An empty
variable counts as unset.
";

pub(super) fn text() -> String {
    let mut out = String::from(USAGE);
    for section in SECTIONS {
        let _ = writeln!(out, "\n{}:", section.title);
        for variable in section.variables {
            add(&mut out, variable);
        }
    }
    out
}

fn add(out: &mut String, variable: &Variable) {
    let _ = writeln!(out, "  {}", variable.name);
    wrap(out, variable.about);
    let accepted = variable.kind.accepted();
    match variable.preset {
        Preset::Unset => wrap(out, &format!("({accepted})")),
        _ => wrap(out, &format!("({accepted}; default: {})", variable.preset_text())),
    }
}

fn wrap(out: &mut String, text: &str) {
    const INDENT: &str = "      ";
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && INDENT.len() + line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "{INDENT}{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(out, "{INDENT}{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::variables;

    #[test]
    fn help_names_every_variable_in_lines_that_fit() {
        let text = text();
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
            "  REDIS_PORT\n      Likewise.\n      \
             (a whole number from 1 to 65535; default: 6379)\n"
        );
    }
}
