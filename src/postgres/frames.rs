//! Cuts what comes from the socket into Postgres's frames: a tag, a length, a body.
//!
//! The frames of a stream are not looked at one by one: a run of whole CopyData frames leaves as
//! one block, to be handed to another thread in one move. A large one leaves in the memory that it
//! was read into, which comes back when the block is dropped. Total: no bytes can panic it.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use postgres_protocol::message::backend::{COPY_DATA_TAG, Header};

/// The most that one read can return, unless a single frame is longer.
const INBOX_BYTES: usize = 128 * 1024;
/// A block of this length keeps the buffer that it was read into; a shorter one is copied.
const MOVED_BYTES_MIN: usize = INBOX_BYTES / 2;
/// How many empty buffers to keep for later reads: about the memory of a usual batch.
const SPARE_MAX: usize = 128;

/// Postgres's own limit of one message is 1 GiB less one byte, plus its length field and tag.
pub(super) const FRAME_BYTES_MAX: usize = (1 << 30) + 4;

/// Whole CopyData frames, as they came.
pub struct Frames {
    /// The block is the front of it.
    buffer: Vec<u8>,
    len: usize,
    /// Where the buffer goes when it is not needed any more.
    home: Option<Arc<Spare>>,
}

/// Buffers that were read into and may be again. The last to come is the first to go: it is the
/// likeliest to be in a cache.
#[derive(Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        self.0.lock().pop().unwrap_or_else(|| vec![0; INBOX_BYTES])
    }

    fn give(&self, buffer: Vec<u8>) {
        let mut spare = self.0.lock();
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.give(std::mem::take(&mut self.buffer));
        }
    }
}

impl Frames {
    /// For tests and recorded streams; anything after the last whole CopyData frame is ignored.
    pub fn from_bytes(bytes: Vec<u8>) -> Frames {
        Frames { len: bytes.len(), buffer: bytes, home: None }
    }

    /// The payloads, in order: what `FromServer::parse` reads.
    #[inline]
    pub fn messages(&self) -> Messages<'_> {
        Messages { rest: self.bytes() }
    }

    /// Frame headers included.
    pub fn bytes_len(&self) -> usize {
        self.len
    }

    /// Memory held, which may be twice as much.
    pub fn bytes_held(&self) -> usize {
        self.buffer.len()
    }

    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }

    /// Where a part of this block begins; `None` if it is of another block.
    #[inline]
    pub fn place_of(&self, part: &[u8]) -> Option<u32> {
        let start = part.as_ptr().addr().checked_sub(self.buffer.as_ptr().addr())?;
        (start + part.len() <= self.len).then(|| u32::try_from(start).ok())?
    }
}

impl Clone for Frames {
    fn clone(&self) -> Frames {
        Frames::from_bytes(self.bytes().to_vec())
    }
}

impl PartialEq for Frames {
    fn eq(&self, other: &Frames) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Frames {}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The content is rows.
        write!(f, "Frames({} bytes)", self.len)
    }
}

#[derive(Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_first_chunk::<5>()?;
        let [COPY_DATA_TAG, length @ ..] = head else { return None };
        let payload_bytes = usize::try_from(u32::from_be_bytes(*length)).ok()?.checked_sub(4)?;
        let (payload, rest) = rest.split_at_checked(payload_bytes)?;
        self.rest = rest;
        Some(payload)
    }
}

/// The length of a frame is one that Postgres never sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadFrame {
    tag: u8,
    length: i64,
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "expected a message of Postgres, got tag 0x{:02x} with length {}",
            self.tag, self.length
        )
    }
}

impl std::error::Error for BadFrame {}

/// The message at the front of the inbox.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Front {
    /// CopyData frames, all that are whole.
    Copy(Frames),
    /// One frame of another kind.
    Other(u8, Vec<u8>),
    /// Not even one whole frame.
    Partial,
}

/// Received bytes that are still to be handed on.
pub(super) struct Inbox {
    /// All of it is initialised; `start..end` is received.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    spare: Arc<Spare>,
}

impl Inbox {
    pub(super) fn new() -> Inbox {
        let spare = Arc::<Spare>::default();
        Inbox { buffer: spare.take(), start: 0, end: 0, spare }
    }

