//! Ordinary SQL against a real Postgres: connecting, publication, table, slot, re-reading, lock.
//!
//! `WALHOUSE_PG_BIN` names another folder of server programs than that of Postgres 15.

use std::time::{Duration, Instant};

use walhouse::error::{ErrorKind, Result};
use walhouse::postgres::params::{Host, PostgresParams, SslMode, TargetSession};
use walhouse::postgres::sql::Sql;

#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "support/proxy.rs"]
mod proxy;
#[path = "postgres_sql/server.rs"]
mod server;

#[path = "postgres_sql/barriers.rs"]
mod barriers;
#[path = "postgres_sql/catalog_looks.rs"]
mod catalog_looks;
#[path = "postgres_sql/connecting.rs"]
mod connecting;
#[path = "postgres_sql/copying.rs"]
mod copying;
#[path = "postgres_sql/describing.rs"]
mod describing;
#[path = "postgres_sql/finding.rs"]
mod finding;
#[path = "postgres_sql/key_reading.rs"]
mod key_reading;
#[path = "postgres_sql/locking.rs"]
mod locking;
#[path = "postgres_sql/publishable.rs"]
mod publishable;
#[path = "postgres_sql/publishing.rs"]
mod publishing;
#[path = "postgres_sql/reading.rs"]
mod reading;
#[path = "postgres_sql/rereading.rs"]
mod rereading;
#[path = "postgres_sql/slots.rs"]
mod slots;
#[path = "postgres_sql/table_reading.rs"]
mod table_reading;

const SOON: Duration = Duration::from_secs(20);

fn soon() -> Instant {
    Instant::now() + SOON
}

fn params(port: u16, database: &str) -> PostgresParams {
    PostgresParams {
        hosts: vec![Host::new("127.0.0.1", port)],
        user: "postgres".into(),
        password: None,
        database: database.into(),
        ssl_mode: SslMode::Disable,
        ssl_root_cert: None,
        ssl_cert: None,
        ssl_key: None,
        connect_timeout: Duration::from_secs(10),
        target: TargetSession::ReadWrite,
        options: None,
        halt: walhouse::halt::Halt::default(),
    }
}

fn connect(params: &PostgresParams) -> Sql {
    Sql::connect(params, "test", soon()).unwrap()
}

fn run(sql: &mut Sql, statement: &str) {
    sql.execute(statement, statement, soon()).unwrap();
}

/// The only value of a query, as text.
fn value(sql: &mut Sql, query: &str) -> String {
    let rows = sql.rows(query, query, soon()).unwrap();
    rows[0].required(0).unwrap().to_owned()
}

#[track_caller]
fn expect_error<T>(result: Result<T>, kind: ErrorKind, part: &str) -> String {
    let Err(error) = result else { panic!("expected an error with `{part}`") };
    let line = error.to_string();
    assert_eq!(error.kind(), kind, "{line}");
    assert!(line.contains(part), "expected `{part}` in: {line}");
    assert!(!line.contains('\n'), "{line}");
    error.hint_text().unwrap_or_default().to_owned()
}

/// Polls until it holds; fails saying what it waited for.
#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = soon();
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
