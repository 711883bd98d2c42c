//! Commands as they can be pasted into a shell.

use std::borrow::Cow;

/// A word of a command; in quotes where a shell would make something else of it.
pub(super) fn word(text: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(format!("'{}'", text.replace('\'', r"'\''")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_shell_would_split_or_expand_is_quoted() {
        for (text, quoted) in [
            ("runs/first-1", "runs/first-1"),
            ("shapes:count", "shapes:count"),
            ("", "''"),
            ("my run", "'my run'"),
            ("a$b;c", "'a$b;c'"),
            ("it's", r"'it'\''s'"),
        ] {
            assert_eq!(word(text), quoted);
        }
    }
}
