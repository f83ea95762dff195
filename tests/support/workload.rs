//! A write load as the applications make it, and worse: several connections, transactions of 1 to
//! 60 changes, rollbacks, savepoints, changed keys, rows deleted and made again, TOASTed values that
//! later updates leave alone.
//!
//! What is written follows from the seed; how the connections interleave does not. Each connection
//! mostly writes rows of its own, and some that all share. Every row version has a number of its
//! own: in `usageDurationMs` of runs, in the metadata of sessions. A connection that breaks is made
//! again, so the load goes on through a restart; what it wrote is then read from the database.
//!
//! Only with `moves` a row changes a column of its sorting key: without REPLICA IDENTITY FULL the
//! stream does not tell from where, and the row stays under its old key as well.
//!
//! Not written, because what is expected would not follow from the last row alone: another
//! `createdAt` or payload for a row that is there, an owner given to a row that had none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;
use postgres::{Client, Transaction};
use serde_json::{Value, json};

use super::postgres::{self as pg, Postgres, delete, detail, insert, update};
use super::sample::with;
use super::wait::{PATIENCE, until};

#[derive(Debug, Clone, Copy)]
pub struct Workload {
    pub seed: u64,
    pub connections: u64,
    /// Transactions per second of all connections together; `None` is as fast as it goes.
    pub rate: Option<f64>,
    /// One value in this many is TOASTed; 0 is none.
    pub big_every: u64,
    pub changes_max: u64,
    pub moves: bool,
    pub sessions: bool,
}

impl Workload {
    pub fn new(seed: u64) -> Workload {
        Workload {
            seed,
            connections: 3,
            rate: None,
            big_every: 12,
            changes_max: 60,
            moves: false,
            sessions: true,
        }
    }

    /// Writes this many transactions and returns when they are committed or rolled back.
    pub fn run(self, postgres: &Postgres, transactions: u64) -> Written {
        let load = self.spawn(postgres, Some(transactions));
        load.join()
    }

    /// Writes until it is told to stop.
    pub fn start(self, postgres: &Postgres) -> Load {
        self.spawn(postgres, None)
    }

    fn spawn(self, postgres: &Postgres, transactions: Option<u64>) -> Load {
        let shared = Arc::new(Shared::default());
        let writers = (0..self.connections).map(|number| {
            let (shared, port) = (Arc::clone(&shared), postgres.port());
            let share =
                |all: u64| all / self.connections + u64::from(number < all % self.connections);
            let transactions = transactions.map(share);
            let writer = Writer {
                load: self,
                number,
                port,
                rng: Rng::with_seed(self.seed.wrapping_mul(1000) + number),
                shared,
                runs: Vec::new(),
                sessions: Vec::new(),
                made: 0,
            };
            thread::Builder::new()
                .name(format!("writer-{number}"))
                .spawn(move || writer.run(transactions))
                .expect("a thread starts")
        });
        Load { writers: writers.collect(), shared }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    committed: AtomicU64,
    rolled_back: AtomicU64,
    changes: AtomicU64,
    reconnects: AtomicU64,
    versions: AtomicU64,
}

/// What a load wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub committed: u64,
    pub rolled_back: u64,
    /// In committed transactions.
    pub changes: u64,
    pub reconnects: u64,
}

