//! WAL that waits to be drained: written once, drained many times.
//!
//! A slot that is made before the first row, and that nobody reads from, remembers where the backlog
//! begins. Each run reads from a copy of it, so all of them get the same.

use postgres::{Client, SimpleQueryMessage};

use crate::rows::{self, Variant};
use crate::service::Service;
use crate::stage::Stage;
use crate::support::database::{detail, parse_lsn};

/// How the changes are cut into transactions, and what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Inserts, so many to a transaction.
    Inserts(u64),
    /// All of them in one transaction.
    OneTransaction,
    /// Of a value that Postgres stores outside of the row, in an UPDATE that leaves it alone.
    UnchangedToast,
    /// Of 100: 60 inserts, 30 updates of rows that are a transaction old, 10 deletes of rows that are
    /// ten transactions old.
    Mix,
    /// Inserts of runs, with an output of 64 MB each, one to a transaction.
    HugeValues,
}

pub struct Backlog<'a> {
    stage: &'a Stage,
    pub services: &'static [Service],
    pub shape: Shape,
    pub changes: u64,
    /// Where it ends in the WAL.
    pub end: u64,
}

/// How many rows lie between two commits where a transaction is meant to be large.
const LARGE: u64 = 10_000;
const PER_UPDATE: u64 = 100;
pub const HUGE_BYTES: u64 = 64 << 20;

impl<'a> Backlog<'a> {
    /// Empties the tables and fills the WAL.
    pub fn write(
        stage: &'a Stage,
        services: &'static [Service],
        shape: Shape,
        changes: u64,
    ) -> Result<Backlog<'a>, String> {
        let mut client = stage.postgres.try_client().ok_or("connect to Postgres")?;
        let mut backlog = Backlog { stage, services, shape, changes, end: 0 };
        let mut write = || -> Result<(), postgres::Error> {
            // Nothing here must outlive a crash. Without statistics, and in a table that grows
            // under it, the planner must not think that reading all of it is the way.
            client.batch_execute(
                "SET synchronous_commit = off; SET enable_seqscan = off;
                 SET enable_hashjoin = off; SET enable_mergejoin = off",
            )?;
            drop_slots(&mut client)?;
            for service in services {
                client.batch_execute(&format!("TRUNCATE {}", service.table()))?;
                if shape == Shape::UnchangedToast {
                    let numbers = format!("generate_series(1, {changes}) g");
                    client.batch_execute(&rows::insert(*service, &numbers, Variant::Large))?;
                }
            }
            for service in services {
                client.batch_execute(&format!(
                    "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
                    origin(*service)
                ))?;
            }
            backlog.changes = fill(&mut client, services, shape, changes)?;
            // A transaction that has written something and is waited for, and so are all before it.
            client.batch_execute(
                "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'bench', 'end')",
            )?;
            let end = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[])?;
            backlog.end = parse_lsn(end.get(0));
            // What is still to be written to the tables would be written while others measure.
            client.batch_execute("CHECKPOINT")
        };
        write().map_err(|error| format!("write a backlog: {}", detail(&error)))?;
        Ok(backlog)
    }

    /// A new slot for each service, at the beginning.
    pub fn slots(&self) -> Result<Vec<(Service, String)>, String> {
        let number = self.stage.new_slot_number();
        let mut client = self.stage.postgres.try_client().ok_or("connect to Postgres")?;
        let mut copy = |service: Service| {
            let slot = format!("bench_{}_{number}", service.name());
            let sql =
                format!("SELECT pg_copy_logical_replication_slot('{}', '{slot}')", origin(service));
            let done = client.batch_execute(&sql);
            done.map(|()| (service, slot)).map_err(|e| format!("copy a slot: {}", detail(&e)))
        };
        self.services.iter().map(|service| copy(*service)).collect()
    }

    pub fn end_text(&self) -> String {
        format!("{:X}/{:X}", self.end >> 32, self.end & 0xFFFF_FFFF)
    }
}

impl Drop for Backlog<'_> {
    /// The WAL may go.
    fn drop(&mut self) {
        if let Some(mut client) = self.stage.postgres.try_client() {
            // The servers are thrown away in the end.
            let _ = drop_slots(&mut client).and_then(|()| client.batch_execute("CHECKPOINT"));
        }
    }
}

