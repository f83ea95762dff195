//! What a user sees of walhouse while it runs: how old rows are when ClickHouse shows them, how many
//! parts they come in, and what memory an outage takes.

use std::time::Duration;

use crate::backlog::drop_slots;
use crate::clock::{pause, poll, unix_time};
use crate::figures::Figure;
use crate::gate::{Gate, Mode};
use crate::load::Load;
use crate::report::Line;
use crate::rows::{self, Variant};
use crate::service::Service;
use crate::stage::Stage;
use crate::support::database::detail;
use crate::walhouse::{Rows, Walhouse};
use crate::watch::{Watch, parts_made};

/// Before what is measured: tables are made, caches are filled.
const WARM_UP: Duration = Duration::from_secs(3);
/// Rarely enough to leave the machine to those who are measured.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const LOOK_EVERY_QUIET: Duration = Duration::from_millis(2);
/// Above the interval of a flush, so that the next row finds silence.
const SILENCE: Duration = Duration::from_millis(1700);
/// For the last row to be seen.
const PATIENCE: Duration = Duration::from_secs(300);
const MB: f64 = 1024.0 * 1024.0;

#[derive(Default)]
struct Run {
    rows: u64,
    wall: f64,
    cpu: f64,
    peak_mb: f64,
    parts_per_minute: Option<f64>,
    /// The middle, 95 and 99 of 100, the worst.
    latency_ms: Option<[f64; 4]>,
    note: String,
}

/// Rows of `rate` per second, for so long.
pub fn at_rate(
    stage: &Stage,
    name: &str,
    service: Service,
    rate: u32,
    lasts: Duration,
    runs: u32,
) -> Result<Line, String> {
    repeat(name, runs, || {
        let warm_up = (WARM_UP.as_secs_f64() * f64::from(rate)) as u64;
        let rows = warm_up + (lasts.as_secs_f64() * f64::from(rate)) as u64;
        let mut walhouse = begin(stage, service, None)?;
        let mut watch = Watch::new(stage, service, rows);
        let load = Load::start(&stage.postgres, service, rate, rows)?;
        look_until(&mut watch, &walhouse, |_| warm_up <= load.written())?;
        let (began_at, cpu) = (unix_time(), walhouse.process.cpu());
        let (first, parts) = (load.written() + 1, parts_made(stage, service)?);
        look_until(&mut watch, &walhouse, |_| load.is_over())?;
        let wall = unix_time().saturating_sub(began_at).as_secs_f64();
        let written = load.stop()?;
        look_until(&mut watch, &walhouse, |watch| watch.unbroken() == written)?;
        let parts = parts_made(stage, service)? - parts;
        let seconds = unix_time().saturating_sub(began_at).as_secs_f64();
        let run = Run {
            rows: written + 1 - first,
            wall,
            cpu: walhouse.process.cpu().saturating_sub(cpu).as_secs_f64(),
            peak_mb: walhouse.process.peak_bytes() as f64 / MB,
            parts_per_minute: Some(parts * 60.0 / seconds),
            latency_ms: quantiles(watch.latencies(first)),
            note: String::new(),
        };
        walhouse.check_log()?;
        walhouse.stop()?;
        Ok(run)
    })
}

/// Single rows, each after silence.
pub fn quiet(
    stage: &Stage,
    name: &str,
    service: Service,
    rows: u32,
    runs: u32,
) -> Result<Line, String> {
    repeat(name, runs, || {
        let mut walhouse = begin(stage, service, None)?;
        let mut watch = Watch::new(stage, service, u64::from(rows) + 1);
        let mut client = stage.postgres.try_client().ok_or("connect to Postgres")?;
        let (began_at, cpu) = (unix_time(), walhouse.process.cpu());
        // The first one is not counted: it waits for what else has gathered.
        for number in 1..=i64::from(rows) + 1 {
            pause(SILENCE);
            let insert = rows::insert(service, "(SELECT $1::bigint AS g) n", Variant::Stamped);
            let written = client.execute(&insert, &[&number]);
            written.map_err(|error| format!("write a row: {}", detail(&error)))?;
            let seen = poll(PATIENCE, LOOK_EVERY_QUIET, || {
                let looked = watch.look();
                looked.map(|()| (watch.unbroken() == number as u64).then_some(())).transpose()
            });
            seen.ok_or("a row does not become visible")??;
        }
        let run = Run {
            rows: u64::from(rows),
            wall: unix_time().saturating_sub(began_at).as_secs_f64(),
            cpu: walhouse.process.cpu().saturating_sub(cpu).as_secs_f64(),
            peak_mb: walhouse.process.peak_bytes() as f64 / MB,
            latency_ms: quantiles(watch.latencies(2)),
            ..Run::default()
        };
        walhouse.check_log()?;
        walhouse.stop()?;
        Ok(run)
    })
}

