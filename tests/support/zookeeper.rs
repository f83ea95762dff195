//! A throwaway ZooKeeper, Debian's, for Replicated tables.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::wait::{PATIENCE, until_true};
use super::{free_port, reaper};

const MAIN: &str = "org.apache.zookeeper.server.quorum.QuorumPeerMain";

pub struct Zookeeper {
    port: u16,
    process: Child,
}

impl Zookeeper {
    pub fn start() -> Zookeeper {
        let (dir, port): (PathBuf, u16) = (reaper::new_dir("zookeeper"), free_port());
        let config = format!(
            "tickTime=500\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\n\
             admin.enableServer=false\n",
            dir.display()
        );
        fs::write(dir.join("zoo.cfg"), config).unwrap();
        let mut process = Command::new("java")
            .args(["-Xmx128m", "-XX:+UseSerialGC", "-cp", "/usr/share/java/*", MAIN])
            .arg(dir.join("zoo.cfg"))
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("log")).unwrap())
            .spawn()
            .expect("java is on the PATH, and Debian's zookeeper is installed");
        reaper::end_with_us(process.id(), "KILL");
        until_true("ZooKeeper listens", PATIENCE, || {
            let ended = process.try_wait().unwrap();
            let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(ended.is_none(), "zookeeper ended: {ended:?}\n{}", log());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Zookeeper { port, process }
    }

    /// For the engine of a front, which has no `{uuid}` outside of ON CLUSTER.
    pub fn engine_config(&self) -> String {
        format!(
            "<clickhouse><zookeeper><node><host>127.0.0.1</host><port>{}</port></node>\
             <session_timeout_ms>10000</session_timeout_ms></zookeeper>\
             <macros><shard>1</shard><replica>a</replica></macros>\
             <remote_servers><one><shard><replica><host>127.0.0.1</host><port>9000</port></replica>\
             </shard></one><two><shard><replica><host>127.0.0.1</host><port>9000</port></replica>\
             </shard><shard><replica><host>127.0.0.2</host><port>9000</port></replica></shard></two>\
             </remote_servers>\
             <default_replica_path>/clickhouse/tables/{{database}}/{{table}}/{{shard}}\
             </default_replica_path><default_replica_name>{{replica}}</default_replica_name>\
             </clickhouse>",
            self.port
        )
    }
}

impl Drop for Zookeeper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
