//! The transport under the `postgres` client: plain or TLS, with a deadline on each read and write.
//!
//! The client has no read timeout: when the server falls silent in the middle of a query, it waits
//! for ever. It does let a TLS connector choose the stream, and with direct negotiation it hands
//! over the socket before the first byte is sent. So TLS is negotiated here, and the returned
//! stream ends at the deadline. This does not work for Unix sockets, which the client keeps to
//! itself.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use parking_lot::Mutex;
use postgres::Socket;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::Result;
use crate::halt::{Halt, given_up};
use crate::postgres::link::LOOK_EVERY;
use crate::postgres::params::SslMode;
use crate::postgres::{PostgresParams, tls};

/// The length of the message and the code that asks for TLS.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

/// When the call under way has to end. Shared by the caller and the stream.
#[derive(Clone)]
pub struct Deadline(Arc<Mutex<(Instant, Halt)>>);

impl Deadline {
    pub fn new(at: Instant, halt: Halt) -> Deadline {
        Deadline(Arc::new(Mutex::new((at, halt))))
    }

    pub fn set(&self, at: Instant) {
        self.0.lock().0 = at;
    }

    pub fn set_halt(&self, halt: &Halt) {
        self.0.lock().1 = halt.clone();
    }

    pub fn is_halted(&self) -> bool {
        self.0.lock().1.is_due()
    }

    fn at(&self) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.0.lock().0)
    }
}

/// What `sslmode` asks for. Reads the certificate files, so it is made once per connect.
pub fn connector(params: &PostgresParams, deadline: &Deadline) -> Result<Connector> {
    let tls = match params.ssl_mode {
        SslMode::Disable => Tls::Off,
        SslMode::Prefer => Tls::Preferred(rustls_connect(params)?),
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
            Tls::Required(rustls_connect(params)?)
        }
    };
    Ok(Connector { tls, deadline: deadline.clone() })
}

fn rustls_connect(params: &PostgresParams) -> Result<MakeRustlsConnect> {
    Ok(MakeRustlsConnect::new(tls::client_config(params)?.as_ref().clone()))
}

#[derive(Clone)]
pub struct Connector {
    tls: Tls,
    deadline: Deadline,
}

#[derive(Clone)]
enum Tls {
    Off,
    Preferred(MakeRustlsConnect),
    Required(MakeRustlsConnect),
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = SqlLink;
    type TlsConnect = Negotiation;
    type Error = io::Error;

    fn make_tls_connect(&mut self, server_name: &str) -> io::Result<Negotiation> {
        Ok(Negotiation { connector: self.clone(), server_name: server_name.to_owned() })
    }
}

/// One connect: asks for TLS if it is wanted, and does the handshake if it is granted.
pub struct Negotiation {
    connector: Connector,
    server_name: String,
}

impl TlsConnect<Socket> for Negotiation {
    type Stream = SqlLink;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<SqlLink>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let mut stream = Bounded { socket, deadline: self.connector.deadline, timer: None };
            let mut rustls = match self.connector.tls {
                Tls::Off => return Ok(SqlLink::plain(stream)),
                Tls::Preferred(rustls) => match is_tls_granted(&mut stream).await? {
                    true => rustls,
                    false => return Ok(SqlLink::plain(stream)),
                },
                Tls::Required(rustls) => match is_tls_granted(&mut stream).await? {
                    true => rustls,
                    false => {
                        return Err(io::Error::new(
                            io::ErrorKind::Unsupported,
                            "server does not offer TLS",
                        ));
                    }
                },
            };
            let Ok(connect) =
                MakeTlsConnect::<Bounded>::make_tls_connect(&mut rustls, &self.server_name);
            Ok(SqlLink(Box::pin(connect.connect(stream).await?)))
        })
    }
}

/// Reads exactly the one byte of the answer: plain text that follows it must not become part of the
/// TLS stream.
async fn is_tls_granted(stream: &mut Bounded) -> io::Result<bool> {
    let sent = poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, &SSL_REQUEST)).await?;
    if sent != SSL_REQUEST.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut answer = [0];
    let mut buffer = ReadBuf::new(&mut answer);
    poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut buffer)).await?;
    match buffer.filled() {
        [b'S'] => Ok(true),
        // `E` is an error of a server that is too busy to talk; the plain start-up will say which.
        [_] => Ok(false),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The socket, whose reads and writes fail once the deadline has passed.
struct Bounded {
    socket: Socket,
    deadline: Deadline,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Bounded {
    fn poll_in_time<T>(
        &mut self,
        cx: &mut Context<'_>,
        io: impl FnOnce(Pin<&mut Socket>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(done) = io(Pin::new(&mut self.socket), cx) {
            return Poll::Ready(done);
        }
        loop {
            let (now, at) = (tokio::time::Instant::now(), self.deadline.at());
            if self.deadline.is_halted() {
                return Poll::Ready(Err(given_up()));
            }
            if at <= now {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let look_at = at.min(now + LOOK_EVERY);
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(look_at)));
            if timer.is_elapsed() || at < timer.deadline() {
                timer.as_mut().reset(look_at);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_in_time(cx, |socket, cx| socket.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_in_time(cx, |socket, cx| socket.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_in_time(cx, |socket, cx| socket.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_in_time(cx, |socket, cx| socket.poll_shutdown(cx))
    }
}

impl TlsStream for Bounded {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

/// The client's stream: the bounded socket, or TLS on top of it.
pub struct SqlLink(Pin<Box<dyn TlsStream + Send>>);

impl SqlLink {
    fn plain(stream: Bounded) -> SqlLink {
        SqlLink(Box::pin(stream))
    }
}

impl AsyncRead for SqlLink {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for SqlLink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(cx)
    }
}

impl TlsStream for SqlLink {
    fn channel_binding(&self) -> ChannelBinding {
        self.0.channel_binding()
    }
}
