//! Tells code from comments and strings, so that a rule about code does not trip over a text that mentions it.

/// The text with comments, strings and character literals blanked out; line breaks stay where they are.
pub(super) fn code_only(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < characters.len() {
        let end = skipped_end(&characters, at);
        if end > at {
            out.extend(
                characters[at..end].iter().map(|character| if *character == '\n' { '\n' } else { ' ' }),
            );
            at = end;
        } else {
            out.push(characters[at]);
            at += 1;
        }
    }
    out
}

/// Where the comment or literal that starts at `at` ends; `at` itself if none starts there.
fn skipped_end(text: &[char], at: usize) -> usize {
    let next = text.get(at + 1).copied();
    match text[at] {
        '/' if next == Some('/') => position(text, at, |rest| rest[0] == '\n').unwrap_or(text.len()),
        '/' if next == Some('*') => block_comment_end(text, at),
        '"' => string_end(text, at),
        'r' if !continues_a_word(text, at) => raw_string_end(text, at).unwrap_or(at),
        '\'' => character_end(text, at).unwrap_or(at),
        _ => at,
    }
}

fn position(text: &[char], from: usize, found: impl Fn(&[char]) -> bool) -> Option<usize> {
    (from..text.len()).find(|at| found(&text[*at..]))
}

fn continues_a_word(text: &[char], at: usize) -> bool {
    at > 0 && (text[at - 1].is_alphanumeric() && text[at - 1] != 'b' || text[at - 1] == '_')
}

fn block_comment_end(text: &[char], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while at + 1 < text.len() {
        match (text[at], text[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    text.len()
}

fn string_end(text: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

fn raw_string_end(text: &[char], start: usize) -> Option<usize> {
    let hashes = text[start + 1..].iter().take_while(|character| **character == '#').count();
    let quote = start + 1 + hashes;
    if text.get(quote) != Some(&'"') {
        return None;
    }
    let closes = |rest: &[char]| {
        rest[0] == '"' && rest.len() > hashes && rest[1..=hashes].iter().all(|character| *character == '#')
    };
    Some(position(text, quote + 1, closes).map_or(text.len(), |end| end + 1 + hashes))
}

/// A character literal, but not a lifetime.
fn character_end(text: &[char], start: usize) -> Option<usize> {
    match (text.get(start + 1)?, text.get(start + 2)) {
        ('\\', _) => position(text, start + 3, |rest| rest[0] == '\'').map(|end| end + 1),
        (_, Some('\'')) => Some(start + 3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blank() {
        let text = "a // b\n/* c /* d */ e */ f \"g \\\" h\" i r#\"j \" k\"# l '\\'' m '\"' n";
        let words: Vec<String> = code_only(text).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["a", "f", "i", "l", "m", "n"]);
    }

    #[test]
    fn lifetimes_and_lines_stay() {
        let text = "fn f<'a>(x: &'a str) {\n    // note\n    br\"x\";\n}";
        let code = code_only(text);
        assert_eq!(code.lines().count(), text.lines().count());
        assert!(code.contains("&'a str"), "{code}");
        assert!(!code.contains("note") && !code.contains('x') || code.contains("(x:"), "{code}");
    }
}
