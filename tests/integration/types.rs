//! Values of every type, from Postgres to ClickHouse: what the one prints is what the other prints.
//!
//! Each type has a column, with the edges of its values and then random ones. The binary and the
//! text form of each value are the same bytes; inserted, they read as what Postgres says, or as
//! the type's rule has it (`Column::postgres` and `Column::clickhouse`): decimals without the zeros
//! at their end, moments with six digits, floats as numbers, parts of values one by one. What does
//! not fit is reported as Postgres prints it.
//!
//! `WALHOUSE_TYPES_ROWS` are the random rows (default 60), `WALHOUSE_TYPES_SEED` makes a run again.

use std::io::Read;
use std::time::{Duration, Instant};

use postgres::Client;
use serde_json::Value;

use crate::support::clickhouse::DATABASE;
use crate::support::database::rows;
use crate::support::stage::Stage;

/// Literals of every type.
mod literals;

use literals::{Column, columns};
use walhouse::clickhouse::{ClickHouseParams, Client as ClickhouseClient};
use walhouse::postgres::PostgresParams;
use walhouse::postgres::source_table::{SourceTable, TableName};
use walhouse::postgres::sql::Sql;
use walhouse::rows::column::lists_of;
use walhouse::rows::{Block, ColumnSpec, ColumnType, Scalar, Shape, native};
use walhouse::services::types::{ColumnPlan, column_of, is_binary};
use walhouse::services::values::how::ServerTypes;
use walhouse::services::values::unfit::Unfit;
use walhouse::services::values::{canonical_key, postgres_literal, put};
use walhouse::wal::Datum;
use walhouse::wal::pg_type::PgType;
use walhouse::wal::wire::Wire;

/// What the sessions of walhouse set: see `any table`, 2.1.
const SESSION: &str = "SET DateStyle = ISO; SET IntervalStyle = iso_8601; SET TimeZone = UTC; \
     SET extra_float_digits = 3; SET bytea_output = hex; SET lc_monetary = 'C'; \
     SET search_path = ''";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

struct Table {
    columns: Vec<Column>,
    plans: Vec<ColumnPlan>,
    /// As keys, where a type can be one.
    keys: Vec<ColumnPlan>,
    /// By column: it is asked for in its binary form.
    binary: Vec<bool>,
}

impl Table {
    fn make(stage: &Stage, client: &mut Client, server: &ServerTypes) -> Table {
        let columns = columns(client);
        let defined: Vec<String> =
            columns.iter().enumerate().map(|(at, column)| format!("c{at} {}", column.of)).collect();
        let sql = format!("CREATE TABLE public.every (id int PRIMARY KEY, {})", defined.join(", "));
        client.batch_execute(&sql).unwrap();
        let (params, _) = PostgresParams::parse(&stage.postgres.url()).unwrap();
        let soon = Instant::now() + Duration::from_secs(20);
        let mut sql = Sql::connect(&params, "walhouse-tests", soon).unwrap();
        let name = TableName::new("public", "every");
        let described = SourceTable::inspect(&mut sql, &name, soon).unwrap().columns.split_off(1);
        let plan = |is_key: bool| -> Vec<ColumnPlan> {
            let of = described.iter();
            of.map(|of| column_of(&of.pg_type, is_key, of.dimensions, is_key, server)).collect()
        };
        let is_sent = |of: &PgType| of.has_send && is_binary(of);
        let binary = described.iter().map(|column| is_sent(&column.pg_type)).collect();
        Table { plans: plan(false), keys: plan(true), binary, columns }
    }

    fn fill(&self, client: &mut Client, random: u64, rng: &mut fastrand::Rng) -> usize {
        let edges = self.columns.iter().map(|column| column.edges.len()).max().unwrap_or_default();
        let count = edges + random as usize + 1;
        for id in 0..count {
            let values: Vec<String> = self
                .columns
                .iter()
                .map(|column| match column.edges.get(id) {
                    _ if id == count - 1 => "NULL".to_owned(),
                    Some(edge) => quoted(edge),
                    None if rng.u8(..20) == 0 => "NULL".to_owned(),
                    None => quoted(&(column.random)(rng)),
                })
                .collect();
            let sql = format!("INSERT INTO public.every VALUES ({id}, {})", values.join(", "));
            client.batch_execute(&sql).unwrap_or_else(|error| {
                panic!("{error:?}\n{sql}");
            });
        }
        count
    }

