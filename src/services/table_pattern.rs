//! Which tables are meant, in the words of `TABLE_REPLICATION_TABLES`:
//! `public.*, billing.invoice_*, -public.schema_migrations`.
//!
//! From left to right, and the last pattern that fits decides. `*` stands for any text, `?` for one
//! character; a name without a dot is in `public`. Upper and lower case differ, as they do in
//! `\dt`; double quotes only take the meaning away from `,` `.` `*` `?` `-` and spaces, and two of
//! them within are one.

use std::fmt;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TablePatterns(Vec<TablePattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePattern {
    leaves_out: bool,
    schema: Vec<Piece>,
    name: Vec<Piece>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Char(char),
    One,
    Any,
}

/// Whether a table is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meant {
    No,
    /// By a pattern that fits others, too.
    Matched,
    /// By its own name: also where it would be passed over otherwise.
    Named,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatternError {
    /// As it was written.
    pub pattern: String,
    pub cause: &'static str,
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.pattern, self.cause)
    }
}

impl std::error::Error for PatternError {}

impl TablePatterns {
    pub fn parse(text: &str) -> Result<TablePatterns, PatternError> {
        let mut patterns = Vec::new();
        for written in split(text)? {
            if written.trim().is_empty() {
                let cause = "expected a pattern between two commas";
                return Err(PatternError { pattern: text.trim().to_owned(), cause });
            }
            patterns.push(TablePattern::parse(written.trim())?);
        }
        // A list that begins with what is left out means all the others.
        if patterns.first().is_some_and(|first| first.leaves_out) {
            let cause = "it leaves out what nothing before it has named; begin with `*.*`";
            let pattern = split(text)?.first().map_or("", |first| first.trim()).to_owned();
            return Err(PatternError { pattern, cause });
        }
        Ok(TablePatterns(patterns))
    }

    pub fn meant(&self, schema: &str, name: &str) -> Meant {
        let last = self.0.iter().rfind(|pattern| pattern.fits(schema, name));
        match last {
            None => Meant::No,
            Some(pattern) if pattern.leaves_out => Meant::No,
            Some(pattern) if pattern.is_name() => Meant::Named,
            Some(_) => Meant::Matched,
        }
    }

    /// The tables that are meant by their own name, as schema and name.
    pub fn named(&self) -> Vec<(String, String)> {
        let text = |pieces: &[Piece]| -> String {
            let chars = pieces.iter().map(|piece| match piece {
                Piece::Char(c) => *c,
                Piece::One => '?',
                Piece::Any => '*',
            });
            chars.collect()
        };
        let names = self.0.iter().filter(|pattern| pattern.is_name() && !pattern.leaves_out);
        let mut names: Vec<_> =
            names.map(|pattern| (text(&pattern.schema), text(&pattern.name))).collect();
        names.retain(|(schema, name)| self.meant(schema, name) == Meant::Named);
        names.dedup();
        names
    }
}

/// At the commas that no quotes protect.
fn split(text: &str) -> Result<Vec<&str>, PatternError> {
    let (mut parts, mut from, mut is_quoted) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    if is_quoted {
        let cause = "a double quote is opened and not closed";
        return Err(PatternError { pattern: text[from..].trim().to_owned(), cause });
    }
    parts.push(&text[from..]);
    Ok(parts)
}

impl TablePattern {
    fn parse(written: &str) -> Result<TablePattern, PatternError> {
        let refuse = |cause| PatternError { pattern: written.to_owned(), cause };
        let (leaves_out, rest) = match written.strip_prefix('-') {
            Some(rest) => (true, rest.trim_start()),
            None => (false, written),
        };
        let (mut parts, mut is_quoted) = (vec![Vec::new()], false);
        let mut chars = rest.chars().peekable();
        while let Some(c) = chars.next() {
            let piece = match c {
                '"' if is_quoted && chars.peek() == Some(&'"') => {
                    chars.next();
                    Piece::Char('"')
                }
                '"' => {
                    is_quoted = !is_quoted;
                    continue;
                }
                '.' if !is_quoted => {
                    parts.push(Vec::new());
                    continue;
                }
                '*' if !is_quoted => Piece::Any,
                '?' if !is_quoted => Piece::One,
                c if c.is_whitespace() && !is_quoted => {
                    return Err(refuse("put a name with spaces in double quotes"));
                }
                c => Piece::Char(c),
            };
            parts.last_mut().expect("it begins with one").push(piece);
        }
        if parts.iter().any(Vec::is_empty) {
            return Err(refuse("expected `schema.table` or `table`"));
        }
        let mut parts = parts.into_iter();
        let (schema, name) = match (parts.next(), parts.next(), parts.next()) {
            (Some(name), None, _) => ("public".chars().map(Piece::Char).collect(), name),
            (Some(schema), Some(name), None) => (schema, name),
            _ => return Err(refuse("it has two dots; put a name with a dot in double quotes")),
        };
        Ok(TablePattern { leaves_out, schema, name })
    }

