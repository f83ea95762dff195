//! What ClickHouse has stored is told apart from what would be written: by a repair, for every
//! column of every target table, at the edges of what the columns hold.

use std::time::{Duration, Instant};

use crate::support::clickhouse::DATABASE;
use crate::support::stage::Stage;

/// Keys are cut into slices.
mod slices;

use walhouse::clickhouse::slices::Slicer;
use walhouse::clickhouse::stored::{StoredRow, highest_version, key_of, rows_of};
use walhouse::clickhouse::tables;
use walhouse::clickhouse::{ClickHouseParams, Client};
use walhouse::rows::column::{List, put_nothing};
use walhouse::rows::key::LiveKey;
use walhouse::rows::order::sorted_by;
use walhouse::rows::{
    Block, ColumnSpec, ColumnType, Scalar, Shape, Target, native, stored, tombstone,
};
use walhouse::services::mapping::{Mapping, Stamp};
use walhouse::services::notes::Notes;
use walhouse::services::row::Row;
use walhouse::services::runs::Runs;
use walhouse::services::sessions::Sessions;
use walhouse::services::source::SourceKind;
use walhouse::wal::Datum;

const RUNS: Runs = Runs { payloads: true, fingerprints: true };

const MAPPINGS: [&dyn Mapping; 2] = [&RUNS, &Sessions];

fn connect(stage: &Stage) -> Client {
    let (params, _) = ClickHouseParams::parse(&stage.clickhouse.url(), DATABASE).unwrap();
    Client::connect(&params).unwrap()
}

const SOON: Duration = Duration::from_secs(30);

fn soon() -> Instant {
    Instant::now() + SOON
}

/// Values of each kind; the first three are usual, then it gets strange.
fn values(kind: &SourceKind) -> &'static [&'static str] {
    match kind {
        SourceKind::Text => &[
            "PENDING",
            "second",
            "",
            "it's a \\ \"quote\"\n\t\u{1}",
            "\u{e9}\u{1f980}",
            "{\"a\":{\"b\":[1,null,\"x\"]},\"c.d\":1.50,\"e\":null,\"f\":{},\"g\":1e3}",
            "[1,{\"z\":1,\"y\":null}]",
        ],
        SourceKind::Int => &["1", "2", "0", "255", "7", "-1", "3"],
        SourceKind::Float => &["0.1", "0", "-0", "1e300", "NaN", "Infinity", "5e-324"],
        SourceKind::Bool => &["t", "f"],
        SourceKind::Timestamp => &[
            "2026-11-26 10:00:00.123",
            "1970-01-01 00:00:00",
            "1969-12-31 23:59:59.999",
            "0001-01-01 00:00:00",
            "9999-12-31 23:59:59.999",
            "infinity",
            "2024-02-29 00:00:00.5",
        ],
        SourceKind::Json => &[
            "{\"message\":\"no\",\"n\":12345678901234567890}",
            "{\"a\": 1}",
            "{}",
            "{\"a\":{\"b\":null},\"c\":[[1],[2.5]]}",
            "[\"text\"]",
            "{\"deep\":{\"er\":{\"est\":[{\"x\":1},{\"y\":\"\u{e9}\"}]}}}",
            "\"text\"",
        ],
        SourceKind::Own(own) => panic!("no column of theirs is of {}", own.sql),
        SourceKind::TextArray => &["{}", "{a}", "{\"\",\"b:1\"}", "{\"it's\",\"\\\\\"}"],
    }
}

/// Rows that differ from each other in as many columns as can be.
fn fill(mapping: &dyn Mapping, rows: usize, version: u64) -> Vec<Block> {
    let source = mapping.source();
    let new = |target: &Target| Block::new(&target.columns, shape(target));
    let mut blocks: Vec<Block> = mapping.targets().iter().map(new).collect();
    let stamp = Stamp { version, deleted: false, row: true, first: true };
    for n in 0..rows {
        let id = format!("id ' \\ {n}");
        let mut row = Row::of(source);
        for (place, column) in source.columns.iter().enumerate() {
            let all = values(&column.kind);
            row.values[place] = match &*column.name {
                "id" => Datum::Text(id.as_bytes()),
                "payloadType" | "outputType" => Datum::Text(b"application/json"),
                // Some are null, but none that makes the row belong to nobody.
                "organizationId" | "environmentType" => Datum::Text(b"o'\\"),
                _ if n == rows - 1 && !column.name.ends_with("At") => Datum::Null,
                _ => Datum::Text(all[(n + place) % all.len()].as_bytes()),
            };
        }
        mapping.append(&row, stamp, &mut blocks, &mut Notes::default()).unwrap();
    }
    blocks
}

