use walhouse::machines::catalog::Catalog;
use walhouse::postgres::catalog::look;
use walhouse::postgres::source_table::TableName;

use super::server::database;
use super::{run, soon};

/// Goal: a look needs nothing that a build of Postgres may refuse, such as md5() under FIPS.
/// Method: functions are hidden by another name.
#[test]
fn a_look_needs_no_function_that_a_build_may_refuse() {
    let (_, mut sql) = database();
    run(&mut sql, "CREATE TABLE public.t (id text PRIMARY KEY, n int DEFAULT 1)");
    for function in ["md5(text)", "md5(bytea)", "sha256(bytea)"] {
        let (name, _) = function.split_once('(').unwrap();
        run(&mut sql, &format!("ALTER FUNCTION pg_catalog.{function} RENAME TO {name}_hidden"));
    }
    let mut look =
        || -> Catalog { look(&mut sql, "p", &TableName::new("public", "t"), soon()).unwrap() };
    let (first, second) = (look(), look());
    assert_eq!(first, second);
    let hashes: Vec<_> = first.tables[0].columns.iter().map(|column| &column.hash).collect();
    assert!(hashes.iter().all(|hash| hash.is_some()) && hashes[0] != hashes[1], "{hashes:?}");
}
