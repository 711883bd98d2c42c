//! The classes of ImageNet-1k: WordNet's synsets in the order that published models number them, and their words.

/// A line a class: the synset, a tab, its words.
const TABLE: &str = include_str!("imagenet.tsv");

/// The number of classes.
pub const CLASSES: usize = 1000;

/// Each class's synset, such as `n01440764`, and its words, such as `tench, Tinca tinca`.
pub fn classes() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.lines().filter_map(|line| line.split_once('\t'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_a_thousand_in_the_order_of_their_synsets() {
        let synsets: Vec<&str> = classes().map(|(synset, _)| synset).collect();
        assert_eq!(synsets.len(), CLASSES);
        assert!(synsets.is_sorted());
        assert_eq!(classes().nth(207), Some(("n02099601", "golden retriever")));
    }
}
