//! The leader lock in Redis, in the very form trigger.dev's own replication uses, so that the two
//! exclude each other: a key named after the slot, whose value is of one acquire alone and whose
//! life is limited.
//!
//! It is advice. The slot is the fence: Postgres lets one walsender hold it. This file neither
//! waits nor judges time for its caller; when to extend and when to give up is for the lease.

use std::path::Path;
use std::time::{Duration, Instant};

use super::connection::{Lua, RedisCommand, RedisConnection};
use super::params::Params;
use super::value;
use crate::error::{Error, ErrorKind, Result};

/// In front of each: the token in a value shows that it is ours, whatever else it says.
macro_rules! of_token {
    ($script:literal) => {
        concat!(
            "local held = redis.call('get', KEYS[1])\n",
            "local ours = held and string.find(held, ARGV[1], 1, true)\n",
            $script
        )
    };
}

/// Take the key if it is free, or if it is ours since an acquire whose answer was lost; else return
/// what it holds.
const TAKE: &str = of_token!(
    "\
if held and not ours then return held end
redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
return false"
);

/// Renew the key if it is ours; if it is gone and `ARGV[4]` allows, take it again.
const EXTEND: &str = of_token!(
    "\
if ours then
  redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
if not held and ARGV[4] == 'retake' then
  redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 2
end
return 0"
);

const RELEASE: &str = of_token!(
    "\
if ours then return redis.call('del', KEYS[1]) end
return 0"
);

/// Deletes the key if it has exactly this value.
const CLEAR: &str = "\
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0";

const LOOK: &str = "return { redis.call('get', KEYS[1]), redis.call('pttl', KEYS[1]) }";

/// Tests what acquiring needs, without changing anything: of the two conditions of SET the one that
/// does not hold. A replica, a full memory or a user without the right refuses it all the same.
const TRY: &str = "\
local held = redis.call('get', KEYS[1])
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2], held and 'NX' or 'XX')
return 1";

/// One contender for the lock of one slot.
pub struct RedisLock {
    key: String,
    connection: RedisConnection,
    take: Lua,
    extend: Lua,
    release: Lua,
    clear: Lua,
    look: Lua,
    probe: Lua,
    hold: Hold,
    /// The same in all values of this contender; drawn for the first.
    token: Option<String>,
    /// Each acquire has its own value.
    acquires: u64,
    mark: Option<String>,
    /// The result of the last acquire.
    met: Option<String>,
}

/// What we know of the key. Its token shows whether a value in Redis is ours, so that we never wait
/// for our own orphan.
#[derive(Debug, Clone, Copy)]
enum Hold {
    None,
    /// The answer to a request was lost: the key may be ours.
    Unsure,
    /// Ours, at least until `expires_at` unless Redis forgets it.
    Held {
        expires_at: Instant,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extended {
    /// It was ours all the time.
    Yes,
    /// The key was gone within our term (Redis came back empty) and nobody had taken it: it is
    /// ours again.
    Retaken,
    /// Another holds it, or our term was over before it could be taken again.
    Lost,
}

/// The holder of the key, by Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    Nobody,
    Us { left: Duration },
    Another { left: Duration },
}

impl RedisLock {
    /// `key_prefix` is such as `runs-replication:`. No I/O yet.
    pub fn new(params: &Params, key_prefix: &str, slot: &str) -> RedisLock {
        RedisLock {
            // The client and the lock of the source system each add the same words: twice is right.
            key: format!(
                "{key_prefix}logical-replication-client:logical-replication-client:{slot}"
            ),
            connection: RedisConnection::new(params),
            take: Lua::new(TAKE),
            extend: Lua::new(EXTEND),
            release: Lua::new(RELEASE),
            clear: Lua::new(CLEAR),
            look: Lua::new(LOOK),
            probe: Lua::new(TRY),
            hold: Hold::None,
            token: None,
            acquires: 0,
            mark: None,
            met: None,
        }
    }

