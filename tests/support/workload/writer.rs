//! One connection of the load: it writes transactions and knows which of its rows are there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;
use postgres::{Client, Transaction};
use serde_json::json;

use super::rows::{Rows, one_of};
use super::{Shared, Workload};
use crate::support::database::{Database, delete, detail, insert, update};
use crate::support::wait::PATIENCE;

pub struct Writer {
    load: Workload,
    number: u64,
    postgres: Database,
    /// Decides what is done; the rows have their own.
    rng: Rng,
    rows: Rows,
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
    pub fn new(load: Workload, number: u64, postgres: Database, shared: Arc<Shared>) -> Writer {
        let seed = load.seed.wrapping_mul(1000) + number;
        Writer {
            load,
            number,
            postgres,
            rng: Rng::with_seed(seed),
            rows: Rows::new(seed ^ 0x5eed, load.big_every, Arc::clone(&shared)),
            shared,
            runs: Vec::new(),
            sessions: Vec::new(),
            made: 0,
        }
    }

    pub fn run(mut self, transactions: Option<u64>) {
        let mut client: Option<Client> = None;
        let mut due = Instant::now();
        let mut done = 0;
        while !self.shared.stops_within(Duration::ZERO) && transactions.is_none_or(|n| done < n) {
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
                    let expected = self.load.endures
                        || open.is_closed()
                        || error.code().is_none_or(|code| {
                            matches!(code.code(), "40P01" | "57P01" | "57P02" | "57P03")
                        });
                    assert!(expected, "seed {}: {}", self.load.seed, detail(&error));
                    if self.load.endures {
                        eprintln!("writer {}: {}", self.number, detail(&error));
                    }
                    let deadlock = error.code().is_some_and(|code| code.code() == "40P01");
                    if open.is_closed() || error.code().is_none() || self.load.endures && !deadlock
                    {
                        self.shared.reconnects.fetch_add(1, Ordering::Relaxed);
                        done += 1;
                        continue;
                    }
                }
            }
            client = Some(open);
            done += 1;
            due = self.pace(due);
        }
    }

    /// `None` when the load is told to stop. Reads what is there: the outcome of the last
    /// transaction may be unknown.
    fn connect(&mut self) -> Option<Client> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(mut client) = self.postgres.try_client()
                && let (Ok(runs), Ok(sessions)) =
                    (self.ids(&mut client, RUNS), self.ids(&mut client, SESSIONS))
            {
                let made = |id: &String| id.rsplit_once('-')?.1.parse::<u64>().ok();
                let most = runs.iter().chain(&sessions).filter_map(made).max();
                // An earlier load of the same seed may have left rows.
                self.made = self.made.max(most.unwrap_or(0));
                (self.runs, self.sessions) = (runs, sessions);
                return Some(client);
            }
            let patient = self.load.endures || Instant::now() < deadline;
            assert!(patient, "seed {}: no Postgres to write to", self.load.seed);
            if self.shared.stops_within(Duration::from_millis(20)) {
                return None;
            }
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

    /// Waits for its turn, and says when it was. What an outage kept from being written does not
    /// come all at once when it is over.
    fn pace(&self, last: Instant) -> Instant {
        const BEHIND_MAX: Duration = Duration::from_secs(1);
        let Some(rate) = self.load.rate else { return last };
        let share = rate / self.load.connections as f64;
        let now = Instant::now();
        let due = last + Duration::from_secs_f64(1.0 / share);
        if now.saturating_duration_since(due) < BEHIND_MAX {
            self.shared.stops_within(due.saturating_duration_since(now));
            return due;
        }
        now
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
        let row = self.rows.run(&id);
        insert(to, RUNS, &row)?;
        self.runs.push(id);
        Ok(())
    }

    fn update_run(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let Some(id) = self.some_run() else { return self.insert_run(to) };
        let values = self.rows.run_update();
        update(to, RUNS, &id, &values).map(|_| ())
    }

    fn update_shared_run(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let id = format!("w{}-shared-{}", self.load.seed, self.rng.u64(..SHARED_RUNS));
        let values = self.rows.run_update();
        if update(to, RUNS, &id, &values)? == 0 {
            // Two may try: whoever comes second finds the row, and changes nothing.
            let row = self.rows.run(&id);
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
        let values = json!({"id": id, "usageDurationMs": self.rows.version()});
        update(to, RUNS, &old, &values)?;
        self.runs.push(id);
        Ok(())
    }

    fn change_sorting_key(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let Some(id) = self.some_run() else { return self.insert_run(to) };
        let version = self.rows.version();
        let column = one_of(&mut self.rng, ["projectId", "runtimeEnvironmentId"]);
        let values = json!({column: format!("moved_{version}"), "usageDurationMs": version});
        update(to, RUNS, &id, &values).map(|_| ())
    }

    fn delete_and_insert_again(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let Some(id) = self.some_run() else { return self.insert_run(to) };
        delete(to, RUNS, &id)?;
        let row = self.rows.run(&id);
        insert(to, RUNS, &row)
    }

    fn change_session(&mut self, to: &mut Transaction<'_>) -> Result<(), postgres::Error> {
        let some = (!self.sessions.is_empty()).then(|| self.rng.usize(..self.sessions.len()));
        match (self.rng.u8(..), some) {
            (0..110, _) | (_, None) => {
                let id = self.new_id();
                let row = self.rows.session(&id);
                insert(to, SESSIONS, &row)?;
                self.sessions.push(id);
            }
            (110..220, Some(at)) => {
                let metadata = self.rows.metadata();
                let closed = self.rng.bool();
                let values = json!({
                    "metadata": metadata,
                    "closedAt": closed.then(|| self.rows.moment()),
                    "closedReason": closed.then_some("done"),
                    "updatedAt": self.rows.moment(),
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
}
