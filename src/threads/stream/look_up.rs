//! Finds the rows in ClickHouse that a batch deletes by their key alone.
//!
//! One scan of the table serves the whole batch. If that takes too long, or is refused, it is split
//! by [`portions`](crate::machines::portions): each statement has its own deadline, and its result
//! is kept while the next is retried.

use std::cell::Cell;
use std::time::Instant;

use hashbrown::HashMap;

use crate::clickhouse::Client;
use crate::clickhouse::lookup::{find_live, find_sort_keys};
use crate::clickhouse::partitions::{partitions, too_much};
use crate::delivery::context::DeliveryContext;
use crate::delivery::member::Member;
use crate::error::Result;
use crate::machines::portions::{Next, PortionSearch, Sizes};
use crate::rows::key::LiveKey;
use crate::services::assemble::{Answers, Missing, takes_deletes};
use crate::services::bare_key::BareKey;
use crate::services::fold::Folded;

/// More than a statement holds, so that its length is what counts.
const IDS_MAX: usize = 1 << 20;
/// What a flusher knows, across batches, about how large a query a table can answer.
pub struct LookUps {
    keys: Sizes,
    orphans: Sizes,
}

impl Default for LookUps {
    fn default() -> LookUps {
        LookUps { keys: Sizes::new(IDS_MAX), orphans: Sizes::new(IDS_MAX) }
    }
}

impl LookUps {
    /// Fills in `keys` and `strays` of `found`.
    #[allow(clippy::too_many_arguments)]
    pub fn find(
        &mut self,
        delivery: &DeliveryContext<'_>,
        client: &mut Client,
        member: &Member,
        folded: &Folded<'_>,
        wanted: &Missing,
        found: &mut Answers,
    ) -> Result<()> {
        let target = &member.targets()[0];
        let id_of = |entry: &usize| folded.entries[*entry].id;
        let ids: Vec<&[u8]> = wanted.lookups.iter().map(id_of).collect();
        let of_target = (&target.table, target.id_name());
        let keys = search(delivery, client, &mut self.keys, &target.table, &ids, Cut::Anywhere, {
            |client, ids, partitions, deadline, keys| {
                find_sort_keys(client, of_target.0, of_target.1, ids, partitions, deadline, keys)
            }
        })?;
        delivery.metrics.deletes_looked_up.inc_by(ids.len() as u64);
        found.keys = by_entry(keys, &wanted.lookups, folded);
        // A row may be missing in the first table and exist in another one: it was refused there,
        // or a session died between two parts of a batch. Its tombstone must not be forgotten.
        let missing = wanted.lookups.iter().filter(|entry| !found.keys.contains_key(*entry));
        let missing: Vec<usize> = missing.copied().collect();
        let ids: Vec<&[u8]> = missing.iter().map(id_of).collect();
        let targets = member.targets().iter().zip(&member.shapes).enumerate().skip(1);
        for (index, (target, _)) in targets.filter(|(_, (t, shape))| takes_deletes(t, shape)) {
            // A key whose partition has changed is alive or not by all of them together.
            let sizes = &mut self.orphans;
            let live = search(delivery, client, sizes, &target.table, &ids, Cut::Ids, {
                |client, ids, _, deadline, live| find_live(client, target, ids, deadline, live)
            })?;
            let by_id: HashMap<&[u8], &LiveKey> =
                live.iter().map(|live| (live.id(target), live)).collect();
            for &entry in &missing {
                if let Some(live) = by_id.get(id_of(&entry)) {
                    found.orphans.entry(entry).or_default().push((index, (*live).clone()));
                }
            }
        }
        Ok(())
    }
}

/// Hands each key to the entry that asked for it; one id may stand behind several.
fn by_entry(
    keys: Vec<BareKey>,
    lookups: &[usize],
    folded: &Folded<'_>,
) -> HashMap<usize, Vec<BareKey>> {
    let mut entries = HashMap::<&[u8], (usize, Vec<usize>)>::with_capacity(lookups.len());
    for &entry in lookups {
        let id = folded.entries[entry].id;
        entries
            .entry(id)
            .and_modify(|(_, others)| others.push(entry))
            .or_insert_with(|| (entry, Vec::new()));
    }
    let mut found = HashMap::<usize, Vec<BareKey>>::with_capacity(keys.len());
    let mut add = |entry, key| {
        // Most rows have one: no room for others is taken.
        let list: &mut Vec<BareKey> = found.entry(entry).or_default();
        list.reserve_exact(1);
        list.push(key);
    };
    for key in keys {
        let Some((entry, others)) = entries.get(key.id()) else { continue };
        others.iter().for_each(|entry| add(*entry, key.clone()));
        add(*entry, key);
    }
    found
}

/// Into what a question may be cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Into fewer ids.
    Ids,
    /// Also split into partitions: each has its own answer.
    Anywhere,
}

/// Queries all of the ids, in as many statements as needed.
fn search<T>(
    delivery: &DeliveryContext<'_>,
    client: &mut Client,
    sizes: &mut Sizes,
    table: &str,
    ids: &[&[u8]],
    cut: Cut,
    mut ask: impl FnMut(
        &mut Client,
        &[&[u8]],
        &[String],
        &dyn Fn() -> Instant,
        &mut Vec<T>,
    ) -> Result<()>,
) -> Result<Vec<T>> {
    let timeout = delivery.clickhouse.request_timeout;
    let mut search = PortionSearch::new(sizes, ids.len(), cut == Cut::Anywhere);
    let (mut names, mut found) = (Vec::new(), Vec::new());
    loop {
        match search.step() {
            Next::Done => return Ok(found),
            Next::ListPartitions => {
                let listed = delivery
                    .retry(|| partitions(client, table, Instant::now() + timeout), |_| false)?;
                search.on_partitions(listed.iter().map(|partition| partition.rows).collect());
                names = listed.into_iter().map(|partition| partition.id).collect();
            }
            Next::Ask(_) => delivery.retry(
                || {
                    let Next::Ask(portion) = search.step() else { return Ok(()) };
                    let (before, patience) =
                        (found.len(), timeout.saturating_mul(search.patience()));
                    let asked_at = Cell::new(Instant::now());
                    let deadline = || {
                        asked_at.set(Instant::now());
                        asked_at.get() + patience
                    };
                    let ids = &ids[portion.ids];
                    let among = portion.partitions.map_or(&[][..], |range| &names[range]);
                    let outcome = ask(client, ids, among, &deadline, &mut found);
                    match &outcome {
                        Ok(()) => search.on_answer(),
                        Err(error) => {
                            found.truncate(before);
                            let is_late = asked_at.get() + patience <= Instant::now();
                            if let Some(why) = too_much(client, error, ids.len(), is_late) {
                                search.on_too_much(why);
                            }
                        }
                    }
                    outcome
                },
                |_| false,
            )?,
        }
    }
}
