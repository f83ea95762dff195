//! One connection to Postgres, able to replicate: simple queries and the commands of a walsender.
//!
//! Ordinary SQL with parameters is not done here. Every call has a deadline; a call that was cut
//! short leaves the connection unusable, and it says so.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_protocol::message::{backend, frontend};
use rustls::pki_types::CertificateDer;

use super::frames::{FRAME_BYTES_MAX, Front, Inbox};
use super::link::{Link, remaining};
use super::server_error::{ServerError, server_error};
use super::tls;
use crate::error::{Error, ErrorKind, Result};
use crate::halt::Halt;
use crate::wal::lsn::Lsn;
use crate::wal::wire::{DecodeError, Wire};

/// A farewell is a courtesy and may not hold anybody up.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

pub(super) const POOLER_HINT: &str = "Connect to Postgres itself: this looks like a pooler \
                                      (PgBouncer, Supavisor, RDS Proxy) that does not support \
                                      replication.";

#[derive(Debug, Clone)]
pub struct StartupOptions {
    pub application_name: String,
    /// Logical replication in the database of the URL; ordinary SQL works as well.
    pub replication: bool,
    /// Settings of the session, such as `("TimeZone", "UTC")`. They win over `options` of the URL.
    pub options: Vec<(String, String)>,
    /// Bytes that the peer's kernel has not acknowledged for this long end the connection, so calls
    /// without a deadline end within it.
    pub receive_timeout: Duration,
}

/// The rows of one statement, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueryRows {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Option<String>>>,
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    pub system_id: String,
    pub timeline: u32,
    /// How far WAL is flushed (on a standby: replayed).
    pub xlogpos: Lsn,
    pub dbname: Option<String>,
}

/// One line of a timeline's history: `timeline` went up to `switch`, where the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineSwitch {
    pub timeline: u32,
    pub switch: Lsn,
}

pub struct Connection {
    link: Link,
    inbox: Inbox,
    /// `host:port`, for the text of errors.
    server: String,
    parameters: BTreeMap<String, String>,
    backend_pid: u32,
    receive_timeout: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Server and we agree on whose turn it is.
    Ready,
    /// A call is being made, or was cut short.
    Busy,
    /// Copy-both, or the end: the one thing left to say is good-bye.
    Handed,
}

impl Connection {
    /// Runs SQL or a replication command. After an error of the server it is as usable as before.
    pub fn simple_query(&mut self, sql: &str, deadline: Instant) -> Result<Vec<QueryRows>> {
        let doing = format!("run a query on `{}`", self.server);
        self.query(doing, sql, deadline)
    }

    pub(super) fn query(
        &mut self,
        doing: String,
        sql: &str,
        deadline: Instant,
    ) -> Result<Vec<QueryRows>> {
        self.send_query(&doing, sql, deadline)?;
        let mut results = Vec::new();
        let mut current = QueryRows::default();
        let mut refusal = None;
        loop {
            let (tag, body) = self.receive(&doing, FRAME_BYTES_MAX, deadline)?;
            match tag {
                backend::ROW_DESCRIPTION_TAG => {
                    let columns = column_names(&body).map_err(|e| protocol(&doing, e))?;
                    current = QueryRows { columns, rows: Vec::new() };
                }
                backend::DATA_ROW_TAG => {
                    current.rows.push(row(&body).map_err(|e| protocol(&doing, e))?);
                }
                backend::COMMAND_COMPLETE_TAG | backend::EMPTY_QUERY_RESPONSE_TAG => {
                    results.push(std::mem::take(&mut current));
                }
                // The first error is the cause; the server skips what comes after it.
                backend::ERROR_RESPONSE_TAG if refusal.is_none() => {
                    refusal = Some(ServerError::parse(&body));
                }
                backend::ERROR_RESPONSE_TAG => {}
                backend::READY_FOR_QUERY_TAG => break,
                tag => return Err(unexpected(&doing, tag)),
            }
            // A FATAL error is the last word: no ReadyForQuery comes.
            if refusal.as_ref().is_some_and(|e| matches!(&*e.severity, "FATAL" | "PANIC")) {
                break;
            }
        }
        match refusal {
            Some(error) => {
                if !matches!(&*error.severity, "FATAL" | "PANIC") {
                    self.state = State::Ready;
                }
                Err(error.into_error(doing))
            }
            None => {
                self.state = State::Ready;
                Ok(results)
            }
        }
    }

