//! A table read page by page while it changes.

use std::collections::BTreeSet;

use walhouse::postgres::source_table::TableName;
use walhouse::postgres::sql::Sql;
use walhouse::postgres::table_reader::{HeapPart, Page, PageRequest, Tid, page, parts};

use super::server::database;
use super::{run, soon};

/// All rows as `a:b`, in pages of `rows_max`; `between` runs after each page.
fn read(
    sql: &mut Sql,
    part: &HeapPart,
    rows_max: usize,
    mut between: impl FnMut(&mut Sql),
) -> Option<Vec<String>> {
    let (mut after, mut all) = (Tid::before(0), Vec::new());
    loop {
        let columns = &["a", "b"];
        let end_block = part.blocks;
        let request = PageRequest { part, columns, after, end_block, bytes_max: 1 << 20, rows_max };
        let Page::Rows(rows) = page(sql, &request, soon()).unwrap() else { return None };
        for values in rows.values() {
            let values = values.unwrap();
            let text = |at: usize| {
                values[at]
                    .as_ref()
                    .map_or("-".to_owned(), |v| String::from_utf8_lossy(v).into_owned())
            };
            all.push(format!("{}:{}", text(0), text(1)));
        }
        let Some(next) = rows.next else { return Some(all) };
        after = next;
        between(sql);
    }
}

/// Goal: every row that stays is read exactly once, in the order of its block, whatever indexes, dead
/// rows, dropped columns and a shrinking file there are.
#[test]
fn every_row_is_read_once_from_a_table_with_a_past() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE TABLE public.t (gone int, a int PRIMARY KEY, b text DEFAULT 'old') WITH (fillfactor = 60);
         CREATE INDEX ON public.t (b); INSERT INTO public.t SELECT n, n FROM generate_series(1, 3000) n;
         ALTER TABLE public.t DROP COLUMN gone; ALTER TABLE public.t ADD COLUMN c int DEFAULT 7;
         UPDATE public.t SET c = 8 WHERE a % 3 = 0; UPDATE public.t SET b = 'new' WHERE a % 5 = 0;
         DELETE FROM public.t WHERE a % 7 = 0; ANALYZE public.t",
    );
    let [part] = &parts(&mut sql, &TableName::new("public", "t"), soon()).unwrap()[..] else {
        panic!("one part")
    };
    let expected: BTreeSet<String> = (1..=3000)
        .filter(|n| n % 7 != 0)
        .map(|n| format!("{n}:{}", if n % 5 == 0 { "new" } else { "old" }))
        .collect();
    for rows_max in [1_000, 137] {
        let all = read(&mut sql, part, rows_max, |_| ()).expect("nobody rewrote it");
        assert_eq!(all.len(), expected.len());
        assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), expected);
    }
    // The file shrinks under it: what is left is read, and the end is an end.
    run(&mut sql, "DELETE FROM public.t WHERE a > 1000 OR a % 5 = 0");
    let mut first = true;
    let all = read(&mut sql, part, 137, |sql| {
        if std::mem::take(&mut first) {
            run(sql, "VACUUM (TRUNCATE) public.t");
        }
    });
    let left = (1..=1000).filter(|n| n % 7 != 0 && n % 5 != 0).count();
    assert_eq!(all.expect("the same file").len(), left);
    run(&mut sql, "TRUNCATE public.t");
    assert_eq!(read(&mut sql, part, 137, |_| ()), None, "another file");
}

/// Goal: a table of partitions is read leaf by leaf, and an empty one has nothing.
#[test]
fn partitions_are_parts() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE TABLE public.p (a int, b text) PARTITION BY RANGE (a);
         CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (10);
         CREATE TABLE public.p2 PARTITION OF public.p FOR VALUES FROM (10) TO (20) PARTITION BY LIST (a);
         CREATE TABLE public.p21 (b text, x int, a int); ALTER TABLE public.p21 DROP COLUMN x;
         ALTER TABLE public.p2 ATTACH PARTITION public.p21 FOR VALUES IN (11, 12);
         INSERT INTO public.p VALUES (1, 'x'), (11, 'y'), (12, NULL); CREATE TABLE public.empty (a int, b text)",
    );
    let mut all = Vec::new();
    for part in parts(&mut sql, &TableName::new("public", "p"), soon()).unwrap() {
        all.extend(read(&mut sql, &part, 1, |_| ()).unwrap());
    }
    all.sort();
    assert_eq!(all, ["11:y", "12:-", "1:x"]);
    let part = &parts(&mut sql, &TableName::new("public", "empty"), soon()).unwrap()[0];
    assert_eq!(read(&mut sql, part, 1, |_| ()), Some(Vec::new()));
}
