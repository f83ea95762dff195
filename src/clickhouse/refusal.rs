//! Reads ClickHouse's "no": which exception it was, whether the rows or the server are to blame,
//! and a text that is fit for a log.
//!
//! Pure. ClickHouse quotes the data it refuses (whole JSON documents), so the text of an exception
//! that rows can cause is never passed on: it is rebuilt from fixed phrases and our own column
//! names. Codes and names: <https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp>

use std::fmt;

use crate::error::{Error, ErrorKind};

/// The cause that a refusal names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalVerdict {
    /// The rows themselves: sending them again cannot succeed, the rest of the batch may.
    Data,
    /// Names, types, privileges or settings: an operator has to change something.
    Setup,
    /// The server at this moment: parts, a lost replica, no room.
    Busy,
    /// Memory, time, or a limit of rows and bytes: the same, and less at a time may be taken.
    Size,
    /// A materialized view threw for rows that the table itself accepts.
    View,
    /// A code that is not listed: whether it is about rows shows when less is sent.
    Unknown,
}

/// ClickHouse answered, and said no. Holds no row content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: u32,
    pub name: String,
    /// One bounded line; for exceptions that rows can cause, fixed phrases only.
    pub text: String,
    /// Which of the inserted columns could not be converted, when ClickHouse says so.
    pub column: Option<String>,
    /// Which of the inserted rows violates a constraint, from 0.
    pub row: Option<usize>,
    /// The view that the block was pushed to; empty if the refusal does not name it.
    pub view: Option<String>,
    /// The setting that the server does not know, for `UNKNOWN_SETTING`.
    pub unknown_setting: Option<String>,
    /// It came of computing something from the rows: a constraint, an index, a column of the table.
    pub is_of_expression: bool,
    /// Reported under the code for bad values, but true of every row.
    of_every_row: Option<OfEveryRow>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OfEveryRow {
    /// The block names a column that its own INSERT does not list.
    Columns,
    /// The server (24.8) cannot read documents sent as JSON.
    OldJson,
}

const UNKNOWN_SETTING: u32 = 115;
const TEXT_MAX_CHARS: usize = 300;
const NAME_MAX_BYTES: usize = 64;

/// May the exception's own words be shown?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    /// They speak of names, limits and sizes.
    Open,
    /// They may quote values, or a statement that holds values.
    Closed,
}

use RefusalVerdict::{Busy, Data, Setup, Size, Unknown, View};
use Words::{Closed, Open};

