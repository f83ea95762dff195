//! The forms of arrays, taken apart: their dimensions, and element after element.

use crate::wal::wire::{DecodeError, Wire};

const ARRAY: DecodeError = DecodeError::BadValue { context: "array" };

/// `MAXDIM` of Postgres.
const DIMENSIONS_MAX: usize = 6;

/// What an array says of itself beside its elements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// None of an empty array.
    pub dimensions: usize,
    sizes: [usize; DIMENSIONS_MAX],
    lower_bounds: [i32; DIMENSIONS_MAX],
}

impl Extent {
    /// How many elements there are of each dimension.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes[..self.dimensions]
    }

    pub fn lower_bounds(&self) -> &[i32] {
        &self.lower_bounds[..self.dimensions]
    }

    pub fn begins_at_one(&self) -> bool {
        self.lower_bounds().iter().all(|bound| *bound == 1)
    }
}

type Each<'e> = dyn FnMut(Option<&[u8]>) -> Result<(), DecodeError> + 'e;

/// Gives each element, in the order of the text form.
pub fn each_binary(bytes: &[u8], each: &mut Each<'_>) -> Result<Extent, DecodeError> {
    let mut wire = Wire::new(bytes);
    let extent = extent_of(&mut wire)?;
    let count = extent.sizes().iter().try_fold(1_usize, |all, size| all.checked_mul(*size));
    let count = if extent.dimensions == 0 { 0 } else { count.ok_or(ARRAY)? };
    for _ in 0..count {
        each(element(&mut wire)?)?;
    }
    wire.end("array").map(|()| extent)
}

fn extent_of(wire: &mut Wire<'_>) -> Result<Extent, DecodeError> {
    let dimensions = usize::try_from(wire.take_i32("array dimensions")?).map_err(|_| ARRAY)?;
    wire.take_i32("array null flag")?;
    wire.take_u32("array element type")?;
    if DIMENSIONS_MAX < dimensions {
        return Err(ARRAY);
    }
    let mut extent = Extent { dimensions, ..Extent::default() };
    for at in 0..dimensions {
        let size = wire.take_i32("array length")?;
        extent.sizes[at] = usize::try_from(size).map_err(|_| ARRAY)?;
        extent.lower_bounds[at] = wire.take_i32("array lower bound")?;
    }
    Ok(extent)
}

/// A length, -1 for NULL, and as many bytes.
pub fn element<'a>(wire: &mut Wire<'a>) -> Result<Option<&'a [u8]>, DecodeError> {
    match wire.take_i32("element length")? {
        -1 => Ok(None),
        length => {
            let length = usize::try_from(length)
                .map_err(|_| DecodeError::BadLength { context: "element", length })?;
            wire.take(length, "element").map(Some)
        }
    }
}

/// The same of `{{1,NULL},{"a b","NULL"}}`, with `[2:3][0:1]=` in front where that is unusual.
pub fn each_text(text: &[u8], delimiter: u8, each: &mut Each<'_>) -> Result<Extent, DecodeError> {
    let mut reader = Reader { rest: text, delimiter, scratch: Vec::new() };
    let bounds = reader.bounds()?;
    let mut extent = reader.elements(each)?;
    match bounds {
        None => extent.lower_bounds = [1; DIMENSIONS_MAX],
        Some((dimensions, lower_bounds)) if dimensions == extent.dimensions => {
            extent.lower_bounds = lower_bounds;
        }
        Some(_) => return Err(ARRAY),
    }
    Ok(extent)
}

struct Reader<'t> {
    rest: &'t [u8],
    delimiter: u8,
    /// An element without its escapes.
    scratch: Vec<u8>,
}

type Bounds = (usize, [i32; DIMENSIONS_MAX]);