    pub fn identify_system(&mut self, deadline: Instant) -> Result<SystemIdentity> {
        let doing = format!("identify the system of `{}`", self.server);
        let results = self.query(doing.clone(), "IDENTIFY_SYSTEM", deadline).map_err(|error| {
            // The command is not plain SQL: something in between dropped the `replication`
            // parameter.
            match server_error(&error) {
                Some(cause) if cause.sqlstate == "42601" => error.hint(POOLER_HINT),
                _ => error,
            }
        })?;
        let row = results.first();
        let text = |column| row.and_then(|rows| rows.value(0, column));
        let identity = || {
            Some(SystemIdentity {
                system_id: text("systemid")?.to_owned(),
                timeline: text("timeline")?.parse().ok()?,
                xlogpos: text("xlogpos")?.parse().ok()?,
                dbname: text("dbname").map(str::to_owned),
            })
        };
        identity().ok_or_else(|| protocol(&doing, "malformed answer"))
    }

    /// How `timeline` came to be, oldest first. Empty for the first timeline.
    pub fn timeline_history(
        &mut self,
        timeline: u32,
        deadline: Instant,
    ) -> Result<Vec<TimelineSwitch>> {
        // It has no history file, and requesting one is an error.
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let doing = format!("read the history of timeline {timeline} of `{}`", self.server);
        let sql = format!("TIMELINE_HISTORY {timeline}");
        let results = self.query(doing.clone(), &sql, deadline)?;
        let content = results.first().and_then(|rows| rows.value(0, "content"));
        let content = content.ok_or_else(|| protocol(&doing, "malformed answer"))?;
        parse_timeline_history(content).map_err(|e| protocol(&doing, e))
    }

    /// What the server reported about itself, such as `server_version` or `in_hot_standby`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// As `server_version_num` counts: 150020 is 15.20.
    pub fn server_version_num(&self) -> Option<u32> {
        version_num(self.parameter("server_version")?)
    }

    /// The process that serves us.
    pub fn backend_pid(&self) -> u32 {
        self.backend_pid
    }

