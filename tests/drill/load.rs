//! The write load as a process of its own.

use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{fs, thread};

use serde_json::json;

use crate::arguments::Arguments;
use crate::support::workload::{Workload, Written};

/// Scripts wait for the counts to grow.
const COUNTS_EVERY: Duration = Duration::from_millis(100);
/// For the transactions at hand; a server that hangs may hold them for ever.
const END_TIMEOUT: Duration = Duration::from_secs(20);

pub fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let counts = arguments.text("counts")?.to_owned();
    let workload = Workload {
        rate: Some(arguments.number("rate", 20.0)?),
        endures: true,
        ..Workload::new(arguments.number("seed", 1)?)
    };
    let (stop, stopped) = mpsc::channel();
    ctrlc::set_handler(move || {
        // Told twice, it is stopping already.
        let _ = stop.send(());
    })
    .map_err(|e| format!("listen for signals: {e}"))?;

    let load = workload.start(&arguments.postgres()?);
    while stopped.recv_timeout(COUNTS_EVERY) == Err(RecvTimeoutError::Timeout) {
        write(&counts, load.written())?;
    }
    let so_far = load.written();
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(load.stop()));
    let written = ended.recv_timeout(END_TIMEOUT);
    write(&counts, written.unwrap_or(so_far))?;
    println!("{}", fs::read_to_string(&counts).map_err(|e| format!("read {counts}: {e}"))?);
    match written {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(_) => Err(format!("a writer hangs since {END_TIMEOUT:?}; its transaction is given up")),
    }
}

/// By a rename: whoever reads the file never finds half of it.
fn write(path: &str, written: Written) -> Result<(), String> {
    let text = json!({
        "committed": written.committed,
        "rolled_back": written.rolled_back,
        "changes": written.changes,
        "reconnects": written.reconnects,
    });
    let unfinished = format!("{path}.unfinished");
    fs::write(&unfinished, text.to_string())
        .and_then(|()| fs::rename(&unfinished, path))
        .map_err(|e| format!("write {path}: {e}"))
}
