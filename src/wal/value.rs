//! Reads single values out of tuples, in both formats, by the type the relation names.

use super::relation::Oid;
use super::time::Timestamp;
use super::tuple::Datum;
use super::wire::{DecodeError, Wire};

/// Type oids of `pg_type.dat`; they never change.
pub mod oid {
    use super::Oid;

    pub const BOOL: Oid = Oid(16);
    pub const INT8: Oid = Oid(20);
    pub const INT2: Oid = Oid(21);
    pub const INT4: Oid = Oid(23);
    pub const TEXT: Oid = Oid(25);
    pub const JSON: Oid = Oid(114);
    pub const FLOAT4: Oid = Oid(700);
    pub const FLOAT8: Oid = Oid(701);
    pub const TEXT_ARRAY: Oid = Oid(1009);
    pub const VARCHAR_ARRAY: Oid = Oid(1015);
    pub const BPCHAR: Oid = Oid(1042);
    pub const VARCHAR: Oid = Oid(1043);
    pub const TIMESTAMP: Oid = Oid(1114);
    pub const TIMESTAMPTZ: Oid = Oid(1184);
    pub const JSONB: Oid = Oid(3802);
    /// The first oid that a user's own type (an enum, say) can have. Only the catalog knows the
    /// underlying type.
    pub const FIRST_USER: Oid = Oid(16_384);
}

const INT: DecodeError = DecodeError::BadValue { context: "integer" };
const FLOAT: DecodeError = DecodeError::BadValue { context: "float" };
const BOOLEAN: DecodeError = DecodeError::BadValue { context: "boolean" };
const STAMP: DecodeError = DecodeError::BadValue { context: "timestamp" };
const ARRAY: DecodeError = DecodeError::BadValue { context: "array" };
const JSONB_VERSION: DecodeError = DecodeError::BadValue { context: "jsonb version" };

/// The bytes of a text-like value; text and binary are the same. `None` is null.
pub fn text<'a>(datum: Datum<'a>) -> Option<&'a [u8]> {
    match datum {
        Datum::Null | Datum::Unchanged => None,
        Datum::Text(bytes) | Datum::Binary(bytes) => Some(bytes),
    }
}

/// A `json` or `jsonb` document as text. Binary jsonb has a version byte in front.
pub fn json<'a>(datum: Datum<'a>, type_oid: Oid) -> Result<Option<&'a [u8]>, DecodeError> {
    match datum {
        Datum::Binary(bytes) if type_oid == oid::JSONB => match bytes.split_first() {
            Some((1, rest)) => Ok(Some(rest)),
            _ => Err(JSONB_VERSION),
        },
        datum => Ok(text(datum)),
    }
}

/// An `int2`, `int4` or `int8`.
pub fn int(datum: Datum<'_>) -> Result<Option<i64>, DecodeError> {
    match datum {
        Datum::Null | Datum::Unchanged => Ok(None),
        Datum::Text(bytes) => {
            std::str::from_utf8(bytes).ok().and_then(|t| t.parse().ok()).map(Some).ok_or(INT)
        }
        Datum::Binary(bytes) => match *bytes {
            [a, b] => Ok(Some(i64::from(i16::from_be_bytes([a, b])))),
            [a, b, c, d] => Ok(Some(i64::from(i32::from_be_bytes([a, b, c, d])))),
            [a, b, c, d, e, f, g, h] => Ok(Some(i64::from_be_bytes([a, b, c, d, e, f, g, h]))),
            _ => Err(INT),
        },
    }
}