impl Reader<'_> {
    fn bounds(&mut self) -> Result<Option<Bounds>, DecodeError> {
        if self.rest.first() != Some(&b'[') {
            return Ok(None);
        }
        let end = memchr::memchr(b'=', self.rest).ok_or(ARRAY)?;
        let (bounds, rest) = (&self.rest[..end], &self.rest[end + 1..]);
        self.rest = rest;
        let bounds = std::str::from_utf8(bounds).map_err(|_| ARRAY)?;
        let mut lower_bounds = [1; DIMENSIONS_MAX];
        let mut dimensions = 0;
        for bound in bounds.split_terminator(']') {
            let (lower, _) = bound.trim_start_matches('[').split_once(':').ok_or(ARRAY)?;
            *lower_bounds.get_mut(dimensions).ok_or(ARRAY)? = lower.parse().map_err(|_| ARRAY)?;
            dimensions += 1;
        }
        Ok(Some((dimensions, lower_bounds)))
    }

    fn elements(&mut self, each: &mut Each<'_>) -> Result<Extent, DecodeError> {
        let mut extent = Extent::default();
        // Where we are, and how many elements there are so far of each array that is open.
        let (mut depth, mut counts) = (0, [0_usize; DIMENSIONS_MAX]);
        // Of each dimension, once an array of it was closed.
        let mut is_known = [false; DIMENSIONS_MAX];
        // A value must follow, or may not.
        let mut wants_value = true;
        loop {
            let byte = *self.rest.first().ok_or(ARRAY)?;
            match byte {
                b'{' if wants_value => {
                    if depth == DIMENSIONS_MAX
                        || extent.dimensions != 0 && depth == extent.dimensions
                    {
                        return Err(ARRAY);
                    }
                    counts[depth] = 0;
                    depth += 1;
                    self.rest = &self.rest[1..];
                    if self.rest == b"}" && depth == 1 {
                        return Ok(extent);
                    }
                }
                b'}' if !wants_value => {
                    let size = &mut extent.sizes[depth - 1];
                    if is_known[depth - 1] && *size != counts[depth - 1] {
                        return Err(ARRAY);
                    }
                    (*size, is_known[depth - 1]) = (counts[depth - 1], true);
                    depth -= 1;
                    self.rest = &self.rest[1..];
                    if depth == 0 {
                        return if self.rest.is_empty() { Ok(extent) } else { Err(ARRAY) };
                    }
                    counts[depth - 1] += 1;
                }
                byte if byte == self.delimiter && !wants_value => {
                    wants_value = true;
                    self.rest = &self.rest[1..];
                }
                _ if wants_value && depth != 0 => {
                    if extent.dimensions == 0 {
                        extent.dimensions = depth;
                    }
                    if depth != extent.dimensions {
                        return Err(ARRAY);
                    }
                    self.value(each)?;
                    counts[depth - 1] += 1;
                    wants_value = false;
                }
                _ => return Err(ARRAY),
            }
        }
    }

    fn value(&mut self, each: &mut Each<'_>) -> Result<(), DecodeError> {
        if let Some(quoted) = self.rest.strip_prefix(b"\"") {
            let end = memchr::memchr2(b'"', b'\\', quoted).ok_or(ARRAY)?;
            if quoted[end] == b'"' {
                self.rest = &quoted[end + 1..];
                return each(Some(&quoted[..end]));
            }
            self.scratch.clear();
            let mut rest = quoted;
            loop {
                let end = memchr::memchr2(b'"', b'\\', rest).ok_or(ARRAY)?;
                self.scratch.extend_from_slice(&rest[..end]);
                if rest[end] == b'"' {
                    self.rest = &rest[end + 1..];
                    return each(Some(&self.scratch));
                }
                self.scratch.push(*rest.get(end + 1).ok_or(ARRAY)?);
                rest = &rest[end + 2..];
            }
        }
        let end = memchr::memchr2(self.delimiter, b'}', self.rest).ok_or(ARRAY)?;
        let value = &self.rest[..end];
        self.rest = &self.rest[end..];
        // Postgres puts all of these in quotes.
        if value.is_empty() || memchr::memchr3(b'{', b'"', b'\\', value).is_some() {
            return Err(ARRAY);
        }
        each(if value == b"NULL" { None } else { Some(value) })
    }
}

/// `int2vector` and `oidvector`: `1 2 3`.
pub fn each_of_vector(text: &[u8], each: &mut Each<'_>) -> Result<(), DecodeError> {
    text.split(|byte| *byte == b' ')
        .filter(|element| !element.is_empty())
        .try_for_each(|element| each(Some(element)))
}
