//! walhouse itself: the binary that users run, with what it takes unless it is told otherwise.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::clock::poll;
use crate::process::{LOOK_EVERY, Process, profiler};
use crate::service::Service;
use crate::stage::Stage;
use crate::support::http;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Walhouse {
    pub process: Process,
    http: SocketAddr,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// The stream.
    New,
    /// What is in the table at a first start.
    Old,
}

/// What `/metrics` says at one moment.
pub struct Metrics(String);

impl Walhouse {
    /// These services, each from its slot, into the ClickHouse at `port` of this machine, or the
    /// real one.
    pub fn start(
        stage: &Stage,
        name: &str,
        services: &[(Service, String)],
        port: Option<u16>,
        rows: Rows,
    ) -> Result<Walhouse, String> {
        let url = port.map_or_else(
            || stage.clickhouse_url.clone(),
            |port| {
                let mut url = url::Url::parse(&stage.clickhouse_url).expect("it was used before");
                url.set_host(Some("127.0.0.1"))
                    .and_then(|()| {
                        url.set_port(Some(port)).map_err(|()| url::ParseError::InvalidPort)
                    })
                    .expect("an HTTP URL takes both");
                url.to_string()
            },
        );
        let log = stage.log(name);
        let profile = stage.profile(name);
        let mut command = match &profile {
            Some(file) => profiler(file),
            None => Command::new(&stage.walhouse),
        };
        if profile.is_some() {
            command.arg(&stage.walhouse);
        }
        command.env_clear().envs(settings_of_the_caller());
        command
            .env("DATABASE_URL", format!("postgresql://postgres@{}/postgres", stage.postgres_at));
        command.env("REPLICATION_LEADER_LOCK", "postgres");
        command.env("REPLICATION_HTTP_LISTEN", "127.0.0.1:0");
        for (service, slot) in services {
            let prefix = service.prefix();
            command.env(format!("{prefix}_ENABLED"), "1");
            command.env(format!("{prefix}_CLICKHOUSE_URL"), &url);
            command.env(format!("{prefix}_SLOT_NAME"), slot);
            // The tables are new each time.
            let backfill = if rows == Rows::Old { "1" } else { "0" };
            command.env(format!("{prefix}_INITIAL_BACKFILL"), backfill);
        }
        let start = if profile.is_some() { Process::start_profiled } else { Process::start };
        let process = start(&mut command, &log)?;
        let address = poll(START_TIMEOUT, LOOK_EVERY, || {
            if process.is_over() {
                return Some(Err(format!("walhouse ended:\n{}", process.log())));
            }
            let log = process.log();
            let line = log.lines().find(|line| line.contains("metrics and health on http://"))?;
            Some(Ok(line.rsplit_once("http://")?.1.to_owned()))
        });
        let address = address.ok_or("walhouse serves no metrics")??;
        let http = address.parse().map_err(|e| format!("find the metrics of walhouse: {e}"))?;
        Ok(Walhouse { process, http })
    }

    /// An error if it has ended; nothing while it does not answer.
    pub fn metrics(&self) -> Result<Option<Metrics>, String> {
        if self.process.is_over() {
            return Err(format!("walhouse ended:\n{}", self.process.log()));
        }
        let answer = http::request(self.http, "GET", "/metrics", "", b"", HTTP_TIMEOUT);
        Ok(answer.ok().map(|answer| Metrics(answer.text())))
    }

    pub fn wait_streaming(&self, services: &[(Service, String)]) -> Result<(), String> {
        let streaming = poll(START_TIMEOUT, LOOK_EVERY, || match self.metrics() {
            Err(problem) => Some(Err(problem)),
            Ok(metrics) => {
                let metrics = metrics?;
                let streams =
                    |service: &Service| metrics.of(*service, "state", "state=\"streaming\"");
                services.iter().all(|(service, _)| streams(service) == 1.0).then_some(Ok(()))
            }
        });
        streaming.unwrap_or_else(|| Err("walhouse does not begin to stream".to_owned()))
    }

    /// In order, so that whatever it had to complain of is in its log.
    pub fn stop(mut self) -> Result<(), String> {
        self.process.signal("TERM");
        let status =
            self.process.wait_end(STOP_TIMEOUT).map_err(|e| format!("stop walhouse: {e}"))?;
        match status.code() {
            Some(0) => Ok(()),
            _ => Err(format!("stop walhouse: {status}\n{}", self.process.log())),
        }
    }

    /// The log has nothing that an undisturbed stream would not say.
    pub fn check_log(&self) -> Result<(), String> {
        let log = self.process.log();
        let bad = |line: &&str| [" WARN ", " ERROR "].iter().any(|level| line.contains(level));
        match log.lines().find(bad) {
            None => Ok(()),
            Some(line) => Err(format!("walhouse said: {line}")),
        }
    }
}

impl Metrics {
    /// The sample of a service with a further label, or 0 where there is none yet.
    pub fn of(&self, service: Service, name: &str, label: &str) -> f64 {
        let comma = if label.is_empty() { "" } else { "," };
        let sample = format!("walhouse_{name}{{service=\"{}\"{comma}{label}}} ", service.name());
        let value = self.0.lines().find_map(|line| line.strip_prefix(sample.as_str()));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0)
    }

    pub fn flushed(&self, service: Service) -> u64 {
        self.of(service, "flushed_lsn", "") as u64
    }

    /// Inserts, updates and deletes.
    pub fn changes(&self, service: Service) -> u64 {
        let of = |kind| self.of(service, "changes_processed_total", &format!("kind=\"{kind}\""));
        ["insert", "update", "delete"].into_iter().map(of).sum::<f64>() as u64
    }

    pub fn rows_inserted(&self, service: Service, table: &str) -> u64 {
        self.of(service, "rows_inserted_total", &format!("table=\"{table}\"")) as u64
    }

    /// Whether the stream was other than an undisturbed one: then it is no measurement.
    pub fn disturbance(&self, service: Service) -> Option<String> {
        let names = [
            ("gaps_total", "action=\"repaired\""),
            ("gaps_total", "action=\"skipped\""),
            ("reconnects_total", ""),
            ("repair_running", ""),
        ];
        let found = names.into_iter().find(|(name, label)| 0.0 < self.of(service, name, label));
        found.map(|(name, label)| format!("walhouse_{name}{{{label}}} is not 0"))
    }
}

/// What the caller has set for walhouse holds here too, so that settings can be compared.
pub fn settings_of_the_caller() -> impl Iterator<Item = (String, String)> {
    const PREFIXES: [&str; 3] = ["RUN_REPLICATION_", "SESSION_REPLICATION_", "REPLICATION_"];
    std::env::vars().filter(|(name, _)| PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}
