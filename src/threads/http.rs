//! The HTTP port: `/metrics` and `/healthz`, for scrapers and supervisors; `/` and `/status`, for
//! people.
//!
//! It only reads atomics and a board, and everything about it is bounded: connections, bytes and
//! time. It answers one request per connection, has no TLS and no authentication, and accepts no
//! commands. A browser may be led here under another name (DNS rebinding): it can change nothing
//! here, and read nothing secret.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use socket2::SockRef;

use super::board::Board;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::CONTENT_TYPE;
use crate::overview::page;

/// Many more than scrapers and probes, few enough to cost nothing. A new connection beyond that
/// replaces the oldest, which has had its time: there is always room for quick clients.
const CONNECTIONS_MAX: usize = 16;
/// Replaced connections end within a moment; at most this many of them.
const THREADS_MAX: usize = 64;
/// Enough for simultaneous clients.
const PLACE_KEPT_FOR: Duration = Duration::from_millis(50);
const HEAD_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;
/// For the whole request, however its bytes trickle in.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// For the whole response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long and how much is read on after the response: closing a socket with unread bytes would
/// reset the connection and take the response from the client.
const LINGER_TIMEOUT: Duration = Duration::from_millis(250);
const LINGER_BYTES_MAX: usize = 64 * 1024;
/// A stop wakes the thread at once; this bounds the wait should that not work.
const ACCEPT_TIMEOUT: Duration = Duration::from_millis(500);
/// Without a free file descriptor `accept` fails at once, again and again.
const ACCEPT_RETRY_EVERY: Duration = Duration::from_millis(100);

const PLAIN_TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
/// Nothing may be loaded, run or framed but the page itself.
const NOTHING_ALLOWED: &str = "default-src 'none'; frame-ancestors 'none'";

/// Dropping it stops it.
pub struct HttpServer {
    local_addr: SocketAddr,
    listener: Arc<TcpListener>,
    /// Dropped to stop; `None` once stopped.
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Listens, on a free port if that of `addr` is 0, and answers on a thread of its own.
    pub fn start(addr: SocketAddr, board: Arc<Board>) -> Result<HttpServer> {
        let refused = |cause: io::Error| {
            Error::new(ErrorKind::Setup, format!("listen for http on `{addr}`"))
                .because(cause)
                .hint("Set REPLICATION_HTTP_LISTEN to an address that is free, or leave it empty.")
        };
        let listener = TcpListener::bind(addr).map_err(refused)?;
        let local_addr = listener.local_addr().map_err(refused)?;
        // The kernel ends an `accept` after the read timeout of the listening socket.
        SockRef::from(&listener).set_read_timeout(Some(ACCEPT_TIMEOUT)).map_err(refused)?;
        let listener = Arc::new(listener);
        let (running, stop) = bounded(0);
        let port = Port { listener: Arc::clone(&listener), stop, board };
        let thread = thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || port.run())
            .map_err(refused)?;
        Ok(HttpServer { local_addr, listener, running: Some(running), thread: Some(thread) })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Cuts open connections and waits for the threads, which takes almost no time.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        self.running = None;
        // On Linux this wakes `accept`; elsewhere its timeout does.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("http thread panicked");
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.halt();
    }
}

struct Port {
    listener: Arc<TcpListener>,
    /// Disconnected when it is time to stop.
    stop: Receiver<()>,
    board: Arc<Board>,
}

/// The thread of one connection. The socket is the thread's own, so that it closes with it.
struct Client {
    stream: Weak<TcpStream>,
    thread: JoinHandle<()>,
    since: Instant,
    /// Another connection replaced it.
    is_cut: bool,
}

