//! The ClickHouse port against a real engine, and against servers that misbehave.
//!
//! The engine is the one at `CLICKHOUSE_URL`, or `scripts/clickhouse-front`, started here with the
//! Python of `WALHOUSE_PYTHON`. Without either the tests fail. Each test has its own database.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

// ---- the engine ----

use walhouse::clickhouse::client::{quote_bytes, quote_name};
use walhouse::clickhouse::hosts::Hosts;
use walhouse::clickhouse::lookup::find_sort_keys;
use walhouse::clickhouse::own::refused::{RefusedPart, RefusedRow};
use walhouse::clickhouse::own::state::StateRow;
use walhouse::clickhouse::own::{self, refused, state};
use walhouse::clickhouse::params::InsertStrategy;
use walhouse::clickhouse::partitions::{Partition, partitions, too_much};
use walhouse::clickhouse::{ClickHouseParams, Client, InsertError, Refusal, refusal, tables};
use walhouse::error::{Error, ErrorKind};
use walhouse::halt::Halt;
use walhouse::machines::portions::TooMuch;
use walhouse::rows::key::Key;
use walhouse::secret::Secret;
use walhouse::services::{runs, sessions};
use walhouse::wal::Lsn;

/// A front of ours, ended with the last test that uses it.
struct Front {
    child: Child,
    dir: PathBuf,
    port: u16,
}

