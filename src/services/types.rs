//! Which type of ClickHouse holds the values of a column of Postgres, exactly or as text.
//!
//! A type that is not known here is carried as the text that Postgres prints, and never stops a
//! table. Only a column's own declaration decides, so that it is the same at every start.

use std::sync::Arc;

use super::values;
use super::values::how::{How, Print, ServerTypes, Single, To};
use crate::rows::ColumnType;
use crate::wal::Oid;
use crate::wal::pg_type::{PgForm, PgType};
use crate::wal::value::oid;

/// A column of a target table that we make.
#[derive(Debug, Clone)]
pub struct ColumnPlan {
    /// As it is sent.
    pub kind: ColumnType,
    /// As it is created.
    pub ddl: String,
    pub how: How,
    /// It may be NULL, and its type in ClickHouse has none: a column of the table says which are.
    pub needs_null_flag: bool,
}

/// `dimensions` are those that the column was declared with; Postgres does not hold values to them.
pub fn column_of(
    of: &PgType,
    not_null: bool,
    dimensions: u16,
    is_key: bool,
    server: &ServerTypes,
) -> ColumnPlan {
    let types = Types { server };
    let print = print_of(of);
    let to = match is_key {
        true => To::Of(types.key(of)),
        false => types.column(of, not_null, dimensions),
    };
    let kind = values::kind(&to);
    let ddl = match &to {
        To::Of(_) if is_enum(of) => "LowCardinality(String)".to_owned(),
        To::Nullable(_) if is_enum(of) => "LowCardinality(Nullable(String))".to_owned(),
        To::Point { nullable: false } => "Point".to_owned(),
        _ => kind.to_string(),
    };
    let has_null = !matches!(kind, ColumnType::Array(_) | ColumnType::Map(_));
    let needs_null_flag = !not_null && !is_key && !has_null;
    ColumnPlan { kind, ddl, how: How { to, print }, needs_null_flag }
}

/// Whether a stream that is binary may have a column of this type. One that has no send function
/// comes as text in such a stream.
pub fn is_binary(of: &PgType) -> bool {
    !of.breaks_binary() && (!of.has_send || print_of(of).is_known())
}

fn is_enum(of: &PgType) -> bool {
    of.underlying().form == PgForm::Enum
}

/// Numbers of `pg_type.dat` that only this file tells apart.
mod number {
    pub const BYTEA: u32 = 17;
    pub const CHAR: u32 = 18;
    pub const NAME: u32 = 19;
    pub const INT2_VECTOR: u32 = 22;
    pub const OID: u32 = 26;
    pub const TID: u32 = 27;
    pub const XID: u32 = 28;
    pub const CID: u32 = 29;
    pub const OID_VECTOR: u32 = 30;
    pub const XML: u32 = 142;
    pub const POINT: u32 = 600;
    pub const LSEG: u32 = 601;
    pub const PATH: u32 = 602;
    pub const BOX: u32 = 603;
    pub const POLYGON: u32 = 604;
    pub const LINE: u32 = 628;
    pub const CIDR: u32 = 650;
    pub const CIRCLE: u32 = 718;
    pub const MACADDR8: u32 = 774;
    pub const MONEY: u32 = 790;
    pub const MACADDR: u32 = 829;
    pub const INET: u32 = 869;
    pub const DATE: u32 = 1082;
    pub const TIME: u32 = 1083;
    pub const INTERVAL: u32 = 1186;
    pub const TIMETZ: u32 = 1266;
    pub const BIT: u32 = 1560;
    pub const VARBIT: u32 = 1562;
    pub const NUMERIC: u32 = 1700;
    pub const REFCURSOR: u32 = 1790;
    pub const UUID: u32 = 2950;
    pub const TXID_SNAPSHOT: u32 = 2970;
    pub const LSN: u32 = 3220;
    pub const TSVECTOR: u32 = 3614;
    pub const TSQUERY: u32 = 3615;
    pub const JSONPATH: u32 = 4072;
    pub const SNAPSHOT: u32 = 5038;
    pub const XID8: u32 = 5069;
}

fn built_in(of: &PgType) -> Option<Oid> {
    (of.oid < oid::FIRST_USER && of.form == PgForm::Base).then_some(of.oid)
}

