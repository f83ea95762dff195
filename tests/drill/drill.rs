//! What `scripts/failover` and `scripts/soak` work with: a write load, a stopwatch, a comparison, a
//! network that can be torn.
//!
//! It stands on the same load and comparison as the tests and uses nothing of walhouse itself. It
//! starts and damages nothing by itself; the scripts do. What is asked for is printed as one JSON
//! object on stdout.

#[path = "../support"]
mod support {
    #![allow(dead_code, reason = "the tests use the rest of it")]

    pub mod database;
    pub mod document;
    pub mod http;
    pub mod oracle;
    pub mod proxy;
    pub mod sample;
    pub mod wait;
    pub mod warehouse;
    pub mod workload;
}

mod arguments;
mod compare;
mod load;
mod proxy;
mod visible;

use std::process::ExitCode;

use arguments::Arguments;

const USAGE: &str = "\
usage: drill COMMAND --NAME VALUE...

load      write until SIGTERM, whatever happens to the servers
          --postgres HOSTS --counts FILE [--seed N] [--rate TRANSACTIONS_PER_SECOND]
          FILE always holds the counts of now: committed, rolled_back, changes, reconnects
visible   write a run and a session, and wait until ClickHouse has both
          --postgres HOSTS --clickhouse URL [--since UNIX_SECONDS] [--within SECONDS]
          prints when they were written and visible, in seconds since then; exit code 1 if never
compare   every column of every row of both sides
          --postgres HOSTS --clickhouse URL [--patience SECONDS]
          prints rows, lost, wrong, extra, repeated; exit code 1 unless both are equal
proxy     pass everything on until it is killed, as a network that may be told to be a bad one
          --listen IP:PORT --to IP:PORT --address FILE --orders FIFO
          FILE says where it listens, for a PORT of 0 above all. Orders, one a line, are for what the
          server sends from then on: `pass`; `tear` (all but the last byte passes, then the
          connection is reset); `lose` (nothing passes, the connection is reset)

HOSTS is HOST:PORT[,HOST:PORT...]; the primary among them is found again for each connection.
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let result = Arguments::parse(words).and_then(|arguments| match command.as_str() {
        "load" => load::run(&arguments),
        "visible" => visible::run(&arguments),
        "compare" => compare::run(&arguments),
        "proxy" => proxy::run(&arguments),
        _ => Err(USAGE.to_owned()),
    });
    result.unwrap_or_else(|problem| {
        eprintln!("{problem}");
        ExitCode::from(2)
    })
}
