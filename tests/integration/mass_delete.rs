//! A statement that deletes far more rows than are looked up at once, under REPLICA IDENTITY DEFAULT:
//! each of them has to be found in ClickHouse, whose scans are slow.

use crate::support::oracle::{Scope, assert_same};
use crate::support::postgres::Postgres;
use crate::support::program::Program;
use crate::support::stage::Stage;

const RUNS: u32 = 60_000;

fn insert_runs(postgres: &Postgres) {
    postgres.execute(&format!(
        r#"INSERT INTO "TaskRun" (id, "friendlyId", payload, "runtimeEnvironmentId", "projectId",
             "organizationId", "environmentType", "updatedAt", "createdAt", "taskIdentifier",
             "spanId", "traceId", queue)
           SELECT 'run_' || lpad(n::text, 21, '0'), 'friendly-' || n, '{{"n":1}}', 'env', 'proj',
             'org', 'PRODUCTION', now(), timestamp '2026-01-01' + n * interval '1 minute', 'task', 'span',
             'trace', 'queue'
           FROM generate_series(1, {RUNS}) n"#
    ));
}

fn peak_bytes(program: &Program) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux says so");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number") * 1024
}

/// Goal: whatever a scan takes, short of the time that one statement has, the deletes land; and
/// memory is what was configured, though a delete is forty bytes on the wire.
#[test]
fn look_ups_of_a_mass_delete_come_to_an_end_in_bounded_memory() {
    let stage = Stage::own();
    let url = format!("{}/?request_timeout=6000", stage.clickhouse.url());
    let settings = stage
        .settings_runs()
        .with("RUN_REPLICATION_CLICKHOUSE_URL", url)
        .with("RUN_REPLICATION_MAX_BUFFER_BYTES", 64 << 20);
    let mut program = Program::start(&settings);
    program.wait_streaming(&["runs"]);
    insert_runs(&stage.postgres);
    stage.settle(&mut program, &["runs"]);
    assert_eq!(stage.clickhouse.count("task_runs_v2", "_is_deleted = 0"), u64::from(RUNS));
    // Twelve statements of 5,000 ids each would take twelve seconds.
    stage.clickhouse.add_fault("action=delay_before&ms=1000&on=query");
    stage.postgres.execute(r#"DELETE FROM "TaskRun""#);
    stage.settle(&mut program, &["runs"]);
    stage.clickhouse.clear_faults();
    assert_eq!(assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS), 0);
    let looked_up = program.metric(r#"walhouse_deletes_looked_up_total{service="runs"}"#);
    assert_eq!(looked_up, Some(f64::from(RUNS)), "each of them once");
    let peak = peak_bytes(&program);
    assert!(peak < 200 << 20, "{peak} bytes");
    program.stop();
}

/// Goal: where one scan of the table is too much, partitions are read one after the other.
#[test]
fn a_table_that_cannot_be_read_at_once_is_read_partition_by_partition() {
    let stage = Stage::own();
    let mut program = Program::start(&stage.settings_runs());
    program.wait_streaming(&["runs"]);
    insert_runs(&stage.postgres);
    stage.settle(&mut program, &["runs"]);
    // Minute by minute they are of two months: 44,000 and 16,000 rows.
    stage.clickhouse.set_profile("max_rows_to_read=50000");
    let ids = "'run_000000000000000000001', 'run_000000000000000059999'";
    stage.postgres.execute(&format!(r#"DELETE FROM "TaskRun" WHERE id IN ({ids})"#));
    program.wait_for_log("TOO_MANY_ROWS");
    stage.settle(&mut program, &["runs"]);
    stage.clickhouse.set_profile("");
    let rows = assert_same(&stage.postgres, &stage.clickhouse, Scope::RUNS);
    assert_eq!(rows as u32, 2 * (RUNS - 2), "runs and their payloads");
    program.stop();
}
