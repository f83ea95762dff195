//! The three servers of a test, and the settings that lead a program to them.
//!
//! Starting them takes seconds. So a test that only uses them takes them from a pool and gives them
//! back; one that stops or breaks a server has its own.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use super::clickhouse::Clickhouse;
use super::postgres::Postgres;
use super::program::{Program, Settings};
use super::redis::Redis;

pub const RUNS_SLOT: &str = "task_runs_to_clickhouse_v1";
pub const SESSIONS_SLOT: &str = "sessions_to_clickhouse_v1";
pub const WEBHOOKS_SLOT: &str = "webhook_deliveries_to_clickhouse_v1";
pub const SERVICES: [&str; 2] = ["runs", "sessions"];

pub struct Stage {
    pub postgres: Postgres,
    pub clickhouse: Clickhouse,
    pub redis: Redis,
}

impl Stage {
    /// Clean servers that other tests will use too: leave them running.
    pub fn take() -> Pooled {
        let pooled = POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop();
        let stage = match pooled {
            Some(stage) => {
                stage.postgres.reset();
                stage.clickhouse.reset();
                stage.redis.reset();
                stage
            }
            None => Stage {
                postgres: Postgres::start(),
                clickhouse: Clickhouse::start(),
                redis: Redis::start(),
            },
        };
        Pooled(Some(stage))
    }

    /// Servers of the test's own, to be stopped, broken and told to fail.
    pub fn own() -> Stage {
        Stage::own_with(&[])
    }

    pub fn own_with(postgres_settings: &[(&str, &str)]) -> Stage {
        Stage {
            postgres: Postgres::start_with(postgres_settings),
            clickhouse: Clickhouse::start_front(),
            redis: Redis::start(),
        }
    }

    /// Both services, with the short times of a test, and without an initial backfill: it may read
    /// a row before the stream brings it, and what is counted is then counted twice.
    pub fn settings(&self) -> Settings {
        Settings::default()
            .with("DATABASE_URL", self.postgres.url())
            .with("REDIS_HOST", "127.0.0.1")
            .with("REDIS_PORT", self.redis.port())
            .with("REDIS_TLS_DISABLED", "true")
            .with("REPLICATION_HTTP_LISTEN", "127.0.0.1:0")
            .with("REPLICATION_RECONNECT_INITIAL_DELAY_MS", 100)
            .with("REPLICATION_RECONNECT_MAX_DELAY_MS", 1000)
            .with("REPLICATION_RECEIVE_TIMEOUT_MS", 30_000)
            .with_both("*_REPLICATION_ENABLED", 1)
            .with_both("*_REPLICATION_INITIAL_BACKFILL", 0)
            .with("RUN_REPLICATION_CLICKHOUSE_URL", self.clickhouse.url())
            .with("SESSION_REPLICATION_CLICKHOUSE_URL", self.clickhouse.url_compressed())
            .with_both("*_REPLICATION_FLUSH_INTERVAL_MS", 100)
            .with_both("*_REPLICATION_FLUSH_BATCH_SIZE", 50)
            .with_both("*_REPLICATION_MAX_FLUSH_CONCURRENCY", 2)
            .with_both("*_REPLICATION_ACK_INTERVAL_SECONDS", 1)
            .with_both("*_REPLICATION_LEADER_LOCK_TIMEOUT_MS", 5000)
            .with_both("*_REPLICATION_LEADER_LOCK_EXTEND_INTERVAL_MS", 1000)
            .with_both("*_REPLICATION_LEADER_LOCK_RETRY_INTERVAL_MS", 100)
    }

    /// Both services, and all else as it is for a user who has set nothing.
    pub fn settings_of_defaults(&self) -> Settings {
        Settings::default()
            .with("DATABASE_URL", self.postgres.url())
            .with("REDIS_HOST", "127.0.0.1")
            .with("REDIS_PORT", self.redis.port())
            .with("REDIS_TLS_DISABLED", "true")
            .with("REPLICATION_HTTP_LISTEN", "127.0.0.1:0")
            .with_both("*_REPLICATION_ENABLED", 1)
            .with_both("*_REPLICATION_CLICKHOUSE_URL", self.clickhouse.url())
    }

    /// Only runs.
    pub fn settings_runs(&self) -> Settings {
        self.settings().with("SESSION_REPLICATION_ENABLED", 0)
    }

    /// Only webhooks.
    pub fn settings_webhooks(&self) -> Settings {
        const PREFIX: &str = "WEBHOOK_DELIVERIES_REPLICATION";
        let of_sessions: Vec<(String, String)> = (self.settings().all())
            .filter_map(|(name, value)| Some((name.strip_prefix("SESSION_REPLICATION")?, value)))
            .map(|(rest, value)| (format!("{PREFIX}{rest}"), value.clone()))
            .collect();
        let settings = self.settings_runs().with("RUN_REPLICATION_ENABLED", 0);
        of_sessions.iter().fold(settings, |settings, (name, value)| settings.with(name, value))
    }

    /// A program with these settings that streams both services.
    #[track_caller]
    pub fn start(&self) -> Program {
        let mut program = Program::start(&self.settings());
        program.wait_streaming(&SERVICES);
        program
    }

    /// Whatever was committed until now is durable in ClickHouse.
    #[track_caller]
    pub fn settle(&self, program: &mut Program, services: &[&str]) {
        let lsn = self.postgres.flush_lsn();
        for service in services {
            program.wait_flushed(service, lsn);
        }
    }
}

static POOL: Mutex<Vec<Stage>> = Mutex::new(Vec::new());

/// A stage that goes back to the pool, unless its test failed: nobody knows in what state it is.
pub struct Pooled(Option<Stage>);

impl Deref for Pooled {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        self.0.as_ref().expect("it is given back only in the end")
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Stage {
        self.0.as_mut().expect("it is given back only in the end")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let Some(stage) = self.0.take() else { return };
        // A server given by URL serves one stage at a time, so it cannot rest in the pool.
        if stage.clickhouse.is_front() && !std::thread::panicking() {
            POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(stage);
        }
    }
}
