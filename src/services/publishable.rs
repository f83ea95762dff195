//! Whether a table can stand in a publication without harm: a publication may make the
//! application's own UPDATE and DELETE fail, and a stream end at each change.
//!
//! Judged before the publication is made or widened, and of one that is there. The rules are those
//! of Postgres's `CheckCmdReplicaIdentity` and `pgoutput`.

use postgres_protocol::escape::{escape_identifier, escape_literal};

/// From this version on UPDATE fails where the old row has a generated column that is not sent.
const CHECKS_GENERATED: u32 = 180_000;

/// What a publication says about a table, or would say.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    pub publication: &'a str,
    /// The table as it is streamed, as in a statement.
    pub table: &'a str,
    /// As in `server_version_num`.
    pub server: u32,
    pub inserts: bool,
    pub updates: bool,
    pub deletes: bool,
    pub truncates: bool,
    pub column_list: Option<&'a [String]>,
    /// What the row filter looks at.
    pub filter_columns: &'a [String],
    /// Stored ones.
    pub sends_generated: bool,
    /// Other publications of the same stream that have the table, with their column lists.
    pub beside: &'a [(String, Option<Vec<String>>)],
    /// The slot that is older than the entry, if there is one.
    pub older_slot: Option<&'a str>,
}

/// A table that holds rows: the table itself, or a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// For people.
    pub name: String,
    /// As in a statement.
    pub quoted: String,
    pub identity: Identity,
    /// The name and columns of an index that could be the replica identity.
    pub index: Option<(String, Vec<String>)>,
    /// Generated columns.
    pub stored: Vec<String>,
    pub computed: Vec<String>,
    /// By plain inheritance, which hands down no key.
    pub inherits: bool,
}

/// What an UPDATE or DELETE shows of the old row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    Full,
    Key(Vec<String>),
    /// DEFAULT without a primary key that is immediate, or an index that was dropped.
    Missing,
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The application's UPDATE and DELETE fail.
    WritesFail,
    /// The server ends the stream at the first change, each time again.
    StreamFails,
    /// Changes do not arrive, and nothing says so.
    ChangesMissing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trap {
    pub effect: Effect,
    pub cause: String,
    /// The SQL that mends it.
    pub mend: String,
}

/// Everything that is wrong with it.
pub fn judge(entry: &Entry<'_>, holders: &[Holder]) -> Vec<Trap> {
    let mut traps: Vec<Trap> =
        holders.iter().flat_map(|holder| of_identity(entry, holder)).collect();
    let own: Option<Vec<String>> = entry.column_list.map(<[String]>::to_vec);
    for (publication, list) in entry.beside {
        if sorted(list) != sorted(&own) {
            traps.push(Trap {
                effect: Effect::StreamFails,
                cause: format!(
                    "publication `{publication}` of the same stream has other columns of it"
                ),
                mend: format!(
                    "ALTER PUBLICATION {} DROP TABLE {};",
                    escape_identifier(publication),
                    entry.table
                ),
            });
        }
    }
    if let Some(slot) = entry.older_slot {
        traps.push(Trap {
            // From 18 on the server passes over what it has no publication for.
            effect: match entry.server < CHECKS_GENERATED {
                true => Effect::StreamFails,
                false => Effect::ChangesMissing,
            },
            cause: format!(
                "slot `{slot}` is older than publication `{}`, which is not there for older \
                 changes",
                entry.publication
            ),
            mend: format!("SELECT pg_drop_replication_slot({});", escape_literal(slot)),
        });
    }
    let actions = [
        ("insert", entry.inserts),
        ("update", entry.updates),
        ("delete", entry.deletes),
        ("truncate", entry.truncates),
    ];
    let missing: Vec<&str> =
        actions.iter().filter(|action| !action.1).map(|action| action.0).collect();
    if !missing.is_empty() {
        traps.push(Trap {
            effect: Effect::ChangesMissing,
            cause: format!("its publication does not send: {}", missing.join(", ")),
            mend: format!(
                "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');",
                escape_identifier(entry.publication)
            ),
        });
    }
    traps
}

