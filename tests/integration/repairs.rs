//! Changes that were missed, and rows that Postgres lost: the table is compared with ClickHouse and
//! mended while the stream goes on. Each test ends with a full comparison of both sides.

use std::time::Duration;

use walhouse::clickhouse::client::quote_bytes;

use crate::support::clickhouse::DATABASE;
use crate::support::oracle::{Scope, assert_same, compare};
use crate::support::postgres::{Postgres, Stop};
use crate::support::program::{Program, Settings};
use crate::support::sample;
use crate::support::stage::{RUNS_SLOT, SERVICES, SESSIONS_SLOT, Stage};
use crate::support::wait::{PATIENCE, until_true};
use crate::support::workload::Workload;

const SLOTS: [&str; 2] = [RUNS_SLOT, SESSIONS_SLOT];
/// Long enough for a backlog and a repair on a busy machine.
const RECOVERY: Duration = Duration::from_secs(120);

fn load(seed: u64) -> Workload {
    Workload { rate: Some(40.0), ..Workload::new(seed) }
}

#[track_caller]
fn wait_repaired(program: &mut Program) {
    for service in SERVICES {
        let what = format!("`{service}` has been repaired");
        until_true(what, RECOVERY, || program.log_lines(&format!("{service}: repair: done")) >= 1);
    }
}

/// Everything that was committed is confirmed, and both sides are equal.
#[track_caller]
fn assert_identical(stage: &Stage) {
    let target = stage.postgres.flush_lsn();
    for slot in SLOTS {
        until_true(format!("slot `{slot}` has confirmed what was committed"), RECOVERY, || {
            stage.postgres.confirmed_flush(slot).is_some_and(|lsn| target <= lsn)
        });
    }
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::ALL));
}

/// Goal: whatever happens to the slots while nobody streams, and while changes go on, the next start
/// mends it by itself, under a load that goes on.
fn check_gap(seed: u64, postgres: &[(&str, &str)], damage: impl Fn(&Postgres)) {
    let stage = Stage::own_with(postgres);
    let program = stage.start();
    load(seed).run(&stage.postgres, 60);
    program.stop();
    let writing = load(seed + 1).start(&stage.postgres);
    writing.wait_for(20);
    // What the first load wrote is updated and deleted by nobody but here.
    for table in ["TaskRun", "Session"] {
        stage.postgres.execute(&format!(
            "DELETE FROM \"{table}\" WHERE id LIKE 'w{seed}-0-%';
             UPDATE \"{table}\" SET \"updatedAt\" = now() WHERE id LIKE 'w{seed}-1-%'"
        ));
    }
    damage(&stage.postgres);
    writing.wait_for(20);
    let report = compare(&stage.postgres, &stage.clickhouse, Scope::ALL);
    assert!(!report.is_clean(), "there is something to mend");
    // Of a small table it may be much.
    let mut program =
        Program::start(&stage.settings().with("REPLICATION_REPAIR_DELETES_MAX_PERCENT", 100));
    wait_repaired(&mut program);
    writing.wait_for(20);
    writing.stop();
    assert_identical(&stage);
    assert_eq!(program.health().0, 200);
    program.stop();
    // What was mended is not mended again.
    let mut program = stage.start();
    load(seed + 2).run(&stage.postgres, 10);
    assert_identical(&stage);
    assert!(!program.log().contains("repair"), "{}", program.log());
    program.wait_healthy();
    program.stop();
}

