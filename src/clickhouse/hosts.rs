//! Which of several hosts is in use. All clients of a service share this, so that they agree on one
//! host, and know for which tables it is sure to have everything that was acknowledged.
//!
//! Pure but for a lock: nothing is sent here. A *generation* counts the moves from host to host. A
//! table is *fresh* once the host of this generation has fetched what the others accepted before;
//! an INSERT that a host acknowledges after it was left revokes that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// At least one endpoint, each `http://host:port` or `https://host:port`.
#[derive(Clone)]
pub struct Hosts {
    endpoints: Arc<[String]>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    generation: u64,
    /// Counts how often freshness was revoked, for a client that is just establishing it.
    epoch: u64,
    fresh: BTreeSet<String>,
    kinds: BTreeMap<String, ReplicationKind>,
    /// By table: what distinguishes it from another of that name. Kept whatever happens: the hosts
    /// have to agree on it.
    identities: BTreeMap<String, String>,
}

/// How to read from a table what was written to it through another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicationKind {
    /// Each replica fetches for itself, and can be made to.
    Replicated,
    /// ClickHouse Cloud's: all replicas share one storage, and a setting makes a SELECT check it.
    Shared,
    /// A view, Distributed, Buffer, Memory: where its rows are is not known here.
    Elsewhere,
    /// Its rows are on one server alone.
    Plain,
}

impl ReplicationKind {
    pub fn of_engine(engine: &str) -> ReplicationKind {
        match engine.strip_suffix("MergeTree") {
            Some(head) if head.starts_with("Replicated") => ReplicationKind::Replicated,
            Some(head) if head.starts_with("Shared") => ReplicationKind::Shared,
            Some(_) => ReplicationKind::Plain,
            None => ReplicationKind::Elsewhere,
        }
    }
}

/// When freshness began to be established.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    generation: u64,
    epoch: u64,
}

impl Hosts {
    /// `None` without any endpoint.
    pub fn new(endpoints: Vec<String>) -> Option<Hosts> {
        let shared = Arc::default();
        (!endpoints.is_empty()).then(|| Hosts { endpoints: endpoints.into(), shared })
    }

    pub fn one(endpoint: String) -> Hosts {
        Hosts { endpoints: [endpoint].into(), shared: Arc::default() }
    }

    pub fn count(&self) -> usize {
        self.endpoints.len()
    }

    pub fn all(&self) -> &[String] {
        &self.endpoints
    }

    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// The host of a generation.
    pub fn endpoint(&self, generation: u64) -> &str {
        let count = self.endpoints.len() as u64;
        &self.endpoints[(generation % count) as usize]
    }

    /// The host that is spoken to now.
    pub fn current(&self) -> &str {
        self.endpoint(self.generation())
    }

    /// Leaves the host of generation `from` for the next one. `None` if there is no other host, or
    /// another client has moved on already.
    pub fn move_on(&self, from: u64) -> Option<&str> {
        let mut shared = self.lock();
        if self.endpoints.len() < 2 || shared.generation != from {
            return None;
        }
        shared.generation += 1;
        shared.fresh.clear();
        shared.kinds.clear();
        let generation = shared.generation;
        drop(shared);
        Some(self.endpoint(generation))
    }

    /// To be taken before a table is made fresh at the host of this generation.
    pub fn ticket(&self, generation: u64) -> Ticket {
        Ticket { generation, epoch: self.lock().epoch }
    }

    /// For the host of this generation, which another client may still use.
    pub fn is_fresh(&self, table: &str, generation: u64) -> bool {
        let shared = self.lock();
        shared.generation == generation && shared.fresh.contains(table)
    }

    /// The host of the ticket has everything of `table` that was acknowledged before the ticket was
    /// taken; no use if something has come between.
    pub fn set_fresh(&self, table: &str, ticket: Ticket) {
        let mut shared = self.lock();
        if (shared.generation, shared.epoch) == (ticket.generation, ticket.epoch) {
            shared.fresh.insert(table.to_owned());
        }
    }

    /// Another process, or a host that is not the current one, may have accepted rows.
    pub fn forget_fresh(&self) {
        let mut shared = self.lock();
        shared.epoch += 1;
        shared.fresh.clear();
        shared.kinds.clear();
    }

    /// The same of one table, whose kind stays.
    pub fn forget_fresh_of(&self, table: &str) {
        let mut shared = self.lock();
        shared.epoch += 1;
        shared.fresh.remove(table);
    }

