//! The HTTP port over real sockets: what well-meaning clients get, and what hostile ones do not.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use walhouse::config::Config;
use walhouse::health::{Condition, Health};
use walhouse::metrics::{Metrics, ServerWal};
use walhouse::overview::{Overview, Repair, RetainedWal, ServiceState, Who};
use walhouse::secret::Mask;
use walhouse::threads::board::Board;
use walhouse::threads::http::HttpServer;
use walhouse::wal::Lsn;

/// Longer than anything here may take; a test that reaches it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

struct Port {
    server: HttpServer,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

fn start_on(addr: SocketAddr) -> Port {
    let metrics = Arc::new(Metrics::new(&["runs"]));
    let health = Arc::new(Health::new(Arc::clone(&metrics)));
    let server = HttpServer::start(addr, board(&metrics, &health)).unwrap();
    Port { server, metrics, health }
}

fn board(metrics: &Arc<Metrics>, health: &Arc<Health>) -> Arc<Board> {
    let slots = vec!["task_runs_to_clickhouse_v1".to_owned()];
    Arc::new(Board::new(Arc::clone(metrics), Arc::clone(health), slots))
}

fn start() -> Port {
    start_on("127.0.0.1:0".parse().unwrap())
}

impl Port {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect_timeout(&self.server.local_addr(), PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        read_all(&mut stream)
    }

    fn get(&self, path: &str) -> String {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
    }
}

/// Until the server closes, which it always does.
fn read_all(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    match stream.read_to_end(&mut text) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        Err(e) => panic!("read after {} bytes: {e}", text.len()),
    }
    String::from_utf8(text).unwrap()
}

fn status(response: &str) -> u16 {
    let status = response.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status.unwrap_or_else(|| panic!("no status in {response:?}")).parse().unwrap()
}

/// The body, whose length is as the header says.
fn body(response: &str) -> &str {
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    assert_eq!(length.parse(), Ok(body.len()), "{response}");
    assert!(head.lines().any(|line| line == "Connection: close"), "{response}");
    body
}

#[test]
fn metrics_and_health_are_served() {
    let port = start();
    port.metrics.service("runs").transactions.inc_by(7);
    let metrics = port.get("/metrics");
    assert_eq!(status(&metrics), 200);
    assert!(metrics.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(body(&metrics).contains("\nwalhouse_transactions_total{service=\"runs\"} 7\n"));

    port.health.publish("runs", ServiceState::Streaming);
    let healthy = port.get("/healthz");
    assert_eq!(status(&healthy), 200);
    let json: serde_json::Value = serde_json::from_str(body(&healthy)).unwrap();
    assert_eq!(json["services"]["runs"]["state"], "streaming");

    port.health.publish("runs", Condition::because(ServiceState::Failed, "the slot is gone"));
    let unhealthy = port.get("/healthz");
    assert_eq!(status(&unhealthy), 503);
    assert!(body(&unhealthy).contains("the slot is gone"));
}

/// Everything that a process without servers can be made to say.
#[test]
fn status_says_what_is_known() {
    let port = start();
    let runs = port.metrics.service("runs");
    runs.received.set(Lsn(0x16_B374_D848));
    runs.flushed.set(Lsn(0x16_B374_D000));
    runs.on_confirmed(Lsn(0x16_B374_0000));
    runs.table("task_runs_v2").refused_rows.inc_by(3);
    runs.on_server_wal(ServerWal {
        lsn: Lsn(0x16_B375_0000),
        retained: RetainedWal {
            bytes: Some(1 << 20),
            left_bytes: Some(1 << 30),
            limit_bytes: Some(1 << 31),
            ..RetainedWal::default()
        },
    });
    runs.insert_outage.raise("insert into `t`: no", Some("mend it"));
    port.health.publish_leader("runs", Who::ThisProcess);
    port.health.publish("runs", Condition::because(ServiceState::Streaming, "go"));
    port.health.report_error("runs", "connect: refused", Some("open it"));

    let answer = port.get("/status");
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("\r\nContent-Type: application/json\r\n"), "{answer}");
    let json: Value = serde_json::from_str(body(&answer)).unwrap();
    assert_eq!((&json["source"], &json["healthy"]), (&json!("process"), &json!(true)));
    let service = &json["services"]["runs"];
    for (pointer, expected) in [
        ("/slot", json!("task_runs_to_clickhouse_v1")),
        ("/state", json!("streaming")),
        ("/reason", json!("go")),
        ("/leader/who", json!("this_process")),
        ("/wal/server_lsn", json!("16/B3750000")),
        ("/wal/received_lsn", json!("16/B374D848")),
        ("/wal/flushed_lsn", json!("16/B374D000")),
        ("/wal/confirmed_lsn", json!("16/B3740000")),
        ("/lag/bytes", json!(0x3000)),
        ("/retained_wal/bytes", json!(1 << 20)),
        ("/retained_wal/limit_bytes", json!(1_u64 << 31)),
        ("/retained_wal/left_bytes", json!(1 << 30)),
        ("/insert_outage/error", json!("insert into `t`: no")),
        ("/insert_outage/hint", json!("mend it")),
        ("/last_error/error", json!("connect: refused")),
        ("/last_error/hint", json!("open it")),
        ("/refused_rows/task_runs_v2", json!(3)),
        ("/repair", Value::Null),
        ("/changes/0/state", json!("streaming")),
        ("/changes/1/reason", json!("the process has started")),
    ] {
        assert_eq!(service.pointer(pointer), Some(&expected), "{pointer} of {service:#}");
    }
    let history = &service["history"];
    assert_eq!(history["at_unix_seconds"].as_array().unwrap().len(), 1, "{history}");
    assert_eq!(history["unflushed_bytes"], json!([0]));
    // The command reads it back.
    Overview::from_json(body(&answer).as_bytes()).unwrap();
}

