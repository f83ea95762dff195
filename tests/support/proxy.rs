//! A TCP proxy that can be a bad network: it cuts, stalls, swallows, delays, tears, refuses.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Pass,
    /// They wait, and go on after [`Proxy::resume`]; the sender feels it by full buffers.
    Stall,
    /// They are taken and thrown away, as by a host that is gone.
    Blackhole,
    /// They pass this much later.
    Delay(Duration),
    /// All but the last of them pass, then the connection is reset: amid a message.
    Tear,
    /// They are thrown away and the connection is reset: the other side has done what it was asked,
    /// and nobody learns of it.
    Lose,
    /// They are thrown away, and each request is answered with a page and status 200, as by a proxy
    /// in maintenance.
    Page,
}

const PAGE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 9\r\n\
                      Connection: close\r\n\r\nback soon";

pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    to: SocketAddr,
    to_server: Flow,
    to_client: Flow,
    refuse: bool,
    closed: bool,
    open: Vec<Arc<Pair>>,
    connections: usize,
}

/// Both sides of a connection that was let in.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    /// It ends by a reset: without a FIN, which a shutdown would send.
    reset: AtomicBool,
    /// A page was sent in place of the server's answer.
    answered: AtomicBool,
}

/// How soon a blocked pump notices a change.
const NOTICE_EVERY: Duration = Duration::from_millis(20);

impl Proxy {
    /// Passes everything on to `127.0.0.1:port`.
    pub fn to(port: u16) -> Proxy {
        Proxy::between(local(0), local(port)).unwrap()
    }

    /// Listens at one address and passes everything on to another.
    pub fn between(listen: SocketAddr, to: SocketAddr) -> std::io::Result<Proxy> {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                to,
                to_server: Flow::Pass,
                to_client: Flow::Pass,
                refuse: false,
                closed: false,
                open: Vec::new(),
                connections: 0,
            }),
            changed: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        thread::spawn(move || of_thread.accept(&listener));
        Ok(Proxy { address, shared })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections were let in since the start.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections
    }

    pub fn set(&self, direction: Direction, flow: Flow) {
        let mut state = self.shared.lock();
        match direction {
            Direction::ToServer => state.to_server = flow,
            Direction::ToClient => state.to_client = flow,
        }
        self.shared.changed.notify_all();
    }

    pub fn set_both(&self, flow: Flow) {
        self.set(Direction::ToServer, flow);
        self.set(Direction::ToClient, flow);
    }

    pub fn stall(&self) {
        self.set_both(Flow::Stall);
    }

    pub fn blackhole(&self) {
        self.set_both(Flow::Blackhole);
    }

    pub fn delay(&self, delay: Duration) {
        self.set_both(Flow::Delay(delay));
    }

    /// Everything passes again. What was swallowed stays lost: its connections are no use any more.
    pub fn resume(&self) {
        self.shared.lock().refuse = false;
        self.set_both(Flow::Pass);
    }

    /// Ends all connections; new ones are let in.
    pub fn cut(&self) {
        for pair in self.shared.lock().open.drain(..) {
            let _ = pair.client.shutdown(Shutdown::Both);
            let _ = pair.server.shutdown(Shutdown::Both);
        }
    }

    /// Leads new connections to `127.0.0.1:port`, as a name that now means another server.
    pub fn redirect(&self, port: u16) {
        self.shared.lock().to = local(port);
    }

    /// Ends all connections and lets none in until [`Proxy::resume`].
    pub fn refuse(&self) {
        self.shared.lock().refuse = true;
        self.cut();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.cut();
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn accept(self: Arc<Shared>, listener: &TcpListener) {
        for client in listener.incoming() {
            let Ok(client) = client else { continue };
            if self.lock().closed {
                return;
            }
            if self.lock().refuse {
                continue;
            }
            // Without a server the client sees its connection end at once.
            let to = self.lock().to;
            let Ok(server) = TcpStream::connect_timeout(&to, Duration::from_secs(5)) else {
                continue;
            };
            let _ = self.open(client, server);
        }
    }

    fn open(self: &Arc<Shared>, client: TcpStream, server: TcpStream) -> std::io::Result<()> {
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(NOTICE_EVERY))?;
            stream.set_write_timeout(Some(NOTICE_EVERY))?;
        }
        let pair = Arc::new(Pair {
            client,
            server,
            reset: AtomicBool::new(false),
            answered: AtomicBool::new(false),
        });
        {
            let mut state = self.lock();
            state.open.push(Arc::clone(&pair));
            state.connections += 1;
        }
        for direction in [Direction::ToServer, Direction::ToClient] {
            let (shared, pair) = (Arc::clone(self), Arc::clone(&pair));
            thread::spawn(move || shared.pump(direction, &pair));
        }
        Ok(())
    }

    fn flow(&self, direction: Direction) -> Flow {
        let state = self.lock();
        match direction {
            Direction::ToServer => state.to_server,
            Direction::ToClient => state.to_client,
        }
    }

    /// Until one side hangs up.
    fn pump(&self, direction: Direction, pair: &Arc<Pair>) {
        let (mut from, to) = match direction {
            Direction::ToServer => (&pair.client, &pair.server),
            Direction::ToClient => (&pair.server, &pair.client),
        };
        let mut buffer = [0; 64 * 1024];
        while self.wait_while_stalled(direction) && !pair.reset.load(Ordering::Relaxed) {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if is_timeout(&error) => continue,
                Err(_) => break,
            };
            match self.flow(direction) {
                Flow::Blackhole => continue,
                Flow::Delay(delay) => self.wait_out(direction, delay),
                Flow::Tear => {
                    self.send(to, &buffer[..count - 1]);
                    pair.reset.store(true, Ordering::Relaxed);
                    break;
                }
                Flow::Page => {
                    // Of one connection the first request alone is answered.
                    if direction == Direction::ToServer
                        && !pair.answered.swap(true, Ordering::Relaxed)
                    {
                        self.send(&pair.client, PAGE);
                    }
                    continue;
                }
                Flow::Lose => {
                    pair.reset.store(true, Ordering::Relaxed);
                    break;
                }
                Flow::Pass | Flow::Stall => {}
            }
            if !self.wait_while_stalled(direction) || !self.send(to, &buffer[..count]) {
                break;
            }
        }
        self.lock().open.retain(|open| !Arc::ptr_eq(open, pair));
        if pair.reset.load(Ordering::Relaxed) {
            // The reset is sent when the last of both pumps lets go of the sockets.
            for stream in [&pair.client, &pair.server] {
                let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            }
        } else {
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        }
    }

    /// False when the proxy is no more.
    fn wait_while_stalled(&self, direction: Direction) -> bool {
        let stalled = |state: &mut State| {
            let flow = match direction {
                Direction::ToServer => state.to_server,
                Direction::ToClient => state.to_client,
            };
            flow == Flow::Stall && !state.closed
        };
        let state = self.changed.wait_while(self.lock(), stalled);
        !state.unwrap_or_else(|poisoned| poisoned.into_inner()).closed
    }

    fn wait_out(&self, direction: Direction, delay: Duration) {
        let until = Instant::now() + delay;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|l| !l.is_zero())
        {
            if !matches!(self.flow(direction), Flow::Delay(_)) {
                return;
            }
            let state = self.lock();
            drop(self.changed.wait_timeout(state, left));
        }
    }

    fn send(&self, mut to: &TcpStream, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match to.write(bytes) {
                Ok(0) => return false,
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_timeout(&error) => {
                    if self.lock().closed {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        true
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
