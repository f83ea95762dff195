//! Who drains a backlog, and what it took.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::backlog::{Backlog, Shape};
use crate::check;
use crate::clock::{poll, poll_rarely, unix_time};
use crate::gate::{Gate, Mode};
use crate::process::{LOOK_EVERY, Process, cpu_of};
use crate::service::Service;
use crate::stage::Stage;
use crate::support::database::detail;
use crate::walhouse::{Metrics, Rows, Walhouse};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// walhouse into ClickHouse.
    Clickhouse,
    /// walhouse, whose rows are thrown away by somebody else.
    Discard,
    /// walhouse into a ClickHouse that takes this long for each insert.
    Slow(Duration),
    /// Postgres's own client, which writes what comes to /dev/null.
    Recvlogical,
}

/// One run.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// From the moment that Postgres was told to stream.
    pub wall: Duration,
    /// Of the whole process, from its start.
    pub cpu: Duration,
    pub peak_bytes: u64,
    /// Of the process of Postgres that sends.
    pub walsender: Duration,
    /// From the beginning to the end of the drain, whatever it is that it does.
    pub clickhouse: Option<Duration>,
}

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Contender::Clickhouse => "walhouse",
            Contender::Discard => "walhouse, inserts discarded",
            Contender::Slow(_) => "walhouse, slow ClickHouse",
            Contender::Recvlogical => "pg_recvlogical",
        }
    }

    pub fn drain(self, stage: &Stage, backlog: &Backlog<'_>) -> Result<Sample, String> {
        let slots = backlog.slots()?;
        match self {
            Contender::Recvlogical => recvlogical(stage, backlog, &slots),
            Contender::Clickhouse => walhouse(stage, backlog, &slots, None),
            Contender::Discard => walhouse(stage, backlog, &slots, Some(Mode::Discard)),
            Contender::Slow(delay) => walhouse(stage, backlog, &slots, Some(Mode::Slow(delay))),
        }
    }
}

const STREAM_TIMEOUT: Duration = Duration::from_secs(60);

/// Far above what it takes: whoever reaches it hangs.
fn patience(backlog: &Backlog<'_>) -> Duration {
    Duration::from_secs(300) + Duration::from_millis(2) * backlog.changes as u32
}

fn walhouse(
    stage: &Stage,
    backlog: &Backlog<'_>,
    slots: &[(Service, String)],
    mode: Option<Mode>,
) -> Result<Sample, String> {
    stage.empty_clickhouse()?;
    let at: SocketAddr = stage.clickhouse.at;
    let gate = mode.map(|mode| Gate::before(at, mode)).transpose();
    let gate = gate.map_err(|e| format!("open a gate: {e}"))?;
    let port = gate.as_ref().map(Gate::port);
    let name = if mode == Some(Mode::Discard) { "discard" } else { "walhouse" };
    let mut walhouse = Walhouse::start(stage, name, slots, port, Rows::New)?;
    let began = Began::wait(stage, slots, || walhouse.process.is_over())
        .map_err(|problem| format!("{problem}\n{}", walhouse.process.log()))?;
    let before = stage.clickhouse_cpu();
    let is_done = |metrics: &Metrics| {
        slots.iter().all(|(service, _)| backlog.end <= metrics.flushed(*service))
    };
    let done = poll_rarely(patience(backlog), || match walhouse.metrics() {
        Err(problem) => Some(Err(problem)),
        Ok(metrics) => metrics.filter(is_done).map(Ok),
    });
    let wall = unix_time().saturating_sub(began.at);
    let (walsender, after) = (began.walsender_cpu(), stage.clickhouse_cpu());
    let (cpu, peak_bytes) = (walhouse.process.cpu(), walhouse.process.peak_bytes());
    done.ok_or("walhouse does not come to the end of the backlog")??;
    // Asked again: samples of one answer are not of one moment.
    let metrics = walhouse.metrics()?.ok_or("walhouse serves no metrics any more")?;
    walhouse.check_log()?;
    for (service, _) in slots {
        check_counts(backlog, &metrics, *service)?;
        if mode != Some(Mode::Discard) {
            check::both_sides(stage, backlog, *service)?;
        }
    }
    walhouse.stop()?;
    let clickhouse = after.zip(before).map(|(after, before)| after.saturating_sub(before));
    Ok(Sample { wall, cpu, peak_bytes, walsender, clickhouse })
}

