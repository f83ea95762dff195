//! Column buffers: the values of one target column, row after row, without an object per value.

/// The type a column is sent as. ClickHouse casts it to the type of its table where that differs
/// (`String` to `LowCardinality(String)` or `JSON`, say).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    String,
    /// A JSON document, sent as text. The type may be another one: see `Shape::documents`.
    Json,
    StringArray,
    UInt8,
    UInt32,
    UInt64,
    Float64,
    /// `DateTime64(3)`: milliseconds since 1970.
    Millis,
    NullableUInt8,
    NullableUInt32,
    NullableMillis,
}

impl ColumnKind {
    pub fn is_nullable(self) -> bool {
        matches!(
            self,
            ColumnKind::NullableUInt8 | ColumnKind::NullableUInt32 | ColumnKind::NullableMillis
        )
    }

    /// The type name in a Native block.
    pub const fn native_type(self) -> &'static str {
        match self {
            ColumnKind::String => "String",
            ColumnKind::Json => "JSON",
            ColumnKind::StringArray => "Array(String)",
            ColumnKind::UInt8 => "UInt8",
            ColumnKind::UInt32 => "UInt32",
            ColumnKind::UInt64 => "UInt64",
            ColumnKind::Float64 => "Float64",
            ColumnKind::Millis => "DateTime64(3)",
            ColumnKind::NullableUInt8 => "Nullable(UInt8)",
            ColumnKind::NullableUInt32 => "Nullable(UInt32)",
            ColumnKind::NullableMillis => "Nullable(DateTime64(3))",
        }
    }
}

/// Strings laid end to end.
#[derive(Debug, Clone, Default)]
pub struct Strings {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// More than a list of a usual batch needs, less than a few huge values.
const KEPT_BYTES_MAX: usize = 16 << 20;

fn empty<T>(list: &mut Vec<T>) {
    list.clear();
    list.shrink_to(KEPT_BYTES_MAX / size_of::<T>());
}

impl Strings {
    pub fn clear(&mut self) {
        empty(&mut self.bytes);
        empty(&mut self.ends);
    }

    pub fn push(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.ends.push(self.bytes.len());
    }

    /// Builds the next string in place: what `fill` appends is the value.
    pub fn push_with<T>(&mut self, fill: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let start = self.bytes.len();
        let result = fill(&mut self.bytes);
        assert!(start <= self.bytes.len(), "a value only appends");
        self.ends.push(self.bytes.len());
        result
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    #[inline]
    pub fn at(&self, row: usize) -> &[u8] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.bytes[start..self.ends[row]]
    }
}

/// One column's values.
#[derive(Debug, Clone)]
pub enum Values {
    Strings(Strings),
    StringArrays { items: Strings, ends: Vec<usize> },
    U8(Vec<u8>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    NullableU8 { nulls: Vec<u8>, values: Vec<u8> },
    NullableU32 { nulls: Vec<u8>, values: Vec<u32> },
    NullableI64 { nulls: Vec<u8>, values: Vec<i64> },
}

impl Values {
    pub fn new(kind: ColumnKind) -> Values {
        match kind {
            ColumnKind::String | ColumnKind::Json => Values::Strings(Strings::default()),
            ColumnKind::StringArray => {
                Values::StringArrays { items: Strings::default(), ends: Vec::new() }
            }
            ColumnKind::UInt8 => Values::U8(Vec::new()),
            ColumnKind::UInt32 => Values::U32(Vec::new()),
            ColumnKind::UInt64 => Values::U64(Vec::new()),
            ColumnKind::Float64 => Values::F64(Vec::new()),
            ColumnKind::Millis => Values::I64(Vec::new()),
            ColumnKind::NullableUInt8 => {
                Values::NullableU8 { nulls: Vec::new(), values: Vec::new() }
            }
            ColumnKind::NullableUInt32 => {
                Values::NullableU32 { nulls: Vec::new(), values: Vec::new() }
            }
            ColumnKind::NullableMillis => {
                Values::NullableI64 { nulls: Vec::new(), values: Vec::new() }
            }
        }
    }

    /// Forgets the values, and keeps the memory for as many others unless that is a lot.
    pub fn clear(&mut self) {
        match self {
            Values::Strings(strings) => strings.clear(),
            Values::StringArrays { items, ends } => {
                items.clear();
                empty(ends);
            }
            Values::U8(values) => empty(values),
            Values::U32(values) => empty(values),
            Values::U64(values) => empty(values),
            Values::F64(values) => empty(values),
            Values::I64(values) => empty(values),
            Values::NullableU8 { nulls, values } => {
                empty(nulls);
                empty(values);
            }
            Values::NullableU32 { nulls, values } => {
                empty(nulls);
                empty(values);
            }
            Values::NullableI64 { nulls, values } => {
                empty(nulls);
                empty(values);
            }
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Values::Strings(strings) => strings.len(),
            Values::StringArrays { ends, .. } => ends.len(),
            Values::U8(values) | Values::NullableU8 { values, .. } => values.len(),
            Values::U32(values) | Values::NullableU32 { values, .. } => values.len(),
            Values::U64(values) => values.len(),
            Values::F64(values) => values.len(),
            Values::I64(values) | Values::NullableI64 { values, .. } => values.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
