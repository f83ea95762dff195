//! Reads a whole table, page by page, during writes.
//!
//! The order is that of the blocks on disk: no index is needed, the disk is read once from front to
//! back, and rows written at the same time lie together. Each page has a snapshot of its own, so no
//! snapshot holds back VACUUM for the hours that a large table takes. A row that moves between two
//! pages, and one that is inserted after the planned blocks, may be missed: the caller must get
//! their changes from a slot that existed before.
//!
//! A statement that rewrites the table (VACUUM FULL, CLUSTER, TRUNCATE, some ALTER TABLEs) gives it
//! another file, and a column can be renamed or replaced without that. A page of another file, or
//! of other columns, than planned is refused, and the caller plans again. The table is locked, as
//! by any SELECT, before the snapshot is taken: one that is older than a rewrite would see no rows.

use std::borrow::Cow;
use std::time::Instant;

use super::source_table::TableName;
use super::sql::{Sql, SqlError, SqlRow, Texts, literal, protocol};
use crate::error::Result;
use crate::wal::Lsn;

/// A table that holds rows: the table itself, or a leaf partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeapPart {
    pub name: TableName,
    pub oid: u32,
    pub filenode: u32,
    pub blocks: u32,
    /// With what lies in TOAST.
    pub bytes: u64,
    /// Names, numbers and types, to be compared.
    columns: String,
}

/// A place in a part: the row pointers above `block` and `offset` are still to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tid {
    pub block: u32,
    pub offset: u16,
}

#[derive(Debug, Clone, Copy)]
pub struct PageRequest<'a> {
    pub part: &'a HeapPart,
    pub columns: &'a [&'a str],
    pub after: Tid,
    pub end_block: u32,
    /// Stop once the values take this many bytes, or there are this many rows.
    pub bytes_max: usize,
    pub rows_max: usize,
}

#[derive(Debug)]
pub enum Page {
    Rows(PageRows<Tid>),
    /// A row with a character of the database's encoding that UTF-8 has no place for, so that the
    /// server does not hand it out. Behind it one can go on.
    Unreadable(Tid),
    /// The part has another file or other columns than was planned, or is gone.
    Changed,
}

/// Rows of a cursor, each behind its place: where the next ones begin.
#[derive(Debug)]
pub struct PageRows<Place> {
    /// As text, in the order of the columns asked for, behind the place.
    rows: Vec<SqlRow>,
    /// The columns of the place.
    leading: usize,
    texts: Texts,
    pub as_of: AsOf,
    /// That of the last row; `None` when the end was reached.
    pub next: Option<Place>,
    pub bytes: usize,
}

/// Which commits a snapshot may have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsOf {
    /// Every commit that the snapshot saw ends at or below this.
    pub insert_lsn: Lsn,
    /// The LSN flushed by then. With `synchronous_commit = off` a commit is visible before it is
    /// flushed, and a crash takes it back.
    pub flush_lsn: Lsn,
}

/// The columns of [`AsOf`], for a statement that is run after its snapshot was taken.
pub(super) const AS_OF: &str = "pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()";

impl AsOf {
    pub(super) fn read(row: &SqlRow, column: usize) -> std::result::Result<AsOf, SqlError> {
        Ok(AsOf { insert_lsn: row.parse(column)?, flush_lsn: row.parse(column + 1)? })
    }
}

impl HeapPart {
    /// It has the file and the columns that were found when the work was planned.
    pub(super) fn is_as_planned(&self, filenode: Option<u32>, columns: Option<&str>) -> bool {
        (filenode, columns) == (Some(self.filenode), Some(self.columns.as_str()))
    }
}

impl Tid {
    /// Before the first row of a block.
    pub fn before(block: u32) -> Tid {
        Tid { block, offset: 0 }
    }

    fn parse(text: &str) -> Option<Tid> {
        let (block, offset) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
        Some(Tid { block: block.parse().ok()?, offset: offset.parse().ok()? })
    }
}

impl std::fmt::Display for Tid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({},{})", self.block, self.offset)
    }
}

impl<Place> PageRows<Place> {
    pub(super) fn new(as_of: AsOf, texts: Texts, leading: usize) -> PageRows<Place> {
        PageRows { rows: Vec::new(), leading, texts, as_of, next: None, bytes: 0 }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The values of each row, in the text output format; `None` is NULL.
    pub fn values(&self) -> impl Iterator<Item = Result<Vec<Option<Cow<'_, [u8]>>>>> {
        self.rows.iter().map(|row| {
            (self.leading..row.len())
                .map(|column| Ok(row.text(column)?.map(|text| self.texts.bytes(text))))
                .collect::<std::result::Result<_, SqlError>>()
                .map_err(|error| error.doing("read a page of a table"))
        })
    }