/// A `float4` or `float8`; text is exact under `extra_float_digits=3`.
pub fn float(datum: Datum<'_>) -> Result<Option<f64>, DecodeError> {
    match datum {
        Datum::Null | Datum::Unchanged => Ok(None),
        Datum::Text(bytes) => {
            // Rust reads `NaN`, `Infinity` and `-Infinity` as Postgres writes them.
            std::str::from_utf8(bytes).ok().and_then(|t| t.parse().ok()).map(Some).ok_or(FLOAT)
        }
        Datum::Binary(bytes) => match *bytes {
            [a, b, c, d] => Ok(Some(f64::from(f32::from_be_bytes([a, b, c, d])))),
            [a, b, c, d, e, f, g, h] => Ok(Some(f64::from_be_bytes([a, b, c, d, e, f, g, h]))),
            _ => Err(FLOAT),
        },
    }
}

pub fn boolean(datum: Datum<'_>) -> Result<Option<bool>, DecodeError> {
    match datum {
        Datum::Null | Datum::Unchanged => Ok(None),
        Datum::Text(b"t") | Datum::Binary([1]) => Ok(Some(true)),
        Datum::Text(b"f") | Datum::Binary([0]) => Ok(Some(false)),
        Datum::Text(_) | Datum::Binary(_) => Err(BOOLEAN),
    }
}

pub fn timestamp(datum: Datum<'_>) -> Result<Option<Timestamp>, DecodeError> {
    match datum {
        Datum::Null | Datum::Unchanged => Ok(None),
        Datum::Text(bytes) => Timestamp::from_text(bytes).map(Some).ok_or(STAMP),
        Datum::Binary(bytes) => {
            let value = <[u8; 8]>::try_from(bytes).map_err(|_| STAMP)?;
            Ok(Some(Timestamp::from_binary(i64::from_be_bytes(value))))
        }
    }
}

/// Gives each element of a `text[]` to `each`, in order; a null element is `None`. Elements of a
/// multi-dimensional array come flattened. Returns whether the array itself was there.
pub fn text_array(
    datum: Datum<'_>,
    mut each: impl FnMut(Option<&[u8]>),
) -> Result<bool, DecodeError> {
    match datum {
        Datum::Null | Datum::Unchanged => Ok(false),
        Datum::Text(bytes) => text_array_text(bytes, each).map(|()| true),
        Datum::Binary(bytes) => {
            let mut wire = Wire::new(bytes);
            let dimensions = wire.take_i32("array dimensions")?;
            wire.take_i32("array null flag")?;
            wire.take_u32("array element type")?;
            for _ in 0..dimensions {
                wire.take_i32("array length")?;
                wire.take_i32("array lower bound")?;
            }
            while !wire.is_empty() {
                // Elements: a length, -1 for null.
                let mut peek = wire;
                if peek.take_i32("array element length")? == -1 {
                    wire = peek;
                    each(None);
                } else {
                    each(Some(wire.take_sized("array element")?));
                }
            }
            Ok(true)
        }
    }
}

