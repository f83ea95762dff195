//! The messages inside CopyData after START_REPLICATION: the manual, "Streaming Replication
//! Protocol".

use super::lsn::Lsn;
use super::time::PgTime;
use super::wire::{DecodeError, Wire};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromServer<'a> {
    /// For pgoutput `wal_start` is the LSN of the change itself.
    XLogData {
        wal_start: Lsn,
        wal_end: Lsn,
        sent_at: PgTime,
        payload: &'a [u8],
    },
    PrimaryKeepalive {
        wal_end: Lsn,
        sent_at: PgTime,
        reply_requested: bool,
    },
}

impl<'a> FromServer<'a> {
    #[inline]
    pub fn parse(data: &'a [u8]) -> Result<FromServer<'a>, DecodeError> {
        let mut wire = Wire::new(data);
        match wire.take_u8("copy data tag")? {
            b'w' => Ok(FromServer::XLogData {
                wal_start: Lsn(wire.take_u64("XLogData start")?),
                wal_end: Lsn(wire.take_u64("XLogData end")?),
                sent_at: PgTime(wire.take_i64("XLogData time")?),
                payload: wire.rest(),
            }),
            b'k' => {
                let wal_end = Lsn(wire.take_u64("keepalive WAL end")?);
                let sent_at = PgTime(wire.take_i64("keepalive time")?);
                let reply_requested = wire.take_u8("keepalive reply flag")? != 0;
                wire.end("keepalive")?;
                Ok(FromServer::PrimaryKeepalive { wal_end, sent_at, reply_requested })
            }
            tag => Err(DecodeError::UnknownTag { context: "copy data tag", tag }),
        }
    }
}

/// Tells Postgres how far we are. `flushed` is what the slot may forget; nothing else moves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyStatusUpdate {
    pub written: Lsn,
    pub flushed: Lsn,
    pub applied: Lsn,
    pub reply_requested: bool,
}

impl StandbyStatusUpdate {
    pub fn encode(&self, now: PgTime) -> [u8; 34] {
        let mut bytes = [0; 34];
        bytes[0] = b'r';
        bytes[1..9].copy_from_slice(&self.written.0.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.flushed.0.to_be_bytes());
        bytes[17..25].copy_from_slice(&self.applied.0.to_be_bytes());
        bytes[25..33].copy_from_slice(&now.0.to_be_bytes());
        bytes[33] = u8::from(self.reply_requested);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_update_is_34_bytes_in_the_order_of_the_manual() {
        let update = StandbyStatusUpdate {
            written: Lsn(3),
            flushed: Lsn(2),
            applied: Lsn(1),
            reply_requested: true,
        };
        let bytes = update.encode(PgTime(7));
        assert_eq!(bytes[0], b'r');
        assert_eq!(bytes[8], 3);
        assert_eq!(bytes[16], 2);
        assert_eq!(bytes[24], 1);
        assert_eq!(bytes[32], 7);
        assert_eq!(bytes[33], 1);
    }

    #[test]
    fn no_prefix_of_a_message_panics() {
        let mut xlog = vec![b'w'];
        xlog.extend([1; 24]);
        let mut keepalive = vec![b'k'];
        keepalive.extend([1; 17]);
        for whole in [&xlog[..25], &keepalive[..]] {
            assert!(FromServer::parse(whole).is_ok());
            for cut in 0..whole.len() {
                assert!(FromServer::parse(&whole[..cut]).is_err());
            }
        }
        assert!(FromServer::parse(b"x").is_err());
        keepalive.push(0);
        assert!(FromServer::parse(&keepalive).is_err());
    }
}