    /// Fetches from the cursor `page` until it ends, the values take `bytes_max` or there are
    /// `rows_max` rows, and commits. `place` reads the leading columns.
    pub(super) fn fetch(
        mut self,
        sql: &mut Sql,
        (bytes_max, rows_max): (usize, usize),
        mut place: impl FnMut(&SqlRow) -> std::result::Result<Place, SqlError>,
        deadline: Instant,
    ) -> std::result::Result<PageRows<Place>, SqlError> {
        let (mut fetch, mut last) = (ROWS_OF_FIRST_FETCH, None);
        while self.bytes < bytes_max && self.len() < rows_max {
            let rows = sql.try_rows(&format!("FETCH FORWARD {fetch} FROM page"), deadline)?;
            let is_end = rows.len() < fetch;
            for row in rows {
                last = Some(place(&row)?);
                for column in self.leading..row.len() {
                    self.bytes += row.text(column)?.map_or(0, str::len);
                }
                self.rows.push(row);
            }
            if is_end {
                sql.try_rows("COMMIT", deadline)?;
                return Ok(self);
            }
            fetch = next_fetch(fetch, self.len(), self.bytes, bytes_max, rows_max);
        }
        // Without a position to continue from it would look like the end.
        self.next = Some(last.ok_or_else(|| protocol("expected a row"))?);
        sql.try_rows("COMMIT", deadline)?;
        Ok(self)
    }
}

/// What [`Part::columns`] is compared with; of the table that `oid` stands for.
fn columns_of(oid: &str) -> String {
    format!(
        "(SELECT string_agg(format('%s %s %s', attnum, atttypid, attname), ',' ORDER BY attnum)
          FROM pg_attribute WHERE attrelid = {oid} AND 0 < attnum AND NOT attisdropped)"
    )
}

/// The parts of a table and their sizes now.
pub fn parts(sql: &mut Sql, table: &TableName, deadline: Instant) -> Result<Vec<HeapPart>> {
    let doing = format!("plan to read table `{table}`");
    let query = format!(
        "SELECT n.nspname, c.relname, c.oid::int8, pg_relation_filenode(c.oid)::int8,
                pg_relation_size(c.oid) / current_setting('block_size')::int8,
                pg_table_size(c.oid), {}
         FROM pg_class root JOIN pg_namespace root_n ON root_n.oid = root.relnamespace
         CROSS JOIN LATERAL (
           SELECT root.oid WHERE root.relkind <> 'p'
           UNION ALL
           SELECT p.relid FROM pg_partition_tree(root.oid) p WHERE root.relkind = 'p' AND p.isleaf
         ) part
         JOIN pg_class c ON c.oid = part.oid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE root_n.nspname = {} AND root.relname = {} AND c.relkind = 'r'
         ORDER BY c.oid",
        columns_of("c.oid"),
        literal(&table.schema),
        literal(&table.name)
    );
    let read = |row: &SqlRow| -> std::result::Result<HeapPart, SqlError> {
        Ok(HeapPart {
            name: TableName::new(row.required(0)?, row.required(1)?),
            oid: row.parse(2)?,
            filenode: row.parse(3)?,
            blocks: row.parse(4)?,
            bytes: row.parse(5)?,
            columns: row.required(6)?.to_owned(),
        })
    };
    let rows = sql.rows(&doing, &query, deadline)?;
    rows.iter().map(|row| read(row).map_err(|error| error.doing(&doing))).collect()
}

/// The next page. It ends at a boundary of memory, not of blocks.
pub fn page(sql: &mut Sql, request: &PageRequest, deadline: Instant) -> Result<Page> {
    let columns = request.columns;
    let mut request = *request;
    let mut refused_at = None;
    loop {
        let error = match read_in_snapshot(sql, &request, deadline) {
            // It was asked for nothing but its place, since it could not be read. Each time there
            // is another snapshot: it counts if it is the next one before and after it was refused.
            Ok(Page::Rows(PageRows { next: Some(at), .. })) if request.columns.is_empty() => {
                if refused_at.replace(at) == Some(at) {
                    return Ok(Page::Unreadable(at));
                }
                request.columns = columns;
                continue;
            }
            Ok(page) => return Ok(page),
            Err(error) => error,
        };
        sql.roll_back(deadline);
        // It was dropped, such as a partition that was detached; or a column of it was.
        if error.is("42P01") || error.is("42703") {
            return Ok(Page::Changed);
        }
        if !error.is_unconvertible() || request.columns.is_empty() {
            let doing = format!("read table `{}` from {}", request.part.name, request.after);
            return Err(error.doing(doing));
        }
        // The rows before it come first.
        match request.rows_max {
            0 | 1 => request.columns = &[],
            rows_max => request.rows_max = rows_max.min(ROWS_PER_FETCH) / 2,
        }
    }
}

/// At first the size of rows is unknown.
const ROWS_OF_FIRST_FETCH: usize = 1;
/// However small the rows before were: an answer is held whole, and those that come may be large.
const ROWS_PER_FETCH: usize = 100;

