//! The socket to Postgres, TCP or Unix, plain or under TLS, where every read and write ends in
//! time.
//!
//! Knows nothing of Postgres's messages. One thread uses it; another may only shut it down.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use crate::halt::{Halt, given_up};

const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// rustls reads 4 KiB at a time; this below it keeps the number of system calls down.
const CIPHERTEXT_BYTES: usize = 256 * 1024;

/// How soon a halt is noticed, here and by the sessions of SQL.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// For the kernel, zero means "for ever".
const WAIT_MIN: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

pub(super) struct Link {
    socket: Socket,
    tls: Option<Box<Tls>>,
    /// The current setting of the socket, to save the system call when it does not change.
    read_wait: Option<Duration>,
    halt: Halt,
}

struct Tls {
    session: ClientConnection,
    ciphertext: Ciphertext,
}

/// Bytes that came from the socket and that rustls has not read yet.
struct Ciphertext {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// The time left until `deadline`; an error if there is none.
pub(super) fn remaining(deadline: Instant) -> io::Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(left.max(WAIT_MIN)),
        _ => Err(timed_out()),
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

/// The kernel says "would block" for a timeout, which an operator would not understand.
fn say_timed_out(error: io::Error) -> io::Error {
    if is_timeout(&error) { timed_out() } else { error }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl Link {
    /// `silence_max` bounds how long sent bytes may stay unconfirmed by the peer's kernel.
    pub(super) fn open(
        endpoint: &Endpoint,
        silence_max: Duration,
        deadline: Instant,
        halt: &Halt,
    ) -> io::Result<Link> {
        let socket = match endpoint {
            Endpoint::Tcp(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
                let (wait, address) = (remaining(deadline)?, SockAddr::from(*address));
                let connect = move || socket.connect_timeout(&address, wait).map(|()| socket);
                let connected = halt.outlast(deadline, "connect", connect)?;
                let socket = connected.map_err(say_timed_out)?;
                socket.set_tcp_nodelay(true)?;
                let keepalive = TcpKeepalive::new()
                    .with_time(KEEPALIVE_IDLE)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_PROBES);
                socket.set_tcp_keepalive(&keepalive)?;
                socket.set_tcp_user_timeout(Some(silence_max.max(WAIT_MIN)))?;
                socket
            }
            Endpoint::Unix(path) => {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                // Connecting blocks for as long as a write may, when the server's queue is full.
                socket.set_write_timeout(Some(remaining(deadline)?))?;
                socket.connect(&SockAddr::unix(path)?).map_err(say_timed_out)?;
                socket
            }
        };
        Ok(Link { socket, tls: None, read_wait: None, halt: halt.clone() })
    }

    pub(super) fn set_halt(&mut self, halt: &Halt) {
        self.halt = halt.clone();
    }

    /// How long one call of the kernel may wait, so that a halt is heard meanwhile.
    fn slice(&self, wait: Duration) -> io::Result<Duration> {
        if self.halt.is_due() {
            return Err(given_up());
        }
        Ok(if self.halt.may_be_due() { wait.min(LOOK_EVERY) } else { wait })
    }

    pub(super) fn start_tls(
        &mut self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        deadline: Instant,
    ) -> io::Result<()> {
        let session = ClientConnection::new(config, name).map_err(invalid_data)?;
        let ciphertext =
            Ciphertext { bytes: vec![0; CIPHERTEXT_BYTES].into_boxed_slice(), start: 0, end: 0 };
        let mut tls = Box::new(Tls { session, ciphertext });
        while tls.session.is_handshaking() {
            self.write_ciphertext(&mut tls, deadline)?;
            if tls.session.is_handshaking() {
                self.set_read_wait(self.slice(remaining(deadline)?)?)?;
                let below = &mut Below { socket: &self.socket, inbox: &mut tls.ciphertext };
                match tls.session.read_tls(below) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {}
                    Err(error) if is_timeout(&error) => continue,
                    Err(error) => return Err(error),
                }
                if let Err(error) = tls.session.process_new_packets() {
                    // The alert tells the server why; whether it gets there changes nothing.
                    let _ = self.write_ciphertext(&mut tls, deadline);
                    return Err(invalid_data(error));
                }
            }
        }
        self.write_ciphertext(&mut tls, deadline)?;
        self.tls = Some(tls);
        Ok(())
    }

    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The certificate that the server showed.
    pub(super) fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.tls.as_ref()?.session.peer_certificates()?.first()
    }

    /// Waits until something is there, at most `wait`, and reads that; 0 is the end.
    pub(super) fn read(&mut self, into: &mut [u8], wait: Duration) -> io::Result<usize> {
        let deadline = Instant::now() + wait;
        let mut left = wait.max(WAIT_MIN);
        loop {
            let slice = self.slice(left)?;
            self.set_read_wait(slice)?;
            match self.read_once(into, deadline) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) && slice < left => {}
                Err(error) => return Err(say_timed_out(error)),
                Ok(n) => return Ok(n),
            }
            left = remaining(deadline)?;
        }
    }

    fn read_once(&mut self, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let Some(mut tls) = self.tls.take() else {
            return (&self.socket).read(into);
        };
        let outcome = self.read_tls(&mut tls, into, deadline);
        self.tls = Some(tls);
        outcome
    }

    fn read_tls(&mut self, tls: &mut Tls, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let mut filled = 0;
        loop {
            let Some(space) = into.get_mut(filled..).filter(|space| !space.is_empty()) else {
                return Ok(filled);
            };
            match tls.session.reader().read(space) {
                Ok(0) => return Ok(filled),
                Ok(n) => {
                    filled += n;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // An end without a farewell: first what came before it, the end with the next read.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(filled),
                Err(error) => return Err(error),
            }
            // If there is something to hand on, read what has already arrived, and do not wait for
            // more.
            if 0 < filled && tls.ciphertext.is_empty() {
                return Ok(filled);
            }
            if tls.ciphertext.is_empty() {
                // A record can arrive in many pieces, and each must not get the whole timeout.
                self.set_read_wait(self.slice(remaining(deadline)?)?)?;
            }
            let below = &mut Below { socket: &self.socket, inbox: &mut tls.ciphertext };
            tls.session.read_tls(below)?;
            tls.session.process_new_packets().map_err(invalid_data)?;
            // Answers that TLS itself owes, such as to a key update.
            self.write_ciphertext(tls, deadline)?;
        }
    }

    pub(super) fn write_all(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        if let Some(mut tls) = self.tls.take() {
            let outcome = tls
                .session
                .writer()
                .write_all(bytes)
                .and_then(|()| self.write_ciphertext(&mut tls, deadline));
            self.tls = Some(tls);
            return outcome;
        }
        while !bytes.is_empty() {
            self.socket.set_write_timeout(Some(self.slice(remaining(deadline)?)?))?;
            match (&self.socket).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whether the time is over is seen above.
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_ciphertext(&self, tls: &mut Tls, deadline: Instant) -> io::Result<()> {
        while tls.session.wants_write() {
            self.socket.set_write_timeout(Some(self.slice(remaining(deadline)?)?))?;
            match tls.session.write_tls(&mut &self.socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends TLS in order and closes.
    pub(super) fn close(&mut self, deadline: Instant) {
        if let Some(mut tls) = self.tls.take() {
            tls.session.send_close_notify();
            let _ = self.write_ciphertext(&mut tls, deadline);
        }
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn set_read_wait(&mut self, wait: Duration) -> io::Result<()> {
        if self.read_wait != Some(wait) {
            self.socket.set_read_timeout(Some(wait))?;
            self.read_wait = Some(wait);
        }
        Ok(())
    }
}

impl Ciphertext {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

struct Below<'a> {
    socket: &'a Socket,
    inbox: &'a mut Ciphertext,
}

impl Read for Below<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let inbox = &mut *self.inbox;
        if inbox.is_empty() {
            let mut socket = self.socket;
            inbox.start = 0;
            inbox.end = 0;
            inbox.end = socket.read(&mut inbox.bytes)?;
        }
        let mut here = inbox.bytes.get(inbox.start..inbox.end).unwrap_or_default();
        let n = here.read(into)?;
        inbox.start += n;
        Ok(n)
    }
}

fn invalid_data(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
