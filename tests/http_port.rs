//! The HTTP port over real sockets: what well-meaning clients get, and what hostile ones do not.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use walhouse::health::{Health, ServiceHealth};
use walhouse::metrics::Metrics;
use walhouse::threads::http::HttpServer;

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
    let server = HttpServer::start(addr, Arc::clone(&metrics), Arc::clone(&health)).unwrap();
    Port { server, metrics, health }
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

    port.health.publish("runs", ServiceHealth::Streaming);
    let healthy = port.get("/healthz");
    assert_eq!(status(&healthy), 200);
    let json: serde_json::Value = serde_json::from_str(body(&healthy)).unwrap();
    assert_eq!(json["services"]["runs"]["state"], "streaming");

    let failed = ServiceHealth::Failed { reason: "the slot is gone".to_owned(), hint: None };
    port.health.publish("runs", failed);
    let unhealthy = port.get("/healthz");
    assert_eq!(status(&unhealthy), 503);
    assert!(body(&unhealthy).contains("the slot is gone"));

    assert!(body(&port.get("/")).contains("/healthz"));
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

/// Goal: connections beyond the bound are turned away at once, and room is made within the time of
/// a request.
#[test]
fn too_many_connections_are_turned_away_until_the_idle_ones_are_cut() {
    let port = start();
    let idle: Vec<TcpStream> = (0..16).map(|_| port.connect()).collect();
    let began = Instant::now();
    assert_eq!(status(&port.get("/healthz")), 503);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
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
    let taken = HttpServer::start(addr, Arc::clone(&port.metrics), Arc::clone(&port.health));
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
