//! The page, in a real headless browser: `cargo test --test page`. It leaves pictures under
//! `target/screenshots`.

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use support::browser::{Browser, Look};
use support::sample;
use support::stage::Stage;
use support::wait::{PATIENCE, until, until_true};

use walhouse::health::{Attempts, Condition, Health};
use walhouse::metrics::{Metrics, ServerWal};
use walhouse::overview::history::SAMPLE_EVERY;
use walhouse::overview::{Repair, RetainedWal, ServiceState, Who};
use walhouse::threads::board::Board;
use walhouse::threads::http::HttpServer;
use walhouse::wal::{Lsn, PgTime};

const LIGHT: Look =
    Look { width: 1280, height: 900, is_phone: false, is_dark: false, has_scripts: true };
const DARK: Look = Look { is_dark: true, ..LIGHT };
const PHONE: Look = Look { width: 360, height: 740, is_phone: true, ..LIGHT };
const BARE: Look = Look { has_scripts: false, ..LIGHT };
const PHONE_BARE_DARK: Look = Look { has_scripts: false, is_dark: true, ..PHONE };
const LOOKS: [(&str, Look); 5] = [
    ("light", LIGHT),
    ("dark", DARK),
    ("phone", PHONE),
    ("no-script", BARE),
    ("phone-dark-no-script", PHONE_BARE_DARK),
];

fn screenshot(name: &str) -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_walhouse"));
    // target/debug/walhouse.
    let target = binary.ancestors().nth(2).expect("it lies in a folder of the target");
    target.join("screenshots").join(format!("{name}.png"))
}

/// Every pair of text and ground that is less than 4.5 to 1, by WCAG 2.
const LOW_CONTRAST: &str = r#"(() => {
    const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
            if (a === 1) return [r, g, b];
        }
        return [255, 255, 255];
    };
    const light = (color) => {
        const [r, g, b] = color.map((c) => c / 255)
            .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        if (!own || !element.checkVisibility() || element.closest("script,style")) continue;
        const text = light(parse(getComputedStyle(element).color).slice(0, 3));
        const back = light(ground(element));
        const ratio = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
        if (ratio < 4.5) found.push(element.className + ": " + ratio.toFixed(2));
    }
    return found;
})()"#;

/// What must hold of the page whatever it shows.
#[track_caller]
fn check(browser: &mut Browser, name: &str, look: Look) {
    let width = browser.eval("document.scrollingElement.scrollWidth").as_u64().unwrap();
    assert!(width <= u64::from(look.width), "{name}: {width} wide, scrolls to the side");
    for (what, expression, expected) in [
        ("landmarks", "document.querySelectorAll('body > header, main, footer').length", 3),
        ("one heading of the page", "document.querySelectorAll('h1').length", 1),
        ("graphs without a text", "document.querySelectorAll('svg:not([aria-label])').length", 0),
        (
            "graphs that are no image to a reader",
            "document.querySelectorAll('svg:not([role=img])').length",
            0,
        ),
        (
            "sections without a heading",
            "[...document.querySelectorAll('section')].filter(s => !s.querySelector('h2,h3')).length",
            0,
        ),
        (
            "ids that are there twice",
            "(() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
                return ids.length - new Set(ids).size; })()",
            0,
        ),
    ] {
        assert_eq!(browser.eval(expression), json!(expected), "{name}: {what}");
    }
    assert_eq!(browser.eval(LOW_CONTRAST), json!([]), "{name}: contrast");
    let scheme = browser.eval("matchMedia('(prefers-color-scheme: dark)').matches");
    assert_eq!(scheme, json!(look.is_dark), "{name}");
    // Without a script the browser is told to load the page again, and with one it is not.
    let reloads = browser.eval("document.querySelectorAll('meta[http-equiv=refresh]').length");
    assert_eq!(reloads, json!(u8::from(!look.has_scripts)), "{name}");
    assert_eq!(browser.complaints(), Vec::<String>::new(), "{name}");
}

fn ground(browser: &mut Browser) -> Value {
    browser.eval("getComputedStyle(document.body).backgroundColor")
}