fn drop_slots(postgres: &Postgres) {
    for slot in SLOTS {
        postgres.execute(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    }
}

#[test]
fn a_slot_that_is_gone_is_made_anew_and_the_gap_mended() {
    check_gap(100, &[], drop_slots);
}

#[test]
fn a_slot_that_was_made_anew_by_hand_is_noticed_and_the_gap_mended() {
    check_gap(110, &[], |postgres| {
        drop_slots(postgres);
        for slot in SLOTS {
            let sql = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
            postgres.execute(&sql);
        }
    });
}

#[test]
fn a_slot_that_somebody_advanced_is_noticed_and_the_gap_mended() {
    check_gap(120, &[], |postgres| {
        for slot in SLOTS {
            postgres.execute(&format!(
                "SELECT pg_replication_slot_advance('{slot}', pg_current_wal_insert_lsn())"
            ));
        }
    });
}

#[test]
fn an_invalidated_slot_is_replaced_and_the_gap_mended() {
    let settings =
        [("max_slot_wal_keep_size", "1MB"), ("max_wal_size", "4MB"), ("min_wal_size", "2MB")];
    check_gap(130, &settings, |postgres| {
        for slot in SLOTS {
            let sql =
                format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{slot}'");
            until_true(format!("slot `{slot}` is invalidated"), PATIENCE, || {
                postgres.execute(
                    "CREATE TABLE IF NOT EXISTS filler (t text);
                     INSERT INTO filler SELECT repeat(md5(n::text), 60)
                     FROM generate_series(1, 2000) n",
                );
                postgres.execute("SELECT pg_switch_wal()");
                postgres.execute("CHECKPOINT");
                postgres.value(&sql).as_deref() == Some("lost")
            });
        }
        postgres.execute("ALTER SYSTEM RESET max_slot_wal_keep_size");
        postgres.execute("SELECT pg_reload_conf()");
    });
}

#[test]
fn slots_dropped_under_a_running_program_are_made_anew_and_the_gap_mended() {
    let stage = Stage::own();
    let mut program = stage.start();
    let writing = load(140).start(&stage.postgres);
    writing.wait_for(40);
    for slot in SLOTS {
        until_true(format!("slot `{slot}` is dropped"), PATIENCE, || {
            let mut client = stage.postgres.client();
            let _ = client.batch_execute(&format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
                 WHERE slot_name = '{slot}' AND active"
            ));
            client.batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).is_ok()
        });
    }
    wait_repaired(&mut program);
    writing.wait_for(20);
    writing.stop();
    assert_identical(&stage);
    program.stop();
}

/// Goal: a repair that is killed again and again goes on where it was, and ends equal, with rows
/// changed and deleted all the while.
#[test]
fn a_repair_that_is_killed_goes_on_where_it_was() {
    let stage = Stage::own();
    // All that was there before it is gone.
    let settings = stage.settings().with("REPLICATION_REPAIR_DELETES_MAX_PERCENT", 100);
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    program.stop();
    drop_slots(&stage.postgres);
    insert_sessions(&stage.postgres, 60_000);
    // Of the time before: ClickHouse has them, Postgres does not.
    stage.clickhouse.execute(&format!(
        "INSERT INTO {DATABASE}.sessions_v1 (organization_id, project_id, environment_id, session_id,
             created_at, updated_at, _version) SELECT 'gone', 'p', 'e', toString(number), now(),
             now(), 1 FROM numbers(1000)"
    ));
    let writing = load(150).start(&stage.postgres);
    let positions = |stage: &Stage| {
        stage.clickhouse.value(&format!(
            "SELECT position FROM {DATABASE}.walhouse_repairs WHERE service = 'sessions' \
             ORDER BY revision DESC LIMIT 1"
        ))
    };
    let mut seen = vec![String::new()];
    for _ in 0..4 {
        let mut program = Program::start(&settings);
        program.wait_for_log("sessions: repair: ");
        until_true("the repair has come further, or is done", RECOVERY, || {
            let position = positions(&stage);
            let is_new = !seen.contains(&position);
            if is_new {
                seen.push(position);
            }
            is_new || program.log().contains("sessions: repair: done")
        });
        program.kill();
        stage.postgres.execute(
            "DELETE FROM \"Session\" WHERE id IN
                 (SELECT id FROM \"Session\" WHERE id LIKE 'large-%' ORDER BY random() LIMIT 200)",
        );
    }
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    until_true("no repair is under way", RECOVERY, || {
        let sql =
            format!("SELECT count() FROM {DATABASE}.walhouse_repairs FINAL WHERE status != 'done'");
        stage.clickhouse.value(&sql) == "0"
    });
    writing.wait_for(20);
    writing.stop();
    assert_identical(&stage);
    assert_eq!(stage.clickhouse.count("sessions_v1", "organization_id = 'gone'"), 0);
    program.stop();
}

