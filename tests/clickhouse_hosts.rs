//! Several hosts, Replicated tables and quorums, at the ClickHouse port.
//!
//! What a replica that is behind does cannot be had from the embedded engine, whose Replicated
//! tables never leave read-only mode (it has no port for other replicas). So the order of what is
//! said to two hosts is looked at with two servers of our own; what the engine can say, it says:
//! its CREATE takes our statements, and its refusals are the real ones.

#[path = "support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use support::clickhouse::Clickhouse;
use support::wait::{PATIENCE, until, until_true};
use support::zookeeper::Zookeeper;
use walhouse::clickhouse::hosts::Hosts;
use walhouse::clickhouse::lookup::{find_live, find_sort_keys};
use walhouse::clickhouse::own::state::{self, StateRow};
use walhouse::clickhouse::own::{self, backfills, refused};
use walhouse::clickhouse::params::{ClickHouseParams, Quorum};
use walhouse::clickhouse::partitions::partitions;
use walhouse::clickhouse::{Client, InsertError, stored, tables};
use walhouse::error::{Error, ErrorKind};
use walhouse::rows::Shape;
use walhouse::rows::key::Key;
use walhouse::rows::target::Target;
use walhouse::services::mapping::Mapping;
use walhouse::services::sessions::Sessions;
use walhouse::services::{runs, sessions};

const ENGINE: &str = "ReplicatedReplacingMergeTree\n";
/// What is asked of it where there are several hosts.
const PATH: &str = "/clickhouse/tables/1\n";
/// What a table is asked about at a host before it is read there.
const FIRST_READ: [&str; 4] =
    ["SELECT engine FROM", "SELECT zookeeper_path FROM", "SYSTEM SYNC REPLICA", "SELECT k FROM"];
/// An answer that waits for the next one.
const HELD: (u16, &str) = (0, "");
const READ: &str = "SELECT k FROM `trigger_dev`.`t`";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn params_of(endpoints: &[&str]) -> ClickHouseParams {
    let (params, _) =
        ClickHouseParams::parse("http://127.0.0.1:1?compress=0", "trigger_dev").unwrap();
    let endpoints = endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect();
    ClickHouseParams { hosts: Hosts::new(endpoints).unwrap(), ..params }
}

/// A host that answers each request with the next of its answers, and keeps what it was asked.
#[derive(Clone)]
struct Host {
    endpoint: String,
    answers: Arc<Mutex<VecDeque<(u16, String)>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Host {
    fn start(answers: &[(u16, &str)]) -> Host {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = Host {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            answers: Arc::default(),
            asked: Arc::default(),
        };
        host.will(answers);
        let serving = host.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serving = serving.clone();
                thread::spawn(move || serving.serve(stream));
            }
        });
        host
    }

    fn will(&self, answers: &[(u16, &str)]) {
        let more = answers.iter().map(|(status, body)| (*status, (*body).to_owned()));
        self.answers.lock().unwrap().extend(more);
    }

    /// A request for which there is no answer ends its connection.
    fn serve(&self, mut stream: TcpStream) {
        while let Some(request) = read_request(&mut stream) {
            self.asked.lock().unwrap().push(request);
            let Some(mut answer) = self.answers.lock().unwrap().pop_front() else { return };
            if answer.0 == HELD.0 {
                let next = || self.answers.lock().unwrap().pop_front();
                answer = until("there is an answer", PATIENCE, next);
            }
            let (status, body) = answer;
            let head = format!(
                "HTTP/1.1 {status} X\r\nX-ClickHouse-Query-Id: q\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            if stream.write_all(format!("{head}{body}").as_bytes()).is_err() {
                return;
            }
        }
    }

    /// The statements since the last time, each by its first words.
    fn asked(&self) -> Vec<String> {
        let asked: Vec<String> = self.asked.lock().unwrap().drain(..).collect();
        let statement = |request: &String| {
            let begins = ["SELECT", "SYSTEM", "INSERT", "CREATE"];
            let at = begins.iter().filter_map(|word| request.find(word)).min().expect("it has one");
            let text = request[at..].replace(['+', '%'], " ");
            text.split(' ').take(3).collect::<Vec<_>>().join(" ")
        };
        asked.iter().map(statement).collect()
    }
}

