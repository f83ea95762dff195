//! float4 and float8: the fewest digits that read as the same number, as Postgres prints them.
//!
//! Postgres does without a number of fewer digits that lies right between two floats, since only
//! the reader's rounding would make it the one and not the other (`d2s.c`: `acceptBounds`). Rust
//! takes it: what is `1e23` there is `9.999999999999999e+22` here.

use crate::wal::Datum;
use crate::wal::wire::DecodeError;

const FLOAT: DecodeError = DecodeError::BadValue { context: "float" };

pub fn f32_of(datum: Datum<'_>) -> Result<f32, DecodeError> {
    match datum {
        Datum::Binary(bytes) => bytes.try_into().map(f32::from_be_bytes).map_err(|_| FLOAT),
        Datum::Text(text) => parse(text),
        Datum::Null | Datum::Unchanged => Err(FLOAT),
    }
}

pub fn f64_of(datum: Datum<'_>) -> Result<f64, DecodeError> {
    match datum {
        Datum::Binary(bytes) => bytes.try_into().map(f64::from_be_bytes).map_err(|_| FLOAT),
        Datum::Text(text) => parse(text),
        Datum::Null | Datum::Unchanged => Err(FLOAT),
    }
}

/// Rust reads `NaN`, `Infinity` and `-Infinity` as Postgres writes them.
fn parse<T: std::str::FromStr>(text: &[u8]) -> Result<T, DecodeError> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(FLOAT)
}

/// Of four or eight bytes.
pub fn print(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    match bytes.len() {
        4 => put_f32(f32_of(Datum::Binary(bytes))?, out),
        _ => put_f64(f64_of(Datum::Binary(bytes))?, out),
    }
    Ok(())
}

pub fn put_f64(value: f64, out: &mut Vec<u8>) {
    if !value.is_finite() || value == 0.0 {
        return put_special(value, out);
    }
    let bits = value.abs().to_bits();
    let (exponent, fraction) = ((bits >> 52) as i32, bits & ((1 << 52) - 1));
    let (significand, power) = match exponent {
        0 => (fraction, -1_074),
        _ => (fraction | 1 << 52, exponent - 1_075),
    };
    // Below a power of two the next float is only half as far.
    let is_narrow = fraction == 0 && 1 < exponent;
    let shortest = format!("{:e}", value.abs());
    let digits = strict(shortest, significand, power, is_narrow, |count: usize| {
        let text = format!("{:.*e}", count, value.abs());
        (text.parse() == Ok(value.abs())).then_some(text)
    });
    put(value.is_sign_negative(), &digits, 15, out);
}

pub fn put_f32(value: f32, out: &mut Vec<u8>) {
    if !value.is_finite() || value == 0.0 {
        return put_special(value.into(), out);
    }
    let bits = value.abs().to_bits();
    let (exponent, fraction) = ((bits >> 23) as i32, bits & ((1 << 23) - 1));
    let (significand, power) = match exponent {
        0 => (fraction, -149),
        _ => (fraction | 1 << 23, exponent - 150),
    };
    let is_narrow = fraction == 0 && 1 < exponent;
    let shortest = format!("{:e}", value.abs());
    let digits = strict(shortest, significand.into(), power, is_narrow, |count| {
        let text = format!("{:.*e}", count, value.abs());
        (text.parse() == Ok(value.abs())).then_some(text)
    });
    put(value.is_sign_negative(), &digits, 6, out);
}

fn put_special(value: f64, out: &mut Vec<u8>) {
    let text: &[u8] = match value {
        _ if value.is_nan() => b"NaN",
        f64::INFINITY => b"Infinity",
        f64::NEG_INFINITY => b"-Infinity",
        _ if value.is_sign_negative() => b"-0",
        _ => b"0",
    };
    out.extend_from_slice(text);
}

