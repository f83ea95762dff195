//! Keys of source rows: what a row is found by within a stream, and in Postgres.

use std::borrow::Cow;

/// A key as Postgres prints it, column by column.
pub type KeyText = Vec<Vec<u8>>;

/// The values of a key as one text: of one column its value, of several each with its length in
/// front, so that no two keys are the same.
pub fn join<'a>(mut values: impl ExactSizeIterator<Item = Cow<'a, [u8]>>) -> Cow<'a, [u8]> {
    if values.len() == 1 {
        return values.next().unwrap_or_default();
    }
    let mut joined = Vec::new();
    for value in values {
        // A value is at most 1 GB.
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        joined.extend_from_slice(&length.to_be_bytes());
        joined.extend_from_slice(&value);
    }
    joined.into()
}

/// The inverse, for a key of so many columns.
pub fn split(key: &[u8], columns: usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = key;
    (0..columns).map(move |_| {
        if columns == 1 {
            return rest;
        }
        let framed = rest.split_first_chunk().and_then(|(length, behind)| {
            behind.split_at_checked(u32::from_be_bytes(*length) as usize)
        });
        let (value, behind) = framed.unwrap_or_default();
        rest = behind;
        value
    })
}

/// A key for people: one text as it is, several as a JSON array.
pub fn one_or_array<V: AsRef<[u8]>>(texts: impl ExactSizeIterator<Item = V>) -> Vec<u8> {
    let texts: Vec<V> = texts.collect();
    match texts.as_slice() {
        [only] => only.as_ref().to_vec(),
        several => {
            let text = |text: &V| String::from_utf8_lossy(text.as_ref()).into_owned();
            serde_json::Value::from_iter(several.iter().map(text)).to_string().into_bytes()
        }
    }
}

/// The inverse, for a key of so many columns.
pub fn parse_text(text: &str, columns: usize) -> Option<KeyText> {
    if columns == 1 {
        return Some(vec![text.as_bytes().to_vec()]);
    }
    let texts: Vec<String> = serde_json::from_str(text).ok()?;
    (texts.len() == columns).then(|| texts.into_iter().map(String::into_bytes).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_is_read_as_it_was_joined(
            values in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..8), 1..4),
        ) {
            let borrowed: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
            let key = join(borrowed.iter().map(|value| Cow::Borrowed(*value)));
            prop_assert_eq!(split(&key, values.len()).collect::<Vec<_>>(), borrowed);
        }

        #[test]
        fn a_key_is_read_as_it_was_printed(
            texts in proptest::collection::vec(".{0,5}", 1..4),
        ) {
            let text = String::from_utf8(one_or_array(texts.iter())).unwrap();
            let key: KeyText = texts.iter().map(|text| text.clone().into_bytes()).collect();
            prop_assert_eq!(parse_text(&text, key.len()), Some(key));
        }
    }
}