impl Port {
    fn run(self) {
        let mut clients: Vec<Client> = Vec::new();
        let mut accept_works = true;
        loop {
            let accepted = self.listener.accept();
            if self.stop.try_recv().is_err_and(|e| e.is_disconnected()) {
                break;
            }
            reap(&mut clients);
            // The wait for a connection ends soon enough to keep the pace.
            self.board.look(Instant::now());
            match accepted {
                Ok((stream, _)) => {
                    accept_works = true;
                    if THREADS_MAX <= clients.len() {
                        turn_away(stream);
                        continue;
                    }
                    make_room(&mut clients, Instant::now());
                    clients.extend(self.serve_on_thread(stream));
                }
                Err(e) if is_timeout(&e) => {}
                Err(e) => {
                    if accept_works {
                        log::warn!("accept http connection: {e}");
                    }
                    accept_works = false;
                    let wait = self.stop.recv_timeout(ACCEPT_RETRY_EVERY);
                    if wait == Err(RecvTimeoutError::Disconnected) {
                        break;
                    }
                }
            }
        }
        for client in &clients {
            if let Some(stream) = client.stream.upgrade() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        clients.into_iter().for_each(join);
    }

    fn serve_on_thread(&self, stream: TcpStream) -> Option<Client> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let stream = Arc::new(stream);
        let weak = Arc::downgrade(&stream);
        let board = Arc::clone(&self.board);
        let thread = thread::Builder::new()
            .name("http_client".to_owned())
            .spawn(move || serve(&stream, &board, deadline));
        match thread {
            Ok(thread) => {
                Some(Client { stream: weak, thread, since: Instant::now(), is_cut: false })
            }
            Err(e) => {
                log::warn!("start thread for http connection: {e}");
                None
            }
        }
    }
}

