//! The codecs, held to bytes that real servers sent and to bytes that none would send.
//!
//! `tests/data/pgoutput` has whole streams as they came over the wire: the statements of
//! `statements.sql` in both formats and under both replica identities, from several versions of
//! Postgres. `scripts/record-pgoutput` records them again. What is done with them here:
//!
//! - [`facts`]: they say what the statements did, whatever the version, identity and format; and
//!   so does the server at hand.
//! - [`damage`]: cut at every length, and with every byte changed, they give values or errors.
//! - [`fuzz`], [`fuzz_text`]: for a bounded time the same is asked of anything that random changes make of them,
//!   and of the other readers of text from outside.

#[path = "codecs/server.rs"]
mod server;

#[path = "codecs/recording.rs"]
mod recording;
#[path = "codecs/replay.rs"]
mod replay;

#[path = "codecs/damage.rs"]
mod damage;
#[path = "codecs/facts.rs"]
mod facts;
#[path = "codecs/fuzz.rs"]
mod fuzz;
#[path = "codecs/fuzz_text.rs"]
mod fuzz_text;
#[path = "codecs/mutate.rs"]
mod mutate;
