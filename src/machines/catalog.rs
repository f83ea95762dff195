//! What the source looks like in Postgres's catalog, and whether a difference between two snapshots
//! of it can hide rows: rows that changed without the stream showing it.
//!
//! The stream carries changes of the published table while it is published. It does not show what
//! was written while a table was out of its publication, rows that came or went with a partition,
//! values that a statement rewrote, or a table that took the name of another. All of these leave a
//! trace in the catalog, which stays: each entry is another version of its row (`xmin`) from then
//! on, even if it reads as it did before.
//!
//! The last snapshot is recorded, and a later one is compared with it, for each publication and
//! table separately; doubt counts as a difference. What changes no value and withholds no change
//! must not count, because each difference costs a read of the whole table: VACUUM FULL, CLUSTER,
//! ANALYZE, REINDEX, GRANT, a new index, a comment, a column without values, a partition that was
//! made empty.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// The oid of the database: those of its tables mean nothing in another one.
    pub database: u32,
    pub publications: Vec<Publication>,
    pub tables: Vec<Table>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    pub name: String,
    pub oid: u32,
    /// The version of its own entry.
    pub version: u32,
    pub owner: u32,
    /// Everything else in its entry, as it reads.
    pub options: String,
    /// What puts our tables in: entries of tables, partitions and schemas.
    pub members: Vec<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub oid: u32,
    pub version: u32,
    /// The table, or the schema.
    pub of: u32,
    /// Its column list and row filter, as they read.
    pub options: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Schema and name, for people, and to find it again.
    pub name: String,
    pub oid: u32,
    /// Only what a logged table is written reaches the WAL.
    pub is_logged: bool,
    /// The version of the entry that puts it into its schema, all tables of which may be published.
    #[serde(default)]
    pub in_schema: Option<u32>,
    /// The highest number that a column has, or had.
    pub last_number: i16,
    pub columns: Vec<CatalogColumn>,
    /// Itself, or all of its partitions.
    pub parts: Vec<CatalogPart>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogColumn {
    pub name: String,
    pub number: i16,
    pub version: u32,
    pub type_oid: u32,
    /// Rows that are older than the column read as something else than NULL.
    pub is_missing: bool,
    pub is_generated: bool,
    /// The catalog entry of its default, which a change of its type creates again.
    pub default: Option<u32>,
    /// A hash of everything in its entry, as it reads. `None`: it is not known, of an older record.
    #[serde(default)]
    pub hash: Option<String>,
    /// The labels of its enum.
    pub labels: Vec<Label>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    pub oid: u32,
    pub text: String,
    #[serde(default)]
    pub version: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogPart {
    pub name: String,
    pub oid: u32,
    /// A different file after any statement that rewrites the whole table.
    pub filenode: u32,
    #[serde(default = "logged")]
    pub is_logged: bool,
    /// Another table after ALTER TABLE has written it as a whole, for one to make it unlogged; the
    /// same after VACUUM FULL, CLUSTER and TRUNCATE. 0: it has none.
    #[serde(default)]
    pub toast: u32,
    pub is_leaf: bool,
    /// The version of the entry that makes it a partition.
    pub attached: Option<u32>,
    /// It was never anything but a partition of this parent.
    pub is_born: bool,
    pub is_empty: bool,
}

fn logged() -> bool {
    true
}

/// What follows from two snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogJudgement {
    /// Why rows may be hidden: a repair is owed. Empty: none are.
    pub hidden: Vec<String>,
    /// What an operator should know anyway.
    pub told: Vec<String>,
    /// The snapshots differ.
    pub differs: bool,
    /// WAL of before the publication was made cannot be read with it.
    pub publication_is_new: bool,
}

impl CatalogJudgement {
    pub fn may_hide_rows(&self) -> bool {
        !self.hidden.is_empty()
    }
}

/// The reasons, in one line.
impl fmt::Display for CatalogJudgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hidden.join("; "))
    }
}

/// A column that walhouse reads; the stream goes on without an optional one.
#[derive(Debug, Clone, Copy)]
pub struct WantedColumn<'a> {
    pub name: &'a str,
    pub is_optional: bool,
}

