use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use walhouse::error::ErrorKind;
use walhouse::postgres::reread::{Reread, RereadRequest, RereadRows, reread};
use walhouse::postgres::source_table::{SourceTable, TableName};
use walhouse::postgres::sql::{Sql, literal};
use walhouse::wal::row_key::KeyText;

use super::server::{Server, database};
use super::{SOON, connect, expect_error, params, run, soon, value, wait_until};

fn name() -> TableName {
    TableName::new("s'c\"h", "t ü")
}

fn create_table(sql: &mut Sql) {
    run(sql, &format!(
        "CREATE SCHEMA \"s'c\"\"h\"; CREATE TABLE {} (id text PRIMARY KEY, \"a\"\"1\" text, tags text[],
         doc jsonb, plain json, flag bool, at timestamp(3), ratio float8, raw bytea)",
        name().quoted()
    ));
}

fn inspect(sql: &mut Sql) -> SourceTable {
    SourceTable::inspect(sql, &name(), soon()).unwrap()
}

fn rows(answer: Reread) -> RereadRows {
    match answer {
        Reread::Rows(rows) => rows,
        Reread::NotYetVisible { transactions } => panic!("{transactions} are not visible"),
    }
}

fn keys<const N: usize>(keys: [&[u8]; N]) -> Vec<KeyText> {
    keys.map(|key| vec![key.to_vec()]).to_vec()
}

