//! The binary form of any value as Postgres prints it.

use super::arrays::{each_binary, element};
use super::how::Print;
use super::network::put;
use super::ranges::{Range, each_pair, each_range};
use super::{floats, geometric, intervals, network, numeric, search, temporal};
use crate::wal::wire::{DecodeError, Wire};
use crate::wal::{Datum, Oid};

const UNKNOWN: DecodeError = DecodeError::BadValue { context: "binary form that is not known" };
const FIXED: DecodeError = DecodeError::BadValue { context: "binary value" };
const COMPOSITE: DecodeError = DecodeError::BadValue { context: "composite type that changed" };

pub fn print(of: &Print, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    match of {
        Print::Unknown => return Err(UNKNOWN),
        Print::Same => out.extend_from_slice(bytes),
        Print::Versioned => match bytes.split_first() {
            Some((1, text)) => out.extend_from_slice(text),
            _ => return Err(DecodeError::BadValue { context: "version of a value" }),
        },
        Print::Bool => out.push(match bytes {
            [0] => b'f',
            [1] => b't',
            _ => return Err(DecodeError::BadValue { context: "boolean" }),
        }),
        Print::Int => print_int(bytes, out)?,
        Print::UInt => match *bytes {
            [a, b, c, d] => put(out, format_args!("{}", u32::from_be_bytes([a, b, c, d]))),
            _ => {
                let bytes = bytes.try_into().map_err(|_| FIXED)?;
                put(out, format_args!("{}", u64::from_be_bytes(bytes)));
            }
        },
        Print::Bytea => {
            out.extend_from_slice(b"\\x");
            bytes.iter().for_each(|byte| network::put_hex(*byte, b"0123456789abcdef", out));
        }
        Print::Hex => {
            bytes.iter().for_each(|byte| network::put_hex(*byte, b"0123456789ABCDEF", out))
        }
        Print::Uuid => print_uuid(bytes, out)?,
        Print::Char => network::print_char(bytes, out)?,
        Print::Lsn => network::print_lsn(bytes, out)?,
        Print::Inet => network::print_inet(bytes, out)?,
        Print::Macaddr => network::print_macaddr(bytes, out)?,
        Print::Bits => network::print_bits(bytes, out)?,
        Print::Tid => network::print_tid(bytes, out)?,
        Print::Snapshot => network::print_snapshot(bytes, out)?,
        Print::Float => floats::print(bytes, out)?,
        Print::Numeric => numeric::print(bytes, out)?,
        Print::Money => numeric::print_money(bytes, out)?,
        Print::Date => temporal::print_date(bytes, out)?,
        Print::Timestamp { zone } => temporal::print_timestamp(bytes, *zone, out)?,
        Print::Time => temporal::print_time(bytes, out)?,
        Print::TimeTz => temporal::print_timetz(bytes, out)?,
        Print::Interval => intervals::print(bytes, out)?,
        Print::Point => geometric::print_point(bytes, out)?,
        Print::Line => geometric::print_line(bytes, out)?,
        Print::Lseg => geometric::print_lseg(bytes, out)?,
        Print::Box => geometric::print_box(bytes, out)?,
        Print::Path => geometric::print_path(bytes, out)?,
        Print::Polygon => geometric::print_polygon(bytes, out)?,
        Print::Circle => geometric::print_circle(bytes, out)?,
        Print::TsVector => search::print_tsvector(bytes, out)?,
        Print::TsQuery => search::print_tsquery(bytes, out)?,
        Print::Embedding { half } => geometric::print_embedding(bytes, *half, out)?,
        Print::SparseEmbedding => geometric::print_sparse(bytes, out)?,
        Print::Vector(of) => {
            let mut before: &[u8] = b"";
            each_binary(bytes, &mut |element| {
                out.extend_from_slice(before);
                before = b" ";
                print(of, element.unwrap_or_default(), out)
            })?;
        }
        Print::Array { delimiter, of } => print_array(bytes, *delimiter, of, out)?,
        Print::Range(of) => print_range(&Range::of_binary(bytes)?, of, out)?,
        Print::Multirange(of) => {
            let mut before = b'{';
            each_range(Datum::Binary(bytes), |range| {
                out.push(before);
                before = b',';
                print_range(&range, of, out)
            })?;
            if before == b'{' {
                out.push(b'{');
            }
            out.push(b'}');
        }
        Print::Composite(fields) => print_composite(bytes, fields, out)?,
        Print::Hstore => {
            let mut before: &[u8] = b"";
            each_pair(Datum::Binary(bytes), |key, value| {
                out.extend_from_slice(before);
                before = b", ";
                put_quoted(key, is_escaped, out);
                out.extend_from_slice(b"=>");
                match value {
                    Some(value) => put_quoted(value, is_escaped, out),
                    None => out.extend_from_slice(b"NULL"),
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn print_int(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let value = match *bytes {
        [a, b] => i64::from(i16::from_be_bytes([a, b])),
        [a, b, c, d] => i64::from(i32::from_be_bytes([a, b, c, d])),
        _ => i64::from_be_bytes(bytes.try_into().map_err(|_| FIXED)?),
    };
    put(out, format_args!("{value}"));
    Ok(())
}

fn print_uuid(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let bytes: &[u8; 16] = bytes.try_into().map_err(|_| FIXED)?;
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        network::put_hex(*byte, b"0123456789abcdef", out);
    }
    Ok(())
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}

fn is_escaped(byte: u8) -> bool {
    matches!(byte, b'"' | b'\\')
}

/// With a backslash before what is escaped.
fn put_quoted(value: &[u8], is_escaped: impl Fn(u8) -> bool, out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in value {
        if is_escaped(byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// With both of what is escaped.
fn put_doubled(value: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in value {
        if is_escaped(byte) {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'"');
}

fn print_array(
    bytes: &[u8],
    delimiter: u8,
    of: &Print,
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    // One text after the other: the brackets around them are known once all are read.
    let (mut texts, mut ends) = (Vec::new(), Vec::new());
    let mut text = Vec::new();
    let extent = each_binary(bytes, &mut |element| {
        match element {
            None => texts.extend_from_slice(b"NULL"),
            Some(bytes) => {
                text.clear();
                print(of, bytes, &mut text)?;
                let is_quoted =
                    |byte: &u8| *byte == delimiter || is_space(*byte) || b"{}\"\\".contains(byte);
                match text.is_empty()
                    || text.eq_ignore_ascii_case(b"NULL")
                    || text.iter().any(is_quoted)
                {
                    true => put_quoted(&text, is_escaped, &mut texts),
                    false => texts.extend_from_slice(&text),
                }
            }
        }
        ends.push(texts.len());
        Ok(())
    })?;
    if ends.is_empty() {
        out.extend_from_slice(b"{}");
        return Ok(());
    }
    if !extent.begins_at_one() {
        for (lower, size) in extent.lower_bounds().iter().zip(extent.sizes()) {
            let upper = i64::from(*lower) + *size as i64 - 1;
            put(out, format_args!("[{lower}:{upper}]"));
        }
        out.push(b'=');
    }
    let mut start = 0;
    for (at, end) in ends.iter().enumerate() {
        // As many arrays begin here, and end behind it, as there are dimensions that it divides.
        let around = |at: usize| {
            let mut product = 1;
            let divides = |size: &&usize| {
                product *= **size;
                product != 0 && at.is_multiple_of(product)
            };
            extent.sizes().iter().rev().take_while(divides).count()
        };
        if at != 0 {
            out.push(delimiter);
        }
        out.extend(std::iter::repeat_n(b'{', around(at)));
        out.extend_from_slice(&texts[start..*end]);
        out.extend(std::iter::repeat_n(b'}', around(at + 1)));
        start = *end;
    }
    Ok(())
}

fn print_range(range: &Range<'_>, of: &Print, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let [first, last] = *range.bounds else {
        out.extend_from_slice(range.bounds);
        return Ok(());
    };
    let bound = |bound: &Option<std::borrow::Cow<'_, [u8]>>, out: &mut Vec<u8>| {
        let Some(bytes) = bound else { return Ok(()) };
        let mut text = Vec::new();
        print(of, bytes, &mut text)?;
        put_field(&text, b"()[],\"\\", out);
        Ok(())
    };
    out.push(first);
    bound(&range.lower, out)?;
    out.push(b',');
    bound(&range.upper, out)?;
    out.push(last);
    Ok(())
}

/// In quotes if it is empty or has one of these or a blank.
fn put_field(text: &[u8], quoted: &[u8], out: &mut Vec<u8>) {
    match text.is_empty() || text.iter().any(|byte| is_space(*byte) || quoted.contains(byte)) {
        true => put_doubled(text, out),
        false => out.extend_from_slice(text),
    }
}

/// Each field says of which type it is: that of one which was added since is not known.
fn print_composite(
    bytes: &[u8],
    fields: &[(Oid, Print)],
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    let count = wire.take_u32("composite")?;
    out.push(b'(');
    let mut text = Vec::new();
    for at in 0..count {
        if at != 0 {
            out.push(b',');
        }
        let oid = Oid(wire.take_u32("composite")?);
        let value = element(&mut wire)?;
        let Some(bytes) = value else { continue };
        let of = fields.iter().find(|(known, _)| *known == oid).ok_or(COMPOSITE)?;
        text.clear();
        print(&of.1, bytes, &mut text)?;
        put_field(&text, b"(),\"\\", out);
    }
    out.push(b')');
    wire.end("composite")
}