/// What is recorded as done is not done again, and all behind it is.
/// Method: the record of a repair is set back to a key in the middle of a partition, and rows that
/// Postgres does not have are put before and behind it.
#[test]
fn burying_goes_on_behind_the_last_key_that_is_recorded() {
    let (stage, settings) = sessions_in_a_gap(1);
    let settings = settings.with("REPLICATION_REPAIR_DELETES_MAX_PERCENT", 100);
    let mut program = Program::start(&settings);
    program.wait_for_log("sessions: repair: done");
    program.stop();
    for month in ["2020-04", "2020-05", "2020-06"] {
        stage.clickhouse.execute(&format!(
            "INSERT INTO {DATABASE}.sessions_v1 (organization_id, project_id, environment_id,
                 session_id, created_at, _version)
             SELECT 'it\\'s gone', 'p', 'e', '{month}-' || toString(100 + number),
                 toDateTime64('{month}-10 10:00:00', 3, 'UTC'), 1 FROM numbers(100)"
        ));
    }
    let position = "bury 0:202005 organization_id='it\\'s gone' project_id='p' \
                    environment_id='e' created_at=1589104800000 session_id='2020-05-149'";
    stage.clickhouse.execute(&format!(
        "INSERT INTO {DATABASE}.walhouse_repairs
         SELECT * REPLACE ('running' AS status, revision + 1 AS revision, {} AS position)
         FROM {DATABASE}.walhouse_repairs FINAL WHERE service = 'sessions'",
        quote_bytes(position.as_bytes())
    ));
    let mut program = Program::start(&settings);
    program.wait_for_log("sessions: repair: going on (delete)");
    program.wait_for_log("sessions: repair: done");
    program.stop();
    let left = |condition: &str| stage.clickhouse.count("sessions_v1", condition);
    assert_eq!(left("session_id LIKE '2020-04-%'"), 100);
    assert_eq!(left("session_id LIKE '2020-05-%' AND session_id <= '2020-05-149'"), 50);
    assert_eq!(left("session_id LIKE '2020-%'"), 150);
}

fn insert_sessions(postgres: &Postgres, rows: u32) {
    postgres.execute(&format!(
        r#"INSERT INTO "Session" ("id", "friendlyId", "type", "projectId", "runtimeEnvironmentId",
               "environmentType", "organizationId", "taskIdentifier", "tags", "metadata",
               "updatedAt", "triggerConfig")
           SELECT 'large-' || n, 'friendly-' || n, 'chat', 'p', 'e', 'PRODUCTION', 'o', 't',
                  ARRAY['x', n::text], jsonb_build_object('n', n), now(), '{{}}'
           FROM generate_series(1, {rows}) n"#
    ));
}

/// Rows that no stream will bring: to be started with these settings, which replicate sessions.
fn sessions_in_a_gap(rows: u32) -> (Stage, Settings) {
    let stage = Stage::own();
    let settings = stage.settings().with("RUN_REPLICATION_ENABLED", 0);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["sessions"]);
    program.stop();
    stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{SESSIONS_SLOT}')"));
    insert_sessions(&stage.postgres, rows);
    (stage, settings)
}

/// Some runs that have been streamed, and the program that streams them, with these settings.
fn runs_written(seed: u64) -> (Stage, Settings, Program) {
    let stage = Stage::own();
    let settings = stage.settings_runs();
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    load(seed).run(&stage.postgres, 30);
    stage.settle(&mut program, &["runs"]);
    (stage, settings, program)
}

#[track_caller]
fn assert_runs_repaired(stage: &Stage, mut program: Program) {
    program.wait_for_log("runs: repair: done");
    stage.settle(&mut program, &["runs"]);
    assert!(0 < assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS));
    program.stop();
}

