//! The first use of README, word for word: its commands are run against real servers, and what they
//! print is what README shows. Numbers may differ, and `...` stands for anything.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Servers are installed by scripts/test before; they are only started here.
const PATIENCE: Duration = Duration::from_secs(120);

/// A block of commands, and what is shown below it.
struct Step {
    commands: String,
    shown: Vec<String>,
}

fn steps() -> Vec<Step> {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md is there");
    let (_, section) = readme.split_once("## First use").expect("README has the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut steps: Vec<Step> = Vec::new();
    for (at, block) in section.split("```").enumerate().filter(|(at, _)| at % 2 == 1) {
        let (language, text) = block.split_once('\n').expect("a block has lines");
        match (language, steps.last_mut()) {
            ("sh", _) => steps.push(Step { commands: text.to_owned(), shown: Vec::new() }),
            ("text", Some(step)) => step.shown = text.lines().map(str::to_owned).collect(),
            _ => panic!("block {at} is neither commands nor what they print"),
        }
    }
    assert!(4 <= steps.len(), "the steps were found");
    steps
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A shell that is told one step after the other.
struct Shell {
    child: Child,
    printed: PathBuf,
}

impl Shell {
    fn start(folder: &Path) -> Shell {
        let printed = folder.join("printed");
        let out = File::create(&printed).expect("the folder takes a file");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        let binaries = Path::new(env!("CARGO_BIN_EXE_walhouse")).parent().expect("a folder");
        let path = std::env::var("PATH").expect("there is a PATH");
        let child = Command::new("bash")
            .current_dir(root())
            .env("PATH", format!("{}:{path}", binaries.display()))
            .env("REPLICATION_HTTP_LISTEN", port.to_string())
            .env("TMPDIR", folder)
            .stdin(Stdio::piped())
            .stderr(out.try_clone().expect("it is a file"))
            .stdout(out)
            .spawn()
            .expect("bash starts");
        Shell { child, printed }
    }

    fn say(&mut self, commands: &str) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        stdin.write_all(commands.as_bytes()).expect("the shell lives");
    }

    fn printed(&self) -> String {
        fs::read_to_string(&self.printed).expect("it is there")
    }
}

/// However a test ends, no server is left.
impl Drop for Shell {
    fn drop(&mut self) {
        let printed = self.printed();
        let down = printed.lines().find_map(|line| line.strip_prefix("stop them with: "));
        let down = down.unwrap_or("true").to_owned();
        self.say(&format!("\nkill %1; wait\n{down}\nexit\n"));
        let _ = self.child.wait();
    }
}

/// Without what differs from run to run.
fn normal(line: &str) -> String {
    let mut out = String::new();
    for c in line.trim().chars() {
        match c {
            '0'..='9' if out.ends_with('0') => {}
            '0'..='9' => out.push('0'),
            c if c.is_whitespace() && out.ends_with(' ') => {}
            c if c.is_whitespace() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn is_shown(line: &str, shown: &str) -> bool {
    let line = normal(line);
    let mut rest = line.as_str();
    normal(shown).split("...").map(str::trim).all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// The line of `shown` that was not printed behind the one before it.
fn missing<'a>(printed: &str, shown: &'a [String]) -> Option<&'a str> {
    let mut lines = printed.lines();
    let told = shown.iter().filter(|line| line.trim() != "...");
    told.map(String::as_str).find(|told| !lines.any(|line| is_shown(line, told)))
}

#[test]
fn the_first_use_of_readme_goes_as_it_says() {
    let folder = std::env::temp_dir().join(format!("walhouse-first-use-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for what is printed");
    let mut shell = Shell::start(&folder);
    for step in steps() {
        // The binary of the tests is the one that was built.
        let commands = step.commands.replace("cargo build --release && ", "");
        let before = shell.printed().len();
        shell.say(&commands);
        let deadline = Instant::now() + PATIENCE;
        while let Some(line) = missing(&shell.printed()[before..], &step.shown) {
            assert!(
                Instant::now() < deadline,
                "README shows `{line}` after\n{commands}\nand this was printed:\n{}",
                &shell.printed()[before..]
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    drop(shell);
    fs::remove_dir_all(&folder).expect("nothing is left in it that is used");
}