/// Cuts the oldest connections, as many as are too many.
fn make_room(clients: &mut [Client], now: Instant) {
    let open = clients.iter().filter(|client| !client.is_cut).count();
    let over = (open + 1).saturating_sub(CONNECTIONS_MAX);
    // In the order in which they came.
    let old = clients.iter_mut().filter(|client| {
        !client.is_cut && PLACE_KEPT_FOR <= now.saturating_duration_since(client.since)
    });
    for client in old.take(over) {
        client.is_cut = true;
        if let Some(stream) = client.stream.upgrade() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn reap(clients: &mut Vec<Client>) {
    let (ended, open) = clients.drain(..).partition(|client| client.thread.is_finished());
    *clients = open;
    let ended: Vec<Client> = ended;
    ended.into_iter().for_each(join);
}

fn join(client: Client) {
    if client.thread.join().is_err() {
        log::error!("http_client thread panicked");
    }
}

/// Never waits: it runs on the thread that accepts.
fn turn_away(stream: TcpStream) {
    if stream.set_nonblocking(true).is_err() {
        return;
    }
    // Best effort, the close below is answer enough.
    let _ = (&stream).read(&mut [0; 1024]);
    // Not 503, which says of `/healthz` that a service is unhealthy.
    let _ = (&stream).write(&Response::text(429, "too many connections\n").encode());
    let _ = stream.shutdown(Shutdown::Write);
}

fn serve(stream: &TcpStream, board: &Board, deadline: Instant) {
    let Ok(response) = answer(stream, board, deadline) else {
        return;
    };
    if write_all(stream, &response.encode(), Instant::now() + WRITE_TIMEOUT).is_err()
        || stream.shutdown(Shutdown::Write).is_err()
    {
        return;
    }
    let deadline = Instant::now() + LINGER_TIMEOUT;
    let mut waste = [0; 1024];
    let mut wasted = 0;
    while let Ok(len @ 1..) = read(stream, &mut waste, deadline) {
        wasted += len;
        if LINGER_BYTES_MAX < wasted {
            return;
        }
    }
}

/// An error means that the client is gone.
fn answer(stream: &TcpStream, board: &Board, deadline: Instant) -> io::Result<Response> {
    let mut head = [0; HEAD_BYTES_MAX];
    let mut filled = 0;
    loop {
        match read(stream, head.get_mut(filled..).unwrap_or_default(), deadline) {
            // The client left, or closed its side before its request was whole.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => filled += len,
            Err(e) if is_timeout(&e) && 0 < filled => {
                return Ok(Response::text(408, "request took too long\n"));
            }
            Err(e) => return Err(e),
        }
        match respond(board, head.get(..filled).unwrap_or_default()) {
            Some(response) => return Ok(response),
            None if filled == HEAD_BYTES_MAX => return Ok(Response::head_too_large()),
            None => {}
        }
    }
}

fn read(mut stream: &TcpStream, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn write_all(mut stream: &TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Never zero, which sockets reject as a timeout.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// The responses of the paths. `None` asks for more of the head.
fn respond(board: &Board, head: &[u8]) -> Option<Response> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Some(Response::head_too_large()),
        Err(_) => return Some(Response::text(400, "not a request\n")),
    }
    let (path, query) = path_and_query(request.path.unwrap_or_default());
    let mut response = match path {
        "/metrics" => Response::new(200, CONTENT_TYPE, board.metrics().encode()),
        "/healthz" => {
            let (status, json) = board.health().healthz();
            Response::new(status, JSON, json)
        }
        // The part of the page that changes, for its script.
        "/status" if query == "html" => Response::new(200, HTML, page::live(&board.overview())),
        "/status" => Response::new(200, JSON, board.overview().to_json()),
        "/" => Response {
            policy: &page::SECURITY_POLICY,
            ..Response::new(200, HTML, page::page(&board.overview()))
        },
        _ => Response::text(404, "no such page\n"),
    };
    match request.method {
        Some("GET") => {}
        Some("HEAD") => response.head_only = true,
        _ if response.status == 404 => {}
        _ => response = Response::text(405, "only GET and HEAD\n"),
    }
    Some(response)
}

/// The path and query of a request target, without the scheme and host that proxies send.
fn path_and_query(target: &str) -> (&str, &str) {
    let target = target.split('#').next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = match path.strip_prefix("http://") {
        Some(rest) => rest.find('/').and_then(|slash| rest.get(slash..)).unwrap_or("/"),
        None => path,
    };
    (path, query)
}

struct Response {
    status: u16,
    content_type: &'static str,
    /// What a browser may do with it.
    policy: &'static str,
    body: String,
    head_only: bool,
}

impl Response {
    fn new(status: u16, content_type: &'static str, body: String) -> Response {
        Response { status, content_type, policy: NOTHING_ALLOWED, body, head_only: false }
    }

    fn text(status: u16, body: &str) -> Response {
        Response::new(status, PLAIN_TEXT, body.to_owned())
    }

    fn head_too_large() -> Response {
        Response::text(431, "request head is too large\n")
    }

    fn encode(&self) -> Vec<u8> {
        let Response { status, content_type, policy, body, head_only } = self;
        let reason = match status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            429 => "Too Many Requests",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "",
        };
        let allow = if *status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
        let body_len = body.len();
        let mut text = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n\
             Content-Length: {body_len}\r\n{allow}Cache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\n\
             Content-Security-Policy: {policy}\r\nConnection: close\r\n\r\n"
        );
        if !head_only {
            text.push_str(body);
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Health;
    use crate::metrics::Metrics;

    fn board() -> Board {
        let metrics = Arc::new(Metrics::new(&["runs"]));
        let health = Arc::new(Health::new(Arc::clone(&metrics)));
        Board::new(metrics, health, vec!["slot".to_owned()])
    }

    fn status(head: &str) -> Option<u16> {
        respond(&board(), head.as_bytes()).map(|response| response.status)
    }

    #[test]
    fn paths_and_methods() {
        for (line, expected) in [
            ("GET /metrics HTTP/1.1", 200),
            ("HEAD /healthz HTTP/1.0", 200),
            ("GET / HTTP/1.1", 200),
            ("GET /status HTTP/1.1", 200),
            ("GET /status?html HTTP/1.1", 200),
            ("PUT /status HTTP/1.1", 405),
            ("DELETE / HTTP/1.1", 405),
            ("GET /metrics?name[]=x HTTP/1.1", 200),
            ("GET http://walhouse:9465/healthz HTTP/1.1", 200),
            ("GET http://walhouse HTTP/1.1", 200),
            ("GET /metrics/ HTTP/1.1", 404),
            ("POST /nothing HTTP/1.1", 404),
            ("POST /metrics HTTP/1.1", 405),
            ("OPTIONS * HTTP/1.1", 404),
            ("GET /metrics HTTP/2.0", 400),
            ("GET /metrics", 400),
            ("\u{16}\u{3}\u{1}", 400),
        ] {
            assert_eq!(status(&format!("{line}\r\nHost: x\r\n\r\n")), Some(expected), "{line:?}");
        }
    }

    #[test]
    fn half_a_head_asks_for_more() {
        let whole = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        for len in 0..whole.len() {
            assert_eq!(status(&whole[..len]), None, "{len} bytes");
        }
        assert_eq!(status(whole), Some(200));
    }

    #[test]
    fn too_many_headers_are_refused() {
        let head = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(status(&head), Some(431));
    }

    #[test]
    fn head_says_the_length_and_sends_no_body() {
        let response = respond(&board(), b"HEAD / HTTP/1.1\r\n\r\n").unwrap();
        let text = String::from_utf8(response.encode()).unwrap();
        assert!(text.contains(&format!("Content-Length: {}\r\n", response.body.len())), "{text}");
        assert!(text.ends_with("\r\n\r\n"), "{text}");
    }
}
