//! Keys that are used again. An INSERT writes its record before the unique index makes it wait, so
//! in the WAL the row that comes may stand below the removal of the one that it replaces.

use std::thread::{self, JoinHandle};

use postgres::Client;
use serde_json::{Value, json};

use crate::support::clickhouse::DATABASE;
use crate::support::database::{detail, insert};
use crate::support::oracle::{Scope, assert_same};
use crate::support::program::Program;
use crate::support::sample;
use crate::support::stage::{SERVICES, SESSIONS_SLOT, Stage};
use crate::support::wait::{PATIENCE, until_true};

/// How a row comes by a key that it has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Insert,
    /// Of the row `other-KEY`.
    KeyUpdate,
    /// And is updated before its transaction commits.
    InsertAndUpdate,
}

const WAYS: [By; 3] = [By::Insert, By::KeyUpdate, By::InsertAndUpdate];

/// A client with its transaction open, once it has the key.
type Waiting = JoinHandle<Client>;

fn reused(metric_of: &mut Program, service: &str) -> f64 {
    let sample = format!("walhouse_reused_keys_total{{service=\"{service}\"}}");
    metric_of.metric(&sample).expect("it is always there")
}

fn set_identity(stage: &Stage, identity: &str) {
    for table in ["TaskRun", "Session"] {
        stage.postgres.execute(&format!("ALTER TABLE \"{table}\" REPLICA IDENTITY {identity}"));
    }
}

fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {}", detail(&e)));
}

fn row(table: &str, key: &str, by: &str) -> Value {
    let row = if table == "Session" { sample::session(key) } else { sample::run(key) };
    // The friendly id is unique, too: nobody is to wait for that.
    sample::with(row, json!({"friendlyId": format!("{by}-{key}"), "taskIdentifier": by}))
}

/// Somebody who has the key in an open transaction, and somebody who waits for it.
fn begin(stage: &Stage, table: &'static str, key: &str, by: By) -> (Client, Waiting) {
    if by == By::KeyUpdate {
        stage.postgres.insert(table, &row(table, &format!("other-{key}"), "second"));
    }
    let mut first = stage.postgres.client();
    run(&mut first, "BEGIN");
    insert(&mut first, table, &row(table, key, "first")).expect("nobody else has it");
    let (mut second, key) = (stage.postgres.client(), key.to_owned());
    run(&mut second, "BEGIN");
    let pid: i32 = second.query_one("SELECT pg_backend_pid()", &[]).expect("an answer").get(0);
    let waiting = thread::spawn(move || {
        match by {
            By::Insert | By::InsertAndUpdate => {
                insert(&mut second, table, &row(table, &key, "second")).expect("it is free again");
            }
            By::KeyUpdate => {
                let sql = format!("UPDATE \"{table}\" SET id = '{key}' WHERE id = 'other-{key}'");
                run(&mut second, &sql);
            }
        }
        if by == By::InsertAndUpdate {
            let sql =
                format!("UPDATE \"{table}\" SET \"taskIdentifier\" = 'third' WHERE id = '{key}'");
            run(&mut second, &sql);
        }
        second
    });
    until_true("the second client waits for the first", PATIENCE, || {
        let sql = format!("SELECT wait_event_type FROM pg_stat_activity WHERE pid = {pid}");
        stage.postgres.value(&sql).as_deref() == Some("Lock")
    });
    (first, waiting)
}

fn remove(mut first: Client, table: &str, key: &str) {
    run(&mut first, &format!("DELETE FROM \"{table}\" WHERE id = '{key}'; COMMIT"));
}

fn got_it(waiting: Waiting) -> Client {
    waiting.join().expect("the second client got the key")
}