#[test]
fn values_come_as_logical_decoding_prints_them() {
    let (_, mut sql) = database();
    create_table(&mut sql);
    let t = name().quoted();
    let values = [
        "a\\b\n\"",
        "{a,\"b c\",NULL,\"\\\"\"}",
        "{\"a\": [1, 2.50]}",
        "{ \"b\" :1}",
        "t",
        "2024-01-02 03:04:05.12",
        "0.1",
        "\\x00ff",
    ];
    let list: Vec<String> = values.iter().map(|value| literal(value)).collect();
    // What pgoutput streams in text is the oracle.
    run(&mut sql, "CREATE PUBLICATION reread_oracle FOR ALL TABLES");
    let slot = format!("reread_{}", value(&mut sql, "SELECT pg_backend_pid()"));
    run(&mut sql, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    run(&mut sql, &format!("INSERT INTO {t} VALUES ('k', {})", list.join(",")));
    run(&mut sql, &format!("INSERT INTO {t} (id) VALUES ('nulls')"));
    let streamed = sql.rows("read", &format!(
        "SELECT encode(data, 'hex') FROM pg_logical_slot_get_binary_changes('{slot}', NULL, NULL, \
         'proto_version', '1', 'publication_names', 'reread_oracle')"), soon()).unwrap();
    run(&mut sql, &format!("SELECT pg_drop_replication_slot('{slot}')"));
    let streamed: Vec<String> =
        streamed.iter().map(|row| row.required(0).unwrap().to_owned()).collect();

    let columns = ["a\"1", "tags", "doc", "plain", "flag", "at", "ratio", "raw"];
    let table = inspect(&mut sql);
    let request = RereadRequest {
        table: &table,
        key_columns: &["id"],
        columns: &columns,
        keys: &keys([b"k", b"nulls", b"ab'sent\\"]),
        xids: &[],
        bytes_max: usize::MAX,
    };
    let answer = rows(reread(&mut sql, &request, SOON).unwrap());
    assert_eq!(answer.answered, 3);
    assert_eq!(answer.found.len(), 2);
    assert_eq!(*answer.found[&1], [const { None }; 8]);
    let found: Vec<&str> = answer.found[&0]
        .iter()
        .map(|value| std::str::from_utf8(value.as_ref().unwrap()).unwrap())
        .collect();
    assert_eq!(found, values);
    let insert = streamed.iter().find(|message| message.starts_with("49")).unwrap();
    for text in found {
        let mut hex = format!("74{:08x}", text.len());
        hex.extend(text.bytes().map(|byte| format!("{byte:02x}")));
        assert!(insert.contains(&hex), "{text} is not in {insert}");
    }
}

/// Goal: however long all of them take, no statement has to be done again.
#[test]
fn what_a_slow_server_has_answered_is_kept() {
    let (_, mut sql) = database();
    run(
        &mut sql,
        "CREATE SCHEMA s; CREATE TABLE s.fast (id text PRIMARY KEY, v text); \
         INSERT INTO s.fast SELECT n, n FROM generate_series(1, 3000) n; \
         CREATE VIEW s.slow AS SELECT id, xmin, v FROM s.fast WHERE pg_sleep(0.001) IS NOT NULL; SET enable_seqscan = off",
    );
    let table = SourceTable::inspect(&mut sql, &TableName::new("s", "fast"), soon()).unwrap();
    let oid = value(&mut sql, "SELECT 's.slow'::regclass::oid").parse().unwrap();
    let table = SourceTable { name: TableName::new("s", "slow"), oid, ..table };
    let keys: Vec<String> = (1..=3000).map(|n| n.to_string()).collect();
    let keys: Vec<KeyText> = keys.into_iter().map(|key| vec![key.into_bytes()]).collect();
    let (mut left, mut rounds) = (&keys[..], 0);
    while !left.is_empty() {
        let request = RereadRequest {
            table: &table,
            key_columns: &["id"],
            columns: &["v"],
            keys: left,
            xids: &[],
            bytes_max: usize::MAX,
        };
        // All of them take three seconds and more; a statement of 500 takes half a one.
        let some = rows(reread(&mut sql, &request, Duration::from_millis(1500)).unwrap());
        assert_eq!(some.found.len(), some.answered);
        left = &left[some.answered..];
        rounds += 1;
    }
    assert!(1 < rounds, "it was not slow");
}

#[test]
fn many_keys_come_from_one_snapshot_and_within_the_memory_allowed() {
    let (_, mut sql) = database();
    create_table(&mut sql);
    run(
        &mut sql,
        &format!(
            "INSERT INTO {} (id, \"a\"\"1\") \
        SELECT 'k''\\' || n, repeat('x', 1000) FROM generate_series(0, 999) n",
            name().quoted()
        ),
    );
    let keys: Vec<String> = (0..1100).map(|n| format!("k'\\{n}")).collect();
    let keys: Vec<KeyText> = keys.into_iter().map(|key| vec![key.into_bytes()]).collect();
    let table = inspect(&mut sql);
    let request = |keys, bytes_max| RereadRequest {
        table: &table,
        key_columns: &["id"],
        columns: &["a\"1"],
        keys,
        xids: &[],
        bytes_max,
    };
    let all = rows(reread(&mut sql, &request(&keys, usize::MAX), SOON).unwrap());
    assert_eq!((all.found.len(), all.answered), (1000, 1100));

    let mut found = HashSet::new();
    let mut left = &keys[..];
    let mut rounds = 0;
    while !left.is_empty() {
        let some = rows(reread(&mut sql, &request(left, 250_000), SOON).unwrap());
        assert!(
            some.found.values().flat_map(|row| row.iter()).flatten().map(Vec::len).sum::<usize>()
                <= 350_000
        );
        let before = keys.len() - left.len();
        found.extend(some.found.into_keys().map(|at| before + at));
        left = &left[some.answered..];
        rounds += 1;
    }
    assert_eq!(found.len(), 1000);
    // A megabyte in quarters, each approached with care.
    assert!((4..=6).contains(&rounds), "{rounds}");
    let none = rows(reread(&mut sql, &request(&[], 0), SOON).unwrap());
    assert_eq!((none.found.len(), none.answered), (0, 0));
}

/// Goal: what is read is what the stream brings.
#[test]
fn rows_of_a_table_that_inherits_are_not_the_tables() {
    let (_, mut sql) = database();
    create_table(&mut sql);
    let t = name().quoted();
    run(&mut sql, &format!("CREATE TABLE public.child () INHERITS ({t})"));
    run(&mut sql, &format!("INSERT INTO {t} (id) VALUES ('own')"));
    run(&mut sql, "INSERT INTO public.child (id) VALUES ('own'), ('of the child')");
    let table = inspect(&mut sql);
    let request = RereadRequest {
        table: &table,
        key_columns: &["id"],
        columns: &["id"],
        keys: &keys([b"own", b"of the child"]),
        xids: &[],
        bytes_max: usize::MAX,
    };
    let found = rows(reread(&mut sql, &request, SOON).unwrap()).found;
    assert_eq!(found.into_keys().collect::<Vec<_>>(), [0]);
}

#[test]
fn a_refused_read_leaves_the_session_fit_for_the_next() {
    let (_, mut sql) = database();
    create_table(&mut sql);
    let table = inspect(&mut sql);
    let mut request = RereadRequest {
        table: &table,
        key_columns: &["id"],
        columns: &["no such"],
        keys: &keys([b"k"]),
        xids: &[],
        bytes_max: 1,
    };
    expect_error(reread(&mut sql, &request, SOON), ErrorKind::Setup, "SQLSTATE 42703");
    request.columns = &["doc"];
    assert_eq!(rows(reread(&mut sql, &request, SOON).unwrap()).answered, 1);
    let not_text = keys([b"\xff"]);
    request.keys = &not_text;
    expect_error(reread(&mut sql, &request, SOON), ErrorKind::Protocol, "not UTF-8");
    let text = keys([b"k"]);
    request.keys = &text;
    assert_eq!(rows(reread(&mut sql, &request, SOON).unwrap()).answered, 1);
}

/// Goal: a row that is there never looks deleted.
/// Method: the read has to wait for an ALTER TABLE that rewrites the table; a snapshot from before
/// its commit would see an empty table.
#[test]
fn a_table_that_is_rewritten_meanwhile_keeps_its_rows() {
    let (params, mut sql) = database();
    create_table(&mut sql);
    let t = name().quoted();
    run(&mut sql, &format!("INSERT INTO {t} (id, ratio) VALUES ('k', 1)"));
    let table = inspect(&mut sql);
    let mut other = connect(&params);
    run(&mut other, &format!("BEGIN; ALTER TABLE {t} ALTER COLUMN ratio TYPE numeric"));
    let pid = sql.about().backend_pid;
    let read = |sql: &mut Sql, table: &SourceTable| {
        let request = RereadRequest {
            table,
            key_columns: &["id"],
            columns: &["ratio"],
            keys: &keys([b"k"]),
            xids: &[],
            bytes_max: usize::MAX,
        };
        reread(sql, &request, SOON)
    };
    let of_thread = table.clone();
    let reading = thread::spawn(move || {
        let answer = read(&mut sql, &of_thread);
        (sql, answer)
    });
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'"
    );
    wait_until("the read waits for the lock", || value(&mut other, &waits) == "1");
    run(&mut other, "COMMIT");
    let (mut sql, answer) = reading.join().unwrap();
    assert_eq!(*rows(answer.unwrap()).found[&0], [Some(b"1".to_vec())]);

    run(&mut other, &format!("ALTER TABLE {t} RENAME TO old"));
    run(&mut other, &format!("CREATE TABLE {t} (id text, ratio numeric)"));
    expect_error(read(&mut sql, &table), ErrorKind::Setup, "another table has taken");
}

