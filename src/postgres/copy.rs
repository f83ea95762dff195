//! Copies ranges of a table's blocks: `COPY ... TO STDOUT` in the binary format.
//!
//! This is the fastest way in which Postgres hands out rows: about 2 us of its CPU a row, and no
//! answer is held whole. It goes over a connection of the kind that streams rather than through the
//! `postgres` crate, which allocates for each row, hands it from one task to another, and cannot be
//! cut short on a Unix socket.
//!
//! Each range has a snapshot of its own, checked and locked as that of a page
//! ([`table_reader`](super::table_reader)), and each row is behind its place in the table, so that
//! a reader who has enough can stop, let the snapshot go, and come back for the rest.

use std::time::{Duration, Instant};

use postgres_protocol::message::backend;

use super::connection::{Connection, lost, protocol, unexpected};
use super::frames::{FRAME_BYTES_MAX, Frames, Front};
use super::link::remaining;
use super::primary::Primary;
use super::server_error::{ServerError, server_error};
use super::sql::{Sql, ident, literal, session_settings};
use super::table_reader::{AsOf, HeapPart, Tid, snapshot};
use crate::error::Result;
use crate::wal::wire::Wire;
use crate::wal::{Datum, DecodeError};

/// One column of a row that is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyColumn {
    pub name: String,
    /// Its type has no send function, so that its values come as text.
    pub as_text: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct CopyRequest<'a> {
    pub part: &'a HeapPart,
    pub columns: &'a [CopyColumn],
    pub after: Tid,
    pub end_block: u32,
}

/// What has come of a range.
#[derive(Debug)]
pub enum Copied {
    Frames(Frames),
    /// Nothing came within the wait.
    Nothing,
    /// The range is at its end, and so is its snapshot.
    Done,
}

/// A session that copies one range after the other. Once it was left in the middle of one, or has
/// failed, there is nothing to do with it but to drop it.
pub struct Copier {
    connection: Connection,
    doing: String,
}

impl Copier {
    pub fn connect(
        primary: &Primary,
        application_name: &str,
        sql: &Sql,
        deadline: Instant,
    ) -> Result<Copier> {
        let mut connection = primary.session(application_name, deadline)?;
        let mut settings = session_settings();
        settings.extend([
            format!("SET client_encoding = {}", literal(sql.texts().client_encoding())),
            // How long a range takes is up to whoever reads it; the reader has a deadline.
            "SET statement_timeout = 0".to_owned(),
            // Rows of several workers come in no order.
            "SET max_parallel_workers_per_gather = 0".to_owned(),
        ]);
        connection.simple_query(&settings.join("; "), deadline)?;
        Ok(Copier { connection, doing: String::new() })
    }

    /// Begins a range. `None`: the part has another file or other columns than was planned, or is
    /// gone.
    pub fn begin(&mut self, request: &CopyRequest<'_>, deadline: Instant) -> Result<Option<AsOf>> {
        self.doing = format!("copy table `{}` from {}", request.part.name, request.after);
        match self.try_begin(request, deadline) {
            Err(error) if is_gone(&error) => {
                self.connection.simple_query("ROLLBACK", deadline)?;
                Ok(None)
            }
            begun => begun,
        }
    }

    fn try_begin(&mut self, request: &CopyRequest<'_>, deadline: Instant) -> Result<Option<AsOf>> {
        let doing = self.doing.clone();
        let results =
            self.connection.query(doing.clone(), &snapshot(request.part, ""), deadline)?;
        let value = |column| results.last().and_then(|rows| rows.value(0, column));
        let filenode = value("filenode").and_then(|text| text.parse().ok());
        if !request.part.is_as_planned(filenode, value("columns")) {
            self.connection.simple_query("ROLLBACK", deadline)?;
            return Ok(None);
        }
        let as_of = || {
            Some(AsOf {
                insert_lsn: value("pg_current_wal_insert_lsn")?.parse().ok()?,
                flush_lsn: value("pg_current_wal_flush_lsn")?.parse().ok()?,
            })
        };
        let as_of = as_of().ok_or_else(|| protocol(&doing, "expected the LSNs of the snapshot"))?;
        self.connection.send_query(&doing, &statement(request), deadline)?;
        match self.connection.receive(&doing, FRAME_BYTES_MAX, deadline)? {
            (backend::COPY_OUT_RESPONSE_TAG, _) => Ok(Some(as_of)),
            (backend::ERROR_RESPONSE_TAG, body) => {
                let error = ServerError::parse(&body).into_error(doing.clone());
                self.await_ready(deadline)?;
                Err(error)
            }
            (tag, _) => Err(unexpected(&doing, tag)),
        }
    }