fn sorted(list: &Option<Vec<String>>) -> Option<Vec<&String>> {
    let mut names: Vec<&String> = list.as_ref()?.iter().collect();
    names.sort();
    Some(names)
}

fn of_identity(entry: &Entry<'_>, holder: &Holder) -> Vec<Trap> {
    let mut traps = Vec::new();
    if !entry.updates && !entry.deletes {
        return traps;
    }
    let mut refuse = |effect, cause: String, mend: String| {
        traps.push(Trap { effect, cause: format!("`{}`: {cause}", holder.name), mend });
    };
    let none: &[String] = &[];
    let (key, is_full) = match &holder.identity {
        Identity::Full => (none, true),
        Identity::Key(columns) => (&**columns, false),
        Identity::Missing | Identity::Nothing => (none, false),
    };
    if !is_full && key.is_empty() {
        let cause = match holder.identity {
            Identity::Nothing => "replica identity is NOTHING",
            _ if holder.inherits => {
                "it has no primary key of its own: that of the table it inherits from is not \
                 inherited"
            }
            _ => "it has no primary key, and no other replica identity",
        };
        refuse(Effect::WritesFail, cause.to_owned(), identify(entry, holder));
    }
    if let Some(list) = entry.column_list {
        let lacks: Vec<String> =
            key.iter().filter(|column| !list.contains(column)).cloned().collect();
        if is_full {
            refuse(
                Effect::WritesFail,
                "it has a column list, and replica identity FULL is all columns".to_owned(),
                match &holder.index {
                    Some((index, columns)) if columns.iter().all(|c| list.contains(c)) => {
                        by_index(holder, index)
                    }
                    _ => put_again(entry, None),
                },
            );
        } else if !lacks.is_empty() {
            refuse(
                Effect::WritesFail,
                format!("its column list lacks the replica identity: {}", lacks.join(", ")),
                put_again(entry, Some(&[list, &lacks].concat())),
            );
        }
    }
    let outside: Vec<&str> = (entry.filter_columns.iter())
        .filter(|column| !is_full && !key.contains(column))
        .map(String::as_str)
        .collect();
    if !outside.is_empty() {
        let cause =
            format!("its row filter looks beyond the replica identity: {}", outside.join(", "));
        let mend = match can_be_full(entry, holder) {
            true => full(holder),
            false => put_again(entry, entry.column_list),
        };
        refuse(Effect::WritesFail, cause, mend);
    }
    let unsent =
        |column: &&String| is_unsent(entry, holder, column) && (is_full || key.contains(column));
    let unsent: Vec<&str> =
        (holder.stored.iter().chain(&holder.computed)).filter(unsent).map(String::as_str).collect();
    // Before, FULL is as good without them, but a key is none without its columns.
    let fails = CHECKS_GENERATED <= entry.server && entry.column_list.is_none();
    if !unsent.is_empty() && (fails || !is_full) {
        let effect = if fails { Effect::WritesFail } else { Effect::ChangesMissing };
        let cause = format!(
            "its replica identity has generated columns that are not sent: {}",
            unsent.join(", ")
        );
        let is_sent_once_told = unsent.iter().all(|c| holder.stored.iter().any(|s| s == c));
        let mend = match &holder.index {
            Some((index, columns)) if !columns.iter().any(|c| unsent.contains(&&**c)) => {
                by_index(holder, index)
            }
            _ if is_sent_once_told && CHECKS_GENERATED <= entry.server => format!(
                "ALTER PUBLICATION {} SET (publish_generated_columns = stored);",
                escape_identifier(entry.publication)
            ),
            _ => give_key(holder),
        };
        refuse(effect, cause, mend);
    }
    traps
}

fn is_unsent(entry: &Entry<'_>, holder: &Holder, column: &String) -> bool {
    let is_sent = match entry.column_list {
        Some(list) => list.contains(column),
        None => entry.sends_generated,
    };
    holder.computed.contains(column) || !is_sent
}