#[test]
fn a_row_that_waited_for_its_key_outranks_the_removal_that_it_waited_for() {
    for (identity, batch_size) in [("DEFAULT", 1), ("DEFAULT", 50), ("FULL", 1), ("FULL", 50)] {
        let stage = Stage::take();
        set_identity(&stage, identity);
        let size = "*_REPLICATION_FLUSH_BATCH_SIZE";
        let mut program = Program::start(&stage.settings().with_both(size, batch_size));
        program.wait_streaming(&SERVICES);
        for table in ["TaskRun", "Session"] {
            for by in WAYS {
                let key = format!("{by:?}");
                let (first, waiting) = begin(&stage, table, &key, by);
                remove(first, table, &key);
                run(&mut got_it(waiting), "COMMIT");
                // What comes afterwards is outranked by nothing.
                let (first, waiting) = begin(&stage, table, &format!("{key}-gone"), by);
                remove(first, table, &format!("{key}-gone"));
                run(&mut got_it(waiting), "COMMIT");
                stage.postgres.delete(table, &format!("{key}-gone"));
            }
        }
        stage.settle(&mut program, &SERVICES);
        let rows = assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
        assert_eq!(rows, 3 + 3 + 3, "{identity}: a row for each way in each table");
        for service in SERVICES {
            assert_eq!(reused(&mut program, service), 6.0, "{identity}: {service}");
        }
        program.stop();
    }
}

/// The next session has not seen the removal: it asks ClickHouse.
#[test]
fn a_row_that_waited_for_its_key_across_a_restart_outranks_the_removal() {
    for (identity, is_killed) in [("DEFAULT", false), ("FULL", true)] {
        let stage = Stage::take();
        set_identity(&stage, identity);
        let mut program = stage.start();
        let mut open = Vec::new();
        for table in ["TaskRun", "Session"] {
            for by in WAYS {
                let key = format!("{by:?}");
                let (first, waiting) = begin(&stage, table, &key, by);
                remove(first, table, &key);
                let mut second = got_it(waiting);
                // Nobody had this one before.
                insert(&mut second, table, &row(table, &format!("new-{key}"), "second")).unwrap();
                insert(&mut second, table, &row(table, &format!("gone-{key}"), "second")).unwrap();
                let gone = format!("DELETE FROM \"{table}\" WHERE id = 'gone-{key}'");
                run(&mut second, &gone);
                open.push(second);
            }
        }
        // What was removed is there as a tombstone.
        stage.postgres.insert("TaskRun", &sample::run("after"));
        stage.postgres.insert("Session", &sample::session("after"));
        stage.settle(&mut program, &SERVICES);
        match is_killed {
            true => program.kill(),
            false => program.stop(),
        }
        let mut program = stage.start();
        open.iter_mut().for_each(|second| run(second, "COMMIT"));
        stage.settle(&mut program, &SERVICES);
        let rows = assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
        assert_eq!(rows, 3 * (3 + 3 + 1), "{identity}");
        assert!(0.0 < reused(&mut program, "runs"), "{identity}");
        // The key goes on living.
        stage.postgres.update("TaskRun", "Insert", &json!({"taskIdentifier": "fourth"}));
        stage.postgres.delete("TaskRun", "KeyUpdate");
        stage.settle(&mut program, &SERVICES);
        assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL);
        program.stop();
    }
}

