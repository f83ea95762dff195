//! The request of a backfill, in a text form that is recorded, and read again to resume it.

use std::fmt;
use std::str::FromStr;

use crate::wal::time::Timestamp;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackfillRequest {
    /// Created at this moment or later.
    pub from: Option<Moment>,
    /// Created before this moment.
    pub to: Option<Moment>,
    pub all_statuses: bool,
    /// Only ids of a list that must be given again each time.
    pub of_list: bool,
}

/// A moment of UTC, as Postgres reads it: `2026-01-02T03:04:05`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MomentError;

impl fmt::Display for MomentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a moment of UTC such as 2026-01-31 or 2026-01-31T23:59:59.5Z")
    }
}

impl std::error::Error for MomentError {}

impl FromStr for Moment {
    type Err = MomentError;

    fn from_str(text: &str) -> Result<Moment, MomentError> {
        let text = text.strip_suffix('Z').unwrap_or(text);
        let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00"));
        let is_plain = |text: &str, marks: &[char]| {
            text.chars().all(|c| c.is_ascii_digit() || marks.contains(&c))
        };
        let is_whole = date.len() == 10 && 8 <= time.len();
        let reads = Timestamp::from_text(format!("{date} {time}").as_bytes());
        match reads {
            Some(Timestamp::At(_))
                if is_whole && is_plain(date, &['-']) && is_plain(time, &[':', '.']) =>
            {
                Ok(Moment(format!("{date}T{time}")))
            }
            _ => Err(MomentError),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `from=... to=... all-statuses of-list`, each where it was asked for.
impl fmt::Display for BackfillRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.from.as_ref().map(|from| format!("from={from}")));
        words.extend(self.to.as_ref().map(|to| format!("to={to}")));
        words.extend(self.all_statuses.then(|| "all-statuses".to_owned()));
        words.extend(self.of_list.then(|| "of-list".to_owned()));
        f.write_str(&words.join(" "))
    }
}

/// The text is not one of ours.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestError;

impl FromStr for BackfillRequest {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<BackfillRequest, RequestError> {
        let mut request = BackfillRequest::default();
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some(("from", from)) => {
                    request.from = Some(from.parse().map_err(|_| RequestError)?)
                }
                Some(("to", to)) => request.to = Some(to.parse().map_err(|_| RequestError)?),
                None if word == "all-statuses" => request.all_statuses = true,
                None if word == "of-list" => request.of_list = true,
                _ => return Err(RequestError),
            }
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_date_or_a_date_with_a_time() {
        for (text, expected) in [
            ("2026-01-31", "2026-01-31T00:00:00"),
            ("2026-01-31T23:59:59Z", "2026-01-31T23:59:59"),
            ("2026-01-31 23:59:59.123", "2026-01-31T23:59:59.123"),
        ] {
            assert_eq!(
                text.parse::<Moment>().map(|moment| moment.to_string()),
                Ok(expected.into())
            );
        }
        for text in [
            "",
            "now",
            "infinity",
            "2026-13-01",
            "2026-1-1",
            "2026-01-31T25:00:00",
            "2026-01-31T23:59",
            "2026-01-31T23:59:59+02",
            "2026-01-31'; DROP",
            "2026-01-31T00:00:00 BC",
        ] {
            assert_eq!(text.parse::<Moment>(), Err(MomentError), "{text}");
        }
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let moment = |text: &str| text.parse::<Moment>().ok();
        for (from, to) in [(None, None), (moment("2026-01-01"), moment("2026-02-01T01:02:03"))] {
            for (all_statuses, of_list) in [(false, false), (true, true)] {
                let (from, to) = (from.clone(), to.clone());
                let request = BackfillRequest { from, to, all_statuses, of_list };
                assert_eq!(request.to_string().parse(), Ok(request));
            }
        }
        for text in ["from", "from=now", "until=2026-01-01", "all"] {
            assert_eq!(text.parse::<BackfillRequest>(), Err(RequestError), "{text}");
        }
    }
}