/// Goal: rows that the stream had just deleted do not come back by a page that was read before.
/// Method: every row of the table is deleted in small transactions while the repair reads it.
#[test]
fn rows_deleted_under_a_repair_stay_deleted() {
    let (stage, settings) = sessions_in_a_gap(5_000);
    // Each page takes a while from being read to being written.
    stage.clickhouse.add_fault("action=delay_before&ms=300&on=query");
    let mut program = Program::start(&settings);
    program.wait_for_log("sessions: streaming");
    for _ in 0..50 {
        stage
            .postgres
            .execute("DELETE FROM \"Session\" WHERE id IN (SELECT id FROM \"Session\" LIMIT 90)");
    }
    stage.clickhouse.clear_faults();
    program.wait_for_log("sessions: repair: done");
    stage.settle(&mut program, &["sessions"]);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::SESSIONS);
    program.stop();
}

/// A table that was rewritten in the middle of it is read again.
#[test]
fn a_table_rewritten_under_a_repair_is_read_anew() {
    let (stage, settings) = sessions_in_a_gap(30_000);
    stage.postgres.execute("DELETE FROM \"Session\" WHERE random() < 0.3");
    stage.clickhouse.add_fault("action=delay_before&ms=200&on=query");
    let mut program = Program::start(&settings);
    program.wait_metric("walhouse_repair_rows_total{service=\"sessions\",action=\"read\"}", |n| {
        0.0 < n
    });
    stage.postgres.execute("VACUUM FULL \"Session\"");
    stage.clickhouse.clear_faults();
    program.wait_for_log("sessions: repair: done");
    stage.settle(&mut program, &["sessions"]);
    assert_same(&stage.postgres, &stage.clickhouse, Scope::SESSIONS);
    program.stop();
}

/// Goal: a repair that was recorded and belongs to no state is owed: it is begun again although
/// nothing else looks wrong any more, and `halt` does not pass it over either.
#[test]
fn a_repair_that_is_owed_is_begun_although_all_looks_well() {
    let (stage, settings) = sessions_in_a_gap(500);
    let halt = settings.clone().with("REPLICATION_GAP_STRATEGY", "halt");
    assert_halts(&halt, "sessions", "gap: the slot is missing", "REPLICATION_GAP_STRATEGY");
    // Whoever looks now sees a slot that was not yet told of, or none at all.
    stage.clickhouse.execute(&format!("TRUNCATE TABLE {DATABASE}.walhouse_state"));
    assert_halts(&halt, "sessions", "gap: the slot is missing", "`repair`");
    let mut program = Program::start(&settings);
    program.wait_for_log("sessions: gap: the slot is missing");
    program.wait_for_log("sessions: repair: done");
    stage.settle(&mut program, &["sessions"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::SESSIONS), 500);
    program.stop();
    // It is paid.
    let mut program = Program::start(&settings);
    program.wait_streaming(&["sessions"]);
    assert!(!program.log().contains("repair"), "{}", program.log());
    program.stop();
}

/// Goal: a target table that somebody dropped is not only made again, but filled.
/// Method: it is gone while nobody runs; `halt` makes it, and leaves what is owed to the next start.
#[test]
fn a_table_that_was_dropped_is_made_anew_and_filled() {
    let (stage, settings, program) = runs_written(230);
    program.stop();
    stage.clickhouse.execute(&format!("DROP TABLE {DATABASE}.task_runs_v2 SYNC"));
    let reason = "missing in ClickHouse, and created again: `task_runs_v2`";
    assert_halts(
        &settings.clone().with("REPLICATION_GAP_STRATEGY", "halt"),
        "runs",
        reason,
        "`repair`",
    );
    assert_runs_repaired(&stage, Program::start(&settings));
}

/// Goal: who streams one history while another session has begun on another one, each seeing a primary
/// of its own, learns of it, stops, and leaves what it may have written last to be repaired.
#[test]
fn a_session_that_another_has_overtaken_ends_and_owes_a_repair() {
    let (stage, _, mut program) = runs_written(240);
    // What the other one would have recorded.
    stage.clickhouse.execute(&format!(
        "INSERT INTO {DATABASE}.walhouse_state SELECT * REPLACE (version_shift + 1000 AS version_shift,
             revision + 10000000 AS revision) FROM {DATABASE}.walhouse_state FINAL"
    ));
    let writing = load(241).start(&stage.postgres);
    program.wait_for_log("another session has recorded a newer one, on timeline 1");
    program.wait_for_log("runs: two sessions at once: one was still on timeline 1");
    // For that reason, or because the slot has confirmed more than that row says.
    program.wait_for_log("runs: repair: done");
    writing.wait_for(20);
    writing.stop();
    assert_runs_repaired(&stage, program);
}

