//! The command line: the one description behind parsing, help, shell completions and the man page.
//!
//! It has few options: the configuration is in the environment.

use std::io::Write;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{help, manual};
use crate::config::{BuiltIn, SERVICES, ServiceName};
use crate::mending::request::Moment;

const ABOUT: &str =
    "Replicates Postgres tables into ClickHouse through logical replication, and loses no row.";

#[derive(Debug, Parser)]
#[command(name = "walhouse", version, about = ABOUT, max_term_width = 80)]
#[command(after_long_help = help::after(), after_help = help::more())]
#[command(disable_help_subcommand = true)]
pub struct Arguments {
    /// Read the variables from a systemd environment file, such as /etc/walhouse/walhouse.env
    #[arg(long, global = true, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand, PartialEq, Eq)]
pub enum Command {
    /// Replicate until SIGTERM or SIGINT; the default without a command
    Run,
    /// Follow the cluster that DATABASE_URL leads to from now on
    ///
    /// Use it after pg_upgrade or a restore. The next start compares the whole table and makes
    /// ClickHouse equal to it.
    Adopt {
        /// The service that is to follow it
        #[arg(value_parser = service())]
        service: ServiceName,
    },
    /// Drop a service's slot, and with it the WAL that Postgres keeps for it
    ///
    /// Use it when a service is to stay off. First stop walhouse wherever the service is on.
    /// Tables in ClickHouse stay as they are.
    Teardown {
        /// The service that owns the slot
        #[arg(value_parser = service())]
        service: ServiceName,
        /// Also drop the publication
        #[arg(long)]
        publication: bool,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Show where replication stands; exits with 1 if something is wrong
    ///
    /// Asks the running process at REPLICATION_HTTP_LISTEN, or else Postgres, Redis and ClickHouse
    /// themselves.
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Repeat every so many seconds
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
        #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
        watch: Option<u64>,
        /// Ask the process at this address; needs no configuration
        #[arg(long, value_name = "http://HOST:PORT")]
        url: Option<String>,
    },
    /// Check everything that a start needs, and say what is wrong and how to fix it
    ///
    /// Leaves nothing behind. Exits with 0, with 1 if there is a problem, and with 64 if the
    /// configuration is wrong.
    Check {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy rows of Postgres that are missing in ClickHouse or differ there
    ///
    /// Works while the service streams or is stopped: streamed changes always win. It can be
    /// interrupted at any time; continue with --resume, or run it again.
    Backfill {
        /// The service to copy
        #[arg(value_parser = service())]
        service: ServiceName,
        /// Rows created at this moment of UTC or later: 2026-01-31, 2026-01-31T10:00:00
        #[arg(long, value_name = "T", conflicts_with = "resume")]
        from: Option<Moment>,
        /// Rows created before this moment
        #[arg(long, value_name = "T", conflicts_with = "resume")]
        to: Option<Moment>,
        /// Rows whose ids are in this file, one per line; `-` is stdin
        #[arg(long, value_name = "FILE")]
        ids: Option<PathBuf>,
        /// Also runs that are not in a final status; of other services all rows are copied
        #[arg(long, conflicts_with = "resume")]
        all_statuses: bool,
        /// Continue the last backfill that was not finished
        #[arg(long)]
        resume: bool,
    },
    /// Compare Postgres and ClickHouse while the service streams
    ///
    /// Names the keys that differ, and their columns. Changes that are still being streamed do not
    /// count. Without --full it compares a sample of both sides, which takes a moment. Exit code 0:
    /// equal, 1: something differs.
    Verify {
        /// The service to compare
        #[arg(value_parser = service())]
        service: ServiceName,
        /// About so many rows of each side, chosen at random (default 1000)
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        sample: Option<u64>,
        /// Every row of both sides
        #[arg(long, conflicts_with = "sample")]
        full: bool,
        /// Write rows that are missing or differ, mark rows that are not in Postgres as deleted
        #[arg(long)]
        repair: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the effective configuration and where each value comes from, without secrets
    Config {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what a log line means and what to do
    ///
    /// Exits with 0, or with 1 if a line is not known. All lines: walhouse help troubleshooting.
    Explain {
        /// The line, or a part of it; `-` reads a log from stdin, explains its warnings and errors
        #[arg(value_name = "LOG LINE")]
        line: String,
    },
    /// Show a topic of the manual, or the options of a command
    ///
    /// Without one: lists the commands and topics.
    Help {
        /// Such as `failover`; of `backfill`, a topic and a command, it shows the topic
        topic: Option<String>,
    },
    /// Print the version
    Version,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the man page of the program, or of a topic of the manual, as roff
    Man {
        /// Such as `failover`
        topic: Option<String>,
    },
}

/// The name of a service on the command line.
fn service() -> impl TypedValueParser<Value = ServiceName> {
    let value = |service: &BuiltIn| {
        PossibleValue::new(service.name).help(format!("Table {}", service.source))
    };
    PossibleValuesParser::new(SERVICES.iter().map(value))
        .map(|name| ServiceName::find(&name).expect("only these are accepted"))
}

pub fn completions(shell: Shell) -> Vec<u8> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "walhouse", &mut out);
    out
}

/// What `walhouse help` says of a topic of the manual, or else of a command.
pub fn help_of(name: Option<&str>) -> Option<Help> {
    let mut command = Arguments::command();
    command.build();
    let Some(name) = name else {
        return Some(Help::Command(command.render_help().to_string()));
    };
    match manual::find(name) {
        Some(topic) => Some(Help::Topic(topic)),
        None => {
            let below = command.find_subcommand_mut(name)?;
            Some(Help::Command(below.render_long_help().to_string()))
        }
    }
}

pub enum Help {
    Command(String),
    Topic(&'static manual::Topic),
}

/// One page for all commands, the variables included.
pub fn man() -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut command = Arguments::command();
    command.build();
    let page = Man::new(command.clone());
    page.render_title(&mut out)?;
    page.render_name_section(&mut out)?;
    page.render_synopsis_section(&mut out)?;
    page.render_description_section(&mut out)?;
    writeln!(out, ".SH COMMANDS")?;
    for below in command.get_subcommands() {
        writeln!(out, ".SS {}", below.get_name())?;
        let page = Man::new(below.clone());
        let mut text = Vec::new();
        page.render_description_section(&mut text)?;
        if below.get_arguments().any(|argument| !argument.is_hide_set()) {
            page.render_options_section(&mut text)?;
        }
        // clap renders a whole page per command; its headings are too large for a section of this
        // one.
        for line in String::from_utf8_lossy(&text).lines().filter(|l| !l.starts_with(".SH")) {
            writeln!(out, "{line}")?;
        }
    }
    help::roff_variables(&mut out)?;
    writeln!(out, ".SH SEE ALSO")?;
    let pages = manual::TOPICS.iter().map(|topic| format!("walhouse-{}(7)", topic.name));
    writeln!(out, "{}", help::roff_escaped(&pages.collect::<Vec<_>>().join(",\n")))?;
    page.render_version_section(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Option<Command>, String> {
        let arguments = std::iter::once("walhouse").chain(arguments.iter().copied());
        Arguments::try_parse_from(arguments)
            .map(|parsed| parsed.command)
            .map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn the_description_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn commands_are_told_apart() {
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&["run"]), Ok(Some(Command::Run)));
        let named = |name| ServiceName::find(name).expect("it is one");
        let adopt = Command::Adopt { service: named("runs") };
        assert_eq!(parse(&["adopt", "runs"]), Ok(Some(adopt)));
        let (service, repair, json) = (named("sessions"), true, false);
        let verify = Command::Verify { service, sample: Some(5), full: false, repair, json };
        assert_eq!(parse(&["verify", "sessions", "--sample", "5", "--repair"]), Ok(Some(verify)));
    }