/// The first rows of the block.
fn write(client: &mut Client, target: &Target, block: &Block, rows: usize) {
    let order: Vec<usize> = (0..rows).collect();
    let mut body = Vec::new();
    native::encode(block, &order, &[], &mut body);
    let names = native::column_names(block);
    client.insert(&target.table, &names, &[], &body, soon()).unwrap();
}

/// Values of a type at the ends of its range, and some between, as bytes.
fn edges(scalar: Scalar) -> Vec<Vec<u8>> {
    let text = |texts: &[&str]| -> Vec<Vec<u8>> {
        texts.iter().map(|text| scalar.parse_text(text.as_bytes()).expect(text)).collect()
    };
    let bits = |floats: &[f64]| floats.iter().map(|float| float.to_le_bytes().to_vec()).collect();
    match scalar {
        Scalar::String | Scalar::Json => text(&["", "it's \\ a\n\u{1}", "\u{e9}", "b", "a"]),
        Scalar::Bool => text(&["0", "1"]),
        Scalar::UInt8 => text(&["0", "255", "7"]),
        Scalar::UInt32 => text(&["0", "4294967295", "7"]),
        Scalar::UInt64 => text(&["0", "18446744073709551615", "7"]),
        Scalar::UInt128 => text(&["0", "340282366920938463463374607431768211455", "7"]),
        Scalar::Int8 => text(&["-128", "127", "0", "-1"]),
        Scalar::Int16 => text(&["-32768", "32767", "0", "-1"]),
        Scalar::Int32 => text(&["-2147483648", "2147483647", "0", "-1"]),
        Scalar::Int64 => text(&["-9223372036854775808", "9223372036854775807", "0", "-1"]),
        Scalar::Float32 => {
            let floats = [0.1_f32, -0.5, f32::MAX, f32::MIN_POSITIVE, f32::INFINITY, 3.0];
            floats.iter().map(|float| float.to_le_bytes().to_vec()).collect()
        }
        Scalar::Float64 => bits(&[0.1, -0.5, f64::MAX, 5e-324, f64::NEG_INFINITY, 3.0]),
        // 1900 and 2299: what every server has.
        Scalar::Date32 => text(&["-25567", "120529", "0", "19000"]),
        Scalar::DateTime64 { precision: 6, .. } => {
            text(&["-2208988800000000", "10413791999999999", "0", "-1"])
        }
        Scalar::DateTime64 { .. } => text(&["-2208988800000", "10413791999999", "0", "-1"]),
        Scalar::Time64 { .. } => text(&["0", "86400000000", "1"]),
        Scalar::Decimal { precision, .. } => {
            let all = "9".repeat(precision.into());
            text(&[&all, &format!("-{all}"), "0", "1", "-1"])
        }
        Scalar::Uuid => text(&[
            "00000000-0000-0000-0000-000000000000",
            "00112233-4455-6677-8899-aabbccddeeff",
            "ffffffff-ffff-ffff-0000-000000000001",
        ]),
    }
}

fn all_scalars() -> Vec<Scalar> {
    use Scalar as S;
    let decimal = |precision, scale| S::Decimal { precision, scale };
    let time = |precision, utc| S::DateTime64 { precision, utc };
    vec![
        S::String,
        S::Bool,
        S::UInt8,
        S::UInt32,
        S::UInt64,
        S::UInt128,
        S::Int8,
        S::Int16,
        S::Int32,
        S::Int64,
        S::Float32,
        S::Float64,
        S::Date32,
        time(3, false),
        time(6, true),
        S::Time64 { precision: 6 },
        decimal(9, 2),
        decimal(18, 18),
        decimal(38, 0),
        decimal(76, 38),
        S::Uuid,
    ]
}

