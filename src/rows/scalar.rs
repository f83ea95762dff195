//! The types of single values in ClickHouse: their bytes in a Native block, their order, and their
//! text in queries and answers.
//!
//! The text is that of the bytes: of a decimal its digits without a point, of a time its ticks. So
//! it is exact both ways whatever the server would print, and however it is set up.

use std::cmp::Ordering;

use ethnum::I256;

/// The type of a single value. Nothing of it is ever narrower than what is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scalar {
    String,
    /// A JSON document, sent as text. The type may be another one: see `Shape::documents`.
    Json,
    Bool,
    UInt8,
    UInt32,
    UInt64,
    UInt128,
    Int8,
    Int16,
    Int32,
    Int64,
    Float32,
    Float64,
    /// Days since 1970.
    Date32,
    /// Ticks of `10^-precision` seconds since 1970.
    DateTime64 {
        precision: u8,
        utc: bool,
    },
    /// Ticks since midnight.
    Time64 {
        precision: u8,
    },
    Decimal {
        precision: u8,
        scale: u8,
    },
    Uuid,
}

use Scalar as S;

enum Cast {
    None,
    /// As its type.
    Type,
    Expression(String),
}

impl Scalar {
    /// `DateTime64(3)`: milliseconds.
    pub const MILLIS: Scalar = S::DateTime64 { precision: 3, utc: false };

    /// The bytes of a value; `None` for texts.
    pub const fn width(self) -> Option<usize> {
        Some(match self {
            S::String | S::Json => return None,
            S::Bool | S::UInt8 | S::Int8 => 1,
            S::Int16 => 2,
            S::UInt32 | S::Int32 | S::Float32 | S::Date32 => 4,
            S::UInt64 | S::Int64 | S::Float64 | S::DateTime64 { .. } | S::Time64 { .. } => 8,
            S::UInt128 | S::Uuid => 16,
            S::Decimal { precision, .. } => match precision {
                0..=9 => 4,
                10..=18 => 8,
                19..=38 => 16,
                _ => 32,
            },
        })
    }

    /// The name of the type, as in a Native block and in DDL.
    pub fn name(self) -> String {
        match self {
            S::Json => "JSON".to_owned(),
            S::Uuid => "UUID".to_owned(),
            S::DateTime64 { precision, utc: false } => format!("DateTime64({precision})"),
            S::DateTime64 { precision, utc: true } => format!("DateTime64({precision}, 'UTC')"),
            S::Time64 { precision } => format!("Time64({precision})"),
            S::Decimal { precision, scale } => format!("Decimal({precision}, {scale})"),
            simple => format!("{simple:?}"),
        }
    }

