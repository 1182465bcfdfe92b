//! How answers are shown to people: tables, fields, sizes, ages, numbers.
//!
//! Tables fit 80 to 120 columns for the clusters they are made for, bear no lines but one under their header, and end
//! without blanks, so that they can be cut and compared by the tools of a shell. Numbers stand to the right.
//!
//! Invariants: the same input gives the same text; the present comes as an argument.
//!
//! Not here: which columns there are (each command).

use bytesize::ByteSize;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use wire::block::Replication;
use wire::clock::UnixMs;

/// A table. A name that begins with `>` heads a column of numbers.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| name.trim_start_matches('>').to_uppercase()));
    let mut count = 0;
    for row in rows {
        // A control character in a name would otherwise tear the table, or the terminal.
        table.add_row(row.into_iter().map(|cell| printable(&cell)));
        count += 1;
    }
    if count == 0 {
        return "none\n".to_owned();
    }
    for (index, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if name.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    lines(&table.to_string())
}

/// Names with their values, one a line.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let text: String =
        fields.iter().map(|(name, value)| format!("{name:<width$}  {}\n", printable(value))).collect();
    lines(&text)
}

/// Without blanks at the ends of lines.
fn lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Control characters written out.
pub(crate) fn printable(text: &str) -> String {
    match text.chars().any(char::is_control) {
        true => text
            .chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
            .collect(),
        false => text.to_owned(),
    }
}

/// Bytes: `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A bound of bytes, or none.
pub(crate) fn bound(bound: Option<u64>, show: impl Fn(u64) -> String) -> String {
    bound.map_or_else(|| "-".to_owned(), show)
}

/// How long something lasted, in the largest unit that leaves two digits or fewer: `45 s`, `3 min`, `2 h`, `5 d`.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..=5999 => format!("{} min", seconds / 60),
        6000..=359_999 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// How long ago something was.
pub(crate) fn ago(then_ms: UnixMs, now_ms: UnixMs) -> String {
    format!("{} ago", span(now_ms.saturating_sub(then_ms)))
}

/// How far ahead something is, or that it is over.
pub(crate) fn until(then_ms: UnixMs, now_ms: UnixMs) -> String {
    if then_ms > now_ms { format!("in {}", span(then_ms - now_ms)) } else { ago(then_ms, now_ms) }
}

/// `1 key`, `2 keys`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// How many replicas, in words: `3 datanodes`.
pub(crate) fn replicas(replication: Replication) -> String {
    count(replica_count(replication), "datanode")
}

/// How many replicas.
pub(crate) const fn replica_count(replication: Replication) -> u64 {
    match replication {
        Replication::One => 1,
        Replication::Three => 3,
    }
}

/// The first letters of an id: enough to tell a cluster's datanodes apart, and taken by every command.
pub(crate) fn short(id: &impl ToString) -> String {
    id.to_string().chars().take(8).collect()
}

/// A point in time, in UTC.
pub(crate) fn time(ms: UnixMs) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| ms.to_string(), |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_lines_end_without_blanks() {
        let rows = [["a", "1", "x"], ["long", "100", ""]];
        let text = table(&["name", ">keys", "note"], rows.map(|row| row.map(str::to_owned).to_vec()));
        assert_eq!(text, "NAME  KEYS  NOTE\na        1  x\nlong   100\n");
        assert_eq!(table(&["name"], []), "none\n");
    }

    #[test]
    fn names_cannot_tear_the_terminal() {
        let text = table(&["name"], [vec!["a\x1b[2Jb\nc".to_owned()]]);
        assert_eq!(text, "NAME\na\\u{1b}[2Jb\\nc\n");
        assert_eq!(fields(&[("a", "b\r".to_owned()), ("longer", String::new())]), "a       b\\r\nlonger\n");
    }

    #[test]
    fn spans_keep_few_digits() {
        let spans = [0, 99_999, 100_000, 6_000_000, 400_000_000].map(span);
        assert_eq!(spans, ["0 s", "99 s", "1 min", "1 h", "4 d"]);
        assert_eq!(
            (ago(5000, 3000), until(9000, 3000), until(1000, 3000)),
            ("0 s ago".into(), "in 6 s".into(), "2 s ago".into())
        );
        assert_eq!(time(0), "1970-01-01 00:00:00 UTC");
    }
}