/// A load, and ClickHouse away in the middle of it.
pub fn stopped(
    stage: &Stage,
    name: &str,
    service: Service,
    rate: u32,
    away: Duration,
    runs: u32,
) -> Result<Line, String> {
    repeat(name, runs, || {
        let gate = Gate::before(stage.clickhouse.at, Mode::Pass);
        let gate = gate.map_err(|e| format!("open a gate: {e}"))?;
        let lasts = WARM_UP + away + WARM_UP;
        let rows = (lasts.as_secs_f64() * f64::from(rate)) as u64;
        let mut walhouse = begin(stage, service, Some(gate.port()))?;
        let mut watch = Watch::new(stage, service, rows);
        let began_at = unix_time();
        let load = Load::start(&stage.postgres, service, rate, rows)?;
        look_until(&mut watch, &walhouse, |_| WARM_UP <= unix_time().saturating_sub(began_at))?;
        gate.set(Mode::Away);
        pause(away);
        gate.set(Mode::Pass);
        let back_at = unix_time();
        look_until(&mut watch, &walhouse, |watch| watch.unbroken() == rows)?;
        let caught_up = unix_time().saturating_sub(back_at).as_secs_f64();
        let run = Run {
            rows: load.stop()?,
            wall: unix_time().saturating_sub(began_at).as_secs_f64(),
            cpu: walhouse.process.cpu().as_secs_f64(),
            peak_mb: walhouse.process.peak_bytes() as f64 / MB,
            note: format!("all rows there {caught_up:.1} s after it was back"),
            ..Run::default()
        };
        walhouse.stop()?;
        Ok(run)
    })
}

/// Over an empty table on both sides.
fn begin(stage: &Stage, service: Service, port: Option<u16>) -> Result<Walhouse, String> {
    stage.empty_clickhouse()?;
    let slot = format!("bench_{}_{}", service.name(), stage.new_slot_number());
    let mut client = stage.postgres.try_client().ok_or("connect to Postgres")?;
    let made = drop_slots(&mut client).and_then(|()| {
        client.batch_execute(&format!("TRUNCATE {}", service.table()))?;
        client.batch_execute(&format!(
            "CHECKPOINT; SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
        ))
    });
    made.map_err(|error| format!("make a slot: {}", detail(&error)))?;
    let slots = [(service, slot)];
    let walhouse = Walhouse::start(stage, "walhouse", &slots, port, Rows::New)?;
    walhouse.wait_streaming(&slots)?;
    Ok(walhouse)
}

fn look_until(
    watch: &mut Watch<'_>,
    walhouse: &Walhouse,
    is_enough: impl Fn(&Watch<'_>) -> bool,
) -> Result<(), String> {
    let done = poll(PATIENCE, LOOK_EVERY, || {
        if walhouse.process.is_over() {
            return Some(Err(format!("walhouse ended:\n{}", walhouse.process.log())));
        }
        match watch.look() {
            Err(problem) => Some(Err(problem)),
            Ok(()) => is_enough(watch).then_some(Ok(())),
        }
    });
    done.unwrap_or_else(|| Err(format!("rows above {} do not become visible", watch.unbroken())))
}

fn quantiles(latencies: impl Iterator<Item = f64>) -> Option<[f64; 4]> {
    let all = Figure::of(latencies)?;
    Some([0.5, 0.95, 0.99, 1.0].map(|part| all.quantile(part)))
}

fn repeat(
    name: &str,
    runs: u32,
    mut run: impl FnMut() -> Result<Run, String>,
) -> Result<Line, String> {
    let runs: Vec<Run> = (0..runs).map(|_| run()).collect::<Result<_, _>>()?;
    let of = |value: fn(&Run) -> f64| Figure::of(runs.iter().map(value));
    let latency = |at: usize| Figure::of(runs.iter().filter_map(|run| Some(run.latency_ms?[at])));
    let last = runs.last().ok_or("nothing was run")?;
    Ok(Line {
        case: name.to_owned(),
        contender: "walhouse".to_owned(),
        changes: last.rows,
        wall_s: of(|run| run.wall),
        cpu_us: of(|run| run.cpu / run.rows as f64 * 1e6),
        peak_mb: of(|run| run.peak_mb),
        latency_ms: (0..4)
            .map(latency)
            .collect::<Option<Vec<_>>>()
            .and_then(|all| all.try_into().ok()),
        parts_per_minute: Figure::of(runs.iter().filter_map(|run| run.parts_per_minute)),
        note: last.note.clone(),
        ..Line::default()
    })
}
