//! README and the manual, word for word: what they tell to type is run against real servers, and
//! what that prints is what they show.

mod compare;
mod pages;
mod places;
mod shell;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use walhouse::cli::manual::{TOPICS, find};

use self::places::{NOT_RUN, is_not_run};
use self::shell::Shell;
use self::support::stage::Stage;
use self::support::{free_port, reaper, sample};

#[test]
fn the_first_use_of_readme_goes_as_it_says() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md is there");
    let steps = pages::steps(pages::section(&readme, "First use"));
    assert!(4 <= steps.len(), "the steps were found");
    let port = free_port();
    // The binary of the tests is the one that was built.
    let places = places::of_all(port).with("cargo build --release && ", "");
    let mut shell = Shell::start(places, None);
    shell.prepare(&format!("export REPLICATION_HTTP_LISTEN=127.0.0.1:{port}"));
    for step in steps.iter().filter(|step| !is_not_run("README", &step.commands)) {
        shell.play(step);
    }
}

/// With its package unpacked where it would be installed.
#[test]
fn getting_started_goes_as_it_says() {
    let stage = stage_of_app();
    let package = package();
    let (deb, archive) = (name_in(&package, ".deb"), name_in(&package, ".tar.gz"));
    let installed = reaper::new_dir("installed");
    let port = free_port();
    let installed = installed.display();
    let places = places::of_manual(&stage, port)
        .with(
            &format!("dpkg -i walhouse_{VERSION}_amd64.deb"),
            format!("dpkg-deb -x {deb} {installed}"),
        )
        .with(&format!("walhouse-{VERSION}-x86_64-linux"), archive.trim_end_matches(".tar.gz"))
        .with("/etc/walhouse/", format!("{installed}/etc/walhouse/"))
        .with("/usr/share/walhouse/", format!("{installed}/usr/share/walhouse/"));
    let mut shell = Shell::start(places, Some(&package));
    shell.prepare(&format!(
        "export PATH={installed}/usr/bin:$PATH REPLICATION_HTTP_LISTEN=127.0.0.1:{port}"
    ));
    play_topic("getting-started", &mut shell);
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn name_in(folder: &Path, ending: &str) -> String {
    let names = fs::read_dir(folder).expect("it is there").flatten();
    let mut names = names.map(|entry| entry.file_name().into_string().expect("names are UTF-8"));
    names.find(|name| name.ends_with(ending)).expect("scripts/package makes one")
}

/// What `scripts/package` makes of the binary of the tests.
fn package() -> PathBuf {
    let out = reaper::new_dir("package");
    let output = Command::new(root().join("scripts/package"))
        .args(["--binary", env!("CARGO_BIN_EXE_walhouse"), "--out"])
        .arg(&out)
        // Small is not what matters here.
        .env("DPKG_DEB_COMPRESSOR_TYPE", "none")
        .output()
        .expect("bash is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

/// Each with both services streaming and some rows, in a shell with the environment of the service.
macro_rules! topics {
    ($($name:ident: $topic:literal;)*) => {
        $(#[test] fn $name() { play_with_running_services($topic); })*
        const RUNNING: &[&str] = &[$($topic),*];
    };
}

topics! {
    the_examples_of_guarantees_go_as_it_says: "guarantees";
    the_examples_of_tables_go_as_it_says: "tables";
    the_examples_of_backfill_go_as_it_says: "backfill";
    the_examples_of_verify_go_as_it_says: "verify";
    the_examples_of_operating_go_as_it_says: "operating";
    the_examples_of_monitoring_go_as_it_says: "monitoring";
}

/// A start is still to come.
macro_rules! topics_of_before {
    ($($name:ident: $topic:literal;)*) => {
        $(#[test] fn $name() { play_before_the_first_start($topic); })*
        const NOT_STARTED: &[&str] = &[$($topic),*];
    };
}

topics_of_before! {
    the_examples_of_requirements_go_as_it_says: "requirements";
    the_examples_of_roles_and_tls_go_as_it_says: "roles-and-tls";
}

/// The administrator and the database that the manual names.
fn stage_of_app() -> Stage {
    let stage = Stage::own();
    stage.postgres.execute("CREATE ROLE admin SUPERUSER LOGIN");
    stage.postgres.execute("CREATE DATABASE app TEMPLATE postgres");
    stage
}

fn play_before_the_first_start(topic: &str) {
    let stage = stage_of_app();
    let port = free_port();
    play_topic(topic, &mut shell_of_service(&stage, port));
}

fn play_with_running_services(topic: &str) {
    let stage = Stage::take();
    let port = free_port();
    for id in 0..20 {
        stage.postgres.insert("TaskRun", &sample::run(&format!("run_{id}")));
        stage.postgres.insert("Session", &sample::session(&format!("session_{id}")));
    }
    let mut shell = shell_of_service(&stage, port);
    shell.prepare(
        "walhouse 2>walhouse.log &
         until [ \"$(grep -c 'initial backfill: done' walhouse.log)\" = 2 ]; do sleep 0.1; done",
    );
    play_topic(topic, &mut shell);
}

/// With the environment of the service, which is not the test's own.
fn shell_of_service(stage: &Stage, port: u16) -> Shell {
    let folder = reaper::new_dir("session");
    let scripts = root().join("scripts");
    symlink(&scripts, folder.join("scripts")).expect("the folder is new");
    let alerts = scripts.join("monitoring/alerts.yml");
    let places =
        places::of_manual(stage, port).with("/usr/share/walhouse/alerts.yml", alerts.display());
    let mut shell = Shell::start(places, Some(&folder));
    let settings =
        stage.settings_of_defaults().with("REPLICATION_HTTP_LISTEN", format!("127.0.0.1:{port}"));
    // Comparisons wait for a confirmation or two.
    let settings = settings.with_both("*_REPLICATION_ACK_INTERVAL_SECONDS", 1);
    for (name, value) in settings.all() {
        shell.prepare(&format!("export {name}='{value}'"));
    }
    shell.prepare(&format!("export CLICKHOUSE_URL='{}'", stage.clickhouse.url()));
    shell
}

#[track_caller]
fn play_topic(topic: &str, shell: &mut Shell) {
    let page = find(topic).expect("it is a topic");
    let steps = pages::steps(page.text);
    for step in steps.iter().filter(|step| !is_not_run(topic, &step.commands)) {
        shell.play(step);
    }
}

#[test]
fn every_example_is_run_or_says_why_not() {
    for topic in TOPICS {
        let is_played = RUNNING.contains(&topic.name)
            || NOT_STARTED.contains(&topic.name)
            || topic.name == "getting-started";
        let mut steps = pages::steps(topic.text);
        steps.retain(|step| !is_not_run(topic.name, &step.commands));
        let has_examples = !steps.is_empty();
        assert_eq!(is_played, has_examples, "{}: a test above plays it", topic.name);
    }
    for (topic, line, why) in NOT_RUN {
        let text = match find(topic) {
            Some(topic) => topic.text.to_owned(),
            None => fs::read_to_string(root().join(format!("{topic}.md"))).expect("it is a page"),
        };
        let found = pages::steps(&text).iter().filter(|step| step.commands.contains(line)).count();
        assert_eq!(found, 1, "{topic}: blocks with `{line}`, which is not run: {why}");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