/// Goal: what only one of the two tables of a run has is mended in that table.
/// Method: a payload without its run and a run without its payload, of runs that are gone and of
/// runs that are there, in several months.
#[test]
fn each_table_of_a_run_is_mended_for_itself() {
    let (stage, settings, program) = runs_written(210);
    program.stop();
    stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{RUNS_SLOT}')"));
    for month in ["2023-01-05", "2024-02-06", "2026-11-26"] {
        stage.clickhouse.execute(&format!(
            "INSERT INTO {DATABASE}.raw_task_runs_payload_v1 (run_id, created_at, payload, _version)
             VALUES ('ghost {month}', '{month} 10:00:00.123', '{{\"data\":1}}', 5)"
        ));
        stage.clickhouse.execute(&format!(
            "INSERT INTO {DATABASE}.task_runs_v2 (organization_id, project_id, environment_id,
                 run_id, created_at, updated_at, _version)
             VALUES ('o', 'p', 'e', 'ghost {month}', '{month} 10:00:00.123', now(), 5)"
        ));
        stage.clickhouse.execute(&format!(
            "INSERT INTO {DATABASE}.raw_task_runs_payload_v1 (run_id, created_at, payload, _version)
             VALUES ('orphan {month}', '{month} 10:00:00.123', '{{\"data\":1}}', 5)"
        ));
    }
    for (table, remainder) in [("task_runs_v2", 0), ("raw_task_runs_payload_v1", 1)] {
        stage.clickhouse.execute(&format!(
            "ALTER TABLE {DATABASE}.{table} DELETE WHERE cityHash64(run_id) % 3 = {remainder} \
             SETTINGS mutations_sync = 2"
        ));
    }
    assert!(!compare(&stage.postgres, &stage.clickhouse, Scope::RUNS).is_clean());
    assert_runs_repaired(&stage, Program::start(&settings));
}

/// Goal: a slot that somebody moves just when a stream begins, after it was judged, is noticed.
/// Method: the slot is moved at ever later moments after the next walsender has come, past a row that
/// was written in between.
#[test]
fn a_slot_that_is_moved_while_a_stream_begins_is_noticed() {
    let stage = Stage::own();
    let settings = stage
        .settings()
        .with("RUN_REPLICATION_ENABLED", 0)
        .with("REPLICATION_RECONNECT_INITIAL_DELAY_MS", 1);
    let mut program = Program::start(&settings);
    let mut moved = 0;
    for round in 0..40 {
        program.wait_streaming(&["sessions"]);
        stage.postgres.terminate_walsender(SESSIONS_SLOT);
        stage.postgres.insert("Session", &sample::session(&format!("row-{round}")));
        let mut client = stage.postgres.client();
        // It fails when the stream has the slot already.
        let advance = format!(
            "DO $$ BEGIN
                 WHILE NOT EXISTS (SELECT FROM pg_stat_replication) LOOP
                     PERFORM pg_sleep(0.002), pg_stat_clear_snapshot();
                 END LOOP;
                 PERFORM pg_sleep({});
             END $$;
             SELECT pg_replication_slot_advance('{SESSIONS_SLOT}', pg_current_wal_insert_lsn())",
            f64::from(round) * 0.003
        );
        moved += u32::from(client.batch_execute(&advance).is_ok());
        // With this one the position goes on, past what was skipped.
        let next = format!("next-{round}");
        stage.postgres.insert("Session", &sample::session(&next));
        until_true(format!("row `{next}` arrived"), RECOVERY, || {
            stage.clickhouse.count("sessions_v1", &format!("session_id = '{next}'")) == 1
        });
    }
    assert!(5 <= moved, "the slot was moved {moved} times only");
    until_true("no repair is under way", RECOVERY, || {
        let sql =
            format!("SELECT count() FROM {DATABASE}.walhouse_repairs FINAL WHERE status != 'done'");
        stage.clickhouse.value(&sql) == "0"
    });
    stage.settle(&mut program, &["sessions"]);
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::SESSIONS), 80);
    println!("moved {moved} times; {} while a stream began", program.log_lines("while the stream"));
    program.stop();
}