/// All of ours but those that somebody still reads from.
pub fn drop_slots(client: &mut Client) -> Result<(), postgres::Error> {
    client.batch_execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
         WHERE slot_name LIKE 'bench\\_%' AND NOT active",
    )
}

fn origin(service: Service) -> String {
    format!("bench_origin_{}", service.name())
}

/// Returns how many changes it wrote, which may be some fewer or more than `wanted`.
fn fill(
    client: &mut Client,
    services: &[Service],
    shape: Shape,
    wanted: u64,
) -> Result<u64, postgres::Error> {
    let insert = |client: &mut Client, service, first: u64, last: u64| {
        let numbers = format!("generate_series({first}, {last}) g");
        client.batch_execute(&rows::insert(service, &numbers, Variant::Plain))
    };
    match shape {
        Shape::Inserts(1) => {
            let one = |service| rows::insert(service, "(SELECT i AS g) n", Variant::Plain);
            let all: Vec<String> = services.iter().map(|s| one(*s) + "; COMMIT;").collect();
            client.batch_execute(&format!(
                "DO $$ BEGIN FOR i IN 1..{} LOOP {} END LOOP; END $$",
                wanted / services.len() as u64,
                all.concat()
            ))?;
        }
        Shape::Inserts(rows) => {
            let each = wanted / services.len() as u64;
            for first in (1..=each).step_by(rows as usize) {
                for service in services {
                    insert(client, *service, first, each.min(first + rows - 1))?;
                }
            }
        }
        Shape::OneTransaction => {
            client.batch_execute("BEGIN")?;
            let each = wanted / services.len() as u64;
            for first in (1..=each).step_by(LARGE as usize) {
                for service in services {
                    insert(client, *service, first, each.min(first + LARGE - 1))?;
                }
            }
            client.batch_execute("COMMIT")?;
        }
        Shape::UnchangedToast => {
            for service in services {
                for first in (1..=wanted).step_by(PER_UPDATE as usize) {
                    let last = wanted.min(first + PER_UPDATE - 1);
                    let numbers = format!("generate_series({first}, {last}) g");
                    client.batch_execute(&rows::update(*service, &numbers))?;
                }
            }
        }
        Shape::Mix => {
            let mut changes = 0;
            for t in 0..wanted.div_ceil(100) {
                for service in services {
                    changes += mixed(client, *service, t)?;
                }
            }
            return Ok(changes);
        }
        Shape::HugeValues => {
            let mut insert = rows::insert(Service::Runs, "(SELECT i AS g) n", Variant::Plain);
            let digits = format!(
                "(SELECT '{{\"body\":\"' || string_agg(md5(m::text), '') || '\"}}'
                  FROM generate_series(1, {}) m)",
                HUGE_BYTES / 32
            );
            insert = insert.replace("d.output", &digits);
            let last = wanted;
            client.batch_execute(&format!(
                "DO $$ BEGIN FOR i IN 1..{last} LOOP {insert}; COMMIT; END LOOP; END $$"
            ))?;
        }
    }
    Ok(wanted)
}

/// Transaction `t` of a mix; the first ones have nothing yet to change.
fn mixed(client: &mut Client, service: Service, t: u64) -> Result<u64, postgres::Error> {
    let numbers = |t: u64, from: u64, to: u64| {
        format!("generate_series({}, {}) g", t * 60 + from, t * 60 + to)
    };
    let mut sql = rows::insert(service, &numbers(t, 1, 60), Variant::Plain) + ";";
    if let Some(t) = t.checked_sub(1) {
        sql += &(rows::update(service, &numbers(t, 1, 30)) + ";");
    }
    if let Some(t) = t.checked_sub(10) {
        sql += &rows::delete(service, &numbers(t, 51, 60));
    }
    // Several statements are one transaction.
    let done = client.simple_query(&sql)?;
    let changed = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::CommandComplete(rows) => *rows,
        _ => 0,
    };
    Ok(done.iter().map(changed).sum())
}
