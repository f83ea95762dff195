//! How fast a table that is there is copied into ClickHouse, against Postgres's own `COPY` of the
//! same rows to /dev/null.

use std::process::Command;
use std::time::Duration;

use crate::backlog::drop_slots;
use crate::clock::{poll, unix_time};
use crate::contender::Sample;
use crate::drain::line;
use crate::process::{LOOK_EVERY, Process};
use crate::report::Line;
use crate::rows::{self, Variant};
use crate::service::Service;
use crate::stage::Stage;
use crate::support::database::detail;
use crate::support::warehouse::DATABASE;
use crate::walhouse::{Rows, Walhouse};

/// Far above what it takes: whoever reaches it hangs.
const PATIENCE: Duration = Duration::from_secs(600);
/// Rows written by one statement.
const LARGE: u64 = 100_000;
const DONE: &str = ": initial backfill: done after ";

pub fn run(
    stage: &Stage,
    name: &str,
    service: Service,
    rows: u64,
    runs: u32,
) -> Result<Vec<Line>, String> {
    fill(stage, service, rows)?;
    let (mut walhouse, mut copy) = (Vec::new(), Vec::new());
    let mut notes = Vec::new();
    for _ in 0..runs {
        let (sample, parts) = with_walhouse(stage, service, rows)?;
        walhouse.push(sample);
        notes.push(format!("{parts} parts"));
        copy.push(with_psql(stage, service)?);
    }
    let of = |contender, samples: &[Sample]| line(name, contender, rows, samples, Some(&copy));
    Ok(vec![
        Line { note: notes.join(", "), ..of("walhouse", &walhouse) },
        of("psql, COPY to /dev/null", &copy),
    ])
}

fn fill(stage: &Stage, service: Service, rows: u64) -> Result<(), String> {
    let mut client = stage.postgres.try_client().ok_or("connect to Postgres")?;
    let mut fill = || -> Result<(), postgres::Error> {
        drop_slots(&mut client)?;
        client.batch_execute("SET synchronous_commit = off")?;
        client.batch_execute(&format!("TRUNCATE {}", service.table()))?;
        for first in (1..=rows).step_by(LARGE as usize) {
            let numbers = format!("generate_series({first}, {}) g", rows.min(first + LARGE - 1));
            client.batch_execute(&rows::insert(service, &numbers, Variant::Plain))?;
        }
        // Hint bits are not written while others measure.
        client.batch_execute(&format!("VACUUM {}", service.table()))?;
        client.batch_execute("CHECKPOINT")
    };
    fill().map_err(|error| format!("fill the table: {}", detail(&error)))
}

/// From the start of the process to the line that says that all rows are there.
fn with_walhouse(stage: &Stage, service: Service, rows: u64) -> Result<(Sample, u64), String> {
    stage.empty_clickhouse()?;
    let slot = format!("bench_copy_{}", stage.new_slot_number());
    let slots = [(service, slot)];
    let (began_at, before) = (unix_time(), stage.clickhouse_cpu());
    let mut walhouse = Walhouse::start(stage, "copy", &slots, None, Rows::Old)?;
    let done = poll(PATIENCE, LOOK_EVERY, || {
        walhouse.process.peak_bytes();
        let log = walhouse.process.log();
        (walhouse.process.is_over() || log.contains(DONE)).then_some(())
    });
    let wall = unix_time().saturating_sub(began_at);
    let after = stage.clickhouse_cpu();
    let (cpu, peak_bytes) = (walhouse.process.cpu(), walhouse.process.peak_bytes());
    done.ok_or_else(|| format!("it does not come to an end:\n{}", walhouse.process.log()))?;
    walhouse.check_log()?;
    walhouse.stop()?;
    let table = service.targets()[0];
    let found = stage.ask(&format!("SELECT count() FROM {DATABASE}.{table} FINAL"))?;
    if found.trim().parse() != Ok(rows) {
        return Err(format!("`{table}` has {} rows, not {rows}", found.trim()));
    }
    let parts = inserted_parts(stage, table)?;
    let mut client = stage.postgres.try_client().ok_or("connect to Postgres")?;
    drop_slots(&mut client).map_err(|error| format!("drop a slot: {}", detail(&error)))?;
    let clickhouse = after.zip(before).map(|(after, before)| after.saturating_sub(before));
    Ok((Sample { wall, cpu, peak_bytes, walsender: Duration::ZERO, clickhouse }, parts))
}

/// How many inserts there were, or a few times as many if they touch several partitions.
fn inserted_parts(stage: &Stage, table: &str) -> Result<u64, String> {
    let answer = stage.ask(&format!(
        "SELECT uniqExact(min_block_number) FROM system.parts
         WHERE database = '{DATABASE}' AND table = '{table}' AND level = 0"
    ))?;
    answer.trim().parse().map_err(|_| format!("count parts: got {answer}"))
}

fn with_psql(stage: &Stage, service: Service) -> Result<Sample, String> {
    let (host, port) = stage.postgres_at.rsplit_once(':').ok_or("--postgres has no port")?;
    let beside = stage.recvlogical.with_file_name("psql");
    let mut command = Command::new(if beside.exists() { beside } else { "psql".into() });
    command.args(["--host", host, "--port", port, "--username", "postgres", "--no-psqlrc"]);
    command.args(["--dbname", "postgres", "--output", "/dev/null", "--command"]);
    command.arg(format!("COPY {} TO STDOUT (FORMAT binary)", service.table()));
    let began_at = unix_time();
    let mut process = Process::start(&mut command, &stage.log("psql"))?;
    let done = poll(PATIENCE, LOOK_EVERY, || {
        process.peak_bytes();
        process.is_over().then(unix_time)
    });
    let wall = done.ok_or("psql does not come to an end")?.saturating_sub(began_at);
    let (cpu, peak_bytes) = (process.cpu(), process.peak_bytes());
    let status = process.wait_end(Duration::from_secs(5))?;
    if !status.success() {
        return Err(format!("psql: {status}\n{}", process.log()));
    }
    Ok(Sample { wall, cpu, peak_bytes, walsender: Duration::ZERO, clickhouse: None })
}
