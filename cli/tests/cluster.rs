//! A cluster of real processes made by `cluster init`: members that come and go, HTTPS for operators, mistakes in
//! configurations that are refused at start or at the first contact.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use support::{Cluster, Said, ferrozone, free_hosts, wait_until};

/// Replaces a text in a file, which must hold it.
fn edit(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

fn members(cluster: &Cluster, node: &str, service: &str) -> Vec<(String, String)> {
    let group = cluster.run(node, &format!("admin {service} members --json")).json();
    let member = |member: &serde_json::Value| {
        let text = |pointer: &str| member.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        (text("/member/node"), text("/role"))
    };
    group["members"].as_array().unwrap().iter().map(member).collect()
}

#[test]
fn lost_meta_node_is_replaced_by_two_commands() {
    let mut cluster = Cluster::make(3, &[]);
    cluster.start_all();
    let [first, second, lost] = [0, 1, 2].map(|index| cluster.hosts[index].clone());
    wait_until("three datanodes", || {
        let list = cluster.run(&first, "admin datanode list").out;
        (list.matches(" live ").count() == 3).then_some(())
    });
    std::fs::write(cluster.dir.path().join("file"), vec![1; 1 << 20]).unwrap();
    cluster.run(&first, "sh bucket create /s3v/photos").good();
    cluster.run(&first, "sh key put /s3v/photos/a file").good();
    let located = cluster.run(&first, "admin where s3://photos/a").good();
    // Two, where the container was opened before the third datanode had registered.
    assert!(cluster.hosts.iter().filter(|host| located.contains(*host)).count() >= 2, "{located}");

    let error = cluster.run(&first, &format!("admin om remove-peer {lost}")).refused(3);
    assert!(error.contains("survive 0 failures, not 1"), "{error}");
    cluster.run(&first, &format!("admin om transfer-leader --to {second}")).good();
    wait_until("the second leads", || {
        let group = cluster.run(&first, "admin om members").good();
        group.lines().any(|line| line.contains(&second) && line.contains("leads")).then_some(())
    });
    // A file of the first voters, or of another cluster, is nobody who waits to be added.
    let of_first = cluster.file(&second, "node.toml");
    let error = cluster.run(&first, &format!("admin om add-peer {}", of_first.display())).refused(1);
    assert!(error.contains("one of the first voters"), "{error}");
    let other = Cluster::make(1, &[]);
    let of_other = other.file(&other.hosts[0], "node.toml");
    let error = cluster.run(&first, &format!("admin om add-peer {}", of_other.display())).refused(1);
    assert!(error.contains("is of cluster"), "{error}");

    cluster.kill(&lost);
    std::fs::remove_dir_all(cluster.file(&lost, "data")).unwrap();
    // It has voted, and does not begin anew.
    let server = cluster.start(&lost);
    let code = wait_until("the refusal", || server.ended());
    assert_eq!(code, 78, "{}", server.said());
    cluster.kill(&lost);
    let add = format!(
        "cluster add-node --from cluster --host {lost} --name new --roles om,scm,datanode,gateway,admin"
    );
    let words: Vec<&str> = add.split(' ').collect();
    let told = Said::of(ferrozone().current_dir(cluster.dir.path()).args(words)).good();
    assert!(told.contains("raft id 4") && told.contains("replace-node"), "{told}");
    cluster.start("new");
    let told = cluster.run(&first, &format!("admin replace-node {lost} cluster/new/node.toml"));
    let progress = told.err.clone();
    told.good();
    assert!(progress.contains("om: new (raft id 4): votes"), "{progress}");
    let voter = |node: &str| (node.to_owned(), "voter".to_owned());
    for service in ["om", "scm"] {
        assert_eq!(members(&cluster, &first, service), [voter(&first), voter(&second), voter("new")]);
    }
    // Given once more it finds that all is done.
    cluster.run(&first, &format!("admin replace-node {lost} cluster/new/node.toml")).good();
    cluster.wait_ready("new");
    wait_until("the wiped datanode is dead", || {
        cluster.run(&first, "admin datanode list").good().contains("DEAD").then_some(())
    });
    cluster.run(&first, &format!("admin datanode forget {lost}")).good();
    assert_eq!(cluster.run(&first, "sh key cat /s3v/photos/a").good().len(), 1 << 20);

    // What was added is remembered: the new node and a follower go on without the first.
    wait_until("contacts", || {
        let text = std::fs::read_to_string(cluster.file("new", "data/contacts.json")).unwrap_or_default();
        text.contains(&second).then_some(())
    });
    cluster.kill(&first);
    wait_until("a leader without the first", || {
        let said = cluster.run("new", "admin om members");
        (said.code == 0 && said.out.contains("leads")).then_some(())
    });

    // A fresh datanode is told of the new one, and finds the group by it alone.
    let fresh = free_hosts(1).remove(0);
    let add = format!(
        "cluster add-node --from cluster --host {fresh} --roles datanode,admin --gone {first},{second}"
    );
    let words: Vec<&str> = add.split(' ').collect();
    Said::of(ferrozone().current_dir(cluster.dir.path()).args(words)).good();
    let config = std::fs::read_to_string(cluster.file(&fresh, "node.toml")).unwrap();
    assert!(config.contains("[[meta]]\nname = \"new\"") && !config.contains(&second), "{config}");
    cluster.start(&fresh);
    cluster.wait_ready(&fresh);
    let list = cluster.run("new", "admin datanode list").good();
    assert!(list.lines().any(|line| line.contains(&fresh) && line.contains(" live ")), "{list}");
}

#[test]
fn operators_port_speaks_https_by_the_clusters_certificates() {
    let mut cluster = Cluster::make(1, &["--tls", "true"]);
    let node = cluster.hosts[0].clone();
    for (name, mode) in [
        ("node.key", 0o600),
        ("cluster.json", 0o600),
        ("credentials.json", 0o600),
        ("node.pem", 0o644),
        ("ca.pem", 0o644),
    ] {
        let found = std::fs::metadata(cluster.file(&node, name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found & !0o044, mode & !0o044, "{name} is {found:o}");
        assert!(mode != 0o600 || found == 0o600, "{name} is {found:o}");
    }
    assert!(!cluster.file(&node, "ca.key").exists(), "the authority's key leaves its directory");
    edit(
        &cluster.file(&node, "node.toml"),
        "[admin]\n",
        "[admin]\ncertificate = \"node.pem\"\nkey = \"node.key\"\n",
    );
    edit(
        &cluster.file(&node, "node.toml"),
        "[s3]\n",
        "[s3]\ncertificate = \"node.pem\"\nkey = \"node.key\"\n",
    );
    cluster.start_all();
    let url = format!("https://{node}:9001");
    let endpoints = std::fs::read_to_string(cluster.file(&node, "data/endpoints.json")).unwrap();
    assert!(endpoints.contains(&url), "{endpoints}");
    assert!(cluster.run(&node, "admin status").good().contains("1 voter"));
    // By the address alone, with the authority found beside the cluster's file; by another authority not at all.
    let by_address = |ca: Option<&Path>| {
        let mut command = ferrozone();
        command
            .args(["admin", "status", "--admin", &url, "--cluster-file"])
            .arg(cluster.file(&node, "cluster.json"));
        ca.map(|ca| command.arg("--ca").arg(ca));
        Said::of(&mut command)
    };
    by_address(None).good();
    let other = Cluster::make(1, &[]);
    let stranger = other.file(&other.hosts[0], "ca.pem");
    let error = by_address(Some(&stranger)).refused(6);
    assert!(error.contains("certificate"), "{error}");

    // S3 as well: keys go through it.
    assert!(endpoints.contains(&format!("https://{node}:9000")), "{endpoints}");
    std::fs::write(cluster.dir.path().join("file"), vec![1; 1 << 20]).unwrap();
    cluster.run(&node, "sh bucket create /s3v/photos").good();
    cluster.run(&node, "sh key put /s3v/photos/a file").good();
    cluster.run(&node, "sh key get /s3v/photos/a copy").good();
    assert_eq!(std::fs::read(cluster.dir.path().join("copy")).unwrap(), vec![1; 1 << 20]);
    let line = format!("sh key info /s3v/photos/a --ca {}", stranger.display());
    let error = cluster.run(&node, &line).refused(1);
    assert!(error.contains("is checked by") && error.contains("--ca PEM"), "{error}");
    // The credentials lie beside the configuration, and `env` finds them.
    let env = Said::of(ferrozone().arg("env").arg(cluster.file(&node, "data"))).good();
    assert!(env.contains(&format!("https://{node}:9000")) && env.contains("AWS_SECRET_ACCESS_KEY="), "{env}");
}

#[test]
fn mistakes_in_a_configuration_are_refused_with_what_to_do() {
    let mut cluster = Cluster::make(1, &["--datanodes", &free_hosts(1)[0]]);
    let node = cluster.hosts[0].clone();
    let nodes = std::fs::read_to_string(cluster.dir.path().join("cluster/ca/nodes.json")).unwrap();
    let nodes: serde_json::Value = serde_json::from_str(&nodes).unwrap();
    let datanode = nodes["nodes"][1][0].as_str().unwrap().to_owned();
    cluster.start_all();

    // The same directory started twice, and a copy of it: another process holds the place.
    let copy = cluster.dir.path().join("cluster/copy");
    std::fs::create_dir(&copy).unwrap();
    for name in ["node.toml", "cluster.json", "credentials.json", "ca.pem", "node.pem", "node.key"] {
        std::fs::copy(cluster.file(&node, name), copy.join(name)).unwrap();
    }
    let refused = |cluster: &mut Cluster, node: &str| {
        let server = cluster.start(node);
        let code = wait_until("the refusal", || server.ended());
        assert_eq!(code, 78, "{}", server.said());
        let said = server.said();
        cluster.kill(node);
        said
    };
    edit(&copy.join("node.toml"), &format!("address = \"{node}:9001\""), "address = \"127.0.0.1:0\"");
    edit(&copy.join("node.toml"), &format!("address = \"{node}:9000\""), "address = \"127.0.0.1:0\"");
    let said = refused(&mut cluster, "copy");
    assert!(said.contains("raft id 1 answers at") && said.contains("Stop one of the two"), "{said}");

    // A key file of another cluster.
    let other = Cluster::make(1, &[]);
    let own = std::fs::read(cluster.file(&datanode, "cluster.json")).unwrap();
    std::fs::copy(other.file(&other.hosts[0], "cluster.json"), cluster.file(&datanode, "cluster.json"))
        .unwrap();
    let said = refused(&mut cluster, &datanode);
    assert!(said.contains("files of two clusters were mixed"), "{said}");
    // The same without the id to hold it against: the first contact refuses it.
    let config = cluster.file(&datanode, "node.toml");
    let before = std::fs::read_to_string(&config).unwrap();
    let id_line = before.lines().find(|line| line.starts_with("id = ")).unwrap().to_owned();
    edit(&config, &id_line, "");
    let log = cluster.start(&datanode).log.clone();
    wait_until("a refusal at the first contact", || {
        let said = std::fs::read_to_string(&log).unwrap();
        let is_refused = said.contains("does the configuration name nodes of two clusters?");
        (is_refused && said.contains("disk formatted")).then_some(())
    });
    cluster.kill(&datanode);
    std::fs::write(cluster.file(&datanode, "cluster.json"), own).unwrap();
    // Its disk was formatted for the other cluster by now, and says so.
    std::fs::write(&config, &before).unwrap();
    let said = refused(&mut cluster, &datanode);
    assert!(said.contains("belongs to cluster"), "{said}");
    std::fs::remove_dir_all(cluster.file(&datanode, "data")).unwrap();

    // A peer that is none: nobody answers there, and the log says who is asked in vain.
    edit(&config, &format!("address = \"{node}:9002\""), "address = \"127.0.0.1:1\"");
    let log = cluster.start(&datanode).log.clone();
    let waits = wait_until("a node that waits", || {
        let said = std::fs::read_to_string(&log).unwrap();
        said.contains("127.0.0.1:1").then_some(said)
    });
    assert!(!waits.contains("panicked"), "{waits}");
    cluster.kill(&datanode);

    // A datanode whose disks were copied: the one that lives stays.
    std::fs::write(&config, &before).unwrap();
    cluster.start(&datanode);
    cluster.wait_ready(&datanode);
    let twin = free_hosts(1).remove(0);
    let twin_dir = cluster.dir.path().join("cluster/twin");
    let copied =
        std::process::Command::new("cp").arg("-r").arg(cluster.file(&datanode, "")).arg(&twin_dir).status();
    assert!(copied.unwrap().success());
    edit(&twin_dir.join("node.toml"), &datanode, &twin);
    let _ = std::fs::remove_file(twin_dir.join("data/endpoints.json"));
    let log = cluster.start("twin").log.clone();
    wait_until("the twin's refusal", || {
        let said = std::fs::read_to_string(&log).unwrap();
        said.contains("if disks were copied, wipe the copy").then_some(())
    });
    let list = cluster.run(&node, "admin datanode list").good();
    assert!(list.contains(&datanode) && list.contains(" live "), "{list}");
}

#[test]
fn meta_node_from_a_copied_directory_is_refused_beside_the_first() {
    let mut cluster = Cluster::make(3, &[]);
    cluster.start_all();
    let [first, original] = [0, 1].map(|index| cluster.hosts[index].clone());
    cluster.run(&first, "sh bucket create /s3v/photos").good();
    // Under another name and another address, as a restored backup of the machine would come up.
    let twin = free_hosts(1).remove(0);
    let twin_dir = cluster.dir.path().join("cluster/twin");
    let copied =
        std::process::Command::new("cp").arg("-r").arg(cluster.file(&original, "")).arg(&twin_dir).status();
    assert!(copied.unwrap().success());
    edit(&twin_dir.join("node.toml"), &original, &twin);
    let _ = std::fs::remove_file(twin_dir.join("data/endpoints.json"));
    let server = cluster.start("twin");
    assert_eq!(wait_until("its end", || server.ended()), 78);
    let said = server.said();
    assert!(said.contains("already runs") && said.contains(&original), "{said}");
    // The first is none the worse, and restarts at once.
    cluster.kill(&original);
    std::fs::remove_file(cluster.file(&original, "data/endpoints.json")).unwrap();
    cluster.start(&original);
    cluster.wait_ready(&original);
    cluster.run(&original, "sh bucket create /s3v/more").good();
}