/// A column as a key, as a value that may be NULL, and inside of arrays, maps and tuples.
fn table_of(scalar: Scalar) -> Target {
    let of = ColumnType::Of(scalar);
    let nullable = ColumnType::Nullable(scalar);
    let nested = ColumnType::array(ColumnType::array(nullable.clone()));
    let map = ColumnType::map(ColumnType::Of(Scalar::String), nullable.clone());
    let tuple = ColumnType::tuple(&[
        ("lower", nullable.clone()),
        ("of", ColumnType::array(of.clone())),
        ("bounds", ColumnType::Of(Scalar::String)),
    ]);
    let column = |(name, kind): (&str, ColumnType)| ColumnSpec::new(name, kind);
    let columns = [
        ("a `key` of 1.0", of.clone()),
        ("value", nullable),
        ("several", ColumnType::array(of)),
        ("nested", nested),
        ("map", map),
        ("tuple", tuple.clone()),
        ("tuples", ColumnType::array(tuple)),
        ("_version", ColumnType::Of(Scalar::UInt64)),
        ("_is_deleted", ColumnType::Of(Scalar::UInt8)),
    ];
    Target {
        table: format!("of {}", scalar.name()).into(),
        columns: columns.map(column).into(),
        computed: Vec::new(),
        indexes: Vec::new(),
        order_by: vec![0],
        ttl: None,
        partition_by: Vec::new(),
        documents: Vec::new(),
        optional: Vec::new(),
        id: vec![0],
        version: 7,
        is_deleted: 8,
    }
}

fn put(of: &ColumnType, values: &[Vec<u8>], n: usize, lists: &mut [List]) {
    let end = |lists: &mut [List]| {
        let end = lists[1].len();
        lists[0].put_end(end);
    };
    match of {
        ColumnType::Of(Scalar::String) => lists[0].put_bytes(&values[n % values.len()]),
        ColumnType::Of(scalar) => lists[0].put_bytes(&edges(*scalar)[n % edges(*scalar).len()]),
        ColumnType::Nullable(_) if n % 4 == 3 => put_nothing(of, lists),
        ColumnType::Nullable(scalar) => {
            lists[0].put([0]);
            put(&ColumnType::Of(*scalar), values, n, &mut lists[1..]);
        }
        ColumnType::Array(of) => {
            (0..n % 4).for_each(|item| put(of, values, n + item, &mut lists[1..]));
            end(lists);
        }
        ColumnType::Map(of) => {
            for item in 0..n % 3 {
                let key = format!("it's {item}").into_bytes();
                put(&of.0, &[key], 0, &mut lists[1..2]);
                put(&of.1, values, n + item, &mut lists[2..]);
            }
            end(lists);
        }
        ColumnType::Tuple(elements) => {
            let mut rest = lists;
            for (_, of) in elements.iter() {
                let (own, others) = rest.split_at_mut(of.lists());
                put(of, values, n, own);
                rest = others;
            }
        }
    }
}

