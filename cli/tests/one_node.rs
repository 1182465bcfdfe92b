//! The commands for operators against a server with all roles: tables, JSON, refusals, exit codes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod support;

use support::{Said, Sole, ferrozone, wait_until};

/// Numbers, sizes, ages and ids replaced by `#`, runs of blanks by one: what is left does not change from run to run.
fn stable(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let words = line.split_whitespace().map(|word| {
            let is_id = word.len() >= 8 && word.chars().all(|c| c.is_ascii_hexdigit() || "-.".contains(c));
            if is_id || word.starts_with(|c: char| c.is_ascii_digit()) { "#" } else { word }
        });
        out.push_str(&words.collect::<Vec<_>>().join(" "));
        out.push('\n');
    }
    out
}

#[test]
fn every_noun_answers_with_a_table_and_with_json() {
    let server = Sole::start();
    std::fs::write(server.dir.path().join("file"), vec![7; 3 << 20]).unwrap();
    server.run("sh bucket create /s3v/photos").good();
    server.run("sh key put /s3v/photos/a/b file").good();

    let status = stable(&server.run("admin status").good());
    // The disk is the machine's, and may be full without any fault of this program.
    let is_disk_full = status.starts_with("WARNING: disk") && status.matches("WARNING").count() == 1;
    assert!(is_disk_full || status.starts_with("All is well.\n\nom "), "{status}");
    let glance =
        "om # voter, replica # leads, term #\nscm # voter, replica # leads, term #\ndatanodes # of # live;";
    assert!(status.contains(glance), "{status}");
    assert_eq!(server.run("admin status --check").code, if is_disk_full { 10 } else { 0 });
    for (line, head) in [
        ("admin om show", "volumes #\nbuckets #\nkeys # # MiB\nreplication # datanode\n"),
        ("admin om members", "RAFT ID NODE ADDRESS ROLE HEALTH BEHIND\n# replica #"),
        ("admin scm show", "containers # open, # closing, # closed, # deleting\n"),
        ("admin scm members", "RAFT ID NODE ADDRESS ROLE HEALTH BEHIND\n"),
        (
            "admin datanode list",
            "NODE ID RACK HEALTH STATE DISKS FREE OF CONTAINERS NEEDING IT\nnode1 # live in service # #",
        ),
        ("admin datanode show node1", "node node1\nid #\naddress in process\n"),
        ("admin container list", "ID STATE REPLICAS USED OPENED HEALTH DATANODES\n# open # of # #"),
        ("admin container show 1", "container #\nstate open\nhealth healthy\nreplicas # of #\n"),
        ("admin container keys 1", "BLOCK SIZE STATE BUCKET KEY\n# # MiB live photos a/b\n"),
        ("admin pipeline list", "ID REPLICAS DATANODES OPEN CONTAINERS\n# # of # node1 #\n"),
        (
            "admin repair",
            "missing # containers: no whole replica can be reached\nunder-replicated # containers\n",
        ),
        ("admin where s3://photos/a/b", "key s3://photos/a/b\nsize # MiB\netag"),
        ("sh volume list", "VOLUME OWNER BUCKETS BOUND USED BOUND CREATED\ns3v"),
        ("sh bucket list /s3v", "BUCKET OWNER KEYS BOUND USED BOUND CREATED LINK TO\nphotos"),
        ("sh key list /s3v/photos", "KEY SIZE MODIFIED\na/b # MiB"),
        ("sh key info /s3v/photos/a/b", "key /s3v/photos/a/b\nsize # MiB\n"),
    ] {
        let text = server.run(line).good();
        assert!(stable(&text).starts_with(head), "{line}:\n{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{line}:\n{text}");
        let json = server.run(&format!("{line} --json")).json();
        assert!(json.is_object() || json.is_array(), "{line}");
    }
    assert_eq!(server.run("admin status --json").json()["om"]["keys"], 1);
    let located = server.run("admin where s3://photos/a/b --json").json();
    assert_eq!(located["blocks"][0]["replicas"][0]["node"], "node1");
    assert_eq!(located["blocks"][0]["health"][0], "healthy");

    let unrelated = server.dir.path().join("copy.part");
    std::fs::write(&unrelated, "the user's").unwrap();
    server.run("sh key get /s3v/photos/a/b copy").good();
    assert_eq!(std::fs::read(&unrelated).unwrap(), b"the user's");
    assert_eq!(std::fs::read(server.dir.path().join("copy")).unwrap(), vec![7; 3 << 20]);
    server.run("admin container close 1").good();
    wait_until("a sealed container", || {
        let shown = server.run("admin container show 1").good();
        (shown.contains("closed") && shown.contains("sealed")).then_some(())
    });
    server.run("admin om set-replication three --bucket photos").good();
    assert!(server.run("sh bucket info /s3v/photos").good().contains("3 datanodes"));
    server.run("admin om set-replication default --bucket photos").good();
    server.run("admin om transfer-leader --to 1").good();
    server.run("sh key delete /s3v/photos/a/b").good();
    server.run("sh bucket delete /s3v/photos").good();
}