    /// What was found out about the table at the host of this generation.
    pub fn kind(&self, table: &str, generation: u64) -> Option<ReplicationKind> {
        let shared = self.lock();
        let kind = shared.kinds.get(table).copied();
        kind.filter(|_| shared.generation == generation)
    }

    /// As [`Hosts::set_fresh`].
    pub fn set_kind(&self, table: &str, kind: ReplicationKind, ticket: Ticket) {
        let mut shared = self.lock();
        if (shared.generation, shared.epoch) == (ticket.generation, ticket.epoch) {
            shared.kinds.insert(table.to_owned(), kind);
        }
    }

    /// Whether the table is the one that was first seen under this name.
    pub fn is_known_as(&self, table: &str, identity: &str) -> bool {
        let mut shared = self.lock();
        shared.identities.entry(table.to_owned()).or_insert_with(|| identity.to_owned()) == identity
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Every change under the lock is one step.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By where they lead.
impl PartialEq for Hosts {
    fn eq(&self, other: &Hosts) -> bool {
        self.endpoints == other.endpoints
    }
}

impl Eq for Hosts {}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.endpoints.iter()).finish()
    }
}

/// `http://a:1,b:1`: as the URL has them.
impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut endpoints = self.endpoints.iter();
        f.write_str(endpoints.next().map_or("", String::as_str))?;
        endpoints.try_for_each(|endpoint| {
            let host = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, host)| host);
            write!(f, ",{host}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(names: &[&str]) -> Hosts {
        let endpoints = names.iter().map(|name| format!("http://{name}:1")).collect();
        Hosts::new(endpoints).expect("there is one")
    }

    #[test]
    fn clients_that_fail_together_move_on_once() {
        let all = hosts(&["a", "b", "c"]);
        let (one, other) = (all.clone(), all.clone());
        let (seen_by_one, seen_by_other) = (one.generation(), other.generation());
        assert_eq!(one.move_on(seen_by_one), Some("http://b:1"));
        assert_eq!(other.move_on(seen_by_other), None);
        assert_eq!(all.current(), "http://b:1");
        assert_eq!(all.move_on(1), Some("http://c:1"));
        assert_eq!(all.move_on(2), Some("http://a:1"));
        assert_eq!(hosts(&["a"]).move_on(0), None);
        assert_eq!(all.to_string(), "http://a:1,b:1,c:1");
    }

    #[test]
    fn what_a_left_host_takes_late_makes_tables_stale_again() {
        let all = hosts(&["a", "b"]);
        all.set_fresh("t", all.ticket(0));
        assert!(all.is_fresh("t", 0) && !all.is_fresh("u", 0));
        all.move_on(0);
        assert!(!all.is_fresh("t", 1));
        all.set_fresh("t", all.ticket(0));
        assert!(!all.is_fresh("t", 1) && !all.is_fresh("t", 0), "that host was left");
        for forget in [Hosts::forget_fresh, |all: &Hosts| all.forget_fresh_of("t")] {
            let before = all.ticket(1);
            forget(&all);
            all.set_fresh("t", before);
            assert!(!all.is_fresh("t", 1), "it was made fresh before the late rows came");
            all.set_fresh("t", all.ticket(1));
            assert!(all.is_fresh("t", 1));
            assert!(!all.is_fresh("t", 0), "a client that is still there is not told otherwise");
        }
    }

    #[test]
    fn engines_are_told_apart() {
        for (engine, kind) in [
            ("ReplicatedReplacingMergeTree", ReplicationKind::Replicated),
            ("ReplicatedMergeTree", ReplicationKind::Replicated),
            ("SharedReplacingMergeTree", ReplicationKind::Shared),
            ("ReplacingMergeTree", ReplicationKind::Plain),
            ("MergeTree", ReplicationKind::Plain),
            ("Distributed", ReplicationKind::Elsewhere),
            ("MaterializedView", ReplicationKind::Elsewhere),
        ] {
            assert_eq!(ReplicationKind::of_engine(engine), kind, "{engine}");
        }
    }

    #[test]
    fn a_table_is_the_one_that_was_seen_first() {
        let all = hosts(&["a", "b"]);
        assert!(all.is_known_as("t", "1") && all.is_known_as("u", "2"));
        all.move_on(0);
        all.forget_fresh();
        assert!(all.is_known_as("t", "1") && !all.clone().is_known_as("t", "2"));
    }
}