/// `columns` are those that are read of every table.
pub fn judge(before: &Catalog, now: &Catalog, columns: &[WantedColumn<'_>]) -> CatalogJudgement {
    let mut judgement = CatalogJudgement { differs: before != now, ..CatalogJudgement::default() };
    // Which server and database this is, is judged elsewhere: there is nothing to compare.
    if before.database != now.database {
        return judgement;
    }
    let names = |publications: &[Publication]| -> Vec<String> {
        publications.iter().map(|publication| publication.name.clone()).collect()
    };
    for name in merged(names(&before.publications), names(&now.publications)) {
        let of = |catalog: &'_ Catalog| {
            catalog.publications.iter().position(|publication| publication.name == name)
        };
        let before = of(before).map(|at| &before.publications[at]);
        let now = of(now).map(|at| &now.publications[at]);
        judge_publication(&name, before, now, &mut judgement);
    }
    // Postgres lets no table be unlogged that is put in by its own name.
    let members = |catalog: &Catalog| -> Vec<Member> {
        catalog.publications.iter().flat_map(|publication| publication.members.clone()).collect()
    };
    let (had, mut members) = (members(before), members(now));
    members.retain(|member| had.contains(member));
    let names = |tables: &[Table]| -> Vec<String> {
        tables.iter().map(|table| table.name.clone()).collect()
    };
    for name in merged(names(&before.tables), names(&now.tables)) {
        let of = |catalog: &'_ Catalog| catalog.tables.iter().position(|table| table.name == name);
        let before = of(before).map(|at| &before.tables[at]);
        let now = of(now).map(|at| &now.tables[at]);
        judge_table(&name, before, now, columns, &mut judgement);
        if let (Some(before), Some(now)) = (before, now)
            && before.oid == now.oid
        {
            judge_logging(&name, before, now, &members, &mut judgement);
        }
    }
    judgement
}

fn merged(mut names: Vec<String>, more: Vec<String>) -> Vec<String> {
    let more: Vec<String> = more.into_iter().filter(|name| !names.contains(name)).collect();
    names.extend(more);
    names
}

fn judge_publication(
    name: &str,
    before: Option<&Publication>,
    now: Option<&Publication>,
    judgement: &mut CatalogJudgement,
) {
    let mut hide = |what: &str| judgement.hidden.push(format!("publication `{name}` {what}"));
    let (before, now) = match (before, now) {
        (Some(before), Some(now)) => (before, now),
        (None, Some(_)) => {
            hide("was missing, and was made");
            judgement.publication_is_new = true;
            return;
        }
        (Some(_), None) => return hide("is gone"),
        (None, None) => return,
    };
    if before.oid != now.oid {
        hide("was dropped, and made again");
        judgement.publication_is_new = true;
        return;
    }
    if before.version != now.version {
        hide(match before.options == now.options {
            true => "was altered, and reads as before",
            false => "was altered",
        });
    }
    for member in &before.members {
        match now.members.iter().find(|other| other.of == member.of) {
            None => hide("no longer has a table of this service"),
            Some(other) if (other.oid, other.version) == (member.oid, member.version) => {}
            Some(other) if other.options == member.options => {
                hide("was without a table of this service, and has it again");
            }
            Some(_) => hide("has another column list or row filter for a table of this service"),
        }
    }
    let is_new = |member: &&Member| !before.members.iter().any(|other| other.of == member.of);
    if now.members.iter().any(|member| is_new(&member)) {
        hide("was given a table of this service");
    }
}

