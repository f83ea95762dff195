//! A TCP proxy that can be a bad network: it cuts, stalls, swallows, delays, refuses.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

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
}

pub struct Proxy {
    port: u16,
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
    /// Both sides of each connection that is open.
    streams: Vec<TcpStream>,
    connections: usize,
}

/// How soon a blocked pump notices a change.
const NOTICE_EVERY: Duration = Duration::from_millis(20);

impl Proxy {
    /// Passes everything on to `127.0.0.1:port`.
    pub fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own_port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                to: SocketAddr::from(([127, 0, 0, 1], port)),
                to_server: Flow::Pass,
                to_client: Flow::Pass,
                refuse: false,
                closed: false,
                streams: Vec::new(),
                connections: 0,
            }),
            changed: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        thread::spawn(move || of_thread.accept(&listener));
        Proxy { port: own_port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
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
        for stream in self.shared.lock().streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Leads new connections to `127.0.0.1:port`, as a name that now means another server.
    pub fn redirect(&self, port: u16) {
        self.shared.lock().to = SocketAddr::from(([127, 0, 0, 1], port));
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
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
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
        {
            let mut state = self.lock();
            state.streams.extend([client.try_clone()?, server.try_clone()?]);
            state.connections += 1;
        }
        let pumps = [
            (Direction::ToServer, client.try_clone()?, server.try_clone()?),
            (Direction::ToClient, server, client),
        ];
        for (direction, from, to) in pumps {
            let shared = Arc::clone(self);
            thread::spawn(move || shared.pump(direction, from, to));
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
    fn pump(&self, direction: Direction, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 64 * 1024];
        loop {
            if !self.wait_while_stalled(direction) {
                break;
            }
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if is_timeout(&error) => continue,
                Err(_) => break,
            };
            match self.flow(direction) {
                Flow::Blackhole => continue,
                Flow::Delay(delay) => self.wait_out(direction, delay),
                Flow::Pass | Flow::Stall => {}
            }
            if !self.wait_while_stalled(direction) || !self.send(&mut to, &buffer[..count]) {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
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

    fn send(&self, to: &mut TcpStream, mut bytes: &[u8]) -> bool {
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
