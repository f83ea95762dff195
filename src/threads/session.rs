//! One attempt, from the lock to its end: makes the channels, runs the threads, joins them in the
//! order in which the data flows, and says why it ended.
//!
//! ```text
//!  wal_reader --Frames--> batcher --Batch--> flusher x N --BatchId--> batcher
//!       ^                    |
//!       |                    v
//!       +-- confirmed -- confirmer
//! ```
//!
//! Channels belong to the session: what a dead attempt still says has nowhere to arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Scope, ScopedJoinHandle};
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};

use super::event::Event;
use super::start::prepare;
use super::start::prepare::Prepared;
use super::stream::batcher::{self, Batcher, StreamedTable};
use super::stream::confirmer::{self, Confirmer};
use super::stream::flusher::{self, Flusher};
use super::stream::rereading::RereadContext;
use super::stream::wal_reader::{self, WalReader};
use super::watch::failover_readiness::{self, FailoverReadiness};
use super::watch::promotion_watch::{self, PromotionWatch};
use super::watch::source_watch::{self, SourceWatch};
use super::watch::table_watch::{self, TableWatch};
use super::{AcrossSessions, spawn_named};
use crate::clickhouse;
use crate::config::ServiceConfig;
use crate::delivery::alongside::{Alongside, StopLevel, stopped};
use crate::delivery::connecting::application_name;
use crate::delivery::context::DeliveryContext;
use crate::delivery::learned::Learned;
use crate::delivery::lease_watch::LeaseWatch;
use crate::delivery::limits::{copy_bytes_max, limits, page_bytes_max};
use crate::delivery::outage::Delays;
use crate::delivery::session_state::{PanicGuard, SessionState};
use crate::error::{Error, ErrorKind, Result};
use crate::health::Health;
use crate::machines::confirm::{self, Confirm, RecordedMarks, Reserved};
use crate::machines::lifecycle::LifecycleInput;
use crate::machines::status;
use crate::mending::parties::MendingContext;
use crate::mending::repairer::{self, Repairer};
use crate::metrics::ServiceMetrics;
use crate::postgres::failover_slot::Failover;

/// Blocks between reader and batcher, of 256 KiB unless a single message is larger; more would only
/// hide where the rows wait.
const BLOCKS_MAX: usize = 2;
/// How much WAL *upper* is reserved ahead, so that no flush waits for a state row of its own.
const AHEAD_BYTES: u64 = 16 * 1024 * 1024;
/// The pause after a state row that could not be written.
const STATE_RETRY_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// A running session, as its coordinator sees it.
pub struct Session {
    shared: Arc<SessionState>,
    thread: JoinHandle<()>,
}

impl Session {
    /// Receive no more, make what is complete durable and confirmed, end. The lifecycle keeps the
    /// deadline, and abandons the session then.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Give up the work in hand and end.
    pub fn abandon(&self) {
        self.shared.abandon();
    }

    pub fn join(self) -> Result<()> {
        self.thread.join().map_err(|_| Error::new(ErrorKind::Bug, "run a session; it panicked"))
    }
}

/// Answers with `StreamStarted` once rows may come, and always with `SessionEnded`.
pub fn spawn(
    config: Arc<ServiceConfig>,
    metrics: Arc<ServiceMetrics>,
    health: Arc<Health>,
    lease: Arc<LeaseWatch>,
    events: Sender<Event>,
    first: bool,
    memory: Arc<AcrossSessions>,
) -> Session {
    // The reserve is known once the state was read; until then no flush runs.
    let shared = Arc::new(SessionState::new(lease));
    let of_thread = Arc::clone(&shared);
    let name = format!("session/{}", config.name.as_str());
    let thread = spawn_named(name, move || {
        let end = EndGuard { events: &events, error: None, told: false };
        let with = With {
            config: &config,
            metrics: &metrics,
            health: &health,
            events: &events,
            shared: &of_thread,
            memory: &memory,
        };
        run(with, first, end);
    });
    Session { shared, thread }
}

/// Tells the end of the session, also when its thread panics.
struct EndGuard<'a> {
    events: &'a Sender<Event>,
    error: Option<Error>,
    told: bool,
}

impl EndGuard<'_> {
    fn tell(mut self, error: Option<Error>) {
        self.error = error;
        self.told = true;
        drop(self);
    }
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        let error = match self.told {
            true => self.error.take(),
            false => Some(Error::new(ErrorKind::Bug, "run a session; it panicked")),
        };
        // The coordinator outlives its sessions and goes on reading its inbox.
        let _ = self.events.send(Event::SessionEnded(error));
    }
}