/// Goal: a repair and a verification tell apart what a table of any types holds, and find it by its
/// key, whatever that is of.
#[test]
fn each_type_is_read_back_as_it_was_written() {
    let stage = Stage::take();
    let mut client = connect(&stage);
    for scalar in all_scalars() {
        let target = table_of(scalar);
        let values = edges(scalar);
        let mut block = Block::new(&target.columns, &Shape::of(vec![true; target.columns.len()]));
        for n in 0..values.len() {
            for at in 0..target.columns.len() {
                let (kind, lists) = block.next_column();
                match at {
                    7 => lists[0].put(5_u64.to_le_bytes()),
                    8 => lists[0].put([0]),
                    _ => put(kind, &values, n, lists),
                }
            }
            block.end_row();
        }
        tables::ensure(&mut client, &target, true, soon()).unwrap();
        write(&mut client, &target, &block, block.rows());
        let found = rows_of(&mut client, &target, &block, soon).unwrap();
        assert_eq!(found.len(), block.rows(), "{scalar:?}");
        for row in 0..block.rows() {
            let there = &found[&key_of(&target, &block, row)];
            assert_eq!(differing(&target, &block, row, there), [""; 0], "{scalar:?} {row}");
            let other = (row + 1) % block.rows();
            assert_ne!(differing(&target, &block, other, there), [""; 0], "{scalar:?} {row}");
        }
        // In its order, in slices of a row.
        let slicer = Slicer::new(&mut client, &target, soon()).unwrap();
        let mut keys = Vec::new();
        for partition in slicer.partitions(&mut client, soon()).unwrap() {
            let slices = slicer.slices(&mut client, &partition, None, (1, 100), soon).unwrap();
            assert!(block.rows() <= slices.len(), "{scalar:?} {}", slices.len());
            for slice in slices {
                let live = slicer.live_keys(&mut client, &slice, soon()).unwrap();
                keys.extend(live.into_iter().map(|live| live.key));
            }
        }
        let order = sorted_by(&block, &target.order_by);
        let expected: Vec<_> = order.iter().map(|row| key_of(&target, &block, *row)).collect();
        assert_eq!(keys, expected, "{scalar:?}");
    }
}

fn differing(target: &Target, block: &Block, row: usize, found: &StoredRow) -> Vec<String> {
    let same = |(column, value): (usize, &Option<Vec<u8>>)| {
        let is_same = stored::is_same(block, column, row, value.as_deref());
        (!is_same).then(|| target.columns[column].name.to_string())
    };
    block.sent().zip(&found.values).filter_map(same).collect()
}

#[test]
fn what_was_written_is_the_same_and_every_other_value_another() {
    let stage = Stage::take();
    let mut client = connect(&stage);
    for mapping in MAPPINGS {
        let blocks = fill(mapping, 15, 5);
        for (target, block) in mapping.targets().iter().zip(&blocks) {
            tables::ensure(&mut client, target, true, soon()).unwrap();
            assert!(rows_of(&mut client, target, block, soon).unwrap().is_empty());
            write(&mut client, target, block, block.rows());
            let found = rows_of(&mut client, target, block, soon).unwrap();
            assert_eq!(found.len(), block.rows(), "{}", target.table);
            for row in 0..block.rows() {
                let stored = &found[&key_of(target, block, row)];
                assert_eq!((stored.version, stored.is_deleted), (5, false));
                let table = &target.table;
                assert_eq!(differing(target, block, row, stored), [""; 0], "{table} {row}");
                // Against the row of another key all is another that is not equal by chance.
                let next = (row + 1) % block.rows();
                let other = differing(target, block, next, stored);
                let equal = |column: &usize| {
                    let spec = &target.columns[*column];
                    !other.iter().any(|name| **name == *spec.name)
                };
                for column in block.sent().filter(equal) {
                    let (a, b) =
                        (stored::text(block, column, row), stored::text(block, column, next));
                    let document = target.documents.contains(&column);
                    assert!(a == b || document, "{table}: {a:?} passes for {b:?}");
                }
            }
            // A newer version, and a tombstone, are what is found then.
            let newer = &fill(mapping, 15, 9)[usize::from(target.order_by.len() == 1)];
            write(&mut client, target, newer, 3);
            assert_eq!(
                highest_version(&mut client, target, shape(target), SOON, || Ok(())).unwrap(),
                9
            );
            let live = all_live(&mut client, target);
            assert_eq!(live.len(), block.rows());
            assert_eq!(live.iter().filter(|key| 5 < key.version).count(), 3);
            let mut graves = Block::new(&target.columns, shape(target));
            for live in &live {
                tombstone::append(target, &mut graves, live, 10);
            }
            write(&mut client, target, &graves, graves.rows());
            assert!(all_live(&mut client, target).is_empty());
            let found = rows_of(&mut client, target, block, soon).unwrap();
            assert!(found.values().all(|row| row.is_deleted && row.version == 10));
            assert_eq!(stage.clickhouse.count(&target.table, "1"), 0, "{}", target.table);
        }
    }
}

