//! Judges the answers of several servers. No I/O, no clock.
//!
//! The rules, in their order:
//!
//! - A standby is skipped, whatever `target_session_attrs` says: our slots live on primaries.
//! - A primary whose timeline is older than the one that ClickHouse's rows came from was left
//!   behind by a failover. It is skipped while another server may be meant, and the search goes on
//!   with the next attempt; if there is only one server, the lineage judges it.
//! - One of another cluster is used only if none of the known cluster answers, so that the lineage
//!   can report it.
//! - Of several, the highest timeline: each promotion begins a higher one, so it is the latest
//!   known. One server alone cannot show that. So once a primary is found, the others have
//!   [`OTHERS_MAX`] to object; usually all have answered by then, and there is nothing to wait for.
//! - A server that refused is asked again while others are silent: when the old primary hangs, the
//!   standby that is promoted meanwhile is found at once. When all have refused the search is over.
//! - Of several on one timeline, the first of the list: nothing distinguishes them.

use std::time::{Duration, Instant};

use super::KnownServer;
use crate::error::ErrorKind;
use crate::postgres::params::Host;
use crate::postgres::sql::{STANDBY_HINT, SqlError};

/// Some round trips over a long way. A server that takes longer to identify itself may still be the
/// right one: then the lineage, or the next attempt, finds the other left behind.
pub(super) const OTHERS_MAX: Duration = Duration::from_millis(500);

const LEFT_BEHIND_HINT: &str = "Stop the old primary or make it a standby, and name the new one \
                                in the database URL. If it was restored on purpose, name it \
                                alone, by its address.";

/// Where a server stands in the list of hosts, and of the addresses of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostPlace {
    pub host: usize,
    pub address: usize,
}

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SeenServer {
    pub in_recovery: bool,
    pub identity: KnownServer,
}

pub(super) struct HostSearch {
    known: Option<KnownServer>,
    /// Another server may be met the next time.
    may_change: bool,
    deadline: Instant,
    /// When the first was found that will do unless somebody objects.
    found_at: Option<Instant>,
    /// Names to be resolved, and servers to be heard.
    pending: usize,
    /// By host: how many of its servers are still to be heard; `None` before its name is resolved.
    silent: Vec<Option<usize>>,
    heard: Vec<HostPlace>,
    usable: Vec<(HostPlace, String, KnownServer)>,
    refused: Vec<(HostPlace, String, SqlError)>,
    over: bool,
}

impl HostSearch {
    pub fn new(
        known: Option<KnownServer>,
        hosts: usize,
        may_change: bool,
        deadline: Instant,
    ) -> HostSearch {
        HostSearch {
            known,
            may_change,
            deadline,
            found_at: None,
            pending: hosts,
            silent: vec![None; hosts],
            heard: Vec::new(),
            usable: Vec::new(),
            refused: Vec::new(),
            over: false,
        }
    }

    /// Until when to wait for more answers; `None` when the search is over.
    pub fn deadline(&self) -> Option<Instant> {
        if self.over || self.pending == 0 {
            return None;
        }
        let objections_until = self.found_at.map(|at| at + OTHERS_MAX);
        Some(objections_until.map_or(self.deadline, |until| until.min(self.deadline)))
    }

    /// The name of a host means so many servers.
    pub fn on_resolved(&mut self, host: usize, name: String, addresses: Result<usize, String>) {
        self.pending -= 1;
        match addresses {
            Ok(count) => {
                self.pending += count;
                self.silent[host] = Some(count);
                self.may_change |= 1 < count;
            }
            Err(cause) => {
                self.silent[host] = Some(0);
                let error = SqlError::new(ErrorKind::Unreachable, cause);
                self.refused.push((HostPlace { host, address: 0 }, name, error));
            }
        }
    }

    pub fn on_refused(&mut self, place: HostPlace, name: String, error: SqlError) {
        self.heard(place);
        self.refused.push((place, name, error));
    }

