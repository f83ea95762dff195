//! What the arguments ask for, and what the process answers with.
//!
//! There is little to say on the command line: the configuration is in the environment.

mod adopt;
mod help;
pub mod logging;
mod run;

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

pub use run::run;

use crate::config::Config;

/// The arguments or the configuration are wrong: `EX_USAGE` of sysexits(3).
pub const EXIT_USAGE: u8 = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Command {
    Run,
    /// Of which service.
    Adopt(String),
    Help,
    Version,
}

/// `arguments` without the name of the program.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match parse(arguments) {
        Ok(Command::Run) => match Config::from_env() {
            Ok(config) => run(config),
            Err(problems) => refuse(&problems.to_string()),
        },
        Ok(Command::Adopt(service)) => match Config::from_env() {
            Ok(config) => adopt_service(&config, &service),
            Err(problems) => refuse(&problems.to_string()),
        },
        Ok(Command::Help) => print(&help::text()),
        Ok(Command::Version) => print(&format!("walhouse {}\n", env!("CARGO_PKG_VERSION"))),
        Err(refusal) => refuse(&refusal),
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut command = None;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let asked = match argument.to_str() {
            Some("run") => Command::Run,
            Some("adopt") => match arguments.next().as_ref().and_then(|name| name.to_str()) {
                Some("help" | "--help" | "-h") => return Ok(Command::Help),
                Some(service) => Command::Adopt(service.to_owned()),
                None => return Err("walhouse: adopt: expected `runs` or `sessions`".into()),
            },
            // Wins over whatever else is there: who asks for help has reason to.
            Some("help" | "--help" | "-h") => return Ok(Command::Help),
            Some("version" | "--version" | "-V") => Command::Version,
            Some(_) | None => {
                let shown = argument.to_string_lossy();
                let shown = shown.escape_debug();
                return Err(format!("walhouse: `{shown}` is not a command: see `walhouse help`"));
            }
        };
        if command.replace(asked).is_some() {
            return Err("walhouse: expected one command: see `walhouse help`".into());
        }
    }
    Ok(command.unwrap_or(Command::Run))
}

fn adopt_service(config: &Config, name: &str) -> ExitCode {
    let service = match adopt::find(&config.services, &config.off, name) {
        Ok(service) => service,
        Err(refusal) => return refuse(&refusal),
    };
    match adopt::adopt(service) {
        Ok(text) => print(&format!("{text}\n")),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{}", adopt::explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn refuse(text: &str) -> ExitCode {
    // Nobody is left to be told when stderr is closed; the exit code still says it.
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(EXIT_USAGE)
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // `walhouse help | head` closes early, which is no failure of ours.
        Err(cause) if cause.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(arguments: &[&str], expected: Result<Command, &str>) {
        let found = parse(arguments.iter().map(OsString::from));
        assert_eq!(found, expected.map_err(String::from), "{arguments:?}");
    }

    #[test]
    fn commands_are_told_apart() {
        check(&[], Ok(Command::Run));
        check(&["run"], Ok(Command::Run));
        check(&["adopt", "runs"], Ok(Command::Adopt("runs".into())));
        for word in ["help", "--help", "-h"] {
            check(&[word], Ok(Command::Help));
            check(&["run", word], Ok(Command::Help));
        }
        for word in ["version", "--version", "-V"] {
            check(&[word], Ok(Command::Version));
        }
    }

    #[test]
    fn unknown_and_surplus_arguments_are_refused() {
        check(&["rnu"], Err("walhouse: `rnu` is not a command: see `walhouse help`"));
        check(&["run", "x\n"], Err("walhouse: `x\\n` is not a command: see `walhouse help`"));
        check(&[""], Err("walhouse: `` is not a command: see `walhouse help`"));
        check(&["adopt"], Err("walhouse: adopt: expected `runs` or `sessions`"));
        check(&["run", "run"], Err("walhouse: expected one command: see `walhouse help`"));
    }
}