    #[test]
    fn what_is_unknown_is_named() {
        for (arguments, named) in [
            (&["rnu"][..], "'rnu'"),
            (&["adopt"], "<SERVICE>"),
            (&["adopt", "run"], "'run'"),
            (&["run", "run"], "'run'"),
            (&["--jsno"], "'--jsno'"),
            (&["verify", "runs", "--full", "--sample", "5"], "'--sample"),
            (&["backfill", "runs", "--from", "yesterday"], "a moment of UTC such as"),
            (&["backfill", "runs", "--resume", "--to", "2026-01-31"], "'--resume'"),
        ] {
            let refusal = parse(arguments).expect_err("it is wrong");
            assert!(refusal.contains(named), "{arguments:?}: {refusal}");
        }
    }

    #[test]
    fn completions_and_man_page_know_the_commands_and_the_variables() {
        let man = String::from_utf8(man().expect("it renders")).expect("it is text");
        for command in Arguments::command().get_subcommands() {
            let name = command.get_name();
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                let text = String::from_utf8(completions(shell)).expect("it is text");
                assert!(text.contains(name), "{shell} {name}");
            }
            assert!(man.contains(name), "{name}");
        }
        for variable in crate::config::variables::all() {
            assert!(man.contains(&variable.name.replace('-', "\\-")), "{}", variable.name);
        }
    }
}
