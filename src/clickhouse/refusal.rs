//! Reads ClickHouse's "no": which exception it was, whether the rows or the server are to blame,
//! and a text that is fit for a log.
//!
//! Pure. ClickHouse quotes the data it refuses (whole JSON documents), so the text of an exception
//! that rows can cause is never passed on: it is rebuilt from fixed phrases and our own column
//! names. Codes and names: <https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp>

use std::fmt;

/// What a refusal says about its cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The rows themselves: sending them again cannot succeed, the rest of the batch may.
    Data,
    /// Names, types, privileges or settings: an operator has to change something.
    Setup,
    /// The server at this moment: parts, a lost replica, no room.
    Busy,
    /// Memory, time, or a limit of rows and bytes: the same, and less at a time may be taken.
    Size,
    /// A materialized view threw for what the table itself takes.
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
    /// The view that was being pushed to; empty where its name is not told.
    pub view: Option<String>,
    /// The setting that the server does not know, for `UNKNOWN_SETTING`.
    pub unknown_setting: Option<String>,
    /// It came of computing something from the rows: a constraint, an index, a column of the table.
    pub is_of_expression: bool,
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

use Verdict::{Busy, Data, Setup, Size, Unknown, View};
use Words::{Closed, Open};

/// Every code that is told apart. A code that is not listed is `Unknown` and `Closed`: its words
/// are not shown.
///
/// `Data` is only what one row can cause and another row of the same block can avoid. A type of the
/// block that does not fit the column (43, 53) holds for every row alike, so it is `Setup`:
/// salvage would set each single row aside.
const CODES: &[(u32, &str, Verdict, Words)] = &[
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

const OLD_JSON: &str = "Invalid version for Object structure serialization";

/// ClickHouse's own words that tell one refusal of a row from another, and hold nothing of the row.
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
    "Unknown column with name",
    OLD_JSON,
    "Too large string size",
    "Syntax error",
    PUSHING,
];

