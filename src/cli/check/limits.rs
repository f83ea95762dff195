//! What the operating system allows this process.

use crate::finding::Finding;

/// Each thread of a service has a connection of its own, and each connection a few descriptors.
const FILES_MIN: u64 = 256;

pub(super) fn look() -> Option<Finding> {
    judge(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

fn judge(limits: &str) -> Option<Finding> {
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    let soft = line.split_ascii_whitespace().nth(3)?;
    let is_low = soft.parse::<u64>().is_ok_and(|soft| soft < FILES_MIN);
    is_low.then(|| {
        Finding::warning(
            "open files",
            format!("this process may open {soft} files, connections included"),
            format!("Allow {FILES_MIN} or more: LimitNOFILE of the unit, or `ulimit -n`."),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_is_warned_about() {
        let of = |soft: &str| {
            judge(&format!(
                "Limit Soft Limit Hard Limit Units\nMax open files  {soft}  1048576  files\n"
            ))
        };
        assert!(of("32").is_some_and(|finding| finding.text.contains("32 files")));
        assert!(of("1024").is_none() && of("unlimited").is_none());
        assert!(judge("").is_none());
    }
}
