//! Splits a target table's keys into slices that the primary index finds, and reads them one by
//! one.
//!
//! ```text
//!   partition 202611:   ... B1] (B1 ... B2] (B2 ...      by the sorting key
//! ```
//!
//! It finds one bound after another by reading on in the order of the table, so that no statement
//! reads more than a slice, however large the partition is. It samples a table with another order,
//! which reads all of a partition's keys. With any bounds, every key is in a slice: the first has
//! no lower bound, the last no upper bound, and two neighbors are "is not after B" and "is after B"
//! for the same B. All versions of a key are in one slice.
//!
//! The primary index knows nothing of a comparison of tuples and would read the whole partition
//! (measured with 24.8 and 26.9), so it is written out column by column.

use std::cmp::Ordering;
use std::time::Instant;

use super::client::{Client, quote_bytes, quote_name};
use super::partitions::{self, Partition, partitions};
use super::stored::{live_keys_where, malformed};
use super::tables::read_shape;
use crate::error::Result;
use crate::rows::Scalar;
use crate::rows::key::LiveKey;
use crate::rows::target::Target;

/// The last key of a slice, or what would stand there: a value for each column of the key, in the
/// order of its [`Slicer`], with its bytes in a Native block.
pub type Bound = Vec<Vec<u8>>;

/// A value of a bound for people to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoundValue {
    Text(Vec<u8>),
    /// Of a number or a time, the digits of [`Scalar::write_text`].
    Digits(String),
}

/// The keys of one partition that are after one bound and not after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    pub partition_id: String,
    pub after: Option<Bound>,
    pub up_to: Option<Bound>,
    /// Rows in it, about.
    pub rows: u64,
}

/// A target table, and the order in which its keys are cut.
#[derive(Debug, Clone)]
pub struct Slicer<'a> {
    target: &'a Target,
    /// All of [`Target::order_by`].
    columns: Vec<usize>,
    /// The table is sorted by these very columns: where to read on is found in its index.
    is_sorted: bool,
}

/// The number of samples per slice: of two thousand slices the largest is then about twice as large
/// as intended.
const SAMPLED_ROWS_PER_SLICE: u64 = 32;
/// A longer text is cut, which still is a good bound. Four such texts in two bounds, each twice and
/// all of it escaped, make 128 KiB; ClickHouse parses at most `max_query_size` (256 KiB by default)
/// of a statement.
const BOUND_BYTES_MAX: usize = 2048;