/// A type of an extension that we know, by both names.
fn of_extension(of: &PgType) -> Option<(&str, &str)> {
    Some((of.extension.as_deref()?, &of.name))
}

/// How the binary form is printed.
fn print_of(of: &PgType) -> Print {
    match &of.form {
        PgForm::Domain(base) => print_of(base),
        PgForm::Enum => Print::Same,
        PgForm::Array { element, delimiter } => {
            Print::Array { delimiter: *delimiter, of: Box::new(print_of(element)) }
        }
        PgForm::Range(of) => Print::Range(Box::new(print_of(of))),
        PgForm::Multirange(of) => Print::Multirange(Box::new(print_of(subtype(of)))),
        PgForm::Composite(fields) => {
            let fields = fields.iter().map(|field| (field.of.oid, print_of(&field.of)));
            Print::Composite(fields.collect::<Vec<_>>().into())
        }
        PgForm::Pseudo => Print::Unknown,
        PgForm::Base if of.oid < oid::FIRST_USER => print_of_built_in(of.oid),
        PgForm::Base => match of_extension(of) {
            Some(("hstore", "hstore")) => Print::Hstore,
            Some(("ltree", "ltree" | "lquery" | "ltxtquery")) => Print::Versioned,
            Some(("vector", "vector")) => Print::Embedding { half: false },
            Some(("vector", "halfvec")) => Print::Embedding { half: true },
            Some(("vector", "sparsevec")) => Print::SparseEmbedding,
            Some(("postgis", "geometry" | "geography")) => Print::Hex,
            _ if of.sends_text => Print::Same,
            _ => Print::Unknown,
        },
    }
}

/// That of a range, where a multirange is described by its range.
fn subtype(of: &Arc<PgType>) -> &Arc<PgType> {
    match &of.form {
        PgForm::Range(subtype) => subtype,
        _ => of,
    }
}

fn print_of_built_in(of: Oid) -> Print {
    match of {
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::JSON => return Print::Same,
        oid::JSONB => return Print::Versioned,
        oid::BOOL => return Print::Bool,
        oid::INT2 | oid::INT4 | oid::INT8 => return Print::Int,
        oid::FLOAT4 | oid::FLOAT8 => return Print::Float,
        oid::TIMESTAMP => return Print::Timestamp { zone: false },
        oid::TIMESTAMPTZ => return Print::Timestamp { zone: true },
        _ => {}
    }
    match of.0 {
        number::NAME | number::XML | number::REFCURSOR => Print::Same,
        number::JSONPATH => Print::Versioned,
        number::BYTEA => Print::Bytea,
        number::CHAR => Print::Char,
        number::OID | number::XID | number::CID | number::XID8 => Print::UInt,
        number::INT2_VECTOR => Print::Vector(Box::new(Print::Int)),
        number::OID_VECTOR => Print::Vector(Box::new(Print::UInt)),
        number::TID => Print::Tid,
        number::LSN => Print::Lsn,
        number::SNAPSHOT | number::TXID_SNAPSHOT => Print::Snapshot,
        number::NUMERIC => Print::Numeric,
        number::MONEY => Print::Money,
        number::UUID => Print::Uuid,
        number::DATE => Print::Date,
        number::TIME => Print::Time,
        number::TIMETZ => Print::TimeTz,
        number::INTERVAL => Print::Interval,
        number::INET | number::CIDR => Print::Inet,
        number::MACADDR | number::MACADDR8 => Print::Macaddr,
        number::BIT | number::VARBIT => Print::Bits,
        number::POINT => Print::Point,
        number::LINE => Print::Line,
        number::LSEG => Print::Lseg,
        number::BOX => Print::Box,
        number::PATH => Print::Path,
        number::POLYGON => Print::Polygon,
        number::CIRCLE => Print::Circle,
        number::TSVECTOR => Print::TsVector,
        number::TSQUERY => Print::TsQuery,
        // The binary form of what names an object is its number.
        _ => Print::Unknown,
    }
}

struct Types<'s> {
    server: &'s ServerTypes,
}

