//! How long a string may be on the wire. What is longer is cut, stays readable, and is counted.

use std::borrow::Cow;

/// Bytes of a plain string.
pub const TEXT_LIMIT: usize = 1024;
/// Bytes of a string that holds a JSON object.
pub const JSON_LIMIT: usize = 16 * 1024;

/// Counts what had to be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Plain strings that lost their end.
    pub texts: u64,
    /// JSON objects that lost entries.
    pub objects: u64,
}

impl Cut {
    /// At most [`TEXT_LIMIT`] bytes of a string.
    pub fn text<'a>(&mut self, text: &'a str) -> &'a str {
        let kept = cut_text(text, TEXT_LIMIT);
        self.texts += u64::from(kept.len() < text.len());
        kept
    }

    /// A JSON object of at most [`JSON_LIMIT`] bytes, which loses whole entries from its end.
    pub fn json<'a>(&mut self, text: &'a str) -> Cow<'a, str> {
        if text.len() <= JSON_LIMIT {
            return Cow::Borrowed(text);
        }
        self.objects += 1;
        Cow::Owned(cut_object(text, JSON_LIMIT))
    }
}

/// At most `limit` bytes, cut at a character.
pub(super) fn cut_text(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or_default()
}

/// The first entries that fit; an empty object where that would not be JSON.
fn cut_object(text: &str, limit: usize) -> String {
    let (mut depth, mut quoted, mut escaped, mut end) = (0_u32, false, false, 0);
    for (at, byte) in text.bytes().enumerate().take(limit) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == 1 => end = at,
            _ => {}
        }
    }
    let kept = format!("{}}}", text.get(..end).unwrap_or_default());
    let valid = serde_json::from_str::<serde::de::IgnoredAny>(&kept).is_ok();
    if valid { kept } else { String::from("{}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let mut cut = Cut::default();
        assert_eq!(cut.text("short"), "short");
        let long = "ä".repeat(600);
        assert_eq!(cut.text(&long).len(), 1024);
        let long = format!("a{long}");
        assert_eq!(cut.text(&long).len(), 1023);
        assert_eq!(cut, Cut { texts: 2, objects: 0 });
    }

    #[test]
    fn a_long_object_loses_whole_entries() {
        let entries: Vec<String> = (0..2000).map(|n| format!(r#""{n}":{{"url":"/a,\"}}{n}","n":[1,2]}}"#)).collect();
        let long = format!("{{{}}}", entries.join(","));
        let mut cut = Cut::default();
        let kept = cut.json(&long);
        assert!(kept.len() <= JSON_LIMIT && kept.len() > JSON_LIMIT - 64);
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&kept).expect("still JSON");
        assert_eq!(object.get("7").and_then(|entry| entry.get("url")), Some(&serde_json::json!("/a,\"}7")));
        assert_eq!(cut.objects, 1);
    }

    #[test]
    fn what_is_no_object_becomes_an_empty_one() {
        let mut cut = Cut::default();
        assert_eq!(cut.json(&"x".repeat(JSON_LIMIT + 1)), "{}");
        assert_eq!(cut.json(&format!(r#"{{"one":"{}"}}"#, "x".repeat(JSON_LIMIT))), "{}");
    }
}
