//! The replication stream of one slot: START_REPLICATION, blocks of messages in, status updates
//! out.
//!
//! Does not look into the messages and decides nothing about what may be confirmed. One thread uses
//! it; a `Halt` wakes that thread.

use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use postgres_protocol::escape::escape_identifier;
use postgres_protocol::message::{backend, frontend};

use super::connection::{Connection, lost, protocol, unexpected};
use super::frames::{FRAME_BYTES_MAX, Frames, Front};
use super::link::remaining;
use super::server_error::ServerError;
use crate::error::Result;
use crate::halt::Halt;
use crate::wal::copy_both::StandbyStatusUpdate;
use crate::wal::time::PgTime;

const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// The first version that sends values in their binary form.
const BINARY_SINCE: u32 = 140_000;

/// The result of one read.
#[derive(Debug)]
pub enum ReadOutcome {
    Frames(Frames),
    /// Bytes came, but not a whole message yet: the server is alive.
    Partial,
    /// Nothing arrived within the wait.
    Nothing,
    /// The server ended the stream in order, as it does when it shuts down.
    Ended,
}

pub struct Stream {
    connection: Connection,
    doing: String,
    ended: bool,
}

impl Stream {
    /// Starts at the slot's position. Requests binary values if the server can send them.
    pub fn start(
        mut connection: Connection,
        slot: &str,
        publication: &str,
        binary: bool,
    ) -> Result<Stream> {
        let doing = format!("start replication of slot `{slot}` on `{}`", connection.server());
        let deadline = Instant::now() + connection.receive_timeout();
        let binary = binary && connection.server_version_num().is_some_and(|v| BINARY_SINCE <= v);
        let sql = start_replication(slot, publication, binary);
        connection.send_query(&doing, &sql, deadline)?;
        match connection.receive(&doing, FRAME_BYTES_MAX, deadline)? {
            (COPY_BOTH_RESPONSE_TAG, _) => {}
            (backend::ERROR_RESPONSE_TAG, body) => {
                return Err(ServerError::parse(&body).into_error(doing));
            }
            (tag, _) => return Err(unexpected(&doing, tag)),
        }
        connection.hand_over();
        let doing = format!("stream from slot `{slot}` on `{}`", connection.server());
        Ok(Stream { connection, doing, ended: false })
    }

    /// Waits until something is there, at most `wait`, and returns all whole messages of it as one
    /// block. An error of the server comes after the messages that it sent before.
    pub fn read(&mut self, wait: Duration) -> Result<ReadOutcome> {
        if self.ended {
            return Ok(ReadOutcome::Ended);
        }
        let deadline = Instant::now() + wait;
        let mut left = wait;
        let mut nothing = ReadOutcome::Nothing;
        loop {
            match self.connection.front(&self.doing)? {
                Front::Copy(frames) => return Ok(ReadOutcome::Frames(frames)),
                Front::Other(backend::ERROR_RESPONSE_TAG, body) => {
                    return Err(ServerError::parse(&body).into_error(&self.doing));
                }
                Front::Other(backend::COPY_DONE_TAG | backend::COMMAND_COMPLETE_TAG, _) => {
                    self.ended = true;
                    return Ok(ReadOutcome::Ended);
                }
                Front::Other(tag, _) => return Err(unexpected(&self.doing, tag)),
                Front::Partial => {}
            }
            match self.connection.try_fill(left) {
                Ok(()) => nothing = ReadOutcome::Partial,
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return Ok(nothing),
                Err(error) => return Err(lost(&self.doing, error)),
            }
            // Check for data before the time.
            left = remaining(deadline).unwrap_or(Duration::ZERO);
        }
    }

    /// Ends within the receive timeout, even if the server does not read.
    pub fn send_status(&mut self, status: &StandbyStatusUpdate, now: SystemTime) -> Result<()> {
        let payload = status.encode(PgTime::of(now));
        let mut message = BytesMut::with_capacity(5 + payload.len());
        frontend::CopyData::new(&payload[..])
            .map_err(|e| protocol(&self.doing, e))?
            .write(&mut message);
        let deadline = Instant::now() + self.connection.receive_timeout();
        self.connection.send(&self.doing, &message, deadline)
    }

    /// Ends the stream in order: the server has then processed the last status update. What it
    /// still sends is discarded; the next start streams it again. In the middle of a large
    /// transaction the server does not stop before its end, so mind the deadline.
    pub fn finish(mut self, deadline: Instant) -> Result<()> {
        let mut message = BytesMut::new();
        frontend::copy_done(&mut message);
        if !self.ended {
            self.connection.send(&self.doing, &message, deadline)?;
        }
        loop {
            match self.connection.front(&self.doing)? {
                Front::Copy(_) => {}
                Front::Other(backend::READY_FOR_QUERY_TAG, _) => return Ok(()),
                Front::Other(backend::COPY_DONE_TAG | backend::COMMAND_COMPLETE_TAG, _) => {
                    self.ended = true;
                }
                Front::Other(backend::ERROR_RESPONSE_TAG, body) => {
                    return Err(ServerError::parse(&body).into_error(&self.doing));
                }
                Front::Other(tag, _) => return Err(unexpected(&self.doing, tag)),
                Front::Partial => {
                    let wait = remaining(deadline).map_err(|e| lost(&self.doing, e))?;
                    match self.connection.try_fill(wait) {
                        Ok(()) => {}
                        // A server that shuts down says that it is done, and is gone.
                        Err(_) if self.ended => return Ok(()),
                        Err(error) => return Err(lost(&self.doing, error)),
                    }
                }
            }
        }
    }

    /// Ends later calls before their deadlines.
    pub fn set_halt(&mut self, halt: &Halt) {
        self.connection.set_halt(halt);
    }

    /// The walsender.
    pub fn backend_pid(&self) -> u32 {
        self.connection.backend_pid()
    }
}

/// The grammar of replication commands: a quote is doubled, and a backslash is itself, so that the
/// `E''` that `escape_literal` makes of one would be an error.
fn start_replication(slot: &str, publication: &str, binary: bool) -> String {
    let slot = escape_identifier(slot);
    // A list of identifiers, within a literal.
    let publications = escape_identifier(publication).replace('\'', "''");
    let binary = if binary { ", binary 'true'" } else { "" };
    format!(
        "START_REPLICATION SLOT {slot} LOGICAL 0/0 \
         (proto_version '1', publication_names '{publications}'{binary})"
    )
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("doing", &self.doing).field("ended", &self.ended).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_for_the_replication_grammar() {
        assert_eq!(
            start_replication("s", "a\"b'c\\d", true),
            "START_REPLICATION SLOT \"s\" LOGICAL 0/0 (proto_version '1', \
             publication_names '\"a\"\"b''c\\d\"', binary 'true')"
        );
        assert!(!start_replication("s", "p", false).contains("binary"));
    }
}