const FRONT_USER: &str = "walhouse";
const FRONT_PASSWORD: &str = "it's % & secret";

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Front {
    fn shared() -> Arc<Front> {
        static SHARED: Mutex<Weak<Front>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        shared.upgrade().unwrap_or_else(|| {
            let front = Arc::new(Front::start());
            *shared = Arc::downgrade(&front);
            front
        })
    }

    fn start() -> Front {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("walhouse-clickhouse-port-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let port_file = dir.join("port");
        let python = std::env::var("WALHOUSE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/clickhouse-front");
        let mut child = Command::new(python)
            .arg(script)
            .args(["--listen", "127.0.0.1:0", "--user", FRONT_USER, "--password", FRONT_PASSWORD])
            .arg("--data")
            .arg(dir.join("data"))
            .arg("--port-file")
            .arg(&port_file)
            .stdout(Stdio::null())
            .spawn()
            .expect("python starts: set CLICKHOUSE_URL, or WALHOUSE_PYTHON to one with chdb");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(port) =
                std::fs::read_to_string(&port_file).ok().and_then(|text| text.trim().parse().ok())
            {
                return Front { child, dir, port };
            }
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "scripts/clickhouse-front ended: {ended:?}");
            assert!(Instant::now() < deadline, "scripts/clickhouse-front did not listen in 60 s");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// One test's place in the engine.
struct Place {
    params: ClickHouseParams,
    client: Client,
    _front: Option<Arc<Front>>,
}

fn place() -> Place {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let front = std::env::var("CLICKHOUSE_URL").is_err().then(Front::shared);
    let (endpoint, user, password) = match &front {
        Some(front) => (
            format!("http://127.0.0.1:{}", front.port),
            FRONT_USER.to_owned(),
            FRONT_PASSWORD.to_owned(),
        ),
        None => {
            let text = std::env::var("CLICKHOUSE_URL").unwrap();
            let url = url::Url::parse(&text).expect("CLICKHOUSE_URL is a URL");
            let endpoint = url.origin().ascii_serialization();
            (
                endpoint,
                percent_decoded(url.username()),
                percent_decoded(url.password().unwrap_or("")),
            )
        }
    };
    let params = ClickHouseParams {
        hosts: Hosts::one(endpoint),
        cluster: None,
        quorum: None,
        user,
        password: Secret::new(password),
        // A name that has to be quoted.
        database: format!("port-test `{}.{number}", std::process::id()),
        request_timeout: Duration::from_secs(30),
        // One test of two, so that both are tried.
        compress: number.is_multiple_of(2),
        keep_alive: true,
        keep_alive_idle: None,
        connections_max: 2,
        insert_strategy: InsertStrategy::Insert,
        halt: Halt::default(),
    };
    let mut client = Client::connect(&params).unwrap();
    let database = quote_name(&params.database);
    client.execute(&format!("CREATE DATABASE {database}"), soon()).unwrap();
    Place { params, client, _front: front }
}

fn percent_decoded(text: &str) -> String {
    let form = format!("x={}", text.replace('+', "%2B"));
    url::form_urlencoded::parse(form.as_bytes()).map(|(_, value)| value.into_owned()).collect()
}

impl Drop for Place {
    fn drop(&mut self) {
        let database = quote_name(&self.params.database);
        let _ = self.client.execute(&format!("DROP DATABASE {database}"), soon());
    }
}

impl Place {
    fn create(&mut self, table: &str, rest: &str) {
        let table = self.client.qualified(table);
        self.client.execute(&format!("CREATE TABLE {table} {rest}"), soon()).unwrap();
    }

    /// `what` FROM table `rest`, as one line of text: rows by `;`, values by `,`.
    fn read(&mut self, what: &str, table: &str, rest: &str) -> String {
        let sql = format!("SELECT {what} FROM {} {rest}", self.client.qualified(table));
        let rows = self.client.query(&sql, &[table], soon()).unwrap();
        let line = |row: Vec<Option<String>>| {
            let values: Vec<String> =
                row.into_iter().map(|v| v.unwrap_or_else(|| "NULL".to_owned())).collect();
            values.join(",")
        };
        rows.into_iter().map(line).collect::<Vec<_>>().join(";")
    }

    fn insert(&mut self, table: &str, block: &Block) -> Result<(), InsertError> {
        self.client.insert(table, &block.names(), &[], &block.bytes(), soon())
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn refused_data(result: Result<(), InsertError>) -> Refusal {
    match result {
        Err(InsertError::Data(refusal)) => *refusal,
        other => panic!("the rows should be refused: {other:?}"),
    }
}

fn retry(result: Result<(), InsertError>) -> Error {
    match result {
        Err(InsertError::Retry(error) | InsertError::Lost(error) | InsertError::Large(error)) => {
            error
        }
        other => panic!("the outcome should be open: {other:?}"),
    }
}

// ---- Native blocks ----

/// Columns as (name, type, values already encoded).
struct Block {
    rows: usize,
    columns: Vec<(&'static str, &'static str, Vec<u8>)>,
}

impl Block {
    fn of(rows: usize) -> Block {
        Block { rows, columns: Vec::new() }
    }

    fn raw(mut self, name: &'static str, kind: &'static str, data: Vec<u8>) -> Block {
        self.columns.push((name, kind, data));
        self
    }

    fn strings<T: AsRef<[u8]>>(self, name: &'static str, values: &[T]) -> Block {
        assert_eq!(values.len(), self.rows);
        let data = values.iter().flat_map(|value| string(value.as_ref())).collect();
        self.raw(name, "String", data)
    }

    /// Type JSON with its values as text: the number in front says so.
    fn documents(self, name: &'static str, values: &[&str]) -> Block {
        let mut data = 1_u64.to_le_bytes().to_vec();
        data.extend(values.iter().flat_map(|value| string(value.as_bytes())));
        self.raw(name, "JSON", data)
    }

    fn numbers(self, name: &'static str, kind: &'static str, values: &[i64]) -> Block {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(name, kind, data)
    }

    fn names(&self) -> Vec<&'static str> {
        self.columns.iter().map(|(name, ..)| *name).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = varuint(self.columns.len());
        bytes.extend(varuint(self.rows));
        for (name, kind, data) in &self.columns {
            bytes.extend(string(name.as_bytes()));
            bytes.extend(string(kind.as_bytes()));
            bytes.extend(data);
        }
        bytes
    }
}

fn varuint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push((value % 0x80) as u8 | 0x80);
        value /= 0x80;
    }
    bytes.push(value as u8);
    bytes
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [varuint(bytes.len()).as_slice(), bytes].concat()
}

const PAIRS: &str = "(k String, n UInt64 DEFAULT 7) ENGINE = MergeTree ORDER BY k";

// ---- statements and tables ----

#[test]
fn ping_names_the_version() {
    let mut place = place();
    let version = place.client.ping(soon()).unwrap();
    assert!(version.split('.').count() >= 3, "{version}");
}

#[test]
fn wrong_password_is_a_setup_error_without_the_password() {
    let place = place();
    let params = ClickHouseParams { password: Secret::new("hunter2"), ..place.params.clone() };
    let error = Client::connect(&params).unwrap().ping(soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    assert!(error.to_string().contains("AUTHENTICATION_FAILED"), "{error}");
    assert!(error.hint_text().is_some());
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[test]
fn codes_carry_the_names_that_the_engine_gives_them() {
    let mut place = place();
    for (code, name) in refusal::known_codes() {
        let rows =
            place.client.query(&format!("SELECT errorCodeToName({code})"), &[], soon()).unwrap();
        let given = rows[0][0].as_deref().unwrap();
        // The newest ones have no name in an older engine.
        assert!(given == name || given.is_empty() && 700 < code, "code {code}: {given}");
    }
}

#[test]
fn missing_tables_are_made_once_and_described() {
    let mut place = place();
    let client = &mut place.client;
    for target in runs::TARGETS.iter().chain(sessions::TARGETS.iter()) {
        let error = tables::ensure(client, target, false, soon()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Setup);
        let ddl = tables::ddl(client, target);
        assert!(error.hint_text().is_some_and(|hint| hint.contains(&ddl)), "{error:?}");

        let made = tables::ensure(client, target, true, soon()).unwrap();
        assert_eq!(made.warnings, [] as [String; 0]);
        assert_eq!(made, tables::ensure(client, target, false, soon()).unwrap());
        let written = made.columns.iter().filter(|column| column.is_insertable());
        let written: Vec<&str> = written.map(|column| column.name.as_str()).collect();
        assert_eq!(written, target.columns.iter().map(|c| &*c.name).collect::<Vec<_>>());
        assert_eq!(made.engine, "ReplacingMergeTree");
    }
    let runs = tables::read_shape(client, "task_runs_v2", soon()).unwrap().unwrap();
    assert_eq!(runs.sorting_key, "organization_id, project_id, environment_id, created_at, run_id");
    let insertable = runs.columns.iter().filter(|column| column.is_insertable()).count();
    assert_eq!((runs.columns.len(), insertable), (58, 56));
    let kind = |name: &str| runs.column(name).unwrap().type_text.clone();
    // 1024 is the default, and is not printed.
    assert_eq!(
        (kind("output"), kind("error")),
        ("JSON".into(), "JSON(max_dynamic_paths=64)".into())
    );
    assert_eq!(kind("created_at"), "DateTime64(3)");
    let database = quote_bytes(place.params.database.as_bytes());
    let sql = format!(
        "SELECT name FROM system.data_skipping_indices WHERE database = {database} ORDER BY name"
    );
    let indices: Vec<String> =
        place.client.query(&sql, &[], soon()).unwrap().into_iter().flatten().flatten().collect();
    assert_eq!(indices, ["idx_error_fingerprint", "idx_error_text", "idx_output_text", "idx_tags"]);
}

#[test]
fn a_table_that_is_there_is_used_as_it_is() {
    let mut place = place();
    place.create(
        "raw_task_runs_payload_v1",
        "(run_id String, created_at DateTime, payload JSON) ENGINE = MergeTree ORDER BY run_id",
    );
    let shape = tables::ensure(&mut place.client, &runs::TARGETS[1], true, soon()).unwrap();
    assert_eq!((shape.engine.as_str(), shape.columns.len()), ("MergeTree", 3));
    assert_eq!(shape.warnings.len(), 2, "{:?}", shape.warnings);
}

#[test]
fn a_missing_database_is_made_with_the_table() {
    let mut place = place();
    let database = quote_name(&place.params.database);
    place.client.execute(&format!("DROP DATABASE {database}"), soon()).unwrap();
    tables::ensure(&mut place.client, &sessions::TARGETS[0], true, soon()).unwrap();
    assert_eq!(place.read("count()", "sessions_v1", ""), "0");
}

// ---- inserts ----

#[test]
fn a_run_arrives_as_it_was_sent() {
    let mut place = place();
    tables::ensure(&mut place.client, &runs::TARGETS[0], true, soon()).unwrap();
    let document =
        r#"{"data":{"at":"2024-01-01T10:00:00Z","day":"2024-01-01","mixed":[1,"a",true],"n":-5}}"#;
    let block = Block::of(1)
        .strings("run_id", &["run_1"])
        .strings("status", &["COMPLETED_SUCCESSFULLY"])
        .numbers("created_at", "DateTime64(3)", &[-1])
        .documents("output", &[document])
        .documents("error", &["{}"])
        .numbers("_version", "UInt64", &[-1]);
    place.insert("task_runs_v2", &block).unwrap();
    let sent = document.strip_prefix(r#"{"data":"#).unwrap().strip_suffix('}').unwrap();
    assert_eq!(
        place.read(
            "run_id, status, attempt, toUnixTimestamp64Milli(created_at), _version, _is_deleted, \
             isNull(started_at), output_text, error_text",
            "task_runs_v2",
            "FINAL"
        ),
        format!("run_1,COMPLETED_SUCCESSFULLY,1,-1,{},0,1,{sent},", u64::MAX)
    );
}

#[test]
fn a_batch_over_many_months_is_taken_whole() {
    let mut place = place();
    place.create(
        "t",
        "(k String, d DateTime64(3)) ENGINE = MergeTree PARTITION BY toYYYYMM(d) ORDER BY k",
    );
    let keys: Vec<String> = (0..150).map(|n| n.to_string()).collect();
    let days: Vec<i64> = (0..150).map(|n| n * 31 * 86_400_000).collect();
    let block = Block::of(150).strings("k", &keys).numbers("d", "DateTime64(3)", &days);
    place.insert("t", &block).unwrap();
    assert_eq!(place.read("uniqExact(toYYYYMM(d))", "t", ""), "150");
}

#[test]
fn a_block_of_many_frames_is_taken_whole() {
    let mut place = place();
    place.create("t", PAIRS);
    let rows = 200_000;
    let keys: Vec<String> = (0..rows).map(|n| format!("{n:09}-{:032x}", n * 7919)).collect();
    let numbers: Vec<i64> = (0..rows).collect();
    let block = Block::of(keys.len()).strings("k", &keys).numbers("n", "UInt64", &numbers);
    assert!(block.bytes().len() > 8 << 20);
    place.insert("t", &block).unwrap();
    let sum = rows * (rows - 1) / 2;
    assert_eq!(place.read("count(), sum(n)", "t", ""), format!("{rows},{sum}"));
    assert_eq!(place.read("count()", "t", "WHERE toUInt64(substring(k, 1, 9)) != n"), "0");
}

#[test]
fn an_empty_block_is_nothing_to_insert() {
    let mut place = place();
    place.client.insert("no such table", &["k"], &[], &[], soon()).unwrap();
}

#[test]
fn settings_of_documents_hold_for_the_type_json_but_not_for_strings() {
    // Why documents must be sent as JSON: a String that becomes JSON is read with the defaults.
    let mut place = place();
    place.create("t", "(k String, j JSON) ENGINE = MergeTree ORDER BY k");
    let twice = r#"{"a":1,"a":2}"#;
    let block = Block::of(1).strings("k", &["json"]).documents("j", &[twice]);
    place.insert("t", &block).unwrap();
    assert_eq!(place.read("k, j", "t", ""), r#"json,{"a":1}"#);
    let block = Block::of(1).strings("k", &["string"]).strings("j", &[twice]);
    assert_eq!(refused_data(place.insert("t", &block)).code, 117);
}

#[test]
fn async_inserts_are_answered_when_the_rows_are_there() {
    let mut place = place();
    place.create("t", "(k String, j JSON) ENGINE = MergeTree ORDER BY k");
    let params =
        ClickHouseParams { insert_strategy: InsertStrategy::InsertAsync, ..place.params.clone() };
    let mut client = Client::connect(&params).unwrap();
    let block = Block::of(1).strings("k", &["a"]).documents("j", &["{}"]);
    client.insert("t", &block.names(), &[], &block.bytes(), soon()).unwrap();
    assert_eq!(place.read("count()", "t", ""), "1");
    let block = Block::of(1).strings("k", &["b"]).documents("j", &["{"]);
    let refused = client.insert("t", &block.names(), &[], &block.bytes(), soon());
    assert_eq!(refused_data(refused).code, 117);
}

// ---- refusals ----

#[test]
fn rows_that_cannot_be_taken_are_data_and_nothing_of_them_is_said() {
    let mut place = place();
    place.create(
        "t",
        "(k String, n UInt8, u UUID, e Enum8('a' = 1), a Array(String), j JSON) \
         ENGINE = MergeTree ORDER BY k",
    );
    let key = || Block::of(1).strings("k", &["k"]);
    let deep = format!("{{\"hunter2\":{}{}}}", "[".repeat(1200), "]".repeat(1200));
    let mut checks = vec![
        (key().strings("n", &["hunter2"]), 6, Some("n")),
        (key().strings("n", &["-2"]), 72, Some("n")),
        (key().strings("u", &["hunter2"]), 376, Some("u")),
        (key().strings("e", &["hunter2"]), 691, Some("e")),
        (key().strings("a", &["hunter2"]), 130, Some("a")),
    ];
    for document in
        ["hunter2", "[\"hunter2\"]", "{\"hunter2\":", "{\"hunter2\":\"\\ud800\"}", "", &deep]
    {
        checks.push((key().documents("j", &[document]), 117, None));
        checks.push((key().strings("j", &[document]), 117, Some("j")));
    }
    for (block, code, column) in checks {
        let sent = String::from_utf8_lossy(&block.bytes()).into_owned();
        let result = place.insert("t", &block);
        assert!(result.is_err(), "the engine took {sent:.200}");
        let refusal = refused_data(result);
        assert_eq!((refusal.code, refusal.column.as_deref()), (code, column), "{refusal}");
        assert!(!format!("{refusal:?}").contains("hunter2"), "{refusal:?}");
    }
    assert_eq!(place.read("count()", "t", ""), "0");
}

#[test]
fn one_refused_row_keeps_its_block_out_whole() {
    let mut place = place();
    place.create("t", "(k String, j JSON) ENGINE = MergeTree ORDER BY k");
    let block = |keys: &[&str], documents: &[&str]| {
        Block::of(keys.len()).strings("k", keys).documents("j", documents)
    };
    let refusal = refused_data(place.insert("t", &block(&["a", "b", "c"], &["{}", "[]", "{}"])));
    assert_eq!(refusal.code, 117);
    assert_eq!(place.read("count()", "t", ""), "0");
    // The next insert of the same client is fine.
    place.insert("t", &block(&["a", "c"], &["{}", "{}"])).unwrap();
    assert_eq!(place.read("count()", "t", ""), "2");
}

#[test]
fn names_and_types_that_do_not_fit_are_setup_errors() {
    let mut place = place();
    place.create("t", PAIRS);
    let checks = [
        ("nothing", Block::of(1).strings("k", &["a"]), "UNKNOWN_TABLE"),
        ("t", Block::of(1).strings("zz", &["a"]), "NO_SUCH_COLUMN_IN_TABLE"),
        ("t", Block::of(1).raw("k", "Foo", vec![]), "UNKNOWN_TYPE"),
        (
            "t",
            Block::of(1).raw("n", "Array(UInt8)", [1_u64.to_le_bytes().as_slice(), &[1]].concat()),
            "ILLEGAL_TYPE_OF_ARGUMENT",
        ),
    ];
    for (table, block, name) in checks {
        let error = retry(place.insert(table, &block));
        assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    // Columns of the block that the INSERT does not list are not passed over either.
    let block = Block::of(1).strings("k", &["a"]).strings("zz", &["a"]);
    let error = retry(place.client.insert("t", &["k"], &[], &block.bytes(), soon()));
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    // A caller's setting is the caller's to mend.
    let block = Block::of(1).strings("k", &["a"]);
    let settings = [("no_such_setting", "1")];
    let error = retry(place.client.insert("t", &["k"], &settings, &block.bytes(), soon()));
    assert!(error.to_string().contains("UNKNOWN_SETTING"), "{error}");
    assert_eq!(place.read("count()", "t", ""), "0");
}

#[test]
fn a_torn_block_is_not_taken_for_bad_rows() {
    let mut place = place();
    place.create("t", PAIRS);
    let bytes = Block::of(2).strings("k", &["first", "second"]).bytes();
    for length in 1..bytes.len() {
        let error = retry(place.client.insert("t", &["k"], &[], &bytes[..length], soon()));
        assert!(error.to_string().starts_with("insert into `t` as query"), "{error}");
    }
    assert_eq!(place.read("count()", "t", ""), "0");
}

// ---- our own tables ----

#[test]
fn the_last_revision_of_the_state_counts() {
    let mut place = place();
    let client = &mut place.client;
    assert_eq!(
        own::tables::ensure(client, false, soon()).unwrap_err().kind(),
        ErrorKind::Setup,
        "REPLICATION_CREATE_TABLES=0 forbids creating it"
    );
    own::tables::ensure(client, true, soon()).unwrap();
    own::tables::ensure(client, false, soon()).unwrap();
    let slot = "it's \\ a `slot`";
    assert_eq!(state::TABLE.read(client, "runs", slot, soon()).unwrap(), None);
    let mut row = StateRow {
        service: "runs".to_owned(),
        slot: slot.to_owned(),
        system_identifier: "7312345678901234567".to_owned(),
        timeline: u32::MAX,
        began: Lsn(7),
        confirmed: Lsn(0),
        upper_lsn: Lsn(u64::MAX),
        version_shift: u64::MAX,
        instance: "host\t1\n".to_owned(),
        revision: 0,
    };
    for confirmed in [u64::MAX, 5, 9] {
        row.confirmed = Lsn(confirmed);
        state::write(client, &mut row, soon()).unwrap();
        assert_eq!(state::TABLE.read(client, "runs", slot, soon()).unwrap().as_ref(), Some(&row));
    }
    assert_eq!(row.revision, 3);
    // Who has not heard of a newer row does not outrank it.
    let mut newer =
        StateRow { timeline: 1, revision: state::next_revision_base(row.revision), ..row.clone() };
    assert_eq!(state::write_unless_overtaken(client, &mut newer, soon()).unwrap(), None);
    let by = state::write_unless_overtaken(client, &mut row, soon()).unwrap();
    assert_eq!((by.as_ref(), row.revision), (Some(&newer), 3));
    assert_eq!(state::TABLE.read(client, "runs", slot, soon()).unwrap().as_ref(), Some(&newer));
    // Another slot and another service have states of their own.
    assert_eq!(state::TABLE.read(client, "sessions", slot, soon()).unwrap(), None);
    assert_eq!(state::TABLE.read(client, "runs", "slot", soon()).unwrap(), None);
    assert_eq!(place.read("count()", "walhouse_state", "FINAL"), "1");
}

#[test]
fn refused_rows_are_kept_in_full_and_once() {
    let mut place = place();
    let client = &mut place.client;
    own::tables::ensure(client, true, soon()).unwrap();
    refused::write(client, &[], soon()).unwrap();
    let row = RefusedRow {
        service: "runs".to_owned(),
        table: "task_runs_v2".to_owned(),
        key: b"run_1".to_vec(),
        version: u64::MAX,
        what: RefusedPart::Row,
        error: "code 117 (INCORRECT_DATA)".to_owned(),
        document: vec![0xff, 0, b'\'', b'\n'],
    };
    let part = RefusedRow { what: RefusedPart::Column("output".to_owned()), ..row.clone() };
    let large = RefusedRow { key: b"run_2".to_vec(), document: vec![b'x'; 5 << 20], ..row.clone() };
    for _replay in 0..2 {
        refused::write(client, &[row.clone(), part.clone(), large.clone()], soon()).unwrap();
    }
    assert_eq!(
        place.read(
            "key, version, column, length(document), hex(left(document, 4))",
            "walhouse_refused_rows",
            "FINAL ORDER BY key, column"
        ),
        format!(
            "run_1,{0},,4,FF00270A;run_1,{0},output,4,FF00270A;run_2,{0},,5242880,78787878",
            u64::MAX
        )
    );
}

// ---- lookups ----

#[test]
fn sorting_keys_are_found_by_id_alone_dead_or_alive() {
    let mut place = place();
    tables::ensure(&mut place.client, &sessions::TARGETS[0], true, soon()).unwrap();
    let odd: &[u8] = b"it's \\ `odd`\n\t\xff\0";
    let mut insert = |id: &[u8], project: &str, at: i64, version: i64, deleted: u8| {
        let block = Block::of(1)
            .strings("session_id", &[id])
            .strings("organization_id", &["o"])
            .strings("project_id", &[project])
            .strings("environment_id", &["e"])
            .numbers("created_at", "DateTime64(3)", &[at])
            .numbers("_version", "UInt64", &[version])
            .raw("_is_deleted", "UInt8", vec![deleted]);
        place.insert("sessions_v1", &block).unwrap();
    };
    // Rows come in any order of versions, and stay in parts of their own.
    insert(b"live", "p", 1_700_000_000_123, 2, 0);
    insert(b"live", "p", 1_700_000_000_123, 1, 0);
    insert(b"gone", "p", 5, 2, 1);
    insert(b"gone", "p", 5, 1, 0);
    insert(b"back", "p", 5, 3, 0);
    insert(b"back", "p", 5, 2, 1);
    insert(b"moved", "p1", 5, 1, 0);
    insert(b"moved", "p1", 5, 2, 1);
    insert(b"moved", "p2", 6, 2, 0);
    insert(b"split", "p1", -5, 1, 0);
    insert(b"split", "p2", -5, 2, 0);
    insert(odd, "p", -62_135_596_800_000 / 100, 1, 0);
    insert(b"other", "p", 5, 1, 0);

    let ids: [&[u8]; 7] = [b"live", b"gone", b"back", b"moved", b"split", odd, b"never"];
    let mut found = Vec::new();
    let target = &sessions::TARGETS[0];
    let ids = ids.map(|id| Key::from_iter([id]));
    find_sort_keys(&mut place.client, target, &ids, &[], soon, &mut found).unwrap();
    let key = |id: &[u8], project: &str, created_at: i64| -> Key {
        let created_at = &created_at.to_le_bytes()[..];
        [b"o", project.as_bytes(), b"e", created_at, id].into_iter().collect()
    };
    let expected = vec![
        key(b"live", "p", 1_700_000_000_123),
        key(b"gone", "p", 5),
        key(b"back", "p", 5),
        key(b"moved", "p1", 5),
        key(b"moved", "p2", 6),
        key(b"split", "p1", -5),
        key(b"split", "p2", -5),
        key(odd, "p", -621_355_968_000),
    ];
    assert_eq!(found.len(), expected.len());
    assert_eq!(HashSet::<Key>::from_iter(found), HashSet::from_iter(expected));
}

#[test]
fn as_many_ids_as_a_mass_delete_has_are_found() {
    let mut place = place();
    tables::ensure(&mut place.client, &runs::TARGETS[0], true, soon()).unwrap();
    let rows = 60_000;
    let ids: Vec<String> = (0..rows).map(|n| format!("run_{n:021}")).collect();
    let at: Vec<i64> = (0..rows).collect();
    let block = Block::of(ids.len())
        .strings("run_id", &ids)
        .numbers("created_at", "DateTime64(3)", &at)
        .numbers("_version", "UInt64", &at);
    place.insert("task_runs_v2", &block).unwrap();
    let wanted: Vec<Key> = ids.iter().map(|id| Key::from_iter([id])).collect();
    let target = &runs::TARGETS[0];
    let mut found = Vec::new();
    find_sort_keys(&mut place.client, target, &wanted, &[], soon, &mut found).unwrap();
    let expected = ids.iter().zip(&at).map(|(id, at)| -> Key {
        [b"", b"", b"", &at.to_le_bytes()[..], id.as_bytes()].into_iter().collect()
    });
    let found = HashSet::<Key>::from_iter(found);
    assert_eq!(found, expected.collect());

    // One partition after the other finds the same: here all are of one month.
    let partitions = partitions(&mut place.client, &target.table, soon()).unwrap();
    let [Partition { id, rows }] = partitions.as_slice() else { panic!("{partitions:?}") };
    assert_eq!(*rows, 60_000);
    let mut again = Vec::new();
    for among in [id.clone(), "190001".to_owned()] {
        let among = [among];
        find_sort_keys(&mut place.client, target, &wanted, &among, soon, &mut again).unwrap();
    }
    assert_eq!(again.len(), found.len());
    assert_eq!(HashSet::from_iter(again), found);
}

// ---- connections ----

/// Passes bytes on to the engine, and does to answers what it is told to.
struct Proxy {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    /// Answers that are cut off before their first byte reaches the client.
    answers_to_lose: Arc<AtomicU64>,
}

impl Proxy {
    fn to(endpoint: &str) -> Proxy {
        let target = endpoint.strip_prefix("http://").expect("the engine speaks http").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            answers_to_lose: Arc::default(),
        };
        let (connections, lose) = (proxy.connections.clone(), proxy.answers_to_lose.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                connections.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(&target) else { continue };
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass(from, to, |_| true));
                let lose = lose.clone();
                thread::spawn(move || {
                    pass(server, client, |_| {
                        let take = |left: u64| left.checked_sub(1);
                        lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err()
                    });
                });
            }
        });
        proxy
    }

    fn params(&self, place: &Place) -> ClickHouseParams {
        ClickHouseParams {
            hosts: Hosts::one(format!("http://{}", self.address)),
            ..place.params.clone()
        }
    }
}

/// Copies until either side ends or `let_pass` says no; then both sides are closed.
fn pass(mut from: TcpStream, mut to: TcpStream, mut let_pass: impl FnMut(&[u8]) -> bool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length) = from.read(&mut buffer) {
        if length == 0 || !let_pass(&buffer[..length]) || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// An older engine is asked again without each of our settings that it does not know.
fn learn_settings(place: &mut Place, client: &mut Client) {
    place.create("learned", PAIRS);
    let block = Block::of(1).strings("k", &["a"]);
    client.insert("learned", &["k"], &[], &block.bytes(), soon()).unwrap();
    place.client.execute(&format!("DROP TABLE {}", client.qualified("learned")), soon()).unwrap();
}

#[test]
fn a_lost_answer_leaves_the_outcome_open_and_a_second_try_is_harmless() {
    let mut place = place();
    place.create(
        "t",
        "(k String, _version UInt64) ENGINE = ReplacingMergeTree(_version) ORDER BY k",
    );
    let proxy = Proxy::to(place.params.hosts.current());
    let mut client = Client::connect(&proxy.params(&place)).unwrap();
    learn_settings(&mut place, &mut client);
    let block = Block::of(1).strings("k", &["a"]).numbers("_version", "UInt64", &[5]);
    let mut insert = || client.insert("t", &block.names(), &[], &block.bytes(), soon());
    proxy.answers_to_lose.store(1, Ordering::SeqCst);
    let error = retry(insert());
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert_eq!(place.read("count()", "t", ""), "1", "the engine did take the block");
    insert().unwrap();
    assert_eq!(place.read("count(), any(_version)", "t", "FINAL"), "1,5");
}

#[test]
fn connections_are_kept_or_not_as_the_parameters_say() {
    let mut place = place();
    place.create("t", PAIRS);
    let block = Block::of(1).strings("k", &["a"]);
    for (keep_alive, connections) in [(true, 1), (false, 20)] {
        let proxy = Proxy::to(place.params.hosts.current());
        let params = ClickHouseParams { keep_alive, ..proxy.params(&place) };
        let mut client = Client::connect(&params).unwrap();
        learn_settings(&mut place, &mut client);
        proxy.connections.fetch_min(u64::from(keep_alive), Ordering::SeqCst);
        for _ in 0..10 {
            client.insert("t", &["k"], &[], &block.bytes(), soon()).unwrap();
            client.query("SELECT 1", &[], soon()).unwrap();
        }
        assert_eq!(proxy.connections.load(Ordering::SeqCst), connections, "{keep_alive}");
    }
}

/// A server of our own: `answers` are sent one per request, over as many connections as it takes;
/// an empty one is never sent, and the connection held. After each answer the connection is closed
/// when `close` says so. The heads of the requests come out of the receiver.
fn scripted(answers: Vec<String>, close: bool) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (heads, received) = channel();
    thread::spawn(move || {
        let mut answers = answers.into_iter().peekable();
        while answers.peek().is_some() {
            let Ok((mut stream, _)) = listener.accept() else { return };
            while let Some(head) = read_request(&mut stream) {
                let _ = heads.send(head);
                let Some(answer) = answers.next() else { return };
                if answer.is_empty() {
                    // Ends when the client gives up.
                    let _ = stream.read(&mut [0; 1]);
                    let _ = heads.send("closed".to_owned());
                    break;
                }
                let _ = stream.write_all(answer.as_bytes());
                if close {
                    drop(stream);
                    let _ = heads.send("closed".to_owned());
                    break;
                }
            }
        }
    });
    (endpoint, received)
}

fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&request);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let whole = match head.to_ascii_lowercase().split_once("content-length: ") {
                Some((_, rest)) => {
                    let length: usize = rest.lines().next()?.parse().ok()?;
                    body.len() >= length
                }
                None => body.ends_with("0\r\n\r\n"),
            };
            if whole {
                return Some(head.to_owned());
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(length) => request.extend_from_slice(&buffer[..length]),
        }
    }
}

fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nX-ClickHouse-Query-Id: q\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn params_of(endpoint: String) -> ClickHouseParams {
    ClickHouseParams {
        hosts: Hosts::one(endpoint),
        cluster: None,
        quorum: None,
        user: String::new(),
        password: Secret::default(),
        database: "d".to_owned(),
        request_timeout: Duration::from_secs(5),
        compress: true,
        keep_alive: true,
        keep_alive_idle: None,
        connections_max: 1,
        insert_strategy: InsertStrategy::Insert,
        halt: Halt::default(),
    }
}

fn insert_one(client: &mut Client, deadline: Instant) -> Result<(), InsertError> {
    client.insert("t", &["k"], &[], &Block::of(1).strings("k", &["a"]).bytes(), deadline)
}

#[test]
fn every_insert_says_what_it_relies_on() {
    let (endpoint, heads) = scripted(vec![answer("200 OK", "")], false);
    insert_one(&mut Client::connect(&params_of(endpoint)).unwrap(), soon()).unwrap();
    let head = heads.recv_timeout(Duration::from_secs(5)).unwrap();
    for said in [
        "INSERT+INTO+%60d%60.%60t%60+%28%60k%60%29+FORMAT+Native",
        "&decompress=1",
        "&query_id=walhouse-",
        "&async_insert=0",
        "&wait_end_of_query=1",
        "&input_format_skip_unknown_fields=0",
        "&input_format_null_as_default=1",
        "&max_partitions_per_insert_block=0",
        "&insert_distributed_sync=1",
        "&enable_json_type=1",
        "&type_json_skip_duplicated_paths=1",
        "&insert_deduplication_token=&",
        "&materialized_views_ignore_errors=0",
        "&deduplicate_blocks_in_dependent_materialized_views=1",
        "&insert_quorum=0",
    ] {
        assert!(head.contains(said), "{said} in {head}");
    }
}

