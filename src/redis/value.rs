//! The value of the leader lock. A waiting instance reads from it where its holder shows that it is
//! alive; a lock whose value does not say so (trigger.dev's own replication, an older walhouse, a
//! holder without a session in Postgres) is never cleared.

const PREFIX: &str = "walhouse";

/// What our values say about their holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown<'a> {
    pub token: &'a str,
    /// The database in which to find its session.
    pub mark: &'a str,
}

pub(super) fn text(token: &str, acquires: u64, mark: Option<&str>) -> String {
    match mark {
        Some(mark) => format!("{PREFIX}:{token}:{acquires}:{mark}"),
        None => format!("{token}:{acquires}"),
    }
}

/// `None` for a holder that does not show itself.
pub fn shown(value: &str) -> Option<Shown<'_>> {
    let mut parts = value.splitn(4, ':');
    let (prefix, token) = (parts.next()?, parts.next()?);
    let (acquires, mark) = (parts.next()?, parts.next()?);
    let is_token = token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_ours = prefix == PREFIX && is_token && acquires.parse::<u64>().is_ok();
    (is_ours && !mark.is_empty()).then_some(Shown { token, mark })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn only_a_value_with_a_mark_shows_its_holder() {
        let marked = text(TOKEN, 3, Some("7500.1.16384"));
        assert_eq!(shown(&marked), Some(Shown { token: TOKEN, mark: "7500.1.16384" }));
        // An older walhouse and trigger.dev write 32 hexadecimal digits and nothing else.
        for other in [TOKEN, &text(TOKEN, 3, None), "walhouse", "walhouse check", "a:b:c:d", ""] {
            assert_eq!(shown(other), None, "{other}");
        }
        for broken in [&marked[..20], &format!("walhouse:{TOKEN}:3:"), "walhouse:x:3:7500.1.2"] {
            assert_eq!(shown(broken), None, "{broken}");
        }
    }
}