/// The context of a session.
#[derive(Clone, Copy)]
struct With<'a> {
    config: &'a ServiceConfig,
    metrics: &'a ServiceMetrics,
    health: &'a Health,
    events: &'a Sender<Event>,
    shared: &'a SessionState,
    memory: &'a AcrossSessions,
}

fn run(with: With<'_>, first: bool, end: EndGuard<'_>) {
    let With { config, metrics, events, shared, memory, .. } = with;
    let begun_at = Instant::now();
    let prepared = prepare::prepare(config, metrics, shared, first, memory);
    // Work that a stop interrupted is not a failure.
    let prepared = prepared.or_else(|error| shared.go_on().and(Err(error)));
    let result = prepared.and_then(|prepared| {
        if events.send(Event::Lifecycle(LifecycleInput::StreamStarted)).is_err() {
            return Err(stopped());
        }
        stream(with, prepared, begun_at);
        Ok(())
    });
    if let Err(error) = result {
        shared.fail(error);
    }
    end.tell(shared.take_failure());
}

fn stream(with: With<'_>, prepared: Prepared, session_begun_at: Instant) {
    let With { config, metrics, health, events, shared, memory } = with;
    let service = config.name.as_str();
    let Prepared { stream, set, source_row, source_checked_at, slot_is_new, .. } = prepared;
    let Prepared { tables, state, repair, client, .. } = prepared;
    let Prepared { status_every, resume, .. } = prepared;
    let primary = prepared.primary;
    // Watches have nothing to finish.
    let mut looked_at = primary.clone();
    looked_at.set_halt(&shared.halt(StopLevel::Draining));
    health.publish_notes(service, &prepared.notes);
    let marks = RecordedMarks { confirmed: state.confirmed, upper_lsn: state.upper_lsn };
    let version_shift = state.version_shift;
    shared.begin_stream(resume, Reserved(marks.upper_lsn));
    let ending = AtomicBool::new(false);
    let application_name = application_name(config);

    let (to_batcher, blocks) = bounded(BLOCKS_MAX);
    // One place for each flusher: a batch is cut only for a flusher that is free.
    let (to_flushers, batches) = bounded(config.flush.concurrency);
    let (to_batcher_back, flushed) = bounded(config.flush.concurrency);
    let (settled_sender, settled) = bounded::<()>(0);

    let reader = WalReader {
        slot: &config.slot,
        stream,
        params: status::StatusParams {
            every: status_every,
            receive_timeout: config.receive_timeout,
        },
        shared,
    };
    let batcher = Batcher {
        service,
        tables: set.iter().map(StreamedTable::of).collect(),
        tables_checked_at: source_checked_at,
        limits: limits(config),
        flushers: config.flush.concurrency,
        resume,
        shared,
        metrics,
    };
    // Interrupts calls to ClickHouse when the work in hand is given up.
    let abandoned = shared.halt(StopLevel::Abandoned);
    let mut client = client;
    client.set_halt(&abandoned);
    let clickhouse = clickhouse::ClickHouseParams { halt: abandoned, ..config.clickhouse.clone() };
    let learned = Learned::default();
    let delivery = DeliveryContext {
        service,
        clickhouse: &clickhouse,
        delays: Delays {
            min: config.flush.delay_min,
            max: config.flush.delay_max,
            outage_after: config.flush.retries_before_outage,
        },
        alongside: shared,
        learned: &learned,
        metrics,
    };
    let flusher = Flusher {
        delivery,
        shared,
        tables: &set,
        version_shift,
        rereads: RereadContext {
            delivery,
            primary: &primary,
            application_name: &application_name,
            // A block with the same values is held as well, and an answer on its way.
            bytes_max: limits(config).bytes_max / 3,
        },
    };
    let context = MendingContext {
        delivery,
        member: set.get(0),
        primary: &primary,
        application_name: &application_name,
        deletes_max_percent: config.repair_deletes_max_percent,
        page_bytes_max: page_bytes_max(config),
        copy_bytes_max: copy_bytes_max(config),
        begun_at: session_begun_at,
    };
    let repairer = Repairer { context, shared, workers: config.repair_concurrency, health };
    if repair.is_some() {
        // Before the first flush: no delete may be overlooked.
        shared.begin_repair();
    }
    let confirmer = Confirmer {
        service,
        client,
        row: state,
        machine: Confirm::resume(
            marks,
            confirm::ConfirmParams {
                every: config.ack_interval,
                retry_every: STATE_RETRY_EVERY,
                ahead_bytes: AHEAD_BYTES,
            },
        ),
        request_timeout: config.clickhouse.request_timeout,
        outage_after: config.flush.retries_before_outage,
        shared,
        metrics,
        events,
        ending: &ending,
    };

    let failover_readiness = FailoverReadiness {
        service,
        slot: &config.slot,
        primary: &looked_at,
        application_name: &application_name,
        is_new: slot_is_new,
        told: &memory.told,
        shared,
    };

    std::thread::scope(|scope| {
        let part = Part { scope, service, shared, events };
        let flusher = &flusher;
        let reader =
            part.spawn("wal_reader", move || wal_reader::run(reader, to_batcher, &settled));
        if config.failover == Failover::On {
            part.spawn("failover_readiness", || {
                failover_readiness::run(&failover_readiness);
                Ok(())
            });
        }
        let tables = TableWatch { service, clickhouse: delivery.clickhouse, look: &tables, shared };
        part.spawn("table_watch", move || table_watch::run(&tables));
        let watch = SourceWatch {
            config,
            source: set.get(0).source(),
            primary: &looked_at,
            application_name: &application_name,
            shared,
            metrics,
            events,
            row: source_row,
        };
        part.spawn("source_watch", move || {
            source_watch::run(watch);
            Ok(())
        });
        let promotion_watch =
            PromotionWatch { service, params: &config.postgres, primary: &primary, shared };
        part.spawn("promotion_watch", move || promotion_watch::run(&promotion_watch));
        let confirmer = part.spawn("confirmer", move || confirmer::run(confirmer));
        let flushers: Vec<_> = (0..config.flush.concurrency)
            .map(|n| {
                let (batches, flushed) = (batches.clone(), to_batcher_back.clone());
                part.spawn(&format!("flusher-{n}"), move || {
                    flusher::run(flusher, &batches, &flushed)
                })
            })
            .collect();
        // Theirs are the only ends now: the batcher hears of it when all flushers are gone.
        drop((batches, to_batcher_back));
        let channels = batcher::Channels { frames: blocks, batches: to_flushers, flushed };
        let batcher = part.spawn("batcher", move || batcher::run(batcher, channels));
        let repairer = &repairer;
        let repairer =
            repair.and_then(|row| part.spawn("repairer", move || repairer::run(repairer, row)));

        // In the order of the data: each one ends because the one before it hung up.
        part.join(batcher);
        flushers.into_iter().for_each(|flusher| part.join(flusher));
        part.join(repairer);
        ending.store(true, Ordering::Release);
        shared.marks().wake();
        part.join(confirmer);
        drop(settled_sender);
        part.join(reader);
    });
    // Unfinished work ends with its session, however it ended.
    metrics.insert_outage.lower();
    metrics.unflushed_bytes.set(0);
    metrics.set_oldest_unflushed(None);
}

