//! Values that an update left in TOAST and the stream did not carry: read them from the table.
//!
//! The stream can be ahead of what a query sees: a commit is streamed once it is in the WAL, and
//! becomes visible a little later, with synchronous replication as late as the standby answers. A
//! row read before that is the one from before the transaction, and carrying its values on would
//! bring old data back. So it returns nothing until the snapshot shows every transaction that the
//! changes came from.
//!
//! The values may be newer than the change; then the change that made them so is still to come.
//!
//! A snapshot that is older than a rewrite of the table (some ALTER TABLE, TRUNCATE) sees no row of
//! it: Postgres' manual, "Caveats" of MVCC. So it locks the table before it takes the snapshot, and
//! no existing row looks deleted. It is the same lock that any SELECT takes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::source_table::SourceTable;
use super::sql::{Sql, SqlError, SqlRow, Texts, ident, literal, protocol};
use super::table_reader::{AS_OF, AsOf};
use crate::error::{ErrorKind, Result};
use crate::services::row::TextValues;
use crate::wal::row_key::KeyText;

/// Rows may hold large values, and an answer is read whole; between two statements the memory they
/// took so far is looked at.
const KEYS_PER_STATEMENT: usize = 500;
/// The most bytes an answer should have: what is built from it takes memory too.
const STATEMENT_BYTES: usize = 2 << 20;
/// Before anything is known of their size.
const KEYS_OF_FIRST_STATEMENT: usize = 4;

