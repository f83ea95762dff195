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
        let Some((walked, has_unchanged)) = walk(columns, start) else {
            return Err(what_is_wrong(columns, wire));
        };
        let bytes = wire.take(walked, "tuple columns")?;
        Ok(Tuple { columns, bytes, has_unchanged })
    }

    /// One column, without reading those after it.
    pub fn parse_one(wire: &Wire<'a>, column: usize) -> Result<Datum<'a>, DecodeError> {
        let mut wire = *wire;
        let columns = wire.take_u16("tuple column count")?;
        let before = u16::try_from(column).ok().filter(|column| *column < columns);
        let datum = before
            .and_then(|before| walk(before, wire.rest()))
            .and_then(|(walked, _)| split_datum(wire.rest().get(walked..)?));
        let (datum, _) = datum.ok_or(DecodeError::BadValue { context: "tuple columns" })?;
        Ok(datum)
    }

    pub fn columns(&self) -> usize {
        usize::from(self.columns)
    }

    pub fn has_unchanged(&self) -> bool {
        self.has_unchanged
    }

    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn datums(&self) -> impl Iterator<Item = Datum<'a>> + use<'a> {
        let mut rest = self.bytes;
        (0..self.columns).map_while(move |_| {
            let (datum, behind) = split_datum(rest)?;
            rest = behind;
            Some(datum)
        })
    }

    /// [`Tuple::datums`] for the many: all of them, each with its column.
    #[inline]
    pub fn each(&self, mut take: impl FnMut(usize, Datum<'a>)) {
        let mut rest = self.bytes;
        for column in 0..self.columns() {
            let Some((datum, behind)) = split_datum(rest) else { return };
            take(column, datum);
            rest = behind;
        }
    }
}

/// How many bytes the columns take, and whether one is unchanged.
fn walk(columns: u16, bytes: &[u8]) -> Option<(usize, bool)> {
    let (mut at, mut has_unchanged) = (0_usize, false);
    for _ in 0..columns {
        // Beyond the end it is `None` as well, so check a length together with what follows.
        at = match bytes.get(at)? {
            b'n' => at + 1,
            b'u' => {
                has_unchanged = true;
                at + 1
            }
            b't' | b'b' => {
                let length = i32::from_be_bytes(*bytes.get(at + 1..)?.first_chunk()?);
                (at + 5).checked_add(usize::try_from(length).ok()?)?
            }
            _ => return None,
        };
    }
    (at <= bytes.len()).then_some((at, has_unchanged))
}

/// The first column, and the rest.
#[inline(always)]
fn split_datum(bytes: &[u8]) -> Option<(Datum<'_>, &[u8])> {
    match bytes {
        [b'n', rest @ ..] => Some((Datum::Null, rest)),
        [b'u', rest @ ..] => Some((Datum::Unchanged, rest)),
        [kind @ (b't' | b'b'), a, b, c, d, rest @ ..] => {
            let length = i32::from_be_bytes([*a, *b, *c, *d]);
            let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            Some((if *kind == b't' { Datum::Text(value) } else { Datum::Binary(value) }, rest))
        }
        _ => None,
    }
}

/// For columns that cannot be decoded: where that ends, and why.
#[cold]
fn what_is_wrong(columns: u16, wire: &mut Wire<'_>) -> DecodeError {
    let mut walk = || {
        for _ in 0..columns {
            match wire.take_u8("tuple column kind")? {
                b'n' | b'u' => {}
                b't' | b'b' => drop(wire.take_sized("tuple column value")?),
                tag => return Err(DecodeError::UnknownTag { context: "tuple column kind", tag }),
            }
        }
        Ok(())
    };
    match walk() {
        Err(error) => error,
        Ok(()) => DecodeError::BadValue { context: "tuple columns" },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the manual describes it, column after column.
    fn read<'a>(wire: &mut Wire<'a>) -> Result<Vec<Datum<'a>>, DecodeError> {
        let columns = wire.take_u16("tuple column count")?;
        (0..columns)
            .map(|_| match wire.take_u8("tuple column kind")? {
                b'n' => Ok(Datum::Null),
                b'u' => Ok(Datum::Unchanged),
                b't' => Ok(Datum::Text(wire.take_sized("tuple column value")?)),
                b'b' => Ok(Datum::Binary(wire.take_sized("tuple column value")?)),
                tag => Err(DecodeError::UnknownTag { context: "tuple column kind", tag }),
            })
            .collect()
    }

    fn column() -> impl Strategy<Value = Vec<u8>> {
        let value = (proptest::sample::select(vec![b't', b'b']), -1..20_i32, 0..20_usize);
        prop_oneof![
            2 => proptest::sample::select(vec![b"n".to_vec(), b"u".to_vec()]),
            1 => any::<u8>().prop_map(|tag| vec![tag]),
            4 => value.clone().prop_map(|(kind, _, length)| {
                [&[kind][..], &(length as u32).to_be_bytes(), &vec![7; length]].concat()
            }),
            1 => value.prop_map(|(kind, said, length)| {
                [&[kind][..], &said.to_be_bytes(), &vec![7; length]].concat()
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_tuple_is_read_as_the_manual_says(
            said in 0..8_u16,
            columns in proptest::collection::vec(column(), 0..8),
            cut in 0..4_usize,
        ) {
            let mut bytes = [&said.to_be_bytes()[..], &columns.concat()].concat();
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            let (mut wire, mut expected_wire) = (Wire::new(&bytes), Wire::new(&bytes));
            let expected = read(&mut expected_wire);
            match Tuple::parse(&mut wire) {
                Ok(tuple) => {
                    let datums: Vec<_> = tuple.datums().collect();
                    let mut each = Vec::new();
                    tuple.each(|column, datum| each.push((column, datum)));
                    prop_assert_eq!(each, datums.iter().copied().enumerate().collect::<Vec<_>>());
                    prop_assert_eq!(tuple.columns(), datums.len());
                    let one = |column| Tuple::parse_one(&Wire::new(&bytes), column).ok();
                    let one: Vec<_> = (0..=datums.len()).map_while(one).collect();
                    prop_assert_eq!(&one, &datums);
                    prop_assert_eq!(tuple.has_unchanged(), datums.contains(&Datum::Unchanged));
                    prop_assert_eq!(Ok(datums), expected);
                    prop_assert_eq!(wire.rest(), expected_wire.rest());
                }
                Err(error) => prop_assert_eq!(Err(error), expected),
            }
        }
    }
}