/// Goal: a standby that was behind is promoted. ClickHouse has rows, updates and deletes that the new
/// primary never had, and the new primary uses their LSNs again. Both services mend it by
/// themselves, under a load that goes on, and so does a second failover in the middle of it.
#[test]
fn a_standby_that_was_behind_is_followed_and_what_it_never_had_is_undone() {
    let mut stage = Stage::own();
    let mut standby = stage.postgres.start_standby();
    let ports = [stage.postgres.port(), standby.port()];
    let url =
        format!("postgresql://postgres@127.0.0.1:{},127.0.0.1:{}/postgres", ports[0], ports[1]);
    let settings = stage.settings().with("DATABASE_URL", url);
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    load(170).run(&stage.postgres, 60);
    standby.wait_replayed(&stage.postgres);
    for round in 0..2 {
        // It gets nothing of what follows.
        standby.stop(Stop::Fast);
        load(180 + round).run(&stage.postgres, 40);
        for table in ["TaskRun", "Session"] {
            stage.postgres.execute(&format!("DELETE FROM \"{table}\" WHERE id LIKE 'w170-1-%'"));
        }
        stage.postgres.insert("Session", &sample::session(&format!("lost-{round}")));
        stage.settle(&mut program, &SERVICES);
        stage.postgres.stop(Stop::Immediate);
        standby.start_again();
        standby.promote();
        std::mem::swap(&mut stage.postgres, &mut standby);
        let writing = load(190 + round).start(&stage.postgres);
        for service in SERVICES {
            let lines = usize::try_from(round + 1).expect("a few");
            program.wait_for_log_lines(&format!("{service}: repair: done"), lines);
        }
        writing.wait_for(20);
        writing.stop();
        assert_identical(&stage);
        assert_eq!(stage.clickhouse.count("sessions_v1", "session_id LIKE 'lost-%'"), 0);
        standby = stage.postgres.start_standby_with(standby.port(), &[]);
        standby.wait_replayed(&stage.postgres);
    }
    program.stop();
}

/// Goal: an old primary that comes back beside the new one is never streamed from, even when it is
/// the only one that answers; it is told to be the wrong one, and the new one is waited for.
#[test]
fn an_old_primary_that_comes_back_is_refused_until_it_is_adopted() {
    let mut stage = Stage::own();
    let standby = stage.postgres.start_standby();
    let settings = stage.settings();
    let mut program = Program::start(&settings);
    program.wait_streaming(&SERVICES);
    load(200).run(&stage.postgres, 20);
    standby.wait_replayed(&stage.postgres);
    program.stop();
    standby.promote();
    let old = std::mem::replace(&mut stage.postgres, standby);
    let new_settings = stage.settings();
    let mut program = Program::start(&new_settings);
    wait_repaired(&mut program);
    stage.postgres.insert("Session", &sample::session("new"));
    stage.settle(&mut program, &SERVICES);
    program.stop();

    old.insert("Session", &sample::session("old"));
    let mut program = Program::start(&settings);
    program.wait_for_log_lines("sessions: reconnecting in", 3);
    assert!(!program.has_ended(), "it goes on trying");
    assert_eq!(stage.clickhouse.count("sessions_v1", "session_id = 'old'"), 0);
    program.stop();

    // An operator who wants just that can have it.
    for service in SERVICES {
        let output = Program::command(&settings, &["adopt", service]);
        assert!(output.status.success(), "{output:?}");
    }
    let mut program = Program::start(&settings);
    wait_repaired(&mut program);
    stage.postgres = old;
    assert_identical(&stage);
    assert_eq!(stage.clickhouse.count("sessions_v1", "session_id = 'new'"), 0);
    program.stop();
}

