//! The rules of the house that clippy cannot check.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)] // tests are the outside world

use std::path::{Path, PathBuf};

/// Floors, lowest first; ARCHITECTURE.md says what each holds.
const FLOORS: &[(usize, &[&str])] = &[
    (0, &["ids", "time", "limits", "error", "entry", "mark"]),
    (1, &["io", "proto", "metrics"]),
    (2, &["state", "raft"]),
    (3, &["scheduler", "controller"]),
    (4, &["worker", "vm"]),
    (5, &["shared", "client", "forward", "lane", "questions", "threads"]),
    (6, &["api", "http"]),
    (7, &["node"]),
    (8, &["cli", "os"]),
];
/// Neighbours on one floor that must not know each other.
const STRANGERS: &[(&str, &str)] = &[("state", "raft"), ("raft", "state")];
/// A file longer than this has a seam that was not found yet.
const LINES_MAX: usize = 1_000;

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().find(|(_, modules)| modules.contains(&module)).map(|(floor, _)| *floor)
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

/// The lines of a file that are code.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())).filter(|(_, line)| !line.starts_with("//"))
}

/// The modules that a line reaches by `crate::`.
fn reached(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("crate::").filter_map(|(at, word)| {
        let before = line[..at].chars().next_back();
        let rest = &line[at + word.len()..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        (!before.is_some_and(|c| c.is_alphanumeric() || c == '_')).then_some(&rest[..end])
    })
}

fn climbs(module: &str, text: &str) -> Vec<String> {
    let own = floor(module).unwrap_or_else(|| panic!("src/{module} is on no floor: add it to FLOORS"));
    let mut found = Vec::new();
    for (number, line) in code(text) {
        for other in reached(line).filter(|other| *other != module) {
            let Some(other_floor) = floor(other) else { continue };
            let strange = STRANGERS.contains(&(module, other));
            if other_floor > own || strange {
                found.push(format!("line {number}: {module} (floor {own}) reaches {other} (floor {other_floor})"));
            }
        }
    }
    found
}

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "sim", "tests"] {
        rust_files(&root.join(folder), &mut files);
    }
    files.sort();
    files
        .into_iter()
        .map(|path| (path.strip_prefix(root).unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()))
        .collect()
}

#[test]
fn no_module_reaches_above_its_floor() {
    let mut all = Vec::new();
    for (path, text) in sources() {
        let Ok(inner) = path.strip_prefix("src") else { continue };
        let first = inner.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if first != "lib" && first != "main" {
            all.extend(climbs(first, &text).into_iter().map(|climb| format!("{}: {climb}", path.display())));
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn a_climb_is_seen() {
    assert_eq!(climbs("raft", "use crate::node::Node;").len(), 1);
    assert_eq!(climbs("raft", "use crate::state::kv;").len(), 1, "strangers");
    assert_eq!(climbs("ids", "fn f() { crate::io::own() }").len(), 1, "a path without `use`");
    assert_eq!(climbs("node", "use crate::raft::log; // crate::cli").len(), 1, "comments at the end of a line count");
    assert!(climbs("node", "use crate::raft::log;\n// use crate::cli;").is_empty());
}

#[test]
fn every_select_is_biased() {
    for (path, text) in sources() {
        for (at, _) in text.match_indices(concat!("tokio::", "select! {")) {
            // In an example of the documentation, too.
            let first = text[at..].lines().nth(1).map(|line| line.trim().trim_start_matches("//!").trim());
            assert_eq!(first, Some("biased;"), "{}: a select without `biased;` is random", path.display());
        }
    }
}

#[test]
fn files_are_of_a_size_one_can_read() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines, at most {LINES_MAX}", path.display());
    }
    let main = sources().into_iter().find(|(path, _)| path == Path::new("src/main.rs")).unwrap().1;
    assert!(main.lines().count() < 40, "main.rs starts the command line and nothing else");
}

#[test]
fn nothing_is_switched_off_or_asleep() {
    let banned =
        [concat!("#[ign", "ore"), concat!("thread::", "sleep"), concat!("to", "do!("), concat!("unimple", "mented!(")];
    for (path, text) in sources() {
        for (number, line) in code(&text) {
            for word in banned {
                // What the kernel does to processes can only be polled for.
                if path.starts_with("src/os") && word == banned[1] {
                    continue;
                }
                assert!(!line.contains(word), "{}:{number}: {word}", path.display());
            }
        }
    }
}

/// The names in the file's `sometimes!`.
fn marks(text: &str) -> Vec<String> {
    let uses = text.match_indices("sometimes!(").map(|(at, word)| &text[at + word.len()..]);
    let name = |rest: &str| {
        let inside = &rest[..rest.find(");").unwrap()];
        inside.split('"').nth_back(1).unwrap().to_owned()
    };
    uses.map(name).collect()
}

#[test]
fn every_mark_is_listed_and_stands_in_one_place() {
    let mut found: Vec<String> = sources()
        .iter()
        .filter(|(path, _)| !path.ends_with("mark.rs") && !path.starts_with("tests"))
        .flat_map(|(_, text)| marks(text))
        .collect();
    found.sort();
    let list = sources().into_iter().find(|(path, _)| path == Path::new("sim/mark.rs")).unwrap().1;
    let list = &list[list.find("= &[").unwrap()..list.find("];").unwrap()];
    let listed: Vec<String> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    assert_eq!(found, listed, "sim/mark.rs lists the marks of the sources, sorted, each once");
    assert!(listed.len() >= 40);
}
