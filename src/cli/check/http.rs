//! Whether the HTTP port is there to be had.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::finding::Finding;

const TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes read of the answer of whatever process has the port.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

pub(super) fn look(at: SocketAddr) -> Finding {
    match TcpListener::bind(at) {
        Ok(_) => Finding::ok("HTTP port", format!("{at} is free")),
        Err(_) if is_ours(at) => {
            Finding::ok("HTTP port", format!("a running walhouse listens on {at}"))
        }
        Err(cause) => Finding::problem(
            "HTTP port",
            format!("listen on {at}: {cause}"),
            "Set REPLICATION_HTTP_LISTEN to an address of this machine and a free port, such as \
             127.0.0.1:9466, or leave it empty to disable the port.",
        ),
    }
}

/// Whether it answers as `/healthz` does.
fn is_ours(at: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&at, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: walhouse\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        // A stranger may send for ever, or not end.
        let _ = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 ") && answer.contains("\"services\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    #[test]
    fn a_port_that_a_stranger_has_is_a_problem() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let stranger = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 64];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello");
            // Kept until the end of the thread.
            listener
        });
        assert_eq!(look(at).level, Level::Problem);
        drop(stranger.join().unwrap());
        assert_eq!(look(at).level, Level::Ok);
    }
}
