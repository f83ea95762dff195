//! What is built into walhouse: under which licences, from where, and nothing twice without a
//! reason. Asks Cargo, which needs no network for it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// What a binary under Apache-2.0 may contain.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// Crates that are there in two versions, each with who keeps the older one.
const TWICE: &[(&str, &str)] = &[
    ("const-oid", "der 0.7, by which tokio-postgres-rustls reads certificates"),
    ("getrandom", "ring 0.17"),
    ("syn", "macros of der, by the same"),
];

/// A second TLS stack or runtime, or a library of the system's.
const UNWANTED: &[&str] =
    &["async-std", "aws-lc-rs", "aws-lc-sys", "native-tls", "openssl", "openssl-sys", "smol"];

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn packages() -> Vec<Value> {
    let rustc = Command::new("rustc").arg("-vV").output().expect("rustc is on the PATH");
    let about = String::from_utf8(rustc.stdout).expect("it prints text");
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).expect("it has a host");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--locked", "--format-version", "1"])
        .args(["--filter-platform", host, "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    document["packages"].as_array().expect("it lists packages").clone()
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

/// Whether an SPDX expression leaves us a choice that is allowed.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let allowed = any_of(&words, &mut at);
    assert_eq!(at, words.len(), "`{expression}` is read to its end");
    allowed
}

fn any_of(words: &[&str], at: &mut usize) -> bool {
    let mut allowed = all_of(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        allowed |= all_of(words, at);
    }
    allowed
}

fn all_of(words: &[&str], at: &mut usize) -> bool {
    let mut allowed = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        allowed &= one(words, at);
    }
    allowed
}

fn one(words: &[&str], at: &mut usize) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let allowed = any_of(words, at);
        assert_eq!(words.get(*at), Some(&")"));
        *at += 1;
        return allowed;
    }
    let mut name = (*word).to_owned();
    if words.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    LICENCES.contains(&name.as_str())
}

#[test]
fn licences_are_read_as_they_are_meant() {
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT/Apache-2.0", true),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
        ("MIT OR GPL-3.0 AND Unicode-3.0", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("GPL-2.0 WITH Classpath-exception-2.0", false),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression), expected, "{expression}");
    }
}

#[test]
fn every_licence_is_allowed_and_every_crate_is_from_the_registry() {
    let packages = packages();
    assert!(100 < packages.len(), "the dependencies were found");
    let mut found = Vec::new();
    for package in &packages {
        let name = text(package, "name");
        if !is_allowed(text(package, "license")) {
            found.push(format!("{name}: licence `{}`", text(package, "license")));
        }
        if text(package, "source") != REGISTRY && name != "walhouse" {
            found.push(format!("{name}: from `{}`", text(package, "source")));
        }
        if UNWANTED.contains(&name) {
            found.push(format!("{name}: there is one of its kind already"));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn nothing_is_there_twice_without_a_reason() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let name = text(&package, "name").to_owned();
        versions.entry(name).or_default().insert(text(&package, "version").to_owned());
    }
    let twice: BTreeSet<&str> =
        versions.iter().filter(|(_, of)| 1 < of.len()).map(|(name, _)| name.as_str()).collect();
    let listed: BTreeSet<&str> = TWICE.iter().map(|(name, _)| *name).collect();
    let new: Vec<_> = twice.difference(&listed).map(|name| (name, &versions[*name])).collect();
    assert!(new.is_empty(), "raise a version, or give a reason in this test: {new:?}");
    let gone: Vec<_> = listed.difference(&twice).collect();
    assert!(gone.is_empty(), "no longer there twice: {gone:?}");
}
