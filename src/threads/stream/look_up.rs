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
use crate::rows::Target;
use crate::rows::key::Key;
use crate::services::assemble::{Answers, Missing, takes_deletes};
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
        let source = member.source();
        let mut entries = HashMap::<Key, Vec<usize>>::with_capacity(wanted.lookups.len());
        for &entry in &wanted.lookups {
            let id = member.stored_id(0, &folded.key_texts(source, entry))?;
            entries.entry(id).or_default().push(entry);
        }
        let ids: Vec<Key> = entries.keys().cloned().collect();
        let keys = search(delivery, client, &mut self.keys, &target.table, &ids, Cut::Anywhere, {
            |client, ids, partitions, deadline, keys| {
                find_sort_keys(client, target, ids, partitions, deadline, keys)
            }
        })?;
        delivery.metrics.deletes_looked_up.inc_by(wanted.lookups.len() as u64);
        found.keys = by_entry(target, keys, &entries);
        // A row may be missing in the first table and exist in another one: it was refused there,
        // or a session died between two parts of a batch. Its tombstone must not be forgotten.
        entries.retain(|_, of_id| {
            of_id.retain(|entry| !found.keys.contains_key(entry));
            !of_id.is_empty()
        });
        let ids: Vec<Key> = entries.keys().cloned().collect();
        let targets = member.targets().iter().zip(&member.shapes).enumerate().skip(1);
        for (index, (target, _)) in targets.filter(|(_, (t, shape))| takes_deletes(t, shape)) {
            // A key whose partition has changed is alive or not by all of them together.
            let sizes = &mut self.orphans;
            let live = search(delivery, client, sizes, &target.table, &ids, Cut::Ids, {
                |client, ids, _, deadline, live| find_live(client, target, ids, deadline, live)
            })?;
            for live in live {
                for &entry in entries.get(&target.id_of(&live.key)).into_iter().flatten() {
                    found.orphans.entry(entry).or_default().push((index, live.clone()));
                }
            }
        }
        Ok(())
    }
}

/// Hands each key to the entries that asked for it: several may be of one id.
fn by_entry(
    target: &Target,
    keys: Vec<Key>,
    entries: &HashMap<Key, Vec<usize>>,
) -> HashMap<usize, Vec<Key>> {
    let mut found = HashMap::<usize, Vec<Key>>::with_capacity(keys.len());
    for key in keys {
        for entry in entries.get(&target.id_of(&key)).into_iter().flatten() {
            // Most rows have one: no room for others is taken.
            let list: &mut Vec<Key> = found.entry(*entry).or_default();
            list.reserve_exact(1);
            list.push(key.clone());
        }
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
fn search<T, F>(
    delivery: &DeliveryContext<'_>,
    client: &mut Client,
    sizes: &mut Sizes,
    table: &str,
    ids: &[Key],
    cut: Cut,
    mut ask: F,
) -> Result<Vec<T>>
where
    F: FnMut(&mut Client, &[Key], &[String], &dyn Fn() -> Instant, &mut Vec<T>) -> Result<()>,
{
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
