//! Rules about dependencies: the arrows between our crates, a reason for each foreign one, and none unused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Findings;
use crate::workspace::Workspace;

/// Which of our crates each may know. Daemons never know one another: they share `wire` and speak through `client`.
const ARROWS: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("platform", &[]),
    ("consensus", &["wire", "platform"]),
    ("client", &["wire", "platform"]),
    ("peers", &["wire", "platform", "consensus", "client"]),
    ("auth", &["wire"]),
    ("scm", &["wire", "platform", "client", "consensus"]),
    ("meta", &["wire", "platform", "client", "consensus"]),
    ("datanode", &["wire", "platform", "client"]),
    ("gateway", &["wire", "platform", "client", "auth"]),
    ("admin", &["wire", "platform", "client", "auth"]),
    ("s3-client", &["wire"]),
    (
        "cli",
        &[
            "wire",
            "platform",
            "client",
            "consensus",
            "peers",
            "auth",
            "meta",
            "scm",
            "datanode",
            "gateway",
            "admin",
            "s3-client",
        ],
    ),
    ("checker", &["wire"]),
    ("sim", &["wire", "checker", "platform", "consensus", "client", "meta", "scm", "datanode"]),
    ("xtask", &["wire", "checker", "client", "s3-client"]),
];

/// Packages whose library has another name.
const LIBRARY_NAMES: &[(&str, &str)] = &[("md-5", "md5")];

/// Only these open redb: the gateway and the operators' port own no data.
const REDB_USERS: &[&str] = &["consensus", "meta", "scm", "datanode"];

/// All findings about dependencies.
pub(super) fn check(workspace: &Workspace) -> Result<Findings> {
    let list = workspace.metadata()["packages"].as_array().context("cargo metadata has no packages")?;
    let packages: Vec<Package> = list.iter().map(package).collect::<Result<_>>()?;
    let mut findings = Findings::new();
    for package in &packages {
        findings.extend(arrows(package, &packages));
        findings.extend(unused(package)?);
    }
    let manifest = std::fs::read_to_string(workspace.path("Cargo.toml")).context("read the root manifest")?;
    let used = packages.iter().flat_map(|package| &package.dependencies);
    findings.extend(declarations(&manifest, &used.map(|dependency| dependency.name.as_str()).collect()));
    Ok(findings)
}

struct Package {
    name: String,
    directory: PathBuf,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    rename: Option<String>,
}

fn package(value: &Value) -> Result<Package> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let name = text(&value["name"]).context("a package has no name")?;
    let manifest = text(&value["manifest_path"]).context("a package has no manifest")?;
    let listed = value["dependencies"].as_array().context("a package has no dependencies")?;
    let dependencies = listed
        .iter()
        .filter_map(|value| Some(Dependency { name: text(&value["name"])?, rename: text(&value["rename"]) }))
        .collect();
    Ok(Package {
        directory: Path::new(&manifest).parent().context("a manifest has no directory")?.to_owned(),
        name,
        dependencies,
    })
}

fn arrows(package: &Package, ours: &[Package]) -> Findings {
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

fn unused(package: &Package) -> Result<Findings> {
    let mut text = String::new();
    for file in super::sources::rust_files(&package.directory)? {
        text.push_str(&std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?);
    }
    let words: BTreeSet<&str> =
        text.split(|character: char| !character.is_alphanumeric() && character != '_').collect();
    let mut findings = Findings::new();
    for dependency in &package.dependencies {
        let library = LIBRARY_NAMES.iter().find(|(package, _)| *package == dependency.name);
        let name =
            dependency.rename.as_deref().or(library.map(|(_, library)| *library)).unwrap_or(&dependency.name);
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
            directory: PathBuf::new(),
            dependencies: dependencies.iter().map(dependency).collect(),
        }
    }

    #[test]
    fn an_arrow_that_points_right_is_found() {
        let ours = [
            package("gateway", &["wire", "meta", "redb"]),
            package("meta", &["wire", "redb"]),
            package("wire", &[]),
        ];
        assert_eq!(
            arrows(&ours[0], &ours),
            ["gateway may not depend on meta (ARCHITECTURE.md)", "gateway may not open redb"]
        );
        assert_eq!(arrows(&ours[1], &ours), Findings::new());
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
