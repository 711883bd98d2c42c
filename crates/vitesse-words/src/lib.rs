//! Numbers and lists in sentences: one spelling for all crates, whose errors and notes count things.

/// A whole number with thousands separators: `5,717,416`.
pub fn count(n: u64) -> String {
    group(&n.to_string())
}

/// So many things: `1 image`, `2 classes`, `1,281,167 images`. The noun is in the singular.
pub fn counted(n: usize, noun: &str) -> String {
    let number = count(n as u64);
    if n == 1 {
        return format!("{number} {noun}");
    }
    let ending = if ["s", "x", "sh", "tch"].iter().any(|end| noun.ends_with(end)) {
        "es"
    } else {
        "s"
    };
    format!("{number} {noun}{ending}")
}

/// Things one after the other: `1`, `1 and 4`, `1, 4 and 16`.
pub fn listed<T: ToString>(things: impl IntoIterator<Item = T>) -> String {
    let things: Vec<String> = things.into_iter().map(|thing| thing.to_string()).collect();
    match &things[..] {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Thousands separators for a string of digits, which may begin with a minus sign.
pub fn group(digits: &str) -> String {
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", digits),
    };
    let mut out = String::from(sign);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_singular() {
        for (n, noun, text) in [
            (0, "class", "0 classes"),
            (1, "class", "1 class"),
            (2, "batch", "2 batches"),
            (3, "epoch", "3 epochs"),
            (1, "image", "1 image"),
            (1_281_167, "image", "1,281,167 images"),
        ] {
            assert_eq!(counted(n, noun), text);
        }
    }

    #[test]
    fn lists_end_with_and() {
        assert_eq!(listed([1, 4, 16]), "1, 4 and 16");
        assert_eq!(listed(["a", "b"]), "a and b");
        assert_eq!((listed([1]), listed::<u8>([])), ("1".into(), String::new()));
    }

    #[test]
    fn digits_are_grouped() {
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(group("-1234"), "-1,234");
    }
}