/// The whole request as text: the statement may stand in its first line or in its body.
fn read_request(stream: &mut TcpStream) -> Option<String> {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let is_whole = match head.to_ascii_lowercase().split_once("content-length: ") {
                Some((_, rest)) => rest.lines().next()?.parse::<usize>().ok()? <= body.len(),
                None => body.ends_with("0\r\n\r\n"),
            };
            if is_whole {
                return Some(text);
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(length) => request.extend_from_slice(&buffer[..length]),
        }
    }
}

fn insert(client: &mut Client) -> Result<(), InsertError> {
    client.insert("t", &["k"], &[], b"\x01\x01\x01k\x06String\x01a", soon())
}

#[track_caller]
fn retry(outcome: Result<(), InsertError>) -> Error {
    match outcome {
        Err(InsertError::Retry(error) | InsertError::Lost(error) | InsertError::Large(error)) => {
            error
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_read_on_another_host_comes_after_its_replica_has_caught_up() {
    let a = Host::start(&[(200, ENGINE), (200, PATH), (200, ""), (200, "1\n"), (200, "1\n")]);
    let b = Host::start(&[(200, ENGINE), (200, PATH), (200, ""), (200, "2\n"), (200, "3\n")]);
    let params = params_of(&[&a.endpoint, &b.endpoint]);
    let mut client = Client::connect(&params).unwrap();
    let mut other = Client::connect(&params).unwrap();
    client.query(READ, &["t"], soon()).unwrap();
    assert_eq!(a.asked(), FIRST_READ);
    // Once for all clients.
    other.query(READ, &["t"], soon()).unwrap();
    assert_eq!(a.asked(), ["SELECT k FROM"]);

    // It has no more answers: the same call goes on at the other host, and all clients with it.
    assert_eq!(client.query(READ, &["t"], soon()).unwrap(), [[Some("2".to_owned())]]);
    assert_eq!(b.asked(), FIRST_READ);
    assert_eq!(a.asked(), ["SELECT k FROM"]);
    assert_eq!(other.query(READ, &["t"], soon()).unwrap(), [[Some("3".to_owned())]]);
    assert_eq!((a.asked(), b.asked()), (vec![], vec!["SELECT k FROM".to_owned()]));
}

#[test]
fn a_replica_that_does_not_catch_up_is_not_read_from() {
    let late = (408, "Code: 159. DB::Exception: SYNC REPLICA d.t: timed out. (TIMEOUT_EXCEEDED)");
    let a = Host::start(&[(200, ENGINE), late, late]);
    let mut client = Client::connect(&params_of(&[&a.endpoint])).unwrap();
    for asked in [
        vec!["SELECT engine FROM", "SYSTEM SYNC REPLICA"],
        // It is asked again, and not read from meanwhile.
        vec!["SYSTEM SYNC REPLICA"],
    ] {
        let error = client.query(READ, &["t"], soon()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains("bring `trigger_dev`.`t` up to date"), "{error}");
        assert_eq!(a.asked(), asked);
    }
}

#[test]
fn what_a_left_host_acknowledges_late_is_waited_for_again() {
    let again = [(200, ENGINE), (200, PATH), (200, ""), (200, "1\n")];
    let (a, b) = (Host::start(&[(200, ENGINE), (200, PATH), HELD]), Host::start(&again));
    let params = params_of(&[&a.endpoint, &b.endpoint]);
    let mut slow = Client::connect(&params).unwrap();
    let mut reader = Client::connect(&params).unwrap();
    let inserting = thread::spawn(move || insert(&mut slow));
    until_true("the insert is on its way", PATIENCE, || a.asked.lock().unwrap().len() == 3);
    // For this one there is no answer, so that the other host is gone to.
    reader.query(READ, &["t"], soon()).unwrap();
    assert_eq!(b.asked(), FIRST_READ);
    b.will(&[(200, "1\n")]);
    reader.query(READ, &["t"], soon()).unwrap();
    assert_eq!(b.asked(), ["SELECT k FROM"]);
    a.will(&[(200, "")]);
    inserting.join().unwrap().unwrap();
    b.will(&again);
    reader.query(READ, &["t"], soon()).unwrap();
    assert_eq!(b.asked(), FIRST_READ);
}

#[test]
fn a_table_without_replication_is_used_on_its_own_server_only() {
    let plain = (200, "ReplacingMergeTree\n");
    let a = Host::start(&[plain, (200, "uuid-a\n"), (200, "1\n")]);
    let b = Host::start(&[plain, (200, "uuid-b\n"), plain, (200, "uuid-b\n")]);
    let mut client = Client::connect(&params_of(&[&a.endpoint, &b.endpoint])).unwrap();
    client.query(READ, &["t"], soon()).unwrap();
    let error = client.query(READ, &["t"], soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    assert!(error.to_string().contains("its rows are on another server"), "{error}");
    // The next statement goes back to where the rows are; and an insert is no other.
    assert_eq!(client.params().hosts.current(), a.endpoint);
    retry(insert(&mut client));
    assert_eq!(client.params().hosts.current(), b.endpoint);
    let error = retry(insert(&mut client));
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    assert!(!b.asked().iter().any(|asked| asked.starts_with("INSERT")), "nothing went there");

    // Two addresses of one server.
    let b = Host::start(&[plain, (200, "uuid-a\n"), (200, "1\n")]);
    let a = Host::start(&[plain, (200, "uuid-a\n"), (200, "1\n")]);
    let mut client = Client::connect(&params_of(&[&a.endpoint, &b.endpoint])).unwrap();
    client.query(READ, &["t"], soon()).unwrap();
    client.query(READ, &["t"], soon()).unwrap();
}

#[test]
fn hosts_whose_tables_are_not_the_same_are_not_both_used() {
    let elsewhere = (200, "/clickhouse/tables/2\n");
    let a = Host::start(&[(200, ENGINE), (200, PATH), (200, ""), (200, "1\n")]);
    let b = Host::start(&[(200, ENGINE), elsewhere, (200, ENGINE), elsewhere]);
    let mut client = Client::connect(&params_of(&[&a.endpoint, &b.endpoint])).unwrap();
    client.query(READ, &["t"], soon()).unwrap();
    let error = client.query(READ, &["t"], soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    assert!(
        error.to_string().contains("it is not a replica of the one at another host"),
        "{error}"
    );
    assert_eq!(client.params().hosts.current(), a.endpoint);
    retry(insert(&mut client));
    assert_eq!(retry(insert(&mut client)).kind(), ErrorKind::Setup);
    assert!(!b.asked().iter().any(|asked| asked.starts_with("INSERT")), "nothing went there");

    // A quorum that the one table cannot have.
    let plain = (200, "ReplacingMergeTree\n");
    let a = Host::start(&[plain, (200, "uuid-a\n")]);
    let params = params_of(&[&a.endpoint, &b.endpoint]);
    let params = ClickHouseParams { quorum: Some(Quorum::Auto), ..params };
    let error = retry(insert(&mut Client::connect(&params).unwrap()));
    assert!(error.to_string().contains("inserts require a quorum"), "{error}");
    assert!(!a.asked().iter().any(|asked| asked.starts_with("INSERT")), "nothing went there");
}

#[test]
fn where_others_may_have_written_the_replica_catches_up_again() {
    let ids = [Key::from_iter([b"x"])];
    let target = &sessions::TARGETS[0];
    let look = |client: &mut Client| {
        find_sort_keys(client, target, &ids, &[], soon, &mut Vec::new()).unwrap();
    };
    let asked_once = [(200, ""), (200, "")];
    let a = Host::start(&[(200, ENGINE), (200, PATH)]);
    a.will(&asked_once);
    a.will(&asked_once);
    let mut client = Client::connect(&params_of(&[&a.endpoint, "http://127.0.0.1:1"])).unwrap();
    look(&mut client);
    a.asked();
    look(&mut client);
    assert_eq!(
        a.asked(),
        ["SYSTEM SYNC REPLICA", "SELECT toString(`organization_id`), toString(`project_id`),"]
    );
}

#[test]
fn whatever_walhouse_reads_of_tables_of_ours_comes_after_the_replica_has_caught_up() {
    let looks: [fn(&mut Client, &Target); 9] = [
        |client, _| drop(state::TABLE.read(client, "runs", "s", soon())),
        |client, _| drop(state::others(client, "runs", "s", soon())),
        |client, _| drop(backfills::upper(client, &StateRow::default(), soon())),
        |client, _| drop(refused::counts(client, "runs", soon())),
        |client, target| drop(partitions(client, &target.table, soon())),
        |client, target| {
            let ids = [Key::from_iter([b"x"])];
            drop(find_live(client, target, &ids, soon, &mut Vec::new()));
        },
        |client, target| drop(stored::sample_of_live_keys(client, target, "p", 1, 0, soon())),
        |client, target| {
            let shape = Shape::of(vec![true; target.columns.len()]);
            drop(stored::highest_version(client, target, &shape, PATIENCE, || Ok(())));
        },
        |client, target| drop(client.insert_again(&target.table, "1", &[], soon())),
    ];
    for (at, look) in looks.iter().enumerate() {
        let a = Host::start(&[(200, ENGINE), (200, ""), (200, "")]);
        let mut client = Client::connect(&params_of(&[&a.endpoint])).unwrap();
        look(&mut client, &Sessions.targets()[0]);
        let asked = a.asked();
        assert!(asked.iter().any(|asked| asked == "SYSTEM SYNC REPLICA"), "{at}: {asked:?}");
    }
}

#[test]
fn a_replica_that_does_not_catch_up_is_left_for_one_that_may_have_all() {
    let late = (408, "Code: 159. DB::Exception: SYNC REPLICA d.t: timed out. (TIMEOUT_EXCEEDED)");
    let a = Host::start(&[(200, ENGINE), (200, PATH), late]);
    let b = Host::start(&[(200, ENGINE), (200, PATH), (200, ""), (200, "1\n")]);
    let mut client = Client::connect(&params_of(&[&a.endpoint, &b.endpoint])).unwrap();
    assert_eq!(client.query(READ, &["t"], soon()).unwrap(), [[Some("1".to_owned())]]);
}

#[test]
fn one_host_that_the_user_may_not_sync_is_read_as_ever() {
    let denied =
        (403, "Code: 497. DB::Exception: walhouse: Not enough privileges. (ACCESS_DENIED)");
    let a = Host::start(&[(200, ENGINE), denied, (200, "1\n")]);
    Client::connect(&params_of(&[&a.endpoint])).unwrap().query(READ, &["t"], soon()).unwrap();
    let b = Host::start(&[(200, ENGINE), (200, PATH), denied]);
    let params = params_of(&[&b.endpoint, &a.endpoint]);
    let error = Client::connect(&params).unwrap().query(READ, &["t"], soon()).unwrap_err();
    assert!(error.hint_text().unwrap().contains("GRANT SYSTEM SYNC REPLICA"), "{error}");
}

#[test]
fn storage_that_is_shared_is_read_in_sequence() {
    let a = Host::start(&[(200, "SharedReplacingMergeTree\n"), (200, "1\n")]);
    Client::connect(&params_of(&[&a.endpoint])).unwrap().query(READ, &["t"], soon()).unwrap();
    let asked = a.asked.lock().unwrap();
    assert!(asked[1].contains("select_sequential_consistency=1"), "{}", asked[1]);
}

#[test]
fn an_insert_leaves_a_host_that_is_read_only_and_stays_for_a_missing_quorum() {
    let read_only = "Code: 242. DB::Exception: Table is in readonly mode. (TABLE_IS_READ_ONLY)";
    let few = "Code: 285. DB::Exception: Number of alive replicas. (TOO_FEW_LIVE_REPLICAS)";
    let a = Host::start(&[(200, ENGINE), (200, PATH), (500, read_only)]);
    let b = Host::start(&[(200, ENGINE), (200, PATH), (500, few), (200, "")]);
    let params = params_of(&[&a.endpoint, &b.endpoint]);
    let params = ClickHouseParams { quorum: Some(Quorum::Replicas(2)), ..params };
    let mut client = Client::connect(&params).unwrap();
    for _ in 0..2 {
        assert_eq!(retry(insert(&mut client)).kind(), ErrorKind::Unreachable);
        assert_eq!(params.hosts.current(), b.endpoint);
    }
    insert(&mut client).unwrap();
    let asked = b.asked.lock().unwrap().join("\n");
    assert_eq!(asked.matches("insert_quorum=2&").count(), 2, "{asked}");
    assert!(asked.contains("insert_quorum_parallel=1"), "{asked}");
    // The later of the two wins.
    let last = asked.rfind("insert_deduplicate=").expect("it is said");
    assert!(asked[last..].starts_with("insert_deduplicate=0"), "{asked}");
    assert!(asked.contains("deduplicate_insert=disable"), "{asked}");
}

#[test]
fn a_host_that_is_down_costs_no_statement() {
    let down = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let a = Host::start(&[(200, "26.9.2.1\n")]);
    let params = params_of(&[&format!("http://{down}"), &a.endpoint]);
    assert_eq!(Client::connect(&params).unwrap().ping(soon()).unwrap(), "26.9.2.1");
    // All down: each is tried once.
    let params = params_of(&[&format!("http://{down}"), &format!("http://{down}/")]);
    let error = Client::connect(&params).unwrap().ping(soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
}

#[test]
fn tables_on_a_cluster_tell_of_hosts_that_did_not_answer() {
    let hosts = "a\t9000\t0\t\t1\t0\nb\t9000\t\\N\t\\N\t1\t0\n";
    let a = Host::start(&[(200, ""), (200, "1\n"), (200, hosts)]);
    let params = ClickHouseParams { cluster: Some("c".into()), ..params_of(&[&a.endpoint]) };
    let mut client = Client::connect(&params).unwrap();
    // It ends where the table is looked for after that.
    tables::ensure(&mut client, &sessions::TARGETS[0], true, soon()).unwrap_err();
    let asked = a.asked.lock().unwrap();
    assert!(asked[2].contains("ON CLUSTER 'c' ("), "{}", asked[2]);
    assert!(asked[2].contains("ENGINE = ReplicatedReplacingMergeTree(`_version`, `_is_deleted`)"));
    assert!(asked[2].contains("distributed_ddl_output_mode=null_status_on_timeout"));
    assert!(asked[2].contains("distributed_ddl_task_timeout=5"));
    // Several hosts without a cluster: it would be on one of them alone.
    let b = Host::start(&[(200, ""), (200, "1\n")]);
    let mut client = Client::connect(&params_of(&[&b.endpoint, &a.endpoint])).unwrap();
    let error = tables::ensure(&mut client, &sessions::TARGETS[0], true, soon()).unwrap_err();
    assert!(error.to_string().contains("several hosts are named"), "{error}");
}

#[test]
fn the_engine_takes_our_replicated_tables_and_its_refusals_are_read_right() {
    let zookeeper = Zookeeper::start();
    let engine = Clickhouse::start_front_with(Some(zookeeper.engine_config()));
    engine.execute("CREATE DATABASE trigger_dev");
    let (alone, _) = ClickHouseParams::parse(&engine.url(), "trigger_dev").unwrap();
    let params = ClickHouseParams { cluster: Some("one".into()), ..alone.clone() };
    let mut client = Client::connect(&params).unwrap();
    let ours = own::tables::absences(&client, &own::tables::names());
    let ours = ours.iter().map(|e| e.hint_text().unwrap().trim_start_matches("Run: ").to_owned());
    let targets: Vec<&Target> = runs::TARGETS.iter().chain(sessions::TARGETS.iter()).collect();
    let ddls: Vec<String> =
        ours.chain(targets.iter().map(|target| tables::ddl(&client, target))).collect();
    let tables = ddls.len();
    assert_eq!(tables, own::tables::names().len() + targets.len());
    for ddl in ddls {
        // The engine has no queue for ON CLUSTER; all else of the statement is its to judge.
        assert_eq!(ddl.matches(" ON CLUSTER 'one' (").count(), 1, "{ddl}");
        engine.execute(&ddl.replace(" ON CLUSTER 'one'", ""));
    }
    let replicated = "SELECT count() FROM system.replicas WHERE database = 'trigger_dev'";
    assert_eq!(engine.value(replicated), tables.to_string());
    for target in targets {
        let shape = tables::read_shape(&mut client, &target.table, soon()).unwrap().unwrap();
        assert_eq!(shape.warnings, [] as [String; 0], "{}", target.table);
    }

    engine.execute(
        "CREATE TABLE trigger_dev.t (k String) ENGINE = ReplicatedReplacingMergeTree ORDER BY k",
    );
    let quorum = ClickHouseParams { quorum: Some(Quorum::Replicas(2)), ..alone.clone() };
    let error = retry(insert(&mut Client::connect(&quorum).unwrap()));
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("less than requested quorum (2/1)"), "{error}");
    assert!(error.hint_text().unwrap().contains("QUORUM"), "{error}");
    // A replica that cannot say that it has everything is not read.
    let error = Client::connect(&alone).unwrap().query(READ, &["t"], soon()).unwrap_err();
    assert!(error.to_string().contains("code 242 (TABLE_IS_READ_ONLY)"), "{error}");
    // A quorum needs replicated tables.
    engine.execute("CREATE TABLE trigger_dev.p (k String) ENGINE = MergeTree ORDER BY k");
    let mut client = Client::connect(&quorum).unwrap();
    walhouse::clickhouse::cluster::check_quorum(&mut client, &["t"], soon()).unwrap();
    let error = walhouse::clickhouse::cluster::check_quorum(&mut client, &["t", "p"], soon());
    assert!(error.unwrap_err().to_string().contains("its engine is MergeTree"));
}