/// FULL harms nobody.
fn can_be_full(entry: &Entry<'_>, holder: &Holder) -> bool {
    let mut generated = holder.stored.iter().chain(&holder.computed);
    entry.column_list.is_none()
        && (entry.server < CHECKS_GENERATED || !generated.any(|c| is_unsent(entry, holder, c)))
}

/// What gives it a replica identity under this entry.
fn identify(entry: &Entry<'_>, holder: &Holder) -> String {
    match &holder.index {
        Some((index, _)) => by_index(holder, index),
        None if can_be_full(entry, holder) => full(holder),
        None => give_key(holder),
    }
}

fn by_index(holder: &Holder, index: &str) -> String {
    let index = escape_identifier(index);
    format!("ALTER TABLE {} REPLICA IDENTITY USING INDEX {index};", holder.quoted)
}

fn full(holder: &Holder) -> String {
    format!("ALTER TABLE {} REPLICA IDENTITY FULL;", holder.quoted)
}

/// Nobody but its owner knows the columns.
fn give_key(holder: &Holder) -> String {
    format!("ALTER TABLE {} ADD PRIMARY KEY (...);", holder.quoted)
}

/// In two transactions, what is written in between would not be streamed.
fn put_again(entry: &Entry<'_>, list: Option<&[String]>) -> String {
    let publication = escape_identifier(entry.publication);
    let table = entry.table;
    let list = list.map_or(String::new(), |list| {
        let names: Vec<String> = list.iter().map(|name| escape_identifier(name)).collect();
        format!(" ({})", names.join(", "))
    });
    format!(
        "BEGIN; ALTER PUBLICATION {publication} DROP TABLE {table}; \
         ALTER PUBLICATION {publication} ADD TABLE {table}{list}; COMMIT;"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "Run \"id\"";

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn entry() -> Entry<'static> {
        Entry {
            publication: "p",
            table: "\"t\"",
            server: 150_000,
            inserts: true,
            updates: true,
            deletes: true,
            truncates: true,
            column_list: None,
            filter_columns: &[],
            sends_generated: false,
            beside: &[],
            older_slot: None,
        }
    }

    fn holder(identity: Identity) -> Holder {
        Holder {
            name: "t".into(),
            quoted: "\"t\"".into(),
            identity,
            index: None,
            stored: Vec::new(),
            computed: Vec::new(),
            inherits: false,
        }
    }

    fn keyed() -> Holder {
        let columns = texts(&[KEY]);
        let index = Some(("t_pkey".into(), columns.clone()));
        Holder { index, ..holder(Identity::Key(columns)) }
    }

    /// The effect, a part of the cause, and the SQL.
    #[track_caller]
    fn only(entry: &Entry<'_>, holder: &Holder) -> (Effect, String, String) {
        let mut traps = judge(entry, std::slice::from_ref(holder));
        assert_eq!(traps.len(), 1, "{traps:?}");
        let trap = traps.remove(0);
        (trap.effect, trap.cause, trap.mend)
    }

    #[test]
    fn a_table_with_a_key_or_all_of_its_old_row_does_no_harm() {
        assert_eq!(judge(&entry(), &[keyed(), holder(Identity::Full)]), []);
        let list = texts(&["b", KEY]);
        assert_eq!(judge(&Entry { column_list: Some(&list), ..entry() }, &[keyed()]), []);
        let filter = texts(&[KEY]);
        assert_eq!(judge(&Entry { filter_columns: &filter, ..entry() }, &[keyed()]), []);
        let generated = Holder { stored: texts(&["g"]), ..keyed() };
        assert_eq!(judge(&Entry { server: 180_000, ..entry() }, &[generated]), []);
    }

    #[test]
    fn each_row_of_the_table_of_traps_is_found_with_its_mend() {
        use Effect::{StreamFails, WritesFail};
        let (list, filter) = (texts(&["b"]), texts(&["b"]));
        let listed = Entry { column_list: Some(&list), ..entry() };
        let beside = [("q".to_owned(), Some(texts(&["b"])))];
        let full = "ALTER TABLE \"t\" REPLICA IDENTITY FULL;";
        let by_index = "ALTER TABLE \"t\" REPLICA IDENTITY USING INDEX \"t_pkey\";";
        let again = "BEGIN; ALTER PUBLICATION \"p\" DROP TABLE \"t\"; \
                     ALTER PUBLICATION \"p\" ADD TABLE \"t\"; COMMIT;";
        let with_key = again.replace("\"t\"; COMMIT", "\"t\" (\"b\", \"Run \"\"id\"\"\"); COMMIT");
        let child = Holder { inherits: true, ..holder(Identity::Missing) };
        let generated = Holder { stored: texts(&["g"]), ..holder(Identity::Full) };
        let virtual_one = Holder { computed: texts(&["v"]), ..holder(Identity::Full) };
        let keyed_full = Holder { computed: texts(&["v"]), identity: Identity::Full, ..keyed() };
        let on_18 = Entry { server: 180_000, ..entry() };
        let send = "ALTER PUBLICATION \"p\" SET (publish_generated_columns = stored);";
        for (entry, holder, effect, cause, mend) in [
            (entry(), holder(Identity::Missing), WritesFail, "no primary key", full),
            (
                entry(),
                Holder { identity: Identity::Missing, ..keyed() },
                WritesFail,
                "no primary",
                by_index,
            ),
            (
                listed,
                holder(Identity::Missing),
                WritesFail,
                "no primary key",
                "ALTER TABLE \"t\" ADD PRIMARY KEY (...);",
            ),
            (entry(), holder(Identity::Nothing), WritesFail, "NOTHING", full),
            (listed, holder(Identity::Full), WritesFail, "column list, and", again),
            (listed, keyed(), WritesFail, "lacks the replica identity: Run \"id\"", &with_key),
            (
                Entry { filter_columns: &filter, ..entry() },
                keyed(),
                WritesFail,
                "identity: b",
                full,
            ),
            (on_18, generated, WritesFail, "not sent: g", send),
            (
                on_18,
                virtual_one,
                WritesFail,
                "not sent: v",
                "ALTER TABLE \"t\" ADD PRIMARY KEY (...);",
            ),
            (on_18, keyed_full, WritesFail, "not sent: v", by_index),
            (entry(), child, WritesFail, "is not inherited", full),
            (
                Entry { beside: &beside, ..entry() },
                keyed(),
                StreamFails,
                "`q`",
                "ALTER PUBLICATION \"q\" DROP TABLE \"t\";",
            ),
            (
                Entry { older_slot: Some("s"), ..entry() },
                keyed(),
                StreamFails,
                "slot `s` is older",
                "SELECT pg_drop_replication_slot('s');",
            ),
        ] {
            let found = only(&entry, &holder);
            assert_eq!((found.0, &*found.2), (effect, mend), "{}", found.1);
            assert!(found.1.contains(cause), "{}", found.1);
        }
    }

    #[test]
    fn an_action_that_is_not_sent_is_told_and_breaks_no_write() {
        let inserts = Entry { updates: false, deletes: false, truncates: false, ..entry() };
        let (effect, cause, mend) = only(&inserts, &holder(Identity::Missing));
        assert_eq!(effect, Effect::ChangesMissing);
        assert!(cause.ends_with("update, delete, truncate"), "{cause}");
        assert!(mend.contains("SET (publish = "), "{mend}");
    }

    #[test]
    fn a_key_that_is_generated_is_none_to_an_older_server() {
        let key = Holder { stored: texts(&[KEY]), ..keyed() };
        assert_eq!(only(&entry(), &key).0, Effect::ChangesMissing);
        assert_eq!(only(&Entry { server: 180_000, ..entry() }, &key).0, Effect::WritesFail);
        let sent = Entry { server: 180_000, sends_generated: true, ..entry() };
        assert_eq!(judge(&sent, &[key]), []);
    }
}
