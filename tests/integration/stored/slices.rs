//! Every key of a table falls into one slice, all its versions together, and the primary index
//! finds a slice: for the tables as we make them, and as somebody else may have made them.

use std::collections::BTreeMap;

use super::*;
use crate::support::clickhouse::DATABASE;

use walhouse::clickhouse::partitions::Partition;
use walhouse::clickhouse::slices::{Slice, Slicer};
use walhouse::rows::key::Key;

/// Many slices, of a sample that is not everything.
const ROWS_MAX: u64 = 150;
const IDS: usize = 1_000;

const TEXTS: [&[u8]; 9] =
    [b"o", b"o'", b"o\\", b"o\\'x", b"\0", "\u{e9}".as_bytes(), b"o\n\t", b"\x7f", b"\xff\xfe\0'"];

/// A row's key and version.
type Live = (Key, u64);

struct Table {
    target: &'static Target,
    mapping: &'static dyn Mapping,
    shape: Shape,
    /// Its primary index finds a slice.
    is_indexed: bool,
}

impl Table {
    fn create(&self, client: &mut Client, definition: &str) {
        let table = format!("{DATABASE}.{}", self.target.table);
        for sql in [
            &format!("CREATE DATABASE IF NOT EXISTS {DATABASE}"),
            &format!("DROP TABLE IF EXISTS {table} SYNC"),
            // A small table has many granules then.
            &format!("{definition} SETTINGS index_granularity = 16"),
            // Each insert stays a part of its own.
            &format!("SYSTEM STOP MERGES {table}"),
        ] {
            client.execute(sql, soon()).unwrap();
        }
    }

    /// One row for each of the ids in `which`, with a key that is the same each time.
    fn write(
        &self,
        client: &mut Client,
        which: impl Iterator<Item = usize>,
        (version, deleted): (u64, bool),
        expected: &mut BTreeMap<Key, Option<u64>>,
    ) {
        let source = self.mapping.source();
        let stamp = Stamp { version, deleted, row: true, first: true };
        let targets = self.mapping.targets();
        let at = targets.iter().position(|target| target.table == self.target.table).unwrap();
        let mut blocks: Vec<Block> =
            targets.iter().map(|target| Block::new(&target.columns, shape(target))).collect();
        blocks[at] = Block::new(&self.target.columns, &self.shape);
        for n in which {
            let text = |step: usize| TEXTS[(n / step) % TEXTS.len()];
            let mut id = text(1).to_vec();
            if n % 40 == 9 {
                // Longer than a bound is.
                id = vec![0xff; 3_000];
            }
            id.extend_from_slice(n.to_string().as_bytes());
            let millis = format!("2026-11-{:02} 10:00:00.{:03}", n % 27 + 1, n % 7);
            let created_at = match n % 50 {
                0 => "1969-12-31 23:59:59.999",
                1 => "9999-12-31 23:59:59.999",
                2 => "0001-01-01 00:00:00",
                _ => &millis,
            };
            let mut row = Row::of(source);
            for (place, column) in source.columns.iter().enumerate() {
                row.values[place] = match column.kind {
                    SourceKind::Text => Datum::Text(b"x"),
                    _ => Datum::Null,
                };
            }
            row.values[source.key[0]] = Datum::Text(&id);
            let sorting = [text(7), text(63), text(3), created_at.as_bytes()];
            for (&place, value) in source.sorting.iter().zip(sorting) {
                row.values[place] = Datum::Text(value);
            }
            self.mapping.append(&row, stamp, &mut blocks, &mut Notes::default()).unwrap();
        }
        let block = &blocks[at];
        let order: Vec<usize> = (0..block.rows()).collect();
        let mut body = Vec::new();
        native::encode(block, &order, &[], &mut body);
        let names = native::column_names(block);
        // Rows of one key in one block stay several.
        let settings = [("optimize_on_insert", "0")];
        client.insert(&self.target.table, &names, &settings, &body, soon()).unwrap();
        for row in order {
            expected.insert(key_of(self.target, block, row), (!deleted).then_some(version));
        }
    }

    /// Several versions of most keys, tombstones, and a key of very many versions.
    fn fill(&self, client: &mut Client) -> Vec<Live> {
        let mut expected = BTreeMap::new();
        self.write(client, 0..IDS, (5, false), &mut expected);
        self.write(client, (0..IDS).filter(|n| n % 3 != 0), (6, false), &mut expected);
        self.write(client, (0..IDS).filter(|n| n % 5 == 0), (7, true), &mut expected);
        self.write(client, std::iter::repeat_n(44, 500), (8, false), &mut expected);
        let live = expected.into_iter().filter_map(|(key, version)| Some((key, version?)));
        live.collect()
    }

    fn check(&self, client: &mut Client) {
        let expected = self.fill(client);
        let slicer = Slicer::new(client, self.target, soon()).unwrap();
        let partitions = slicer.partitions(client, soon()).unwrap();
        let mut found = Vec::new();
        for partition in &partitions {
            let slices = slicer.slices(client, partition, None, (ROWS_MAX, 10_000), soon).unwrap();
            let keys: Vec<Vec<Live>> =
                slices.iter().map(|slice| live(client, &slicer, slice)).collect();
            self.check_resumes(client, &slicer, (partition, &slices), &keys);
            if self.is_indexed {
                self.check_granules(client, &slicer, partition, &slices);
            }
            let most = keys.iter().map(Vec::len).max().unwrap_or(0);
            assert!(most as u64 <= 3 * ROWS_MAX, "{most} keys at once");
            found.extend(keys.into_iter().flatten());
        }
        found.sort();
        let table = &self.target.table;
        assert_eq!(found.len(), expected.len(), "{table}");
        assert!(found == expected, "{table}: every key is in one slice");
    }

