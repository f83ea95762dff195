//! A type of Postgres as the catalog describes it, opened down to what its values are made of.
//!
//! Types are told apart by `oid` where Postgres gives the number itself, and by extension and name
//! where a user's database does: no number above [`FIRST_USER`](super::value::oid::FIRST_USER)
//! means the same in two databases.

use std::sync::Arc;

use super::relation::Oid;
use super::value::oid;

/// A type as one column, field or element has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgType {
    pub oid: Oid,
    pub schema: Arc<str>,
    /// As `pg_type` has it: `int4`, `_int4`.
    pub name: Arc<str>,
    /// As SQL spells it, without the modifier: `integer`, `integer[]`, `own.mood`. For people.
    pub sql: Arc<str>,
    /// -1: none. That of an array is that of its elements, that of a domain without one of its own
    /// the one it was made with.
    pub typmod: i32,
    /// The extension that made it; an array has that of its element.
    pub extension: Option<Arc<str>>,
    /// Without a send function of its own a column is streamed as text, under binary too.
    pub has_send: bool,
    /// Its binary form is its text: that of an enum, or of one that borrows the send function of
    /// text, as `citext` does.
    pub sends_text: bool,
    pub form: PgForm,
}

/// What its values are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PgForm {
    /// Also `int2vector`, `point` and the like, which have elements and are no arrays.
    Base,
    Domain(Arc<PgType>),
    Enum,
    /// Of any number of dimensions: that is the column's to say, and each value's.
    Array {
        element: Arc<PgType>,
        /// Between elements in the text form: `;` of `box`, `,` of everything else.
        delimiter: u8,
    },
    Composite(Arc<[PgField]>),
    /// Of values of this type.
    Range(Arc<PgType>),
    /// Of ranges of this type.
    Multirange(Arc<PgType>),
    /// No table has one but the system's own.
    Pseudo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgField {
    pub name: Arc<str>,
    pub of: Arc<PgType>,
}

impl PgType {
    /// One of Postgres's own that is made of nothing else.
    pub fn built_in(oid: Oid, name: &str, typmod: i32) -> PgType {
        PgType {
            oid,
            schema: "pg_catalog".into(),
            name: name.into(),
            sql: name.into(),
            typmod,
            extension: None,
            has_send: true,
            sends_text: matches!(oid, oid::TEXT | oid::VARCHAR | oid::BPCHAR),
            form: PgForm::Base,
        }
    }

    /// The type under its domains.
    pub fn underlying(&self) -> &PgType {
        match &self.form {
            PgForm::Domain(base) => base.underlying(),
            _ => self,
        }
    }

    /// The types that its binary form is made of.
    fn inner(&self) -> Vec<&PgType> {
        match &self.form {
            PgForm::Base | PgForm::Enum | PgForm::Pseudo => Vec::new(),
            PgForm::Domain(inner)
            | PgForm::Array { element: inner, .. }
            | PgForm::Range(inner)
            | PgForm::Multirange(inner) => vec![inner],
            PgForm::Composite(fields) => fields.iter().map(|field| &*field.of).collect(),
        }
    }

    /// Everything that its values are made of has a send function.
    pub fn is_sendable(&self) -> bool {
        self.has_send && self.inner().into_iter().all(PgType::is_sendable)
    }

    /// A column of it ends a stream that is to be binary: the server sends it by a function of its
    /// own, which then finds none for what is inside.
    pub fn breaks_binary(&self) -> bool {
        self.has_send && !self.is_sendable()
    }

    /// The built-in type whose text and binary forms its values have: a domain's base type, text
    /// for an enum, an array of text for an array of either. `None`: there is none.
    pub fn reads_as(&self) -> Option<Oid> {
        let under = self.underlying();
        let is_base = matches!(under.form, PgForm::Base | PgForm::Array { .. });
        if is_base && under.oid < oid::FIRST_USER {
            return Some(under.oid);
        }
        if under.sends_text || is_base && !under.has_send {
            return Some(oid::TEXT);
        }
        match &under.form {
            PgForm::Array { element, .. } if element.underlying().sends_text => {
                Some(oid::TEXT_ARRAY)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(number: u32, form: PgForm) -> PgType {
        let named = PgType::built_in(Oid(number), "own", -1);
        PgType { schema: "public".into(), form, ..named }
    }

    fn array(number: u32, element: PgType) -> PgType {
        own(number, PgForm::Array { element: Arc::new(element), delimiter: b',' })
    }

    fn domain(base: PgType) -> PgType {
        let (has_send, sends_text) = (base.has_send, base.sends_text);
        PgType { has_send, sends_text, ..own(20_001, PgForm::Domain(Arc::new(base))) }
    }

    fn text() -> PgType {
        PgType::built_in(oid::TEXT, "text", -1)
    }

    /// As `isbn13` of the extension `isn`.
    fn without_send() -> PgType {
        PgType { has_send: false, ..own(20_000, PgForm::Base) }
    }

    #[test]
    fn what_is_inside_decides_whether_binary_can_be_asked_for() {
        assert!(text().is_sendable());
        assert!(!without_send().is_sendable());
        assert!(!without_send().breaks_binary(), "a column of it is streamed as text");
        assert!(!domain(without_send()).breaks_binary());
        let field = PgField { name: "f".into(), of: Arc::new(domain(without_send())) };
        let composite = own(20_002, PgForm::Composite([field].into()));
        for of in [array(20_003, without_send()), array(20_004, composite.clone()), composite] {
            assert!(of.breaks_binary(), "{of:?}");
            assert!(domain(of.clone()).breaks_binary(), "{of:?}");
        }
        assert!(!array(20_003, domain(text())).breaks_binary());
    }

    #[test]
    fn a_type_reads_as_what_it_is_underneath() {
        let int = PgType::built_in(oid::INT4, "int4", -1);
        let mood = PgType { sends_text: true, ..own(20_005, PgForm::Enum) };
        for (of, expected) in [
            (int.clone(), Some(oid::INT4)),
            (domain(domain(int.clone())), Some(oid::INT4)),
            (array(1007, int.clone()), Some(Oid(1007))),
            (mood.clone(), Some(oid::TEXT)),
            (domain(mood.clone()), Some(oid::TEXT)),
            (without_send(), Some(oid::TEXT)),
            (array(20_006, domain(mood)), Some(oid::TEXT_ARRAY)),
            (array(20_007, domain(int.clone())), None),
            (own(3904, PgForm::Range(Arc::new(int))), None),
        ] {
            assert_eq!(of.reads_as(), expected, "{of:?}");
        }
    }
}
