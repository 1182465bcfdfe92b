//! Rules about Rust files: each opens by saying what it is, belongs to a module tree, and holds nothing unfinished.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Findings;
use super::lexer::code_only;
use crate::workspace::Workspace;

/// What no code says, and what to write instead.
const BANNED: &[(&str, &str)] = &[
    ("todo!", "build it, or refuse it with an error that says so"),
    ("unimplemented!", "build it, or refuse it with an error that says so"),
    ("dbg!", "use tracing"),
    ("#[ignore", "a test runs or goes; a known gap is an entry with a reason in a list"),
    ("unbounded_channel", "every queue has a named limit"),
    ("mpsc::channel()", "every queue has a named limit: use sync_channel"),
    ("crossbeam_channel::unbounded", "every queue has a named limit"),
];

/// All findings about Rust files of the workspace.
pub(super) fn check(workspace: &Workspace) -> Result<Findings> {
    let mut findings = Findings::new();
    let packages = workspace.metadata()["packages"].as_array().context("cargo metadata has no packages")?;
    for package in packages.iter().filter(|package| package["source"].is_null()) {
        let manifest = PathBuf::from(package["manifest_path"].as_str().context("a package has no manifest")?);
        let directory = manifest.parent().context("a manifest has no directory")?;
        let mut reachable = BTreeSet::new();
        for target in package["targets"].as_array().context("a package has no targets")? {
            let root = PathBuf::from(target["src_path"].as_str().context("a target has no source")?);
            follow_modules(&root, true, &mut reachable)?;
        }
        for file in rust_files(directory)? {
            let shown = file.strip_prefix(workspace.root()).unwrap_or(&file).display().to_string();
            if !reachable.contains(&file) {
                findings.push(format!("{shown} is in no module tree: declare it with `mod` or remove it"));
            }
            findings.extend(check_text(&shown, &read(&file)?));
        }
    }
    Ok(findings)
}

fn check_text(shown: &str, text: &str) -> Findings {
    let mut findings = Findings::new();
    if !text.starts_with("//! ") {
        findings.push(format!("{shown} does not open with `//!`: say what it is, how and why"));
    }
    for (number, line) in code_only(text).lines().enumerate() {
        for (word, instead) in BANNED {
            if line.contains(word) {
                findings.push(format!("{shown}:{}: `{word}`: {instead}", number + 1));
            }
        }
    }
    findings
}

/// Notes `file` and all files of the modules it declares. `owns_directory`: lib.rs, main.rs, mod.rs, tests' roots.
fn follow_modules(file: &Path, owns_directory: bool, reachable: &mut BTreeSet<PathBuf>) -> Result<()> {
    if !reachable.insert(file.to_owned()) {
        return Ok(());
    }
    let parent = file.parent().context("a source file has no directory")?;
    let stem = file.file_stem().context("a source file has no name")?;
    let directory = if owns_directory { parent.to_owned() } else { parent.join(stem) };
    for module in declared_modules(&code_only(&read(file)?)) {
        let flat = directory.join(format!("{module}.rs"));
        let nested = directory.join(&module).join("mod.rs");
        if flat.exists() {
            follow_modules(&flat, false, reachable)?;
        } else if nested.exists() {
            follow_modules(&nested, true, reachable)?;
        }
        // Neither: the compiler says so.
    }
    Ok(())
}

/// `a` of `mod a;`, `pub mod a;` and `pub(crate) mod a;`.
fn declared_modules(code: &str) -> Vec<String> {
    let names = code.lines().filter_map(|line| {
        let (before, after) = line.split_once("mod ")?;
        let before = before.trim();
        let declares =
            before.is_empty() || before.ends_with("pub") || before.ends_with(')') || before.ends_with(']');
        let name = after.trim().strip_suffix(';')?.trim();
        (declares && name.chars().all(|character| character.is_alphanumeric() || character == '_'))
            .then(|| name.to_owned())
    });
    names.collect()
}

/// Rust files of a package, without those of packages inside it.
pub(super) fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries =
            std::fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() && !path.join("Cargo.toml").exists() && !path.ends_with("target") {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_code_is_found_and_texts_about_it_are_not() {
        let text = "//! Head.\nfn f() { todo!() }\n// todo!()\nconst S: &str = \"dbg!(x)\";\n";
        assert_eq!(check_text("a.rs", text).len(), 1);
        assert!(check_text("a.rs", text)[0].starts_with("a.rs:2: `todo!`"));
    }

    #[test]
    fn a_file_without_a_head_is_found() {
        assert_eq!(check_text("a.rs", "fn f() {}\n").len(), 1);
        assert_eq!(check_text("a.rs", "//! Does a thing.\n").len(), 0);
    }

    #[test]
    fn modules_are_followed() {
        let code =
            "mod a;\npub mod b;\npub(crate) mod c;\n#[cfg(test)] mod d;\nmod inline {\n}\nuse x::mod_y;\n";
        assert_eq!(declared_modules(code), ["a", "b", "c", "d"]);
    }
}
