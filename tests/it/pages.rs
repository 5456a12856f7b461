//! The pages under docs/: each is a module of the documentation, and each link points to a file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Pages by name, with their text.
fn pages() -> Vec<(String, String)> {
    let entries = std::fs::read_dir(root().join("docs")).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let pages = files.filter(|path| path.extension().is_some_and(|ext| ext == "md"));
    let named = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    pages.map(|path| (named(&path), std::fs::read_to_string(&path).unwrap())).collect()
}

#[test]
fn every_page_is_a_module_and_defined_for_links() {
    let source = std::fs::read_to_string(root().join("src/docs.rs")).unwrap();
    let (links, modules) = source.split_once("pages! {").unwrap();
    let modules: BTreeSet<&str> =
        modules.split(['}', ' ', '\n']).filter(|w| !w.is_empty()).collect();
    let pages = pages();
    assert_eq!(modules, pages.iter().map(|(name, _)| name.as_str()).collect());
    for name in modules {
        assert!(links.contains(&format!("[{name}]: crate::docs::{name}\\n")), "{name}");
    }
}

#[test]
fn every_link_of_a_page_points_to_a_file() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let docs = root().join("docs");
    let mut checked = 0;
    for (name, text) in pages().into_iter().chain([("README".to_owned(), readme)]) {
        let dir = if name == "README" { root() } else { docs.clone() };
        let definitions: Vec<(&str, &str)> =
            text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: ")).collect();
        let inline =
            text.match_indices("](").map(|(at, _)| text[at + 2..].split(')').next().unwrap());
        for target in inline.chain(definitions.iter().map(|(_, target)| *target)) {
            assert!(dir.join(target).exists(), "{name}: no file {target}");
            checked += 1;
        }
        for (at, _) in text.match_indices("][") {
            let used = text[at + 2..].split(']').next().unwrap();
            assert!(
                definitions.iter().any(|(name, _)| *name == used),
                "{name}: [{used}] is no file"
            );
        }
    }
    assert!(checked > 20, "the pages aren't read: {checked}");
}