impl Types<'_> {
    fn column(&self, of: &PgType, not_null: bool, dimensions: u16) -> To {
        let (base, typmod) = underlying(of);
        match &base.form {
            PgForm::Array { element, delimiter } => To::Array {
                dimensions: usize::from(dimensions).clamp(1, 6),
                delimiter: *delimiter,
                of: Box::new(self.element(element, typmod)),
            },
            PgForm::Multirange(of) if base.oid < oid::FIRST_USER => {
                To::Multirange(self.single(subtype(of), -1))
            }
            _ => match (base.oid.0, of_extension(base)) {
                (number::INT2_VECTOR, _) => To::Vector(Single::Int2),
                (number::OID_VECTOR, _) => To::Vector(Single::UInt4),
                (_, Some(("hstore", "hstore"))) => To::Map,
                (_, Some(("vector", "vector"))) => To::Embedding { half: false },
                (_, Some(("vector", "halfvec"))) => To::Embedding { half: true },
                _ => self.one(base, typmod, not_null),
            },
        }
    }

    /// What an array may have elements of: nothing that would lose the difference between NULL and
    /// an empty value.
    fn element(&self, of: &PgType, typmod: i32) -> To {
        let (base, own) = underlying(of);
        self.one(base, if own == -1 { typmod } else { own }, false)
    }

    fn one(&self, base: &PgType, typmod: i32, not_null: bool) -> To {
        match &base.form {
            PgForm::Range(of) if base.oid < oid::FIRST_USER => To::Range(self.single(of, -1)),
            PgForm::Base if base.oid == Oid(number::INTERVAL) => {
                To::Interval { nullable: !not_null }
            }
            PgForm::Base if base.oid == Oid(number::POINT) => To::Point { nullable: !not_null },
            _ if not_null => To::Of(self.single(base, typmod)),
            _ => To::Nullable(self.single(base, typmod)),
        }
    }

    /// Only what is exact both ways, so that rows of Postgres are found by what ClickHouse holds.
    fn key(&self, of: &PgType) -> Single {
        let (base, typmod) = underlying(of);
        self.single(base, typmod)
    }

    fn single(&self, of: &PgType, typmod: i32) -> Single {
        let (base, own) = underlying(of);
        let typmod = if own == -1 { typmod } else { own };
        let Some(of) = built_in(base) else { return Single::Text(print_of(base)) };
        match of {
            oid::BOOL => return Single::Bool,
            oid::INT2 => return Single::Int2,
            oid::INT4 => return Single::Int4,
            oid::INT8 => return Single::Int8,
            oid::FLOAT4 => return Single::Float4,
            oid::FLOAT8 => return Single::Float8,
            oid::TIMESTAMP | oid::TIMESTAMPTZ => {
                let micros = (*self.server.micros.start(), *self.server.micros.end());
                return Single::Timestamp { micros };
            }
            // Blanks beyond the length are no part of the value; without a length none is known.
            oid::BPCHAR if typmod != -1 => return Single::Padded,
            _ => {}
        }
        match of.0 {
            number::OID | number::XID | number::CID => Single::UInt4,
            number::XID8 => Single::UInt8,
            number::LSN => Single::Lsn,
            number::NUMERIC => decimal(typmod),
            number::MONEY => Single::Money { scale: self.server.money_scale },
            number::BYTEA => Single::Bytea,
            number::UUID => Single::Uuid,
            number::DATE => {
                Single::Date { days: (*self.server.days.start(), *self.server.days.end()) }
            }
            number::TIME if self.server.time64 => Single::Time,
            _ => Single::Text(print_of_built_in(of)),
        }
    }
}

/// The type under its domains, and the modifier that holds.
fn underlying(of: &PgType) -> (&PgType, i32) {
    let (mut base, mut typmod) = (of, of.typmod);
    while let PgForm::Domain(under) = &base.form {
        base = under;
        if typmod == -1 {
            typmod = base.typmod;
        }
    }
    (base, typmod)
}

/// The most digits that a decimal of ClickHouse has.
const DIGITS_MAX: i32 = 76;

