//! A row version on the wire: one datum per column.

use super::wire::{DecodeError, Wire};

/// One value of a tuple, still in the format it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datum<'a> {
    Null,
    /// A TOASTed value that the UPDATE did not touch; Postgres does not send it.
    Unchanged,
    Text(&'a [u8]),
    Binary(&'a [u8]),
}

/// The bytes of a `TupleData` part, walked once so that walking it again cannot fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: u16,
    bytes: &'a [u8],
    has_unchanged: bool,
}

impl<'a> Tuple<'a> {
    pub fn parse(wire: &mut Wire<'a>) -> Result<Tuple<'a>, DecodeError> {
        let columns = wire.take_u16("tuple column count")?;
        let start = wire.rest();
        let mut has_unchanged = false;
        for _ in 0..columns {
            has_unchanged |= matches!(take_datum(wire)?, Datum::Unchanged);
        }
        let walked = start.len() - wire.rest().len();
        let bytes = start.get(..walked).unwrap_or_default();
        Ok(Tuple { columns, bytes, has_unchanged })
    }

    pub fn columns(&self) -> usize {
        usize::from(self.columns)
    }

    pub fn has_unchanged(&self) -> bool {
        self.has_unchanged
    }

    pub fn datums(&self) -> impl Iterator<Item = Datum<'a>> + use<'a> {
        let mut wire = Wire::new(self.bytes);
        (0..self.columns).map_while(move |_| take_datum(&mut wire).ok())
    }
}

#[inline]
fn take_datum<'a>(wire: &mut Wire<'a>) -> Result<Datum<'a>, DecodeError> {
    match wire.take_u8("tuple column kind")? {
        b'n' => Ok(Datum::Null),
        b'u' => Ok(Datum::Unchanged),
        b't' => Ok(Datum::Text(wire.take_sized("tuple column value")?)),
        b'b' => Ok(Datum::Binary(wire.take_sized("tuple column value")?)),
        tag => Err(DecodeError::UnknownTag { context: "tuple column kind", tag }),
    }
}
