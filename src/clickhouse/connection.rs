//! The connection to one of the hosts: sends a statement there, reads the answer, and leaves the
//! host, with all other connections, when it is not reached or cannot take part.
//!
//! What the host's tables must have before they are read from or written to is not looked at here,
//! but by [`fresh`](super::fresh), whose own statements come through here too.

use std::time::Instant;

use bytes::Bytes;

use super::answer::{self, Answer, Said};
use super::frame;
use super::hosts::Hosts;
use super::insert_error::InsertError;
use super::insert_settings::{self, JSON_TYPE, JSON_TYPE_OLD, Unknown};
use super::params::ClickHouseParams;
use super::refusal::Refusal;
use super::text::quote_name;
use super::transport::{Failure, Transport, certificate_hint};
use crate::error::{Error, ErrorKind, Result};
use crate::halt::Halt;

/// Raw bytes per compressed frame. ClickHouse writes frames of this size itself.
const FRAME_BYTES: usize = 1 << 20;
/// Of what is not compressed, so that it is still in the cache when it goes to the socket.
const PLAIN_BYTES: usize = 1 << 18;
/// What ClickHouse parses of a statement by default is a little more (`max_query_size`, 256 KiB).
const STATEMENT_BYTES_PLAIN: usize = 250_000;
/// By it a query is known as ours.
pub const QUERY_ID_PREFIX: &str = "walhouse-";

pub struct Connection {
    params: ClickHouseParams,
    transport: Transport,
    /// Which host the transport leads to.
    generation: u64,
    unknown: Unknown,
}

impl Connection {
    /// Nothing is sent yet.
    pub fn open(params: &ClickHouseParams) -> Result<Connection> {
        let generation = params.hosts.generation();
        let transport = Transport::new(params, params.hosts.endpoint(generation))?;
        let unknown = Unknown::default();
        Ok(Connection { params: params.clone(), transport, generation, unknown })
    }

    pub fn set_halt(&mut self, halt: &Halt) {
        self.params.halt = halt.clone();
        self.transport.halt = halt.clone();
    }

    pub fn params(&self) -> &ClickHouseParams {
        &self.params
    }

