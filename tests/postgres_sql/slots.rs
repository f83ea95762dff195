use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use walhouse::error::ErrorKind;
use walhouse::postgres::PostgresParams;
use walhouse::postgres::failover_slot::Failover;
use walhouse::postgres::server::Server as Identity;
use walhouse::postgres::slot::{self, SlotVerdict, terminate_stale_walsender};
use walhouse::postgres::sql::{Sql, literal};
use walhouse::wal::Lsn;

use super::server::{Server, client, database};
use super::{connect, expect_error, params, run, soon, value, wait_until};

/// Slot names are one for the whole server, and tests share it.
fn free_name(sql: &mut Sql) -> String {
    format!("slot_{}", value(sql, "SELECT oid FROM pg_database WHERE datname = current_database()"))
}

/// A walsender on the slot, and the process that keeps it.
struct Consumer(Child);

impl Consumer {
    fn start(
        params: &PostgresParams,
        slot: &str,
        application_name: &str,
        sql: &mut Sql,
    ) -> Consumer {
        let child = client("pg_recvlogical")
            .env("PGAPPNAME", application_name)
            .args(["--host=127.0.0.1", "--username=postgres", "--start", "--file=-", "--no-loop"])
            .args(["--option=proto_version=1", "--option=publication_names=none"])
            .arg(format!("--port={}", params.hosts[0].port))
            .arg(format!("--dbname={}", params.database))
            .arg(format!("--slot={slot}"))
            .stdout(Stdio::null())
            .spawn()
            .expect("run pg_recvlogical");
        let consumer = Consumer(child);
        wait_until("the slot is active", || {
            slot::inspect(sql, slot, soon()).unwrap().unwrap().active
        });
        consumer
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_slot_is_created_found_measured_and_dropped() {
    let (_, mut sql) = database();
    let name = free_name(&mut sql);
    assert_eq!(slot::inspect(&mut sql, &name, soon()).unwrap(), None);
    assert_eq!(slot::retained(&mut sql, &name, soon()).unwrap(), None);
    assert!(!slot::drop(&mut sql, &name, soon()).unwrap());

    let begins = slot::create(&mut sql, &name, Failover::On, soon()).unwrap();
    let state = slot::inspect(&mut sql, &name, soon()).unwrap().unwrap();
    assert_eq!(state.confirmed_flush_lsn, Some(begins));
    assert!(state.restart_lsn.unwrap() <= begins && begins > Lsn(0));
    assert_eq!(state.plugin.as_deref(), Some("pgoutput"));
    assert_eq!(state.wal_status.as_deref(), Some("reserved"));
    assert_eq!((state.active, state.active_pid, state.is_temporary), (false, None, false));
    let is_17 = sql.about().version_num >= 170_000;
    assert_eq!(state.failover, is_17.then_some(true));
    assert_eq!(state.inactive_since.is_some(), is_17);
    assert_eq!(slot::verdict(&sql, &state), SlotVerdict::Usable);

    run(&mut sql, "CREATE TABLE public.t AS SELECT generate_series(1, 10000)");
    let retained = slot::retained(&mut sql, &name, soon()).unwrap().unwrap();
    assert!(retained.bytes().unwrap() > 100_000, "{retained:?}");
    assert!(begins < retained.flushed && retained.flushed <= retained.current, "{retained:?}");
    assert_eq!((retained.safe_bytes, retained.limit_bytes), (None, None), "no limit is set");
    assert_eq!((retained.active_pid, &retained.active_name), (None, &None), "nobody streams");

    // The kind makes the caller look again: the other one may be as good.
    let again = slot::create(&mut sql, &name, Failover::On, soon());
    expect_error(again, ErrorKind::SlotBusy, "SQLSTATE 42710");
    assert!(slot::drop(&mut sql, &name, soon()).unwrap());
    assert_eq!(slot::inspect(&mut sql, &name, soon()).unwrap(), None);
    let hint = expect_error(
        slot::create(&mut sql, "No'\"\\", Failover::On, soon()),
        ErrorKind::Setup,
        "SQLSTATE 42602",
    );
    assert!(hint.contains("lower case"), "{hint}");
}

#[test]
fn slots_of_others_are_told_apart() {
    let (_, mut sql) = database();
    let (_, mut elsewhere) = database();
    let name = free_name(&mut sql);
    run(
        &mut elsewhere,
        &format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"),
    );
    let verdict = |sql: &mut Sql| {
        let state = slot::inspect(sql, &name, soon()).unwrap().unwrap();
        slot::verdict(sql, &state)
    };
    let database = elsewhere.about().database.clone();
    assert_eq!(verdict(&mut sql), SlotVerdict::OtherDatabase { database });
    assert_eq!(verdict(&mut elsewhere), SlotVerdict::Usable);
    run(
        &mut elsewhere,
        &format!(
            "SELECT pg_drop_replication_slot('{name}'); \
                                  SELECT pg_create_physical_replication_slot('{name}')"
        ),
    );
    assert_eq!(verdict(&mut elsewhere), SlotVerdict::Physical);
    run(
        &mut elsewhere,
        &format!(
            "SELECT pg_drop_replication_slot('{name}'); \
        SELECT pg_create_logical_replication_slot('{name}', 'pgoutput', true)"
        ),
    );
    assert_eq!(verdict(&mut elsewhere), SlotVerdict::Temporary);
}

#[test]
fn a_slot_whose_wal_is_gone_is_invalidated() {
    let server = Server::start(&[
        "wal_level=logical",
        "max_slot_wal_keep_size=1MB",
        "min_wal_size=32MB",
        "max_wal_size=32MB",
    ]);
    let mut sql = connect(&params(server.port, "postgres"));
    slot::create(&mut sql, "s", Failover::On, soon()).unwrap();
    run(&mut sql, "CREATE TABLE public.t (n int)");
    for _ in 0..6 {
        run(&mut sql, "INSERT INTO public.t VALUES (1)");
        run(&mut sql, "SELECT pg_switch_wal()");
    }
    wait_until("the slot is invalidated", || {
        run(&mut sql, "CHECKPOINT");
        let state = slot::inspect(&mut sql, "s", soon()).unwrap().unwrap();
        slot::verdict(&sql, &state) == SlotVerdict::Invalidated { reason: "wal_removed".into() }
    });
}

#[test]
fn a_server_that_is_not_set_up_is_refused_with_what_to_set() {
    let server = Server::start(&["max_replication_slots=1", "wal_level=replica"]);
    let mut sql = connect(&params(server.port, "postgres"));
    let identity = Identity::inspect(&mut sql, soon()).unwrap();
    let hint = expect_error(identity.check_wal_level(), ErrorKind::Setup, "got `replica`");
    assert!(hint.contains("ALTER SYSTEM SET wal_level") && hint.contains("rds."), "{hint}");
    let hint = expect_error(
        slot::create(&mut sql, "s", Failover::On, soon()),
        ErrorKind::Setup,
        "SQLSTATE 55000",
    );
    assert!(hint.contains("ALTER SYSTEM SET wal_level"), "{hint}");

    let server = Server::start(&["max_replication_slots=1", "wal_level=logical"]);
    let mut sql = connect(&params(server.port, "postgres"));
    slot::create(&mut sql, "s", Failover::On, soon()).unwrap();
    let full = slot::create(&mut sql, "other", Failover::On, soon());
    let hint = expect_error(full, ErrorKind::Setup, "SQLSTATE 53400");
    assert!(hint.contains("max_replication_slots"), "{hint}");
}

#[test]
fn a_role_without_replication_is_told_what_to_grant() {
    let (mut params, mut sql) = database();
    run(&mut sql, "CREATE ROLE \"no\"\"body\" LOGIN");
    params.user = "no\"body".into();
    let mut nobody = connect(&params);
    // What every role can find out.
    Identity::inspect(&mut nobody, soon()).unwrap();
    let name = free_name(&mut sql);
    assert_eq!(slot::inspect(&mut nobody, &name, soon()).unwrap(), None);
    let hint = expect_error(
        slot::create(&mut nobody, &name, Failover::On, soon()),
        ErrorKind::Setup,
        "42501",
    );
    assert!(hint.starts_with("Run: ALTER ROLE \"no\"\"body\" REPLICATION;"), "{hint}");
}

#[test]
fn only_a_walsender_of_ours_is_ended() {
    let (params, mut sql) = database();
    let name = free_name(&mut sql);
    slot::create(&mut sql, &name, Failover::On, soon()).unwrap();
    let ours = "runs-replication:o'ne";
    let free = terminate_stale_walsender(&mut sql, &name, ours, soon()).unwrap();
    assert_eq!(free, None);

    let consumer = Consumer::start(&params, &name, "somebody else", &mut sql);
    let held = terminate_stale_walsender(&mut sql, &name, ours, soon());
    let hint = expect_error(held, ErrorKind::SlotBusy, "`somebody else` from 127.0.0.1");
    assert!(hint.contains("pg_terminate_backend("), "{hint}");
    let busy = slot::drop(&mut sql, &name, soon());
    expect_error(busy, ErrorKind::SlotBusy, "is active for PID");
    drop(consumer);
    wait_until("the slot is free", || {
        !slot::inspect(&mut sql, &name, soon()).unwrap().unwrap().active
    });

    let _consumer = Consumer::start(&params, &name, ours, &mut sql);
    let pid = slot::inspect(&mut sql, &name, soon()).unwrap().unwrap().active_pid;
    let ended = terminate_stale_walsender(&mut sql, &name, ours, soon()).unwrap();
    assert!(ended.is_some());
    assert_eq!(ended, pid);
    assert!(!slot::inspect(&mut sql, &name, soon()).unwrap().unwrap().active);
    slot::drop(&mut sql, &name, soon()).unwrap();
}

#[test]
fn a_walsender_that_does_not_end_is_named() {
    let (params, mut sql) = database();
    let name = free_name(&mut sql);
    slot::create(&mut sql, &name, Failover::On, soon()).unwrap();
    let _consumer = Consumer::start(&params, &name, "ours", &mut sql);
    let pid = slot::inspect(&mut sql, &name, soon()).unwrap().unwrap().active_pid.unwrap();
    let signal = |name: &str| {
        let status = std::process::Command::new("kill").args([name, &pid.to_string()]).status();
        assert!(status.unwrap().success());
    };
    signal("-STOP");
    let started = Instant::now();
    let deadline = started + Duration::from_secs(2);
    let held = terminate_stale_walsender(&mut sql, &name, "ours", deadline);
    let took = started.elapsed();
    signal("-CONT");
    assert!(took < Duration::from_secs(4), "{took:?}");
    expect_error(held, ErrorKind::SlotBusy, &format!("process {pid} with application name `ours`"));
    wait_until("the slot is free", || {
        !slot::inspect(&mut sql, &name, soon()).unwrap().unwrap().active
    });
    slot::drop(&mut sql, &name, soon()).unwrap();
}

#[test]
fn a_slot_that_waits_for_a_transaction_gives_up_in_time_and_leaves_nothing() {
    let (params, mut sql) = database();
    let name = free_name(&mut sql);
    let mut other = connect(&params);
    run(&mut other, "CREATE TABLE public.t (n int)");
    run(&mut other, "BEGIN; INSERT INTO public.t VALUES (1)");
    let result =
        slot::create(&mut sql, &name, Failover::On, Instant::now() + Duration::from_millis(800));
    expect_error(result, ErrorKind::Unreachable, "no answer within 0.8s");
    // The server has not noticed yet; the slot goes with that session, not with the transaction.
    let mut third = connect(&params);
    let state = slot::inspect(&mut third, &name, soon()).unwrap();
    if let Some(state) = &state {
        assert_eq!(slot::verdict(&third, state), SlotVerdict::InCreation);
    }
    run(
        &mut third,
        &format!(
            "SELECT pg_terminate_backend(active_pid) \
        FROM pg_replication_slots WHERE slot_name = {}",
            literal(&name)
        ),
    );
    run(&mut other, "COMMIT");
    wait_until("the slot is gone", || slot::inspect(&mut third, &name, soon()).unwrap().is_none());
}
