use std::time::Duration;

use walhouse::error::ErrorKind;
use walhouse::postgres::PostgresParams;
use walhouse::postgres::advisory_lock::AdvisoryLock;
use walhouse::postgres::sql::Sql;

use super::server::database;
use super::{expect_error, run, soon, value, wait_until};

const TERM: Duration = Duration::from_secs(30);

fn acquire(params: &PostgresParams, slot: &str) -> Option<AdvisoryLock> {
    AdvisoryLock::try_acquire(params, slot, TERM, soon()).unwrap()
}

/// The backend that holds an advisory lock in this database.
fn holder(sql: &mut Sql) -> String {
    value(
        sql,
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database = \
                (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
}

#[test]
fn one_session_leads_until_it_lets_go() {
    let (params, _sql) = database();
    let mut first = acquire(&params, "s'lot").expect("the lock is free");
    assert!(acquire(&params, "s'lot").is_none());
    let other = acquire(&params, "another").expect("another slot has another lock");
    first.extend(soon()).unwrap();
    first.release(soon()).unwrap();
    let second = acquire(&params, "s'lot").expect("the first has let go");
    drop(second);
    drop(other);
    wait_until("the server sees the connection end", || acquire(&params, "s'lot").is_some());
}

#[test]
fn a_lost_session_or_lock_is_noticed_by_the_next_extend() {
    let (params, mut sql) = database();
    let mut lock = acquire(&params, "slot").unwrap();
    let pid = holder(&mut sql);
    run(&mut sql, &format!("SELECT pg_terminate_backend({pid})"));
    wait_until("the lock is free", || acquire(&params, "slot").is_some());
    let lost = lock.extend(soon());
    let Err(error) = lost else { panic!("extended a lock that is gone") };
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}

#[test]
fn a_silent_server_ends_an_extend_at_its_deadline() {
    let (params, mut sql) = database();
    let mut lock = acquire(&params, "slot").unwrap();
    let pid = holder(&mut sql);
    let signal = |name: &str| {
        assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    signal("-STOP");
    let started = std::time::Instant::now();
    let result = lock.extend(started + Duration::from_millis(500));
    let took = started.elapsed();
    signal("-CONT");
    expect_error(result, ErrorKind::Unreachable, "no answer within 0.5s");
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

#[test]
fn the_server_is_asked_to_give_up_a_vanished_client_after_the_term() {
    let (params, mut sql) = database();
    let _lock = acquire(&params, "slot").unwrap();
    // The settings of another session are not to be seen, so the socket itself is looked at: its
    // keepalive timer runs towards half the term.
    let pid = holder(&mut sql);
    let port =
        value(&mut sql, &format!("SELECT client_port FROM pg_stat_activity WHERE pid = {pid}"));
    let remote = format!("0100007F:{:04X}", port.parse::<u16>().unwrap());
    // Other servers may have had a client at that port a minute ago.
    let local = format!("0100007F:{:04X}", params.hosts[0].port);
    // `02:` is the keepalive timer, and what follows when it fires, in hundredths of a second.
    let mut fires = None;
    wait_until("the keepalive timer of the server's socket runs", || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        fires = sockets
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|fields| fields.get(1..3) == Some(&[local.as_str(), remote.as_str()]))
            .and_then(|fields| fields[5].strip_prefix("02:").map(str::to_owned));
        fires.is_some()
    });
    let seconds = u64::from_str_radix(&fires.unwrap(), 16).unwrap() / 100;
    assert!((5..=15).contains(&seconds), "{seconds}");
}
