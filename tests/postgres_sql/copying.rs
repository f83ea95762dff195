//! Copying a table range by range: all rows once, whatever their types; a range that is left in the
//! middle is gone on with; and what a range waits for is cut short.

use std::time::{Duration, Instant};

use walhouse::error::Result;
use walhouse::postgres::copy::{Copied, Copier, CopyColumn, CopyRequest, CopyRows};
use walhouse::postgres::params::PostgresParams;
use walhouse::postgres::primary::Primary;
use walhouse::postgres::server_error;
use walhouse::postgres::source_table::{SourceTable, TableName};
use walhouse::postgres::sql::Sql;
use walhouse::postgres::table_reader::{HeapPart, Tid, parts};
use walhouse::wal::Datum;

use super::server::database;
use super::{connect, run, soon};

const WAIT: Duration = Duration::from_millis(200);

fn copier(params: &PostgresParams, sql: &Sql) -> Copier {
    let (primary, _) = Primary::find(params, "test", None, soon(), || Ok(())).unwrap();
    Copier::connect(&primary, "test", sql, soon()).unwrap()
}

fn part(sql: &mut Sql) -> HeapPart {
    parts(sql, &TableName::new("public", "t"), soon()).unwrap().remove(0)
}

fn columns(names: &[&str], texts: &[String]) -> Vec<CopyColumn> {
    let column = |name: &&str| CopyColumn {
        name: (*name).to_owned(),
        as_text: texts.iter().any(|text| text == name),
    };
    names.iter().map(column).collect()
}

type Row = Vec<Option<Vec<u8>>>;

/// At most this many rows of the range; the place of the last one if there may be more.
fn copy(
    copier: &mut Copier,
    request: &CopyRequest<'_>,
    rows_max: usize,
) -> Result<Option<(Vec<Row>, Option<Tid>)>> {
    if copier.begin(request, soon())?.is_none() {
        return Ok(None);
    }
    let (mut reader, mut rows, mut last) = (CopyRows::default(), Vec::new(), request.after);
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        let frames = match copier.next(WAIT)? {
            Copied::Frames(frames) => frames,
            Copied::Nothing => continue,
            Copied::Done => return Ok(Some((rows, None))),
        };
        for message in frames.messages() {
            let mut row = Vec::new();
            let take = |_, value: Datum<'_>| {
                row.push(match value {
                    Datum::Text(bytes) | Datum::Binary(bytes) => Some(bytes.to_vec()),
                    Datum::Null | Datum::Unchanged => None,
                });
            };
            let Some(tid) = reader.read(message, request.columns, take).unwrap() else { continue };
            assert!(last < tid, "{last} {tid}");
            last = tid;
            rows.push(row);
            if rows.len() == rows_max {
                return Ok(Some((rows, Some(last))));
            }
        }
    }
    panic!("the copy does not end");
}

#[test]
fn every_row_comes_once_however_the_table_is_cut() {
    let (params, mut sql) = database();
    run(
        &mut sql,
        "CREATE TABLE public.t (id int, big text);
         INSERT INTO public.t SELECT n, CASE WHEN n % 7 = 0 THEN repeat(md5(n::text), 3000) END
         FROM generate_series(1, 2000) n;
         DELETE FROM public.t WHERE id % 10 = 3",
    );
    let part = part(&mut sql);
    assert!(u64::from(part.blocks) * 8192 < part.bytes, "with TOAST: {part:?}");
    let columns = columns(&["big", "id"], &[]);
    for (blocks, rows_max) in [(u32::MAX, usize::MAX), (3, usize::MAX), (u32::MAX, 700), (4, 50)] {
        let mut one = copier(&params, &sql);
        let mut ids = Vec::new();
        for begin in (0..part.blocks).step_by(blocks as usize) {
            let end_block = begin.saturating_add(blocks).min(part.blocks);
            let mut after = Tid::before(begin);
            loop {
                let request = CopyRequest { part: &part, columns: &columns, after, end_block };
                let (rows, last) = copy(&mut one, &request, rows_max).unwrap().unwrap();
                for row in rows {
                    let id = i32::from_be_bytes(row[1].as_deref().unwrap().try_into().unwrap());
                    assert_eq!(
                        row[0].as_ref().map_or(0, Vec::len),
                        if id % 7 == 0 { 96_000 } else { 0 }
                    );
                    ids.push(id);
                }
                let Some(last) = last else { break };
                // What was left in the middle is of no use any more.
                (after, one) = (last, copier(&params, &sql));
            }
        }
        ids.sort_unstable();
        let is_all = ids.into_iter().eq((1..=2000).filter(|id| id % 10 != 3));
        assert!(is_all, "{blocks} blocks, {rows_max} rows");
    }
}

