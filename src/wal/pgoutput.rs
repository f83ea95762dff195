//! The messages of the `pgoutput` plugin, protocol version 1.
//!
//! The manual, "Logical Replication Message Formats", is the reference. Messages of later protocol
//! versions (streamed and prepared transactions) are not asked for and are refused as unknown.

use std::borrow::Cow;

use super::lsn::Lsn;
use super::relation::{Oid, Relation, RelationColumn, ReplicaIdentity};
use super::time::PgTime;
use super::tuple::Tuple;
use super::wire::{DecodeError, Wire};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    Begin {
        commit_lsn: Lsn,
        commit_time: PgTime,
        xid: u32,
    },
    Commit {
        commit_lsn: Lsn,
        end_lsn: Lsn,
        commit_time: PgTime,
    },
    Relation(Relation),
    Insert {
        relation: Oid,
        new: Tuple<'a>,
    },
    Update {
        relation: Oid,
        old: Old<'a>,
        new: Tuple<'a>,
    },
    Delete {
        relation: Oid,
        old: Old<'a>,
    },
    Truncate {
        relations: Vec<Oid>,
        cascade: bool,
        restart_identity: bool,
    },
    /// A user-defined type's name, an origin, a logical message: nothing is done with them.
    Ignored,
}

/// The old row in an UPDATE or DELETE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old<'a> {
    None,
    /// The columns of the replica identity; the others are null.
    Key(Tuple<'a>),
    /// Every column (REPLICA IDENTITY FULL).
    Row(Tuple<'a>),
}

impl<'a> Message<'a> {
    pub fn parse(payload: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let mut wire = Wire::new(payload);
        let message = match wire.take_u8("message tag")? {
            b'B' => Message::Begin {
                commit_lsn: Lsn(wire.take_u64("Begin final LSN")?),
                commit_time: PgTime(wire.take_i64("Begin commit time")?),
                xid: wire.take_u32("Begin xid")?,
            },
            b'C' => {
                wire.take_u8("Commit flags")?;
                Message::Commit {
                    commit_lsn: Lsn(wire.take_u64("Commit LSN")?),
                    end_lsn: Lsn(wire.take_u64("Commit end LSN")?),
                    commit_time: PgTime(wire.take_i64("Commit time")?),
                }
            }
            b'R' => Message::Relation(relation(&mut wire)?),
            b'I' => {
                let relation = Oid(wire.take_u32("Insert relation")?);
                expect_tag(&mut wire, b'N', "Insert tuple kind")?;
                Message::Insert { relation, new: Tuple::parse(&mut wire)? }
            }
            b'U' => update(&mut wire)?,
            b'D' => delete(&mut wire)?,
            b'T' => truncate(&mut wire)?,
            // Their content is not used, so it is not looked at.
            b'Y' | b'O' | b'M' => return Ok(Message::Ignored),
            tag => return Err(DecodeError::UnknownTag { context: "message tag", tag }),
        };
        wire.end("message")?;
        Ok(message)
    }
}

/// The keys that a change removes and adds; an UPDATE that leaves its row the key has neither.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keys<'a> {
    pub gone: Option<Cow<'a, [u8]>>,
    pub come: Option<Cow<'a, [u8]>>,
}

/// Of an INSERT, UPDATE or DELETE. It reads no more of the message than it must. `key` reads that
/// of the tuple that is next; of the new row also what it has left out, from the old one.
pub fn keys<'a>(
    payload: &'a [u8],
    key: impl Fn(&Wire<'a>, Option<&Wire<'a>>) -> Result<Option<Cow<'a, [u8]>>, DecodeError>,
) -> Result<Keys<'a>, DecodeError> {
    let mut wire = Wire::new(payload);
    let tag = wire.take_u8("message tag")?;
    wire.take_u32("relation of a change")?;
    let kind = wire.take_u8("tuple kind")?;
    let old = wire;
    match (tag, kind) {
        (b'I', _) => Ok(Keys { gone: None, come: key(&old, None)? }),
        (b'D', _) => Ok(Keys { gone: key(&old, None)?, come: None }),
        (_, b'K' | b'O') => {
            let gone = key(&old, None)?;
            Tuple::parse(&mut wire)?;
            wire.take_u8("tuple kind")?;
            match key(&wire, Some(&old))? {
                Some(come) if gone.as_ref().is_some_and(|gone| *gone != come) => {
                    Ok(Keys { gone, come: Some(come) })
                }
                _ => Ok(Keys::default()),
            }
        }
        _ => Ok(Keys::default()),
    }
}

fn expect_tag(wire: &mut Wire<'_>, expected: u8, context: &'static str) -> Result<(), DecodeError> {
    match wire.take_u8(context)? {
        tag if tag == expected => Ok(()),
        tag => Err(DecodeError::UnknownTag { context, tag }),
    }
}

fn relation(wire: &mut Wire<'_>) -> Result<Relation, DecodeError> {
    let oid = Oid(wire.take_u32("Relation oid")?);
    let mut namespace = wire.take_name("Relation namespace")?;
    if namespace.is_empty() {
        // It means pg_catalog.
        namespace.push_str("pg_catalog");
    }
    let name = wire.take_name("Relation name")?;
    let replica_identity = match wire.take_u8("Relation replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        tag => return Err(DecodeError::UnknownTag { context: "Relation replica identity", tag }),
    };
    let count = wire.take_u16("Relation column count")?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let flags = wire.take_u8("Relation column flags")?;
        columns.push(RelationColumn {
            key: flags & 1 == 1,
            name: wire.take_name("Relation column name")?,
            type_oid: Oid(wire.take_u32("Relation column type")?),
            type_modifier: wire.take_i32("Relation column type modifier")?,
        });
    }
    Ok(Relation { oid, namespace, name, replica_identity, columns })
}

fn update<'a>(wire: &mut Wire<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = Oid(wire.take_u32("Update relation")?);
    let context = "Update tuple kind";
    let old = match wire.take_u8(context)? {
        b'N' => return Ok(Message::Update { relation, old: Old::None, new: Tuple::parse(wire)? }),
        b'K' => Old::Key(Tuple::parse(wire)?),
        b'O' => Old::Row(Tuple::parse(wire)?),
        tag => return Err(DecodeError::UnknownTag { context, tag }),
    };
    expect_tag(wire, b'N', context)?;
    Ok(Message::Update { relation, old, new: Tuple::parse(wire)? })
}

fn delete<'a>(wire: &mut Wire<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = Oid(wire.take_u32("Delete relation")?);
    let context = "Delete tuple kind";
    let old = match wire.take_u8(context)? {
        b'K' => Old::Key(Tuple::parse(wire)?),
        b'O' => Old::Row(Tuple::parse(wire)?),
        tag => return Err(DecodeError::UnknownTag { context, tag }),
    };
    Ok(Message::Delete { relation, old })
}

fn truncate<'a>(wire: &mut Wire<'_>) -> Result<Message<'a>, DecodeError> {
    let count = wire.take_u32("Truncate relation count")?;
    let options = wire.take_u8("Truncate options")?;
    let mut relations = Vec::new();
    for _ in 0..count {
        relations.push(Oid(wire.take_u32("Truncate relation")?));
    }
    Ok(Message::Truncate {
        relations,
        cascade: options & 1 != 0,
        restart_identity: options & 2 != 0,
    })
}
