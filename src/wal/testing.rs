//! Builds pgoutput messages for tests, byte by byte as the manual lays them out.

use super::relation::{Oid, Relation, RelationColumn, ReplicaIdentity};
use super::value::oid;

/// A value of a tuple under construction.
#[derive(Debug, Clone, Copy)]
pub enum V<'a> {
    Null,
    Unchanged,
    Text(&'a str),
    Binary(&'a [u8]),
}

pub fn tuple(values: &[V<'_>]) -> Vec<u8> {
    let mut bytes = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        let (tag, value) = match value {
            V::Null => (b'n', None),
            V::Unchanged => (b'u', None),
            V::Text(text) => (b't', Some(text.as_bytes())),
            V::Binary(value) => (b'b', Some(*value)),
        };
        bytes.push(tag);
        if let Some(value) = value {
            bytes.extend((value.len() as i32).to_be_bytes());
            bytes.extend(value);
        }
    }
    bytes
}

pub fn insert(relation: Oid, new: &[V<'_>]) -> Vec<u8> {
    [&b"I"[..], &relation.0.to_be_bytes(), b"N", &tuple(new)].concat()
}

/// `old` is the tag (`K` or `O`) and the values.
pub fn update(relation: Oid, old: Option<(u8, &[V<'_>])>, new: &[V<'_>]) -> Vec<u8> {
    let old = old.map(|(tag, values)| [&[tag][..], &tuple(values)].concat()).unwrap_or_default();
    [&b"U"[..], &relation.0.to_be_bytes(), &old, b"N", &tuple(new)].concat()
}

pub fn delete(relation: Oid, tag: u8, old: &[V<'_>]) -> Vec<u8> {
    [&b"D"[..], &relation.0.to_be_bytes(), &[tag], &tuple(old)].concat()
}

pub fn begin(commit_lsn: u64, commit_time: i64, xid: u32) -> Vec<u8> {
    [&b"B"[..], &commit_lsn.to_be_bytes(), &commit_time.to_be_bytes(), &xid.to_be_bytes()].concat()
}

pub fn commit(commit_lsn: u64, end_lsn: u64, commit_time: i64) -> Vec<u8> {
    let lsns = [commit_lsn.to_be_bytes(), end_lsn.to_be_bytes()].concat();
    [&b"C\0"[..], &lsns, &commit_time.to_be_bytes()].concat()
}

pub fn relation(relation: &Relation) -> Vec<u8> {
    let identity = match relation.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    };
    let mut bytes = b"R".to_vec();
    bytes.extend(relation.oid.0.to_be_bytes());
    for name in [&relation.namespace, &relation.name] {
        bytes.extend(name.as_bytes());
        bytes.push(0);
    }
    bytes.push(identity);
    bytes.extend((relation.columns.len() as u16).to_be_bytes());
    for column in &relation.columns {
        bytes.push(u8::from(column.key));
        bytes.extend(column.name.as_bytes());
        bytes.push(0);
        bytes.extend(column.type_oid.0.to_be_bytes());
        bytes.extend(column.type_modifier.to_be_bytes());
    }
    bytes
}

/// A relation with the given columns, the first of which is the key.
pub fn relation_of<N: AsRef<str>>(oid: u32, name: &str, columns: &[(N, Oid)]) -> Relation {
    let column = |(at, (name, type_oid)): (usize, &(N, Oid))| RelationColumn {
        name: name.as_ref().to_owned(),
        type_oid: *type_oid,
        type_modifier: -1,
        key: at == 0,
    };
    Relation {
        oid: Oid(oid),
        namespace: "public".to_owned(),
        name: name.to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: columns.iter().enumerate().map(column).collect(),
    }
}

pub const TEXT: Oid = oid::TEXT;