    /// Waits until rows are there, at most `wait`.
    pub fn next(&mut self, wait: Duration) -> Result<Copied> {
        let deadline = Instant::now() + wait;
        loop {
            match self.connection.front(&self.doing)? {
                Front::Copy(frames) => return Ok(Copied::Frames(frames)),
                Front::Other(backend::COPY_DONE_TAG | backend::COMMAND_COMPLETE_TAG, _) => {}
                Front::Other(backend::READY_FOR_QUERY_TAG, _) => {
                    self.connection.ready(self.connection.backend_pid());
                    self.connection.simple_query("COMMIT", Instant::now() + wait)?;
                    return Ok(Copied::Done);
                }
                Front::Other(backend::ERROR_RESPONSE_TAG, body) => {
                    return Err(ServerError::parse(&body).into_error(&self.doing));
                }
                Front::Other(tag, _) => return Err(unexpected(&self.doing, tag)),
                Front::Partial => {
                    let Ok(left) = remaining(deadline) else { return Ok(Copied::Nothing) };
                    match self.connection.try_fill(left) {
                        Ok(()) => {}
                        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                            return Ok(Copied::Nothing);
                        }
                        Err(error) => return Err(lost(&self.doing, error)),
                    }
                }
            }
        }
    }

    fn await_ready(&mut self, deadline: Instant) -> Result<()> {
        match self.connection.receive(&self.doing, FRAME_BYTES_MAX, deadline)? {
            (backend::READY_FOR_QUERY_TAG, _) => {
                self.connection.ready(self.connection.backend_pid());
                Ok(())
            }
            (tag, _) => Err(unexpected(&self.doing, tag)),
        }
    }
}

/// It was dropped, such as a partition that was detached; or a column of it was.
fn is_gone(error: &crate::error::Error) -> bool {
    server_error(error).is_some_and(|cause| ["42P01", "42703"].contains(&&*cause.sqlstate))
}

fn statement(request: &CopyRequest<'_>) -> String {
    let mut columns = String::new();
    for CopyColumn { name, as_text } in request.columns {
        let name = ident(name);
        columns.push_str(", ");
        match as_text {
            false => columns.push_str(&name),
            true => columns.push_str(&format!(
                "CASE WHEN num_nulls({name}) = 0 THEN format('%s', {name}) END"
            )),
        }
    }
    format!(
        "COPY (SELECT ctid{columns} FROM ONLY {} WHERE ctid > '{}'::tid AND ctid < '({},0)'::tid) \
         TO STDOUT (FORMAT binary)",
        request.part.name.quoted(),
        request.after,
        request.end_block
    )
}

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// Reads the rows of one range: the server sends each in a message of its own, the header together
/// with the first.
#[derive(Debug, Default)]
pub struct CopyRows {
    has_begun: bool,
}

impl CopyRows {
    /// The place of the message's row; `None` if it has none. `take` gets each value with the index
    /// of its column.
    #[inline]
    pub fn read<'a>(
        &mut self,
        message: &'a [u8],
        columns: &[CopyColumn],
        mut take: impl FnMut(usize, Datum<'a>),
    ) -> std::result::Result<Option<Tid>, DecodeError> {
        let mut wire = Wire::new(message);
        if !self.has_begun {
            begin(&mut wire)?;
            self.has_begun = true;
            if wire.is_empty() {
                return Ok(None);
            }
        }
        let count = wire.take_u16("number of copied values")?;
        // The trailer.
        if count == u16::MAX {
            return wire.end("copied rows").map(|()| None);
        }
        if usize::from(count) != columns.len() + 1 {
            return Err(DecodeError::BadValue { context: "number of copied values" });
        }
        let tid = tid(wire.take_sized("place of a copied row")?)?;
        for (index, column) in columns.iter().enumerate() {
            let length = wire.take_i32("length of a copied value")?;
            if length == -1 {
                take(index, Datum::Null);
                continue;
            }
            let length = usize::try_from(length)
                .map_err(|_| DecodeError::BadValue { context: "length of a copied value" })?;
            let value = wire.take(length, "copied value")?;
            take(index, if column.as_text { Datum::Text(value) } else { Datum::Binary(value) });
        }
        wire.end("copied row")?;
        Ok(Some(tid))
    }
}

