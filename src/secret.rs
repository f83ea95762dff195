//! A value that must not be printed, and texts of others that may repeat one.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Prints as `***`; the text comes out only through [`Secret::expose`].
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Characters that must be escaped anywhere in a URL.
const IN_URL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Masks secrets in texts, for example in an error in which a server repeats what it was sent.
#[derive(Debug, Clone, Default)]
pub struct Mask(Vec<Secret>);

impl Mask {
    /// Shorter secrets than this would blot out every text, and guard nothing.
    const LENGTH_MIN: usize = 4;

    /// Each secret is found as it is, and in its URL form.
    pub fn new(secrets: impl IntoIterator<Item = Secret>) -> Mask {
        let mut all = Vec::new();
        for Secret(text) in secrets {
            if text.len() < Mask::LENGTH_MIN {
                continue;
            }
            let encoded = utf8_percent_encode(&text, IN_URL).to_string();
            all.extend([text, encoded]);
        }
        // One that holds another goes first.
        all.sort_by_key(|text| std::cmp::Reverse(text.len()));
        all.dedup();
        Mask(all.into_iter().map(Secret).collect())
    }

    pub fn hide(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.expose(), "***"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_found_as_they_are_and_as_in_a_url() {
        let mask = Mask::new(["p-@ss/word", "word", "x", ""].map(Secret::new));
        for (text, expected) in [
            ("no p-@ss/word here", "no *** here"),
            ("http://u:p-%40ss%2Fword@h", "http://u:***@h"),
            ("a word, x", "a ***, x"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(mask.hide(text), expected);
        }
        assert!(!format!("{mask:?}").contains("word"));
    }
}