#[test]
fn the_page_is_whole_and_allows_a_browser_nothing_else() {
    let port = start();
    port.health.publish("runs", ServiceState::Streaming);
    let answer = port.get("/");
    assert_eq!(status(&answer), 200);
    let page = body(&answer);
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"), "{page}");
    assert!(page.contains("\u{25cf} streaming"), "{page}");
    let live = port.get("/status?html");
    assert!(body(&live).starts_with("<main id=\"live\"") && body(&live).ends_with("</main>"));
    for header in [
        "Content-Type: text/html; charset=utf-8",
        "X-Content-Type-Options: nosniff",
        "Referrer-Policy: no-referrer",
        "Cross-Origin-Resource-Policy: same-origin",
        "Cache-Control: no-store",
    ] {
        assert!(answer.lines().any(|line| line == header), "{header} in {answer}");
    }
    let policy = |answer: &str| {
        let line = answer.lines().find_map(|l| l.strip_prefix("Content-Security-Policy: "));
        line.map(str::to_owned).unwrap_or_else(|| panic!("no policy in {answer}"))
    };
    assert!(policy(&answer).starts_with("default-src 'none'; style-src 'sha256-"));
    assert!(!policy(&answer).contains("unsafe"));
    for path in ["/status", "/status?html", "/metrics", "/healthz", "/nothing"] {
        let policy = policy(&port.get(path));
        assert_eq!(policy, "default-src 'none'; frame-ancestors 'none'", "{path}");
    }
}

