//! Where log lines go: to stderr, one line each, filtered by the level of their service.
//!
//! A thread belongs to the service after the `/` of its name; other threads have the most talkative
//! level of all. It reads only walhouse's variables: `RUST_LOG` has no effect.
//!
//! No thread waits for stderr: lines go through a bounded queue to a thread that writes. While the
//! reader of stderr does not read, lines are dropped, and their number is reported once it reads
//! again.

use std::io::Write;
use std::sync::OnceLock;
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};

use super::log_queue::LogQueue;
use crate::config::{Config, ServiceConfig, ServiceName};

/// At the end of the process, for a stderr that is not read.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Everything logged after this is written. A second call changes nothing.
pub fn init(config: &Config) {
    init_for(&config.services);
}

fn init_for(services: &[ServiceConfig]) {
    let levels = Levels::new(services);
    let most = levels.most();
    // `env_logger` writes and stamps; which lines are written is decided here, by thread.
    let writer = env_logger::Builder::new()
        .filter_level(most)
        .target(env_logger::Target::Pipe(Box::new(Queued)))
        .format(|out, record| {
            let time = out.timestamp_millis();
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("-");
            writeln!(out, "{time} {:<5} {name}: {}", record.level(), OneLine(record))
        })
        .build();
    if log::set_boxed_logger(Box::new(Logger { levels, writer })).is_ok() {
        log::set_max_level(most);
        // The default hook writes to stderr itself, and a thread that panics must not wait for it.
        std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    }
}

static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// Returns when everything logged is written, or after a moment.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_TIMEOUT);
    }
}

/// A line for the queue; the formatter writes each at once.
struct Queued;

impl Write for Queued {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        QUEUE.get_or_init(|| LogQueue::start(std::io::stderr())).push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// For commands that print an answer: what goes wrong on the way, and no more.
pub fn init_for_answer(config: &ServiceConfig) {
    init_for(std::slice::from_ref(config));
    log::set_max_level(log::max_level().min(LevelFilter::Warn));
}

struct Logger {
    levels: Levels,
    writer: env_logger::Logger,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        let thread = std::thread::current();
        metadata.level() <= self.levels.of(thread.name().unwrap_or_default(), metadata.target())
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            self.writer.log(record);
        }
    }

    fn flush(&self) {
        self.writer.flush();
    }
}

struct Levels {
    services: Vec<(ServiceName, Pair)>,
    others: Pair,
}

#[derive(Debug, Clone, Copy)]
struct Pair {
    own: LevelFilter,
    clickhouse: LevelFilter,
}

impl Levels {
    fn new(services: &[ServiceConfig]) -> Levels {
        let services: Vec<(ServiceName, Pair)> = services
            .iter()
            .map(|s| {
                (s.name.clone(), Pair { own: s.log_level, clickhouse: s.clickhouse_log_level })
            })
            .collect();
        let most = |of: fn(&Pair) -> LevelFilter| {
            services.iter().map(|(_, pair)| of(pair)).max().unwrap_or(LevelFilter::Info)
        };
        let others = Pair { own: most(|pair| pair.own), clickhouse: most(|pair| pair.clickhouse) };
        Levels { services, others }
    }

    fn of(&self, thread: &str, target: &str) -> LevelFilter {
        let service = thread.rsplit_once('/').map(|(_, service)| service);
        let pair = self
            .services
            .iter()
            .find(|(name, _)| service == Some(name.as_str()))
            .map_or(self.others, |(_, pair)| *pair);
        let is_of = |name: &str| target == name || target.starts_with(&format!("{name}::"));
        if is_of("walhouse::clickhouse") || is_of("clickhouse") {
            pair.clickhouse
        } else if is_of("walhouse") {
            pair.own
        } else {
            // Libraries log every handshake and packet.
            pair.own.min(LevelFilter::Warn)
        }
    }

    fn most(&self) -> LevelFilter {
        self.others.own.max(self.others.clickhouse)
    }
}

/// A message of another server may have several lines.
struct OneLine<'a>(&'a Record<'a>);

impl std::fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.0.args().to_string();
        f.write_str(&text.replace(['\n', '\r'], " "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_level_of_its_service() {
        let pair = |own, clickhouse| Pair { own, clickhouse };
        let named = |name| ServiceName::find(name).expect("it is one");
        let levels = Levels {
            services: vec![
                (named("runs"), pair(LevelFilter::Debug, LevelFilter::Error)),
                (named("sessions"), pair(LevelFilter::Error, LevelFilter::Info)),
            ],
            others: pair(LevelFilter::Debug, LevelFilter::Info),
        };
        for (thread, target, expected) in [
            ("wal_reader/runs", "walhouse::threads", LevelFilter::Debug),
            ("flusher/2/runs", "walhouse", LevelFilter::Debug),
            ("flusher/runs", "walhouse::clickhouse::client", LevelFilter::Error),
            ("flusher/runs", "walhouse::clickhouses", LevelFilter::Debug),
            ("flusher/sessions", "clickhouse::query", LevelFilter::Info),
            ("flusher/sessions", "walhouse::threads", LevelFilter::Error),
            ("wal_reader/runs", "rustls::client", LevelFilter::Warn),
            ("wal_reader/sessions", "rustls::client", LevelFilter::Error),
            ("main", "walhouse::cli", LevelFilter::Debug),
            ("x/other", "walhouse::cli", LevelFilter::Debug),
        ] {
            assert_eq!(levels.of(thread, target), expected, "{thread} {target}");
        }
        assert_eq!(levels.most(), LevelFilter::Debug);
    }

    #[test]
    fn without_services_info_is_the_level() {
        let levels = Levels::new(&[]);
        assert_eq!(levels.most(), LevelFilter::Info);
        assert_eq!(levels.of("main", "walhouse"), LevelFilter::Info);
    }

    #[test]
    fn a_message_stays_on_its_line() {
        let args = format_args!("a\nb\r\nc");
        let record = Record::builder().args(args).build();
        assert_eq!(OneLine(&record).to_string(), "a b  c");
    }
}
