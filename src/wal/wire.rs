//! Checked reads from a message: every read says what it expected and fails instead of panicking.

use std::fmt;

/// The bytes of one message that are still to be read.
#[derive(Debug, Clone, Copy)]
pub struct Wire<'a> {
    rest: &'a [u8],
}

/// The bytes are not what the protocol promises. `context` names the part that was being read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    Short { context: &'static str, wanted: usize, got: usize },
    UnknownTag { context: &'static str, tag: u8 },
    BadLength { context: &'static str, length: i32 },
    NotUtf8 { context: &'static str },
    Trailing { context: &'static str, bytes: usize },
    BadValue { context: &'static str },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Short { context, wanted, got } => {
                write!(f, "{context}: expected {wanted} bytes, got {got}")
            }
            DecodeError::UnknownTag { context, tag } => {
                write!(f, "{context}: unknown tag 0x{tag:02x}")
            }
            DecodeError::BadLength { context, length } => {
                write!(f, "{context}: length {length} is impossible")
            }
            DecodeError::NotUtf8 { context } => write!(f, "{context}: not valid UTF-8"),
            DecodeError::Trailing { context, bytes } => {
                write!(f, "{context}: {bytes} bytes left over")
            }
            DecodeError::BadValue { context } => write!(f, "{context}: malformed value"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl<'a> Wire<'a> {
    pub fn new(bytes: &'a [u8]) -> Wire<'a> {
        Wire { rest: bytes }
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline]
    pub fn take(&mut self, n: usize, context: &'static str) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(n) {
            Some((head, tail)) => {
                self.rest = tail;
                Ok(head)
            }
            None => Err(DecodeError::Short { context, wanted: n, got: self.rest.len() }),
        }
    }

    #[inline]
    fn take_array<const N: usize>(
        &mut self,
        context: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        match self.rest.split_first_chunk::<N>() {
            Some((head, tail)) => {
                self.rest = tail;
                Ok(*head)
            }
            None => Err(DecodeError::Short { context, wanted: N, got: self.rest.len() }),
        }
    }

    #[inline]
    pub fn take_u8(&mut self, context: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take_array::<1>(context)?[0])
    }

    #[inline]
    pub fn take_u16(&mut self, context: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.take_array(context)?))
    }

    #[inline]
    pub fn take_u32(&mut self, context: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.take_array(context)?))
    }

    #[inline]
    pub fn take_i32(&mut self, context: &'static str) -> Result<i32, DecodeError> {
        Ok(i32::from_be_bytes(self.take_array(context)?))
    }

    #[inline]
    pub fn take_u64(&mut self, context: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.take_array(context)?))
    }

    #[inline]
    pub fn take_i64(&mut self, context: &'static str) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.take_array(context)?))
    }

    /// A string that ends with a zero byte.
    pub fn take_str(&mut self, context: &'static str) -> Result<&'a str, DecodeError> {
        let text = self.take_until_zero(context)?;
        std::str::from_utf8(text).map_err(|_| DecodeError::NotUtf8 { context })
    }

    fn take_until_zero(&mut self, context: &'static str) -> Result<&'a [u8], DecodeError> {
        let end = memchr::memchr(0, self.rest).ok_or(DecodeError::Short {
            context,
            wanted: self.rest.len() + 1,
            got: self.rest.len(),
        })?;
        let text = self.take(end, context)?;
        self.take_u8(context)?;
        Ok(text)
    }

    /// The name of something of the user's, which ends with a zero byte: in a database in SQL_ASCII
    /// it may be any bytes. No name that we know is such a one.
    pub fn take_name(&mut self, context: &'static str) -> Result<String, DecodeError> {
        Ok(String::from_utf8_lossy(self.take_until_zero(context)?).into_owned())
    }

    /// A length that must not be negative, then as many bytes.
    #[inline]
    pub fn take_sized(&mut self, context: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.take_i32(context)?;
        let n = usize::try_from(length).map_err(|_| DecodeError::BadLength { context, length })?;
        self.take(n, context)
    }

    pub fn end(&self, context: &'static str) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::Trailing { context, bytes }),
        }
    }
}