/// Goal: a column with a type that has no binary form, wherever that is in it, comes as text; with
/// it, Postgres would end the COPY.
#[test]
fn values_without_a_binary_form_come_as_text() {
    let (params, mut sql) = database();
    run(
        &mut sql,
        "CREATE TYPE public.pair AS (a int, acl aclitem);
         CREATE DOMAIN public.acls AS aclitem[];
         CREATE TABLE public.t (id int, plain aclitem, list aclitem[], listed public.acls,
             pair public.pair, span int4range, point point, numbers numeric[]);
         INSERT INTO public.t VALUES (1, 'postgres=r/postgres', '{postgres=r/postgres}',
             '{postgres=w/postgres,NULL}', ROW(7, 'postgres=r/postgres'), '[1,5)', '(1,2)',
             '{1.50,NULL}'); INSERT INTO public.t (id) VALUES (2)",
    );
    let table = SourceTable::inspect(&mut sql, &TableName::new("public", "t"), soon()).unwrap();
    let texts = table.columns.iter().filter(|column| !column.pg_type.is_sendable());
    let texts: Vec<String> = texts.map(|column| column.name.clone()).collect();
    let mut sorted = texts.clone();
    sorted.sort();
    assert_eq!(sorted, ["list", "listed", "pair", "plain"]);
    let names = ["id", "plain", "list", "listed", "pair", "span", "point", "numbers"];
    let part = part(&mut sql);
    let ask = |columns: &[CopyColumn]| {
        let mut one = copier(&params, &sql);
        let request = CopyRequest { part: &part, columns, after: Tid::before(0), end_block: 9 };
        copy(&mut one, &request, usize::MAX)
    };
    let (rows, _) = ask(&columns(&names, &texts)).unwrap().unwrap();
    let text = |at: usize| rows[0][at].as_deref().map(String::from_utf8_lossy);
    assert_eq!(text(1).unwrap(), "postgres=r/postgres");
    assert_eq!(text(2).unwrap(), "{postgres=r/postgres}");
    assert_eq!(text(3).unwrap(), "{postgres=w/postgres,NULL}");
    assert_eq!(text(4).unwrap(), "(7,postgres=r/postgres)");
    assert_eq!(rows[0][6].as_deref().unwrap(), [1.0_f64, 2.0].map(f64::to_be_bytes).concat());
    assert!(rows[1][1..].iter().all(Option::is_none), "{rows:?}");
    let error = ask(&columns(&names, &[])).expect_err("it has no binary form");
    assert_eq!(server_error(&error).expect("the server says so").sqlstate, "42883");
}

#[test]
fn a_table_that_is_rewritten_or_gone_is_noticed_at_the_next_range() {
    let (params, mut sql) = database();
    let mut other = connect(&params);
    for statement in [
        "VACUUM FULL public.t",
        "TRUNCATE public.t",
        "ALTER TABLE public.t RENAME v TO w; ALTER TABLE public.t ADD v text",
        "DROP TABLE public.t; CREATE TABLE public.t (id int, v text)",
        "ALTER TABLE public.t DROP v",
        "DROP TABLE public.t",
    ] {
        run(
            &mut other,
            "DROP TABLE IF EXISTS public.t; CREATE TABLE public.t (id int, v text);
             INSERT INTO public.t VALUES (1)",
        );
        let part = part(&mut sql);
        let columns = columns(&["id", "v"], &[]);
        let request =
            CopyRequest { part: &part, columns: &columns, after: Tid::before(0), end_block: 9 };
        let mut one = copier(&params, &sql);
        assert!(copy(&mut one, &request, usize::MAX).unwrap().is_some(), "{statement}");
        run(&mut other, statement);
        assert!(copy(&mut one, &request, usize::MAX).unwrap().is_none(), "{statement}");
        // The same session goes on with others.
        assert!(copy(&mut one, &request, usize::MAX).unwrap().is_none(), "{statement}");
    }
}