#[derive(Debug, Clone, Copy)]
pub struct RereadRequest<'a> {
    /// As it was looked at; another one of that name is an error.
    pub table: &'a SourceTable,
    /// Together they are unique.
    pub key_columns: &'a [&'a str],
    pub columns: &'a [&'a str],
    /// Without duplicates.
    pub keys: &'a [KeyText],
    /// The top-level transactions that the changes came from, as in their Begin messages; sorted.
    pub xids: &'a [u32],
    /// Stop, between statements, once the values take this many bytes.
    pub bytes_max: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Reread {
    Rows(RereadRows),
    /// Nothing was read: ask again a little later.
    NotYetVisible {
        transactions: usize,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub struct RereadRows {
    /// By index of the key: the columns asked for.
    pub found: HashMap<usize, TextValues>,
    /// How many of the keys, from the first, this covers: at least one. A covered key that was not
    /// found has been deleted since. For the rest there was no room in `bytes_max`, or no time: ask
    /// again for them.
    pub answered: usize,
    /// The commits that these values may come from.
    pub as_of: AsOf,
    /// Every key was found as one of the requested transactions left it: the stream has already
    /// brought all of this.
    pub is_as_streamed: bool,
}

/// It reads everything in one snapshot. Each statement has `timeout`; once that has passed since
/// the first one it starts no other, however many keys are left: this keeps the answers of a slow
/// server and does not hold its snapshot for long.
pub fn reread(sql: &mut Sql, request: &RereadRequest, timeout: Duration) -> Result<Reread> {
    read_in_snapshot(sql, request, timeout).map_err(|error| {
        sql.roll_back(Instant::now() + timeout);
        error.doing(format!("read unchanged values again from table `{}`", request.table.name))
    })
}

fn read_in_snapshot(
    sql: &mut Sql,
    request: &RereadRequest,
    timeout: Duration,
) -> std::result::Result<Reread, SqlError> {
    let until = Instant::now() + timeout;
    let deadline = || Instant::now() + timeout;
    // The LSNs need their own statement: the one that takes the snapshot might read them before it.
    // A nested loop looks up each key by the index; another join reads the whole table where the
    // planner thinks that it is small.
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
         SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; \
         LOCK TABLE {} IN ACCESS SHARE MODE; \
         SELECT pg_current_snapshot(), to_regclass({})::oid::int8; SELECT {AS_OF}",
        request.table.rows(),
        literal(&request.table.name.quoted())
    );
    let answers = sql.try_rows(&begin, deadline())?;
    let [snapshot, as_of] = answers.as_slice() else {
        return Err(protocol("expected one row with the snapshot and one about it"));
    };
    let table_oid: Option<u32> = snapshot.parse_nullable(1)?;
    let snapshot = Snapshot::parse(snapshot.required(0)?)
        .ok_or_else(|| protocol("expected a snapshot such as 10:20:10,14"))?;
    let as_of = AsOf::read(as_of, 0)?;
    if table_oid != Some(request.table.oid) {
        return Err(SqlError::new(ErrorKind::Setup, "another table has taken its name"));
    }
    let transactions = request.xids.iter().filter(|xid| !snapshot.is_ended(**xid)).count();
    if transactions > 0 {
        sql.try_rows("ROLLBACK", deadline())?;
        return Ok(Reread::NotYetVisible { transactions });
    }
    let found = HashMap::with_capacity(request.keys.len());
    let mut rows = RereadRows { found, answered: 0, as_of, is_as_streamed: true };
    let (mut bytes, mut keys_max) = (0, KEYS_OF_FIRST_STATEMENT);
    let texts = sql.texts();
    while let Some(rest) = request.keys.get(rows.answered..).filter(|rest| !rest.is_empty())
        && (rows.answered == 0 || bytes < request.bytes_max && Instant::now() < until)
    {
        let keys = rest.get(..keys_max).unwrap_or(rest);
        let before = bytes;
        let found = sql.try_rows(&select(request, keys, texts)?, deadline())?;
        rows.is_as_streamed &= found.len() == keys.len();
        for row in found {
            let (at, xmin, values) = read_row(&row, request.columns.len(), texts)?;
            bytes += values.iter().flatten().map(Vec::len).sum::<usize>();
            rows.is_as_streamed &= request.xids.binary_search(&xmin).is_ok();
            rows.found.insert(rows.answered + at, values.into());
        }
        rows.answered += keys.len();
        let room = request.bytes_max.saturating_sub(bytes).min(STATEMENT_BYTES);
        keys_max = next_keys_max(keys.len(), bytes - before, room);
    }
    sql.try_rows("COMMIT", deadline())?;
    Ok(Reread::Rows(rows))
}

/// As many keys as would fill the `room` left if their rows are as large as those just read, but
/// growing slowly.
fn next_keys_max(keys: usize, bytes: usize, room: usize) -> usize {
    let bytes_per_key = (bytes / keys.max(1)).max(1);
    (room / bytes_per_key).min(keys.saturating_mul(4)).clamp(1, KEYS_PER_STATEMENT)
}

/// The keys by their number: what Postgres prints of one may not be the text that it was asked for
/// with (`1.0` for a numeric of `1.00`).
fn select(
    request: &RereadRequest,
    keys: &[KeyText],
    texts: Texts,
) -> std::result::Result<String, SqlError> {
    let mut statement = "SELECT k.n, t.xmin".to_owned();
    for column in request.columns {
        statement.push_str(", ");
        statement.push_str(&texts.value(format!("t.{}", ident(column))));
    }
    statement.push_str(" FROM (VALUES ");
    for (n, key) in keys.iter().enumerate() {
        statement.push_str(if n == 0 { "(" } else { ",(" });
        statement.push_str(&n.to_string());
        for (value, column) in key.iter().zip(request.key_columns) {
            let value = texts.literal(value).ok_or_else(|| protocol("a key is not UTF-8 text"))?;
            statement.push(',');
            statement.push_str(&value);
            // Those of the other rows take the type of the first.
            if n == 0 {
                let found = request.table.column(column);
                let found = found.ok_or_else(|| protocol("a column of the key is gone"))?;
                statement.push_str("::");
                statement.push_str(&found.sql_type);
            }
        }
        statement.push(')');
    }
    let names: Vec<String> = (0..request.key_columns.len()).map(|at| format!("k{at}")).collect();
    let equal = |(at, column): (usize, &&str)| format!("t.{} = k.k{at}", ident(column));
    let on: Vec<String> = request.key_columns.iter().enumerate().map(equal).collect();
    statement.push_str(&format!(
        ") AS k (n, {}) JOIN {} AS t ON {}",
        names.join(", "),
        request.table.rows(),
        on.join(" AND ")
    ));
    Ok(statement)
}

/// The number of a key, the transaction that wrote its row, and the values.
type Found = (usize, u32, Vec<Option<Vec<u8>>>);

fn read_row(row: &SqlRow, columns: usize, texts: Texts) -> std::result::Result<Found, SqlError> {
    let (at, xmin) = (row.parse(0)?, row.parse(1)?);
    let value = |i| Ok(row.text(i)?.map(|text| texts.bytes(text).into_owned()));
    let values = (2..2 + columns).map(value);
    Ok((at, xmin, values.collect::<std::result::Result<_, SqlError>>()?))
}

/// As `pg_snapshot` prints it: every transaction below `xmax` has ended, but for those running.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    xmax: u64,
    /// In ascending order.
    running: Vec<u64>,
}