/// Delivered twice, a row meets the tombstone that its own transaction wrote after it.
#[test]
fn a_removal_that_was_delivered_before_a_kill_stays_the_last_word() {
    for identity in ["DEFAULT", "FULL"] {
        let stage = Stage::own();
        set_identity(&stage, identity);
        // What comes before and after many rows is in different batches.
        let settings = stage.settings().with("SESSION_REPLICATION_MAX_BUFFER_BYTES", 1 << 20);
        let mut program = Program::start(&settings);
        program.wait_streaming(&SERVICES);
        let (first, waiting) = begin(&stage, "Session", "taken", By::Insert);
        remove(first, "Session", "taken");
        let mut second = got_it(waiting);
        for key in ["gone", "back"] {
            insert(&mut second, "Session", &row("Session", key, "second")).unwrap();
        }
        run(
            &mut second,
            "INSERT INTO \"Session\" (id, \"friendlyId\", type, \"projectId\", \
             \"runtimeEnvironmentId\", \"environmentType\", \"organizationId\", \
             \"taskIdentifier\", \"updatedAt\", \"triggerConfig\") \
             SELECT 'n' || n, 'n' || n, 'chat', 'p', 'e', 'PRODUCTION', 'o', 't', now(), '{}' \
             FROM generate_series(1, 4000) n; \
             DELETE FROM \"Session\" WHERE id IN ('gone', 'back')",
        );
        insert(&mut second, "Session", &row("Session", "back", "third")).unwrap();
        stage.postgres.insert("Session", &sample::session("after"));
        let written = stage.postgres.flush_lsn();
        until_true("the next session begins above", PATIENCE, || {
            stage.postgres.confirmed_flush(SESSIONS_SLOT).is_some_and(|lsn| written <= lsn)
        });

        // It lands, and is not confirmed.
        stage.clickhouse.add_fault("action=error&code=242&table=walhouse_state");
        run(&mut second, "COMMIT");
        let landed = format!(
            "SELECT count() FROM {DATABASE}.sessions_v1 FINAL \
             WHERE session_id LIKE 'n%' OR task_identifier = 'third'"
        );
        until_true("all of it has landed", PATIENCE, || stage.clickhouse.value(&landed) == "4001");
        program.kill();
        stage.clickhouse.clear_faults();
        let mut program = Program::start(&settings);
        program.wait_streaming(&SERVICES);
        stage.settle(&mut program, &["sessions"]);
        let rows = assert_same(&stage.postgres, &stage.clickhouse, Scope::SESSIONS);
        assert_eq!(rows, 4003, "{identity}");
        // `taken` at least is asked for, and found.
        assert!(0.0 < reused(&mut program, "sessions"), "{identity}");
        program.stop();
    }
}

/// As clients do it that do not know of each other: one takes the key and gives it away, one tries
/// until it has it.
#[test]
fn of_a_pair_that_retries_every_row_arrives() {
    const KEYS: usize = 300;
    for (identity, batch_size) in [("DEFAULT", 50), ("FULL", 7)] {
        let stage = Stage::take();
        set_identity(&stage, identity);
        let size = "RUN_REPLICATION_FLUSH_BATCH_SIZE";
        let mut program = Program::start(&stage.settings_runs().with(size, batch_size));
        program.wait_streaming(&["runs"]);
        let (mut first, mut second) = (stage.postgres.client(), stage.postgres.client());
        for n in 0..KEYS {
            insert(&mut first, "TaskRun", &row("TaskRun", &format!("k{n}"), "first")).unwrap();
        }
        let giver = thread::spawn(move || {
            for n in 0..KEYS {
                let key = format!("id = 'k{n}'");
                run(&mut first, &format!("BEGIN; UPDATE \"TaskRun\" SET depth = 1 WHERE {key}"));
                // The other one has the time to begin to wait.
                run(&mut first, "SELECT pg_sleep(0.003)");
                run(&mut first, &format!("DELETE FROM \"TaskRun\" WHERE {key}; COMMIT"));
            }
        });
        for n in 0..KEYS {
            let row = row("TaskRun", &format!("k{n}"), "second");
            until_true("the key is free", PATIENCE, || {
                (0..20).any(|_| insert(&mut second, "TaskRun", &row).is_ok())
            });
        }
        giver.join().expect("no panic");
        stage.settle(&mut program, &["runs"]);
        let rows = assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
        assert_eq!(rows, 2 * KEYS, "{identity}");
        assert!(0.0 < reused(&mut program, "runs"), "{identity}: nobody had to wait");
        let versions = "SELECT count() FROM (SELECT run_id FROM DB.task_runs_v2 \
                        GROUP BY run_id, _version HAVING uniq(_is_deleted) > 1)";
        assert_eq!(stage.clickhouse.value(&versions.replace("DB", DATABASE)), "0");
        program.stop();
    }
}