    /// The fields of each row in the order of ids, of columns that have no binary form as text.
    fn binary_rows(&self, client: &mut Client) -> Vec<Vec<Option<Vec<u8>>>> {
        let list: Vec<String> = (self.binary.iter().enumerate())
            .map(|(at, binary)| match binary {
                true => format!("c{at}"),
                false => {
                    format!("CASE WHEN c{at} IS DISTINCT FROM NULL THEN format('%s', c{at}) END")
                }
            })
            .collect();
        let sql = format!(
            "COPY (SELECT {} FROM public.every ORDER BY id) TO STDOUT (FORMAT binary)",
            list.join(", ")
        );
        let mut bytes = Vec::new();
        client.copy_out(&sql).unwrap().read_to_end(&mut bytes).unwrap();
        let mut wire = Wire::new(&bytes);
        wire.take(19, "head").unwrap();
        let mut rows = Vec::new();
        loop {
            let fields = wire.take_u16("fields").unwrap();
            if fields == u16::MAX {
                return rows;
            }
            let field = |_| match wire.take_i32("length").unwrap() {
                -1 => None,
                length => Some(wire.take(length as usize, "field").unwrap().to_vec()),
            };
            rows.push((0..fields).map(field).collect());
        }
    }

    fn text_rows(&self, client: &mut Client) -> Vec<Vec<Option<String>>> {
        let list: Vec<String> = (0..self.columns.len()).map(|at| format!("c{at}")).collect();
        rows(client, &format!("SELECT {} FROM public.every ORDER BY id", list.join(", ")))
    }

    /// What ClickHouse is to answer, as JSON.
    fn expected_rows(&self, client: &mut Client) -> Vec<Vec<Option<String>>> {
        let list: Vec<String> = (self.columns.iter().enumerate())
            .map(|(at, column)| {
                let name = format!("c{at}");
                let expression = column.postgres.replace("$", &name);
                format!("CASE WHEN {name} IS DISTINCT FROM NULL THEN to_jsonb({expression}) END")
            })
            .collect();
        rows(client, &format!("SELECT {} FROM public.every ORDER BY id", list.join(", ")))
    }
}

fn quoted(literal: &str) -> String {
    format!("'{}'", literal.replace('\'', "''"))
}

fn datum(is_binary: bool, bytes: Option<&[u8]>) -> Datum<'_> {
    match bytes {
        None => Datum::Null,
        Some(bytes) if is_binary => Datum::Binary(bytes),
        Some(bytes) => Datum::Text(bytes),
    }
}

/// The bytes of one value, what was reported of it, and what it is as a key.
fn decoded(plan: &ColumnPlan, datum: Datum<'_>) -> (String, Option<String>) {
    let mut lists = lists_of(&plan.kind);
    let mut unfit = Unfit::default();
    put(&plan.how, datum, &mut lists, &mut unfit)
        .unwrap_or_else(|error| panic!("{:?} {datum:?}: {error}", plan.how));
    let original = unfit.take().map(|(_, text)| String::from_utf8_lossy(&text).into_owned());
    (format!("{lists:?}"), original)
}

