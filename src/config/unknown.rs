//! Finds variables that look like walhouse's but are not: a typo must not go unnoticed.

use super::{SERVICES, variables};

/// Whether a name looks like a variable of a service, or of all of them.
fn looks_like_ours(name: &str) -> bool {
    name.starts_with("REPLICATION_") || SERVICES.iter().any(|service| service.name().owns(name))
}

/// One warning for each unknown name, in the order of the alphabet, with the name that was likely
/// meant. Values play no part.
pub(super) fn warnings(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let known: Vec<String> = variables::all().flat_map(|variable| variable.names()).collect();
    let mut unknown: Vec<String> = names
        .into_iter()
        .filter(|name| looks_like_ours(name))
        .filter(|name| variables::find(name).is_none())
        .collect();
    unknown.sort();
    unknown
        .iter()
        .filter_map(|name| {
            let nearest = known.iter().min_by_key(|other| distance(name, other))?;
            let name = name.escape_debug();
            Some(format!("`{name}` is unknown and has no effect; the nearest is `{nearest}`"))
        })
        .collect()
}

/// How many bytes to insert, delete or replace to make one of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let best = (diagonal + usize::from(x != y)).min(*cell + 1).min(left + 1);
            diagonal = *cell;
            *cell = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, expected) in
            [("", "", 0), ("", "ab", 2), ("ab", "", 2), ("kitten", "sitting", 3), ("a", "a", 0)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn a_typo_is_answered_with_the_nearest_name() {
        let names = [
            "RUN_REPLICATION_ENABLD",
            "REPLICATION_ENABLED",
            "PATH",
            "REPLICATION_BINARY",
            "WEBHOOK_DELIVERIES_REPLICATION_SLOT_NAM",
        ];
        assert_eq!(
            warnings(names.map(String::from)),
            [
                "`REPLICATION_ENABLED` is unknown and has no effect; the nearest is \
                 `RUN_REPLICATION_ENABLED`",
                "`RUN_REPLICATION_ENABLD` is unknown and has no effect; the nearest is \
                 `RUN_REPLICATION_ENABLED`",
                "`WEBHOOK_DELIVERIES_REPLICATION_SLOT_NAM` is unknown and has no effect; the \
                 nearest is `WEBHOOK_DELIVERIES_REPLICATION_SLOT_NAME`",
            ]
        );
    }
}