/// Goal: a page of a running walhouse says the essentials in every look, and refreshes itself: the
/// positions move, without being loaded again, and it says so when nobody answers any more.
#[test]
fn the_page_of_a_running_walhouse_is_alive() {
    let stage = Stage::take();
    let mut program = stage.start();
    stage.postgres.insert("TaskRun", &sample::full_run("a"));
    stage.settle(&mut program, &["runs", "sessions"]);
    until_true("the server was looked at", PATIENCE, || {
        let status = program.status();
        ["runs", "sessions"]
            .iter()
            .all(|name| status["services"][name]["wal"]["server_lsn"].is_string())
    });
    let url = format!("http://{}/", program.http());
    let mut browser = Browser::start();
    for (name, look) in LOOKS {
        browser.open(&url, look);
        check(&mut browser, name, look);
        let text = browser.text();
        for words in [
            "walhouse",
            "healthy",
            "runs",
            "sessions",
            "streaming",
            "leader: this process",
            "Lag",
            "Rows into ClickHouse",
            "WAL kept by the slot",
            "Positions in the WAL",
            "Confirmed",
            "Recent changes",
            "the process has started",
            "Rows that ClickHouse refused",
            "Repair",
        ] {
            assert!(text.contains(words), "{name}: {words} in {text}");
        }
        browser.screenshot(&screenshot(&format!("running-{name}")));
    }

    browser.open(&url, LIGHT);
    // Gone after a load.
    browser.eval("window.sameDocument = true");
    let position = "document.getElementById('runs-flushed-lsn').textContent";
    let before = browser.eval(position);
    stage.postgres.insert("TaskRun", &sample::full_run("b"));
    stage.settle(&mut program, &["runs"]);
    until("the page shows the new position", PATIENCE, || {
        (browser.eval(position) != before).then_some(())
    });
    assert_eq!(browser.eval("window.sameDocument"), json!(true), "it was not loaded again");
    assert_eq!(browser.eval("document.querySelectorAll('main').length"), json!(1));
    assert_eq!(browser.complaints(), Vec::<String>::new());

    program.stop();
    until_true("the page says that nobody answers", PATIENCE, || {
        browser.eval("!document.getElementById('lost').hidden") == json!(true)
    });
    let text = browser.text();
    assert!(text.contains("No answer from walhouse since"), "{text}");
    assert!(text.contains("streaming"), "what was known stays: {text}");
    browser.screenshot(&screenshot("lost"));
}

const HOSTILE: &str = "<img src=x onerror=document.title='owned'> </main><script>document.title=\
                       'owned'</script> \u{202e}\u{1b}[31m \"quoted\" & 'so'";

/// A board with an hour behind it, and everything there is to show.
fn busy_board() -> Arc<Board> {
    let metrics = Arc::new(Metrics::new(&["runs", "sessions"]));
    let health = Arc::new(Health::new(Arc::clone(&metrics)));
    let slots = ["task_runs_to_clickhouse_v1", "sessions_to_clickhouse_v1"].map(str::to_owned);
    let board = Board::new(Arc::clone(&metrics), Arc::clone(&health), slots.to_vec());
    let runs = metrics.service("runs");
    let sessions = metrics.service("sessions");
    let (table, other) = (runs.table("task_runs_v2"), sessions.table("sessions_v1"));
    health.publish_leader("runs", Who::ThisProcess);
    health.publish("runs", Condition::because(ServiceState::Streaming, "the stream is open"));
    let samples = 720;
    let began = Instant::now() - SAMPLE_EVERY * samples;
    for n in 0..samples {
        let swing = (f64::from(n) / 40.0).sin() + 1.2;
        let storm = u64::from((400..430).contains(&n));
        table.rows_inserted.inc_by((swing * 900.0) as u64 * (1 - storm));
        other.rows_inserted.inc_by((swing * 12.0) as u64);
        runs.inserts.inc_by((swing * 1100.0) as u64);
        runs.received_bytes.inc_by((swing * 2_000_000.0) as u64);
        let waits = Duration::from_secs_f64(swing / 4.0 + 45.0 * storm as f64);
        runs.set_oldest_unflushed(Some(PgTime::of(SystemTime::now() - waits)));
        runs.unflushed_bytes.set((swing * 3e6) as u64 + storm * 50_000_000);
        for (service, scale) in [(&runs, 900), (&sessions, 7)] {
            let kept = u64::from(n) * scale * 100 + storm * 80_000_000;
            service.on_server_wal(ServerWal {
                lsn: Lsn(0x16_B000_0000 + u64::from(n) * 40_000),
                retained: RetainedWal {
                    bytes: Some((16 << 20) + kept),
                    left_bytes: Some((4 << 30) - kept),
                    limit_bytes: Some(4 << 30),
                    ..RetainedWal::default()
                },
            });
        }
        for service in [&runs, &sessions] {
            service.flushed.set(Lsn(0x16_B000_0000 + u64::from(n) * 40_000));
        }
        board.look(began + SAMPLE_EVERY * n);
    }
    runs.set_oldest_unflushed(Some(PgTime::of(SystemTime::now())));
    for service in [&runs, &sessions] {
        service.received.set(Lsn(0x16_B1B0_F000));
        service.flushed.set(Lsn(0x16_B1B0_E000));
        service.on_confirmed(Lsn(0x16_B1B0_0000));
    }
    table.refused_rows.inc_by(1234);
    runs.insert_outage.raise(format!("insert into `task_runs_v2`: {HOSTILE}"), Some(HOSTILE));
    health.report_error("runs", &format!("stream from slot: {HOSTILE}"), Some(HOSTILE));
    health.publish_repair(
        "runs",
        Some(Repair {
            reason: "gap: slot `task_runs_to_clickhouse_v1` is missing".to_owned(),
            pass: "read".to_owned(),
            fraction: Some(0.4217),
            seconds_left: Some(754),
            pieces_done: 3,
            pieces: 9,
            rows_read: 1_234_567,
            rows_written: 89,
            tombstones_written: 7,
            failed_attempts: 2,
            error: Some(HOSTILE.to_owned()),
        }),
    );
    for n in 0..12 {
        let states = [ServiceState::BackingOff, ServiceState::Starting, ServiceState::StandingBy];
        let condition = Condition {
            attempts: Some(Attempts { count: n, first: false, since: Instant::now() }),
            ..Condition::because(states[n as usize % 3], format!("connect to Postgres: try {n}"))
        };
        health.publish("sessions", condition);
    }
    let reason = format!("resume service `sessions`: {}", "gap ".repeat(40));
    let failed = Condition {
        hint: Some("Find out why, then start with REPLICATION_GAP_STRATEGY=repair.".to_owned()),
        ..Condition::because(ServiceState::Failed, reason)
    };
    health.publish("sessions", failed);
    Arc::new(board)
}

