//! Long texts on a terminal, as git shows them: through `$PAGER`, else `less`.

use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};

/// Not paged, and 80 columns wide, if stdout is not a terminal.
pub fn columns() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let of_terminal = terminal_size::terminal_size_of(stdout).map(|(width, _)| width.0);
    Some(usize::from(of_terminal.unwrap_or(80)).max(20))
}

/// `less` ends by itself if all fits on the screen, passes the styles on and leaves the text there.
/// A `$PAGER` that is set to nothing is none.
const COMMAND: &str = "PAGER=${PAGER-less}; LESS=${LESS-FRX} exec ${PAGER:-cat}";

/// False if there is no pager: the caller prints the text.
pub fn show(text: &str) -> bool {
    let mut command = Command::new("sh");
    command.arg("-c").arg(COMMAND).stdin(Stdio::piped());
    let Ok(mut child) = command.spawn() else { return false };
    if let Some(mut stdin) = child.stdin.take() {
        // A reader who has seen enough closes it.
        let _ = stdin.write_all(text.as_bytes());
    }
    // 127 is the shell's: there is no such program.
    child.wait().is_ok_and(|status| status.code() != Some(127))
}