/// Every code that is distinguished. A code that is not listed is `Unknown` and `Closed`: its text
/// is not shown.
///
/// `Data` is only what one row can cause and another row of the same block can avoid. A type of the
/// block that does not fit the column (43, 53) holds for every row alike, so it is `Setup`:
/// salvage would set each single row aside.
const CODES: &[(u32, &str, RefusalVerdict, Words)] = &[
    (3, "UNEXPECTED_END_OF_FILE", Busy, Open),
    (6, "CANNOT_PARSE_TEXT", Data, Closed),
    (8, "THERE_IS_NO_COLUMN", Setup, Open),
    (10, "NOT_FOUND_COLUMN_IN_BLOCK", Setup, Open),
    (16, "NO_SUCH_COLUMN_IN_TABLE", Setup, Open),
    (20, "NUMBER_OF_COLUMNS_DOESNT_MATCH", Setup, Open),
    (25, "CANNOT_PARSE_ESCAPE_SEQUENCE", Data, Closed),
    (26, "CANNOT_PARSE_QUOTED_STRING", Data, Closed),
    (27, "CANNOT_PARSE_INPUT_ASSERTION_FAILED", Data, Closed),
    // A body that ended early or came damaged: the way is to blame, not the rows.
    (32, "ATTEMPT_TO_READ_AFTER_EOF", Busy, Open),
    (33, "CANNOT_READ_ALL_DATA", Busy, Open),
    (38, "CANNOT_PARSE_DATE", Data, Closed),
    (40, "CHECKSUM_DOESNT_MATCH", Busy, Open),
    (41, "CANNOT_PARSE_DATETIME", Data, Closed),
    (43, "ILLEGAL_TYPE_OF_ARGUMENT", Setup, Open),
    (44, "ILLEGAL_COLUMN", Setup, Open),
    (46, "UNKNOWN_FUNCTION", Setup, Open),
    (47, "UNKNOWN_IDENTIFIER", Setup, Closed),
    (50, "UNKNOWN_TYPE", Setup, Open),
    (53, "TYPE_MISMATCH", Setup, Closed),
    (57, "TABLE_ALREADY_EXISTS", Setup, Open),
    (60, "UNKNOWN_TABLE", Setup, Open),
    (62, "SYNTAX_ERROR", Setup, Closed),
    (69, "ARGUMENT_OUT_OF_BOUND", Data, Closed),
    (70, "CANNOT_CONVERT_TYPE", Data, Closed),
    (72, "CANNOT_PARSE_NUMBER", Data, Closed),
    (73, "UNKNOWN_FORMAT", Setup, Open),
    (74, "CANNOT_READ_FROM_FILE_DESCRIPTOR", Busy, Open),
    (75, "CANNOT_WRITE_TO_FILE_DESCRIPTOR", Busy, Open),
    (81, "UNKNOWN_DATABASE", Setup, Open),
    (UNKNOWN_SETTING, "UNKNOWN_SETTING", Setup, Open),
    (117, "INCORRECT_DATA", Data, Closed),
    (128, "TOO_LARGE_ARRAY_SIZE", Data, Closed),
    (130, "CANNOT_READ_ARRAY_FROM_TEXT", Data, Closed),
    (131, "TOO_LARGE_STRING_SIZE", Data, Closed),
    (158, "TOO_MANY_ROWS", Size, Open),
    (159, "TIMEOUT_EXCEEDED", Size, Open),
    (160, "TOO_SLOW", Size, Open),
    (164, "READONLY", Setup, Open),
    (190, "SIZES_OF_ARRAYS_DONT_MATCH", Data, Closed),
    (192, "UNKNOWN_USER", Setup, Open),
    (193, "WRONG_PASSWORD", Setup, Open),
    (194, "REQUIRED_PASSWORD", Setup, Open),
    (195, "IP_ADDRESS_NOT_ALLOWED", Setup, Open),
    (201, "QUOTA_EXCEEDED", Busy, Open),
    (202, "TOO_MANY_SIMULTANEOUS_QUERIES", Busy, Open),
    (209, "SOCKET_TIMEOUT", Size, Open),
    (210, "NETWORK_ERROR", Busy, Open),
    (216, "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING", Busy, Open),
    (218, "TABLE_IS_DROPPED", Setup, Open),
    (225, "NO_ZOOKEEPER", Busy, Open),
    (236, "ABORTED", Busy, Open),
    (241, "MEMORY_LIMIT_EXCEEDED", Size, Open),
    (242, "TABLE_IS_READ_ONLY", Busy, Open),
    (243, "NOT_ENOUGH_SPACE", Busy, Open),
    (252, "TOO_MANY_PARTS", Busy, Open),
    (271, "CANNOT_DECOMPRESS", Busy, Open),
    (279, "ALL_CONNECTION_TRIES_FAILED", Busy, Open),
    (285, "TOO_FEW_LIVE_REPLICAS", Busy, Open),
    (286, "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE", Busy, Open),
    (289, "REPLICA_IS_NOT_IN_QUORUM", Busy, Open),
    (290, "LIMIT_EXCEEDED", Busy, Open),
    (291, "DATABASE_ACCESS_DENIED", Setup, Open),
    (306, "TOO_DEEP_RECURSION", Data, Closed),
    (307, "TOO_MANY_BYTES", Size, Open),
    (319, "UNKNOWN_STATUS_OF_INSERT", Busy, Open),
    (321, "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE", Data, Closed),
    (344, "SUPPORT_IS_DISABLED", Setup, Open),
    (349, "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN", Data, Closed),
    (376, "CANNOT_PARSE_UUID", Data, Closed),
    (392, "QUERY_IS_PROHIBITED", Setup, Open),
    (394, "QUERY_WAS_CANCELLED", Busy, Open),
    (396, "TOO_MANY_ROWS_OR_BYTES", Size, Open),
    (407, "DECIMAL_OVERFLOW", Data, Closed),
    (439, "CANNOT_SCHEDULE_TASK", Busy, Open),
    (452, "SETTING_CONSTRAINT_VIOLATION", Setup, Open),
    (467, "CANNOT_PARSE_BOOL", Data, Closed),
    (469, "VIOLATED_CONSTRAINT", Data, Closed),
    (473, "DEADLOCK_AVOIDED", Busy, Open),
    (497, "ACCESS_DENIED", Setup, Open),
    (499, "S3_ERROR", Busy, Open),
    (511, "UNKNOWN_ROLE", Setup, Open),
    (516, "AUTHENTICATION_FAILED", Setup, Open),
    (574, "DISTRIBUTED_TOO_MANY_PENDING_BYTES", Busy, Open),
    (675, "CANNOT_PARSE_IPV4", Data, Closed),
    (676, "CANNOT_PARSE_IPV6", Data, Closed),
    (691, "UNKNOWN_ELEMENT_OF_ENUM", Data, Closed),
    (745, "SERVER_OVERLOADED", Busy, Open),
    (774, "TABLE_IS_PERMANENTLY_READ_ONLY", Busy, Open),
    (999, "KEEPER_EXCEPTION", Busy, Open),
];

