//! walhouse replicates Postgres tables into ClickHouse through logical replication, and loses no
//! row when anything on the way fails.
//!
//! A *service* is one slot, one publication and one source table; `runs`, `sessions` and `webhooks`
//! are built in. Each has these threads of its own:
//!
//! ```text
//!  Postgres ==> wal_reader --Frames--> batcher --Batch--> flusher x N ==> ClickHouse
//!     ^             ^                   |   ^                  |              ^
//!     |             |           flushed |   +----- BatchId ----+              |
//!     |             |                   v                                     |
//!     |             +--- confirmed -- confirmer ======= state row ============+
//!     +== status update
//!
//!  repairer: after a gap or a fork, reads the table and ClickHouse's keys, writes what differs
//!  verifier, backfiller: commands alongside the stream, each a separate process
//!
//!  lock_keeper --LockLost--> coordinator <--SessionEnded-- session (the threads above)
//!  primary_probe --PrimaryBack-^
//!  failover_readiness: whether a failover would keep the slot
//!  presence: shows this instance in Postgres, and checks whether the holder of the lock is gone
//!  source_watch: the source, and what the slot keeps; table_watch: ClickHouse's tables
//!  http                      supervisor (the main thread): signals, exit code, word to systemd
//! ```
//!
//! A [`session`](threads::session) is one attempt, from the leader lock to the end of the stream.
//! It makes the channels and the threads of the picture and joins them in the order of the data.
//! Its threads share a [`SessionState`](delivery::session_state::SessionState), and what they have
//! [`Learned`](delivery::learned::Learned) of the tables while inserting. A command inserts in the
//! same way without a session: what it needs of the stream is [`Alongside`](delivery::alongside).
//!
//! The [`lifecycle`](machines::lifecycle) decides what to do about its end; its table of states
//! maps everything that a service can be doing.
//!
//! # When a thread fails
//!
//! Every end of a session leads to a state of the [`lifecycle`](machines::lifecycle), which
//! `/healthz` and `walhouse_state` name, and to a line in the log. `->` is what follows from the
//! strategy: `reconnect` backing_off, `exit` the end of the process, `log` failed.
//!
//! | what ends | because | state | in the log |
//! |---|---|---|---|
//! | session, before the stream | a server away or refusing; no primary; a slot held by another | -> | `doing: cause`, with a hint |
//! | | a gap or fork, strategy `repair` or `skip` | streaming | `gap: ...; streaming from ...` |
//! | | the same under `halt`; a foreign cluster or database | failed | `stopped until an operator has decided` |
//! | wal_reader | the connection is lost, the server ends, silence | -> | `stream from slot ...: ...` |
//! | batcher, flusher | bytes or values that cannot be read, a changed table | -> | `read the stream ...`, `map the changes ...` |
//! | flusher, confirmer | ClickHouse is away or refuses | streaming, `walhouse_insert_outage` | `outage: ...; nothing is dropped` |
//! | flusher, confirmer, table_watch | a table in ClickHouse is gone or another one | -> | `... code 60 (UNKNOWN_TABLE)`, `... dropped, replaced or altered` |
//! | source_watch | rows may be hidden, or a start would refuse the source | draining, then starting | `...; starting again`, `repair: ...` |
//! | promotion_watch | another server was promoted | -> | `... this server is left behind` |
//! | repairer | anything | streaming, `walhouse_repair_failing` | `repair: ...; the stream goes on` |
//! | failover_readiness, primary_probe, presence, slot_watch | anything | as it was | at level debug: they only look |
//! | lock_keeper | the lock is lost, or Redis does not answer | draining, then standing_by | `leader lock lost`, `no longer leading` |
//! | any | a panic | -> | `thread ... panicked`, `this is a bug of walhouse` |
//! | any | it does not end when asked to, or after another has failed | the process exits with 1 | `a thread does not end; exiting` |
//!
//! # How a table's description travels
//!
//! ```text
//!  pg_catalog --SourceTable--+                        +--> batcher: versions of relations
//!  mapping: Source, Target --+--> Member --> TableSet +--> flusher: one table after another
//!  system.columns --Shape----+                        +--> mending: both sides by the same keys
//! ```
//!
//! A [`Mapping`](services::mapping::Mapping) has a [`Source`](services::source::Source): the
//! columns of Postgres that it reads and their key; and a [`Target`](rows::Target)
//! for each table of ClickHouse. Three are written by hand;
//! [`Columns`](services::columns::Columns) is made of a
//! description of any table, by the [`types`](services::types) of its columns. A
//! [`Member`](delivery::member::Member) is a mapping with what both sides have of its tables, and a
//! session has a [`TableSet`](delivery::table_set::TableSet) of them. A key is the bytes of its
//! values in ClickHouse ([`Key`](rows::key::Key)) wherever both sides meet.
//!
//! # Promises
//!
//! - Nothing is confirmed before it is durable: [`progress`](machines::progress) knows which rows
//!   are durable, [`confirm`](machines::confirm) when to report that to Postgres.
//! - Nothing is dropped: [`outage`](delivery::outage) retries for ever,
//!   [`landing`](delivery::landing) and [`salvage`](machines::salvage) insert what is accepted, and
//!   the rest is kept in a table of its own ([`refused`](clickhouse::own::refused)).
//! - Replays are harmless, and versions follow commits: `_version` is the position of the change in
//!   the WAL ([`assemble`](services::assemble)), but for a row whose key was removed above it while
//!   it waited for that key: [`removals`](machines::removals) puts it just above.
//! - Unchanged values are never overwritten with NULL: [`fold`](services::fold) finds what the
//!   stream left out, [`flusher`](threads::stream::flusher) asks for the rest.
//! - A gap or a fork is never skipped silently: [`lineage`](machines::lineage) judges every start,
//!   [`recovery`](machines::recovery) decides what follows, [`resume`](threads::start::resume) does
//!   it, and [`repairer`](mending::repairer) makes both sides equal again.
//! - All connections of a session go to one server, the [`primary`](postgres::primary).
//! - A dead connection is noticed, and Postgres gets its status updates:
//!   [`status`](machines::status).
//! - Memory is bounded: [`batches`](machines::batches) pauses reading.
//!
//! # Rooms
//!
//! From the top to the bottom; a file uses only rooms below its own, and the files of a room do not
//! use each other in circles (`tests/tidy` checks both). The `mod.rs` of a room says what it holds
//! and where something new goes.
//!
//! | room | what lives there |
//! |---|---|
//! | [`cli`] | commands, log lines, exit codes |
//! | [`threads`] | one file for each thread: wait, step a machine, act; in `start`, `stream` and `watch` what a session runs |
//! | [`mending`] | makes both sides equal alongside the stream: repair, verify, backfill, and the debts that lead to them |
//! | [`delivery`] | inserting rows into ClickHouse, outages, the state of servers and tables, what a session shares |
//! | [`overview`] | what a person sees: the facts of `/status`, the page, the table |
//! | [`config`] | the only reader of the environment |
//! | [`postgres`], [`clickhouse`], [`redis`] | blocking I/O with one party each, and what its errors mean |
//! | [`services`] | source tables, target tables, the mapping between them |
//! | [`machines`] | the decisions: events go in, actions come out |
//! | [`rows`] | target tables, keys, columns, order, Native encoding |
//! | [`documents`] | JSON: read as Postgres prints it, written as ClickHouse accepts it |
//! | [`wal`] | LSNs, times, relations, tuples and their codecs |
//!
//! [`error`], [`finding`], [`halt`], [`secret`] and [`telling`] are for all rooms; [`metrics`] and
//! [`health`] are for the rooms that act, `delivery` and above, and keep what people see in the
//! types of `overview`.
//!
//! # Invariants: what is absent
//!
//! - No clock, environment, channel or random source in `machines`, `services` and all below.
//! - No bytes from outside can panic: decoding is checked, never indexed.
//! - No wait without a deadline, no queue without a bound. In the cycle of batcher and flushers no
//!   thread blocks on a send.
//! - No message of a dead session has anywhere to arrive, and no thread outlives its session: for
//!   one that does not end, the process exits.
//! - No async code of our own: the runtime of the ClickHouse client is hidden in its room.
//! - No row content and no secret in a log line or an error.

pub mod error;
pub mod finding;
pub mod halt;
pub mod health;
pub mod metrics;
pub mod secret;
pub mod telling;

pub mod wal;

pub mod documents;

pub mod rows;

pub mod machines;

pub mod services;

pub mod clickhouse;
pub mod postgres;
pub mod redis;

pub mod config;

pub mod overview;

pub mod delivery;

pub mod mending;

pub mod threads;

pub mod cli;
