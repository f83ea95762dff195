//! The tables of a service: what a session streams, and a command reads.

use super::member::Member;

/// In an order that holds as long as the session, or the command. It is recorded nowhere.
pub struct TableSet(Vec<Member>);

impl TableSet {
    pub fn new(members: Vec<Member>) -> TableSet {
        TableSet(members)
    }

    pub fn get(&self, table: usize) -> &Member {
        &self.0[table]
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.0.iter()
    }
}