    pub fn on_seen(&mut self, now: Instant, place: HostPlace, name: String, seen: SeenServer) {
        self.heard(place);
        let SeenServer { in_recovery, identity } = seen;
        if in_recovery {
            let error = SqlError::new(ErrorKind::Unreachable, "server is a standby");
            self.refused.push((place, name, error.with_hint(STANDBY_HINT)));
            return;
        }
        let is_of_ours =
            self.known.is_none_or(|k| k.system_identifier == identity.system_identifier);
        if let Some(known) = self.known
            && is_of_ours
            && identity.timeline < known.timeline
            && self.may_change
        {
            let cause = format!(
                "it is a primary on timeline {}, which a failover to timeline {} has left behind",
                identity.timeline, known.timeline
            );
            let error = SqlError::new(ErrorKind::Unreachable, cause);
            self.refused.push((place, name, error.with_hint(LEFT_BEHIND_HINT)));
            return;
        }
        self.usable.push((place, name, identity));
        if is_of_ours {
            self.found_at.get_or_insert(now);
        }
    }

    /// Whether the time is up.
    pub fn on_time(&mut self, now: Instant) {
        self.over |= self.deadline().is_some_and(|until| until <= now);
    }

    /// Nobody is left who could say anything.
    pub fn on_end(&mut self) {
        self.over = true;
    }

    /// The best of those that will do.
    pub fn chosen(&self) -> Option<(HostPlace, KnownServer)> {
        let rank = |(place, _, identity): &&(HostPlace, String, KnownServer)| {
            let is_foreign =
                self.known.is_some_and(|k| k.system_identifier != identity.system_identifier);
            (is_foreign, std::cmp::Reverse(identity.timeline), *place)
        };
        self.usable.iter().min_by_key(rank).map(|(place, _, identity)| (*place, *identity))
    }

    /// What to tell of the other primaries, if there are any.
    pub fn others(&self) -> Option<String> {
        let (chosen, _) = self.chosen()?;
        // The same server may be met under several names and addresses.
        let (_, name, best) = self.usable.iter().find(|(place, ..)| *place == chosen)?;
        let others: Vec<String> = (self.usable.iter())
            .filter(|(_, _, identity)| identity != best)
            .map(|(_, name, identity)| {
                let KnownServer { system_identifier, timeline } = identity;
                match *system_identifier == best.system_identifier {
                    true => format!("`{name}` on timeline {timeline}"),
                    false => format!("`{name}` of cluster {system_identifier}"),
                }
            })
            .collect();
        match others.is_empty() {
            true => None,
            false => Some(format!(
                "more than one server claims to be the primary: using `{name}` on timeline {}, and \
                 not {}",
                best.timeline,
                others.join(", ")
            )),
        }
    }

    /// Why nobody will do, in the order of the list, the silent ones included.
    pub fn into_refused(self, hosts: &[Host], waited: Duration) -> Vec<(String, SqlError)> {
        let mut refused = self.refused;
        for (at, (host, silent)) in hosts.iter().zip(&self.silent).enumerate() {
            let cause = match silent {
                Some(0) => continue,
                Some(_) => format!("no answer within {:.1}s", waited.as_secs_f64()),
                None => "no answer from the name resolver in time".to_owned(),
            };
            let place = HostPlace { host: at, address: usize::MAX };
            let error = SqlError::new(ErrorKind::Unreachable, cause);
            refused.push((place, host.to_string(), error));
        }
        refused.sort_by_key(|(place, ..)| *place);
        refused.into_iter().map(|(_, name, error)| (name, error)).collect()
    }

    /// A server may be heard more than once; the last word counts.
    fn heard(&mut self, place: HostPlace) {
        self.refused.retain(|(of, ..)| *of != place);
        if self.heard.contains(&place) {
            return;
        }
        self.heard.push(place);
        self.pending -= 1;
        if let Some(Some(silent)) = self.silent.get_mut(place.host) {
            *silent = silent.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