    /// From any bound on, what is left is what the slices behind it have.
    fn check_resumes(
        &self,
        client: &mut Client,
        slicer: &Slicer<'_>,
        (partition, slices): (&Partition, &[Slice]),
        keys: &[Vec<Live>],
    ) {
        for done in [1, slices.len() / 2] {
            let Some(up_to) = slices[..done].last().and_then(|last| last.up_to.as_ref()) else {
                continue;
            };
            let named = slicer.name(up_to);
            let after = slicer.recall(&named);
            assert_eq!(after.as_ref(), Some(up_to));
            let rest = slicer.slices(client, partition, after, (ROWS_MAX, 10_000), soon).unwrap();
            let mut rest: Vec<Live> =
                rest.iter().flat_map(|slice| live(client, slicer, slice)).collect();
            let mut expected: Vec<Live> = keys[done..].iter().flatten().cloned().collect();
            rest.sort();
            expected.sort();
            assert!(rest == expected, "{}: behind {named:?}", self.target.table);
        }
    }

    /// Each slice reads its range; the granules in which two of them meet are read by both.
    fn check_granules(
        &self,
        client: &mut Client,
        slicer: &Slicer<'_>,
        partition: &Partition,
        slices: &[Slice],
    ) {
        let sql = format!(
            "SELECT toString(sum(marks)), toString(count()) FROM system.parts WHERE active \
             AND database = '{DATABASE}' AND table = '{}' AND partition_id = '{}'",
            self.target.table, partition.id
        );
        let rows = client.query(&sql, &[], soon()).unwrap();
        let number = |column: usize| rows[0][column].as_ref().unwrap().parse::<usize>().unwrap();
        let (granules, parts) = (number(0), number(1));
        let mut read = 0;
        for slice in slices {
            let sql = format!(
                "EXPLAIN indexes = 1 SELECT _version FROM {DATABASE}.{} WHERE {}",
                self.target.table,
                slicer.condition(slice)
            );
            // It shows the bounds as they are.
            let lines = client.query_bytes(&sql, &[], soon()).unwrap();
            let of_slice = lines.iter().rev().find_map(|line| {
                let line = std::str::from_utf8(line[0].as_ref()?).ok()?;
                line.split_once("Granules: ")?.1.split('/').next()?.parse::<usize>().ok()
            });
            read += of_slice.unwrap_or_else(|| panic!("{lines:?}"));
        }
        let table = &self.target.table;
        let count = slices.len();
        let told = format!("{table}: {count} slices read {read} granules of {granules}");
        assert!(read <= granules + 2 * parts * count, "{told}");
        if 1_500 < partition.rows {
            assert!(8 < count && read < granules * count / 4, "{told}");
        }
    }
}

fn live(client: &mut Client, slicer: &Slicer<'_>, slice: &Slice) -> Vec<Live> {
    let keys = slicer.live_keys(client, slice, soon()).unwrap();
    keys.into_iter().map(|live| (live.key, live.version)).collect()
}

#[test]
fn every_key_is_in_one_slice_that_the_primary_index_finds() {
    let stage = Stage::take();
    let mut client = connect(&stage);
    for mapping in MAPPINGS {
        for target in mapping.targets() {
            let table = Table { target, mapping, shape: shape(target).clone(), is_indexed: true };
            let ddl = tables::ddl(&client, target);
            table.create(&mut client, &ddl);
            table.check(&mut client);
        }
    }
}

/// Sorted and partitioned otherwise, or not at all, and with other types.
#[test]
fn tables_of_somebody_else_are_cut_by_their_own_key() {
    let stage = Stage::take();
    let mut client = connect(&stage);
    let target = &Sessions.targets()[0];
    let columns = "organization_id LowCardinality(String), project_id String,
        environment_id LowCardinality(String), session_id String, created_at DateTime64(6),
        _version UInt64, _is_deleted UInt8";
    let is_there = |spec: &walhouse::rows::ColumnSpec| columns.contains(&*spec.name);
    let present: Vec<bool> = target.columns.iter().map(is_there).collect();
    for (is_indexed, order) in [
        (true, "ORDER BY (created_at, session_id, organization_id)"),
        (true, "PARTITION BY cityHash64(session_id) % 2 ORDER BY (session_id)"),
        (
            true,
            "PRIMARY KEY (organization_id, created_at)
             ORDER BY (organization_id, created_at, session_id, environment_id)",
        ),
        (false, "ORDER BY (toDate(created_at), session_id)"),
        (false, "ORDER BY tuple()"),
    ] {
        let shape = Shape::of(present.clone());
        let table = Table { target, mapping: &Sessions, shape, is_indexed };
        let engine = "ReplacingMergeTree(_version, _is_deleted)";
        let name = &target.table;
        let sql = format!("CREATE TABLE {DATABASE}.{name} ({columns}) ENGINE = {engine} {order}");
        table.create(&mut client, &sql);
        table.check(&mut client);
    }
}