/// What a column of type JSON gives back otherwise than it was written.
const DOCUMENTS: &[&str] = &[
    "-0",
    "-0.0",
    "[-0,1.5]",
    "{\"x\":-1e19}",
    "{\"x\":1e19,\"y\":1.8446744073709552e19}",
    "[9223372036854775807,9223372036854775808,18446744073709551615]",
    "[-9223372036854775808,-9223372036854775809,18446744073709551616]",
    "[18446744073709551615,-1,1.5]",
    "[18446744073709551615.0,-9223372036854775808.0,9007199254740992.5]",
    "[[9007199254740993],[null],[1.5]]",
    "[[9007199254740993,1.5],\"s\",true]",
    "[{\"a\":9007199254740993},1.5,9007199254740993]",
    "[1e-400,4.9e-324,1.7976931348623157e308,1e309,-1e309]",
    "[1E+5,1e5,0.1e1,-1.0e-0,123456789.123456789]",
    "[1e400,\"1e400\"]",
    "{\"a\":{\"b\":{}},\"c\":[{\"d\":null}],\"e\":[[],[{}]],\"f\":[null]}",
    "{\"a.b\":1,\"a\":{\"c\":2},\".\":1,\"x.\":2,\".y\":3,\"p..q\":4}",
    "{\"a\":1,\"a\":2,\"\\u0062\":1,\"b\":2,\"\":{\"\":1}}",
    "{\"at\":\"2024-01-01T10:00:00Z\",\"on\":\"2024-01-01\",\"n\":\"1e5\",\"t\":\"true\"}",
    "\"a\\/b\\u00e9\\ud83d\\ude00\\u0000\"",
];

/// Numbers, texts and names of that kind in containers, as chance has it.
fn random_document(random: &mut fastrand::Rng, depth: u32) -> String {
    const LEAVES: &[&str] = &[
        "-0",
        "0",
        "-0.0",
        "1",
        "1.5",
        "1e19",
        "-1e19",
        "9007199254740993",
        "18446744073709551615",
        "-9223372036854775808",
        "1e300",
        "5e-324",
        "1e-7",
        "true",
        "false",
        "\"s\"",
        "\"2024-01-01\"",
        "\"\"",
        "12345678901234567890.5",
    ];
    const NAMES: &[&str] = &["a", "b", "a.b", "", "c\\u00e9", "d "];
    let count = random.usize(..4);
    match random.u32(..if depth == 0 { 1 } else { 4 }) {
        1 => {
            let mut values = (0..count).map(|_| random_document(random, depth - 1));
            format!("[{}]", values.by_ref().collect::<Vec<_>>().join(","))
        }
        2 => {
            let members = (0..count).map(|at| {
                let name = NAMES[(at + random.usize(..3)) % NAMES.len()];
                format!("\"{name}\":{}", random_document(random, depth - 1))
            });
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        _ => LEAVES[random.usize(..LEAVES.len())].to_owned(),
    }
}

/// Goal: a document that ClickHouse has as it can have it is no difference, for ever, to `verify` and
/// to every repair.
#[test]
fn documents_are_compared_as_they_are_kept() {
    let stage = Stage::take();
    let mut client = connect(&stage);
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut documents: Vec<String> = DOCUMENTS.iter().map(|text| (*text).to_owned()).collect();
    documents.extend((0..500).map(|_| random_document(&mut random, 3)));
    let target = &RUNS.targets()[0];
    tables::ensure(&mut client, target, true, soon()).unwrap();
    let new = |target: &Target| Block::new(&target.columns, shape(target));
    let mut blocks: Vec<Block> = RUNS.targets().iter().map(new).collect();
    let stamp = Stamp { version: 5, deleted: false, row: true, first: true };
    for (n, document) in documents.iter().enumerate() {
        let id = format!("r{n}");
        let mut row = Row::of(RUNS.source());
        for (place, column) in RUNS.source().columns.iter().enumerate() {
            row.values[place] = match &*column.name {
                "id" => Datum::Text(id.as_bytes()),
                "outputType" => Datum::Text(b"application/json"),
                "output" => Datum::Text(document.as_bytes()),
                _ => Datum::Text(values(&column.kind)[0].as_bytes()),
            };
        }
        RUNS.append(&row, stamp, &mut blocks, &mut Notes::default()).unwrap();
    }
    write(&mut client, target, &blocks[0], documents.len());
    let found = rows_of(&mut client, target, &blocks[0], soon).unwrap();
    for (row, document) in documents.iter().enumerate() {
        let stored = &found[&key_of(target, &blocks[0], row)];
        let differing = differing(target, &blocks[0], row, stored);
        let at = target.documents.first().expect("it has documents");
        let sent = blocks[0].sent().position(|column| column == *at).expect("they are sent");
        let kept = stored.values[sent].as_deref().map(String::from_utf8_lossy);
        assert_eq!(differing, [""; 0], "seed {seed}: {document} is kept as {kept:?}");
    }
}

/// Of the table as it is made.
fn shape(target: &Target) -> &'static Shape {
    let own = |&at: &usize| (at, target.columns[at].ddl.to_string());
    let documents = target.documents.iter().map(own).collect();
    let whole = Shape::of(vec![true; target.columns.len()]);
    Box::leak(Box::new(Shape { documents, ..whole }))
}

