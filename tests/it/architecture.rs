//! The order of modules: docs/architecture.md states it, and the sources follow it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Modules from the top down, as the page's table has them.
fn order() -> Vec<String> {
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let (_, section) = page.split_once("\n## Where things are\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').nth(1).unwrap());
    let quoted =
        |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    cells.flat_map(quoted).collect()
}

/// The library's sources, without its tests and without packages of their own.
fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_package = path.join("Cargo.toml").exists();
        if name == "tests" || name.ends_with("_tests") || is_package {
            continue;
        }
        match path.is_dir() {
            true => sources(&path, into),
            false => into.push(path),
        }
    }
}

/// A source's text without comments and without its own tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap().to_owned() + "\n").collect()
}

fn is_name(byte: char) -> bool {
    byte.is_alphanumeric() || byte == '_'
}

/// The names after each `crate::`: one name, or the first names of a list in braces.
fn names(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(is_name) {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.insert(rest.split(|c| !is_name(c)).next().unwrap().to_owned());
            continue;
        };
        let (mut depth, mut is_first, mut name) = (0, true, String::new());
        for next in list.chars() {
            match next {
                _ if is_name(next) && depth == 0 && is_first => name.push(next),
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    found.insert(std::mem::take(&mut name));
                    is_first = true;
                }
                _ if next.is_whitespace() => {}
                _ => is_first = false,
            }
        }
        found.insert(name);
    }
    found.remove("");
    found
}

/// The module of each name that the crate's root exports.
fn shown_at_the_root() -> BTreeMap<String, String> {
    let code = code(&root().join("src/lib.rs"));
    let mut shown = BTreeMap::new();
    for item in code.split("pub use ").skip(1) {
        let (path, list) = item.split(';').next().unwrap().split_once("::").unwrap();
        for name in list.split(|c| !is_name(c)).filter(|name| name.starts_with(char::is_uppercase))
        {
            shown.insert(name.to_owned(), path.to_owned());
        }
    }
    shown
}

#[test]
fn no_module_uses_one_of_a_layer_above_it() {
    let (src, order, shown) = (root().join("src"), order(), shown_at_the_root());
    let rank = |module: &str| order.iter().position(|listed| listed == module);
    let mut files = Vec::new();
    sources(&src, &mut files);
    let (mut upward, mut seen, mut edges) = (Vec::new(), BTreeSet::new(), 0);
    for file in files {
        let inside = file.strip_prefix(&src).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        let from = rank(module).unwrap_or_else(|| panic!("{module} isn't in the page's table"));
        seen.insert(module.to_owned());
        for name in names(&code(&file)) {
            let name = shown.get(&name).unwrap_or(&name);
            // `crate::Result` and the root's own macros belong to no module.
            let Some(to) = rank(name) else { continue };
            edges += 1;
            if to < from {
                upward.push(format!("{} uses {name}", inside.display()));
            }
        }
    }
    assert!(edges > 100, "the sources aren't read: {edges}");
    let missing: Vec<_> = order.iter().filter(|listed| !seen.contains(*listed)).collect();
    assert!(missing.is_empty(), "the page lists what isn't there: {missing:?}");
    assert!(upward.is_empty(), "upward: {upward:#?}");
}

/// A name that means two things makes a reader look up which. Not the spec's, which has words of its own for the same
/// things, nor those of an implementation for each seam (`sync`).
#[test]
fn a_type_s_name_means_one_thing() {
    let src = root().join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files {
        let inside = file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        if inside == "sync.rs" || inside == "testing/conformance/spec.rs" {
            continue;
        }
        for line in code(&file).lines() {
            let line = line.trim_start_matches("pub ");
            let line =
                line.strip_prefix("pub(").map_or(line, |rest| rest.split_once(") ").unwrap().1);
            let kinds = ["struct ", "enum ", "trait ", "type ", "union "];
            if let Some(rest) = kinds.iter().find_map(|kind| line.strip_prefix(kind)) {
                let name = rest.split(|c| !is_name(c)).next().unwrap();
                named.entry(name.to_owned()).or_default().push(inside.clone());
            }
        }
    }
    assert!(named.len() > 300, "the sources aren't read: {}", named.len());
    let twice: Vec<_> = named.iter().filter(|(_, files)| files.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:#?}");
}
