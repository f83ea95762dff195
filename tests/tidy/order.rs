//! The files of a room have an order, as the rooms have: none uses, through others, one that uses
//! it. So each can be read after those that it stands on. A file and the folder of its name are
//! one, and their inside is looked at by itself.

use std::collections::{BTreeMap, BTreeSet};

use super::{Source, assert_none, is_word, src};

/// Names of modules from the root of the crate.
type Module = Vec<String>;
/// For each module of a folder: those of the same folder that it uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

fn module_of(path: &str) -> Module {
    let below = path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs"));
    let mut module: Module =
        below.expect("a source lies in src").split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|name| matches!(name.as_str(), "mod" | "lib" | "main")) {
        module.pop();
    }
    module
}

/// All paths that begin at the root of the crate or with `super`, groups taken apart.
fn paths(code: &str, module: &[String]) -> Vec<Module> {
    let mut found = Vec::new();
    let starts =
        ["crate::", "super::"].map(|start| code.match_indices(start)).into_iter().flatten();
    for (at, start) in starts {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| is_word(c) || c == ':') {
            continue;
        }
        let (mut base, mut rest) = match start {
            "crate::" => (Vec::new(), &code[at + start.len()..]),
            _ => (module[..module.len().saturating_sub(1)].to_vec(), &code[at + start.len()..]),
        };
        while let Some(further) = rest.strip_prefix("super::") {
            base.pop();
            rest = further;
        }
        take(rest, base, &mut found);
    }
    found
}

/// Reads one path, or a group of them, and gives back what follows.
fn take<'c>(mut rest: &'c str, mut base: Module, found: &mut Vec<Module>) -> &'c str {
    loop {
        if let Some(group) = rest.strip_prefix('{') {
            rest = group.trim_start();
            while !rest.starts_with('}') && !rest.is_empty() {
                let after = take(rest, base.clone(), found);
                rest = after.trim_start().trim_start_matches(',').trim_start();
                if after.len() == rest.len() && !rest.starts_with('}') {
                    // Renamed, or nothing that this reads.
                    let next = rest.find([',', '}']).unwrap_or(rest.len());
                    rest = rest[next..].trim_start_matches(',').trim_start();
                }
            }
            return rest.strip_prefix('}').unwrap_or(rest);
        }
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if 0 < end {
            base.push(rest[..end].to_owned());
        }
        rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(further) if 0 < end => rest = further,
            _ => {
                found.push(base);
                return rest;
            }
        }
    }
}

/// What a folder's `mod.rs` hands on under its own name: the name, and the module it is from.
fn handed_on(source: &Source) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for line in source.text.lines().filter_map(|line| line.strip_prefix("pub use ")) {
        let mut found = Vec::new();
        take(line, Vec::new(), &mut found);
        for path in found.iter().filter(|path| path.len() == 2) {
            names.insert(path[1].clone(), path[0].clone());
        }
    }
    names
}

/// By folder: which of its modules use which.
fn uses(sources: &[Source]) -> BTreeMap<Module, Uses> {
    let modules: BTreeSet<Module> = sources.iter().map(|source| module_of(&source.path)).collect();
    let handed: BTreeMap<Module, _> = sources
        .iter()
        .filter(|source| source.path.ends_with("/mod.rs"))
        .map(|source| (module_of(&source.path), handed_on(source)))
        .collect();
    let mut all: BTreeMap<Module, Uses> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let module = module_of(&source.path);
        let code: Vec<&str> = source.code().map(|(_, line)| line).collect();
        for mut path in paths(&code.join("\n"), &module) {
            let folder = path[..path.len().saturating_sub(1)].to_vec();
            let own = handed.get(&folder).and_then(|names| names.get(path.last()?));
            if let Some(own) = own {
                path = folder;
                path.push(own.clone());
            }
            let common = path.iter().zip(&module).take_while(|(a, b)| a == b).count();
            // What it shares with itself, or with the room around it, is no order.
            let (Some(user), Some(used)) = (module.get(common), path.get(common)) else { continue };
            let used_module = path[..=common].to_vec();
            if 0 < common && modules.contains(&used_module) {
                let uses = all.entry(path[..common].to_vec()).or_default();
                uses.entry(user.clone()).or_default().insert(used.clone());
            }
        }
    }
    all
}

/// A way from `from` back to itself, if there is one.
fn circle(uses: &Uses, from: &str) -> Option<Vec<String>> {
    let (mut ways, mut seen) = (vec![vec![from.to_owned()]], BTreeSet::new());
    while let Some(way) = ways.pop() {
        let last = way.last().expect("a way begins somewhere");
        for next in uses.get(last).into_iter().flatten() {
            let longer: Vec<String> = way.iter().chain([next]).cloned().collect();
            if next == from {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                ways.push(longer);
            }
        }
    }
    None
}

#[test]
fn files_of_a_room_have_an_order() {
    let mut found = BTreeMap::new();
    for (folder, uses) in uses(&src()) {
        for name in uses.keys() {
            if let Some(way) = circle(&uses, name) {
                let mut members = way.clone();
                members.sort();
                members.dedup();
                let text = format!("{}: {}", folder.join("::"), way.join(" -> "));
                found.entry((folder.clone(), members)).or_insert(text);
            }
        }
    }
    let found: Vec<String> = found.into_values().collect();
    assert_none("move what both need into a file below them", &found);
}

#[test]
fn circles_are_seen() {
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let of = |files: &[Source]| {
        let uses = uses(files).remove(&vec!["room".to_owned()]).unwrap_or_default();
        circle(&uses, "a").map(|way| way.join(" "))
    };
    let root = "pub mod a;\npub mod b;\npub mod c;\npub use c::{Thing, Other};\n";
    let files = |a: &str, b: &str, c: &str| {
        [
            source("src/room/mod.rs", root),
            source("src/room/a.rs", a),
            source("src/room/b/inner.rs", b),
            source("src/room/c.rs", c),
        ]
    };
    assert_eq!(of(&files("use super::c::X;\n", "use crate::room::a::{self, Y};\n", "")), None);
    let through_three = files(
        "use super::{c, nothing};\n",
        "use super::super::a::Y;\n",
        "fn f() { crate::room::b::inner::g() }\n",
    );
    // A folder counts from its own file on; here there is none, so `b` is `inner`.
    assert_eq!(of(&through_three), None);
    let with_folder: Vec<Source> =
        through_three.into_iter().chain([source("src/room/b.rs", "")]).collect();
    assert_eq!(of(&with_folder).as_deref(), Some("a c b a"));
    let handed_on = files("use super::c::X;\n", "", "use crate::room::{a::Z as Renamed, Thing};\n");
    assert_eq!(of(&handed_on).as_deref(), Some("a c a"));
    let in_tests = "use super::c::X;\n#[cfg(test)]\nmod tests {\n    use super::super::c;\n}\n";
    assert_eq!(of(&files(in_tests, "", "")), None);
}
