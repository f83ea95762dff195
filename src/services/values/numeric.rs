//! numeric, as decimals of a fixed scale, and money.
//!
//! A number of up to 36 digits, that is nearly every one, is one integer and a power of ten; longer
//! ones go digit by digit.

use std::borrow::Cow;

use ethnum::U256;

use super::unfit::{Reason, Unfit};
use crate::rows::Scalar;
use crate::rows::column::List;
use crate::wal::Datum;
use crate::wal::wire::{DecodeError, Wire};

const NUMERIC: DecodeError = DecodeError::BadValue { context: "numeric" };
const MONEY: DecodeError = DecodeError::BadValue { context: "money" };

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// As many digits as one integer surely holds.
const SHORT_GROUPS: usize = 9;
const SHORT_DIGITS: usize = 36;

enum Number {
    Nan,
    Infinite {
        negative: bool,
    },
    /// `significand * 10^exponent`.
    Short {
        negative: bool,
        significand: u128,
        exponent: i32,
    },
    Long {
        negative: bool,
        digits: Digits,
    },
}

/// Decimal digits as values, and how many of them stand before the point.
struct Digits {
    all: Vec<u8>,
    whole: usize,
}

/// A number cut to a scale.
struct Scaled {
    /// `None`: of more digits than fit.
    magnitude: Option<U256>,
    exact: bool,
}

/// Appends the value. False, and nothing is appended: it is not a number.
pub fn put_decimal(
    datum: Datum<'_>,
    precision: u8,
    scale: u8,
    values: &mut List,
    unfit: &mut Unfit,
) -> Result<bool, DecodeError> {
    let number = match datum {
        Datum::Binary(bytes) => of_binary(bytes)?,
        Datum::Text(text) => of_text(text)?,
        Datum::Null | Datum::Unchanged => return Err(NUMERIC),
    };
    let (negative, scaled) = match number {
        Number::Nan => {
            unfit.note(Reason::NotANumber);
            return Ok(false);
        }
        Number::Infinite { negative } => (negative, Scaled { magnitude: None, exact: true }),
        Number::Short { negative, significand, exponent } => {
            let shift = exponent + i32::from(scale);
            // The way of most values: no number of 256 bits is ever made.
            if let (true, Ok(up)) = (precision <= 38, usize::try_from(shift))
                && let Some(power) = POWERS.get(up)
                && let Some(magnitude) = significand.checked_mul(*power)
                && magnitude < POWERS[usize::from(precision)]
            {
                put_magnitude(negative, U256::new(magnitude), precision, values);
                return Ok(true);
            }
            (negative, scale_short(significand, shift))
        }
        Number::Long { negative, digits } => (negative, scale_long(&digits, scale, precision)),
    };
    let end = power(precision.into()) - U256::ONE;
    let magnitude = match scaled.magnitude.filter(|magnitude| *magnitude <= end) {
        Some(magnitude) => {
            if !scaled.exact {
                unfit.note(Reason::Rounded);
            }
            magnitude
        }
        None => {
            unfit.note(Reason::OutOfRange);
            end
        }
    };
    put_magnitude(negative, magnitude, precision, values);
    Ok(true)
}

#[inline]
fn put_magnitude(negative: bool, magnitude: U256, precision: u8, values: &mut List) {
    let signed = |magnitude: i128| if negative { -magnitude } else { magnitude };
    match precision {
        0..=9 => values.put((signed(magnitude.as_i128()) as i32).to_le_bytes()),
        10..=18 => values.put((signed(magnitude.as_i128()) as i64).to_le_bytes()),
        19..=38 => values.put(signed(magnitude.as_i128()).to_le_bytes()),
        _ => {
            let magnitude = magnitude.as_i256();
            values.put((if negative { -magnitude } else { magnitude }).to_le_bytes());
        }
    }
}

const POWERS: [u128; 39] = {
    let mut powers = [1; 39];
    let mut at = 1;
    while at < powers.len() {
        powers[at] = powers[at - 1] * 10;
        at += 1;
    }
    powers
};

/// `10^exponent`, for up to 76.
fn power(exponent: usize) -> U256 {
    let low = exponent.min(38);
    U256::new(POWERS[low]) * U256::new(POWERS[(exponent - low).min(38)])
}

fn scale_short(significand: u128, shift: i32) -> Scaled {
    let amount = usize::try_from(shift.unsigned_abs()).unwrap_or(usize::MAX);
    if significand == 0 {
        return Scaled { magnitude: Some(U256::ZERO), exact: true };
    }
    if 0 <= shift {
        let fits = amount <= 76;
        let magnitude = fits.then(|| power(amount).checked_mul(U256::new(significand))).flatten();
        return Scaled { magnitude, exact: true };
    }
    let Some(divisor) = POWERS.get(amount) else {
        return Scaled { magnitude: Some(U256::ZERO), exact: false };
    };
    let (quotient, rest) = (significand / divisor, significand % divisor);
    let up = u128::from(divisor - rest <= rest);
    Scaled { magnitude: Some(U256::new(quotient + up)), exact: rest == 0 }
}