    pub fn hosts(&self) -> &Hosts {
        &self.params.hosts
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All connections have gone to another host since the last [`Connection::follow`].
    pub fn is_left_behind(&self) -> bool {
        self.hosts().generation() != self.generation
    }

    /// The host that the last statement went to.
    pub fn endpoint(&self) -> &str {
        self.hosts().endpoint(self.generation)
    }

    /// `table` in our database, quoted.
    pub fn qualified(&self, table: &str) -> String {
        format!("{}.{}", quote_name(&self.params.database), quote_name(table))
    }

    /// One statement to the host that the transport leads to, whatever it has.
    pub fn select(
        &mut self,
        sql: &str,
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Vec<u8>> {
        loop {
            let query_id = new_query_id();
            let doing = format!("run {} as query `{query_id}`", verb_of(sql));
            let mut parameters = vec![
                ("query_id", query_id.as_str()),
                ("default_format", "TabSeparated"),
                // The whole answer is ready before its status line is sent.
                ("wait_end_of_query", "1"),
            ];
            // The caller's come last and win.
            for setting in self.unknown.of_statement() {
                parameters.push(setting);
            }
            parameters.extend_from_slice(settings);
            let bytes_max = (2 * sql.len()).to_string();
            if STATEMENT_BYTES_PLAIN < sql.len() {
                parameters.push(("max_query_size", &bytes_max));
            }
            if sql.starts_with("CREATE TABLE") {
                let name = if self.unknown.contains(JSON_TYPE) { JSON_TYPE_OLD } else { JSON_TYPE };
                if !self.unknown.contains(name) {
                    parameters.push((name, "1"));
                }
            }
            let answer = self.transport.ask(sql, &parameters, deadline);
            let answer = self.settle(answer, &query_id, &doing, None);
            match answer.map_err(|none| none.error)? {
                Ok(rows) => return Ok(rows.to_vec()),
                Err(refusal) => {
                    if !self.unknown.note(&refusal, &[]) {
                        return Err(refusal.into_error(doing));
                    }
                }
            }
        }
    }

    /// Goes where all clients have gone.
    pub fn follow(&mut self) -> Result<()> {
        let generation = self.hosts().generation();
        if generation != self.generation {
            let endpoint = self.hosts().endpoint(generation);
            if endpoint != self.endpoint() {
                self.transport = Transport::new(&self.params, endpoint)?;
            }
            self.generation = generation;
        }
        Ok(())
    }

    /// Leaves this host, and all clients with it, if there is another one.
    pub fn leave(&self, cause: &str) {
        if let Some(next) = self.hosts().move_on(self.generation) {
            let host = self.endpoint();
            log::warn!("clickhouse: switching from `{host}` to `{next}`: {cause}");
        }
    }

    /// ClickHouse's own yes or no, or the error that stands for everything else. After anything
    /// but an answer, the connections are thrown away.
    fn settle(
        &mut self,
        answer: std::result::Result<Answer, Failure>,
        query_id: &str,
        doing: &str,
        insert_of: Option<&[&str]>,
    ) -> std::result::Result<std::result::Result<Bytes, Refusal>, NoAnswer> {
        let unreachable = ErrorKind::Unreachable;
        let (kind, why, cause, hint) = match answer {
            Ok(answer) => match answer::read(answer, query_id, QUERY_ID_PREFIX, insert_of) {
                Said::Done(rows) => return Ok(Ok(rows)),
                Said::Refused(refusal) => {
                    if refusal.is_of_host() {
                        self.leave(&refusal.to_string());
                    }
                    return Ok(Err(refusal));
                }
                Said::Foreign(foreign) => {
                    let why = if foreign.is_of_size() { Why::Large } else { Why::Away };
                    (unreachable, why, Cause::from(foreign), Some(foreign.hint()))
                }
            },
            Err(Failure::Halted) => {
                // The server may be well; half of the request is nobody's, though.
                let error = Error::new(ErrorKind::Stopped, doing).because("walhouse gave it up");
                return Err(match Transport::new(&self.params, self.endpoint()) {
                    Ok(transport) => {
                        self.transport = transport;
                        NoAnswer { error, why: Why::Away }
                    }
                    Err(error) => NoAnswer { error, why: Why::Away },
                });
            }
            Err(Failure::Late) => {
                (unreachable, Why::Large, "no answer in time".into(), Some(LATE_HINT))
            }
            Err(Failure::Connect(cause)) => {
                let hint = certificate_hint(&cause);
                (unreachable, Why::Away, cause.into(), hint)
            }
            Err(Failure::Lost(cause)) => (unreachable, Why::Lost, cause.into(), None),
            Err(Failure::Invalid(cause)) => (ErrorKind::Setup, Why::Away, cause.into(), None),
        };
        self.leave(&cause.to_string());
        let doing = format!("{doing} at `{}`", self.endpoint());
        let error = Error::new(kind, doing).because(cause);
        let error = match hint {
            Some(hint) => error.hint(hint),
            None => error,
        };
        // A broken connection may still hold half of a request: none of them is used again.
        match Transport::new(&self.params, self.endpoint()) {
            Ok(transport) => self.transport = transport,
            Err(error) => return Err(NoAnswer { error, why: Why::Away }),
        }
        Err(NoAnswer { error, why })
    }

    /// One INSERT to the host that the transport leads to.
    pub fn insert<P: Iterator<Item = Vec<u8>>>(
        &mut self,
        sql: &str,
        table: &str,
        columns: &[&str],
        settings: &[(&str, &str)],
        pieces: impl Fn(usize) -> P,
        deadline: Instant,
    ) -> std::result::Result<(), InsertError> {
        loop {
            let query_id = new_query_id();
            let doing = format!("insert into `{table}` as query `{query_id}`");
            let ours = insert_settings::of_insert(&self.params, &self.unknown, settings);
            let mut parameters = vec![("query", sql), ("query_id", query_id.as_str())];
            parameters.extend(ours.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            // Without a body there is nothing to decompress.
            let answer = if self.params.compress && !columns.is_empty() {
                parameters.push(("decompress", "1"));
                // A piece with a large value at its end may be many times as long as asked for.
                let frames = pieces(FRAME_BYTES).flat_map(|piece| {
                    let parts = piece.chunks(2 * FRAME_BYTES).map(frame::lz4);
                    parts.map(Bytes::from).collect::<Vec<_>>()
                });
                self.transport.send(&parameters, frames, deadline)
            } else {
                self.transport.send(&parameters, pieces(PLAIN_BYTES).map(Bytes::from), deadline)
            };
            match self.settle(answer, &query_id, &doing, Some(columns)) {
                Ok(Ok(_)) => {
                    if self.is_left_behind() {
                        // Others may have looked at the new host before this was acknowledged.
                        self.hosts().forget_fresh();
                    }
                    return Ok(());
                }
                Ok(Err(refusal)) => {
                    if self.unknown.note(&refusal, settings) {
                        continue;
                    }
                    return Err(InsertError::of_refusal(refusal, doing));
                }
                Err(NoAnswer { error, why }) => {
                    return Err(match why {
                        Why::Away => InsertError::Retry(error),
                        Why::Lost => InsertError::Lost(error),
                        Why::Large => InsertError::Large(error),
                    });
                }
            }
        }
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What became of the statement is not known.
struct NoAnswer {
    error: Error,
    why: Why,
}

enum Why {
    Away,
    Lost,
    Large,
}

const LATE_HINT: &str = "See in system.processes and system.query_log why it takes so long; raise \
                         `request_timeout` in *_REPLICATION_CLICKHOUSE_URL if that is normal.";

/// What the operator can find in `system.query_log`.
fn new_query_id() -> String {
    format!("{QUERY_ID_PREFIX}{:032x}", fastrand::u128(..))
}

/// `SELECT` of `SELECT ...`: enough to know which statement it was, and nothing of its literals.
fn verb_of(sql: &str) -> String {
    let verb = sql.split_ascii_whitespace().next().unwrap_or("a statement");
    format!("`{}`", verb.chars().take(16).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_named_by_their_verb_alone() {
        assert_eq!(verb_of("SELECT 'hunter2'"), "`SELECT`");
        assert_eq!(verb_of(""), "`a statement`");
    }
}