#[test]
fn namespace_has_owners_bounds_and_links() {
    let server = Sole::start();
    std::fs::write(server.dir.path().join("small"), "x").unwrap();
    std::fs::write(server.dir.path().join("large"), vec![0; 2 << 20]).unwrap();
    server.run("sh volume create /sales --user ann --space-quota 1GiB --namespace-quota 1").good();
    let volume = server.run("sh volume info sales").good();
    assert!(
        volume.contains("ann") && volume.contains("0 of 1\n") && volume.contains("0 B of 1.0 GiB\n"),
        "{volume}"
    );
    server.run("sh volume update /sales --user bob").good();
    assert!(server.run("sh volume list --user ann").good().starts_with("none"));
    assert!(server.run("sh volume list --user bob").good().contains("\nsales "));

    server.run("sh bucket create /sales/q1-2026 --space-quota 1MiB --namespace-quota 1").good();
    let error = server.run("sh bucket create /sales/q2-2026").refused(3);
    assert!(error.contains("volume sales"), "{error}");
    let error = server.run("sh key put /sales/q1-2026/a small").refused(1);
    assert!(error.contains("ferrozone sh bucket link /sales/q1-2026 /s3v/NAME"), "{error}");
    let link = server.run("sh bucket link /sales/q1-2026 /s3v/first-quarter").good();
    assert!(link.contains("link to") && link.contains("/sales/q1-2026"), "{link}");
    server.run("sh key put /s3v/first-quarter/a small").good();
    assert!(server.run("sh key put /s3v/first-quarter/b small").code != 0, "the bucket takes one key");
    server.run("sh bucket setquota /sales/q1-2026 --namespace-quota 5").good();
    server.run("sh key put /s3v/first-quarter/b small").good();
    assert!(server.run("sh key put /s3v/first-quarter/c large").code != 0, "the bucket takes 1 MiB");
    server.run("sh bucket clrquota /sales/q1-2026 --space-quota").good();
    server.run("sh key put /s3v/first-quarter/c large").good();
    let bucket = server.run("sh bucket info /sales/q1-2026").good();
    assert!(bucket.contains("3 of 5\n") && bucket.contains("2.0 MiB, no bound\n"), "{bucket}");
    assert_eq!(server.run("sh key cat /s3v/first-quarter/a").good(), "x");

    server.run("sh volume delete /sales").refused(3);
    server.run("sh bucket delete /sales/q1-2026").refused(3);
    server.run("sh volume info /none").refused(4);
    server.run("sh bucket info /s3v/none").refused(4);
    server.run("sh bucket list /none").refused(4);
    server.run("sh key info /s3v/first-quarter/none").refused(4);
    server.run("sh volume delete /s3v").refused(1);
    server.run("sh bucket delete /s3v/first-quarter").good();
    assert!(
        server.run("sh bucket info /sales/q1-2026").good().contains("3 of 5"),
        "a link is not its source"
    );
}

#[test]
fn what_would_lose_data_is_refused_and_says_what() {
    let server = Sole::start();
    std::fs::write(server.dir.path().join("file"), "x").unwrap();
    server.run("sh bucket create /s3v/photos").good();
    server.run("sh key put /s3v/photos/only-here file").good();
    let error = server.run("admin datanode decommission node1").refused(3);
    assert!(error.contains("1 container (1)") && error.contains("0 other datanodes"), "{error}");
    let error = server.run("admin datanode forget node1").refused(3);
    assert!(error.contains("neither dead nor decommissioned"), "{error}");
    assert!(error.contains("Nowhere else: 1 container (1), with 1 key:\n  photos/only-here"), "{error}");
    for service in ["om", "scm"] {
        let error = server.run(&format!("admin {service} remove-peer 1")).refused(3);
        assert!(error.contains("last voter"), "{error}");
        let error = server.run(&format!("admin {service} remove-peer 1 --force")).refused(3);
        assert!(error.contains("last voter"), "{error}");
        let error = server.run(&format!("admin {service} remove-peer node9")).refused(1);
        assert!(error.contains("it has replica 1 (1)"), "{error}");
    }
    server.run("admin datanode show node9").refused(4);
    server.run("admin container show 99").refused(4);
    server.run("admin container keys 99").refused(4);
    server.run("admin where s3://photos/none").refused(4);
    server.run("admin where photos/none").refused(1);
    server.run("admin container list --health sick").refused(1);
    server.run("admin container list --state odd").refused(1);
    server.run("admin sing").refused(2);
    assert_eq!(server.run("sh key cat /s3v/photos/only-here").good(), "x");
}

#[test]
fn who_is_not_let_in_or_finds_nobody_can_tell_by_the_exit_code() {
    let server = Sole::start();
    let other = server.dir.path().join("other.json");
    let identity = std::fs::read_to_string(server.dir.path().join("data/cluster.json")).unwrap();
    let id = serde_json::from_str::<serde_json::Value>(&identity).unwrap()["id"].as_str().unwrap().to_owned();
    let forged = format!("{{\"id\":\"{id}\",\"key\":\"{}\"}}", "00".repeat(32));
    std::fs::write(&other, forged).unwrap();
    let error = server.run(&format!("admin status --cluster-file {}", other.display())).refused(5);
    assert!(error.contains("is the cluster key the same?"), "{error}");
    std::fs::write(&other, identity.replace(&id, "11111111-1111-1111-1111-111111111111")).unwrap();
    let error = server.run(&format!("sh volume list --cluster-file {}", other.display())).refused(5);
    assert!(error.contains("another cluster"), "{error}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = server.run(&format!("admin status --admin http://{nobody}")).refused(6);
    assert!(error.contains("is the node up"), "{error}");
    let error = Said::of(ferrozone().current_dir(server.dir.path()).args(["admin", "status"])).refused(1);
    assert!(error.contains("--config node.toml"), "{error}");
    let error = server.run("admin status --admin ftp://x").refused(1);
    assert!(error.contains("http://HOST:PORT"), "{error}");
}