#[test]
fn a_setting_the_server_does_not_know_is_left_out_from_then_on() {
    let unknown = |name: &str| {
        let text = format!("Code: 115. DB::Exception: Unknown setting '{name}'. (UNKNOWN_SETTING)");
        answer("404 Not Found", &text)
    };
    let answers = vec![
        unknown("enable_json_type"),
        unknown("type_json_skip_duplicated_paths"),
        answer("200 OK", ""),
        answer("200 OK", ""),
        // One that must not be left out.
        unknown("async_insert"),
    ];
    let (endpoint, heads) = scripted(answers, false);
    let mut client = Client::connect(&params_of(endpoint)).unwrap();
    insert_one(&mut client, soon()).unwrap();
    insert_one(&mut client, soon()).unwrap();
    let error = retry(insert_one(&mut client, soon()));
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    let heads: Vec<String> = heads.try_iter().collect();
    assert_eq!(heads.len(), 5);
    assert!(!heads[1].contains("enable_json_type"));
    for head in &heads[2..] {
        assert!(head.contains("allow_experimental_json_type=1"), "{head}");
        assert!(!head.contains("enable_json_type") && !head.contains("skip_duplicated"), "{head}");
    }
}

#[test]
fn silence_ends_at_the_deadline_and_the_connection_is_given_up() {
    let (endpoint, heads) = scripted(vec![String::new(), answer("200 OK", "")], false);
    let mut client = Client::connect(&params_of(endpoint)).unwrap();
    let began = Instant::now();
    let error = retry(insert_one(&mut client, began + Duration::from_millis(300)));
    let took = began.elapsed();
    assert!(Duration::from_millis(300) <= took && took < Duration::from_secs(3), "{took:?}");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().ends_with(": no answer in time"), "{error}");
    assert!(heads.recv_timeout(Duration::from_secs(5)).unwrap().starts_with("POST"));
    assert_eq!(heads.recv_timeout(Duration::from_secs(5)).unwrap(), "closed");
    // The client itself is as good as new.
    insert_one(&mut client, soon()).unwrap();
}