fn read_in_snapshot(
    sql: &mut Sql,
    request: &PageRequest,
    deadline: Instant,
) -> std::result::Result<Page, SqlError> {
    // A cursor, so that no row is sent that does not fit; its plan is never parallel.
    let select = select(request, sql.texts());
    let cursor = format!("DECLARE page NO SCROLL CURSOR FOR {select};");
    let rows = sql.try_rows(&snapshot(request.part, &cursor), deadline)?;
    let row = rows.first().ok_or_else(|| protocol("expected one row about the snapshot"))?;
    if !request.part.is_as_planned(row.parse_nullable(0)?, row.text(1)?) {
        sql.try_rows("ROLLBACK", deadline)?;
        return Ok(Page::Changed);
    }
    let mut last = request.after;
    let place = |row: &SqlRow| {
        let tid = Tid::parse(row.required(0)?).ok_or_else(|| protocol("expected a ctid"))?;
        if tid <= last {
            return Err(protocol("rows do not come in the order of their blocks"));
        }
        last = tid;
        Ok(tid)
    };
    let limits = (request.bytes_max, request.rows_max);
    PageRows::new(AsOf::read(row, 2)?, sql.texts(), 1)
        .fetch(sql, limits, place, deadline)
        .map(Page::Rows)
}

/// Begins a transaction in which the part is locked, and reads what it looks like there and which
/// commits its snapshot may have seen. A scan that does not join another one begins at the front:
/// rows come in the order of their blocks.
pub(super) fn snapshot(part: &HeapPart, cursor: &str) -> String {
    // By name, as the scan finds it: another table may have taken that.
    let name = part.name.quoted();
    let table = format!("to_regclass({})", literal(&name));
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
         SET LOCAL synchronize_seqscans = off; SET LOCAL enable_seqscan = off;
         LOCK TABLE ONLY {name} IN ACCESS SHARE MODE;
         {cursor}
         SELECT pg_relation_filenode({table})::int8 AS filenode, {} AS columns, {AS_OF}",
        columns_of(&table),
    )
}

/// As many rows as would fill the rest if they are as large as those before, but growing slowly.
fn next_fetch(fetch: usize, rows: usize, bytes: usize, bytes_max: usize, rows_max: usize) -> usize {
    let bytes_per_row = (bytes / rows.max(1)).max(1);
    let room = bytes_max.saturating_sub(bytes) / bytes_per_row;
    let left = rows_max.saturating_sub(rows);
    room.min(left).min(fetch.saturating_mul(4)).clamp(1, ROWS_PER_FETCH)
}

fn select(request: &PageRequest, texts: Texts) -> String {
    let mut statement = "SELECT ctid".to_owned();
    for column in request.columns {
        statement.push_str(", ");
        statement.push_str(&texts.column(column));
    }
    statement.push_str(&format!(
        " FROM ONLY {} WHERE ctid > '{}'::tid AND ctid < '({},0)'::tid",
        request.part.name.quoted(),
        request.after,
        request.end_block
    ));
    statement
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub fn part() -> HeapPart {
        let name = TableName::new("s", "t\"1");
        HeapPart { name, oid: 5, filenode: 6, blocks: 9, bytes: 9 << 13, columns: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::part;
    use super::*;

    #[test]
    fn row_pointers_are_read_and_ordered_as_postgres_does() {
        assert_eq!(Tid::parse("(12,7)"), Some(Tid { block: 12, offset: 7 }));
        for text in ["", "(1)", "1,2", "(1,2", "(-1,2)", "(1,70000)"] {
            assert_eq!(Tid::parse(text), None, "{text}");
        }
        assert!(Tid::before(3) < Tid { block: 3, offset: 1 });
        assert!(Tid { block: 2, offset: 200 } < Tid::before(3));
        assert_eq!(Tid { block: 2, offset: 1 }.to_string(), "(2,1)");
    }

    #[test]
    fn every_name_is_quoted() {
        let part = part();
        let request = PageRequest {
            part: &part,
            columns: &["a", "b\"c"],
            after: Tid { block: 1, offset: 4 },
            end_block: 8,
            bytes_max: 1,
            rows_max: 1,
        };
        assert_eq!(
            select(&request, Texts::default()),
            "SELECT ctid, \"a\", \"b\"\"c\" FROM ONLY \"s\".\"t\"\"1\" \
             WHERE ctid > '(1,4)'::tid AND ctid < '(8,0)'::tid"
        );
    }

    #[test]
    fn large_rows_are_fetched_few_at_a_time() {
        let next_fetch =
            |fetch, rows, bytes, bytes_max| next_fetch(fetch, rows, bytes, bytes_max, 1_000);
        assert_eq!(next_fetch(64, 85, 85, 4 << 20), ROWS_PER_FETCH);
        assert_eq!(next_fetch(64, 985, 98_500, 4 << 20), 15, "no more than asked for");
        assert_eq!(next_fetch(1, 1, 64 << 20, 4 << 20), 1);
        assert_eq!(next_fetch(1, 1, 100, 4 << 20), 4, "no leap");
        assert_eq!(next_fetch(16, 21, 21 << 10, 31 << 10), 10);
    }
}