/// The service stops, says why, and the process ends when it was the last.
#[track_caller]
fn assert_halts(settings: &Settings, service: &str, why: &str, hint: &str) {
    let mut program = Program::start(settings);
    program.wait_halted(&[service]);
    let log = program.log();
    assert!(log.contains(why), "{log}");
    assert!(log.contains(hint), "{log}");
    assert!(!log.contains(": streaming"), "{log}");
    // It stays, to say so, until it is told to stop.
    let (_, health) = program.health();
    assert!(health.to_string().contains(why), "{health}");
    program.stop();
}

#[test]
fn strategy_halt_stops_before_a_row_is_passed_over_and_skip_goes_on_loudly() {
    let stage = Stage::own();
    let settings = stage.settings().with("RUN_REPLICATION_ENABLED", 0);
    let halt = settings.clone().with("REPLICATION_GAP_STRATEGY", "halt");
    let mut program = Program::start(&halt);
    program.wait_streaming(&["sessions"]);
    stage.postgres.insert("Session", &sample::session("a"));
    stage.settle(&mut program, &["sessions"]);
    program.stop();

    // Advanced by somebody else, past a row that we never saw.
    stage.postgres.insert("Session", &sample::session("b"));
    stage.postgres.execute(&format!(
        "SELECT pg_replication_slot_advance('{SESSIONS_SLOT}', pg_current_wal_insert_lsn())"
    ));
    assert_halts(
        &halt,
        "sessions",
        "gap: the slot was moved or created again",
        "REPLICATION_GAP_STRATEGY",
    );
    // Dropped, and created again under its name.
    stage.postgres.execute(&format!("SELECT pg_drop_replication_slot('{SESSIONS_SLOT}')"));
    assert_halts(&halt, "sessions", "gap: the slot is missing", "REPLICATION_GAP_STRATEGY");
    assert_eq!(stage.postgres.confirmed_flush(SESSIONS_SLOT), None, "it is not made again");

    let skip = settings.clone().with("REPLICATION_GAP_STRATEGY", "skip");
    let mut program = Program::start(&skip);
    program.wait_streaming(&["sessions"]);
    program.wait_for_log("skipped: the differences between Postgres and ClickHouse remain");
    let skipped = "walhouse_gaps_total{service=\"sessions\",action=\"skipped\"}";
    assert_eq!(program.metric(skipped), Some(1.0));
    stage.postgres.insert("Session", &sample::session("c"));
    stage.settle(&mut program, &["sessions"]);
    assert_eq!(stage.clickhouse.count("sessions_v1", "session_id = 'b'"), 0);
    assert_eq!(stage.clickhouse.count("sessions_v1", "session_id = 'c'"), 1);
    program.stop();
}

#[test]
fn another_cluster_is_followed_only_after_it_was_adopted() {
    let stage = Stage::own();
    let program = stage.start();
    load(160).run(&stage.postgres, 40);
    program.stop();
    let other = Stage { postgres: Postgres::start(), ..stage };
    let halts = other.settings();
    // Its LSNs are lower than those in ClickHouse, and it has other rows.
    other.postgres.insert("TaskRun", &sample::run("of the new cluster"));
    let mut program = Program::start(&halts);
    program.wait_halted(&SERVICES);
    program.wait_for_log("foreign cluster: expected system identifier");
    program.wait_for_log("walhouse adopt runs");
    program.stop();
    assert_eq!(other.clickhouse.count("task_runs_v2", "run_id = 'of the new cluster'"), 0);

    for service in SERVICES {
        let output = Program::command(&halts, &["adopt", service]);
        assert!(output.status.success(), "{output:?}");
    }
    let mut program = other.start();
    wait_repaired(&mut program);
    load(161).run(&other.postgres, 40);
    assert_identical(&other);
    program.stop();
    // It is the cluster now.
    let output = Program::command(&halts, &["adopt", "runs"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("nothing to adopt"), "{output:?}");
    let program = other.start();
    other.postgres.insert("TaskRun", &sample::run("later"));
    assert_identical(&other);
    program.stop();
}