    /// `host:port` that was connected to.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether another query can be run.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    pub fn is_encrypted(&self) -> bool {
        self.link.is_tls()
    }

    /// A connection on which nothing was said yet.
    pub(super) fn new(link: Link, server: String, receive_timeout: Duration) -> Connection {
        Connection {
            link,
            inbox: Inbox::new(),
            server,
            parameters: BTreeMap::new(),
            backend_pid: 0,
            receive_timeout,
            state: State::Busy,
        }
    }

    /// The server has said that it is ready for queries.
    pub(super) fn ready(&mut self, backend_pid: u32) {
        self.backend_pid = backend_pid;
        self.state = State::Ready;
    }

    pub(super) fn server_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.link.peer_certificate()
    }

    pub(super) fn receive_timeout(&self) -> Duration {
        self.receive_timeout
    }

    /// From here on only the stream knows whose turn it is.
    pub(super) fn hand_over(&mut self) {
        self.state = State::Handed;
    }

    pub(super) fn send_query(&mut self, doing: &str, sql: &str, deadline: Instant) -> Result<()> {
        if self.state != State::Ready {
            return Err(Error::new(ErrorKind::Unreachable, doing)
                .because("an earlier call on this connection was cut short"));
        }
        let mut message = BytesMut::new();
        frontend::query(sql, &mut message).map_err(|e| protocol(doing, e))?;
        self.state = State::Busy;
        self.send(doing, &message, deadline)
    }

    pub(super) fn send(&mut self, doing: &str, bytes: &[u8], deadline: Instant) -> Result<()> {
        self.link.write_all(bytes, deadline).map_err(|error| lost(doing, error))
    }

    /// The next message but those that may come at any time.
    pub(super) fn receive(
        &mut self,
        doing: &str,
        bytes_max: usize,
        deadline: Instant,
    ) -> Result<(u8, Vec<u8>)> {
        loop {
            match self.inbox.pop(bytes_max).map_err(|e| protocol(doing, e))? {
                Some((tag, body)) => {
                    if !self.takes_aside(tag, &body) {
                        return Ok((tag, body));
                    }
                }
                None => {
                    let wait = remaining(deadline).map_err(|error| lost(doing, error))?;
                    self.try_fill(wait).map_err(|error| lost(doing, error))?;
                }
            }
        }
    }

    /// Ends later calls before their deadlines.
    pub fn set_halt(&mut self, halt: &Halt) {
        self.link.set_halt(halt);
    }

    /// The next messages of a stream that are here; does not read.
    pub(super) fn front(&mut self, doing: &str) -> Result<Front> {
        loop {
            match self.inbox.pop_front().map_err(|e| protocol(doing, e))? {
                Front::Other(tag, body) if self.takes_aside(tag, &body) => {}
                front => return Ok(front),
            }
        }
    }

    fn takes_aside(&mut self, tag: u8, body: &[u8]) -> bool {
        match tag {
            backend::PARAMETER_STATUS_TAG => {
                let mut wire = Wire::new(body);
                let name = wire.take_str("parameter name");
                let value = wire.take_str("parameter value");
                if let (Ok(name), Ok(value)) = (name, value) {
                    self.parameters.insert(name.to_owned(), value.to_owned());
                }
                true
            }
            backend::NOTICE_RESPONSE_TAG | backend::NOTIFICATION_RESPONSE_TAG => true,
            _ => false,
        }
    }

    /// Reads once into the inbox, waiting at most `wait`.
    pub(super) fn try_fill(&mut self, wait: Duration) -> io::Result<()> {
        match self.link.read(self.inbox.space(), wait) {
            Ok(0) => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "server closed the connection"))
            }
            Ok(n) => {
                self.inbox.advance(n);
                Ok(())
            }
            Err(error) => {
                // A silence, mostly.
                self.inbox.rest();
                Err(error)
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let deadline = Instant::now() + FAREWELL_MAX;
        self.link.set_halt(&Halt::default());
        let mut message = BytesMut::new();
        frontend::terminate(&mut message);
        let _ = self.link.write_all(&message, deadline);
        self.link.close(deadline);
    }
}

impl QueryRows {
    pub fn value(&self, row: usize, column: &str) -> Option<&str> {
        let at = self.columns.iter().position(|name| name == column)?;
        self.rows.get(row)?.get(at)?.as_deref()
    }
}

pub(super) fn lost(doing: &str, error: io::Error) -> Error {
    match tls::explain(&error, doing) {
        Some(explained) => explained,
        None => Error::new(ErrorKind::Unreachable, doing).because(error),
    }
}

pub(super) fn protocol(
    doing: &str,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::new(ErrorKind::Protocol, doing).because(cause)
}

pub(super) fn unexpected(doing: &str, tag: u8) -> Error {
    protocol(doing, format!("unexpected message with tag 0x{tag:02x}"))
}

fn column_names(body: &[u8]) -> std::result::Result<Vec<String>, DecodeError> {
    let mut wire = Wire::new(body);
    let count = wire.take_u16("number of columns")?;
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(wire.take_str("column name")?.to_owned());
        // Table, attribute, type, its length and modifier, format.
        wire.take(4 + 2 + 4 + 2 + 4 + 2, "column description")?;
    }
    wire.end("row description")?;
    Ok(names)
}

