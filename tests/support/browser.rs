//! A real headless Chromium, told what to do over a pipe: its protocol of messages in JSON, each
//! ended by a zero byte.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::reaper;
use super::wait::PATIENCE;

/// The browser reads from descriptor 3 and writes to 4.
const START: &str = r#"exec "$@" 3<&0 4>&1 0</dev/null 1>/dev/null 2>"$LOG""#;

pub struct Browser {
    process: Child,
    stdin: ChildStdin,
    messages: Receiver<Value>,
    last_id: u64,
    session: Option<String>,
    /// What the page has complained of: errors of its script, and what its policy forbids.
    complaints: Vec<String>,
    loads: usize,
}

/// How a page is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub width: u32,
    pub height: u32,
    pub is_phone: bool,
    pub is_dark: bool,
    pub has_scripts: bool,
}

impl Browser {
    pub fn start() -> Browser {
        let home = reaper::new_dir("browser");
        let mut process = Command::new("sh")
            .args(["-c", START, "sh", "chromium"])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"])
            .args(["--no-first-run", "--disable-dev-shm-usage", "--hide-scrollbars"])
            .args(["--disable-background-networking", "--disable-component-update"])
            .arg(format!("--user-data-dir={}", home.display()))
            .arg("about:blank")
            .env("HOME", &home)
            .env("LOG", home.join("log"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell is there");
        reaper::end_with_us(process.id(), "KILL");
        let stdin = process.stdin.take().unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, messages) = channel();
        thread::spawn(move || {
            loop {
                let mut message = Vec::new();
                match stdout.read_until(0, &mut message) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => message.pop(),
                };
                let message = serde_json::from_slice(&message).expect("it speaks JSON");
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Browser {
            process,
            stdin,
            messages,
            last_id: 0,
            session: None,
            complaints: Vec::new(),
            loads: 0,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    #[track_caller]
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.stdin.write_all(&bytes).expect("chromium is installed, and has not ended");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.next(deadline).unwrap_or_else(|| panic!("no answer to {method}"));
            if message["id"] == json!(id) {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
        }
    }

    /// The next message, after what it says was noted.
    fn next(&mut self, deadline: Instant) -> Option<Value> {
        let wait = deadline.saturating_duration_since(Instant::now());
        let message = match self.messages.recv_timeout(wait) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => return None,
            Err(RecvTimeoutError::Disconnected) => panic!("the browser has ended"),
        };
        let params = &message["params"];
        match message["method"].as_str() {
            Some("Page.loadEventFired") => self.loads += 1,
            Some("Runtime.exceptionThrown") => {
                self.complaints.push(params["exceptionDetails"].to_string());
            }
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                self.complaints.push(params["entry"].to_string());
            }
            _ => {}
        }
        Some(message)
    }

    /// Loads a page as `look` says, to its end.
    #[track_caller]
    pub fn open(&mut self, url: &str, look: Look) {
        let Look { width, height, is_phone, is_dark, has_scripts } = look;
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone,
        });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = if is_dark { "dark" } else { "light" };
        let media = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": media }));
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": !has_scripts }));
        let before = self.loads;
        let navigated = self.call("Page.navigate", json!({ "url": url }));
        assert!(navigated["errorText"].is_null(), "{navigated}");
        let deadline = Instant::now() + PATIENCE;
        while self.loads == before {
            self.next(deadline).unwrap_or_else(|| panic!("{url} does not load"));
        }
    }

    /// The value of an expression of JavaScript, which works even where the page's own does not.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// What a person sees, all of it.
    #[track_caller]
    pub fn text(&mut self) -> String {
        self.eval("document.body.innerText").as_str().expect("a body has text").to_owned()
    }

    /// What the page has complained of until now.
    pub fn complaints(&mut self) -> Vec<String> {
        // An answer comes after all that was there to be told.
        self.call("Page.getNavigationHistory", json!({}));
        std::mem::take(&mut self.complaints)
    }

    /// The whole page, as far as it scrolls.
    pub fn screenshot(&mut self, file: &Path) {
        let metrics = self.call("Page.getLayoutMetrics", json!({}));
        let size = &metrics["cssContentSize"];
        let params = json!({
            "captureBeyondViewport": true,
            "clip": {
                "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1,
            },
        });
        let shot = self.call("Page.captureScreenshot", params);
        let image = STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, image).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Closing tells its other processes too.
        let close = b"{\"id\":0,\"method\":\"Browser.close\"}\0";
        let _ = self.stdin.write_all(close);
        let ended =
            super::wait::within(Duration::from_secs(5), || self.process.try_wait().ok().flatten());
        if ended.is_none() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}
