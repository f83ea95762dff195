//! As much of an HTTP client as it takes to ask another walhouse: one `GET` in HTTP/1.0, which has
//! no chunks, and one answer, within a deadline and a size.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use url::Url;

use crate::overview::Overview;

/// Far above an hour of history of many services.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
const HEADERS_MAX: usize = 64;

/// Where a process listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StatusEndpoint {
    /// Without the brackets of IPv6.
    host: String,
    port: u16,
}

impl StatusEndpoint {
    pub(super) fn at(addr: SocketAddr) -> StatusEndpoint {
        StatusEndpoint { host: addr.ip().to_string(), port: addr.port() }
    }

    pub(super) fn parse(text: &str) -> Result<StatusEndpoint, &'static str> {
        let url = Url::parse(text).map_err(|_| "expected http://host:port")?;
        if url.scheme() != "http" {
            return Err("expected http://; walhouse's port does not speak TLS");
        }
        let host = url.host_str().ok_or("expected a host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(StatusEndpoint { host, port: url.port().unwrap_or(80) })
    }
}

impl fmt::Display for StatusEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "http://[{}]:{}", self.host, self.port),
            false => write!(f, "http://{}:{}", self.host, self.port),
        }
    }
}

/// The status that the process there reports.
pub(super) fn overview(endpoint: &StatusEndpoint, deadline: Instant) -> Result<Overview, String> {
    let answer = get(endpoint, "/status", deadline)?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(&answer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) | Err(_) => return Err("it does not speak HTTP".to_owned()),
    };
    match response.code {
        Some(200) => {}
        Some(code) => return Err(format!("it answers with code {code}")),
        None => return Err("it does not speak HTTP".to_owned()),
    }
    Overview::from_json(answer.get(head..).unwrap_or_default())
        .map_err(|cause| format!("its answer is not the status of this version: {cause}"))
}

/// The whole answer, head and body.
fn get(endpoint: &StatusEndpoint, path: &str, deadline: Instant) -> Result<Vec<u8>, String> {
    let mut stream = connect(endpoint, deadline)?;
    let host = endpoint.to_string();
    let host = host.trim_start_matches("http://");
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: walhouse\r\n\r\n");
    stream.set_write_timeout(Some(left(deadline)?)).map_err(|e| e.to_string())?;
    stream.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        stream.set_read_timeout(Some(left(deadline)?)).map_err(|e| e.to_string())?;
        match stream.read(&mut piece) {
            Ok(0) => return Ok(answer),
            Ok(length) => answer.extend_from_slice(piece.get(..length).unwrap_or_default()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Err(late()),
            Err(e) => return Err(e.to_string()),
        }
        if ANSWER_BYTES_MAX < answer.len() {
            return Err("its answer is too large".to_owned());
        }
    }
}

fn connect(endpoint: &StatusEndpoint, deadline: Instant) -> Result<TcpStream, String> {
    let (sender, addresses) = bounded(1);
    let (host, port) = (endpoint.host.clone(), endpoint.port);
    // A resolver has no deadline; its thread ends with the process at the latest.
    let resolve = move || {
        let found = (host.as_str(), port).to_socket_addrs().map(Vec::from_iter);
        let _ = sender.send(found);
    };
    let builder = std::thread::Builder::new().name("resolve".to_owned());
    builder.spawn(resolve).map_err(|e| e.to_string())?;
    let addresses = addresses.recv_deadline(deadline).map_err(|_| late())?;
    let mut last = "it has no address".to_owned();
    for address in addresses.map_err(|e| e.to_string())? {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Never zero, which sockets reject as a timeout.
fn left(deadline: Instant) -> Result<Duration, String> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(late()) } else { Ok(left) }
}

fn late() -> String {
    "no answer in time".to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn urls_of_our_port_are_read() {
        for (text, expected) in [
            ("http://127.0.0.1:9465", Ok("http://127.0.0.1:9465")),
            ("http://[::1]:9465/status", Ok("http://[::1]:9465")),
            ("http://walhouse", Ok("http://walhouse:80")),
            ("https://walhouse", Err("expected http://; walhouse's port does not speak TLS")),
            ("127.0.0.1:9465", Err("expected http://host:port")),
            ("", Err("expected http://host:port")),
        ] {
            let found = StatusEndpoint::parse(text).map(|endpoint| endpoint.to_string());
            assert_eq!(found.as_deref().map_err(|e| *e), expected, "{text}");
        }
    }

    /// The result of asking a server that answers with these bytes and closes.
    fn ask_one_that_says(bytes: &'static [u8]) -> Result<Overview, String> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let endpoint = StatusEndpoint::at(listener.local_addr().expect("it is bound"));
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("it is asked");
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(bytes);
        });
        let found = overview(&endpoint, Instant::now() + Duration::from_secs(10));
        serving.join().expect("no panic");
        found
    }

    #[test]
    fn what_is_not_walhouse_is_told_from_it() {
        for (bytes, expected) in [
            (&b""[..], "it does not speak HTTP"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "it does not speak HTTP"),
            (b"HTTP/1.1 404 Not Found\r\n\r\nno", "it answers with code 404"),
            (b"HTTP/1.1 200 OK\r\n\r\n{}", "its answer is not the status of this version"),
        ] {
            let cause = ask_one_that_says(bytes).expect_err("it is not ours");
            assert!(cause.starts_with(expected), "{cause}");
        }
    }

    #[test]
    fn silence_and_refusal_end_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let endpoint = StatusEndpoint::at(listener.local_addr().expect("it is bound"));
        let began = Instant::now();
        let silent = overview(&endpoint, began + Duration::from_millis(300));
        assert_eq!(silent, Err("no answer in time".to_owned()));
        assert!(began.elapsed() < Duration::from_secs(5));
        drop(listener);
        let refused = overview(&endpoint, Instant::now() + Duration::from_secs(10));
        assert!(refused.expect_err("nobody listens").contains("refused"));
    }
}