/// Spawns and joins the threads of a session; what goes wrong in one ends them all.
struct Part<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    service: &'env str,
    shared: &'env SessionState,
    events: &'env Sender<Event>,
}

/// Tells that the session fails, once a thread of it has ended and it does.
struct FailGuard<'a> {
    shared: &'a SessionState,
    events: &'a Sender<Event>,
}

impl Drop for FailGuard<'_> {
    fn drop(&mut self) {
        if self.shared.has_failed() {
            // One of them is enough, and a full inbox has the first.
            let _ = self.events.try_send(Event::Lifecycle(LifecycleInput::SessionFailing));
        }
    }
}

impl<'scope> Part<'scope, '_> {
    fn spawn(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<()> + Send + 'scope,
    ) -> Option<ScopedJoinHandle<'scope, ()>> {
        let (shared, events) = (self.shared, self.events);
        let builder = std::thread::Builder::new().name(format!("{name}/{}", self.service));
        let spawned = builder.spawn_scoped(self.scope, move || {
            // Dropped in the reverse order: it hears of a panic.
            let _told = FailGuard { shared, events };
            let _guard = PanicGuard(shared);
            if let Err(error) = work() {
                shared.fail(error);
            }
        });
        match spawned {
            Ok(handle) => Some(handle),
            Err(error) => {
                self.shared.fail(
                    Error::new(ErrorKind::Unreachable, format!("start thread `{name}`"))
                        .because(error),
                );
                None
            }
        }
    }

    fn join(&self, handle: Option<ScopedJoinHandle<'scope, ()>>) {
        // The guard has reported the panic.
        let _ = handle.map(ScopedJoinHandle::join);
    }
}
