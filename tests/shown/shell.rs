//! A shell that is told one step after the other.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::compare::{is_of_log, missing};
use super::pages::Step;
use super::places::Places;
use super::support::reaper;
use super::support::wait::within;

/// Far longer than any step takes: mending what was just streamed may wait for 90 s.
const PATIENCE: Duration = Duration::from_secs(240);

/// However a test ends, nothing that was started in it is left: the shell's standard input ends
/// with the test process. Servers of `scripts/servers` say themselves how they are stopped.
const PRELUDE: &str = r#"
tidy_up() {
    kill $(jobs -p) 2>/dev/null
    wait
    eval "$(sed -n 's/^stop them with: //p' "$PRINTED")"
}
trap tidy_up EXIT
trap 'echo "<<failed: $BASH_COMMAND>>"' ERR
"#;
const FAILED: &str = "<<failed: ";

pub struct Shell {
    child: Child,
    printed: PathBuf,
    told: usize,
    pub places: Places,
}

impl Shell {
    /// In the root of the repository, unless `folder` is named.
    pub fn start(places: Places, folder: Option<&Path>) -> Shell {
        let printed = reaper::new_dir("shell").join("printed");
        let out = File::create(&printed).expect("the folder takes a file");
        let binaries = Path::new(env!("CARGO_BIN_EXE_walhouse")).parent().expect("a folder");
        let path = std::env::var("PATH").expect("there is a PATH");
        let child = Command::new("bash")
            .current_dir(folder.unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR"))))
            .env("PATH", format!("{}:{path}", binaries.display()))
            .env("PRINTED", &printed)
            .env("TMPDIR", printed.parent().expect("a folder"))
            .stdin(Stdio::piped())
            .stderr(out.try_clone().expect("it is a file"))
            .stdout(out)
            .spawn()
            .expect("bash starts");
        reaper::end_with_us(child.id(), "TERM");
        let mut shell = Shell { child, printed, told: 0, places };
        shell.say(PRELUDE);
        shell
    }

    fn say(&mut self, commands: &str) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        stdin.write_all(commands.as_bytes()).expect("the shell lives");
    }

    /// What no page tells: to make the stage ready for it.
    #[track_caller]
    pub fn prepare(&mut self, commands: &str) {
        self.play(&Step { commands: commands.to_owned(), shown: Vec::new() });
    }

    /// Every command has to succeed (a page says `|| echo ...` where one does not), and to print
    /// what is shown.
    #[track_caller]
    pub fn play(&mut self, step: &Step) {
        let before = self.printed().len();
        let commands = self.places.filled_in(&step.commands);
        let shown: Vec<String> = step.shown.iter().map(|l| self.places.filled_in(l)).collect();
        self.told += 1;
        let end = format!("<<end of step {}>>\n", self.told);
        // Commands are not to read those that follow.
        self.say(&format!("{{\n{commands}\n}} </dev/null\nprintf %s '{end}'\n"));
        let mut said = String::new();
        let is_done = within(PATIENCE, || {
            said = self.printed().split_off(before);
            let has_ended = said.contains(&end);
            let has_failed = said.contains(FAILED);
            said = said.replacen(&end, "", 1);
            let missing = missing(&said, &shown);
            // What was started in the background goes on logging.
            let is_to_come = missing.is_some_and(is_of_log);
            (has_ended && (has_failed || !is_to_come)).then_some(!has_failed)
        });
        let missing = missing(&said, &shown);
        println!("$ {commands}\n{said}");
        assert!(
            is_done == Some(true) && missing.is_none(),
            "this is told:\n{commands}\nnot printed: {missing:?}; printed:\n{said}"
        );
    }

    fn printed(&self) -> String {
        fs::read_to_string(&self.printed).expect("it is there")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