/// Goal: no answer has a secret, wherever it was planted. Method: a secret in every variable that
/// takes one, and in every text of others that reaches the board.
#[test]
fn no_answer_has_a_secret() {
    const SECRETS: [&str; 4] = ["pg-s3cret/%", "ch-s3cret@#", "redis-s3cret", "legacy-s3cret"];
    let variables: HashMap<&str, String> = HashMap::from([
        ("DATABASE_URL", "postgres://u:pg-s3cret%2F%25@127.0.0.1/app".to_owned()),
        ("RUN_REPLICATION_LEGACY_DATABASE_URL", "postgres://u:legacy-s3cret@h/app".to_owned()),
        ("REDIS_HOST", "127.0.0.1".to_owned()),
        ("REDIS_PASSWORD", "redis-s3cret".to_owned()),
        ("RUN_REPLICATION_ENABLED", "1".to_owned()),
        ("RUN_REPLICATION_CLICKHOUSE_URL", "http://u:ch-s3cret%40%23@127.0.0.1:8123".to_owned()),
        ("SESSION_REPLICATION_ENABLED", "1".to_owned()),
        ("SESSION_REPLICATION_CLICKHOUSE_URL", "http://u:ch-s3cret%40%23@h:8123".to_owned()),
    ]);
    let config = Config::from_lookup(|name| variables.get(name).cloned()).unwrap();
    let mask = Mask::new(config.secrets());
    let metrics = Arc::new(Metrics::new(&["runs"]));
    let health = Arc::new(Health::with_mask(Arc::clone(&metrics), mask));
    let addr = "127.0.0.1:0".parse().unwrap();
    let server = HttpServer::start(addr, board(&metrics, &health)).unwrap();
    let port = Port { server, metrics, health };

    let encoded = "pg-s3cret%2F%25 ch-s3cret%40%23";
    let text = format!("refused: {} {encoded}", SECRETS.join(" "));
    let repair = Repair {
        reason: text.clone(),
        pass: "read".to_owned(),
        failed_attempts: 9,
        error: Some(text.clone()),
        ..Repair::default()
    };
    port.health.report_error("runs", &text, Some(&text));
    port.health.publish("runs", Condition::because(ServiceState::Streaming, &*text));
    port.health.publish_repair("runs", Some(repair));
    port.metrics.service("runs").insert_outage.raise(text.clone(), Some(&text));
    let states = [
        Condition::from(ServiceState::Streaming),
        Condition { hint: Some(text.clone()), ..Condition::because(ServiceState::Failed, &*text) },
        Condition::because(ServiceState::Stopped, &*text),
    ];
    for state in states {
        port.health.publish("runs", state);
        // What is worked out is kept for a moment.
        until_changed(&port);
        for path in ["/", "/status", "/status?html", "/healthz", "/metrics", "/nothing"] {
            let answer = port.get(path);
            for secret in SECRETS.iter().copied().chain(encoded.split(' ')) {
                assert!(!answer.contains(secret), "{secret} in {path}: {answer}");
            }
            if path != "/metrics" && path != "/nothing" {
                assert!(answer.contains("refused: ***"), "{path}: {answer}");
            }
        }
    }
}

/// Until `/status` has the state that `/healthz` has.
fn until_changed(port: &Port) {
    let state = |path: &str| {
        let json: Value = serde_json::from_str(body(&port.get(path))).unwrap();
        json["services"]["runs"]["state"].clone()
    };
    let deadline = Instant::now() + PATIENCE;
    while state("/status") != state("/healthz") {
        assert!(Instant::now() < deadline, "the status does not follow");
    }
}

/// Goal: the page costs little, however often it is asked for: what it shows is worked out a few
/// times a second at most.
#[test]
fn the_status_is_worked_out_a_few_times_a_second() {
    let port = start();
    let began = Instant::now();
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..200 {
        port.metrics.service("runs").unflushed_bytes.set(n);
        let json: Value = serde_json::from_str(body(&port.get("/status"))).unwrap();
        seen.insert(json["services"]["runs"]["unflushed_bytes"].as_u64().unwrap());
    }
    let most = 2 + began.elapsed().as_millis() / 250;
    assert!((seen.len() as u128) <= most, "{} of at most {most}", seen.len());
}

#[test]
fn other_paths_and_methods_are_refused() {
    let port = start();
    assert_eq!(status(&port.get("/metric")), 404);
    let post = port.ask(b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(status(&post), 405);
    assert!(post.contains("\r\nAllow: GET, HEAD\r\n"), "{post}");
    let head = port.ask(b"HEAD /healthz HTTP/1.1\r\n\r\n");
    assert_eq!(status(&head), 200);
    assert!(head.ends_with("\r\n\r\n") && !head.contains("Content-Length: 0"), "{head}");
}

#[test]
fn garbage_is_refused() {
    let port = start();
    let tls_hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    for garbage in [&tls_hello[..], b"\0\0\0\0", b"EVALSHA x 1 y\r\n\r\n", &[0xff; 9000]] {
        assert_eq!(status(&port.ask(garbage)), 400, "{garbage:?}");
    }
    assert_eq!(status(&port.get("/healthz")), 200);
}

#[test]
fn a_huge_head_is_refused_and_the_refusal_arrives() {
    let port = start();
    let head = format!("GET / HTTP/1.1\r\nCookie: {}", "x".repeat(60_000));
    assert_eq!(status(&port.ask(head.as_bytes())), 431);
    let headers = "A: b\r\n".repeat(100);
    assert_eq!(status(&port.ask(format!("GET / HTTP/1.1\r\n{headers}\r\n").as_bytes())), 431);
}

#[test]
fn only_the_first_of_pipelined_requests_is_answered() {
    let port = start();
    let response = port.ask(&b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50));
    assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{response}");
    assert_eq!(status(&response), 200);
}

