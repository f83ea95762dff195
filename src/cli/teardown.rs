//! `walhouse teardown <service>`: drops the slot, and the publication if that is asked for, once an
//! operator has agreed.

mod removal;

use std::io::{IsTerminal, Write};

use self::removal::{Dropped, FoundSlot, Removable};

use crate::config::ServiceConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::overview::words;

/// The options of the command line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub publication: bool,
    /// Nobody is asked.
    pub yes: bool,
}

/// What was done, in sentences for the operator.
pub(super) fn run(config: &ServiceConfig, wish: Wish) -> Result<String> {
    let found = removal::look(config)?;
    if found.slot.is_none() && !(wish.publication && found.publication) {
        return Ok(nothing(config, &found));
    }
    let question = question(config, &found, wish);
    if !wish.yes && !agreed(&question)? {
        return Ok("Nothing was done.\n".into());
    }
    let dropped = removal::drop(config, wish.publication, |patience| {
        eprintln!(
            "The leader lock is held; waiting up to {} s in case its holder is gone.",
            patience.as_secs()
        );
    })?;
    Ok(told(config, dropped))
}

fn nothing(config: &ServiceConfig, found: &Removable) -> String {
    let Removable { server, publication, .. } = found;
    let (slot, name) = (&config.slot, &config.publication);
    let publication = match publication {
        true => format!("; publication `{name}` exists; `--publication` drops it"),
        false => String::new(),
    };
    format!("Nothing to do: there is no slot `{slot}` on {server}{publication}.\n")
}

fn question(config: &ServiceConfig, found: &Removable, wish: Wish) -> String {
    let mut parts = Vec::new();
    if let Some(slot) = found.slot {
        let in_use = if slot.active { " (in use now)" } else { "" };
        parts.push(format!("slot `{}`{in_use}, which keeps {}", config.slot, kept(slot)));
    }
    if wish.publication && found.publication {
        parts.push(format!("publication `{}`", config.publication));
    }
    format!("Drop {} on {}?", parts.join(", and "), found.server)
}

fn kept(slot: FoundSlot) -> String {
    match slot.retained_bytes {
        Some(bytes) => format!("{} of WAL", words::bytes(bytes)),
        None => "no WAL any more".to_owned(),
    }
}

fn agreed(question: &str) -> Result<bool> {
    let (stdin, mut stderr) = (std::io::stdin(), std::io::stderr());
    let refused = |cause: &str| {
        Error::new(ErrorKind::Setup, "ask whether to tear down")
            .because(cause)
            .hint("Pass `--yes` to do it without being asked.")
    };
    if !stdin.is_terminal() {
        return Err(refused(&format!("there is no terminal to ask at: {question}")));
    }
    let asked = write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush());
    asked.map_err(|cause| refused(&cause.to_string()))?;
    let mut answer = String::new();
    stdin.read_line(&mut answer).map_err(|cause| refused(&cause.to_string()))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn told(config: &ServiceConfig, dropped: Dropped) -> String {
    let mut out = String::new();
    match dropped.slot {
        Some(slot) => out.push_str(&format!(
            "Dropped slot `{}`. It kept {}; Postgres removes at its next checkpoints what nothing \
             else needs.\n",
            config.slot,
            kept(slot)
        )),
        None => out.push_str(&format!("Slot `{}` no longer existed.\n", config.slot)),
    }
    if dropped.publication {
        out.push_str(&format!("Dropped publication `{}`.\n", config.publication));
    }
    out.push_str(&format!(
        "ClickHouse is unchanged. A walhouse with service `{}` enabled, even one that stands by, \
         creates the slot again and then compares the whole table.\n",
        config.name.as_str()
    ));
    out
}