/// `{a,"b c",NULL}`, with `[1:2]={..}` in front where the bounds are unusual and braces nested for
/// more dimensions.
fn text_array_text(bytes: &[u8], mut each: impl FnMut(Option<&[u8]>)) -> Result<(), DecodeError> {
    let start = match bytes.first() {
        Some(b'[') => memchr::memchr(b'=', bytes).ok_or(ARRAY)? + 1,
        _ => 0,
    };
    let mut rest = bytes.get(start..).ok_or(ARRAY)?.iter().copied().peekable();
    let mut depth = 0_u32;
    let mut element = Vec::new();
    while let Some(byte) = rest.next() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.checked_sub(1).ok_or(ARRAY)?,
            b',' => {}
            b'"' => {
                element.clear();
                loop {
                    match rest.next().ok_or(ARRAY)? {
                        b'"' => break,
                        b'\\' => element.push(rest.next().ok_or(ARRAY)?),
                        byte => element.push(byte),
                    }
                }
                each(Some(&element));
            }
            first => {
                element.clear();
                let mut escaped = false;
                let mut byte = first;
                loop {
                    if byte == b'\\' {
                        escaped = true;
                        element.push(rest.next().ok_or(ARRAY)?);
                    } else {
                        element.push(byte);
                    }
                    match rest.next_if(|b| !matches!(b, b',' | b'}' | b'{')) {
                        Some(next) => byte = next,
                        None => break,
                    }
                }
                let null = !escaped && element.eq_ignore_ascii_case(b"NULL");
                each(if null { None } else { Some(&element) });
            }
        }
        if depth == 0 && rest.peek().is_some() {
            return Err(ARRAY);
        }
    }
    if depth == 0 { Ok(()) } else { Err(ARRAY) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(datum: Datum<'_>) -> Result<Vec<Option<String>>, DecodeError> {
        let mut all = Vec::new();
        text_array(datum, |e| all.push(e.map(|e| String::from_utf8_lossy(e).into_owned())))?;
        Ok(all)
    }

    fn some(texts: &[&str]) -> Vec<Option<String>> {
        texts.iter().map(|t| Some((*t).to_owned())).collect()
    }

    #[test]
    fn arrays_in_text_keep_order_quotes_and_nulls() {
        let check = |text: &str, expected: Vec<Option<String>>| {
            assert_eq!(elements(Datum::Text(text.as_bytes())), Ok(expected), "{text}");
        };
        check("{}", vec![]);
        check("{a}", some(&["a"]));
        check(r#"{a,"b c",d}"#, some(&["a", "b c", "d"]));
        check(r#"{"a\"b","c\\d","","NULL"}"#, some(&["a\"b", "c\\d", "", "NULL"]));
        check("{a,NULL,b}", vec![Some("a".into()), None, Some("b".into())]);
        check("[0:1]={a,b}", some(&["a", "b"]));
        check("{{a,b},{c,d}}", some(&["a", "b", "c", "d"]));
        check("{\"x,y\",\"{z}\"}", some(&["x,y", "{z}"]));
    }

    #[test]
    fn malformed_arrays_are_refused() {
        for text in ["", "{", "}", "{a", "{\"a}", "{a}b", "{a\\"] {
            let result = elements(Datum::Text(text.as_bytes()));
            assert!(text.is_empty() || result.is_err(), "{text:?} {result:?}");
        }
        assert!(elements(Datum::Binary(&[0, 0])).is_err());
    }

    #[test]
    fn both_formats_give_the_same_values() {
        assert_eq!(int(Datum::Text(b"-7")), int(Datum::Binary(&(-7_i32).to_be_bytes())));
        assert_eq!(float(Datum::Text(b"1.5")), float(Datum::Binary(&1.5_f64.to_be_bytes())));
        assert_eq!(boolean(Datum::Text(b"t")), boolean(Datum::Binary(&[1])));
        assert_eq!(
            timestamp(Datum::Text(b"2000-01-01 00:00:00.000001")),
            timestamp(Datum::Binary(&1_i64.to_be_bytes()))
        );
        assert_eq!(json(Datum::Binary(b"\x01{}"), oid::JSONB), Ok(Some(&b"{}"[..])));
        assert_eq!(json(Datum::Text(b"{}"), oid::JSONB), Ok(Some(&b"{}"[..])));
        let mut array = Vec::new();
        for n in [1_i32, 1, 25, 2, 1, 1] {
            array.extend(n.to_be_bytes());
        }
        array.push(b'a');
        array.extend((-1_i32).to_be_bytes());
        assert_eq!(elements(Datum::Binary(&array)), elements(Datum::Text(b"{a,NULL}")));
    }

    #[test]
    fn malformed_values_are_refused() {
        assert!(int(Datum::Text(b"1x")).is_err());
        assert!(int(Datum::Binary(&[1, 2, 3])).is_err());
        assert!(float(Datum::Text(b"")).is_err());
        assert!(boolean(Datum::Text(b"true")).is_err());
        assert!(timestamp(Datum::Binary(&[0])).is_err());
        assert!(json(Datum::Binary(b"\x02{}"), oid::JSONB).is_err());
        assert!(json(Datum::Binary(b""), oid::JSONB).is_err());
    }
}