#[test]
fn a_request_in_pieces_is_answered() {
    let port = start();
    let mut stream = port.connect();
    stream.set_nodelay(true).unwrap();
    for byte in b"GET /healthz HTTP/1.1\r\n\r\n" {
        stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(status(&read_all(&mut stream)), 200);
}

/// Goal: a client that drips bytes is cut after the time for a whole request, not after a silence.
#[test]
fn a_dripping_client_is_cut() {
    let port = start();
    let began = Instant::now();
    let mut stream = port.connect();
    let mut drip = stream.try_clone().unwrap();
    let dripping = thread::spawn(move || {
        drip.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        // The wait is the attack; it ends when the server closes.
        while began.elapsed() < PATIENCE && drip.write_all(b"X-A: b\r\n").is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    });
    let response = read_all(&mut stream);
    let took = began.elapsed();
    assert!(Duration::from_millis(1900) < took && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(status(&response), 408);
    drop(stream);
    dripping.join().unwrap();
}

#[test]
fn a_silent_client_is_cut() {
    let port = start();
    let began = Instant::now();
    assert_eq!(read_all(&mut port.connect()), "");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn clients_that_leave_at_once_are_no_matter() {
    let port = start();
    for _ in 0..50 {
        // One that was turned away may be closed already.
        let _ = port.connect().shutdown(Shutdown::Both);
    }
    until_served(&port);
}

/// Goal: whoever asks quickly is answered, however many others hold their connections.
#[test]
fn slow_clients_take_no_place_from_one_who_asks_quickly() {
    let port = start();
    let mut idle: Vec<TcpStream> = (0..16).map(|_| port.connect()).collect();
    let began = Instant::now();
    assert_eq!(status(&port.get("/healthz")), 200);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // Whatever is said of the port then, it is not that a service is unhealthy.
    for _ in 0..20 {
        idle.extend((0..16).map(|_| port.connect()));
        let answer = port.get("/healthz");
        assert!(answer.is_empty() || [200, 429].contains(&status(&answer)), "{answer}");
    }
    until_served(&port);
    drop(idle);
}

fn until_served(port: &Port) {
    let deadline = Instant::now() + PATIENCE;
    while status(&port.get("/healthz")) != 200 {
        assert!(Instant::now() < deadline, "the port does not recover");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Goal: a client that asks and never reads neither holds up the others nor the stop. Method: an
/// answer larger than the buffers of both sockets.
#[test]
fn a_client_that_never_reads_holds_nobody_up() {
    let port = start();
    for i in 0..150_000 {
        port.metrics.service("runs").adjusted_values(&format!("column_{i:0>60}"));
    }
    let mut deaf = port.connect();
    deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(status(&port.get("/healthz")), 200);
    let deadline = Instant::now() + PATIENCE;
    while deaf.peek(&mut [0]).unwrap() == 0 {
        assert!(Instant::now() < deadline, "no answer begins");
    }
    let began = Instant::now();
    port.server.stop();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let answered_len = read_all(&mut deaf).len();
    assert!(answered_len < 10_000_000, "{answered_len}");
}

#[test]
fn stop_is_prompt_and_frees_the_port() {
    let port = start();
    let addr = port.server.local_addr();
    let mut silent = port.connect();
    let mut dripping = port.connect();
    dripping.write_all(b"GET / HT").unwrap();
    // Both are accepted before this one is answered.
    assert_eq!(status(&port.get("/healthz")), 200);

    let began = Instant::now();
    port.server.stop();
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
    assert_eq!(read_all(&mut silent), "");
    assert_eq!(read_all(&mut dripping), "");
    let error = TcpStream::connect_timeout(&addr, PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    drop(start_on(addr));
}

#[test]
fn a_taken_port_is_told_with_the_variable() {
    let port = start();
    let addr = port.server.local_addr();
    let taken = HttpServer::start(addr, board(&port.metrics, &port.health));
    let error = taken.err().expect("the port is taken");
    assert!(error.to_string().starts_with(&format!("listen for http on `{addr}`: ")), "{error}");
    assert!(error.hint_text().unwrap().contains("REPLICATION_HTTP_LISTEN"));
}

#[test]
fn all_addresses_of_both_families_can_be_served() {
    let port = start_on(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)));
    assert_eq!(status(&port.get("/healthz")), 200);
    let port = start_on("0.0.0.0:0".parse().unwrap());
    let began = Instant::now();
    port.server.stop();
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
}