/// By slices of a few rows.
fn all_live(client: &mut Client, target: &Target) -> Vec<LiveKey> {
    let slicer = Slicer::new(client, target, soon()).unwrap();
    let mut slices = Vec::new();
    for partition in slicer.partitions(client, soon()).unwrap() {
        slices.extend(slicer.slices(client, &partition, None, (4, 1_000), soon).unwrap());
    }
    assert!(1 < slices.len(), "{slices:?}");
    let live = slices.iter().flat_map(|slice| slicer.live_keys(client, slice, soon()).unwrap());
    live.collect()
}

/// As much as a user's profile may have read at once, if it is told so.
const ROWS: u64 = 400_000;

fn fill_two_months(stage: &Stage, client: &mut Client) -> &'static Target {
    let [runs, _] = MAPPINGS[0].targets() else { panic!("two tables") };
    tables::ensure(client, runs, true, soon()).unwrap();
    stage.clickhouse.execute(&format!(
        "INSERT INTO trigger_dev.task_runs_v2 (organization_id, project_id, environment_id, run_id, \
         created_at, _version) SELECT 'o' || number % 7, 'p', 'e', toString(number), \
         toDateTime64('2026-01-01 00:00:00', 3, 'UTC') + number * 10, number FROM numbers({ROWS})"
    ));
    runs
}

/// Goal: a start that has to know the highest version gets it at any size of the table.
#[test]
fn the_highest_version_is_found_where_the_table_cannot_be_read_at_once() {
    let stage = Stage::own();
    let mut client = connect(&stage);
    let runs = fill_two_months(&stage, &mut client);
    stage.clickhouse.set_profile("max_rows_to_read=300000");
    let highest = highest_version(&mut client, runs, shape(runs), SOON, || Ok(())).unwrap();
    assert_eq!(highest, ROWS - 1);
}

/// Goal: to plan a slice costs a slice, not the partition.
#[test]
fn slices_are_planned_without_reading_the_partition() {
    let stage = Stage::own();
    let mut client = connect(&stage);
    let runs = fill_two_months(&stage, &mut client);
    let slicer = Slicer::new(&mut client, runs, soon()).unwrap();
    let partitions = slicer.partitions(&mut client, soon()).unwrap();
    let largest = partitions.iter().max_by_key(|partition| partition.rows).unwrap();
    assert!(200_000 < largest.rows, "{partitions:?}");
    let read = |stage: &Stage| -> u64 {
        let events = "SELECT value FROM system.events WHERE event = 'SelectedRows'";
        stage.clickhouse.value(events).parse().unwrap()
    };
    let before = read(&stage);
    let slices = slicer.slices(&mut client, largest, None, (2_000, 3), soon).unwrap();
    let rows = read(&stage) - before;
    assert_eq!(slices.len(), 3);
    assert!(slices[2].up_to.is_some(), "others come after it");
    assert!(rows < largest.rows / 2, "{rows} of {} rows were read", largest.rows);
}