/// The shortest digits that lie between the two neighbors' halves and on neither.
fn strict(
    shortest: String,
    significand: u64,
    power: i32,
    is_narrow: bool,
    rounded: impl Fn(usize) -> Option<String>,
) -> String {
    let m = u128::from(significand);
    let above = (2 * m + 1, power - 1);
    let below = if is_narrow { (4 * m - 1, power - 2) } else { (2 * m - 1, power - 1) };
    let is_between = |text: &str| {
        parts(text).is_some_and(|(digits, exponent)| {
            !is_same(digits, exponent, above) && !is_same(digits, exponent, below)
        })
    };
    // The nearest of that many digits, and of two the even one: Rust takes the greater.
    let count =
        shortest.bytes().take_while(|byte| *byte != b'e').filter(u8::is_ascii_digit).count();
    let nearest = rounded(count - 1).filter(|text| is_between(text));
    if nearest.is_some() || is_between(&shortest) {
        return nearest.unwrap_or(shortest);
    }
    let longer = (count..17).filter_map(rounded).find(|text| is_between(text));
    longer.unwrap_or(shortest)
}

/// `1.25e-3` is 125 and -5.
fn parts(text: &str) -> Option<(u128, i32)> {
    let (number, exponent) = text.split_once('e')?;
    let exponent: i32 = exponent.parse().ok()?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}").parse().ok()?;
    Some((digits, exponent - fraction.len() as i32))
}

/// Whether `digits * 10^exponent` is `m * 2^power`, exactly.
fn is_same(digits: u128, exponent: i32, (m, power): (u128, i32)) -> bool {
    let five = |n: i32| 5_u128.checked_pow(n.unsigned_abs());
    let (left, right) = match exponent {
        0.. => (five(exponent).and_then(|five| digits.checked_mul(five)), Some(m)),
        _ => (Some(digits), five(exponent).and_then(|five| m.checked_mul(five))),
    };
    // With a factor this large there is a digit too many for both.
    let (Some(left), Some(right)) = (left, right) else { return false };
    let (twos_left, twos_right) = (left.trailing_zeros(), right.trailing_zeros());
    left >> twos_left == right >> twos_right
        && exponent + twos_left as i32 == power + twos_right as i32
}

/// From `1.25e-3`, with an exponent from `limit` on.
fn put(negative: bool, text: &str, limit: i32, out: &mut Vec<u8>) {
    if negative {
        out.push(b'-');
    }
    let (number, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let digits: Vec<u8> = number.bytes().filter(u8::is_ascii_digit).collect();
    let trimmed = digits.iter().rposition(|digit| *digit != b'0').map_or(1, |last| last + 1);
    let digits = &digits[..trimmed];
    if exponent < -4 || limit <= exponent {
        out.push(digits[0]);
        if 1 < digits.len() {
            out.push(b'.');
            out.extend_from_slice(&digits[1..]);
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        out.extend_from_slice(format!("e{sign}{:02}", exponent.unsigned_abs()).as_bytes());
    } else if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.resize(out.len() + (exponent.unsigned_abs() as usize - 1), b'0');
        out.extend_from_slice(digits);
    } else {
        let whole = exponent as usize + 1;
        for at in 0..whole {
            out.push(digits.get(at).copied().unwrap_or(b'0'));
        }
        if whole < digits.len() {
            out.push(b'.');
            out.extend_from_slice(&digits[whole..]);
        }
    }
}

/// One zero and one NaN, the bytes as they are otherwise.
pub fn canonical(datum: Datum<'_>) -> Option<&'static [u8]> {
    match datum {
        Datum::Text(b"-0") => Some(b"0"),
        Datum::Binary(bytes @ [0x80, rest @ ..]) if rest.iter().all(|byte| *byte == 0) => {
            Some(if bytes.len() == 4 { &[0; 4] } else { &[0; 8] })
        }
        Datum::Binary(bytes) if bytes.len() == 4 => {
            f32_of(datum).is_ok_and(f32::is_nan).then_some(&[0x7F, 0xC0, 0, 0])
        }
        Datum::Binary(_) => {
            f64_of(datum).is_ok_and(f64::is_nan).then_some(&[0x7F, 0xF8, 0, 0, 0, 0, 0, 0])
        }
        _ => None,
    }
}

/// Half precision: each is a float of single precision.
pub fn of_half(half: u16) -> f32 {
    let (sign, exponent, fraction) =
        (u32::from(half >> 15), u32::from(half >> 10 & 0x1F), u32::from(half & 0x3FF));
    let magnitude = match exponent {
        0 => fraction as f32 * f32::from_bits(0x3380_0000),
        31 => f32::from_bits(0x7F80_0000 | fraction << 13),
        _ => f32::from_bits((exponent + 112) << 23 | fraction << 13),
    };
    if sign == 1 { -magnitude } else { magnitude }
}