impl<'a> Slicer<'a> {
    /// By the table's own sorting key, which may be another than ours.
    pub fn new(client: &mut Client, target: &'a Target, deadline: Instant) -> Result<Slicer<'a>> {
        let shape = read_shape(client, &target.table, deadline)?;
        let sorting_key = shape.map(|shape| shape.sorting_key).unwrap_or_default();
        let columns = columns_by(target, &sorting_key);
        let names: Vec<&str> = columns.iter().map(|&at| &*target.columns[at].name).collect();
        let is_sorted = sorting_key == names.join(", ");
        Ok(Slicer { target, columns, is_sorted })
    }

    pub fn partitions(&self, client: &mut Client, deadline: Instant) -> Result<Vec<Partition>> {
        partitions(client, &self.target.table, deadline)
    }

    /// The partition's keys, or those after a bound, cut so that each slice has about `rows_max`
    /// rows; the first `count_max` slices of them, or some more. The last one has an end if others
    /// come after it.
    pub fn slices(
        &self,
        client: &mut Client,
        partition: &Partition,
        after: Option<Bound>,
        (rows_max, count_max): (u64, usize),
        deadline: impl Fn() -> Instant,
    ) -> Result<Vec<Slice>> {
        let (mut slices, mut after) = (Vec::new(), after);
        let rows = rows_max.min(partition.rows);
        let push = |slices: &mut Vec<Slice>, after, up_to| {
            slices.push(Slice { partition_id: partition.id.clone(), after, up_to, rows });
        };
        if self.is_sorted {
            let mut wanted = rows_max.max(1);
            while rows_max < partition.rows && slices.len() < count_max {
                let place = (partition.id.as_str(), after.as_ref());
                let Some(bound) = self.read_on(client, place, wanted, deadline())? else { break };
                if after.as_ref().is_none_or(|after| self.compare(after, &bound).is_lt()) {
                    push(&mut slices, after.replace(bound.clone()), Some(bound));
                    wanted = rows_max.max(1);
                } else {
                    // Texts that are the same as far as a bound goes.
                    wanted = wanted.saturating_mul(2);
                }
            }
            if slices.len() < count_max {
                push(&mut slices, after, None);
            }
            return Ok(slices);
        }
        let bounds = match partition.rows <= rows_max {
            true => Vec::new(),
            false => self.sample(client, &partition.id, after.as_ref(), rows_max, deadline())?,
        };
        for bound in bounds {
            // One key of many versions may have filled several slices.
            if after.as_ref().is_none_or(|after| self.compare(after, &bound).is_lt()) {
                push(&mut slices, after.replace(bound.clone()), Some(bound));
            }
        }
        push(&mut slices, after, None);
        Ok(slices)
    }

    /// The last key of so many rows of the partition that are after a bound; `None` where there are
    /// fewer. ClickHouse reads these in the order of the table and no others.
    fn read_on(
        &self,
        client: &mut Client,
        (partition_id, after): (&str, Option<&Bound>),
        rows: u64,
        deadline: Instant,
    ) -> Result<Option<Bound>> {
        let name = |&at: &usize| quote_name(&self.target.columns[at].name);
        let order: Vec<String> = self.columns.iter().map(name).collect();
        let texts: Vec<String> =
            self.columns.iter().map(|&at| self.text(at, &self.value(at))).collect();
        let sql = format!(
            "SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT 1 OFFSET {}",
            texts.join(", "),
            client.qualified(&self.target.table),
            self.is_in(partition_id, after),
            order.join(", "),
            rows.saturating_sub(1),
        );
        let settings = [("optimize_read_in_order", "1")];
        let mut found = None;
        client.query_each(&sql, &[&self.target.table], &settings, deadline, |row| {
            found = Some(self.bound(row)?);
            Some(())
        })?;
        Ok(found)
    }

    fn scalar(&self, at: usize) -> Scalar {
        self.target.scalar(at)
    }

    fn compare(&self, a: &Bound, b: &Bound) -> Ordering {
        let pairs = self.columns.iter().zip(a.iter().zip(b));
        let mut orders = pairs.map(|(&at, (a, b))| self.scalar(at).compare(a, b));
        orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    }

    /// The part of a bound for one column.
    fn value(&self, at: usize) -> String {
        let name = quote_name(&self.target.columns[at].name);
        match self.scalar(at) {
            Scalar::String => format!("substring(toString({name}), 1, {BOUND_BYTES_MAX})"),
            _ => name,
        }
    }

    /// Its text.
    fn text(&self, at: usize, value: &str) -> String {
        match self.scalar(at) {
            Scalar::String => value.to_owned(),
            scalar => scalar.text_expression(value),
        }
    }

    /// The keys of the slice whose latest row is alive.
    pub fn live_keys(
        &self,
        client: &mut Client,
        slice: &Slice,
        deadline: Instant,
    ) -> Result<Vec<LiveKey>> {
        live_keys_where(client, self.target, &self.condition(slice), deadline)
    }

    /// The keys of the slice whose latest row, of those with such a version, is alive. A later one
    /// may not be.
    pub fn keys_written_between(
        &self,
        client: &mut Client,
        slice: &Slice,
        version_min: u64,
        version_max: u64,
        deadline: Instant,
    ) -> Result<Vec<LiveKey>> {
        let version = quote_name(&self.target.columns[self.target.version].name);
        let condition = format!(
            "{} AND {version} >= {version_min} AND {version} <= {version_max}",
            self.condition(slice)
        );
        live_keys_where(client, self.target, &condition, deadline)
    }

    /// The condition for the rows of the slice, in SQL.
    pub fn condition(&self, slice: &Slice) -> String {
        let mut condition = self.is_in(&slice.partition_id, slice.after.as_ref());
        if let Some(up_to) = &slice.up_to {
            condition.push_str(&format!(" AND NOT ({})", self.is_after(up_to)));
        }
        condition
    }

    fn is_in(&self, partition_id: &str, after: Option<&Bound>) -> String {
        let mut condition = partitions::is_in([partition_id]);
        if let Some(after) = after {
            condition.push_str(&format!(" AND ({})", self.is_after(after)));
        }
        condition
    }

    /// `a > x OR a = x AND (b > y OR b = y AND (c > z))`.
    fn is_after(&self, bound: &Bound) -> String {
        let mut condition = String::new();
        for (&at, value) in self.columns.iter().zip(bound).rev() {
            let name = quote_name(&self.target.columns[at].name);
            let value = self.scalar(at).value_expression(value, quote_bytes);
            let later = match condition.is_empty() {
                true => String::new(),
                false => format!(" OR {name} = {value} AND ({condition})"),
            };
            condition = format!("{name} > {value}{later}");
        }
        condition
    }

    /// Every so many-th row of a sample that ClickHouse has sorted.
    fn sample(
        &self,
        client: &mut Client,
        partition_id: &str,
        after: Option<&Bound>,
        rows_max: u64,
        deadline: Instant,
    ) -> Result<Vec<Bound>> {
        let one_in = (rows_max / SAMPLED_ROWS_PER_SLICE).max(1);
        let per_slice = (rows_max / one_in).max(1);
        let value = |(n, &at): (usize, &usize)| format!("{} AS k{n}", self.value(at));
        let list = |texts: Vec<String>| texts.join(", ");
        let values = list(self.columns.iter().enumerate().map(value).collect());
        let text = |(n, &at): (usize, &usize)| self.text(at, &format!("k{n}"));
        let texts = list(self.columns.iter().enumerate().map(text).collect());
        let order = list((0..self.columns.len()).map(|n| format!("k{n}")).collect());
        let sql = format!(
            "SELECT {texts} FROM (SELECT *, row_number() OVER (ORDER BY {order}) AS place FROM \
             (SELECT {values} FROM {} WHERE {} AND rand64() % {one_in} = 0)) \
             WHERE place % {per_slice} = 0 ORDER BY place",
            client.qualified(&self.target.table),
            self.is_in(partition_id, after),
        );
        let rows = client.query_bytes(&sql, &[&self.target.table], deadline)?.into_iter();
        rows.map(|row| self.bound(row)).collect::<Option<_>>().ok_or_else(|| malformed(self.target))
    }

    fn bound(&self, row: Vec<Option<Vec<u8>>>) -> Option<Bound> {
        let value = |(&at, text): (&usize, Option<Vec<u8>>)| self.scalar(at).parse_text(&text?);
        let is_whole = row.len() == self.columns.len();
        is_whole.then(|| self.columns.iter().zip(row).map(value).collect())?
    }

    /// A bound for people to read, and for another session to go on from.
    pub fn name(&self, bound: &Bound) -> Vec<(String, BoundValue)> {
        let named = |(&at, value): (&usize, &Vec<u8>)| {
            let mut text = Vec::new();
            self.scalar(at).write_text(value, &mut text);
            let value = match (is_text(self.scalar(at)), String::from_utf8(text)) {
                (false, Ok(digits)) => BoundValue::Digits(digits),
                (_, text) => BoundValue::Text(text.map_or_else(|e| e.into_bytes(), Into::into)),
            };
            (self.target.columns[at].name.to_string(), value)
        };
        self.columns.iter().zip(bound).map(named).collect()
    }

    /// `None` when it is of a table with another sorting key, in which other keys are after it.
    pub fn recall(&self, named: &[(String, BoundValue)]) -> Option<Bound> {
        let value = |(&at, (name, value)): (&usize, &(String, BoundValue))| {
            let scalar = self.scalar(at);
            let text = match value {
                BoundValue::Text(text) if is_text(scalar) => text.as_slice(),
                BoundValue::Digits(digits) if !is_text(scalar) => digits.as_bytes(),
                BoundValue::Text(_) | BoundValue::Digits(_) => return None,
            };
            (*self.target.columns[at].name == **name).then(|| scalar.parse_text(text))?
        };
        let is_whole = named.len() == self.columns.len();
        is_whole.then(|| self.columns.iter().zip(named).map(value).collect())?
    }
}

/// The columns of the key: first those by which the table is sorted, as far as they are columns of
/// the key, which is as far as the primary index can be used.
fn columns_by(target: &Target, sorting_key: &str) -> Vec<usize> {
    let place =
        |name: &str| target.order_by.iter().copied().find(|&at| *target.columns[at].name == *name);
    // A single column may stand in parentheses.
    let names = sorting_key.split(", ").map(|name| name.trim_matches(['(', ')']));
    let mut columns: Vec<usize> = names.map_while(place).collect();
    for &at in &target.order_by {
        if !columns.contains(&at) {
            columns.push(at);
        }
    }
    columns
}

fn is_text(scalar: Scalar) -> bool {
    matches!(scalar, Scalar::String | Scalar::Json | Scalar::Uuid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::mapping::Mapping;
    use crate::services::runs::Runs;
    use crate::services::sessions::Sessions;
    use BoundValue::{Digits, Text};

    const RUNS: Runs = Runs { payloads: true, fingerprints: true };

    fn slicer<'a>(target: &'a Target, sorting_key: &str) -> Slicer<'a> {
        Slicer { target, columns: columns_by(target, sorting_key), is_sorted: false }
    }