/// Goal: with an hour of history, long and hostile texts, everything is readable and nothing runs.
#[test]
fn a_page_full_of_trouble_is_readable_and_runs_nothing_of_it() {
    let server = HttpServer::start("127.0.0.1:0".parse().unwrap(), busy_board()).unwrap();
    let url = format!("http://{}/", server.local_addr());
    let mut browser = Browser::start();
    let mut grounds = Vec::new();
    for (name, look) in LOOKS {
        browser.open(&url, look);
        browser.eval("document.querySelectorAll('details').forEach(d => { d.open = true; })");
        check(&mut browser, name, look);
        let text = browser.text();
        for words in [
            "unhealthy",
            "ClickHouse accepts no rows",
            "<img src=x onerror=document.title='owned'>",
            "failed",
            "1,234",
            "Pass read: 42.2 %",
            "left, for ",
            "highest in the last hour",
        ] {
            assert!(text.contains(words), "{name}: {words} in {text}");
        }
        assert_eq!(browser.eval("document.querySelectorAll('img').length"), json!(0));
        let title = browser.eval("document.title");
        assert_eq!(title, json!("! walhouse: runs streaming, sessions failed"));
        let lines = browser.eval("document.querySelectorAll('svg .line').length");
        assert_eq!(lines, json!(8), "{name}: four graphs for each service");
        grounds.push((look.is_dark, ground(&mut browser)));
        browser.screenshot(&screenshot(&format!("trouble-{name}")));
    }
    let of = |dark: bool| {
        let mut found: Vec<&Value> =
            grounds.iter().filter(|(is_dark, _)| *is_dark == dark).map(|(_, g)| g).collect();
        found.dedup();
        found
    };
    assert_eq!((of(true).len(), of(false).len()), (1, 1), "{grounds:?}");
    assert_ne!(of(true), of(false), "dark is not light");

    // What a person has opened stays open over a refresh.
    browser.open(&url, LIGHT);
    browser.eval("document.getElementById('sessions-older').open = true");
    browser.eval("document.getElementById('live').dataset.old = 'yes'");
    let limit = Duration::from_secs(30);
    until_true("the page was refreshed", limit.max(PATIENCE), || {
        browser.eval("document.getElementById('live').dataset.old === undefined") == json!(true)
    });
    assert_eq!(browser.eval("document.getElementById('sessions-older').open"), json!(true));
    assert_eq!(browser.complaints(), Vec::<String>::new());

    // The checks find what they are for.
    browser.eval("document.querySelector('h1').style.color = 'rgb(230, 230, 230)'");
    let found = browser.eval(LOW_CONTRAST);
    assert_eq!(found.as_array().map(Vec::len), Some(1), "{found}");
    browser.eval(
        "document.body.append(Object.assign(document.createElement('script'), \
         { textContent: 'document.title = 1' }))",
    );
    assert_ne!(browser.complaints(), Vec::<String>::new(), "the policy forbids it");
    assert_ne!(browser.eval("document.title"), json!("1"));
}
