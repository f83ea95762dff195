//! What the integration tests stand on: real servers, the real program, a write load, and a
//! comparison of both sides.
//!
//! Everything is thrown away afterwards, however a test ends ([`reaper`]). A server that cannot be
//! started fails the test: nothing is skipped in silence.

#![allow(dead_code, reason = "every test binary uses a part of it")]

pub mod browser;
pub mod certificates;
pub mod clickhouse;
pub mod database;
pub mod document;
pub mod http;
pub mod oracle;
pub mod postgres;
pub mod program;
pub mod proxy;
pub mod reaper;
pub mod redis;
pub mod sample;
pub mod stage;
pub mod standby;
pub mod wait;
pub mod warehouse;
pub mod workload;
pub mod zookeeper;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the range from which the kernel gives ports away, so that nobody is handed one of ours
/// while its server is down.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = std::process::id().wrapping_mul(61) + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (next % 12_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
