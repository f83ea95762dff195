//! The program: hands the arguments to `walhouse::cli`, and its answer to the shell.

use std::process::ExitCode;

fn main() -> ExitCode {
    walhouse::cli::main(std::env::args_os())
}