/// A load that is running.
pub struct Load {
    writers: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl Load {
    pub fn written(&self) -> Written {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Written {
            committed: load(&self.shared.committed),
            rolled_back: load(&self.shared.rolled_back),
            changes: load(&self.shared.changes),
            reconnects: load(&self.shared.reconnects),
        }
    }

    /// Until it has committed this many more transactions.
    #[track_caller]
    pub fn wait_for(&self, transactions: u64) {
        let enough = self.written().committed + transactions;
        until(format!("the load has committed {transactions} more"), PATIENCE, || {
            assert!(!self.writers.iter().all(JoinHandle::is_finished), "the load has ended");
            (enough <= self.written().committed).then_some(())
        });
    }

    /// Ends the transactions at hand, and then the load.
    #[track_caller]
    pub fn stop(self) -> Written {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    #[track_caller]
    fn join(mut self) -> Written {
        for writer in self.writers.drain(..) {
            writer.join().expect("a writer of the load failed");
        }
        self.written()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            let _ = writer.join();
        }
    }
}

struct Writer {
    load: Workload,
    number: u64,
    port: u16,
    rng: Rng,
    shared: Arc<Shared>,
    /// Rows of ours that are there.
    runs: Vec<String>,
    sessions: Vec<String>,
    made: u64,
}

/// Rows that every connection writes.
const SHARED_RUNS: u64 = 20;
/// More rows than this are only deleted.
const ROWS_MAX: usize = 1500;
const RUNS: &str = "TaskRun";
const SESSIONS: &str = "Session";

impl Writer {
    fn run(mut self, transactions: Option<u64>) {
        let mut client: Option<Client> = None;
        let started_at = Instant::now();
        let mut done = 0;
        while !self.shared.stop.load(Ordering::Relaxed) && transactions.is_none_or(|n| done < n) {
            let open = client.take().or_else(|| self.connect());
            let Some(mut open) = open else { return };
            // What a failed transaction thought to be there, is not.
            let (runs, sessions) = (self.runs.clone(), self.sessions.clone());
            match self.transaction(&mut open) {
                Ok(Some(changes)) => {
                    self.shared.committed.fetch_add(1, Ordering::Relaxed);
                    self.shared.changes.fetch_add(changes, Ordering::Relaxed);
                }
                Ok(None) => {
                    (self.runs, self.sessions) = (runs, sessions);
                    self.shared.rolled_back.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    (self.runs, self.sessions) = (runs, sessions);
                    self.shared.rolled_back.fetch_add(1, Ordering::Relaxed);
                    // Deadlocks over shared rows are part of the load.
                    let expected = open.is_closed()
                        || error.code().is_none_or(|code| {
                            matches!(code.code(), "40P01" | "57P01" | "57P02" | "57P03")
                        });
                    assert!(expected, "seed {}: {}", self.load.seed, detail(&error));
                    if open.is_closed() || error.code().is_none() {
                        self.shared.reconnects.fetch_add(1, Ordering::Relaxed);
                        done += 1;
                        continue;
                    }
                }
            }
            client = Some(open);
            done += 1;
            self.pace(started_at, done);
        }
    }

