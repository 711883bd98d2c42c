//! Parts of a data set that are drawn: a limit, so many of each class, a share that is held back.
//!
//! What is drawn depends on the seed, the labels and the order of the samples alone; that order is the same on every machine.

use std::path::Path;

use vitesse_rng::Key;

use super::{DataSet, OpenOptions, Split};
use crate::{Error, Result};

impl DataSet {
    /// How many samples each class has, in the order of the labels.
    pub fn class_sizes(&self) -> Vec<usize> {
        members(self).iter().map(Vec::len).collect()
    }

    /// At most `n` samples, drawn by `seed`, with the classes in the proportions they have here; order as here.
    pub fn limit(&self, n: usize, seed: u64) -> DataSet {
        let mut chosen = stratified_order(self, Key::new(seed).with("limit"));
        chosen.truncate(n);
        chosen.sort_unstable();
        self.subset(&chosen)
    }

    /// At most `n` samples of each class, drawn by `seed`; order as here. Samples without a label are left out.
    ///
    /// What is drawn of a class does not depend on the others, and a larger `n` only adds to it: one shot is among two.
    pub fn per_class(&self, n: usize, seed: u64) -> DataSet {
        let key = Key::new(seed).with("per-class");
        let mut chosen = Vec::new();
        for (class, members) in self.class_names().iter().zip(members(self)) {
            let order = key.with(class).rng().permutation(members.len());
            chosen.extend(order.into_iter().take(n).map(|place| members[place]));
        }
        chosen.sort_unstable();
        self.subset(&chosen)
    }
}

/// The samples of each class.
fn members(data: &DataSet) -> Vec<Vec<usize>> {
    let mut members = vec![Vec::new(); data.class_names().len()];
    for index in 0..data.len() {
        if let Some(members) = data.label(index).and_then(|label| members.get_mut(label)) {
            members.push(index);
        }
    }
    members
}

/// The side of the training samples that `data.split` names, when a share of them serves as validation.
pub(super) fn hold_back(path: &Path, data: &DataSet, options: &OpenOptions) -> Result<DataSet> {
    let order = stratified_order(data, Key::new(options.seed).with("hold-back"));
    let held = (options.val_fraction * data.len() as f64).round() as usize;
    let (validation, train) = order.split_at(held.min(order.len()));
    let mut chosen = if data.split == Split::Validation {
        validation
    } else {
        train
    }
    .to_vec();
    if chosen.is_empty() {
        return Err(Error::data_set(
            path,
            format!(
                "holding back a share of {} of its {} samples leaves no {} samples",
                options.val_fraction,
                data.len(),
                data.split
            ),
        ));
    }
    chosen.sort_unstable();
    Ok(data.subset(&chosen))
}

/// All samples in an order of which every beginning has the classes in nearly their overall proportions.
///
/// The samples of a class of size `m`, shuffled, stand at `(j + u) / m` of the way with one random `u` a class.
fn stratified_order(data: &DataSet, key: Key) -> Vec<usize> {
    let class = |index: usize| data.label(index).map_or(0, |label| label + 1);
    let mut sizes: Vec<usize> = Vec::new();
    for index in 0..data.len() {
        let class = class(index);
        sizes.resize(sizes.len().max(class + 1), 0);
        sizes[class] += 1;
    }
    let mut rng = key.rng();
    let offsets: Vec<f64> = sizes.iter().map(|_| rng.uniform()).collect();
    let mut seen = vec![0usize; sizes.len()];
    let mut places: Vec<(f64, usize)> = rng
        .permutation(data.len())
        .into_iter()
        .map(|index| {
            let class = class(index);
            let place = (seen[class] as f64 + offsets[class]) / sizes[class] as f64;
            seen[class] += 1;
            (place, index)
        })
        .collect();
    places.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    places.into_iter().map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Samples;
    use super::*;
    use crate::Image;

    #[derive(Debug)]
    struct Labels(Vec<usize>);

    impl Samples for Labels {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn label(&self, index: usize) -> Option<usize> {
            Some(self.0[index])
        }

        fn name(&self, index: usize) -> String {
            let class = self.0[index];
            let place = self.0[..index].iter().filter(|&&label| label == class).count();
            format!("{class}/{place}")
        }

        fn load(&self, _: usize) -> Result<Image> {
            Image::new(1, 1, vec![0; 3])
        }
    }

    fn data(labels: Vec<usize>) -> DataSet {
        DataSet::new(Labels(labels), ["a", "b", "c"].map(str::to_owned).to_vec())
    }

    fn names(data: &DataSet) -> Vec<String> {
        let mut names: Vec<String> = (0..data.len()).map(|index| data.name(index)).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn shots_are_a_function_of_seed_class_and_index() {
        let sorted = data((0..60).map(|i| i / 20).collect());
        let mixed = data((0..60).map(|i| i % 3).collect());
        let few = sorted.per_class(4, 7);
        assert_eq!(few.class_sizes(), [4, 4, 4]);
        assert_eq!(names(&few), names(&mixed.per_class(4, 7)));
        assert_ne!(names(&few), names(&sorted.per_class(4, 8)));
        // Another class's samples change nothing, and fewer shots are among more.
        let grown = data((0..60).map(|i| i / 20).chain([2; 30]).collect());
        let of = |data: &DataSet, class: &str| {
            let of_class = names(data).into_iter().filter(|name| name.starts_with(class));
            of_class.collect::<Vec<_>>()
        };
        assert_eq!(of(&few, "1"), of(&grown.per_class(4, 7), "1"));
        let more = names(&sorted.per_class(5, 7));
        assert!(names(&few).iter().all(|name| more.contains(name)));
    }

    #[test]
    fn classes_are_matched_by_name() {
        let data = data(vec![0, 1, 2, 2, 0]);
        let some = data.of_classes(&["c".to_owned(), "nowhere".to_owned(), "a".to_owned()]);
        let found: Vec<(String, Option<usize>)> =
            (0..some.len()).map(|i| (some.name(i), some.label(i))).collect();
        let expected = [("0/0", 2), ("2/0", 0), ("2/1", 0), ("0/1", 2)];
        assert_eq!(
            found,
            expected.map(|(name, label)| (name.to_owned(), Some(label)))
        );
        assert_eq!(some.class_sizes(), [2, 0, 2]);
        assert_eq!(some.subset(&[1]).label(0), Some(0));
    }

    #[test]
    fn a_class_with_too_few_samples_gives_all_it_has() {
        let few = data(vec![0, 0, 0, 0, 2, 2]).per_class(3, 0);
        assert_eq!(few.class_sizes(), [3, 0, 2]);
    }
}
