//! Points and what is made of them, and the vectors of pgvector: floats between brackets.

use super::floats::{of_half, put_f32, put_f64};
use super::network::put;
use crate::wal::Datum;
use crate::wal::wire::{DecodeError, Wire};

const POINT: DecodeError = DecodeError::BadValue { context: "point" };
const EMBEDDING: DecodeError = DecodeError::BadValue { context: "vector" };
const SPARSE: DecodeError = DecodeError::BadValue { context: "sparsevec" };

fn float(wire: &mut Wire<'_>) -> Result<f64, DecodeError> {
    wire.take_u64("point").map(f64::from_bits)
}

fn print_point_of(wire: &mut Wire<'_>, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let (x, y) = (float(wire)?, float(wire)?);
    out.push(b'(');
    put_f64(x, out);
    out.push(b',');
    put_f64(y, out);
    out.push(b')');
    Ok(())
}

fn print_points(
    wire: &mut Wire<'_>,
    count: i32,
    [before, after]: [&[u8]; 2],
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    out.extend_from_slice(before);
    for at in 0..count {
        if at != 0 {
            out.push(b',');
        }
        print_point_of(wire, out)?;
    }
    out.extend_from_slice(after);
    wire.end("point")
}

pub fn print_point(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    print_points(&mut Wire::new(bytes), 1, [b"", b""], out)
}

pub fn print_lseg(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    print_points(&mut Wire::new(bytes), 2, [b"[", b"]"], out)
}

pub fn print_box(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    print_points(&mut Wire::new(bytes), 2, [b"", b""], out)
}

pub fn print_path(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    let is_closed = wire.take_u8("path")? != 0;
    let count = wire.take_i32("path")?;
    let around: [&[u8]; 2] = if is_closed { [b"(", b")"] } else { [b"[", b"]"] };
    print_points(&mut wire, count, around, out)
}

pub fn print_polygon(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    let count = wire.take_i32("polygon")?;
    print_points(&mut wire, count, [b"(", b")"], out)
}

pub fn print_line(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    for before in [b'{', b',', b','] {
        out.push(before);
        put_f64(float(&mut wire)?, out);
    }
    out.push(b'}');
    wire.end("line")
}

pub fn print_circle(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    out.push(b'<');
    print_point_of(&mut wire, out)?;
    out.push(b',');
    put_f64(float(&mut wire)?, out);
    out.push(b'>');
    wire.end("circle")
}

pub fn point(datum: Datum<'_>) -> Result<(f64, f64), DecodeError> {
    match datum {
        Datum::Binary(bytes) => {
            let mut wire = Wire::new(bytes);
            let point = (float(&mut wire)?, float(&mut wire)?);
            wire.end("point").map(|()| point)
        }
        Datum::Text(text) => {
            let text = std::str::from_utf8(text).map_err(|_| POINT)?;
            let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
            let (x, y) = inner.and_then(|inner| inner.split_once(',')).ok_or(POINT)?;
            Ok((x.parse().map_err(|_| POINT)?, y.parse().map_err(|_| POINT)?))
        }
        Datum::Null | Datum::Unchanged => Err(POINT),
    }
}

/// The elements of a `vector` or a `halfvec`.
pub fn embedding(
    datum: Datum<'_>,
    half: bool,
    mut each: impl FnMut(f32),
) -> Result<(), DecodeError> {
    match datum {
        Datum::Binary(bytes) => {
            let mut wire = Wire::new(bytes);
            let count = wire.take_u16("vector")?;
            wire.take_u16("vector")?;
            for _ in 0..count {
                each(match half {
                    true => of_half(wire.take_u16("halfvec")?),
                    false => f32::from_bits(wire.take_u32("vector")?),
                });
            }
            wire.end("vector")
        }
        Datum::Text(text) => {
            let text = std::str::from_utf8(text).map_err(|_| EMBEDDING)?;
            let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
            for element in inner.ok_or(EMBEDDING)?.split(',') {
                each(element.parse().map_err(|_| EMBEDDING)?);
            }
            Ok(())
        }
        Datum::Null | Datum::Unchanged => Err(EMBEDDING),
    }
}

pub fn print_embedding(bytes: &[u8], half: bool, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut before = b'[';
    embedding(Datum::Binary(bytes), half, |element| {
        out.push(before);
        put_f32(element, out);
        before = b',';
    })?;
    out.push(b']');
    Ok(())
}

/// `{1:1.5,3:2}/5`, where the first element is 1, on the wire 0.
pub fn print_sparse(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    let dimensions = wire.take_i32("sparsevec")?;
    let count = usize::try_from(wire.take_i32("sparsevec")?).map_err(|_| SPARSE)?;
    wire.take_i32("sparsevec")?;
    let length = count.checked_mul(4).ok_or(SPARSE)?;
    let mut indexes = Wire::new(wire.take(length, "sparsevec")?);
    let mut before = '{';
    for _ in 0..count {
        let index = i64::from(indexes.take_i32("sparsevec")?) + 1;
        put(out, format_args!("{before}{index}:"));
        put_f32(f32::from_bits(wire.take_u32("sparsevec")?), out);
        before = ',';
    }
    if count == 0 {
        out.push(b'{');
    }
    put(out, format_args!("}}/{dimensions}"));
    wire.end("sparsevec")
}