    /// The integer type whose bytes and order these values have; `None` for those that have none.
    fn integer(self) -> Option<&'static str> {
        let width = self.width()?;
        Some(match self {
            S::String | S::Json | S::Uuid => return None,
            S::Bool | S::UInt8 => "UInt8",
            S::UInt32 => "UInt32",
            S::UInt64 => "UInt64",
            S::UInt128 => "UInt128",
            S::Float32 => "UInt32",
            S::Float64 => "UInt64",
            S::Int8
            | S::Int16
            | S::Int32
            | S::Int64
            | S::Date32
            | S::DateTime64 { .. }
            | S::Time64 { .. }
            | S::Decimal { .. } => match width {
                1 => "Int8",
                2 => "Int16",
                4 => "Int32",
                8 => "Int64",
                16 => "Int128",
                _ => "Int256",
            },
        })
    }

    fn is_integer(self) -> bool {
        use S::{Int8, Int16, Int32, Int64, UInt8, UInt32, UInt64, UInt128};
        matches!(self, UInt8 | UInt32 | UInt64 | UInt128 | Int8 | Int16 | Int32 | Int64)
    }

    fn is_signed(self) -> bool {
        self.integer().is_some_and(|integer| integer.starts_with('I'))
    }

    /// The SQL expression of the text of `value`, itself an expression of this type, or of this
    /// type with NULL.
    pub fn text_expression(self, value: &str) -> String {
        match (self, self.integer()) {
            (S::Json, _) => format!("toJSONString({value})"),
            (S::String | S::Uuid, _) | (_, None) => format!("toString({value})"),
            (S::Bool, _) => format!("toString(toUInt8({value}))"),
            // A wider target holds the same moment in other ticks.
            (S::DateTime64 { precision: 3, .. }, _) => {
                format!("toString(toUnixTimestamp64Milli({value}))")
            }
            (S::DateTime64 { precision: 6, .. }, _) => {
                format!("toString(toUnixTimestamp64Micro({value}))")
            }
            (S::Date32, _) => format!("toString(toInt32({value}))"),
            (S::Time64 { precision }, _) => {
                format!("toString(reinterpret(toDecimal64({value}, {precision}), 'Int64'))")
            }
            (scalar, _) if scalar.is_integer() => format!("toString({value})"),
            (_, Some(integer)) => format!("toString(reinterpret({value}, '{integer}'))"),
        }
    }

    /// The SQL expression of an array of values given by their [`Scalar::literal`].
    pub fn array_expression(self, literals: &str) -> String {
        match self.cast("x") {
            Cast::None => format!("[{literals}]"),
            Cast::Type => format!("CAST([{literals}], 'Array({})')", self.name()),
            Cast::Expression(of_x) => format!("arrayMap(x -> {of_x}, [{literals}])"),
        }
    }

    /// A single value in a statement.
    pub fn value_expression(self, value: &[u8], quote: impl Fn(&[u8]) -> String) -> String {
        let literal = self.literal(value, quote);
        match self.cast(&literal) {
            Cast::None => literal,
            Cast::Type => format!("CAST({literal}, '{}')", self.name()),
            Cast::Expression(expression) => expression,
        }
    }

    /// A value in a statement: for [`Scalar::array_expression`].
    pub fn literal(self, value: &[u8], quote: impl Fn(&[u8]) -> String) -> String {
        let mut text = Vec::new();
        self.write_text(value, &mut text);
        match self.width() {
            Some(0..=8) => String::from_utf8(text).expect("digits"),
            // A number of more than 64 bits would be read as a float.
            Some(_) | None => quote(&text),
        }
    }

    /// How a literal becomes a value of this type: by its bytes, so without the text of a time, a
    /// time zone or a point.
    fn cast(self, literal: &str) -> Cast {
        let Some(integer) = self.integer() else {
            return if self == S::Uuid { Cast::Type } else { Cast::None };
        };
        let reinterpret = |to: &str| {
            format!("reinterpret(CAST({literal}, '{integer}'), '{}')", to.replace('\'', "\\'"))
        };
        Cast::Expression(match self {
            S::Date32 => format!("addDays(toDate32('1970-01-01'), {literal})"),
            S::Time64 { precision } => {
                let seconds = reinterpret(&format!("Decimal(18, {precision})"));
                format!("CAST({seconds}, '{}')", self.name())
            }
            scalar if scalar.is_integer() || scalar == S::Bool => return Cast::Type,
            _ => reinterpret(&self.name()),
        })
    }

    /// Appends the text of a value.
    pub fn write_text(self, value: &[u8], out: &mut Vec<u8>) {
        match self {
            S::String | S::Json => out.extend_from_slice(value),
            S::Uuid => write_uuid(value, out),
            _ => {
                let number = self.number(value);
                out.extend_from_slice(number.to_string().as_bytes());
            }
        }
    }

    /// The inverse of [`Scalar::write_text`].
    pub fn parse_text(self, text: &[u8]) -> Option<Vec<u8>> {
        let Some(width) = self.width() else { return Some(text.to_vec()) };
        let text = std::str::from_utf8(text).ok()?;
        if self == S::Uuid {
            return parse_uuid(text);
        }
        let number: I256 = text.parse().ok()?;
        let bytes = number.to_le_bytes();
        let (kept, rest) = bytes.split_at(width);
        let is_negative = number < 0;
        let filled = if is_negative { u8::MAX } else { 0 };
        let top = kept.last().copied().unwrap_or_default() & 0x80 != 0;
        let fits = rest.iter().all(|byte| *byte == filled)
            && if self.is_signed() { top == is_negative } else { !is_negative };
        (fits || width == bytes.len()).then(|| kept.to_vec())
    }

    fn number(self, value: &[u8]) -> I256 {
        let top = value.last().copied().unwrap_or_default() & 0x80 != 0;
        let mut bytes = [if self.is_signed() && top { u8::MAX } else { 0 }; 32];
        let width = value.len().min(32);
        bytes[..width].copy_from_slice(&value[..width]);
        I256::from_le_bytes(bytes)
    }

    /// As ClickHouse orders them.
    pub fn compare(self, a: &[u8], b: &[u8]) -> Ordering {
        match self {
            S::String | S::Json => a.cmp(b),
            // By the second half first, for historical reasons (ClickHouse's manual, `UUID`).
            S::Uuid => uuid_order(a).cmp(&uuid_order(b)),
            S::Float32 => float(a, 4).total_cmp(&float(b, 4)),
            S::Float64 => float(a, 8).total_cmp(&float(b, 8)),
            _ => self.number(a).cmp(&self.number(b)),
        }
    }

    /// Of values of at most eight bytes: a number of the same order.
    pub fn rank(self, value: &[u8]) -> Option<u64> {
        match (self, self.width()?) {
            (S::Float32 | S::Float64 | S::Uuid, _) | (_, 9..) => None,
            (_, width) => {
                let mut bytes = [0; 8];
                bytes[..width].copy_from_slice(value);
                let unsigned = u64::from_le_bytes(bytes);
                let shift = 64 - 8 * u32::try_from(width).ok()?;
                Some(match self.is_signed() {
                    true => (unsigned << shift) ^ (1 << 63),
                    false => unsigned,
                })
            }
        }
    }
}