    /// Trusts the certificate authorities of this PEM file, and no others. Without it those of the
    /// system count, or of the variables SSL_CERT_FILE and SSL_CERT_DIR.
    pub fn with_ca_file(mut self, path: &Path) -> Result<RedisLock> {
        self.connection.trust_ca_file(path)?;
        Ok(self)
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    /// Says in each value which contender it is of.
    pub fn token(&mut self) -> Result<String> {
        let token = match self.token.take() {
            Some(token) => token,
            None => random_token()?,
        };
        self.token = Some(token.clone());
        Ok(token)
    }

    /// Where others can see that we are alive, from the next acquire or extension on; `None` says
    /// that they cannot.
    pub fn set_mark(&mut self, mark: Option<String>) {
        self.mark = mark;
    }

    /// The value of another that the last acquire met.
    pub fn met(&self) -> Option<&str> {
        self.met.as_deref()
    }

    /// Tries once. The lock lives for `term` from the moment Redis heard of it: count from before
    /// the call. After an error we may or may not hold it; our next `try_acquire` or `release`
    /// finds out.
    pub fn try_acquire(&mut self, term: Duration, deadline: Instant) -> Result<bool> {
        let asked_at = Instant::now();
        let token = self.token()?;
        if matches!(self.hold, Hold::None) {
            self.acquires += 1;
        }
        let value = value::text(&token, self.acquires, self.mark.as_deref());
        self.hold = Hold::Unsure;
        self.met = None;
        let command = RedisCommand {
            doing: "acquire leader lock",
            lua: &self.take,
            key: &self.key,
            args: &[&token, &value, &millis(term)],
            deadline,
        };
        match self.connection.run::<Option<Vec<u8>>>(&command)? {
            None => {
                self.hold = Hold::Held { expires_at: asked_at + term };
                Ok(true)
            }
            Some(met) => {
                self.hold = Hold::None;
                self.met = String::from_utf8(met).ok();
                Ok(false)
            }
        }
    }

    /// After an error nothing is known: try again until the lease is over.
    pub fn extend(&mut self, term: Duration, deadline: Instant) -> Result<Extended> {
        let Hold::Held { expires_at } = self.hold else {
            return Ok(Extended::Lost);
        };
        let token = self.token()?;
        let value = value::text(&token, self.acquires, self.mark.as_deref());
        let asked_at = Instant::now();
        // Beyond our term another may have led and left already.
        let gone = if asked_at < expires_at { "retake" } else { "leave" };
        let command = RedisCommand {
            doing: "extend leader lock",
            lua: &self.extend,
            key: &self.key,
            args: &[&token, &value, &millis(term), gone],
            deadline,
        };
        match self.connection.run::<u8>(&command)? {
            1 => {
                self.hold = Hold::Held { expires_at: asked_at + term };
                Ok(Extended::Yes)
            }
            2 if Instant::now() < expires_at => {
                self.hold = Hold::Held { expires_at: asked_at + term };
                Ok(Extended::Retaken)
            }
            // Ours again, but too late to be sure that nobody led in between.
            2 => {
                self.hold = Hold::Unsure;
                Ok(Extended::Lost)
            }
            _ => {
                self.hold = Hold::None;
                Ok(Extended::Lost)
            }
        }
    }

    /// Gives the lock up if it is ours, or may be. After an error it ends with its term, or with a
    /// later release.
    pub fn release(&mut self, deadline: Instant) -> Result<()> {
        if matches!(self.hold, Hold::None) {
            return Ok(());
        }
        let token = self.token()?;
        self.hold = Hold::Unsure;
        let command = RedisCommand {
            doing: "release leader lock",
            lua: &self.release,
            key: &self.key,
            args: &[&token],
            deadline,
        };
        self.connection.run::<u8>(&command)?;
        self.hold = Hold::None;
        Ok(())
    }

    /// Deletes the key if it holds exactly the value of a holder that is gone.
    pub fn clear(&mut self, left: &str, deadline: Instant) -> Result<()> {
        let command = RedisCommand {
            doing: "clear leader lock",
            lua: &self.clear,
            key: &self.key,
            args: &[left],
            deadline,
        };
        self.connection.run::<u8>(&command).map(drop)
    }

    /// Whether the lock could be written here. Changes nothing.
    pub fn probe(&mut self, deadline: Instant) -> Result<()> {
        let command = RedisCommand {
            doing: "try leader lock",
            lua: &self.probe,
            key: &self.key,
            args: &["walhouse check", "1"],
            deadline,
        };
        self.connection.run::<u8>(&command).map(drop)
    }

    /// For status pages: reads, changes nothing.
    pub fn holder(&mut self, deadline: Instant) -> Result<Holder> {
        let command = RedisCommand {
            doing: "look at leader lock",
            lua: &self.look,
            key: &self.key,
            args: &[],
            deadline,
        };
        let (found, left_ms) = self.connection.run::<(Option<Vec<u8>>, i64)>(&command)?;
        let Some(found) = found else {
            return Ok(Holder::Nobody);
        };
        // A key without an end (-1) was not set by us or by the source system.
        let left = u64::try_from(left_ms).map_or(Duration::MAX, Duration::from_millis);
        let found = String::from_utf8_lossy(&found);
        let is_of = |token: &String| found.contains(token.as_str());
        let ours = !matches!(self.hold, Hold::None) && self.token.as_ref().is_some_and(is_of);
        Ok(if ours { Holder::Us { left } } else { Holder::Another { left } })
    }
}

/// 16 bytes from the operating system, as hex.
fn random_token() -> Result<String> {
    let mut bytes = [0u8; 16];
    rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes).map_err(|_| {
        Error::new(ErrorKind::Setup, "draw a value for the leader lock")
            .because("the operating system gives no random bytes")
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Redis accepts no TTL of zero.
fn millis(term: Duration) -> String {
    term.as_millis().max(1).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock_for(key_prefix: &str, slot: &str) -> RedisLock {
        let params = Params {
            host: "redis.example".to_owned(),
            port: 6379,
            username: None,
            password: None,
            tls: false,
        };
        RedisLock::new(&params, key_prefix, slot)
    }

    #[test]
    fn keys_are_those_of_the_source_system() {
        assert_eq!(
            lock_for("runs-replication:", "task_runs_to_clickhouse_v1").key(),
            "runs-replication:logical-replication-client:logical-replication-client:\
             task_runs_to_clickhouse_v1"
        );
        assert_eq!(
            lock_for("sessions-replication:", "sessions_to_clickhouse_v1").key(),
            "sessions-replication:logical-replication-client:logical-replication-client:\
             sessions_to_clickhouse_v1"
        );
    }

    #[test]
    fn values_are_16_random_bytes_as_hex() {
        let (a, b) = (random_token().unwrap(), random_token().unwrap());
        for value in [&a, &b] {
            assert_eq!(value.len(), 32);
            assert!(value.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)));
        }
        assert_ne!(a, b);
    }

    #[test]
    fn nothing_held_is_nothing_to_extend_or_release() {
        let mut lock = lock_for("runs-replication:", "s");
        let now = Instant::now();
        assert_eq!(lock.extend(Duration::from_secs(1), now).unwrap(), Extended::Lost);
        lock.release(now).unwrap();
    }
}
