//! Real certificates, made by `openssl`, and a party that speaks TLS for a server that does not.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::wait::{PATIENCE, until_true};
use super::{free_port, reaper};

/// Ends TLS with the certificate and the key given, and passes everything on in the clear.
const TERMINATOR: &str = "
import asyncio, ssl, sys
port, target, certificate, key = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)

async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()

async def serve(reader, writer):
    to_reader, to_writer = await asyncio.open_connection('127.0.0.1', target)
    await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))

async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', port, ssl=context)
    await server.serve_forever()

asyncio.run(main())
";

/// `ca` has signed `good` for localhost, `elsewhere` for another host, and `expired`; `other` has
/// signed nothing.
pub struct Certificates(PathBuf);

impl Certificates {
    pub fn make() -> Certificates {
        let dir = reaper::new_dir("certificates");
        for ca in ["ca", "other"] {
            openssl(
                &dir,
                &format!("req -x509 -days 2 {KEY} -keyout {ca}.key -out {ca}.crt -subj /CN={ca}"),
            );
        }
        for (name, host, days) in
            [("good", "localhost", 2), ("elsewhere", "elsewhere", 2), ("expired", "localhost", -1)]
        {
            openssl(
                &dir,
                &format!("req -new {KEY} -keyout {name}.key -out {name}.csr -subj /CN=x"),
            );
            std::fs::write(dir.join("ext"), format!("subjectAltName=DNS:{host}\n")).unwrap();
            openssl(
                &dir,
                &format!(
                    "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial \
                     -out {name}.crt -days {days} -extfile ext"
                ),
            );
        }
        Certificates(dir)
    }

    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("paths of tests are UTF-8").to_owned()
    }
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

fn openssl(dir: &Path, arguments: &str) {
    let output = Command::new("openssl").current_dir(dir).args(arguments.split(' ')).output();
    let output = output.expect("openssl is on the PATH");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Before one server.
pub struct Terminator {
    port: u16,
    process: Child,
}

impl Terminator {
    pub fn start(target: u16, certificates: &Certificates, name: &str) -> Terminator {
        let port = free_port();
        let python = std::env::var("WALHOUSE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let process = Command::new(python)
            .args(["-c", TERMINATOR, &port.to_string(), &target.to_string()])
            .args([certificates.file(&format!("{name}.crt"))])
            .args([certificates.file(&format!("{name}.key"))])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python starts");
        reaper::end_with_us(process.id(), "KILL");
        until_true("TLS is spoken", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Terminator { port, process }
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Terminator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