    /// `None` when the load is told to stop. Reads what is there: the outcome of the last
    /// transaction may be unknown.
    fn connect(&mut self) -> Option<Client> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.shared.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Ok(mut client) = pg::connect(self.port)
                && let (Ok(runs), Ok(sessions)) =
                    (self.ids(&mut client, RUNS), self.ids(&mut client, SESSIONS))
            {
                (self.runs, self.sessions) = (runs, sessions);
                return Some(client);
            }
            assert!(Instant::now() < deadline, "seed {}: no Postgres to write to", self.load.seed);
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn ids(&self, client: &mut Client, table: &str) -> Result<Vec<String>, postgres::Error> {
        let sql = format!("SELECT \"id\" FROM public.\"{table}\" WHERE \"id\" LIKE $1 ORDER BY 1");
        let rows = client.query(&sql, &[&format!("{}%", self.prefix())])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    fn prefix(&self) -> String {
        format!("w{}-{}-", self.load.seed, self.number)
    }

    fn pace(&self, started_at: Instant, done: u64) {
        let Some(rate) = self.load.rate else { return };
        let share = rate / self.load.connections as f64;
        let due = started_at + Duration::from_secs_f64(done as f64 / share);
        while let Some(left) = due.checked_duration_since(Instant::now()) {
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            thread::park_timeout(left.min(Duration::from_millis(50)));
        }
    }

    /// The number of changes, or `None` if it was rolled back.
    fn transaction(&mut self, client: &mut Client) -> Result<Option<u64>, postgres::Error> {
        let changes = match self.rng.u8(..) {
            0..100 => 1,
            100..220 => self.rng.u64(2..=8.min(self.load.changes_max).max(2)),
            _ => self.rng.u64(1..=self.load.changes_max),
        };
        let mut transaction = client.transaction()?;
        let mut left = changes;
        while 0 < left {
            let together = self.rng.u64(1..=left);
            left -= together;
            if self.rng.u8(..) < 40 {
                let (runs, sessions) = (self.runs.clone(), self.sessions.clone());
                let mut savepoint = transaction.transaction()?;
                self.changes(&mut savepoint, together)?;
                if self.rng.bool() {
                    savepoint.rollback()?;
                    (self.runs, self.sessions) = (runs, sessions);
                } else {
                    savepoint.commit()?;
                }
            } else {
                self.changes(&mut transaction, together)?;
            }
        }
        if self.rng.u8(..) < 20 {
            transaction.rollback()?;
            return Ok(None);
        }
        transaction.commit()?;
        Ok(Some(changes))
    }

    fn changes(&mut self, to: &mut Transaction<'_>, count: u64) -> Result<(), postgres::Error> {
        (0..count).try_for_each(|_| self.change(to))
    }

    fn change(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        if self.load.sessions && self.rng.u8(..) < 40 {
            return self.change_session(to);
        }
        let full = ROWS_MAX <= self.runs.len();
        match self.rng.u8(..) {
            0..100 if !full => self.insert_run(to),
            0..100 => self.delete_run(to),
            100..200 => self.update_run(to),
            200..215 => self.update_shared_run(to),
            215..235 => self.delete_run(to),
            235..243 => self.change_id(to),
            243..250 if self.load.moves => self.change_sorting_key(to),
            243..250 => self.update_run(to),
            250.. => self.delete_and_insert_again(to),
        }
    }

    fn insert_run(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let id = self.new_id();
        let row = self.new_run(&id);
        insert(to, RUNS, &row)?;
        self.runs.push(id);
        Ok(())
    }

    fn update_run(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let Some(id) = self.some_run() else { return self.insert_run(to) };
        let values = self.run_update();
        update(to, RUNS, &id, &values).map(|_| ())
    }

    fn update_shared_run(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let id = format!("w{}-shared-{}", self.load.seed, self.rng.u64(..SHARED_RUNS));
        let values = self.run_update();
        if update(to, RUNS, &id, &values)? == 0 {
            // Two may try: whoever comes second finds the row, and changes nothing.
            let row = self.new_run(&id);
            to.execute(
                "INSERT INTO public.\"TaskRun\" (\"id\", \"friendlyId\", \"payload\", \
                 \"runtimeEnvironmentId\", \"environmentType\", \"projectId\", \"organizationId\", \
                 \"createdAt\", \"updatedAt\", \"taskIdentifier\", \"spanId\", \"traceId\", \
                 \"queue\") SELECT r.\"id\", r.\"friendlyId\", r.\"payload\", \
                 r.\"runtimeEnvironmentId\", 'PREVIEW', r.\"projectId\", 'org_shared', \
                 r.\"createdAt\", r.\"updatedAt\", r.\"taskIdentifier\", r.\"spanId\", \
                 r.\"traceId\", r.\"queue\" \
                 FROM jsonb_populate_record(NULL::public.\"TaskRun\", $1::text::jsonb) r \
                 ON CONFLICT DO NOTHING",
                &[&row.to_string()],
            )?;
        }
        Ok(())
    }

    fn delete_run(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let Some(id) = self.take_run() else { return self.insert_run(to) };
        delete(to, RUNS, &id).map(|_| ())
    }

    fn change_id(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let Some(old) = self.take_run() else { return self.insert_run(to) };
        let id = self.new_id();
        let values = json!({"id": id, "usageDurationMs": self.version()});
        update(to, RUNS, &old, &values)?;
        self.runs.push(id);
        Ok(())
    }

    fn change_sorting_key(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let Some(id) = self.some_run() else { return self.insert_run(to) };
        let version = self.version();
        let column = one_of(&mut self.rng, ["projectId", "runtimeEnvironmentId"]);
        let values = json!({column: format!("moved_{version}"), "usageDurationMs": version});
        update(to, RUNS, &id, &values).map(|_| ())
    }

    fn delete_and_insert_again(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let Some(id) = self.some_run() else { return self.insert_run(to) };
        delete(to, RUNS, &id)?;
        let row = self.new_run(&id);
        insert(to, RUNS, &row)
    }

    fn change_session(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let some = (!self.sessions.is_empty()).then(|| self.rng.usize(..self.sessions.len()));
        match (self.rng.u8(..), some) {
            (0..110, _) | (_, None) => {
                let id = self.new_id();
                let row = self.new_session(&id);
                insert(to, SESSIONS, &row)?;
                self.sessions.push(id);
            }
            (110..220, Some(at)) => {
                let metadata = self.metadata();
                let closed = self.rng.bool();
                let values = json!({
                    "metadata": metadata,
                    "closedAt": closed.then(|| self.moment()),
                    "closedReason": closed.then_some("done"),
                    "updatedAt": self.moment(),
                });
                update(to, SESSIONS, &self.sessions[at], &values)?;
            }
            (220.., Some(at)) => {
                let id = self.sessions.swap_remove(at);
                delete(to, SESSIONS, &id)?;
            }
        }
        Ok(())
    }

    fn some_run(&mut self) -> Option<String> {
        (!self.runs.is_empty()).then(|| self.runs[self.rng.usize(..self.runs.len())].clone())
    }

    fn take_run(&mut self) -> Option<String> {
        let count = self.runs.len();
        (0 < count).then(|| self.runs.swap_remove(self.rng.usize(..count)))
    }

    fn new_id(&mut self) -> String {
        self.made += 1;
        // Not to be met again after a reconnect, when the count goes on.
        format!("{}{}", self.prefix(), self.made)
    }

    /// Of a row, never used twice.
    fn version(&self) -> u64 {
        1 + self.shared.versions.fetch_add(1, Ordering::Relaxed)
    }

    fn new_run(&mut self, id: &str) -> Value {
        let version = self.version();
        let rng = &mut self.rng;
        let owned = rng.u8(..) < 250;
        let (without_type, without_org) = (rng.bool(), rng.bool());
        let row = json!({
            "id": id,
            "friendlyId": format!("run_{id}-{version}"),
            "payload": "",
            "runtimeEnvironmentId": format!("env_{}", rng.u8(..3)),
            "environmentType":
                if owned || !without_type { json!("PRODUCTION") } else { Value::Null },
            "projectId": format!("proj_{}", rng.u8(..3)),
            "organizationId": match (owned, without_type, without_org) {
                (true, ..) | (false, true, false) => json!(format!("org_{}", rng.u8(..3))),
                (false, ..) => Value::Null,
            },
            "taskIdentifier": "task-ü",
            "spanId": format!("{:016x}", rng.u64(..)),
            "traceId": format!("{:032x}", rng.u128(..)),
            "queue": "task/queue",
            "masterQueue": one_of(rng, ["main", "eu-1:a:b", ":x", ""]),
            "engine": one_of(rng, ["V1", "V2"]),
            "isTest": rng.bool(),
            "isWarmStart": one_of(rng, [Value::Null, json!(true), json!(false)]),
            "depth": rng.u8(..),
            "attemptNumber": one_of(rng, [Value::Null, json!(0), json!(255)]),
            "costInCents": one_of(rng, [0.1, 1e-7, 123_456.789, 0.0, 1e300, -2.5]),
            "runTags": one_of(rng, [
                Value::Null, json!([]), json!(["b", "a", ""]), json!(["NULL", "{\"ü\",😀}", "x\\y"]),
            ]),
            "idempotencyKeyOptions": one_of(rng, [Value::Null, json!({"key": "k😀", "scope": "run"})]),
            "annotations": one_of(rng, [
                Value::Null,
                json!({"triggerSource": "api", "triggerAction": "t", "rootTriggerSource": "sdk"}),
                json!({"triggerSource": "api", "triggerAction": "t"}),
                json!({"triggerSource": "api", "triggerAction": "t", "rootTriggerSource": "sdk",
                    "taskKind": "AGENT", "externalDeploymentId": "dep"}),
            ]),
            "statusReason": one_of(rng, [Value::Null, json!("EXTERNAL_DEPLOYMENT_PENDING")]),
            "maxDurationInSeconds": one_of(rng, [Value::Null, json!(0), json!(i32::MAX)]),
            "planType": one_of(rng, [Value::Null, json!("pro")]),
            "region": one_of(rng, [Value::Null, json!("eu-central-1")]),
            "usageDurationMs": version,
        });
        let (payload, payload_type) = self.document();
        with(
            row,
            json!({
                "payload": payload,
                "payloadType": payload_type,
                "createdAt": self.moment(),
                "updatedAt": self.moment(),
                "queueTimestamp": self.maybe_moment(),
                "delayUntil": self.maybe_moment(),
            }),
        )
    }

    /// One of the steps of a run's life; most leave the large columns alone.
    fn run_update(&mut self) -> Value {
        let values = json!({"usageDurationMs": self.version(), "updatedAt": self.moment()});
        let more = match self.rng.u8(..8) {
            0 => json!({"status": "EXECUTING", "startedAt": self.moment(), "attemptNumber": 1}),
            1 => {
                let (output, output_type) = self.document();
                json!({
                    "status": "COMPLETED_SUCCESSFULLY",
                    "completedAt": self.moment(),
                    "output": output,
                    "outputType": output_type,
                })
            }
            2 => json!({
                "status": one_of(&mut self.rng, ["COMPLETED_WITH_ERRORS", "CRASHED", "TIMED_OUT"]),
                "error": self.error(),
            }),
            3 => json!({"runTags": ["tag", format!("tag-{}", self.rng.u16(..))]}),
            4 => json!({"bulkActionGroupIds": [format!("bulk_{}", self.rng.u16(..))]}),
            5 => json!({"output": null, "error": null, "status": "RETRYING_AFTER_FAILURE"}),
            6 => json!({"lockedById": "nobody", "number": self.rng.i32(..)}),
            _ => json!({"machinePreset": "small-1x", "costInCents": self.rng.f64() * 1000.0}),
        };
        with(values, more)
    }

    fn error(&mut self) -> Value {
        match self.rng.u8(..4) {
            0 => json!({"type": "STRING_ERROR", "raw": "ü"}),
            1 => json!({"type": "BUILT_IN_ERROR", "name": "Error", "message": "out of tea"}),
            2 => json!({
                "type": "INTERNAL_ERROR",
                "code": "X",
                "message": format!("run_{} timed out after 12345 ms", self.rng.u32(..)),
                "stackTrace": self.noise(200),
            }),
            _ => Value::Null,
        }
    }

    fn new_session(&mut self, id: &str) -> Value {
        let metadata = self.metadata();
        json!({
            "id": id,
            "friendlyId": format!("session_{id}"),
            "externalId": one_of(&mut self.rng, [Value::Null, json!(format!("external-{id}"))]),
            "type": "chat.agent",
            "projectId": format!("proj_{}", self.rng.u8(..3)),
            "runtimeEnvironmentId": "env_1",
            "environmentType": "STAGING",
            "organizationId": "org_1",
            "taskIdentifier": "agent",
            "tags": one_of(&mut self.rng, [json!([]), json!(["a", "ü,\""])]),
            "metadata": metadata,
            "createdAt": self.moment(),
            "updatedAt": self.moment(),
            "expiresAt": self.maybe_moment(),
            "triggerConfig": {},
            "isTest": self.rng.bool(),
        })
    }

    fn metadata(&mut self) -> Value {
        let version = self.version();
        match self.is_big() {
            true => json!({"version": version, "noise": self.noise(9000)}),
            false => json!({"version": version, "a.b": [1, 2.5, "x", {"y": null}], "ü": {}}),
        }
    }

    /// A document and its content type.
    fn document(&mut self) -> (String, &'static str) {
        const JSON: &str = "application/json";
        if self.is_big() {
            let length = self.rng.usize(9_000..40_000);
            return (format!(r#"{{"noise":"{}"}}"#, self.noise(length)), JSON);
        }
        match self.rng.u8(..10) {
            0 => (String::new(), JSON),
            1 => ("plain text".to_owned(), "text/plain"),
            2 => (
                r#"{"json":{"big":"123456789012345678901234567890","at":"2026-05-20T10:11:12.000Z"},
                    "meta":{"values":{"big":["bigint"],"at":["Date"]}}}"#
                    .to_owned(),
                "application/super+json",
            ),
            3 => (r#"{"n":18446744073709551615,"m":-9223372036854775808,"f":1.5e-9}"#.into(), JSON),
            4 => (r#"{"n":117039831458782870000,"text":"\ud83d\ude00 \u0000 ü"}"#.into(), JSON),
            5 => (r#"{"bad":"\ud83d","good":1}"#.into(), JSON),
            6 => ("{not json".to_owned(), JSON),
            7 => (r#"[{"a":1,"b":null},{"a":{"c":[]}},"x",null]"#.to_owned(), JSON),
            _ => (
                format!(r#"{{"id":{},"list":[1,2,3],"e":{{}},"n":null,"a.b":"x"}}"#, self.rng.u32(..)),
                JSON,
            ),
        }
    }

    fn is_big(&mut self) -> bool {
        0 < self.load.big_every && self.rng.u64(..self.load.big_every) == 0
    }

    /// Text that does not compress to what fits in a row.
    fn noise(&mut self, length: usize) -> String {
        (0..length).map(|_| self.rng.alphanumeric()).collect()
    }

    fn moment(&mut self) -> String {
        let days = self.rng.u32(1..=28);
        let (hours, minutes) = (self.rng.u32(..24), self.rng.u32(..60));
        let (seconds, millis) = (self.rng.u32(..60), self.rng.u32(..1000));
        let year = one_of(&mut self.rng, [2024, 2025, 2026, 1969, 2262]);
        format!("{year}-05-{days:02} {hours:02}:{minutes:02}:{seconds:02}.{millis:03}")
    }

    fn maybe_moment(&mut self) -> Value {
        if self.rng.bool() { json!(self.moment()) } else { Value::Null }
    }
}

fn one_of<T, const N: usize>(rng: &mut Rng, values: [T; N]) -> T {
    let at = rng.usize(..N);
    values.into_iter().nth(at).expect("it is below the length")
}
