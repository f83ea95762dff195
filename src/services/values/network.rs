//! Binary forms of a few fixed parts, printed: addresses, bits, places and snapshots of the server.

use std::io::Write;

use crate::wal::wire::{DecodeError, Wire};

const INET: DecodeError = DecodeError::BadValue { context: "inet" };
const MACADDR: DecodeError = DecodeError::BadValue { context: "macaddr" };
const BITS: DecodeError = DecodeError::BadValue { context: "bit" };

/// inet and cidr: the length of the network is left out where it is the whole address of an inet.
pub fn print_inet(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    let family = wire.take_u8("inet")?;
    let bits = wire.take_u8("inet")?;
    let is_cidr = wire.take_u8("inet")? != 0;
    let length = wire.take_u8("inet")?;
    let address = wire.take(length.into(), "inet")?;
    wire.end("inet")?;
    match (family, address) {
        (2, [a, b, c, d]) => out.extend_from_slice(format!("{a}.{b}.{c}.{d}").as_bytes()),
        (3, address) => {
            let address: &[u8; 16] = address.try_into().map_err(|_| INET)?;
            print_v6(address, out);
        }
        _ => return Err(INET),
    }
    if is_cidr || u32::from(bits) != address.len() as u32 * 8 {
        out.extend_from_slice(format!("/{bits}").as_bytes());
    }
    Ok(())
}

/// As `inet_net_ntop`: the first of the longest runs of zeros is left out, and what stands for an
/// address of version 4 shows it.
fn print_v6(address: &[u8; 16], out: &mut Vec<u8>) {
    let word = |at: usize| u16::from_be_bytes([address[2 * at], address[2 * at + 1]]);
    let mut best = (0, 0);
    let mut start = 0;
    while start < 8 {
        let length = (start..8).take_while(|at| word(*at) == 0).count();
        if best.1 < length {
            best = (start, length);
        }
        start += length.max(1);
    }
    let (start, length) = if best.1 < 2 { (8, 0) } else { best };
    let is_v4 = start == 0 && (length == 6 || length == 5 && word(5) == 0xffff);
    for at in 0..8 {
        if (start..start + length).contains(&at) {
            if at == start {
                out.push(b':');
            }
            continue;
        }
        if at != 0 {
            out.push(b':');
        }
        if at == 6 && is_v4 {
            let [.., a, b, c, d] = address;
            out.extend_from_slice(format!("{a}.{b}.{c}.{d}").as_bytes());
            return;
        }
        out.extend_from_slice(format!("{:x}", word(at)).as_bytes());
    }
    if length != 0 && start + length == 8 {
        out.push(b':');
    }
}

pub fn print_macaddr(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    if !matches!(bytes.len(), 6 | 8) {
        return Err(MACADDR);
    }
    for (at, byte) in bytes.iter().enumerate() {
        if at != 0 {
            out.push(b':');
        }
        put_hex(*byte, b"0123456789abcdef", out);
    }
    Ok(())
}

pub fn put_hex(byte: u8, digits: &[u8; 16], out: &mut Vec<u8>) {
    out.push(digits[usize::from(byte >> 4)]);
    out.push(digits[usize::from(byte & 0xF)]);
}

pub fn print_bits(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    let count = usize::try_from(wire.take_i32("bit")?).map_err(|_| BITS)?;
    let bits = wire.take(count.div_ceil(8), "bit")?;
    wire.end("bit")?;
    out.extend((0..count).map(|at| b'0' + (bits[at / 8] >> (7 - at % 8) & 1)));
    Ok(())
}

pub fn print_tid(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    let (block, offset) = (wire.take_u32("tid")?, wire.take_u16("tid")?);
    wire.end("tid")?;
    put(out, format_args!("({block},{offset})"));
    Ok(())
}

/// pg_snapshot: `xmin:xmax:xid,xid`.
pub fn print_snapshot(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    let count = wire.take_u32("snapshot")?;
    let (xmin, xmax) = (wire.take_u64("snapshot")?, wire.take_u64("snapshot")?);
    put(out, format_args!("{xmin}:{xmax}:"));
    for at in 0..count {
        let separator = if at == 0 { "" } else { "," };
        let xid = wire.take_u64("snapshot")?;
        put(out, format_args!("{separator}{xid}"));
    }
    wire.end("snapshot")
}

pub fn print_lsn(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut wire = Wire::new(bytes);
    let (high, low) = (wire.take_u32("pg_lsn")?, wire.take_u32("pg_lsn")?);
    wire.end("pg_lsn")?;
    put(out, format_args!("{high:X}/{low:X}"));
    Ok(())
}

/// `"char"`: what is no ASCII as Postgres 16 prints it, an octal number.
pub fn print_char(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    match bytes {
        [0] | [] => {}
        [byte @ 0x80..=0xFF] => put(out, format_args!("\\{byte:03o}")),
        other => out.extend_from_slice(other),
    }
    Ok(())
}

pub fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes all");
}
