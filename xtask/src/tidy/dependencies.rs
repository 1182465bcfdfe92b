//! Rules about dependencies: the arrows between our crates, a reason for each foreign one, and none unused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Findings;
use crate::workspace::Workspace;

/// Which of our crates each may know. Daemons never know one another: they share `wire` and speak through `client`.
const ARROWS: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("consensus", &["wire"]),
    ("client", &["wire"]),
    ("auth", &["wire"]),
    ("scm", &["wire", "client", "consensus"]),
    ("meta", &["wire", "client", "consensus"]),
    ("datanode", &["wire", "client"]),
    ("gateway", &["wire", "client", "auth"]),
    ("admin", &["wire", "client", "auth"]),
    ("s3-client", &[]),
    (
        "cli",
        &["wire", "client", "consensus", "auth", "meta", "scm", "datanode", "gateway", "admin", "s3-client"],
    ),
    ("xtask", &["s3-client"]),
];

/// Only these open redb: the gateway and the operators' port own no data.
const REDB_USERS: &[&str] = &["consensus", "meta", "scm", "datanode"];

/// All findings about dependencies.
pub(super) fn check(workspace: &Workspace) -> Result<Findings> {
    let packages = packages(workspace)?;
    let ours: Vec<&Package> = packages.values().filter(|package| package.is_ours).collect();
    let mut findings = Findings::new();
    for package in &ours {
        findings.extend(arrows(package, &ours));
        findings.extend(unused(package, &packages)?);
    }
    let manifest = std::fs::read_to_string(workspace.path("Cargo.toml")).context("read the root manifest")?;
    let used: BTreeSet<&str> = ours
        .iter()
        .flat_map(|package| &package.dependencies)
        .map(|dependency| dependency.name.as_str())
        .collect();
    findings.extend(declarations(&manifest, &used));
    Ok(findings)
}

struct Package {
    name: String,
    is_ours: bool,
    directory: PathBuf,
    /// What code calls the library.
    library: String,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    rename: Option<String>,
}

fn packages(workspace: &Workspace) -> Result<BTreeMap<String, Package>> {
    let list = workspace.metadata()["packages"].as_array().context("cargo metadata has no packages")?;
    let mut packages = BTreeMap::new();
    for value in list {
        let package = package(value)?;
        // Of a package in several versions any will do: only the library's name is read of foreign ones.
        packages.insert(package.name.clone(), package);
    }
    Ok(packages)
}

fn package(value: &Value) -> Result<Package> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let name = text(&value["name"]).context("a package has no name")?;
    let manifest = text(&value["manifest_path"]).context("a package has no manifest")?;
    let targets = value["targets"].as_array().context("a package has no targets")?;
    let is_library = |target: &&Value| {
        target["kind"]
            .as_array()
            .is_some_and(|kinds| kinds.iter().any(|kind| kind != "bin" && kind != "test"))
    };
    let library = targets.iter().find(is_library).and_then(|target| text(&target["name"]));
    let listed = value["dependencies"].as_array().context("a package has no dependencies")?;
    let dependencies = listed
        .iter()
        .filter_map(|value| Some(Dependency { name: text(&value["name"])?, rename: text(&value["rename"]) }))
        .collect();
    Ok(Package {
        library: library.unwrap_or_else(|| name.clone()).replace('-', "_"),
        is_ours: value["source"].is_null(),
        directory: Path::new(&manifest).parent().context("a manifest has no directory")?.to_owned(),
        name,
        dependencies,
    })
}

fn arrows(package: &Package, ours: &[&Package]) -> Findings {
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
        return vec![format!(
            "{} has no line among tidy's arrows: say which of our crates it may know",
            package.name
        )];
    };
    let mut findings = Findings::new();
    for dependency in &package.dependencies {
        let is_ours = ours.iter().any(|package| package.name == dependency.name);
        if is_ours && !allowed.contains(&dependency.name.as_str()) {
            findings
                .push(format!("{} may not depend on {} (ARCHITECTURE.md)", package.name, dependency.name));
        }
        if dependency.name == "redb" && !REDB_USERS.contains(&package.name.as_str()) {
            findings.push(format!("{} may not open redb", package.name));
        }
        if package.name == "wire" && dependency.name == "tokio" {
            findings.push("wire has no sockets and no tokio".to_owned());
        }
    }
    findings
}

fn unused(package: &Package, packages: &BTreeMap<String, Package>) -> Result<Findings> {
    let mut text = String::new();
    for file in super::sources::rust_files(&package.directory)? {
        text.push_str(&std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?);
    }
    let words: BTreeSet<&str> =
        text.split(|character: char| !character.is_alphanumeric() && character != '_').collect();
    let mut findings = Findings::new();
    for dependency in &package.dependencies {
        let library = packages.get(&dependency.name).map(|package| package.library.clone());
        let name = dependency.rename.clone().or(library).unwrap_or_else(|| dependency.name.clone());
        if !words.contains(name.replace('-', "_").as_str()) {
            findings.push(format!("{} declares {} and does not use it", package.name, dependency.name));
        }
    }
    Ok(findings)
}

/// Each line of `[workspace.dependencies]` gives its reason, and somebody uses it.
fn declarations(manifest: &str, used: &BTreeSet<&str>) -> Findings {
    let lines = manifest.lines().skip_while(|line| *line != "[workspace.dependencies]").skip(1);
    let mut findings = Findings::new();
    for line in lines.take_while(|line| !line.starts_with('[')) {
        let Some((name, rest)) = line.split_once('=') else { continue };
        if line.starts_with('#') {
            continue;
        }
        let name = name.trim();
        if !rest.contains("path = ") && !rest.contains("# ") {
            findings.push(format!("Cargo.toml: {name} gives no reason beside it"));
        }
        let real_name =
            rest.split_once("package = \"").and_then(|(_, rest)| rest.split('"').next()).unwrap_or(name);
        if !used.contains(real_name) {
            findings.push(format!("Cargo.toml: no crate uses {name}"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        let dependency = |name: &&str| Dependency { name: (*name).to_owned(), rename: None };
        Package {
            name: name.to_owned(),
            is_ours: true,
            directory: PathBuf::new(),
            library: name.to_owned(),
            dependencies: dependencies.iter().map(dependency).collect(),
        }
    }

    #[test]
    fn an_arrow_that_points_right_is_found() {
        let (gateway, meta) =
            (package("gateway", &["wire", "meta", "redb"]), package("meta", &["wire", "redb"]));
        let ours = [&gateway, &meta];
        assert_eq!(
            arrows(&gateway, &ours),
            ["gateway may not depend on meta (ARCHITECTURE.md)", "gateway may not open redb"]
        );
        assert_eq!(arrows(&meta, &ours), Findings::new());
        assert_eq!(arrows(&package("novel", &[]), &ours).len(), 1);
    }

    #[test]
    fn a_dependency_needs_a_reason_and_a_user() {
        let manifest = "[workspace.dependencies]\n# Ours.\nwire = { path = \"wire\" }\nhex = \"0.4\"\n\
            toml = \"1\" # files\n\n[workspace.lints]\nx = 1\n";
        let used = BTreeSet::from(["wire", "hex"]);
        assert_eq!(
            declarations(manifest, &used),
            ["Cargo.toml: hex gives no reason beside it", "Cargo.toml: no crate uses toml"]
        );
    }
}