const PUSHING: &str = "while pushing to view";
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
        let view = view_pushed_to(message);
        // What a view says is its author's, and of rows.
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
            row: violating_row(message),
            view,
            is_of_expression: message
                .rfind(COMPUTING)
                .is_some_and(|at| at > message.rfind(CONVERTING).unwrap_or(0)),
            unknown_setting: (code == UNKNOWN_SETTING).then(|| setting_name(message)).flatten(),
        })
    }

    pub fn verdict(&self) -> Verdict {
        // Told under the code of bad values, but true of every row: the block names a column that
        // its own INSERT does not list; the server (24.8) cannot read documents sent as JSON.
        let every_row = ["Unknown column with name", OLD_JSON];
        if self.code == 117 && every_row.iter().any(|phrase| self.text.starts_with(phrase)) {
            return Setup;
        }
        match classify(self.code) {
            // What a view needs is missing, or does not fit, or it throws.
            Data | Setup | Unknown if self.view.is_some() => View,
            // What a path of a document holds has its type from the row.
            Setup if self.is_of_value() => Unknown,
            // Of one INSERT, and not of the table.
            Busy if self.code == 252 && self.text.contains("partitions for single") => Size,
            verdict => verdict,
        }
    }

    /// A type that does not fit, of something that was computed from the rows.
    fn is_of_value(&self) -> bool {
        self.is_of_expression && [43, 44, 53].contains(&self.code)
    }

    /// Whether another replica may well take what this one does not: it has lost ZooKeeper, is
    /// read-only, shuts down, has no room, or lacks the user, a grant or the table. A quorum that
    /// is not reached is none of these.
    pub fn is_of_host(&self) -> bool {
        const CODES: [u32; 12] = [60, 81, 192, 193, 194, 195, 225, 236, 242, 243, 497, 516];
        self.code == 999 || CODES.contains(&self.code)
    }

    /// Whether a table or a column is not there, or not of a type that takes what is sent: true of
    /// every attempt until somebody looks at the tables again, which each session does.
    pub fn is_of_tables(&self) -> bool {
        const CODES: [u32; 11] = [8, 10, 16, 20, 43, 44, 47, 53, 60, 81, 218];
        // What a view lacks is nothing that a session looks at.
        self.view.is_none() && !self.is_of_value() && CODES.contains(&self.code)
    }

    /// What mends it, where one sentence can say so.
    pub fn hint(&self) -> Option<&'static str> {
        if self.text.starts_with(OLD_JSON) {
            return Some("Use ClickHouse 25.3 or newer.");
        }
        Some(match self.code {
            60 | 81 | 218 => {
                "Tables are looked for, and made where that is allowed, when the service starts \
                 again; then its rows are compared with Postgres."
            }
            16 => {
                "Add the column to the table; the service starts again with the columns it finds."
            }
            164 => "The user must not be `readonly`: INSERT and settings have to be allowed.",
            192..=194 | 516 => "Check the user and the password of the ClickHouse URL.",
            291 | 497 => {
                "Run as an administrator: GRANT SELECT, INSERT, CREATE TABLE ON <database>.*"
            }
            452 => "Lift the constraint on this setting for the user (`SHOW SETTINGS PROFILES`).",
            UNKNOWN_SETTING => "Use ClickHouse 24.8 or newer.",
            241 => {
                "Less is sent at a time meanwhile. Raise `max_memory_usage` of the user, or give \
                 the server more memory."
            }
            158..=160 | 209 | 307 | 396 => {
                "Less is sent at a time meanwhile. See the limits of the user: SHOW SETTINGS \
                 PROFILES."
            }
            774 => "ALTER TABLE ... MODIFY SETTING table_readonly = 0.",
            243 => "Free disk space on the ClickHouse server.",
            242 => {
                "Look into `zookeeper_exception` of system.replicas, and into the server's log; \
                 SYSTEM RESTORE REPLICA if its metadata is lost."
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
}

/// What a code says about its cause.
pub fn classify(code: u32) -> Verdict {
    CODES.iter().find(|row| row.0 == code).map_or(Unknown, |row| row.2)
}

/// The codes that are told apart, with their names.
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
    // Of a view's table it would be another row.
    let (row, _) = violation(message).filter(|_| view_pushed_to(message).is_none())?;
    row.checked_sub(1)
}

/// The only column of ours that a violated constraint speaks of.
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

/// `...: while pushing to view d.v. (NAME)`, and before anything is written `Target table 'd.w' of
/// view 'd.v' doesn't exists`. A row may hold these words, and its data is quoted in front of the
/// server's own, with a quote or a bracket at its end or behind it: so none may follow.
fn view_pushed_to(message: &str) -> Option<String> {
    const OF_DATA: [char; 6] = ['\'', '"', '{', '}', '[', ']'];
    let rest = match message.rfind(PUSHING) {
        Some(at) => {
            let rest = message.get(at + PUSHING.len()..)?;
            if without_tail(rest).contains(OF_DATA) {
                return None;
            }
            rest.trim_start()
        }
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
mod tests {
    use super::*;

    fn read(answer: &str) -> Refusal {
        Refusal::read(answer, &["k", "j"]).expect("the answer is ClickHouse's")
    }

    // Each text below is what ClickHouse 26.9 answered, but for the last ones, which are 18.16's.

    #[test]
    fn refused_document_is_data_and_is_not_repeated() {
        let refusal = read(
            "Code: 117. DB::Exception: Cannot parse JSON object here: {\"data\":\"hunter2\": while \
             converting column \"j\" from type String to type JSON(max_dynamic_paths=8): While \
             executing Native. (INCORRECT_DATA) (version 26.9.2.1)",
        );
        assert_eq!(refusal.verdict(), Data);
        assert_eq!(
            refusal.to_string(),
            "code 117 (INCORRECT_DATA): Cannot parse JSON object, column `j`"
        );
    }

    #[test]
    fn column_is_named_only_when_it_is_one_of_ours() {
        let forged = "Code: 117. DB::Exception: Cannot parse JSON object here: while converting \
                      column \"hunter2\" from: (INCORRECT_DATA)";
        assert_eq!(read(forged).column, None);
    }

    #[test]
    fn values_of_rows_do_not_come_out_of_any_text() {
        for answer in [
            "Code: 376. DB::Exception: Cannot parse uuid hunter2: Cannot parse UUID from String: \
             while converting column \"k\" from type String to type UUID: (CANNOT_PARSE_UUID)",
            "Code: 691. DB::Exception: Unknown element 'hunter2' for enum: while converting column \
             \"k\" from type String to type Enum8('a' = 1): (UNKNOWN_ELEMENT_OF_ENUM)",
            "Code: 469. DB::Exception: Constraint `c` for table d.c (54657b44) is violated at row \
             1. Expression: (length(k) < 3). Column values: k = 'hunter2'. (VIOLATED_CONSTRAINT)",
            "Code: 62. DB::Exception: Syntax error: failed at position 1 (hunter2): (SYNTAX_ERROR)",
            "Code: 1001. DB::Exception: std::exception hunter2 (STD_EXCEPTION) (version 26.9.2.1)",
            "Code: 6. DB::Exception: Code: 6. DB::Exception: Cannot parse string 'hunter2' as \
             UInt8: syntax error at begin of string. (CANNOT_PARSE_TEXT) (version 26.9.2.1).",
        ] {
            let said = format!("{:?}", read(answer));
            assert!(!said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn exceptions_of_the_server_keep_their_words() {
        let refusal = read(
            "Code: 241. DB::Exception: Query memory limit exceeded: would use 59.59 KiB, maximum: \
             1000.00 B: While executing AggregatingTransform. (MEMORY_LIMIT_EXCEEDED) (version \
             26.9.2.1 (official build))",
        );
        assert_eq!(refusal.verdict(), Size);
        assert_eq!(
            refusal.to_string(),
            "code 241 (MEMORY_LIMIT_EXCEEDED): Query memory limit exceeded: would use 59.59 KiB, \
             maximum: 1000.00 B: While executing AggregatingTransform"
        );
        let refusal = read("Code: 60. DB::Exception: Table d.x does not exist. (UNKNOWN_TABLE)");
        assert_eq!((refusal.verdict(), refusal.text.as_str()), (Setup, "Table d.x does not exist"));
    }

    #[test]
    fn null_and_bad_numbers_are_data_but_wrong_types_are_setup() {
        assert_eq!(classify(349), Data);
        assert_eq!(classify(72), Data);
        assert_eq!(classify(43), Setup);
        assert_eq!(classify(53), Setup);
        assert_eq!(classify(252), Busy);
        assert_eq!(classify(4_000_000), Unknown);
        let refusal = read(
            "Code: 117. DB::Exception: Unknown column with name zz found while reading data in \
             Native format: While executing Native. (INCORRECT_DATA)",
        );
        assert_eq!(refusal.verdict(), Setup);
        let refusal = read(
            "Code: 117. DB::Exception: Invalid version for Object structure serialization.: While \
             executing Native. (INCORRECT_DATA) (version 24.8.4.1)",
        );
        assert_eq!(refusal.verdict(), Setup);
        // The same words inside of a document change nothing.
        let refusal = read(
            "Code: 117. DB::Exception: Cannot parse JSON object here: Unknown column with name: \
             (INCORRECT_DATA)",
        );
        assert_eq!(refusal.verdict(), Data);
    }

    #[test]
    fn a_quorum_that_is_not_reached_is_neither_data_nor_the_fault_of_the_host() {
        let refusal = read(
            "Code: 285. DB::Exception: Number of alive replicas (1) is less than requested quorum \
             (2/2). (TOO_FEW_LIVE_REPLICAS) (version 26.9.2.1)",
        );
        assert!(refusal.verdict() == Busy && !refusal.is_of_host() && refusal.hint().is_some());
        for code in [286, 289, 319] {
            let refusal = read(&format!("Code: {code}. DB::Exception: x"));
            assert!(refusal.verdict() == Busy && !refusal.is_of_host(), "{code}");
        }
        let refusal = read(
            "Code: 242. DB::Exception: Table is in readonly mode: replica_path=/t/replicas/a. \
             (TABLE_IS_READ_ONLY) (version 26.9.2.1)",
        );
        assert!(refusal.verdict() == Busy && refusal.is_of_host());
    }

    #[test]
    fn a_violated_constraint_names_its_row_and_its_only_column() {
        let said = |expression: &str, values: &str| {
            read(&format!(
                "Code: 469. DB::Exception: Constraint `c` for table d.t (54657b44) is violated at \
                 row 3. Expression: ({expression}). Column values: {values}. \
                 (VIOLATED_CONSTRAINT) (version 26.9.2.1 (official build))"
            ))
        };
        let refusal = said("position(toJSONString(j), 'poison') = 0", "j = 'hunter2 k'");
        assert_eq!((refusal.row, refusal.column.as_deref()), (Some(2), Some("j")));
        assert!(!format!("{refusal:?}").contains("hunter2"), "{refusal:?}");
        let refusal = said("(k != 'bad') AND notEmpty(j)", "k = 'bad', j = ''");
        assert_eq!((refusal.row, refusal.column), (Some(2), None));
        assert_eq!(said("0", ".").column, None);
        // A value that looks like it.
        let forged = "Code: 117. DB::Exception: Cannot parse JSON object here: Constraint `c` is \
                      violated at row 9. Expression: (k). Column values: ";
        assert_eq!((read(forged).row, read(forged).column), (None, None));
    }

    #[test]
    fn what_a_view_throws_is_about_the_view() {
        let pushing = |code: u32, text: &str| {
            read(&format!("Code: {code}. DB::Exception: {text}: while pushing to view d.v. (X)"))
        };
        for code in [6, 43, 60, 117, 153, 395, 469, 4_000_000] {
            let refusal = pushing(code, "no: hunter2");
            assert_eq!((refusal.verdict(), refusal.view.as_deref()), (View, Some("d.v")), "{code}");
            assert_eq!(refusal.row, None);
            assert!(!format!("{refusal:?}").contains("hunter2"), "{refusal:?}");
        }
        // The server at this moment, wherever it notices.
        assert_eq!(pushing(241, "memory").verdict(), Size);
        assert_eq!(pushing(252, "Too many parts").verdict(), Busy);
        let refusal = read(
            "Code: 60. DB::Exception: Target table 'd.w' of view 'd.v' doesn't exists. \
             (UNKNOWN_TABLE)",
        );
        assert_eq!((refusal.verdict(), refusal.view.as_deref()), (View, Some("d.v")));
        assert_eq!(read("Code: 395. DB::Exception: no. (X)").verdict(), Unknown);
    }

    #[test]
    fn a_type_that_does_not_fit_may_be_of_one_value() {
        let refusal = read(
            "Code: 43. DB::Exception: Illegal type Int64 of argument of function upper: while \
             executing 'FUNCTION upper(j.a : 1) -> upper(j.a) Nullable(String) : 3'. \
             (ILLEGAL_TYPE_OF_ARGUMENT) (version 26.9.2.1 (official build))",
        );
        assert!(refusal.verdict() == Unknown && !refusal.is_of_tables());
        let refusal = read(
            "Code: 53. DB::Exception: Unsupported types to CAST AS Map. Left type: String, right \
             type: Map(String, String): while converting column \"j\" from type String to type \
             Map(String, String): While executing Native. (TYPE_MISMATCH)",
        );
        assert!(refusal.verdict() == Setup && refusal.is_of_tables());
    }

    #[test]
    fn a_row_that_speaks_of_views_is_not_refused_by_one() {
        for text in [
            "Cannot parse JSON object here: {\"a\":\"\\ud800 while pushing to view d.v\"}: while \
             converting column \"j\" from type String to type JSON: While executing Native",
            // Cut off by the server, or no document at all.
            "Cannot parse JSON object here: while pushing to view d.v... (JSON object is too long \
             to display as a whole): while converting column \"j\" from type String to type JSON",
            "Cannot parse string 'while pushing to view d.v' as UInt64: syntax error at begin",
            "Constraint `c` for table d.t (54657b44) is violated at row 1. Expression: (k = ''). \
             Column values: k = 'while pushing to view d.v'",
        ] {
            let refusal =
                read(&format!("Code: 117. DB::Exception: {text}. (X) (version 26.9.2.1)"));
            assert_eq!((refusal.verdict(), refusal.view), (Data, None), "{text}");
        }
        // Views behind views, of any name.
        let refusal = read(
            "Code: 469. DB::Exception: Constraint `c` for table d.x is violated at row 1. \
             Expression: (n > 1). Column values: n = 'while': while pushing to view d.v2: while \
             pushing to view d.`v w`. (VIOLATED_CONSTRAINT) (version 26.9.2.1 (official build))",
        );
        assert_eq!(refusal.verdict(), View);
    }

    #[test]
    fn a_limit_of_one_insert_is_of_its_size() {
        let too_many = |what: &str| read(&format!("Code: 252. DB::Exception: Too many {what}"));
        assert_eq!(too_many("partitions for single INSERT block (more than 100)").verdict(), Size);
        assert_eq!(too_many("parts (300)").verdict(), Busy);
        for code in [158, 159, 160, 209, 307, 396] {
            assert_eq!(classify(code), Size, "{code}");
        }
    }

    #[test]
    fn unknown_setting_is_named_in_all_three_wordings() {
        for answer in [
            "Code: 115. DB::Exception: Unknown setting 'enable_json_type': Maybe you meant \
             ['enable_x']. (UNKNOWN_SETTING) (version 26.9.2.1)",
            "Code: 115. DB::Exception: Setting enable_json_type is neither a builtin setting nor \
             started with the prefix 'SQL_' registered for user-defined settings.",
            "Code: 115, e.displayText() = DB::Exception: Unknown setting enable_json_type, \
             e.what() = DB::Exception",
        ] {
            assert_eq!(read(answer).unknown_setting.as_deref(), Some("enable_json_type"));
        }
    }

    #[test]
    fn old_and_bare_answers_are_read() {
        let refusal = read(
            "Code: 60, e.displayText() = DB::Exception: Table d.x doesn't exist., e.what() = \
             DB::Exception",
        );
        assert_eq!(refusal.to_string(), "code 60 (UNKNOWN_TABLE): Table d.x doesn't exist");
        // What is left when the body of the answer was lost.
        assert_eq!(read("Code: 241").code, 241);
        let refusal = read("Code: 4321. DB::NetException: x (NEW_THING) (version 27.1)");
        assert_eq!((refusal.name.as_str(), refusal.text.as_str()), ("NEW_THING", ""));
    }

    #[test]
    fn what_is_not_clickhouse_is_no_refusal() {
        for answer in ["502 Bad Gateway", "<html>Code: 1</html>", "", "Code: ", "Code: x", "Code"] {
            assert_eq!(Refusal::read(answer, &[]), None, "{answer}");
        }
        assert_eq!(Refusal::read("Code: 99999999999999999999. DB::Exception: x", &[]), None);
    }

    #[test]
    fn codes_are_listed_once_and_in_order() {
        assert!(CODES.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_us(text in ".*", tail in ".*") {
            let _ = Refusal::read(&text, &["k"]);
            let _ = Refusal::read(&format!("Code: 115. DB::Exception: {text} ({tail}"), &["k"]);
        }
    }
}
