//! What clients do to a simulated server: transactions side by side. A row that another has touched
//! is left alone; but a row may come under a key that another has, and then waits for it, with its
//! record in the WAL already, as a unique index makes it.

use super::postgres::{Change, Commits, KEYS, Key, Row, Server, What};
use walhouse::machines::prng::Prng;

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
        self.wake(prng);
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
                    self.wake(prng);
                }
            }
        }
    }

    fn any_open(&self, prng: &mut Prng) -> Option<u32> {
        let free = || self.open.keys().filter(|xid| !self.waiting.contains_key(xid));
        free().nth(prng.below(free().count() as u64) as usize).copied()
    }

    /// Another transaction that has touched the key and is not seen to have ended.
    fn holder(&self, xid: u32, key: Key) -> Option<u32> {
        let touches = |change: Change| change.effects().any(|(touched, _)| touched == key);
        let mut open = self.open.iter().filter(|(other, _)| **other != xid);
        // Who waits for the key does not have it.
        let has = |other: &u32, changes: &[Change]| {
            self.waiting.get(other) != Some(&key) && changes.iter().any(|change| touches(*change))
        };
        let open = open.find(|(other, changes)| has(other, changes)).map(|(other, _)| *other);
        let mut unseen = self.unseen.iter().copied();
        open.or_else(|| unseen.find(|xid| self.changes_of(*xid).any(|(_, c)| touches(c))))
    }

    fn is_locked(&self, xid: u32, key: Key) -> bool {
        self.holder(xid, key).is_some()
    }

    pub fn waits_for(&self, xid: u32) -> Option<u32> {
        self.holder(xid, *self.waiting.get(&xid)?)
    }

    /// Those go on whose key nobody has any more. It may be taken.
    pub fn wake(&mut self, prng: &mut Prng) {
        let free = |server: &Server| {
            server.waiting.keys().copied().find(|xid| server.waits_for(*xid).is_none())
        };
        while let Some(xid) = free(self) {
            let key = self.waiting.remove(&xid).expect("it waits");
            if self.table.contains_key(&key) {
                self.open.remove(&xid);
                self.write(prng, xid, What::Abort);
            }
        }
    }

    /// Two that wait for each other: the server would end one of them.
    fn would_wait_in_a_circle(&self, xid: u32, holder: u32) -> bool {
        let mut next = Some(holder);
        while let Some(at) = next {
            if at == xid {
                return true;
            }
            next = self.waits_for(at);
        }
        false
    }

    /// A row comes under a key that another has.
    fn wait_for_key(&mut self, prng: &mut Prng, xid: u32, key: Key, row: Row) {
        let from = prng.below(KEYS.into()) as Key;
        let moves = from != key && !self.is_locked(xid, from) && prng.below(3) == 0;
        let change = match self.seen_by(xid, from).filter(|_| moves) {
            Some(before) => {
                let row = Row { toast: before.toast, ..row };
                Change::Update { from, key, row, same_toast: true }
            }
            None => Change::Insert { key, row },
        };
        self.write(prng, xid, What::Change(change));
        self.open.get_mut(&xid).expect("it is open").push(change);
        self.waiting.insert(xid, key);
    }

    fn seen_by(&self, xid: u32, key: Key) -> Option<Row> {
        let own = self.open[&xid].iter().flat_map(|change| change.effects());
        let last = own.filter(|(touched, _)| *touched == key).last();
        last.map_or_else(|| self.table.get(&key).copied(), |(_, row)| row)
    }

    fn change(&mut self, prng: &mut Prng, xid: u32, next_value: &mut u32) {
        let key = prng.below(KEYS.into()) as Key;
        let mut value = || {
            *next_value += 1;
            *next_value
        };
        let (plain, toast) = (value(), value());
        if let Some(holder) = self.holder(xid, key) {
            if prng.below(2) == 0 && !self.would_wait_in_a_circle(xid, holder) {
                self.wait_for_key(prng, xid, key, Row { plain, toast });
            }
            return;
        }
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
