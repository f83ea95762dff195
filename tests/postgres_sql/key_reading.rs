//! Reading rows in the order of their key, page by page.

use walhouse::postgres::key_reader::{KeysRequest, WantedKeys, estimate, page};
use walhouse::postgres::source_table::{SourceTable, TableName};
use walhouse::postgres::sql::Sql;
use walhouse::wal::row_key::KeyText;

use super::server::database;
use super::{run, soon};

fn table(sql: &mut Sql) -> SourceTable {
    SourceTable::inspect(sql, &TableName::new("public", "Keyed \"T\""), soon()).unwrap()
}

fn fill(sql: &mut Sql, rows: usize) -> SourceTable {
    run(
        sql,
        &format!(
            "CREATE TYPE state AS ENUM ('open', 'CLOSED');
             CREATE TABLE public.\"Keyed \"\"T\"\"\" (id text PRIMARY KEY, at timestamp, state state,
                 big text);
             INSERT INTO public.\"Keyed \"\"T\"\"\" SELECT 'it''s \\' || n,
                 timestamp '2026-01-01' + n * interval '1 day',
                 CASE WHEN n % 2 = 0 THEN 'CLOSED' ELSE 'open' END::state,
                 CASE WHEN n % 7 = 0 THEN repeat(md5(n::text), 3000) END
             FROM generate_series(1, {rows}) n;
             ANALYZE public.\"Keyed \"\"T\"\"\""
        ),
    );
    table(sql)
}

/// Every id of those wanted, and the number of pages.
fn read_all(
    sql: &mut Sql,
    table: &SourceTable,
    wanted: &WantedKeys<'_>,
    limits: (usize, usize),
) -> (Vec<String>, usize) {
    let (mut after, mut ids, mut pages) = (None::<KeyText>, Vec::new(), 0);
    loop {
        let request = KeysRequest {
            table,
            key_columns: &["id"],
            columns: &["id", "big"],
            wanted,
            after: after.as_ref(),
            bytes_max: limits.0,
            rows_max: limits.1,
        };
        let rows = page(sql, &request, soon()).unwrap();
        assert!(rows.len() <= limits.1);
        for values in rows.values() {
            let id = values.unwrap()[0].as_ref().expect("no null").to_vec();
            ids.push(String::from_utf8(id).unwrap());
        }
        pages += 1;
        match rows.next {
            Some(next) => after = Some(next),
            None => return (ids, pages),
        }
    }
}

#[test]
fn every_row_comes_once_in_order_whatever_the_pages() {
    let (_, mut sql) = database();
    let table = fill(&mut sql, 300);
    let all = WantedKeys::default();
    let query = "SELECT id FROM public.\"Keyed \"\"T\"\"\" ORDER BY id";
    let expected = sql.rows("list", query, soon()).unwrap();
    let expected: Vec<String> =
        expected.iter().map(|row| row.required(0).unwrap().to_owned()).collect();
    for (limits, pages_min) in [((1, 1_000), 300), ((usize::MAX, 10), 30), ((200_000, 1_000), 10)] {
        let (ids, pages) = read_all(&mut sql, &table, &all, limits);
        assert_eq!(ids, expected, "{limits:?}");
        assert!(pages_min <= pages, "{pages} pages of {limits:?}");
    }
    let about = estimate(&mut sql, &table, &["id"], &all, soon()).unwrap();
    assert!((200..=400).contains(&about), "{about}");
}

#[test]
fn only_what_is_wanted_comes() {
    let (_, mut sql) = database();
    let table = fill(&mut sql, 40);
    let keys: Vec<String> =
        ["it's \\4", "it's \\5", "it's \\6", "nobody"].map(str::to_owned).to_vec();
    let of_keys: Vec<KeyText> = keys.iter().map(|key| vec![key.clone().into_bytes()]).collect();
    let moment = |day: u32| ("at", format!("2026-01-{day:02}T00:00:00"));
    let mut wanted = WantedKeys { keys: Some(&of_keys), ..WantedKeys::default() };
    let read = |sql: &mut Sql, wanted: &WantedKeys<'_>| read_all(sql, &table, wanted, (1, 10)).0;
    assert_eq!(read(&mut sql, &wanted), keys[..3]);
    wanted.from = Some(moment(6));
    assert_eq!(read(&mut sql, &wanted), keys[1..3]);
    wanted.to = Some(moment(7));
    assert_eq!(read(&mut sql, &wanted), keys[1..2], "before, not at");
    (wanted.from, wanted.to) = (None, None);
    // The enum knows nothing of one of them.
    wanted.one_of = Some(("state", &["CLOSED", "unheard of"]));
    assert_eq!(read(&mut sql, &wanted), ["it's \\4", "it's \\6"]);
    // What inherits from the table is another one.
    run(
        &mut sql,
        "CREATE TABLE public.child () INHERITS (public.\"Keyed \"\"T\"\"\");
         INSERT INTO public.child (id, state) VALUES ('it''s \\4', 'CLOSED'), ('x', 'CLOSED')",
    );
    assert_eq!(read(&mut sql, &wanted), ["it's \\4", "it's \\6"]);
}

#[test]
fn a_table_that_is_another_by_now_is_refused() {
    let (_, mut sql) = database();
    let table = fill(&mut sql, 5);
    run(
        &mut sql,
        "ALTER TABLE public.\"Keyed \"\"T\"\"\" RENAME TO old;
         CREATE TABLE public.\"Keyed \"\"T\"\"\" (LIKE public.old)",
    );
    let request = KeysRequest {
        table: &table,
        key_columns: &["id"],
        columns: &["id"],
        wanted: &WantedKeys::default(),
        after: None,
        bytes_max: 1,
        rows_max: 1,
    };
    let error = page(&mut sql, &request, soon()).unwrap_err().to_string();
    assert!(error.ends_with("another table has taken its name"), "{error}");
    // The session is as good as before.
    run(&mut sql, "SELECT 1");
}