    /// The stream is idle: free the empty buffers.
    pub(super) fn rest(&mut self) {
        *self.spare.0.lock() = Vec::new();
    }

    fn received(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Where the next read goes; never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if 0 < self.start {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            // One frame is longer than the buffer. Growing as bytes arrive means that a length that
            // lies costs nothing.
            let wanted = match frame_bytes(&self.buffer, FRAME_BYTES_MAX) {
                Ok(Some((_, bytes))) => bytes,
                _ => 0,
            };
            let doubled = self.buffer.len() * 2;
            let length = if self.end < wanted { doubled.min(wanted) } else { doubled };
            self.buffer.resize(length, 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// `n` more bytes were read into [`Inbox::space`].
    pub(super) fn advance(&mut self, n: usize) {
        assert!(n <= self.buffer.len() - self.end);
        self.end += n;
    }

    /// The next frame alone, CopyData or not. Longer than `bytes_max` is refused.
    pub(super) fn pop(&mut self, bytes_max: usize) -> Result<Option<(u8, Vec<u8>)>, BadFrame> {
        let Some((tag, bytes)) = frame_bytes(self.received(), bytes_max)? else { return Ok(None) };
        let Some(body) = self.received().get(5..bytes) else { return Ok(None) };
        let body = body.to_vec();
        self.start += bytes;
        Ok(Some((tag, body)))
    }

    /// The messages at the front, CopyData frames as one block.
    pub(super) fn pop_front(&mut self) -> Result<Front, BadFrame> {
        let mut run = 0;
        loop {
            let rest = self.received().get(run..).unwrap_or_default();
            match frame_bytes(rest, FRAME_BYTES_MAX) {
                Ok(Some((COPY_DATA_TAG, bytes))) if bytes <= rest.len() => run += bytes,
                _ if 0 < run => return Ok(Front::Copy(self.take(run))),
                // An error in the frame after the run is reported when that frame is at the front.
                Ok(_) => break,
                Err(error) => return Err(error),
            }
        }
        match self.pop(FRAME_BYTES_MAX)? {
            Some((tag, body)) => Ok(Front::Other(tag, body)),
            None => Ok(Front::Partial),
        }
    }

    fn take(&mut self, n: usize) -> Frames {
        if self.start != 0 || n < MOVED_BYTES_MIN {
            let bytes = self.received().get(..n).unwrap_or_default().to_vec();
            self.start += n;
            return Frames::from_bytes(bytes);
        }
        let mut next = self.spare.take();
        let rest = self.buffer.get(n..self.end).unwrap_or_default();
        while next.len() < rest.len() {
            next.resize(next.len() * 2, 0);
        }
        if let Some(space) = next.get_mut(..rest.len()) {
            space.copy_from_slice(rest);
        }
        self.end = rest.len();
        let buffer = std::mem::replace(&mut self.buffer, next);
        // A buffer that has grown for a long frame goes with it.
        let home = (buffer.len() == INBOX_BYTES).then(|| self.spare.clone());
        Frames { buffer, len: n, home }
    }
}

/// Tag and length of the frame at the front, tag and length field counted.
fn frame_bytes(received: &[u8], bytes_max: usize) -> Result<Option<(u8, usize)>, BadFrame> {
    let Some(head) = received.first_chunk::<5>() else { return Ok(None) };
    let [tag, length @ ..] = *head;
    let length = i32::from_be_bytes(length);
    match Header::parse(head) {
        Ok(Some(header)) => match usize::try_from(header.len()) {
            Ok(length) if length < bytes_max => Ok(Some((tag, length + 1))),
            _ => Err(BadFrame { tag, length: i64::from(length) }),
        },
        _ => Err(BadFrame { tag, length: i64::from(length) }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn feed(inbox: &mut Inbox, mut bytes: &[u8], step_max: usize, mut take: impl FnMut(Front)) {
        while !bytes.is_empty() {
            let space = inbox.space();
            let n = space.len().min(bytes.len()).min(step_max);
            space[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            inbox.advance(n);
            loop {
                match inbox.pop_front().unwrap() {
                    Front::Partial => break,
                    front => take(front),
                }
            }
        }
    }

    fn fed(inbox: &mut Inbox, bytes: &[u8], step_max: usize) -> Vec<Front> {
        let mut out = Vec::new();
        feed(inbox, bytes, step_max, |front| out.push(front));
        out
    }

    #[test]
    fn run_of_copy_data_leaves_as_one_block() {
        let bytes = [frame(b'd', b"one"), frame(b'd', b""), frame(b'N', b"n"), frame(b'd', b"2")];
        let out = fed(&mut Inbox::new(), &bytes.concat(), usize::MAX);
        let [Front::Copy(first), Front::Other(b'N', _), Front::Copy(second)] = &out[..] else {
            panic!("{out:?}")
        };
        assert_eq!(first.messages().collect::<Vec<_>>(), [&b"one"[..], b""]);
        assert_eq!(second.messages().collect::<Vec<_>>(), [b"2"]);
    }

    #[test]
    fn frame_longer_than_the_buffer_arrives_whole_and_the_buffer_shrinks_back() {
        let big: Vec<u8> = (0..3 * INBOX_BYTES + 7).map(|i| i as u8).collect();
        let bytes = [frame(b'd', b"before"), frame(b'd', &big), frame(b'd', b"after")].concat();
        let mut inbox = Inbox::new();
        let out = fed(&mut inbox, &bytes, 100_000);
        let payloads: Vec<&[u8]> = out
            .iter()
            .flat_map(|front| match front {
                Front::Copy(frames) => frames.messages().collect(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(payloads, [&b"before"[..], &big, b"after"]);
        assert_eq!(inbox.buffer.len(), INBOX_BYTES);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0u32, 3, 0x8000_0000, 0xFFFF_FFFF, (1 << 30) + 4] {
            let mut bytes = vec![b'd'];
            bytes.extend(length.to_be_bytes());
            let mut inbox = Inbox::new();
            inbox.space()[..5].copy_from_slice(&bytes);
            inbox.advance(5);
            assert!(inbox.pop_front().is_err(), "{length:x}");
        }
        // The answer of an HTTP server.
        let mut inbox = Inbox::new();
        inbox.space()[..8].copy_from_slice(b"HTTP/1.1");
        inbox.advance(8);
        assert!(inbox.pop(64 * 1024).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_messages(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let frames = Frames::from_bytes(bytes);
            let total: usize = frames.messages().map(|m| m.len() + 5).sum();
            prop_assert!(total <= frames.bytes_len());
        }

        /// Blocks are held for a while, as flushers do, so that buffers are read into again.
        #[test]
        fn cutting_the_bytes_anywhere_changes_nothing(
            bodies in proptest::collection::vec(
                (
                    proptest::sample::select(vec![b'd', b'd', b'd', b'N']),
                    prop_oneof![9 => 0..INBOX_BYTES / 20, 1 => 0..INBOX_BYTES * 3],
                ),
                0..60,
            ),
            step_max in prop_oneof![1000..INBOX_BYTES / 20, INBOX_BYTES / 2..INBOX_BYTES * 2],
            held_max in 0..20usize,
        ) {
            let bodies: Vec<_> = bodies
                .into_iter()
                .enumerate()
                .map(|(nth, (tag, n))| (tag, vec![nth as u8; n]))
                .collect();
            let bytes: Vec<u8> = bodies.iter().flat_map(|(tag, body)| frame(*tag, body)).collect();
            let (mut held, mut got) = (VecDeque::new(), Vec::new());
            let mut let_go = |front| match front {
                Front::Copy(frames) => {
                    got.extend(frames.messages().map(|body| (b'd', body.to_vec())));
                }
                Front::Other(tag, body) => got.push((tag, body)),
                Front::Partial => unreachable!(),
            };
            let mut inbox = Inbox::new();
            feed(&mut inbox, &bytes, step_max, |front| {
                held.push_back(front);
                if held_max < held.len() {
                    held.pop_front().map(&mut let_go);
                }
            });
            held.into_iter().for_each(let_go);
            // Not `prop_assert_eq`, which would print them.
            prop_assert!(got == bodies);
            prop_assert!(inbox.spare.0.lock().iter().all(|buffer| buffer.len() == INBOX_BYTES));
        }
    }
}
