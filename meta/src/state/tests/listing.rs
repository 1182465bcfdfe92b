//! Listings against a model: all names in a sorted set, cut and paged the slow way.

use std::collections::BTreeSet;

use proptest::prelude::*;
use wire::om::{
    BucketRef, CreateBucket, CreateUpload, ListItem, ListKeys, ListUploads, UploadItem, WriteContext,
};

use super::{Core, bucket_ref, commit_key, user};
use crate::state::{Reply, listing};

/// A bucket with these keys, no bytes; with these uploads too.
fn filled(keys: &BTreeSet<String>, uploads: &[String]) -> (Core, BucketRef) {
    let mut core = Core::new();
    let session = core.open_session(1);
    let mut sequence = 0;
    let mut context = || {
        sequence += 1;
        WriteContext { session, sequence, acknowledged: sequence }
    };
    let bucket = bucket_ref("bucket", 2);
    let create = CreateBucket {
        context: context(),
        name: bucket.name.clone(),
        owner: user("root"),
        location: String::new(),
    };
    assert!(matches!(core.apply(create), Reply::Bucket(info) if info.id == bucket.id));
    for key in keys {
        core.apply(commit_key(context(), bucket.clone(), key, Vec::new()));
    }
    for key in uploads {
        let key = wire::names::KeyName::new(key).unwrap();
        let create = CreateUpload {
            context: context(),
            bucket: bucket.clone(),
            key,
            owner: user("root"),
            storage_class: Default::default(),
            replication: wire::block::Replication::One,
            attributes: Default::default(),
            checksum: None,
        };
        assert!(matches!(core.apply(create), Reply::Upload(_)));
    }
    (core, bucket)
}

/// Items of a whole listing, as text: keys as they are, prefixes with a mark.
fn model(keys: &BTreeSet<String>, prefix: &str, delimiter: &str, after: &str) -> Vec<(bool, String)> {
    let mut items: Vec<(bool, String)> = Vec::new();
    for key in keys.iter().filter(|key| key.starts_with(prefix) && key.as_str() > after) {
        let cut = if delimiter.is_empty() { None } else { key[prefix.len()..].find(delimiter) };
        let item = match cut {
            Some(at) => (true, key[..prefix.len() + at + delimiter.len()].to_owned()),
            None => (false, key.clone()),
        };
        // A prefix equal to `after` was given before, with all it holds.
        let is_passed = item.0 && item.1 == after;
        if !is_passed && items.last() != Some(&item) {
            items.push(item);
        }
    }
    items
}

fn text(item: &ListItem) -> (bool, String) {
    match item {
        ListItem::Key(key, _) => (false, key.as_str().to_owned()),
        ListItem::Prefix(prefix) => (true, prefix.clone()),
    }
}

fn names() -> impl Strategy<Value = String> {
    // Few letters, so that prefixes, delimiters and names meet; zero and multi-byte characters for the escapes.
    "[ab/\u{0}ü\u{10ffff}]{1,6}"
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn pages_join_to_the_model(
        keys in proptest::collection::btree_set(names(), 0..40),
        prefix in "[ab/ü]{0,2}",
        delimiter in "(/|a|ab|ü|\u{0}||//)",
        after in "[ab/\u{0}ü\u{10ffff}]{0,4}",
        max in 1u32..7,
    ) {
        let (core, bucket) = filled(&keys, &[]);
        let view = core.view();
        let mut expected = model(&keys, &prefix, &delimiter, &after);
        let mut after = after;
        loop {
            let request = ListKeys {
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                delimiter: delimiter.clone(),
                after: after.clone(),
                max,
            };
            let page = listing::list_keys(&view, bucket.id, &request).unwrap();
            let items: Vec<(bool, String)> = page.items.iter().map(text).collect();
            let rest = expected.split_off(expected.len().min(max as usize));
            prop_assert_eq!(&items, &expected, "after {:?}", after);
            prop_assert_eq!(page.is_truncated, !rest.is_empty());
            let Some((_, last)) = items.last() else { break };
            after = last.clone();
            expected = rest;
            if !page.is_truncated {
                break;
            }
        }
    }

    #[test]
    fn uploads_page_by_key_then_initiation(
        keys in proptest::collection::vec(names(), 0..20),
        prefix in "[ab/]{0,1}",
        delimiter in "(/|)",
        max in 1u32..5,
    ) {
        let (core, bucket) = filled(&BTreeSet::new(), &keys);
        let view = core.view();
        // Stable: uploads of one key stay in the order they were made.
        let mut sorted: Vec<(String, usize)> =
            keys.iter().enumerate().map(|(at, key)| (key.clone(), at)).collect();
        sorted.sort();
        let mut expected: Vec<String> = Vec::new();
        for (key, at) in sorted.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            let cut = if delimiter.is_empty() { None } else { key[prefix.len()..].find(&delimiter) };
            let item = match cut {
                Some(cut) => format!("prefix {}", &key[..prefix.len() + cut + delimiter.len()]),
                // Sequence 1 made the bucket.
                None => format!("{key} {}", at + 2),
            };
            if expected.last() != Some(&item) {
                expected.push(item);
            }
        }
        let mut found = Vec::new();
        let mut request = ListUploads {
            bucket: bucket.clone(),
            prefix,
            delimiter,
            key_after: String::new(),
            upload_after: None,
            max,
        };
        loop {
            let page = listing::list_uploads(&view, bucket.id, &request).unwrap();
            prop_assert!(page.items.len() <= max as usize);
            for item in &page.items {
                match item {
                    UploadItem::Upload(info) => {
                        request.key_after = info.key.as_str().to_owned();
                        request.upload_after = Some(info.upload);
                        found.push(format!("{} {}", info.key, info.upload.sequence));
                    }
                    UploadItem::Prefix(common) => {
                        request.key_after = common.clone();
                        request.upload_after = None;
                        found.push(format!("prefix {common}"));
                    }
                }
            }
            if !page.is_truncated {
                break;
            }
        }
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn a_listing_costs_what_it_returns() {
    // 2,000 keys under one prefix: were they walked, the damaged row among them would be met.
    let keys: BTreeSet<String> =
        (0..2000).map(|at| format!("deep/{at:04}")).chain(["z".to_owned()]).collect();
    let (mut core, bucket) = filled(&keys, &[]);
    core.store.corrupt_row(crate::schema::KEY, &crate::schema::key_row_key(bucket.id, b"deep/1000"));
    let request = ListKeys {
        bucket: bucket.clone(),
        prefix: String::new(),
        delimiter: "/".into(),
        after: String::new(),
        max: 10,
    };
    let page = listing::list_keys(&core.view(), bucket.id, &request).unwrap();
    let items: Vec<(bool, String)> = page.items.iter().map(text).collect();
    assert_eq!(items, [(true, "deep/".to_owned()), (false, "z".to_owned())]);
    let whole = ListKeys { delimiter: String::new(), max: 1000, after: "deep/0999".into(), ..request };
    assert!(listing::list_keys(&core.view(), bucket.id, &whole).is_err());
}