fn scale_long(digits: &Digits, scale: u8, precision: u8) -> Scaled {
    let end = digits.whole + usize::from(scale);
    let mut magnitude = U256::ZERO;
    let limit = power(usize::from(precision).saturating_sub(1));
    for at in 0..end {
        if limit <= magnitude {
            return Scaled { magnitude: None, exact: true };
        }
        let digit = digits.all.get(at).copied().unwrap_or(0);
        magnitude = magnitude * U256::new(10) + U256::from(digit);
    }
    let rest = digits.all.get(end..).unwrap_or_default();
    if rest.first().is_some_and(|digit| 5 <= *digit) {
        magnitude += U256::ONE;
    }
    Scaled { magnitude: Some(magnitude), exact: rest.iter().all(|digit| *digit == 0) }
}

struct Binary<'a> {
    weight: i32,
    sign: u16,
    scale: usize,
    groups: &'a [u8],
}

impl<'a> Binary<'a> {
    fn read(bytes: &'a [u8]) -> Result<Binary<'a>, DecodeError> {
        let mut wire = Wire::new(bytes);
        let count = wire.take_u16("numeric")?;
        let weight = i32::from(wire.take_u16("numeric")? as i16);
        let sign = wire.take_u16("numeric")?;
        let scale = usize::from(wire.take_u16("numeric")?);
        let groups = wire.take(usize::from(count) * 2, "numeric")?;
        wire.end("numeric")?;
        Ok(Binary { weight, sign, scale, groups })
    }

    fn groups(&self) -> impl Iterator<Item = Result<u16, DecodeError>> + use<'a> {
        self.groups.chunks_exact(2).map(|group| {
            let group = u16::from_be_bytes([group[0], group[1]]);
            if group <= 9_999 { Ok(group) } else { Err(NUMERIC) }
        })
    }
}

fn of_binary(bytes: &[u8]) -> Result<Number, DecodeError> {
    let binary = Binary::read(bytes)?;
    let negative = match binary.sign {
        POSITIVE => false,
        NEGATIVE => true,
        NAN => return Ok(Number::Nan),
        INFINITY => return Ok(Number::Infinite { negative: false }),
        NEGATIVE_INFINITY => return Ok(Number::Infinite { negative: true }),
        _ => return Err(NUMERIC),
    };
    let count = binary.groups.len() / 2;
    if count <= SHORT_GROUPS {
        let mut significand = 0_u128;
        let mut few = 0_u64;
        for (at, group) in binary.groups().enumerate() {
            match at < 4 {
                true => few = few * 10_000 + u64::from(group?),
                false => significand = significand * 10_000 + u128::from(group?),
            }
            if at == 3 {
                significand = few.into();
            }
        }
        let significand = if count < 4 { few.into() } else { significand };
        let exponent = 4 * (binary.weight + 1 - count as i32);
        return Ok(Number::Short { negative, significand, exponent });
    }
    let mut all = Vec::with_capacity(count * 4);
    // Zeros between the point and the first digit.
    let below = (-1 - binary.weight).max(0);
    all.resize(4 * below as usize, 0);
    for group in binary.groups() {
        let group = group?;
        all.extend([1_000, 100, 10, 1].map(|unit| (group / unit % 10) as u8));
    }
    let whole = 4 * (binary.weight + 1).max(0) as usize;
    Ok(Number::Long { negative, digits: Digits { all, whole } })
}

fn of_text(text: &[u8]) -> Result<Number, DecodeError> {
    let (negative, unsigned) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    match unsigned {
        b"NaN" if !negative => return Ok(Number::Nan),
        b"Infinity" => return Ok(Number::Infinite { negative }),
        _ => {}
    }
    let (whole, fraction) = match memchr::memchr(b'.', unsigned) {
        Some(at) => (&unsigned[..at], &unsigned[at + 1..]),
        None => (unsigned, &b""[..]),
    };
    let count = whole.len() + fraction.len();
    if count == 0 {
        return Err(NUMERIC);
    }
    let digit = |byte: &u8| if byte.is_ascii_digit() { Ok(byte - b'0') } else { Err(NUMERIC) };
    if count <= 18 {
        let mut significand = 0_u64;
        for byte in whole.iter().chain(fraction) {
            significand = significand * 10 + u64::from(digit(byte)?);
        }
        let (significand, exponent) = (significand.into(), -(fraction.len() as i32));
        return Ok(Number::Short { negative, significand, exponent });
    }
    if count <= SHORT_DIGITS {
        let mut significand = 0_u128;
        for byte in whole.iter().chain(fraction) {
            significand = significand * 10 + u128::from(digit(byte)?);
        }
        let exponent = -(fraction.len() as i32);
        return Ok(Number::Short { negative, significand, exponent });
    }
    let all = whole.iter().chain(fraction).map(digit).collect::<Result<Vec<u8>, _>>()?;
    Ok(Number::Long { negative, digits: Digits { all, whole: whole.len() } })
}

