//! Runs what the arguments ask for, and returns the exit code.
//!
//! One file or folder for each command. `args` describes the command line once, for parsing, help
//! and completions. A command asks other rooms and prints what they return: what is to be done is
//! decided further down.

mod adopt;
mod args;
mod backfill;
mod check;
mod config;
mod env_file;
mod help;
pub mod log_queue;
mod logging;
pub mod manual;
mod pager;
mod progress;
mod run;
mod status;
mod teardown;
mod verify;

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::process::ExitCode;

use clap::Parser;

use self::args::{Arguments, Command};
pub use self::run::run;
use self::verify::VerifyOutcome;

use crate::config::{Config, ServiceConfig, ServiceName, effective};
use crate::error::Error;
use crate::mending::request::BackfillRequest;

/// The arguments or the configuration are wrong: `EX_USAGE` of sysexits(3).
pub const EXIT_USAGE: u8 = 64;
/// The exit code of `verify` if some keys could not be compared and none is known to differ.
const EXIT_UNKNOWN: u8 = 2;

/// `arguments` with the name of the program.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let code = run_command(arguments);
    logging::flush();
    code
}

fn run_command(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let given: Vec<OsString> = arguments.into_iter().collect();
    let arguments = match Arguments::try_parse_from(&given) {
        Ok(arguments) => arguments,
        // Help and version come this way too, for stdout.
        Err(answer) if !answer.use_stderr() => return print(answer.to_string()),
        Err(refusal) => return refuse(refusal.to_string().trim_end()),
    };
    if let Some(file) = arguments.env_file {
        return refuse(&format!("walhouse: {}", env_file::restart(&file, &given)));
    }
    let command = arguments.command.unwrap_or(Command::Run);
    if needs_config(&command) {
        env_file::point_to_it();
    }
    match command {
        Command::Run => with_config(run),
        Command::Adopt { service } => with_service(&service, |service| {
            let text = adopt::adopt(service)?;
            Ok(print(format!("{text}\n")))
        }),
        Command::Teardown { service, publication, yes } => with_service(&service, |service| {
            Ok(print(teardown::run(service, teardown::Wish { publication, yes })?))
        }),
        Command::Status { json, watch, url } => {
            status::status(&status::Options { json, watch, url })
        }
        Command::Check { json } => run_check(json),
        Command::Backfill { service, from, to, ids, all_statuses, resume } => {
            let request = BackfillRequest { from, to, all_statuses, of_list: ids.is_some() };
            with_service(&service, |service| {
                backfill::backfill(service, request, ids.as_deref(), resume).map(print)
            })
        }
        Command::Verify { service, sample, full, repair, json } => {
            with_service(&service, |service| {
                let (text, outcome) = verify::verify(service, sample, full, repair, json)?;
                let printed = print(text);
                Ok(match outcome {
                    VerifyOutcome::Equal => printed,
                    VerifyOutcome::Differing => ExitCode::FAILURE,
                    VerifyOutcome::Unknown => ExitCode::from(EXIT_UNKNOWN),
                })
            })
        }
        Command::Config { json } => {
            let settings = effective::from_env();
            print(if json { config::json(&settings) } else { config::text(&settings) })
        }
        Command::Version => print(format!("walhouse {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Completions { shell } => print(args::completions(shell)),
        Command::Explain { line } => explain(&line),
        Command::Help { topic } => show_help(topic.as_deref()),
        Command::Man { topic: None } => match args::man() {
            Ok(page) => print(page),
            Err(cause) => fail(&Error::new(crate::error::ErrorKind::Setup, "man").because(cause)),
        },
        Command::Man { topic: Some(name) } => match manual::find(&name) {
            Some(topic) => print(topic.to_man()),
            None => refuse_topic(&name),
        },
    }
}

fn needs_config(command: &Command) -> bool {
    match command {
        Command::Run
        | Command::Completions { .. }
        | Command::Explain { .. }
        | Command::Help { .. }
        | Command::Man { .. }
        | Command::Version => false,
        Command::Status { url, .. } => url.is_none(),
        Command::Adopt { .. }
        | Command::Teardown { .. }
        | Command::Check { .. }
        | Command::Backfill { .. }
        | Command::Verify { .. }
        | Command::Config { .. } => true,
    }
}

fn show_help(name: Option<&str>) -> ExitCode {
    match args::help_of(name) {
        Some(args::Help::Command(text)) => print(text),
        Some(args::Help::Topic(topic)) => match pager::columns() {
            Some(columns) => {
                let text = topic.to_text(columns, true);
                if pager::show(&text) { ExitCode::SUCCESS } else { print(text) }
            }
            None => print(topic.to_text(80, false)),
        },
        None => refuse_topic(name.unwrap_or_default()),
    }
}

fn refuse_topic(name: &str) -> ExitCode {
    refuse(&format!("walhouse: no topic or command `{name}`\n\n{}", manual::list().trim_end()))
}

/// A line, or a log from stdin.
fn explain(line: &str) -> ExitCode {
    let text = match line {
        "-" => {
            let mut log = Vec::new();
            if let Err(cause) = std::io::stdin().read_to_end(&mut log) {
                let error = Error::new(crate::error::ErrorKind::Setup, "read the log from stdin");
                return fail(&error.because(cause));
            }
            // Other programs may write into the same log.
            String::from_utf8_lossy(&log).into_owned()
        }
        line => line.to_owned(),
    };
    let (answer, all_known) = manual::explain::explain(&text);
    let printed = print(answer);
    if all_known { printed } else { ExitCode::FAILURE }
}

/// 0, 1 if there is a problem, 64 if the configuration is one.
fn run_check(json: bool) -> ExitCode {
    let (report, failure) = match Config::from_env() {
        Ok(config) => (check::check(&config), ExitCode::FAILURE),
        Err(problems) => (check::refused(&problems), ExitCode::from(EXIT_USAGE)),
    };
    let printed = print(if json { report.json() } else { report.text() });
    if report.has_problems() { failure } else { printed }
}

fn with_config(act: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match Config::from_env() {
        Ok(config) => act(config),
        Err(problems) => refuse(&problems.to_string()),
    }
}

/// For the service of that name, as it would be if it was the one that is on: commands are for
/// services that are turned off, too.
fn with_service(
    name: &ServiceName,
    act: impl FnOnce(&ServiceConfig) -> crate::error::Result<ExitCode>,
) -> ExitCode {
    match Config::of_service(name) {
        Ok(config) => {
            logging::init_for_answer(&config);
            act(&config).unwrap_or_else(|error| fail(&error))
        }
        Err(problems) => refuse(&problems.to_string()),
    }
}

fn fail(error: &Error) -> ExitCode {
    let mut text = format!("walhouse: {error}\n");
    if let Some(hint) = error.hint_text() {
        text.push_str(&format!("  hint: {hint}\n"));
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::FAILURE
}

fn refuse(text: &str) -> ExitCode {
    // If stderr is closed there is nobody to report it to; the exit code still shows it.
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(EXIT_USAGE)
}

fn print(text: impl AsRef<[u8]>) -> ExitCode {
    match std::io::stdout().write_all(text.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        // `walhouse help | head` closes early, which is not a failure.
        Err(cause) if cause.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
