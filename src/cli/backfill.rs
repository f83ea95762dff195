//! `walhouse backfill <service>`: copies rows of Postgres on demand.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use super::progress::Display;
use crate::config::ServiceConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::mending::backfiller::{self, Done, Ids};
use crate::mending::request::BackfillRequest;

/// Reports what was done, in a sentence for the operator.
pub(super) fn backfill(
    config: &ServiceConfig,
    request: BackfillRequest,
    ids: Option<&Path>,
    resume: bool,
) -> Result<String> {
    let ids = ids.map(open).transpose()?;
    let display = Display::new(&format!("backfill {}", config.name.as_str()));
    let show = |progress: crate::mending::command::CommandProgress<'_>| display.show(&progress);
    let done = backfiller::backfill(config, request, ids, resume, &show)?;
    drop(display);
    Ok(text(config.name.as_str(), &done))
}

/// `-` is stdin.
fn open(path: &Path) -> Result<Ids> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    let file = File::open(path).map_err(|cause| {
        Error::new(ErrorKind::Setup, format!("open `{}`", path.display())).because(cause)
    })?;
    Ok(Box::new(BufReader::new(file)))
}

fn text(service: &str, done: &Done) -> String {
    let Done { rows_read, rows_written, tombstones_written, ids } = done;
    let of_ids = if 0 < *ids { format!(" of {ids} ids") } else { String::new() };
    format!(
        "{service}: backfill done: {rows_read} rows read{of_ids}, {rows_written} written, the rest \
         were already there; {tombstones_written} deleted meanwhile\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_counts() {
        let done = Done { rows_read: 3, rows_written: 2, tombstones_written: 1, ids: 0 };
        assert_eq!(
            text("runs", &done),
            "runs: backfill done: 3 rows read, 2 written, the rest were already there; 1 deleted \
             meanwhile\n"
        );
        assert!(text("runs", &Done { ids: 4, ..done }).contains("3 rows read of 4 ids"));
    }

    #[test]
    fn a_list_that_is_not_there_is_named() {
        let error = open(Path::new("/nowhere/ids")).err().expect("it is not there").to_string();
        assert!(error.starts_with("open `/nowhere/ids`: "), "{error}");
    }
}