#[test]
fn a_server_that_does_not_read_is_left_at_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut client = Client::connect(&params_of(endpoint)).unwrap();
    // More than any socket buffer, and nothing to compress.
    let mut random = fastrand::Rng::with_seed(1);
    let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(64 << 20).collect();
    let began = Instant::now();
    let deadline = began + Duration::from_millis(1500);
    let error = retry(client.insert("t", &["k"], &[], &noise, deadline));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}

#[test]
fn a_connection_closed_while_idle_is_replaced_unnoticed() {
    let answers = (0..20).map(|_| answer("200 OK", "")).collect();
    let (endpoint, heads) = scripted(answers, true);
    let mut client = Client::connect(&params_of(endpoint)).unwrap();
    for _ in 0..20 {
        insert_one(&mut client, soon()).unwrap();
        heads.recv_timeout(Duration::from_secs(5)).unwrap();
        // Before that the connection is not idle: an insert on its way may be lost with it.
        assert_eq!(heads.recv_timeout(Duration::from_secs(5)).unwrap(), "closed");
    }
}

const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\nX-ClickHouse-Query-Id: q\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Goal: the status alone is nobody's yes, to whatever statement.
#[test]
fn what_is_not_clickhouse_is_never_taken_for_a_yes() {
    let foreign = [
        answer("502 Bad Gateway", ""),
        answer("500 Oops", "<html>hunter2</html>"),
        "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(),
        // Of a proxy in maintenance, with a page and without.
        "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhunter2".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 204 No Content\r\nX-ClickHouse-Query-Id: q\r\n\r\n".to_owned(),
        "HTTP/1.1 302 Found\r\nLocation: http://h/hunter2\r\nContent-Length: 0\r\n\r\n".to_owned(),
        // Cut in the middle: by length, in a chunk, between two, and where nothing says so.
        "HTTP/1.1 200 OK\r\nX-ClickHouse-Query-Id: q\r\nContent-Length: 10\r\n\r\nab".to_owned(),
        format!("{CHUNKED}4\r\n26"),
        format!("{CHUNKED}4\r\n26.9\r\n"),
        "HTTP/1.1 200 OK\r\nX-ClickHouse-Query-Id: q\r\n\r\n".to_owned(),
    ];
    for said in foreign {
        let (endpoint, _heads) = scripted(vec![said.clone()], true);
        let error = Client::connect(&params_of(endpoint)).unwrap().ping(soon()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{said}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let (endpoint, _heads) = scripted(vec![said.clone()], true);
        let mut client = Client::connect(&params_of(endpoint)).unwrap();
        let error = client.execute("CREATE DATABASE d", soon()).expect_err(&said);
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        let (endpoint, _heads) = scripted(vec![said], true);
        let error = retry(insert_one(&mut Client::connect(&params_of(endpoint)).unwrap(), soon()));
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    }
    // An exception that came behind the status.
    let text = "Code: 241. DB::Exception: too much (MEMORY_LIMIT_EXCEEDED)";
    let (endpoint, _heads) = scripted(vec![answer("200 OK", text)], true);
    let error = retry(insert_one(&mut Client::connect(&params_of(endpoint)).unwrap(), soon()));
    assert!(error.to_string().contains("code 241"), "{error}");
    for said in ["hunter2", "hunter2\n", "\n", ""] {
        let (endpoint, _heads) = scripted(vec![answer("200 OK", said)], true);
        let error = Client::connect(&params_of(endpoint)).unwrap().ping(soon()).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

/// Goal: a proxy that waits no longer asks for less to be read, and one that takes no such length
/// for shorter statements, if the server behind it is well.
#[test]
fn what_a_proxy_turns_down_says_what_was_too_much() {
    for (status, expected) in [
        ("504 Gateway Timeout", Some(TooMuch::Scan)),
        ("408 Request Timeout", Some(TooMuch::Scan)),
        ("413 Content Too Large", Some(TooMuch::Statement)),
    ] {
        let answers = vec![answer(status, "<html>"), answer("200 OK", "26.9.1\n")];
        let (endpoint, _heads) = scripted(answers, true);
        let mut client = Client::connect(&params_of(endpoint)).unwrap();
        let error = client.query("SELECT 1", &[], soon()).unwrap_err();
        assert_eq!(too_much(&mut client, &error, 10, false), expected, "{status}");
    }
}

#[test]
fn nobody_listening_is_unreachable() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut client = Client::connect(&params_of(format!("http://127.0.0.1:{port}"))).unwrap();
    let error = retry(insert_one(&mut client, soon()));
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("refused"), "{error}");
    let mut client = Client::connect(&params_of("http://no-such-host.invalid".to_owned())).unwrap();
    let error = client.ping(Instant::now() + Duration::from_secs(20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}
