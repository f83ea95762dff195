//! What the binary says of itself: the manual, man pages, explanations. No server is needed.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

fn walhouse(arguments: &[&str], stdin: impl AsRef<[u8]>) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_walhouse"))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    child.stdin.take().expect("it is piped").write_all(stdin.as_ref()).expect("it is read");
    child.wait_with_output().expect("it ends")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("it is text")
}

#[test]
fn topics_commands_and_their_list_are_shown() {
    let list = walhouse(&["help"], "");
    assert!(list.status.success());
    let list = stdout(&list);
    assert!(list.contains("backfill") && list.contains("gaps-and-repair"), "{list}");
    for (name, part) in [
        ("failover", "FAILOVER OF POSTGRES"),
        ("teardown", "Usage: walhouse teardown"),
        ("variables", "RUN_REPLICATION_ENABLED"),
    ] {
        let shown = walhouse(&["help", name], "");
        assert!(shown.status.success(), "{name}");
        assert!(stdout(&shown).contains(part), "{name}: {}", stdout(&shown));
    }
    let unknown = walhouse(&["help", "failvoer"], "");
    assert_eq!(unknown.status.code(), Some(64));
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.contains("`failvoer`") && said.contains("  failover "), "{said}");
}

#[test]
fn a_pipe_gets_plain_text_and_a_man_page_its_section() {
    let shown = stdout(&walhouse(&["help", "verify"], ""));
    assert!(!shown.contains('\u{1b}'), "{shown}");
    let page = stdout(&walhouse(&["man", "verify"], ""));
    assert!(page.contains(".TH WALHOUSE-VERIFY 7"), "{page}");
    let page = stdout(&walhouse(&["man"], ""));
    assert!(page.contains("walhouse\\-verify(7)"), "{page}");
    assert_eq!(walhouse(&["man", "nothing"], "").status.code(), Some(64));
}

#[test]
fn a_terminal_is_paged_unless_the_pager_is_set_to_nothing() {
    let dir = concat!(env!("CARGO_TARGET_TMPDIR"), "/pager");
    std::fs::create_dir_all(dir).expect("there is a folder for files");
    let less = format!("{dir}/less");
    std::fs::write(&less, "#!/bin/sh\necho paged\n").expect("it is written");
    std::fs::set_permissions(&less, Permissions::from_mode(0o755)).expect("it is ours");
    let on_terminal = |settings: &str| {
        let binary = env!("CARGO_BIN_EXE_walhouse");
        let path = format!("PATH={dir}:/usr/bin:/bin");
        let line = format!("env -i {path} {settings} {binary} help verify");
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]);
        stdout(&script.stdin(Stdio::null()).output().expect("util-linux is there"))
    };
    assert_eq!(on_terminal("TERM=xterm").trim(), "paged");
    for pager in ["PAGER=", "PAGER=cat", "PAGER=/nowhere"] {
        let shown = on_terminal(pager);
        assert!(shown.contains("VERIFY") && !shown.contains("paged"), "{pager}: {shown}");
    }
}

#[test]
fn lines_of_a_log_are_explained() {
    let line = "runs: reconnecting in 0.1 s (attempt 1)";
    let explained = walhouse(&["explain", line], "");
    assert!(explained.status.success());
    assert!(stdout(&explained).contains("What to do: "), "{}", stdout(&explained));
    let log = format!(
        "2026-11-30T17:27:46.511Z WARN  coordinator/runs: {line}\n\
         2026-11-30T17:27:46.512Z INFO  lock_keeper/runs: runs: leader lock released\n"
    );
    let explained = walhouse(&["explain", "-"], &log);
    assert!(explained.status.success());
    assert_eq!(stdout(&explained).matches("What to do: ").count(), 1);
    // Other programs may write into the same log.
    let foreign = [log.as_bytes(), b"2026-11-30T17:27:46.513Z INFO main: \xff\n"].concat();
    assert_eq!(stdout(&walhouse(&["explain", "-"], foreign)), stdout(&explained));
    let unknown = walhouse(&["explain", "nobody ever said so"], "");
    assert_eq!(unknown.status.code(), Some(1));
}