fn decimal(typmod: i32) -> Single {
    // Half of them behind the point.
    let (precision, scale) = match typmod {
        ..4 => (DIGITS_MAX, DIGITS_MAX / 2),
        _ => {
            let typmod = typmod - 4;
            // The scale has eleven bits, the first of which is its sign.
            let (precision, scale) = (typmod >> 16 & 0xFFFF, ((typmod & 0x7FF) ^ 1_024) - 1_024);
            (precision.max(scale).max(precision - scale), scale.max(0))
        }
    };
    match (u8::try_from(precision), u8::try_from(scale)) {
        (Ok(precision @ 1..=76), Ok(scale)) => Single::Decimal { precision, scale },
        _ => Single::Text(Print::Numeric),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> ServerTypes {
        ServerTypes::of_probe("0079-08-24", "0079-08-24 00:00:00.000000", "1")
    }

    fn numeric(precision: i32, scale: i32) -> i32 {
        (precision << 16 | scale & 0x7FF) + 4
    }

    #[test]
    fn decimals_hold_all_that_the_modifier_allows() {
        for (typmod, expected) in [
            (-1, "Decimal(76, 38)"),
            (numeric(10, 2), "Decimal(10, 2)"),
            (numeric(76, 76), "Decimal(76, 76)"),
            (numeric(3, 5), "Decimal(5, 5)"),
            (numeric(3, -2), "Decimal(5, 0)"),
            (numeric(77, 0), "String"),
            (numeric(70, -7), "String"),
            (numeric(3, 77), "String"),
            (numeric(1_000, 500), "String"),
            (numeric(1_000, -1_000), "String"),
        ] {
            let of = PgType::built_in(Oid(number::NUMERIC), "numeric", typmod);
            let plan = column_of(&of, true, 0, false, &server());
            assert_eq!(plan.ddl, expected, "{typmod}");
        }
    }

    fn ddl(of: &PgType, not_null: bool, dimensions: u16, is_key: bool) -> String {
        column_of(of, not_null, dimensions, is_key, &server()).ddl
    }

    fn base(oid: u32) -> PgType {
        PgType::built_in(Oid(oid), "t", -1)
    }

    #[test]
    fn parts_of_values_are_columns_unless_they_are_keys() {
        let own = |form| PgType { form, ..base(20_000) };
        let array = |of: PgType| PgForm::Array { element: Arc::new(of), delimiter: b',' };
        let range = |of: u32| PgType { form: PgForm::Range(Arc::new(base(of))), ..base(3_908) };
        for (of, dimensions, expected) in [
            (own(array(base(23))), 0, "Array(Nullable(Int32))"),
            (own(array(base(23))), 3, "Array(Array(Array(Nullable(Int32))))"),
            (
                range(1_114),
                0,
                "Tuple(lower Nullable(DateTime64(6, 'UTC')), upper \
              Nullable(DateTime64(6, 'UTC')), bounds String)",
            ),
            (own(PgForm::Range(Arc::new(base(1_114)))), 0, "Nullable(String)"),
            (base(number::POINT), 0, "Tuple(x Nullable(Float64), y Nullable(Float64))"),
            (own(PgForm::Enum), 0, "LowCardinality(Nullable(String))"),
            (own(PgForm::Base), 0, "Nullable(String)"),
            (own(PgForm::Composite([].into())), 0, "Nullable(String)"),
        ] {
            assert_eq!(ddl(&of, false, dimensions, false), expected);
            let key = ddl(&of, true, dimensions, true);
            assert!(key == "String" || key == "LowCardinality(String)", "{key}");
        }
        assert_eq!(ddl(&base(number::POINT), true, 0, false), "Point");
    }

    #[test]
    fn what_is_not_known_comes_as_text() {
        let own = PgType { extension: Some("cube".into()), name: "cube".into(), ..base(20_000) };
        assert!(!is_binary(&own));
        assert!(is_binary(&PgType { has_send: false, ..own.clone() }), "it is sent as text");
        let array = PgForm::Array { element: Arc::new(own), delimiter: b',' };
        assert!(!is_binary(&PgType { form: array, ..base(20_001) }));
        // regclass
        assert!(!is_binary(&base(2_205)));
        assert!(is_binary(&base(number::TSQUERY)));
    }
}