fn judge_table(
    name: &str,
    before: Option<&Table>,
    now: Option<&Table>,
    columns: &[WantedColumn<'_>],
    judgement: &mut CatalogJudgement,
) {
    let hide = |judgement: &mut CatalogJudgement, what: &str| {
        judgement.hidden.push(format!("table `{name}` {what}"));
    };
    let (before, now) = match (before, now) {
        (Some(before), Some(now)) => (before, now),
        (None, Some(_)) => return hide(judgement, "was not there, and is now"),
        (Some(_), None) => return hide(judgement, "is gone"),
        (None, None) => return,
    };
    if before.oid != now.oid {
        return hide(judgement, "is another one under the same name");
    }
    if !now.is_logged || !before.is_logged {
        hide(judgement, "was unlogged: what is written to such a table is not in the WAL");
    }
    if let (Some(had), Some(has)) = (before.in_schema, now.in_schema)
        && had != has
    {
        hide(judgement, "was in another schema, and may have been out of the publication there");
    }
    judge_parts(name, before, now, judgement);
    let is_rewritten = before.parts.iter().any(|part| {
        now.parts.iter().any(|other| other.oid == part.oid && other.filenode != part.filenode)
    });
    let mut values = Vec::new();
    for wanted in columns {
        let of = |table: &Table| table.columns.iter().position(|column| column.name == wanted.name);
        let had = of(before).map(|at| &before.columns[at]);
        let has = of(now).map(|at| &now.columns[at]);
        if let Some(what) = judge_column(before, now, (had, has), wanted, is_rewritten) {
            values.push(format!("column `{}` {what}", wanted.name));
        }
    }
    if let Some(first) = values.first() {
        let more = match values.len() {
            1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        judgement.hidden.push(format!("table `{name}`: {first}{more}"));
    } else if is_rewritten && before.parts.iter().any(|part| part.attached.is_some()) {
        // The root's TRUNCATE is in the stream, a partition's own is not.
        for part in &before.parts {
            let is =
                |other: &&CatalogPart| other.oid == part.oid && other.filenode != part.filenode;
            if now.parts.iter().any(|other| is(&other)) {
                judgement.told.push(format!(
                    "partition `{}` of `{name}` has another file, after VACUUM FULL, CLUSTER or \
                     TRUNCATE: the TRUNCATE of a partition is not streamed, and not applied",
                    part.name
                ));
            }
        }
    }
}

fn judge_parts(name: &str, before: &Table, now: &Table, judgement: &mut CatalogJudgement) {
    let mut hide = |part: &CatalogPart, what: &str| {
        let text = format!("partition `{}` of table `{name}` {what}", part.name);
        judgement.hidden.push(text);
    };
    for part in &before.parts {
        match now.parts.iter().find(|other| other.oid == part.oid) {
            None => hide(part, "was detached or dropped"),
            Some(other) if other.attached != part.attached => {
                hide(part, "was detached, and attached again");
            }
            Some(_) => {}
        }
    }
    let is_new = |part: &&CatalogPart| !before.parts.iter().any(|other| other.oid == part.oid);
    let new: Vec<&CatalogPart> = now.parts.iter().filter(is_new).collect();
    let rows = new.iter().find(|part| part.is_leaf && !part.is_empty);
    // Rows of one that was made as a partition came by the stream, unless its parent was attached.
    let may_bring = |part: &&&CatalogPart| !(part.is_born || part.is_leaf && part.is_empty);
    let brought = new.iter().find(may_bring);
    if let (Some(_), Some(part)) = (rows, brought) {
        hide(part, "was attached, with rows");
    }
}

/// Judged for each part, since the root does not show it for a partition. `members` were published
/// by their own names all the time.
fn judge_logging(
    name: &str,
    before: &Table,
    now: &Table,
    members: &[Member],
    judgement: &mut CatalogJudgement,
) {
    for part in &now.parts {
        let had = before.parts.iter().find(|other| other.oid == part.oid);
        let is_logged = part.is_logged && had.is_none_or(|had| had.is_logged);
        let is_member = members.iter().any(|member| member.of == part.oid);
        let what = if !is_logged {
            "was unlogged: what is written to it is not in the WAL"
        } else if had.is_some_and(|had| had.toast != 0 && part.toast != had.toast) && !is_member {
            "was written anew by ALTER TABLE, and may have been unlogged meanwhile"
        } else {
            continue;
        };
        let kind = if part.attached.is_some() { "partition" } else { "table" };
        judgement.hidden.push(format!("{kind} `{}` of `{name}` {what}", part.name));
    }
}

/// The finding about its values, if they may differ from those of the stream.
fn judge_column(
    before: &Table,
    now: &Table,
    looks: (Option<&CatalogColumn>, Option<&CatalogColumn>),
    wanted: &WantedColumn<'_>,
    is_rewritten: bool,
) -> Option<&'static str> {
    let (had, has) = match looks {
        (None, None) => return None,
        (Some(_), None) => return Some("was dropped, or is called otherwise"),
        (None, Some(has)) => {
            let was_there = has.number <= before.last_number;
            if was_there {
                return Some("had another name");
            }
            if has.is_missing || has.is_generated || is_rewritten {
                return Some("was added with values");
            }
            // One that came and went meanwhile may have had its name.
            let is_there = |number| now.columns.iter().any(|column| column.number == number);
            let all_are_there = (before.last_number + 1..=now.last_number).all(is_there);
            return (!all_are_there).then_some("was added, and others came and went");
        }
        (Some(had), Some(has)) => (had, has),
    };
    if had.number != has.number {
        return Some("is another one under the same name");
    }
    // Rows that were streamed under a name that it had for a while keep that.
    let is_other = |a: &Label, b: &Label| {
        a.text != b.text || a.version.is_some() && b.version.is_some() && a.version != b.version
    };
    let is_renamed = |label: &Label| {
        has.labels.iter().any(|other| other.oid == label.oid && is_other(other, label))
    };
    if had.labels.iter().any(is_renamed) {
        return Some("has an enum of which a label was renamed");
    }
    if had.version == has.version {
        return None;
    }
    if is_rewritten {
        // VACUUM FULL writes such values into the rows, and a change of type a new default as well.
        let is_only_filled = had.is_missing
            && !has.is_missing
            && had.default.is_some()
            && had.hash.is_some()
            && (had.default, had.type_oid, &had.hash) == (has.default, has.type_oid, &has.hash);
        return (!is_only_filled).then_some("was rewritten");
    }
    // Under another name for a while, it was missing in the stream. Without one that is needed
    // nothing goes on.
    let reads_as_before =
        (had.hash.is_none() || had.hash == has.hash) && had.default == has.default;
    (wanted.is_optional && reads_as_before).then_some("was altered, and reads as before")
}

#[cfg(test)]
mod tests;
