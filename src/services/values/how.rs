//! How the values of a column of Postgres become those of its column of ClickHouse.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::wal::Oid;

/// Decided once for a column; decodes both wire forms.
#[derive(Debug, Clone, PartialEq)]
pub struct How {
    pub to: To,
    /// Of the binary form, for what is carried as text and for originals that do not fit.
    pub print: Print,
}

/// The lists that are filled. Each stands for one shape of `rows::ColumnType`.
#[derive(Debug, Clone, PartialEq)]
pub enum To {
    Of(Single),
    Nullable(Single),
    Array {
        /// Of the arrays within each other.
        dimensions: usize,
        delimiter: u8,
        of: Box<To>,
    },
    /// `int2vector` and `oidvector`: an array whose text has blanks between the elements.
    Vector(Single),
    /// `Tuple(lower, upper, bounds)`; the bounds of a NULL are empty.
    Range(Single),
    Multirange(Single),
    Interval {
        nullable: bool,
    },
    Point {
        nullable: bool,
    },
    /// hstore, as a map.
    Map,
    /// `vector` and `halfvec` of pgvector.
    Embedding {
        half: bool,
    },
}

/// A single value with the bytes of a scalar.
#[derive(Debug, Clone, PartialEq)]
pub enum Single {
    Bool,
    Int2,
    Int4,
    Int8,
    /// oid, xid, cid.
    UInt4,
    /// xid8.
    UInt8,
    Lsn,
    Float4,
    Float8,
    Decimal {
        precision: u8,
        scale: u8,
    },
    Money {
        scale: u8,
    },
    Date {
        /// Days since 1970 that the server holds.
        days: (i32, i32),
    },
    Timestamp {
        /// Microseconds since 1970, likewise.
        micros: (i64, i64),
    },
    Time,
    Uuid,
    /// Raw, not as hexadecimal digits.
    Bytea,
    /// Without the blanks at the end.
    Padded,
    Text(Print),
}

/// The text of a value's binary form, as Postgres prints it in our sessions.
#[derive(Debug, Clone, PartialEq)]
pub enum Print {
    /// The binary form is not known: such a value is asked for as text.
    Unknown,
    /// The binary form is the text.
    Same,
    /// A version and then the text.
    Versioned,
    /// One byte; zero prints as nothing.
    Char,
    Bool,
    Int,
    UInt,
    Lsn,
    Float,
    Numeric,
    Money,
    Bytea,
    Uuid,
    Date,
    Timestamp {
        zone: bool,
    },
    Time,
    TimeTz,
    Interval,
    Inet,
    Macaddr,
    Bits,
    Tid,
    Snapshot,
    Point,
    Line,
    Lseg,
    Box,
    Path,
    Polygon,
    Circle,
    TsVector,
    TsQuery,
    /// Its bytes as hexadecimal digits, upper case: geometry and geography.
    Hex,
    /// `int2vector` and `oidvector`.
    Vector(Box<Print>),
    Array {
        delimiter: u8,
        of: Box<Print>,
    },
    Range(Box<Print>),
    Multirange(Box<Print>),
    /// The types that fields are known to have.
    Composite(Arc<[(Oid, Print)]>),
    Hstore,
    Embedding {
        half: bool,
    },
    SparseEmbedding,
}

impl Print {
    /// Whether each part of the binary form is known.
    pub fn is_known(&self) -> bool {
        match self {
            Print::Unknown => false,
            Print::Array { of, .. }
            | Print::Vector(of)
            | Print::Range(of)
            | Print::Multirange(of) => of.is_known(),
            Print::Composite(fields) => fields.iter().all(|(_, of)| of.is_known()),
            _ => true,
        }
    }
}

/// What the ClickHouse that is written to holds and has switched on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTypes {
    /// `Date32`: days since 1970.
    pub days: RangeInclusive<i32>,
    /// `DateTime64(6)`: microseconds since 1970.
    pub micros: RangeInclusive<i64>,
    /// `Time64` is switched on.
    pub time64: bool,
    /// The digits after the point of `money`, which are the database's.
    pub money_scale: u8,
}

impl ServerTypes {
    /// Of one row with two texts and a flag: a date and a moment of the year 79, and `Time64`.
    pub const PROBE: &str = "SELECT toString(toDate32('0079-08-24')), \
         toString(toDateTime64('0079-08-24 00:00:00', 6, 'UTC')), \
         (SELECT any(value) FROM system.settings WHERE name = 'enable_time_time64_type')";

    /// From the answer to [`ServerTypes::PROBE`].
    pub fn of_probe(date: &str, moment: &str, time64: &str) -> ServerTypes {
        // 1900 to 2299, or all that has four digits.
        let days = match date.starts_with("0079") {
            true => -719_528..=2_932_896,
            false => -25_567..=120_529,
        };
        let micros = match moment.starts_with("0079") {
            true => -62_167_219_200_000_000..=253_402_300_799_999_999,
            false => -2_208_988_800_000_000..=10_413_791_999_999_999,
        };
        ServerTypes { days, micros, time64: time64 == "1", money_scale: 2 }
    }
}