/// The binary form as Postgres prints it.
pub fn print(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let binary = Binary::read(bytes)?;
    match binary.sign {
        POSITIVE => {}
        NEGATIVE => out.push(b'-'),
        NAN => {
            out.extend_from_slice(b"NaN");
            return Ok(());
        }
        INFINITY => {
            out.extend_from_slice(b"Infinity");
            return Ok(());
        }
        NEGATIVE_INFINITY => {
            out.extend_from_slice(b"-Infinity");
            return Ok(());
        }
        _ => return Err(NUMERIC),
    }
    let groups = binary.groups().collect::<Result<Vec<u16>, _>>()?;
    let group = |at: i32| {
        usize::try_from(at).ok().and_then(|at| groups.get(at)).copied().unwrap_or_default()
    };
    let mut is_first = true;
    for at in 0..=binary.weight {
        match is_first {
            true => out.extend_from_slice(group(at).to_string().as_bytes()),
            false => out.extend_from_slice(format!("{:04}", group(at)).as_bytes()),
        }
        is_first = false;
    }
    if is_first {
        out.push(b'0');
    }
    if 0 < binary.scale {
        out.push(b'.');
        let end = out.len() + binary.scale;
        let mut weight = -1;
        while out.len() < end {
            let value = group(binary.weight - weight);
            out.extend_from_slice(format!("{value:04}").as_bytes());
            weight -= 1;
        }
        out.truncate(end);
    }
    Ok(())
}

/// The same for equal numbers, whatever scale they are printed with.
pub fn canonical(datum: Datum<'_>) -> Cow<'_, [u8]> {
    match datum {
        Datum::Text(text) if text.contains(&b'.') => {
            let end = text.iter().rposition(|byte| *byte != b'0').map_or(0, |at| at + 1);
            let kept = &text[..end];
            Cow::Borrowed(kept.strip_suffix(b".").unwrap_or(kept))
        }
        Datum::Binary(bytes) if 8 <= bytes.len() && bytes[6..8] != [0, 0] => {
            let mut owned = bytes.to_vec();
            owned[6..8].fill(0);
            Cow::Owned(owned)
        }
        Datum::Text(bytes) | Datum::Binary(bytes) => Cow::Borrowed(bytes),
        Datum::Null | Datum::Unchanged => Cow::Borrowed(&[]),
    }
}

/// The inverse of [`put_decimal`]: as Postgres prints a `numeric` of this scale.
pub fn text_of(scalar: Scalar, value: &[u8], scale: u8) -> Vec<u8> {
    let mut text = Vec::new();
    scalar.write_text(value, &mut text);
    let scale = usize::from(scale);
    if scale == 0 {
        return text;
    }
    let sign = usize::from(text.first() == Some(&b'-'));
    while text.len() - sign <= scale {
        text.insert(sign, b'0');
    }
    text.insert(text.len() - scale, b'.');
    text
}

/// money: an integer in the smallest unit. Its text is that of the locale `C`: `-$1,234.50`.
pub fn money(datum: Datum<'_>) -> Result<i64, DecodeError> {
    match datum {
        Datum::Binary(bytes) => {
            <[u8; 8]>::try_from(bytes).map(i64::from_be_bytes).map_err(|_| MONEY)
        }
        Datum::Text(text) => {
            let negative = text.first() == Some(&b'-');
            let digits: Vec<u8> = text.iter().copied().filter(u8::is_ascii_digit).collect();
            let digits = std::str::from_utf8(&digits).map_err(|_| MONEY)?;
            let magnitude: i128 = digits.parse().map_err(|_| MONEY)?;
            i64::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| MONEY)
        }
        Datum::Null | Datum::Unchanged => Err(MONEY),
    }
}

pub fn print_money(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let value = money(Datum::Binary(bytes))?;
    let digits = format!("{:03}", value.unsigned_abs());
    let (whole, cents) = digits.split_at(digits.len() - 2);
    if value < 0 {
        out.push(b'-');
    }
    out.push(b'$');
    for (at, digit) in whole.bytes().enumerate() {
        if 0 < at && (whole.len() - at) % 3 == 0 {
            out.push(b',');
        }
        out.push(digit);
    }
    out.push(b'.');
    out.extend_from_slice(cents.as_bytes());
    Ok(())
}
