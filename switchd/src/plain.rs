//! Text from outside, made harmless for a terminal and a log.
//!
//! Names of interfaces, their aliases, descriptions that peers send and errors that quote them may
//! hold anything: escape sequences that rewrite the screen, line ends that forge lines of a log,
//! marks that turn a line's direction around. All of that is written out (`\u{1b}`), at the doors:
//! the answer that vswitchctl shows ([`crate::client::Answer::parse`]), each table and each text
//! before it is written, errors on standard error, and every line of the log. Always, not only on a
//! terminal: what is in a file today is on a terminal tomorrow. A JSON document has escapes of its
//! own for that ([`plain_json`]).

use std::borrow::Cow;
use std::fmt::Write as _;

/// `text` as one line: line ends are written out like everything that is not to be seen.
#[must_use]
pub fn plain(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// `text` of our own making, whose line ends are ours.
#[must_use]
pub fn plain_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| c == '\n')
}

/// `text` fit for one line of a log, a terminal or an answer: as [`plain`], but a line's end, of
/// which long errors have some, is a space.
#[must_use]
pub fn one_line(text: &str) -> String {
    plain(&text.replace('\n', " ")).into_owned()
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_bad = |c: char| is_harmful(c) && !keep(c);
    if !text.contains(is_bad) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' if is_bad(c) => plain.extend(c.escape_default()),
            c if is_bad(c) => {
                // Writing to a String cannot fail.
                let _ = write!(plain, "{}", c.escape_unicode());
            }
            c => plain.push(c),
        }
    }
    Cow::Owned(plain)
}

/// A JSON document of the same meaning, in which such characters are escaped: they are within its
/// strings, where `\u` and four digits stand for any.
#[must_use]
pub fn plain_json(document: &str) -> Cow<'_, str> {
    let is_bad = |c: char| is_harmful(c) && c != '\n';
    if !document.contains(is_bad) {
        return Cow::Borrowed(document);
    }
    let mut plain = String::with_capacity(document.len() + 16);
    for c in document.chars() {
        if is_bad(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(plain, "\\u{unit:04x}");
            }
        } else {
            plain.push(c);
        }
    }
    Cow::Owned(plain)
}

/// Control characters (C0, DEL, C1), and what is not seen but changes what is: direction marks,
/// joiners and spaces without width, separators of lines, variation selectors, tags, the characters
/// of annotations.
fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_document_means_the_same() {
        let value = serde_json::json!({"name": "a\u{9b}31m\u{7f}\u{202e}\u{e0041}\n\u{1b}ä"});
        let document = serde_json::to_string(&value).unwrap();
        let shown = plain_json(&document);
        assert!(!shown.contains(is_harmful), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        assert_eq!(plain_json("{\n \"a\": 1}"), "{\n \"a\": 1}");
    }

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        for (text, shown) in [
            ("eth0", "eth0"),
            ("größe-日本", "größe-日本"),
            ("\u{1b}[2J\u{7}", "\\u{1b}[2J\\u{7}"),
            ("\u{9b}31m\u{9d}", "\\u{9b}31m\\u{9d}"),
            ("a\u{202e}b\u{200b}c\u{2028}", "a\\u{202e}b\\u{200b}c\\u{2028}"),
            ("a\nb\r\tc\u{7f}\0", "a\\nb\\r\\tc\\u{7f}\\u{0}"),
            ("back\\slash", "back\\slash"),
        ] {
            assert_eq!(plain(text), shown, "{text:?}");
            assert_eq!(plain(&plain(text)), shown, "once is enough");
            assert!(matches!(plain(shown), Cow::Borrowed(_)));
        }
        assert_eq!(plain_lines("a\nb\u{1b}\r\n"), "a\nb\\u{1b}\\r\n");
        assert_eq!(one_line("a\nb\u{1b}"), "a b\\u{1b}");
    }
}
