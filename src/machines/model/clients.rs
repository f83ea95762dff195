//! What clients do to a simulated server: transactions side by side. None waits for another: a key
//! that another has touched is left alone.

use super::postgres::{Change, Commits, KEYS, Key, Row, Server, What};
use crate::machines::prng::Prng;

impl Server {
    /// One thing that clients do.
    pub fn act(&mut self, prng: &mut Prng, next_value: &mut u32) {
        match prng.below(8) {
            0 if self.open.len() < 3 => {
                self.open.insert(self.next_xid, Vec::new());
                self.next_xid += 1;
            }
            0..=4 => match self.any_open(prng) {
                Some(xid) => self.change(prng, xid, next_value),
                None => {
                    self.open.insert(self.next_xid, Vec::new());
                    self.next_xid += 1;
                }
            },
            5 | 6 => {
                if let Some(xid) = self.any_open(prng) {
                    self.end(prng, xid);
                }
            }
            _ => self.write(prng, 0, What::Other),
        }
        match self.commits {
            Commits::AtOnce => self.flush(),
            Commits::FlushedLater if prng.below(15) == 0 => self.flush(),
            Commits::FlushedLater => {}
            Commits::SeenLater => {
                self.flush();
                if prng.below(6) == 0 && !self.unseen.is_empty() {
                    let at = prng.below(self.unseen.len() as u64) as usize;
                    let xid = self.unseen.remove(at);
                    self.show(xid);
                }
            }
        }
    }

    fn any_open(&self, prng: &mut Prng) -> Option<u32> {
        self.open.keys().nth(prng.below(self.open.len() as u64) as usize).copied()
    }

    /// Another transaction has touched the key and is not seen to have ended.
    fn is_locked(&self, xid: u32, key: Key) -> bool {
        let touches = |change: Change| change.effects().any(|(touched, _)| touched == key);
        let open = self.open.iter().filter(|(other, _)| **other != xid);
        open.flat_map(|(_, changes)| changes).any(|change| touches(*change))
            || self.unseen.iter().any(|xid| self.changes_of(*xid).any(|(_, c)| touches(c)))
    }

    fn seen_by(&self, xid: u32, key: Key) -> Option<Row> {
        let own = self.open[&xid].iter().flat_map(|change| change.effects());
        let last = own.filter(|(touched, _)| *touched == key).last();
        last.map_or_else(|| self.table.get(&key).copied(), |(_, row)| row)
    }

    fn change(&mut self, prng: &mut Prng, xid: u32, next_value: &mut u32) {
        let key = prng.below(KEYS.into()) as Key;
        if self.is_locked(xid, key) {
            return;
        }
        let mut value = || {
            *next_value += 1;
            *next_value
        };
        let (plain, toast) = (value(), value());
        let change = match self.seen_by(xid, key) {
            None => Change::Insert { key, row: Row { plain, toast } },
            Some(before) => {
                let same_toast = prng.below(2) == 0;
                let row = Row { plain, toast: if same_toast { before.toast } else { toast } };
                let to = prng.below(KEYS.into()) as Key;
                match prng.below(5) {
                    0 | 1 => Change::Delete { key },
                    2 if !self.is_locked(xid, to) && self.seen_by(xid, to).is_none() => {
                        Change::Update { from: key, key: to, row, same_toast }
                    }
                    _ => Change::Update { from: key, key, row, same_toast },
                }
            }
        };
        self.write(prng, xid, What::Change(change));
        self.open.get_mut(&xid).expect("it is open").push(change);
    }
}
