//! Reading a whole table page by page, and what may be relied on of what was read.

use std::borrow::Cow;

use walhouse::postgres::server::{as_of, flush_lsn, flush_wal};
use walhouse::postgres::source_table::TableName;
use walhouse::postgres::sql::Sql;
use walhouse::postgres::table_reader::{HeapPart, Page, PageRequest, PageRows, Tid, page, parts};

use super::server::database;
use super::{connect, run, soon};

fn table() -> TableName {
    TableName::new("public", "Wide \"T\"")
}

fn only_part(sql: &mut Sql) -> HeapPart {
    let mut parts = parts(sql, &table(), soon()).unwrap();
    assert_eq!(parts.len(), 1);
    parts.remove(0)
}

/// Every id, page by page, with `between` done after each page.
fn read_all(
    sql: &mut Sql,
    part: &HeapPart,
    bytes_max: usize,
    mut between: impl FnMut(usize),
) -> Option<(Vec<String>, usize)> {
    let (mut ids, mut pages, mut after) = (Vec::new(), 0, Tid::before(0));
    loop {
        let request = PageRequest {
            part,
            columns: &["id", "big"],
            after,
            end_block: part.blocks,
            bytes_max,
            rows_max: 1_000,
        };
        let rows = match page(sql, &request, soon()).unwrap() {
            Page::Rows(rows) => rows,
            Page::Unreadable(at) => panic!("every row is of UTF-8, but for the one at {at}"),
            Page::Changed => return None,
        };
        ids.extend(ids_of(&rows));
        pages += 1;
        between(pages);
        match rows.next {
            Some(next) => after = next,
            None => return Some((ids, pages)),
        }
    }
}

fn ids_of(rows: &PageRows<Tid>) -> Vec<String> {
    let id = |values: Vec<Option<Cow<'_, [u8]>>>| {
        String::from_utf8(values[0].as_ref().expect("no null").to_vec()).unwrap()
    };
    rows.values().map(|values| id(values.unwrap())).collect()
}

fn fill(sql: &mut Sql, rows: usize) {
    run(
        sql,
        &format!(
            "CREATE TABLE public.\"Wide \"\"T\"\"\" (id text PRIMARY KEY, gone int, big text);
             ALTER TABLE public.\"Wide \"\"T\"\"\" DROP COLUMN gone;
             INSERT INTO public.\"Wide \"\"T\"\"\" SELECT 'r' || n, CASE WHEN n % 7 = 0
                 THEN repeat(md5(n::text), 3000) WHEN n % 5 = 0 THEN NULL ELSE 'small' END
             FROM generate_series(1, {rows}) n"
        ),
    );
}

#[test]
fn every_row_comes_once_in_pages_of_the_memory_allowed() {
    let (_, mut sql) = database();
    fill(&mut sql, 2_000);
    let part = only_part(&mut sql);
    assert!(1 < part.blocks, "{part:?}");
    let mut expected: Vec<String> = (1..=2_000).map(|n| format!("r{n}")).collect();
    expected.sort();
    for (bytes_max, pages_min) in [(1, 2_000), (200_000, 20), (usize::MAX, 2)] {
        let (mut ids, pages) = read_all(&mut sql, &part, bytes_max, |_| ()).unwrap();
        ids.sort();
        assert_eq!(ids, expected, "{bytes_max}");
        assert!(pages_min <= pages, "{bytes_max}: {pages}");
    }
    // Whatever the planner may not use.
    run(&mut sql, "SET enable_tidscan = off");
    let (mut ids, _) = read_all(&mut sql, &part, 100_000, |_| ()).unwrap();
    ids.sort();
    assert_eq!(ids, expected);
}

#[test]
fn a_table_that_is_rewritten_or_gone_is_noticed_at_the_next_page() {
    let (params, mut sql) = database();
    fill(&mut sql, 500);
    let part = only_part(&mut sql);
    let mut other = connect(&params);
    for statement in [
        "VACUUM FULL public.\"Wide \"\"T\"\"\"",
        "ALTER TABLE public.\"Wide \"\"T\"\"\" RENAME COLUMN big TO was_big;
         ALTER TABLE public.\"Wide \"\"T\"\"\" ADD COLUMN big text",
        "ALTER TABLE public.\"Wide \"\"T\"\"\" RENAME TO was;
         CREATE TABLE public.\"Wide \"\"T\"\"\" (LIKE public.was);
         INSERT INTO public.\"Wide \"\"T\"\"\" SELECT * FROM public.was",
        "ALTER TABLE public.\"Wide \"\"T\"\"\" ALTER COLUMN big TYPE bytea USING big::bytea",
        "TRUNCATE public.\"Wide \"\"T\"\"\"",
        "DROP TABLE public.\"Wide \"\"T\"\"\"",
    ] {
        let part = parts(&mut sql, &table(), soon()).unwrap().remove(0);
        let read = read_all(&mut sql, &part, 1, |page| {
            if page == 1 {
                run(&mut other, statement);
            }
        });
        // An empty table has one page, and was read before the statement.
        assert!(read.is_none() || part.blocks == 0, "{statement}");
    }
    assert!(parts(&mut sql, &table(), soon()).unwrap().is_empty());
    assert!(read_all(&mut sql, &part, 1, |_| ()).is_none());
}

#[test]
fn the_leaves_of_a_partitioned_table_are_its_parts() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE TABLE public.\"Wide \"\"T\"\"\" (id text, big text) PARTITION BY LIST (id);
         CREATE TABLE public.a PARTITION OF public.\"Wide \"\"T\"\"\" FOR VALUES IN ('a');
         CREATE TABLE public.rest PARTITION OF public.\"Wide \"\"T\"\"\" DEFAULT;
         INSERT INTO public.\"Wide \"\"T\"\"\" VALUES ('a', 'x'), ('b', 'y')",
    );
    let parts = parts(&mut sql, &table(), soon()).unwrap();
    let names: Vec<&str> = parts.iter().map(|part| part.name.name.as_str()).collect();
    assert_eq!(names, ["a", "rest"]);
    let ids: Vec<String> = parts
        .iter()
        .flat_map(|part| read_all(&mut sql, part, usize::MAX, |_| ()).unwrap().0)
        .collect();
    assert_eq!(ids, ["a", "b"]);
}

#[test]
fn what_was_read_is_on_disk_once_its_wal_is_flushed() {
    let (params, mut sql) = database();
    run(&mut sql, "CREATE TABLE public.t (id int)");
    let mut open = connect(&params);
    run(&mut open, "BEGIN; INSERT INTO public.t SELECT generate_series(1, 100)");
    // The WAL of a transaction that is not committed stays in memory.
    let now = as_of(&mut sql, soon()).unwrap();
    run(&mut sql, "SET default_transaction_read_only = on");
    flush_wal(&mut sql, soon()).unwrap();
    assert!(now.insert_lsn <= flush_lsn(&mut sql, soon()).unwrap());
}
