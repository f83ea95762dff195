//! Stands before ClickHouse and is a worse one: it throws rows away, is slow, or is not there.
//!
//! Only INSERTs into the target tables meet it. Everything else, walhouse's own tables above all,
//! goes to the real server, so that walhouse does all that it always does.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::clock::pause;
use crate::service::Service;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Rows are read to their end, and said to be taken.
    Discard,
    /// Rows are taken after this long.
    Slow(Duration),
    /// Every connection is reset, whatever it is for.
    Away,
}

pub struct Gate {
    address: SocketAddr,
    mode: Arc<Mutex<Mode>>,
}

/// As much as a socket brings at once.
const READ_BYTES: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(120);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nX-ClickHouse-Query-Id: gate\r\nContent-Length: 0\r\n\
                    Connection: close\r\n\r\n";

impl Gate {
    pub fn before(clickhouse: SocketAddr, mode: Mode) -> io::Result<Gate> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let mode = Arc::new(Mutex::new(mode));
        let of_thread = Arc::clone(&mode);
        // Lives as long as the program, like its port.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mode = *lock(&of_thread);
                if mode != Mode::Away {
                    // A client that goes away in the middle is what some runs are about.
                    thread::spawn(move || serve(stream, clickhouse, mode));
                }
            }
        });
        Ok(Gate { address, mode })
    }

    pub fn set(&self, mode: Mode) {
        *lock(&self.mode) = mode;
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

fn lock(mode: &Mutex<Mode>) -> std::sync::MutexGuard<'_, Mode> {
    mode.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One request; the connection is closed after its answer.
fn serve(mut stream: TcpStream, clickhouse: SocketAddr, mode: Mode) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::with_capacity(READ_BYTES, stream.try_clone()?);
    let head = Head::read(&mut reader)?;
    let brings_rows = head.inserts_into_a_target();
    if brings_rows && mode == Mode::Discard {
        read_body(&mut reader, &head, &mut io::sink())?;
        return stream.write_all(OK);
    }
    let mut body = Vec::new();
    read_body(&mut reader, &head, &mut body)?;
    if let (true, Mode::Slow(delay)) = (brings_rows, mode) {
        pause(delay);
    }
    let mut server = TcpStream::connect_timeout(&clickhouse, TIMEOUT)?;
    server.set_read_timeout(Some(TIMEOUT))?;
    server.write_all(head.to_pass_on(body.len()).as_bytes())?;
    server.write_all(&body)?;
    io::copy(&mut server, &mut stream).map(drop)
}

struct Head {
    request: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn read(from: &mut impl BufRead) -> io::Result<Head> {
        let request = line(from)?;
        let mut headers = Vec::new();
        loop {
            let line = line(from)?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Head { request, headers })
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name)?;
        Some(&found.1)
    }

    fn inserts_into_a_target(&self) -> bool {
        let path = self.request.split(' ').nth(1).unwrap_or_default();
        let query = path.split_once('?').map_or("", |(_, query)| query);
        let mut parameters = url::form_urlencoded::parse(query.as_bytes());
        let statement = parameters.find(|(name, _)| name == "query");
        let statement = statement.map_or_else(String::new, |(_, value)| value.into_owned());
        let targets = [Service::Runs, Service::Sessions].map(Service::targets).concat();
        statement.strip_prefix("INSERT INTO ").is_some_and(|rest| {
            let table = rest.split('(').next().unwrap_or_default();
            targets.iter().any(|target| table.contains(target))
        })
    }

    /// For a body of known length.
    fn to_pass_on(&self, body_bytes: usize) -> String {
        let ours = ["connection", "content-length", "transfer-encoding"];
        let mut text = format!("{}\r\n", self.request);
        for (name, value) in self.headers.iter().filter(|(name, _)| !ours.contains(&name.as_str()))
        {
            text += &format!("{name}: {value}\r\n");
        }
        text + &format!("connection: close\r\ncontent-length: {body_bytes}\r\n\r\n")
    }
}

fn read_body(from: &mut impl BufRead, head: &Head, to: &mut impl Write) -> io::Result<()> {
    if head.header("transfer-encoding").is_none() {
        let length = head.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
        return copy_exactly(from, to, length);
    }
    loop {
        let size = line(from)?;
        let size = u64::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
            .map_err(io::Error::other)?;
        copy_exactly(from, to, size)?;
        // Of a chunk its end; of the last one the end of the trailers, of which there are none.
        line(from)?;
        if size == 0 {
            return Ok(());
        }
    }
}

fn copy_exactly(from: &mut impl BufRead, to: &mut impl Write, bytes: u64) -> io::Result<()> {
    let copied = io::copy(&mut from.take(bytes), to)?;
    if copied == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.take(1 << 16).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}
