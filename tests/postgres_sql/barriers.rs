//! Commits that are in the WAL and not yet visible, and transactions that merely stay open.

use std::thread;

use walhouse::postgres::barrier::{Barrier, Waiting, waiting};

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
