//! The order in which people number things: `class2` before `class10`.

use std::cmp::Ordering;

/// Compares runs of digits as numbers and everything else without regard to case, as timm does for class folders. Names that
/// are equal in this sense are ordered byte by byte, so the order is total.
pub(super) fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (text_a, rest_a) = run(left, |byte| !byte.is_ascii_digit());
        let (text_b, rest_b) = run(right, |byte| !byte.is_ascii_digit());
        let lower = |text: &[u8]| text.to_ascii_lowercase();
        let order = lower(text_a).cmp(&lower(text_b));
        if order != Ordering::Equal || (rest_a.is_empty() && rest_b.is_empty()) {
            return order.then_with(|| a.cmp(b));
        }
        let (digits_a, rest_a) = run(rest_a, u8::is_ascii_digit);
        let (digits_b, rest_b) = run(rest_b, u8::is_ascii_digit);
        // Without leading zeros the longer number is the greater; no digits at all come first.
        let (number_a, number_b) = (run(digits_a, |&d| d == b'0').1, run(digits_b, |&d| d == b'0').1);
        let order = digits_a.is_empty().cmp(&digits_b.is_empty()).reverse();
        let order = order
            .then(number_a.len().cmp(&number_b.len()))
            .then_with(|| number_a.cmp(number_b));
        if order != Ordering::Equal {
            return order;
        }
        (left, right) = (rest_a, rest_b);
    }
}

/// The longest beginning whose bytes all satisfy `accept`, and the rest.
fn run(bytes: &[u8], accept: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| !accept(byte)).unwrap_or(bytes.len());
    bytes.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_and_case_does_not() {
        let mut names = [
            "b", "class10", "Class2", "10_x", "9_x", "a", "class2", "class02", "class",
        ];
        names.sort_by(|a: &&str, b| compare(a.as_bytes(), b.as_bytes()));
        assert_eq!(
            names,
            [
                "9_x", "10_x", "a", "b", "class", "Class2", "class02", "class2", "class10"
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn the_order_is_total(a in "[a-b0-2]{0,5}", b in "[a-b0-2]{0,5}", c in "[a-b0-2]{0,5}") {
            let [a, b, c] = [a.as_bytes(), b.as_bytes(), c.as_bytes()];
            assert_eq!(compare(a, b), compare(b, a).reverse());
            assert_eq!(compare(a, b) == Ordering::Equal, a == b);
            if compare(a, b).is_le() && compare(b, c).is_le() {
                assert!(compare(a, c).is_le());
            }
        }
    }
}