    fn bound(slicer: &Slicer<'_>, text: &[u8]) -> Bound {
        let value = |&at: &usize| match slicer.scalar(at) {
            Scalar::String => text.to_vec(),
            _ => (-5_i64).to_le_bytes().to_vec(),
        };
        slicer.columns.iter().map(value).collect()
    }

    #[test]
    fn a_slice_is_a_range_written_out_column_by_column() {
        let [runs, payloads] = RUNS.targets() else { panic!("two tables") };
        let payloads = slicer(payloads, "run_id");
        let mut slice = Slice {
            partition_id: "2026'11".to_owned(),
            after: Some(bound(&payloads, b"it's\0")),
            up_to: Some(bound(&payloads, b"z\xff")),
            rows: 1,
        };
        assert_eq!(
            payloads.condition(&slice),
            "_partition_id = '2026\\'11' AND (`run_id` > 'it\\'s\\x00') \
             AND NOT (`run_id` > 'z\\xFF')"
        );
        (slice.after, slice.up_to) = (None, None);
        assert_eq!(payloads.condition(&slice), "_partition_id = '2026\\'11'");
        let runs = slicer(runs, "");
        assert_eq!(
            runs.is_after(&bound(&runs, b"x")),
            "`organization_id` > 'x' OR `organization_id` = 'x' AND (\
             `project_id` > 'x' OR `project_id` = 'x' AND (\
             `environment_id` > 'x' OR `environment_id` = 'x' AND (\
             `created_at` > reinterpret(CAST(-5, 'Int64'), 'DateTime64(3)') OR \
             `created_at` = reinterpret(CAST(-5, 'Int64'), 'DateTime64(3)') AND (`run_id` > 'x'))))"
        );
    }