fn row(body: &[u8]) -> std::result::Result<Vec<Option<String>>, DecodeError> {
    let mut wire = Wire::new(body);
    let count = wire.take_u16("number of values")?;
    let mut values = Vec::new();
    for _ in 0..count {
        let mut ahead = wire;
        if ahead.take_i32("length of a value")? == -1 {
            wire = ahead;
            values.push(None);
        } else {
            let value = wire.take_sized("value")?;
            // The content of a history file is in no particular encoding.
            values.push(Some(String::from_utf8_lossy(value).into_owned()));
        }
    }
    wire.end("row")?;
    Ok(values)
}

/// `15.20 (Debian ...)` is 150020; `17beta1` and `18devel` are 170000 and 180000.
fn version_num(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut parts = text.get(..end)?.split('.');
    let major: u32 = parts.next()?.parse().ok()?;
    let minor: u32 = parts.next().and_then(|minor| minor.parse().ok()).unwrap_or(0);
    major.checked_mul(10_000)?.checked_add(minor)
}

/// A line of the history file is not `timeline<tab>LSN<tab>reason`, or timelines do not grow.
#[derive(Debug, PartialEq, Eq)]
pub struct TimelineHistoryError {
    pub line: usize,
}

impl std::error::Error for TimelineHistoryError {}

impl std::fmt::Display for TimelineHistoryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "malformed line {} of the history file", self.line)
    }
}

fn parse_timeline_history(
    text: &str,
) -> std::result::Result<Vec<TimelineSwitch>, TimelineHistoryError> {
    let mut switches: Vec<TimelineSwitch> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let malformed = TimelineHistoryError { line: i + 1 };
        if line.trim_start().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace();
        let timeline = words.next().and_then(|word| word.parse().ok());
        let switch = words.next().and_then(|word| word.parse().ok());
        let (Some(timeline), Some(switch)) = (timeline, switch) else { return Err(malformed) };
        if switches.last().is_some_and(|last| timeline <= last.timeline) {
            return Err(malformed);
        }
        switches.push(TimelineSwitch { timeline, switch });
    }
    Ok(switches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_shapes_are_read() {
        for (text, num) in [
            ("15.20 (Debian 15.20-0+deb12u1)", Some(150_020)),
            ("14.1", Some(140_001)),
            ("17beta1", Some(170_000)),
            ("18devel", Some(180_000)),
            ("", None),
            ("x", None),
            ("99999999999", None),
        ] {
            assert_eq!(version_num(text), num, "{text}");
        }
    }

    #[test]
    fn history_keeps_the_order_of_the_file() {
        let text = "1\t0/5000098\tno recovery target specified\n\n# note\n2\t1/A0\tafter LSN\n";
        let [first, second] = parse_timeline_history(text).unwrap()[..] else { panic!() };
        assert_eq!(first, TimelineSwitch { timeline: 1, switch: Lsn(0x500_0098) });
        assert_eq!(second, TimelineSwitch { timeline: 2, switch: Lsn(0x1_0000_00A0) });
        assert_eq!(parse_timeline_history(""), Ok(Vec::new()));
    }

    #[test]
    fn malformed_history_names_its_line() {
        for (text, line) in
            [("x", 1), ("1", 1), ("1\t0/1\n1\t0/2", 2), ("1\t0/1\n\n2\t0-2", 3), ("-1\t0/1", 1)]
        {
            assert_eq!(parse_timeline_history(text), Err(TimelineHistoryError { line }), "{text}");
        }
    }

    #[test]
    fn cut_rows_are_refused() {
        let body = [&2u16.to_be_bytes()[..], &(-1i32).to_be_bytes(), &1i32.to_be_bytes(), b"x"];
        let body = body.concat();
        assert_eq!(row(&body).unwrap(), [None, Some("x".to_owned())]);
        for cut in 0..body.len() {
            assert!(row(&body[..cut]).is_err());
        }
    }
}