const UNKNOWN_COLUMN: &str = "Unknown column with name";
const OLD_JSON: &str = "Invalid version for Object structure serialization";

/// ClickHouse's own words that distinguish refusals of a row, and contain nothing of the row.
const PHRASES: &[&str] = &[
    "Cannot parse JSON object",
    "Duplicate path found during parsing JSON object",
    "Cannot read JSON object from JSON element",
    "Cannot insert data into JSON column",
    "Cannot convert NULL value to non-Nullable type",
    "Cannot parse string",
    "Cannot parse DateTime",
    "Cannot parse UUID",
    "Cannot parse uuid",
    "Unknown element",
    "Array does not start with '['",
    "is violated at row",
    UNKNOWN_COLUMN,
    OLD_JSON,
    "Too large string size",
    "Syntax error",
    PUSHING,
];

const PUSHING: &str = "while pushing to view";
const PARTITIONS_OF_INSERT: &str = "Too many partitions for single INSERT block";
/// A limit of the whole server: the next statement that needs memory fails with it.
const TOTAL_MEMORY: [&str; 2] = ["(total) memory limit exceeded", "Memory limit (total) exceeded"];
const CONVERTING: &str = "while converting column \"";
const COMPUTING: &str = "while executing 'FUNCTION ";

impl Refusal {
    /// Reads the body of an answer. `columns` are those of the INSERT: only their names may be
    /// taken from the text. `None`: this is not ClickHouse speaking (a proxy, an empty answer).
    pub fn read(answer: &str, columns: &[&str]) -> Option<Refusal> {
        let (code, mut message) = split_code(answer.trim_start())?;
        // An exception that was passed on by another one carries its own code in front again.
        if let Some((inner, text)) = split_code(message)
            && inner == code
        {
            message = text;
        }
        let known = CODES.iter().find(|row| row.0 == code);
        let name = match known {
            Some((_, name, ..)) => (*name).to_owned(),
            None => trailing_name(message).unwrap_or("UNKNOWN").to_owned(),
        };
        let view = view_pushed_to(code, message);
        // The text of a view's error comes from its author, and may quote rows.
        let words = known.filter(|_| view.is_none()).map_or(Closed, |row| row.3);
        let text = match words {
            Open => bounded_line(without_tail(message)),
            Closed => phrases_in(message),
        };
        Some(Refusal {
            code,
            name,
            text,
            column: converted_column(message, columns).or_else(|| checked_column(message, columns)),
            row: violating_row(message).filter(|_| view.is_none()),
            view,
            of_every_row: of_every_row(code, message),
            is_of_expression: message
                .rfind(COMPUTING)
                .is_some_and(|at| at > message.rfind(CONVERTING).unwrap_or(0)),
            unknown_setting: (code == UNKNOWN_SETTING).then(|| setting_name(message)).flatten(),
        })
    }

    pub fn verdict(&self) -> RefusalVerdict {
        if self.of_every_row.is_some() {
            return Setup;
        }
        match classify(self.code) {
            // Something that a view needs is missing or does not fit, or the view throws.
            Data | Setup | Unknown if self.view.is_some() => View,
            // The row decides the type of a path in a document.
            Setup if self.is_of_value() => Unknown,
            // A limit of one INSERT, not of the table.
            Busy if self.code == 252 && self.text.starts_with(PARTITIONS_OF_INSERT) => Size,
            verdict => verdict,
        }
    }

    /// A type that does not fit, of something that was computed from the rows.
    fn is_of_value(&self) -> bool {
        self.is_of_expression && [43, 44, 53].contains(&self.code)
    }

    /// Whether another replica may accept what this one does not: it has lost ZooKeeper, is
    /// read-only, shuts down, has no room, or lacks the user, a grant or the table. A missed quorum
    /// is not such a case.
    pub fn is_of_host(&self) -> bool {
        const CODES: [u32; 12] = [60, 81, 192, 193, 194, 195, 225, 236, 242, 243, 497, 516];
        self.code == 999 || CODES.contains(&self.code)
    }