    fn fits(&self, schema: &str, name: &str) -> bool {
        fits(&self.schema, schema) && fits(&self.name, name)
    }

    fn is_name(&self) -> bool {
        let mut pieces = self.schema.iter().chain(&self.name);
        pieces.all(|piece| matches!(piece, Piece::Char(_)))
    }
}

/// In time of the product of the lengths at most, whatever the pattern: only the last `*` is ever
/// stretched.
fn fits(pattern: &[Piece], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut from, mut stretched) = (0, 0, None);
    while from < text.len() {
        match pattern.get(at) {
            Some(Piece::Any) => {
                stretched = Some((at, from));
                at += 1;
            }
            Some(Piece::One) => (at, from) = (at + 1, from + 1),
            Some(Piece::Char(c)) if *c == text[from] => (at, from) = (at + 1, from + 1),
            _ => match stretched {
                Some((any, to)) => {
                    stretched = Some((any, to + 1));
                    (at, from) = (any + 1, to + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|piece| *piece == Piece::Any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn meant(patterns: &str, schema: &str, name: &str) -> Meant {
        TablePatterns::parse(patterns).unwrap().meant(schema, name)
    }

    #[test]
    fn the_last_pattern_that_fits_decides() {
        let patterns = "public.*, billing.invoice_*, -public.schema_migrations, -*.audit_*, \
                        public.audit_log";
        for (schema, name, expected) in [
            ("public", "orders", Meant::Matched),
            ("public", "schema_migrations", Meant::No),
            ("billing", "invoice_lines", Meant::Matched),
            ("billing", "customers", Meant::No),
            ("public", "audit_rows", Meant::No),
            ("public", "audit_log", Meant::Named),
            ("other", "audit_log", Meant::No),
        ] {
            assert_eq!(meant(patterns, schema, name), expected, "{schema}.{name}");
        }
        assert_eq!(meant("-x".trim_start_matches('-'), "public", "x"), Meant::Named);
        assert_eq!(meant("x, -x, x", "public", "x"), Meant::Named);
        assert_eq!(meant("x, -x", "public", "x"), Meant::No);
        assert_eq!(meant("x, *", "public", "x"), Meant::Matched);
    }

    #[test]
    fn signs_and_quotes_mean_what_they_say() {
        for (patterns, schema, name, expected) in [
            ("orders", "public", "orders", true),
            ("orders", "sales", "orders", false),
            ("Orders", "public", "orders", false),
            ("*.orders", "sales", "orders", true),
            ("o?ders", "public", "orders", true),
            ("o?ders", "public", "oders", false),
            ("p?", "public", "pü", true),
            ("*", "public", "", true),
            ("*a*b*", "public", "xxaxxbxx", true),
            ("*a*b", "public", "abab", true),
            ("*a*b", "public", "aba", false),
            ("\"a.b\".\"c,d\"", "a.b", "c,d", true),
            ("\"a*\"", "public", "ab", false),
            ("\"a*\"", "public", "a*", true),
            ("\"with space\"*", "public", "with space and more", true),
            ("\"say \"\"hi\"\"\"", "public", "say \"hi\"", true),
            ("\"-dash\"", "public", "-dash", true),
            ("a-b", "public", "a-b", true),
            (" a ,  b ", "public", "b", true),
        ] {
            let found = meant(patterns, schema, name) != Meant::No;
            assert_eq!(found, expected, "{patterns} {schema}.{name}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_pattern_that_is_wrong() {
        for (text, pattern, cause) in [
            ("a, b.c.d", "b.c.d", "two dots"),
            ("a, \"b", "\"b", "not closed"),
            ("a,, b", "a,, b", "between two commas"),
            ("", "", "between two commas"),
            ("a.", "a.", "expected `schema.table`"),
            (".a", ".a", "expected `schema.table`"),
            ("a, -", "-", "expected `schema.table`"),
            ("a b", "a b", "double quotes"),
            ("-a, b", "-a", "begin with `*.*`"),
            ("\"\"", "\"\"", "expected `schema.table`"),
        ] {
            let error = TablePatterns::parse(text).unwrap_err();
            assert_eq!(error.pattern, pattern, "{text}");
            assert!(error.to_string().contains(cause), "{error}");
        }
    }

    #[test]
    fn named_ones_can_be_looked_for() {
        let patterns = TablePatterns::parse("cron.job, *.x, a, -b, b, a, \"c*\", -a").unwrap();
        let name = |schema: &str, name: &str| (schema.to_owned(), name.to_owned());
        assert_eq!(
            patterns.named(),
            [name("cron", "job"), name("public", "b"), name("public", "c*")]
        );
    }

    #[test]
    fn a_pattern_of_many_stars_is_quick() {
        let pattern = "*a".repeat(30);
        assert_eq!(meant(&pattern, "public", &"a".repeat(63)), Meant::Matched);
        assert_eq!(meant(&pattern, "public", &format!("{}b", "a".repeat(62))), Meant::No);
    }
}
