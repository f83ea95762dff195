//! A throwaway redis-server, for the leader lock.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::wait::{PATIENCE, until_true};
use super::{free_port, reaper};

pub struct Redis {
    dir: PathBuf,
    port: u16,
    process: Option<Child>,
}

impl Redis {
    pub fn start() -> Redis {
        let mut redis = Redis { dir: reaper::new_dir("redis"), port: free_port(), process: None };
        redis.start_again();
        redis
    }

    /// On the same port, empty: nothing is saved.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "it is stopped");
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--port", &self.port.to_string(), "--logfile", "redis.log", "--dir"])
            .arg(&self.dir)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is on the PATH");
        reaper::end_with_us(process.id(), "TERM");
        let process = self.process.insert(process);
        until_true("Redis listens", PATIENCE, || {
            let ended = process.try_wait().unwrap();
            assert!(ended.is_none(), "redis-server ended: {ended:?}; see {}", self.dir.display());
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    pub fn client(&self) -> redis::Connection {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.port)).unwrap();
        let connection = client.get_connection_with_timeout(PATIENCE).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        connection
    }

    pub fn reset(&self) {
        redis::cmd("FLUSHALL").exec(&mut self.client()).unwrap();
    }

    pub fn keys(&self) -> Vec<String> {
        redis::cmd("KEYS").arg("*").query(&mut self.client()).unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