impl Snapshot {
    fn parse(text: &str) -> Option<Snapshot> {
        let mut parts = text.split(':');
        let (xmin, xmax, running) = (parts.next()?, parts.next()?, parts.next()?);
        let xmin: u64 = xmin.parse().ok()?;
        let xmax: u64 = xmax.parse().ok()?;
        let running = match running {
            "" => Vec::new(),
            all => all.split(',').map(|xid| xid.parse().ok()).collect::<Option<Vec<u64>>>()?,
        };
        let is_sound = parts.next().is_none() && xmin <= xmax && running.is_sorted();
        is_sound.then_some(Snapshot { xmax, running })
    }

    /// Ended before the snapshot was taken. The stream only names transactions that committed, so
    /// ended means visible.
    fn is_ended(&self, xid: u32) -> bool {
        // The stream has the low half of the number. A transaction that it can still name is at
        // most half the circle away from now, on either side.
        let distance = (xid.wrapping_sub(self.xmax as u32)).cast_signed();
        match self.xmax.checked_add_signed(i64::from(distance)) {
            Some(full) => full < self.xmax && self.running.binary_search(&full).is_err(),
            // Before the first transaction of the cluster.
            None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::source_table::{SourceTable, TableColumn, TableName, testing};
    use crate::wal::Oid;

    #[test]
    fn a_transaction_has_ended_when_it_is_below_xmax_and_not_running() {
        let snapshot = Snapshot::parse("10:20:10,14").unwrap();
        let ended: Vec<u32> = (8..23).filter(|xid| snapshot.is_ended(*xid)).collect();
        assert_eq!(ended, [8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
        assert!(Snapshot::parse("20:20:").unwrap().is_ended(19));
        assert!(!Snapshot::parse("20:20:").unwrap().is_ended(20));
    }

    #[test]
    fn the_epoch_is_that_of_the_snapshot_on_both_sides_of_the_wrap() {
        let epoch = 1_u64 << 32;
        let snapshot = Snapshot { xmax: epoch + 5, running: vec![epoch - 1, epoch + 3] };
        assert!(snapshot.is_ended(4));
        assert!(!snapshot.is_ended(3));
        assert!(!snapshot.is_ended(u32::MAX), "the last one before the wrap is running");
        assert!(snapshot.is_ended(u32::MAX - 1));
        assert!(!snapshot.is_ended(5), "the next one has not ended");

        let before = Snapshot { xmax: epoch - 2, running: Vec::new() };
        assert!(!before.is_ended(7), "one beyond the wrap is still to come");
        assert!(before.is_ended(u32::MAX - 2));
    }

    #[test]
    fn text_that_is_no_snapshot_is_refused() {
        for text in ["", "1", "1:2", "2:1:", "1:2:3:4", "a:2:", "1:2:x", "1:9:4,3", "-1:2:"] {
            assert_eq!(Snapshot::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn large_rows_are_read_few_at_a_time() {
        assert_eq!(next_keys_max(4, 4 << 20, 12 << 20), 12);
        assert_eq!(next_keys_max(4, 400 << 20, 12 << 20), 1);
        assert_eq!(next_keys_max(4, 0, 12 << 20), 16, "no leap");
        assert_eq!(next_keys_max(256, 256, 12 << 20), KEYS_PER_STATEMENT);
        assert_eq!(next_keys_max(1, 1, 0), 1);
    }

    #[test]
    fn every_name_and_key_is_quoted() {
        let column = |name: &str, sql_type: &str| TableColumn {
            sql_type: sql_type.to_owned(),
            ..testing::column(name, Oid(25))
        };
        let table = SourceTable {
            columns: vec![column("i\"d", "text"), column("at", "timestamp(3) without time zone")],
            ..testing::table(TableName::new("s\"1", "t"))
        };
        let texts = Texts::default();
        let request = RereadRequest {
            table: &table,
            key_columns: &["i\"d", "at"],
            columns: &["a", "b c"],
            keys: &[],
            xids: &[],
            bytes_max: 1,
        };
        let key = |text: &[u8], at: &str| vec![text.to_vec(), at.as_bytes().to_vec()];
        let keys = [key(b"x'y", "2026-01-01"), key("\u{e9}\\".as_bytes(), "2026-01-02")];
        assert_eq!(
            select(&request, &keys, texts).unwrap(),
            "SELECT k.n, t.xmin, t.\"a\", t.\"b c\" FROM (VALUES \
             (0,'x''y'::text,'2026-01-01'::timestamp(3) without time zone),\
             (1, E'\u{e9}\\\\','2026-01-02')) AS k (n, k0, k1) \
             JOIN ONLY \"s\"\"1\".\"t\" AS t ON t.\"i\"\"d\" = k.k0 AND t.\"at\" = k.k1"
        );
        assert!(select(&request, &[key(b"\xff", "")], texts).is_err());
        assert!(select(&request, &[key(b"a\0b", "")], texts).is_err());
    }
}