#[test]
fn every_value_is_what_postgres_prints() {
    let seed = number("WALHOUSE_TYPES_SEED", fastrand::u64(..));
    println!("WALHOUSE_TYPES_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let stage = Stage::take();
    let mut client = stage.postgres.client();
    client.batch_execute(SESSION).unwrap();
    let [date, moment, time] =
        <[Value; 3]>::try_from(stage.clickhouse.rows(ServerTypes::PROBE).remove(0)).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let server = ServerTypes::of_probe(&text(&date), &text(&moment), &text(&time));
    let table = Table::make(&stage, &mut client, &server);
    let count = table.fill(&mut client, number("WALHOUSE_TYPES_ROWS", 60), &mut rng);

    let (binary, texts) = (table.binary_rows(&mut client), table.text_rows(&mut client));
    assert_eq!((binary.len(), texts.len()), (count, count));
    let specs: Vec<ColumnSpec> = std::iter::once(("id".to_owned(), ColumnType::Of(Scalar::Int32)))
        .chain(
            table.plans.iter().enumerate().map(|(at, plan)| (format!("c{at}"), plan.kind.clone())),
        )
        .map(|(name, kind)| ColumnSpec::new(&name, kind))
        .collect();
    let mut block = Block::new(&specs.into(), &Shape::of(vec![true; table.plans.len() + 1]));
    let mut has_fitted = vec![vec![true; table.plans.len()]; count];
    for (id, (binary, texts)) in binary.iter().zip(&texts).enumerate() {
        block.next_column().1[0].put((id as i32).to_le_bytes());
        for (at, plan) in table.plans.iter().enumerate() {
            let column = &table.columns[at];
            let of_binary = datum(table.binary[at], binary[at].as_deref());
            let of_text = datum(false, texts[at].as_deref().map(str::as_bytes));
            let (value, original) = decoded(plan, of_binary);
            let shown = texts[at].as_deref();
            assert_eq!(
                (value, original.clone()),
                decoded(plan, of_text),
                "{} {shown:?}",
                column.of
            );
            if let Some(original) = original {
                assert_eq!(Some(&*original), shown, "{}", column.of);
                has_fitted[id][at] = false;
            }
            let (_, lists) = block.next_column();
            put(&plan.how, of_binary, lists, &mut Unfit::default()).unwrap();
        }
        block.end_row();
    }
    insert_and_compare(&stage, &table, &mut client, &block, &has_fitted);
}

fn insert_and_compare(
    stage: &Stage,
    table: &Table,
    client: &mut Client,
    block: &Block,
    has_fitted: &[Vec<bool>],
) {
    let defined: Vec<String> =
        table.plans.iter().enumerate().map(|(at, plan)| format!("c{at} {}", plan.ddl)).collect();
    stage.clickhouse.execute(&format!("CREATE DATABASE IF NOT EXISTS {DATABASE}"));
    stage.clickhouse.execute(&format!(
        "CREATE TABLE {DATABASE}.every (id Int32, {}) ENGINE = MergeTree ORDER BY id",
        defined.join(", ")
    ));
    let (params, _) = ClickHouseParams::parse(&stage.clickhouse.url(), DATABASE).unwrap();
    let mut clickhouse = ClickhouseClient::connect(&params).unwrap();
    let order: Vec<usize> = (0..block.rows()).collect();
    let mut body = Vec::new();
    native::encode(block, &order, &[], &mut body);
    let deadline = Instant::now() + Duration::from_secs(60);
    clickhouse.insert("every", &native::column_names(block), &[], &body, deadline).unwrap();

    let expected = table.expected_rows(client);
    let asked: Vec<String> = (table.columns.iter().enumerate())
        .map(|(at, column)| column.clickhouse.replace('$', &format!("c{at}")))
        .collect();
    let found = stage.clickhouse.rows(&format!(
        "SELECT {} FROM {DATABASE}.every ORDER BY id SETTINGS \
         output_format_json_quote_64bit_integers = 1, output_format_json_quote_denormals = 1, \
         output_format_json_quote_decimals = 1, output_format_json_named_tuples_as_objects = 0",
        asked.join(", ")
    ));
    assert_eq!(found.len(), block.rows());
    let mut wrong = Vec::new();
    for (id, (expected, found)) in expected.iter().zip(&found).enumerate() {
        for (at, plan) in table.plans.iter().enumerate() {
            let expected = expected[at].as_deref().map(|json| serde_json::from_str(json).unwrap());
            let is_same = match (&expected, &plan.kind) {
                (None, kind) => is_nothing(kind, &found[at]),
                (Some(expected), kind) => is_same(kind, expected, &found[at]),
            };
            if has_fitted[id][at] && !is_same {
                let of = &table.columns[at].of;
                wrong.push(format!("{of}: {expected:?} is {} ({})", found[at], plan.ddl));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// What stands for a NULL.
fn is_nothing(kind: &ColumnType, found: &Value) -> bool {
    match (kind, found) {
        (ColumnType::Nullable(_), Value::Null) => true,
        (ColumnType::Array(_), Value::Array(found)) => found.is_empty(),
        (ColumnType::Map(_), Value::Object(found)) => found.is_empty(),
        (ColumnType::Tuple(elements), Value::Array(found)) => {
            let mut all = elements.iter().zip(found);
            all.all(|((_, kind), found)| is_nothing(kind, found) || found == "")
        }
        _ => false,
    }
}

fn is_same(kind: &ColumnType, expected: &Value, found: &Value) -> bool {
    match (kind, expected, found) {
        (ColumnType::Nullable(_), Value::Null, found) => found.is_null(),
        // A NULL inside of an array.
        (kind, Value::Null, found) => is_nothing(kind, found),
        (ColumnType::Of(scalar) | ColumnType::Nullable(scalar), expected, found) => {
            !found.is_null() && is_same_text(*scalar, &text_of(expected), &text_of(found))
        }
        (ColumnType::Array(of), Value::Array(expected), Value::Array(found)) => {
            expected.len() == found.len()
                && expected.iter().zip(found).all(|(expected, found)| is_same(of, expected, found))
        }
        (ColumnType::Tuple(elements), Value::Array(expected), Value::Array(found)) => {
            let values = expected.iter().zip(found);
            expected.len() == found.len()
                && elements
                    .iter()
                    .zip(values)
                    .all(|((_, of), (expected, found))| is_same(of, expected, found))
        }
        (ColumnType::Map(of), Value::Object(expected), Value::Object(found)) => {
            expected.len() == found.len()
                && expected.iter().all(|(key, expected)| {
                    found.get(key).is_some_and(|found| is_same(&of.1, expected, found))
                })
        }
        _ => false,
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn is_same_text(scalar: Scalar, expected: &str, found: &str) -> bool {
    let float = |text: &str| match text {
        "inf" => f64::INFINITY,
        "-inf" => f64::NEG_INFINITY,
        text => text.parse().unwrap(),
    };
    match scalar {
        Scalar::Float64 => {
            let (a, b) = (float(expected), float(found));
            a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
        }
        Scalar::Float32 => {
            let (a, b) = (float(expected) as f32, float(found) as f32);
            a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
        }
        Scalar::Decimal { .. } => without_zeros(expected) == without_zeros(found),
        Scalar::Date32 => without_era(expected) == found,
        Scalar::DateTime64 { .. } => {
            let expected = without_era(&expected.replace("+00", ""));
            with_micros(&expected) == with_micros(found)
        }
        Scalar::Time64 { .. } => with_micros(expected) == with_micros(found),
        _ => expected == found,
    }
}

fn without_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// The year before the first is year 0.
fn without_era(text: &str) -> String {
    match text.strip_suffix(" BC") {
        Some(text) => text.replacen("0001-", "0000-", 1),
        None => text.to_owned(),
    }
}

fn with_micros(text: &str) -> String {
    match text.split_once('.') {
        Some((whole, fraction)) => format!("{whole}.{fraction:0<6}"),
        None => format!("{text}.000000"),
    }
}

/// Goal: a row of ClickHouse finds its row of Postgres, whatever its key is, and no other.
#[test]
fn every_key_is_found_again() {
    let mut rng = fastrand::Rng::with_seed(number("WALHOUSE_TYPES_SEED", 1));
    let stage = Stage::take();
    let mut client = stage.postgres.client();
    client.batch_execute(SESSION).unwrap();
    let server = ServerTypes::of_probe("0079-08-24", "0079-08-24 00:00:00.000000", "1");
    let table = Table::make(&stage, &mut client, &server);
    table.fill(&mut client, number("WALHOUSE_TYPES_ROWS", 60), &mut rng);
    let (binary, texts) = (table.binary_rows(&mut client), table.text_rows(&mut client));
    for (at, plan) in table.keys.iter().enumerate() {
        let column = &table.columns[at];
        let ColumnType::Of(scalar) = plan.kind else {
            panic!("{} is a key as {}", column.of, plan.kind)
        };
        let mut asked = Vec::new();
        for (id, (binary, texts)) in binary.iter().zip(&texts).enumerate() {
            let (Some(bytes), Some(text)) = (&binary[at], &texts[at]) else { continue };
            let of_binary = datum(table.binary[at], Some(bytes));
            let of_text = Datum::Text(text.as_bytes());
            let (value, original) = decoded(plan, of_binary);
            assert_eq!((value, original.clone()), decoded(plan, of_text), "{} {text}", column.of);
            let mut lists = lists_of(&plan.kind);
            let mut unfit = Unfit::default();
            put(&plan.how, of_binary, &mut lists, &mut unfit).unwrap();
            if unfit.is_some() {
                continue;
            }
            let literal = String::from_utf8(postgres_literal(&plan.how, lists[0].at(0))).unwrap();
            canonical_key(&plan.how, of_binary);
            let literal = quoted(&literal);
            asked.push(format!("({id}, {literal}::{})", column.of));
        }
        if asked.is_empty() {
            continue;
        }
        // Without an equality of its own it is no key in Postgres either.
        let condition = match scalar {
            Scalar::String if !column.of.starts_with("bytea") => {
                format!("format('%s', literal) = format('%s', c{at})")
            }
            _ => format!("literal = c{at}"),
        };
        let sql = format!(
            "SELECT id, literal FROM (VALUES {}) v(id, literal) JOIN public.every USING (id) \
             WHERE ({condition}) IS NOT TRUE",
            asked.join(", ")
        );
        let lost = rows(&mut client, &sql);
        assert!(lost.is_empty(), "{}: {lost:?}", column.of);
    }
}