    #[test]
    fn the_longest_bounds_fit_into_a_statement() {
        for target in RUNS.targets().iter().chain(Sessions.targets()) {
            let slicer = slicer(target, "");
            let longest = Some(bound(&slicer, &[0xff; BOUND_BYTES_MAX]));
            let (after, up_to) = (longest.clone(), longest);
            let slice = Slice { partition_id: "202611".to_owned(), after, up_to, rows: 1 };
            assert!(slicer.condition(&slice).len() < 140 * 1024, "{}", target.table);
        }
    }

    #[test]
    fn keys_are_cut_in_the_order_of_the_table_as_far_as_it_is_ours() {
        let target = &Sessions.targets()[0];
        let names = |sorting_key: &str| {
            let columns = columns_by(target, sorting_key);
            columns.iter().map(|&at| &*target.columns[at].name).collect::<Vec<_>>().join(" ")
        };
        let ours = "organization_id project_id environment_id created_at session_id";
        for (sorting_key, expected) in [
            (ours, ours),
            ("", ours),
            ("toDate(created_at), session_id", ours),
            ("(session_id)", "session_id organization_id project_id environment_id created_at"),
            (
                "session_id, created_at",
                "session_id created_at organization_id project_id environment_id",
            ),
            (
                "created_at, type, session_id",
                "created_at organization_id project_id environment_id session_id",
            ),
        ] {
            assert_eq!(names(sorting_key), expected, "{sorting_key}");
        }
    }

    #[test]
    fn a_bound_of_another_order_is_not_recalled() {
        let [runs, payloads] = RUNS.targets() else { panic!("two tables") };
        let by_time = slicer(runs, "created_at, run_id");
        let (runs, payloads) = (slicer(runs, ""), slicer(payloads, "run_id"));
        let at = bound(&runs, b"x");
        let named = runs.name(&at);
        assert_eq!(
            named[3..],
            [
                ("created_at".to_owned(), Digits("-5".to_owned())),
                ("run_id".to_owned(), Text(b"x".to_vec()))
            ]
        );
        assert_eq!(runs.recall(&named), Some(at));
        assert_eq!((by_time.recall(&named), payloads.recall(&named)), (None, None));
        assert_eq!(payloads.recall(&[("run_id".to_owned(), Digits("1".to_owned()))]), None);
        assert_eq!(payloads.recall(&[]), None);
    }

    #[test]
    fn what_was_sampled_has_to_be_a_key() {
        let [runs, _] = RUNS.targets() else { panic!("two tables") };
        let slicer = slicer(runs, "");
        let row = |ticks: &str| {
            ["o", "p", "e", ticks, "r"].map(|text| Some(text.as_bytes().to_vec())).to_vec()
        };
        assert_eq!(slicer.bound(row("-7")).expect("each column fits")[3], (-7_i64).to_le_bytes());
        assert_eq!(slicer.bound(row("1970-01-01")), None);
        assert_eq!(slicer.bound(row("1")[..4].to_vec()), None);
        assert_eq!(slicer.bound(vec![None; 5]), None);
    }
}
