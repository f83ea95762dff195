//! Values read from the table, rather than streamed, may come from commits that the stream has not
//! reached yet. Two waits make them as safe as streamed ones: the server must have those commits on
//! disk, or its crash could take them back on the same timeline; and the state row must cover them
//! ([`Alongside::admit`]), or a fork below them would go unnoticed.

use std::time::{Duration, Instant};

use super::alongside::Alongside;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::server::{flush_lsn, flush_wal};
use crate::postgres::sql::Sql;
use crate::postgres::table_reader::AsOf;

/// On a busy server the next commit does that.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const LOOKS_BEFORE_FLUSH: u32 = 4;

/// Waits until everything that the snapshot saw would survive a crash of the server.
pub fn wait_until_flushed(
    sql: &mut Sql,
    alongside: &dyn Alongside,
    as_of: AsOf,
    deadline: Instant,
) -> Result<()> {
    let (mut flushed, mut looks) = (as_of.flush_lsn, 0);
    while flushed < as_of.insert_lsn {
        if deadline <= Instant::now() {
            return Err(Error::new(ErrorKind::Unreachable, "wait until WAL is flushed")
                .because(format!("expected {}, got {flushed}", as_of.insert_lsn)));
        }
        looks += 1;
        if looks == LOOKS_BEFORE_FLUSH {
            // Without the privilege, the server does it by itself within about 15 s.
            if let Err(error) = flush_wal(sql, deadline) {
                log::debug!("{error}");
            }
        } else {
            alongside.pause(Instant::now() + LOOK_EVERY)?;
        }
        flushed = flush_lsn(sql, deadline)?;
    }
    Ok(())
}