/// Of discarded rows this is all that can be known.
fn check_counts(backlog: &Backlog<'_>, metrics: &Metrics, service: Service) -> Result<(), String> {
    if let Some(disturbance) = metrics.disturbance(service) {
        return Err(disturbance);
    }
    let expected = backlog.changes / backlog.services.len() as u64;
    let changes = metrics.changes(service);
    if changes != expected {
        return Err(format!("{} processed {changes} changes, not {expected}", service.name()));
    }
    // The other shapes have fewer rows than changes, the fewer the larger the batches are.
    if matches!(backlog.shape, Shape::Inserts(_) | Shape::OneTransaction | Shape::HugeValues) {
        for table in service.targets() {
            let rows = metrics.rows_inserted(service, table);
            if rows != expected {
                return Err(format!("`{table}` was given {rows} rows, not {expected}"));
            }
        }
    }
    Ok(())
}

fn recvlogical(
    stage: &Stage,
    backlog: &Backlog<'_>,
    slots: &[(Service, String)],
) -> Result<Sample, String> {
    let (host, port) = stage.postgres_at.rsplit_once(':').ok_or("--postgres has no port")?;
    let start = |(service, slot): &(Service, String)| {
        let mut command = Command::new(&stage.recvlogical);
        command.args(["--host", host, "--port", port, "--username", "postgres", "--no-loop"]);
        command.args(["--dbname", "postgres", "--start", "--file", "/dev/null", "--slot", slot]);
        command.args(["--endpos", &backlog.end_text()]);
        // As `walhouse::postgres::stream` asks for it.
        command.args(["--option", "proto_version=1", "--option", "binary=true"]);
        command.args(["--option", &format!("publication_names=\"{}\"", service.publication())]);
        Process::start(&mut command, &stage.log("pg_recvlogical"))
    };
    let mut processes: Vec<Process> = slots.iter().map(start).collect::<Result<_, _>>()?;
    let began = Began::wait(stage, slots, || processes.iter().any(Process::is_over))?;
    let mut walsender = Duration::ZERO;
    let done = poll(patience(backlog), LOOK_EVERY, || {
        for process in &mut processes {
            process.peak_bytes();
        }
        // It is gone as soon as its client is, so what was seen last counts.
        walsender = walsender.max(began.walsender_cpu());
        processes.iter().all(Process::is_over).then(unix_time)
    });
    let ended_at = done.ok_or("pg_recvlogical does not come to the end of the backlog")?;
    let cpu = processes.iter().map(Process::cpu).sum();
    let peak_bytes = processes.iter_mut().map(Process::peak_bytes).sum();
    for process in &mut processes {
        let status = process.wait_end(Duration::from_secs(5))?;
        if !status.success() {
            return Err(format!("pg_recvlogical: {status}\n{}", process.log()));
        }
    }
    let wall = ended_at.saturating_sub(began.at);
    Ok(Sample { wall, cpu, peak_bytes, walsender, clickhouse: None })
}

/// A stream that has begun, or several of them.
struct Began {
    /// When the first of the walsenders was told to stream.
    at: Duration,
    walsenders: Vec<u32>,
}

impl Began {
    /// `is_over` says that who reads has ended.
    fn wait(
        stage: &Stage,
        slots: &[(Service, String)],
        is_over: impl Fn() -> bool,
    ) -> Result<Began, String> {
        let names: Vec<String> = slots.iter().map(|(_, slot)| format!("'{slot}'")).collect();
        let sql = format!(
            "SELECT extract(epoch FROM a.query_start)::float8, a.pid
             FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
             WHERE s.slot_name IN ({}) AND a.query LIKE 'START_REPLICATION%' ORDER BY 1",
            names.join(", ")
        );
        let mut client = stage.postgres.try_client().ok_or("connect to Postgres")?;
        let began = poll(STREAM_TIMEOUT, LOOK_EVERY, || match client.query(&sql, &[]) {
            Err(error) => Some(Err(format!("look for the walsender: {}", detail(&error)))),
            Ok(rows) if rows.len() < slots.len() && is_over() => {
                Some(Err("it was over before it was seen; write more (--scale)".to_owned()))
            }
            Ok(rows) if rows.len() < slots.len() => None,
            Ok(rows) => {
                let at = Duration::try_from_secs_f64(rows.first()?.get(0)).ok()?;
                let walsenders = rows.iter().map(|row| row.get::<_, i32>(1) as u32).collect();
                Some(Ok(Began { at, walsenders }))
            }
        });
        began.unwrap_or_else(|| Err("no walsender began to stream".to_owned()))
    }

    fn walsender_cpu(&self) -> Duration {
        self.walsenders.iter().map(|pid| cpu_of(*pid)).sum()
    }
}
