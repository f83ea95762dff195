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
}

/// Goal: what a row holds never makes its refusal one of all rows, or hints at the server.
#[test]
fn a_row_that_holds_the_servers_words_is_still_the_one_that_is_refused() {
    for words in [UNKNOWN_COLUMN, OLD_JSON] {
        // Behind words that are listed, and behind others.
        for own in ["Cannot parse JSON object here", "Cannot read this value"] {
            let refusal =
                read(&format!("Code: 117. DB::Exception: {own}: {words} x. (INCORRECT_DATA)"));
            assert_eq!((refusal.verdict(), refusal.hint()), (Data, None), "{own}: {words}");
        }
    }
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
    // A limit of the user: a row alone may be too much for the view.
    for code in [158, 241, 307] {
        let refusal = pushing(code, "Query memory limit exceeded: hunter2");
        assert_eq!((refusal.verdict(), refusal.view.as_deref()), (Size, Some("d.v")), "{code}");
    }
    // The server at this moment, wherever it notices.
    for text in TOTAL_MEMORY {
        let refusal = pushing(241, text);
        assert_eq!((refusal.verdict(), refusal.view), (Size, None), "{text}");
    }
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
        let refusal = read(&format!("Code: 117. DB::Exception: {text}. (X) (version 26.9.2.1)"));
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
