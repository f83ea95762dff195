//! Commits that are in the WAL and not yet visible, and transactions that merely stay open.

use std::thread;

use walhouse::postgres::barrier::{Barrier, Waiting, waiting};
use walhouse::postgres::server::as_of;

use super::server::Server;
use super::{connect, params, run, soon, value, wait_until};

/// Goal: a transaction that stays open is not waited for because another one's commit waits for a
/// standby; that one's commit is.
#[test]
fn only_a_commit_that_waits_for_a_standby_is_waited_for() {
    let server = Server::start(&["synchronous_standby_names=missing"]);
    let params = params(server.port, "postgres");
    let mut sql = connect(&params);
    run(&mut sql, "SET synchronous_commit = local; CREATE TABLE public.t (n int)");
    let mut idle = connect(&params);
    run(&mut idle, "BEGIN; INSERT INTO public.t VALUES (1)");

    let mut open = Barrier::set(&mut sql, soon()).unwrap();
    assert!(!open.is_passed(&mut sql, soon()).unwrap());
    assert_eq!(waiting(&mut sql, &open, soon()).unwrap(), Waiting::ForItself);

    let mut writer = connect(&params);
    let pid = writer.about().backend_pid;
    // Released by the cancel below; the commit itself stands.
    let committing =
        thread::spawn(move || writer.execute("write", "INSERT INTO public.t VALUES (2)", soon()));
    wait_until("the commit waits for the standby", || {
        let query =
            format!("SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = {pid}");
        value(&mut sql, &format!("SELECT coalesce(({query}), false)")) == "t"
    });
    assert_eq!(waiting(&mut sql, &open, soon()).unwrap(), Waiting::ForItself);
    let both = Barrier::set(&mut sql, soon()).unwrap();
    assert_eq!(waiting(&mut sql, &both, soon()).unwrap(), Waiting::ForStandby);

    run(&mut sql, &format!("SELECT pg_cancel_backend({pid})"));
    committing.join().unwrap().unwrap();
    assert_eq!(waiting(&mut sql, &both, soon()).unwrap(), Waiting::ForItself);
    run(&mut idle, "ROLLBACK");
    wait_until("the open transaction has ended", || open.is_passed(&mut sql, soon()).unwrap());
}

/// Goal: what a snapshot behind a fence lacks is streamed, and lies above it. A transaction that
/// wrote before its table was published, and commits after, is streamed in part: the rest must be
/// in the snapshot.
/// Method: one that is open and one that is prepared are waited for, by name.
#[test]
fn a_snapshot_behind_a_fence_has_what_is_never_streamed() {
    let server = Server::start(&["wal_level=logical", "max_prepared_transactions=5"]);
    let params = params(server.port, "postgres");
    let mut sql = connect(&params);
    run(&mut sql, "CREATE TABLE public.t (n int PRIMARY KEY); CREATE PUBLICATION p");
    run(&mut sql, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
    let (mut open, mut prepared) = (connect(&params), connect(&params));
    run(&mut open, "BEGIN; INSERT INTO public.t VALUES (1)");
    run(&mut prepared, "BEGIN; INSERT INTO public.t VALUES (2); PREPARE TRANSACTION 'the \"gid\"'");
    run(&mut sql, "ALTER PUBLICATION p ADD TABLE public.t");
    let fence = as_of(&mut sql, soon()).unwrap().insert_lsn;
    let mut barrier = Barrier::set(&mut sql, soon()).unwrap();
    assert!(!barrier.is_passed(&mut sql, soon()).unwrap());
    let process = format!("process {}", open.about().backend_pid);
    let holders = barrier.holders(&mut sql, soon()).unwrap();
    assert_eq!(holders, ["prepared transaction `the \"gid\"`".to_owned(), process.clone()]);
    assert_eq!(value(&mut sql, "SELECT count(*) FROM public.t"), "0", "too early");

    run(&mut prepared, "COMMIT PREPARED 'the \"gid\"'");
    assert!(!barrier.is_passed(&mut sql, soon()).unwrap());
    assert_eq!(barrier.holders(&mut sql, soon()).unwrap(), [process]);
    run(&mut open, "INSERT INTO public.t VALUES (3); COMMIT");
    assert!(barrier.is_passed(&mut sql, soon()).unwrap());
    assert_eq!(value(&mut sql, "SELECT count(*) FROM public.t"), "3");
    // An INSERT begins with the letter I.
    let streamed = "pg_logical_slot_peek_binary_changes('s', NULL, NULL, 'proto_version', '1',
                        'publication_names', 'p') WHERE get_byte(data, 0) = ascii('I')";
    let below = format!("SELECT count(*) FROM {streamed} AND lsn < '{fence}'");
    assert_eq!(value(&mut sql, &below), "0");
    assert_eq!(value(&mut sql, &format!("SELECT count(*) FROM {streamed}")), "1");
}