#[cold]
fn begin(wire: &mut Wire<'_>) -> std::result::Result<(), DecodeError> {
    const CONTEXT: &str = "header of copied rows";
    let signature = wire.take(SIGNATURE.len(), CONTEXT)?;
    // The upper half of the flags has those that change what follows.
    let flags = wire.take_u32(CONTEXT)?;
    if signature != SIGNATURE || flags >> 16 != 0 {
        return Err(DecodeError::BadValue { context: CONTEXT });
    }
    wire.take_sized(CONTEXT).map(drop)
}

fn tid(bytes: &[u8]) -> std::result::Result<Tid, DecodeError> {
    match *bytes {
        [a, b, c, d, e, f] => {
            Ok(Tid { block: u32::from_be_bytes([a, b, c, d]), offset: u16::from_be_bytes([e, f]) })
        }
        _ => Err(DecodeError::BadValue { context: "place of a copied row" }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn column(name: &str, as_text: bool) -> CopyColumn {
        CopyColumn { name: name.to_owned(), as_text }
    }

    fn header() -> Vec<u8> {
        [SIGNATURE, &[0; 4], &2_i32.to_be_bytes(), b"xx"].concat()
    }

    fn row(values: &[Option<&[u8]>]) -> Vec<u8> {
        let mut bytes = (values.len() as u16).to_be_bytes().to_vec();
        for value in values {
            let length = value.map_or(-1, |value| value.len() as i32);
            bytes.extend(length.to_be_bytes());
            bytes.extend(value.unwrap_or_default());
        }
        bytes
    }

    #[test]
    fn rows_come_behind_a_header_and_before_a_trailer() {
        let columns = [column("a", false), column("b", true), column("c", false)];
        let place: &[u8] = &[0, 0, 1, 0, 0, 7];
        let message = row(&[Some(place), Some(b"bin"), Some(b"text"), None]);
        let mut rows = CopyRows::default();
        for message in [[header(), message.clone()].concat(), message] {
            let mut values = Vec::new();
            let tid = rows.read(&message, &columns, |at, value| values.push((at, value)));
            assert_eq!(tid, Ok(Some(Tid { block: 256, offset: 7 })));
            let expected = [Datum::Binary(b"bin"), Datum::Text(b"text"), Datum::Null];
            assert_eq!(values, expected.into_iter().enumerate().collect::<Vec<_>>());
        }
        assert_eq!(rows.read(&[0xff, 0xff], &columns, |_, _| ()), Ok(None));
        let empty = [&header()[..], &[0xff, 0xff]].concat();
        assert_eq!(CopyRows::default().read(&empty, &columns, |_, _| ()), Ok(None));
        assert_eq!(CopyRows::default().read(&header(), &columns, |_, _| ()), Ok(None));
    }

    #[test]
    fn what_is_none_of_it_is_refused() {
        let columns = [column("a", false)];
        let place: &[u8] = &[0; 6];
        let mut rows = CopyRows { has_begun: true };
        for message in [
            row(&[Some(place)]),
            row(&[Some(place), None, None]),
            row(&[Some(b"1"), None]),
            row(&[None, None]),
            [&row(&[Some(place), None])[..], b"x"].concat(),
            [&row(&[Some(place), None])[..12], &(-2_i32).to_be_bytes()].concat(),
            b"\xff\xff\0".to_vec(),
        ] {
            assert!(rows.read(&message, &columns, |_, _| ()).is_err(), "{message:?}");
        }
        let flags = [SIGNATURE, &[0, 1, 0, 0], &[0; 4]].concat();
        for head in [&flags[..], b"PGCOPY", b"HTTP/1.1 200 OK of another server"] {
            assert!(CopyRows::default().read(head, &columns, |_, _| ()).is_err(), "{head:?}");
        }
    }

    #[test]
    fn every_name_is_quoted() {
        let part = crate::postgres::table_reader::testing::part();
        let request = CopyRequest {
            part: &part,
            columns: &[column("a\"b", false), column("c", true)],
            after: Tid { block: 1, offset: 4 },
            end_block: 8,
        };
        assert_eq!(
            statement(&request),
            "COPY (SELECT ctid, \"a\"\"b\", CASE WHEN num_nulls(\"c\") = 0 THEN \
             format('%s', \"c\") END FROM ONLY \"s\".\"t\"\"1\" \
             WHERE ctid > '(1,4)'::tid AND ctid < '(8,0)'::tid) TO STDOUT (FORMAT binary)"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic_us(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let columns = [column("a", false), column("b", false)];
            let _ = CopyRows::default().read(&bytes, &columns, |_, _| ());
            let _ = CopyRows { has_begun: true }.read(&bytes, &columns, |_, _| ());
        }
    }
}