/// Goal: what is streamed before it is visible is not read as if it were.
/// Method: a standby that does not exist makes the commit wait after its WAL is flushed.
#[test]
fn a_change_that_is_streamed_before_it_is_visible_is_not_read_yet() {
    let server = Server::start(&["wal_level=logical", "synchronous_standby_names=missing"]);
    let params = params(server.port, "postgres");
    let mut sql = connect(&params);
    run(&mut sql, "SET synchronous_commit = local");
    create_table(&mut sql);
    let t = name().quoted();
    run(&mut sql, &format!("INSERT INTO {t} (id, flag) VALUES ('k', false)"));
    run(
        &mut sql,
        "SELECT pg_create_logical_replication_slot('s', 'pgoutput'); \
                   CREATE PUBLICATION p FOR ALL TABLES",
    );

    let update = format!("UPDATE {t} SET flag = true; INSERT INTO {t} (id) VALUES ('new')");
    let waiting = {
        let mut writer = connect(&params);
        let pid = writer.about().backend_pid;
        // Released by the cancel below; the commit itself stands.
        let thread = thread::spawn(move || writer.execute("write", &update, soon()));
        (pid, thread)
    };
    let mut xid = None;
    wait_until("the update is streamed", || {
        let streamed = sql
            .rows(
                "peek",
                "SELECT xid FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL, \
                 'proto_version', '1', 'publication_names', 'p') \
                 WHERE get_byte(data, 0) = ascii('U')",
                soon(),
            )
            .unwrap();
        xid = streamed.first().map(|row| row.parse::<u32>(0).unwrap());
        xid.is_some()
    });
    let xid = xid.unwrap();
    let table = inspect(&mut sql);
    let request = RereadRequest {
        table: &table,
        key_columns: &["id"],
        columns: &["flag"],
        keys: &keys([b"k", b"new"]),
        xids: &[xid],
        bytes_max: usize::MAX,
    };
    assert_eq!(
        reread(&mut sql, &request, SOON).unwrap(),
        Reread::NotYetVisible { transactions: 1 }
    );
    // What a read that does not ask would have taken for true: the old row, and a deleted one.
    let unasked = rows(reread(&mut sql, &RereadRequest { xids: &[], ..request }, SOON).unwrap());
    assert_eq!(*unasked.found[&0], [Some(b"f".to_vec())]);
    assert!(!unasked.found.contains_key(&1));

    let started = Instant::now();
    run(&mut sql, &format!("SELECT pg_cancel_backend({})", waiting.0));
    let mut last = None;
    wait_until("the transaction is visible", || {
        last = Some(reread(&mut sql, &request, SOON).unwrap());
        matches!(last, Some(Reread::Rows(_)))
    });
    let answer = rows(last.unwrap());
    assert!(answer.is_as_streamed, "both keys are as that transaction left them");
    let other = RereadRequest { xids: &[xid.wrapping_sub(1)], ..request };
    let newer = rows(reread(&mut sql, &other, SOON).unwrap());
    assert!(!newer.is_as_streamed && newer.as_of.insert_lsn >= newer.as_of.flush_lsn);
    let gone = RereadRequest { keys: &keys([b"k", b"never there"]), ..request };
    assert!(!rows(reread(&mut sql, &gone, SOON).unwrap()).is_as_streamed);
    assert_eq!(*answer.found[&0], [Some(b"t".to_vec())]);
    assert_eq!(*answer.found[&1], [None]);
    waiting.1.join().unwrap().unwrap();
    println!("visible {:?} after the release", started.elapsed());
}
