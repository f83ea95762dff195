//! How far a repair has come, as it is recorded: in words that an operator can read.

use std::fmt;
use std::str::FromStr;

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    Read(Vec<PartDone>),
    /// All up to this place.
    Prune(Option<Pruned>),
}

/// So many blocks of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartDone {
    pub oid: u32,
    pub filenode: u32,
    pub blocks: u32,
}

/// The last partition that is done as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Index of the target table.
    pub target: usize,
    pub partition_id: String,
}

impl Position {
    pub fn start() -> Position {
        Position::Read(Vec::new())
    }

    /// The pass's name.
    pub fn pass(&self) -> &'static str {
        match self {
            Position::Read(_) => "read",
            Position::Prune(_) => "prune",
        }
    }
}

/// `read oid:filenode:blocks ...`, or `prune` with `target:partition`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.pass())?;
        match self {
            Position::Read(parts) => {
                parts.iter().try_for_each(|PartDone { oid, filenode, blocks }| {
                    write!(f, " {oid}:{filenode}:{blocks}")
                })
            }
            Position::Prune(None) => Ok(()),
            Position::Prune(Some(Pruned { target, partition_id })) => {
                write!(f, " {target}:{partition_id}")
            }
        }
    }
}

/// The text is none of ours.
#[derive(Debug, PartialEq, Eq)]
pub struct PositionError;

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Position, PositionError> {
        let (pass, rest) = text.split_once(' ').unwrap_or((text, ""));
        match pass {
            "read" => {
                let part = |text: &str| {
                    let mut numbers = text.split(':').map(|number| number.parse().ok());
                    let (oid, filenode, blocks) =
                        (numbers.next()??, numbers.next()??, numbers.next()??);
                    numbers.next().is_none().then_some(PartDone { oid, filenode, blocks })
                };
                let parts = rest.split_whitespace().map(part).collect::<Option<_>>();
                parts.map(Position::Read).ok_or(PositionError)
            }
            "prune" if rest.is_empty() => Ok(Position::Prune(None)),
            "prune" => {
                let (target, partition_id) = rest.split_once(':').ok_or(PositionError)?;
                let target = target.parse().map_err(|_| PositionError)?;
                Ok(Position::Prune(Some(Pruned { target, partition_id: partition_id.to_owned() })))
            }
            _ => Err(PositionError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written() {
        let part = |oid| PartDone { oid, filenode: oid + 1, blocks: 7 };
        for (position, text) in [
            (Position::start(), "read"),
            (Position::Read(vec![part(1), part(4)]), "read 1:2:7 4:5:7"),
            (Position::Prune(None), "prune"),
            (
                Position::Prune(Some(Pruned { target: 1, partition_id: "202611".to_owned() })),
                "prune 1:202611",
            ),
        ] {
            assert_eq!(position.to_string(), text);
            assert_eq!(text.parse(), Ok(position));
        }
        for text in ["", "done", "read 1:2", "read 1:2:3:4", "read x:1:2", "prune 1", "prune a:b"] {
            assert_eq!(text.parse::<Position>(), Err(PositionError), "{text}");
        }
    }
}
