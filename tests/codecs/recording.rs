//! A stream as it came over the wire, and what stands in it.

use std::fs;
use std::path::PathBuf;

use walhouse::postgres::Frames;
use walhouse::wal::copy_both::FromServer;
use walhouse::wal::pgoutput::Message;
use walhouse::wal::{Lsn, PgTime};

/// A block of CopyData frames with its name: `pg15-full-binary`.
#[derive(Debug, Clone)]
pub struct Recording {
    pub name: String,
    pub frames: Frames,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    Default,
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Binary,
    Text,
}

/// What travels in one XLogData.
#[derive(Debug, Clone)]
pub struct Sent<'a> {
    pub wal_start: Lsn,
    pub message: Message<'a>,
}

/// From Begin to Commit.
#[derive(Debug)]
pub struct Transaction<'a> {
    pub xid: u32,
    pub begin: Lsn,
    pub commit_lsn: Lsn,
    pub end_lsn: Lsn,
    pub commit_time: PgTime,
    pub messages: Vec<Sent<'a>>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/pgoutput")
}

impl Recording {
    pub fn name_of(version: u32, identity: Identity, format: Format) -> String {
        format!("pg{version}-{identity:?}-{format:?}").to_lowercase()
    }

    pub fn load(name: &str) -> Recording {
        let path = folder().join(format!("{name}.bin"));
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        Recording { name: name.to_owned(), frames: Frames::from_bytes(bytes) }
    }

    /// In the order of their names.
    pub fn all() -> Vec<Recording> {
        let names = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<String> = names
            .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        assert!(4 <= names.len(), "recordings are in {}: {names:?}", folder().display());
        names.iter().map(|name| Recording::load(name)).collect()
    }

    pub fn save(&self) {
        let path = folder().join(format!("{}.bin", self.name));
        fs::write(&path, self.frames.bytes()).unwrap_or_else(|e| {
            panic!("write {}: {e}", path.display());
        });
    }

    pub fn version(&self) -> u32 {
        let digits = self.name.strip_prefix("pg").and_then(|rest| rest.split('-').next());
        digits.and_then(|digits| digits.parse().ok()).expect("the name begins with a version")
    }

    pub fn identity(&self) -> Identity {
        if self.name.contains("-full-") { Identity::Full } else { Identity::Default }
    }

    pub fn format(&self) -> Format {
        if self.name.ends_with("-binary") { Format::Binary } else { Format::Text }
    }

    /// The payloads of all CopyData frames.
    pub fn copy_data(&self) -> Vec<&[u8]> {
        let messages: Vec<&[u8]> = self.frames.messages().collect();
        let bytes: usize = messages.iter().map(|message| message.len() + 5).sum();
        assert_eq!(bytes, self.frames.bytes_len(), "{}: every frame is whole", self.name);
        messages
    }

    /// The `(wal_start, payload)` of all XLogData.
    pub fn payloads(&self) -> Vec<(Lsn, &[u8])> {
        let parsed = self.copy_data().into_iter().map(|data| FromServer::parse(data).unwrap());
        parsed
            .filter_map(|from_server| match from_server {
                FromServer::XLogData { wal_start, payload, .. } => Some((wal_start, payload)),
                FromServer::PrimaryKeepalive { .. } => None,
            })
            .collect()
    }

    /// Every message stands in a transaction, which has its own end.
    pub fn transactions(&self) -> Vec<Transaction<'_>> {
        let mut done: Vec<Transaction<'_>> = Vec::new();
        let mut open: Option<Transaction<'_>> = None;
        for (wal_start, payload) in self.payloads() {
            let message = Message::parse(payload).unwrap();
            match (message, &mut open) {
                (Message::Begin { commit_lsn, commit_time, xid }, None) => {
                    let (begin, end_lsn, messages) = (wal_start, Lsn(0), Vec::new());
                    open = Some(Transaction {
                        xid,
                        begin,
                        commit_lsn,
                        end_lsn,
                        commit_time,
                        messages,
                    });
                }
                (Message::Commit { commit_lsn, end_lsn, commit_time }, Some(_)) => {
                    let mut ended = open.take().expect("it is open");
                    assert_eq!(ended.commit_lsn, commit_lsn, "{}", self.name);
                    assert_eq!(ended.commit_time, commit_time, "{}", self.name);
                    assert_eq!(wal_start, end_lsn, "{}", self.name);
                    ended.end_lsn = end_lsn;
                    done.push(ended);
                }
                (message @ (Message::Begin { .. } | Message::Commit { .. }), _) => {
                    panic!("{}: out of turn: {message:?}", self.name);
                }
                (message, Some(open)) => open.messages.push(Sent { wal_start, message }),
                (message, None) => panic!("{}: outside: {message:?}", self.name),
            }
        }
        assert!(open.is_none(), "{}: the last transaction has its end", self.name);
        done
    }
}