    /// Whether a table or a column is missing, or its type does not accept what is sent: so every
    /// attempt fails until the tables are read again, which each session does.
    pub fn is_of_tables(&self) -> bool {
        const CODES: [u32; 11] = [8, 10, 16, 20, 43, 44, 47, 53, 60, 81, 218];
        // A session does not check what a view lacks.
        self.view.is_none() && !self.is_of_value() && CODES.contains(&self.code)
    }

    /// The hint, if one sentence can say it.
    pub fn hint(&self) -> Option<&'static str> {
        if self.of_every_row == Some(OfEveryRow::OldJson) {
            return Some("Use ClickHouse 25.3 or newer.");
        }
        Some(match self.code {
            60 | 81 | 218 => {
                "When the service starts again it creates missing tables, where it may, and \
                 compares its rows with Postgres."
            }
            16 => {
                "Add the column to the table; the service starts again with the columns it finds."
            }
            164 => {
                "The user must not be `readonly`: it must be able to INSERT and to change \
                 settings."
            }
            192..=194 | 516 => "Check the user and the password of the ClickHouse URL.",
            291 | 497 => {
                "Run as an administrator: GRANT SELECT, INSERT, CREATE TABLE ON <database>.*"
            }
            452 => "Lift the constraint on this setting for the user (`SHOW SETTINGS PROFILES`).",
            UNKNOWN_SETTING => "Use ClickHouse 24.8 or newer.",
            241 => {
                "Meanwhile walhouse sends less at a time. Raise `max_memory_usage` of the user, or \
                 give the server more memory."
            }
            158..=160 | 209 | 307 | 396 => {
                "Meanwhile walhouse sends less at a time. See the limits of the user: SHOW \
                 SETTINGS PROFILES."
            }
            774 => "ALTER TABLE ... MODIFY SETTING table_readonly = 0.",
            243 => "Free disk space on the ClickHouse server.",
            242 => {
                "See `zookeeper_exception` in system.replicas, and the server's log; SYSTEM \
                 RESTORE REPLICA if its metadata is lost."
            }
            285 => {
                "Start the replicas that are down, or lower \
                 `REPLICATION_CLICKHOUSE_INSERT_QUORUM`."
            }
            319 => "See why replicas do not fetch: system.replication_queue, `last_exception`.",
            252 => "Merges are behind: flush larger batches, or less often.",
            _ => return None,
        })
    }

    /// The text for an operator.
    pub fn into_error(self, doing: impl Into<String>) -> Error {
        let kind = match self.verdict() {
            Data => ErrorKind::DataRefused,
            Setup | View => ErrorKind::Setup,
            Busy | Size | Unknown => ErrorKind::Unreachable,
        };
        let hint = self.hint();
        let error = Error::new(kind, doing).because(self);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// The cause for a code.
pub fn classify(code: u32) -> RefusalVerdict {
    CODES.iter().find(|row| row.0 == code).map_or(Unknown, |row| row.2)
}

/// The codes that are distinguished, with their names.
pub fn known_codes() -> impl Iterator<Item = (u32, &'static str)> {
    CODES.iter().map(|row| (row.0, row.1))
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "code {} ({})", self.code, self.name)?;
        if !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        if let Some(column) = &self.column {
            write!(f, ", column `{column}`")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// `Code: 60. DB::Exception: text`, or, from old servers, `Code: 60, e.displayText() = ...`.
fn split_code(answer: &str) -> Option<(u32, &str)> {
    let rest = answer.strip_prefix("Code: ")?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let code = rest.get(..digits)?.parse().ok()?;
    let rest = rest.get(digits..)?;
    // The class of the exception stands before its text: `DB::Exception: `, `DB::NetException: `.
    let message = match rest.split_once("Exception: ") {
        Some((class, message)) if class.len() <= 48 => message,
        _ => rest.trim_start_matches(['.', ',', ' ']),
    };
    Some((code, message))
}

/// The `(NAME)` that newer servers put at the end, before `(version ...)`.
fn trailing_name(message: &str) -> Option<&str> {
    let end = message.rfind(" (version ").unwrap_or(message.len());
    let head = message.get(..end)?.trim_end().strip_suffix(')')?;
    let name = head.get(head.rfind('(')? + 1..)?;
    let plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    ((3..=NAME_MAX_BYTES).contains(&name.len()) && name.chars().all(plain)).then_some(name)
}

/// Without `(NAME) (version ...)`: both are said elsewhere.
fn without_tail(message: &str) -> &str {
    let mut text = message.split(" (version ").next().unwrap_or(message).trim_end();
    if let Some(name) = trailing_name(text) {
        text = text.get(..text.len() - name.len() - 2).unwrap_or(text);
    }
    let text = text.split(", e.what() = ").next().unwrap_or(text);
    text.trim_end().trim_end_matches('.')
}

fn bounded_line(text: &str) -> String {
    let line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_MAX_CHARS).collect();
    line.trim_end().to_owned()
}

/// A message that begins with one of our phrases keeps it in front.
fn phrases_in(message: &str) -> String {
    let mut found: Vec<(usize, &str)> =
        PHRASES.iter().filter_map(|phrase| Some((message.find(phrase)?, *phrase))).collect();
    found.sort_unstable();
    found.iter().map(|(_, phrase)| *phrase).collect::<Vec<_>>().join(": ")
}

/// `... : while converting column "output" from type ...`. The data stands before it, so the last
/// such place is the server's; and only a name that we sent can come out.
fn converted_column(message: &str, columns: &[&str]) -> Option<String> {
    let name = message.get(message.rfind(CONVERTING)? + CONVERTING.len()..)?.split('"').next()?;
    columns.contains(&name).then(|| name.to_owned())
}

/// `Constraint `c` for table d.t is violated at row 3. Expression: (...). Column values: k = 'v'`.
/// Its own words come first; behind `Column values` anything may follow.
fn violation(message: &str) -> Option<(usize, &str)> {
    let rest = message.strip_prefix("Constraint `")?;
    let (_, rest) = rest.split_once(" is violated at row ")?;
    let (row, rest) = rest.split_once(". Expression: ")?;
    Some((row.parse().ok()?, rest.split(". Column values: ").next()?))
}

fn violating_row(message: &str) -> Option<usize> {
    let (row, _) = violation(message)?;
    row.checked_sub(1)
}

/// The only column of ours that a violated constraint mentions.
fn checked_column(message: &str, columns: &[&str]) -> Option<String> {
    let (_, expression) = violation(message)?;
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: Vec<&str> = expression.split(|c| !is_word(c)).collect();
    let mut named = columns.iter().filter(|column| words.contains(column));
    match (named.next(), named.next()) {
        (Some(column), None) => Some((*column).to_owned()),
        _ => None,
    }
}

/// By the words in front, which are the server's: a row may hold the same ones, behind them.
fn of_every_row(code: u32, message: &str) -> Option<OfEveryRow> {
    match code {
        117 if message.starts_with(UNKNOWN_COLUMN) => Some(OfEveryRow::Columns),
        117 if message.starts_with(OLD_JSON) => Some(OfEveryRow::OldJson),
        _ => None,
    }
}

/// `...: while pushing to view d.v. (NAME)`, and before anything is written `Target table 'd.w' of
/// view 'd.v' doesn't exists`. A row may hold these words, and its data is quoted in front of the
/// server's own, with a quote or a bracket at its end or behind it: so none may follow.
fn view_pushed_to(code: u32, message: &str) -> Option<String> {
    const OF_DATA: [char; 6] = ['\'', '"', '{', '}', '[', ']'];
    if code == 241 && TOTAL_MEMORY.iter().any(|words| message.starts_with(words)) {
        // The limit is noticed wherever memory is allocated next, which is not the view's fault.
        return None;
    }
    let rest = match message.rfind(PUSHING) {
        Some(at) => {
            let rest = message.get(at + PUSHING.len()..)?;
            if without_tail(rest).contains(OF_DATA) {
                return None;
            }
            rest.trim_start()
        }
        None if code != 60 => return None,
        None => {
            let (_, rest) = message.strip_prefix("Target table '")?.split_once("' of view '")?;
            rest
        }
    };
    let word = |c: char| c.is_ascii_alphanumeric() || "_.`-".contains(c);
    let name: String = rest.chars().take_while(|c| word(*c)).take(2 * NAME_MAX_BYTES).collect();
    Some(name.trim_end_matches('.').to_owned())
}

/// `Unknown setting 'x'`, `Unknown setting x`, and `Setting x is neither a builtin setting ...`.
fn setting_name(message: &str) -> Option<String> {
    const MARK: &str = "etting ";
    let rest = message.get(message.find(MARK)? + MARK.len()..)?.trim_start_matches(['\'', '`']);
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name: String = rest.chars().take_while(|c| word(*c)).take(NAME_MAX_BYTES * 2).collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests;
