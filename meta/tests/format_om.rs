//! Committed bytes of every version of OM's rows and commands still decode, to the same content.
//!
//! A line of a fixture is `TABLE ROW_KEY VALUE = TEXT` or `COMMAND = TEXT`, bytes in hexadecimal. The text is the decoded
//! content at the time; a field appended later may lengthen it, then the fixture's text is renewed, never its bytes.

use std::path::PathBuf;

fn fixtures(begin: &str) -> Vec<(String, String)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("fixtures are committed")
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort();
    let of_kind =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin));
    let texts =
        files.into_iter().filter(of_kind).map(|path| std::fs::read_to_string(path).expect("readable"));
    let lines: Vec<(String, String)> = texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .map(|line| {
            line.split_once(" = ").map(|(bytes, text)| (bytes.to_owned(), text.to_owned())).expect("a sample")
        })
        .collect();
    assert!(!lines.is_empty());
    lines
}

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text).expect("hexadecimal")
}

#[test]
fn rows_of_all_versions_decode() {
    for (sample, text) in fixtures("rows_") {
        let parts: Vec<&str> = sample.split(' ').collect();
        let [table, row_key, value] = parts[..] else { panic!("{sample}") };
        let row = meta::inspect::row(table, &bytes(row_key), &bytes(value));
        assert_eq!(row.map(|row| format!("{row:?}")), Some(text), "{sample}");
    }
}

#[test]
fn commands_of_all_versions_decode() {
    for (sample, text) in fixtures("commands_") {
        let command = meta::inspect::command(&bytes(&sample));
        assert_eq!(command.map(|command| format!("{command:?}")), Some(text), "{sample}");
    }
}

#[test]
fn what_is_unknown_or_cut_is_refused_not_guessed() {
    assert_eq!(meta::inspect::command(&[]), None);
    assert_eq!(meta::inspect::command(&[255, 0x92, 0, 0x90]), None);
    assert_eq!(meta::inspect::row("no such table", &[], &[]), None);
    for (sample, _) in fixtures("commands_") {
        let whole = bytes(&sample);
        for end in 0..whole.len() {
            assert_eq!(meta::inspect::command(&whole[..end]), None, "cut at {end}: {sample}");
        }
    }
}
