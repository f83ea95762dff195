//! Where everything runs: the servers, the programs, and a folder for what they say.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use crate::arguments::Arguments;
use crate::process::cpu_of;
use crate::support::database::Database;
use crate::support::warehouse::{DATABASE, Warehouse};

pub struct Stage {
    pub postgres: Database,
    /// `HOST:PORT`
    pub postgres_at: String,
    pub clickhouse: Warehouse,
    pub clickhouse_url: String,
    /// If it is a process of this machine.
    clickhouse_pid: Option<u32>,
    pub walhouse: PathBuf,
    pub recvlogical: PathBuf,
    dir: PathBuf,
    /// Where profiles of walhouse go, if they are asked for.
    perf: Option<PathBuf>,
    started: Cell<u32>,
    slots: Cell<u32>,
}

impl Stage {
    pub fn of(arguments: &Arguments) -> Result<Stage, String> {
        let path = |name| arguments.text(name).map(PathBuf::from);
        Ok(Stage {
            postgres: arguments.postgres()?,
            postgres_at: arguments.text("postgres")?.to_owned(),
            clickhouse: arguments.clickhouse()?,
            clickhouse_url: arguments.text("clickhouse")?.to_owned(),
            clickhouse_pid: arguments.text("clickhouse-pid").ok().and_then(|pid| pid.parse().ok()),
            walhouse: path("walhouse")?,
            recvlogical: path("recvlogical")?,
            dir: path("dir")?,
            perf: path("perf").ok(),
            started: Cell::new(0),
            slots: Cell::new(0),
        })
    }

    /// A new file for the log of a program.
    pub fn log(&self, name: &str) -> PathBuf {
        self.started.set(self.started.get() + 1);
        self.dir.join(format!("{:03}-{name}.log", self.started.get()))
    }

    /// The file for a profile of what was started last.
    pub fn profile(&self, name: &str) -> Option<PathBuf> {
        let file = format!("{:03}-{name}.perf", self.started.get());
        self.perf.as_ref().map(|dir| dir.join(file))
    }

    /// A number that no slot has had yet: one that a run leaves behind must not be taken for another.
    pub fn new_slot_number(&self) -> u32 {
        self.slots.set(self.slots.get() + 1);
        self.slots.get()
    }

    /// What ClickHouse has used since it began.
    pub fn clickhouse_cpu(&self) -> Option<Duration> {
        self.clickhouse_pid.map(cpu_of)
    }

    /// A server that was given by its URL may be somebody's.
    pub fn check_clickhouse_is_new(&self) -> Result<(), String> {
        match self.ask(&format!("EXISTS DATABASE {DATABASE}"))?.trim() {
            "0" => Ok(()),
            _ => Err(format!("ClickHouse has a database `{DATABASE}`, which would be dropped")),
        }
    }

    /// Nothing is left of an earlier run, nor is ClickHouse still merging it.
    pub fn empty_clickhouse(&self) -> Result<(), String> {
        self.ask(&format!("DROP DATABASE IF EXISTS {DATABASE} SYNC")).map(drop)
    }

    /// The answer of ClickHouse, in lines of values with tabs between them.
    pub fn ask(&self, sql: &str) -> Result<String, String> {
        let answer = self.clickhouse.ask(sql, &[]).map_err(|e| format!("ask ClickHouse: {e}"))?;
        match answer.status {
            200 => Ok(answer.text()),
            _ => Err(format!("ask ClickHouse: {sql}: {}", answer.text())),
        }
    }
}