/// One zero, and one NaN above all numbers.
fn float(value: &[u8], width: usize) -> f64 {
    let number = match width {
        4 => f64::from(f32::from_le_bytes(value.try_into().unwrap_or_default())),
        _ => f64::from_le_bytes(value.try_into().unwrap_or_default()),
    };
    if number.is_nan() { f64::NAN } else { number + 0.0 }
}

/// Two halves, each with its bytes from the last to the first.
fn uuid_in_print_order(value: &[u8]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (at, byte) in value.iter().take(16).enumerate() {
        bytes[if at < 8 { 7 - at } else { 23 - at }] = *byte;
    }
    bytes
}

/// From the sixteen bytes as they are printed to those of a Native block; its own inverse.
pub fn uuid_halves(printed: [u8; 16]) -> [u8; 16] {
    uuid_in_print_order(&printed)
}

fn uuid_order(value: &[u8]) -> (u64, u64) {
    let half = |at: usize| {
        value.get(at..at + 8).and_then(|half| half.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    (half(8), half(0))
}

fn write_uuid(value: &[u8], out: &mut Vec<u8>) {
    for (at, byte) in uuid_in_print_order(value).iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        out.extend_from_slice(format!("{byte:02x}").as_bytes());
    }
}

fn parse_uuid(text: &str) -> Option<Vec<u8>> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let number = (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok())??;
    Some(uuid_halves(number.to_be_bytes()).to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_scalar() -> impl Strategy<Value = Scalar> {
        let decimal = (1..=76_u8).prop_map(|precision| S::Decimal { precision, scale: 0 });
        let fixed = proptest::sample::select(vec![
            S::Bool,
            S::UInt8,
            S::UInt32,
            S::UInt64,
            S::UInt128,
            S::Int8,
            S::Int16,
            S::Int32,
            S::Int64,
            S::Float32,
            S::Float64,
            S::Date32,
            Scalar::MILLIS,
            S::Time64 { precision: 6 },
            S::Uuid,
            S::String,
        ]);
        prop_oneof![1 => decimal, 4 => fixed]
    }

    proptest! {
        #[test]
        fn the_text_of_a_value_is_read_as_that_value(
            scalar in any_scalar(),
            bytes in proptest::collection::vec(any::<u8>(), 32),
            others in proptest::collection::vec(any::<u8>(), 32),
        ) {
            let width = scalar.width().unwrap_or(7);
            let (a, b) = (&bytes[..width], &others[..width]);
            let mut text = Vec::new();
            scalar.write_text(a, &mut text);
            prop_assert_eq!(scalar.parse_text(&text), Some(a.to_vec()));
            let by_rank = scalar.rank(a).zip(scalar.rank(b)).map(|(a, b)| a.cmp(&b));
            prop_assert!(by_rank.is_none_or(|order| order == scalar.compare(a, b)));
        }
    }

    #[test]
    fn text_beyond_a_type_is_refused() {
        for (scalar, text) in [
            (S::UInt8, "256"),
            (S::UInt8, "-1"),
            (S::Int8, "128"),
            (S::Int8, "-129"),
            (S::Int64, "9223372036854775808"),
            (S::UInt128, "-1"),
            (S::Date32, ""),
            (S::Uuid, "00112233"),
            (S::Int32, "1.0"),
        ] {
            assert_eq!(scalar.parse_text(text.as_bytes()), None, "{scalar:?} {text}");
        }
    }
}
