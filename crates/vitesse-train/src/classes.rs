//! Which class of a model each class of a data set is.
//!
//! Class folders are numbered in the order of their names, and a model numbers its classes in the order it once learned them,
//! so the same classes often have other numbers. Where both have names, they are matched by name; a model or data without
//! names are taken by position, which is all that can be done.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use vitesse_data::DataSet;
use vitesse_model::config::Config;
use vitesse_model::zoo::imagenet;
use vitesse_words::counted;

use crate::{Error, Result};

/// Classes that a sentence names at most.
const SHOWN: usize = 3;

/// How the classes of data and model find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelsBy {
    /// By name where both have names, by position otherwise.
    #[default]
    Name,
    /// By position, whatever the names are.
    Index,
}

/// What the classes of a model are called.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClassNames {
    /// Of each class, its name first; then what else it is called. Empty where nothing is known.
    names: Vec<Vec<String>>,
}

/// Data whose labels are the model's classes.
#[derive(Debug, Clone)]
pub struct Matched {
    /// The samples; the names of the classes stand in the model's order.
    pub data: DataSet,
    /// The model's class for each class of the data as they were; empty where they were taken by position.
    pub places: Vec<usize>,
    /// What a user should know, in a sentence.
    pub note: Option<String>,
}

impl ClassNames {
    /// Those of a checkpoint's `config` for a model with so many classes. Names that only number the classes are none. The classes
    /// of ImageNet are also known by their synsets and by each of their words.
    pub fn of(config: &Config, classes: usize) -> ClassNames {
        let (labels, descriptions) = config.class_names(classes);
        let whole = labels.len() == classes && labels.keys().copied().eq(0..classes);
        let plain: Vec<String> = labels.into_values().collect();
        if !whole || numbers(&plain) {
            return ClassNames::default();
        }
        let described = |name: String| {
            let description = descriptions.get(&name).cloned();
            [name].into_iter().chain(description).collect()
        };
        let mut names: Vec<Vec<String>> = plain.into_iter().map(described).collect();
        let same = |(names, (synset, words)): (&Vec<String>, (&str, &str))| {
            names.iter().any(|name| name == synset || name == words)
        };
        // Lists of them differ in a few words.
        let imagenet = names.len() == imagenet::CLASSES
            && names
                .iter()
                .zip(imagenet::classes())
                .filter(|&pair| same(pair))
                .count()
                >= 9 * imagenet::CLASSES / 10;
        if imagenet {
            for (names, (synset, words)) in names.iter_mut().zip(imagenet::classes()) {
                let each = [synset, words].into_iter().chain(words.split(", "));
                names.extend(each.map(str::to_owned));
            }
        }
        ClassNames { names }
    }

    /// The model's class for each class called as in `data`, where both have names. Where names are not equal to the letter, case
    /// does not count, nor what stands between words, nor a number before them: `004_Sea-Lion` is `sea lion`.
    ///
    /// # Errors
    /// [`Error::ClassNames`] for classes that the model does not have, or has more than once.
    pub fn places(&self, data: &[String]) -> Result<Option<Vec<usize>>> {
        if self.names.is_empty() || data.is_empty() || numbers(data) {
            return Ok(None);
        }
        // Names that are equal where they stand need not be unambiguous: ImageNet has two cranes.
        let equal = |(name, class): (&String, &Vec<String>)| class.contains(name);
        if data.len() <= self.names.len() && data.iter().zip(&self.names).all(equal) {
            return Ok(Some((0..data.len()).collect()));
        }
        for key in [exact, words, unnumbered] {
            let known = self.index(key);
            let places: Option<Vec<usize>> = data
                .iter()
                .map(|name| known.get(&key(name)).copied().flatten())
                .collect();
            let mut distinct = places.clone().unwrap_or_default();
            distinct.sort_unstable();
            distinct.dedup();
            if places.is_some() && distinct.len() == data.len() {
                return Ok(places);
            }
        }
        let known = self.index(unnumbered);
        let unknown = data
            .iter()
            .filter(|name| known.get(&unnumbered(name)).copied().flatten().is_none());
        let unknown = Few::of(unknown);
        Err(Error::ClassNames {
            // Where each is known, two names of the data mean one class.
            unknown: if unknown.is_empty() {
                Few::of(data.iter())
            } else {
                unknown
            }
            .to_string(),
            known: Few::of(self.names.iter().filter_map(|names| names.first()).take(SHOWN)).to_string(),
            classes: self.names.len(),
        })
    }

    /// Which class each name means; nothing for a name of several.
    fn index(&self, key: fn(&str) -> String) -> HashMap<String, Option<usize>> {
        let mut index: HashMap<String, Option<usize>> = HashMap::new();
        for (class, names) in self.names.iter().enumerate() {
            for name in names {
                let entry = index.entry(key(name)).or_insert(Some(class));
                if *entry != Some(class) {
                    *entry = None;
                }
            }
        }
        index
    }

    /// `data` with the model's labels, of which there are `classes`.
    ///
    /// # Errors
    /// As [`ClassNames::places`], unless `by` is [`LabelsBy::Index`].
    pub fn matched(&self, data: &DataSet, classes: usize, by: LabelsBy) -> Result<Matched> {
        let own = data.class_names();
        let found = match by {
            LabelsBy::Name => self.places(own)?,
            LabelsBy::Index => None,
        };
        let Some(places) = found else {
            let differs = |(name, class): (&String, &Vec<String>)| {
                !class.iter().any(|known| unnumbered(known) == unnumbered(name))
            };
            let other = own
                .iter()
                .zip(&self.names)
                .find(|&pair| !numbers(own) && differs(pair));
            let note = other.map(|(name, class)| {
                let known = class.first().map_or("", String::as_str);
                format!("classes are taken by position, as asked: the data's `{name}` is the model's `{known}`, and so on")
            });
            let fewer = !own.is_empty() && own.len() < classes;
            let first = fewer.then(|| {
                format!(
                    "the data have {} and the model {classes}, and nothing tells which: they are taken for its first",
                    counted(own.len(), "class")
                )
            });
            return Ok(Matched {
                data: data.clone(),
                places: Vec::new(),
                note: note.or(first),
            });
        };
        let in_order = places.iter().copied().eq(0..places.len());
        let note = match (own.len() < classes, in_order) {
            (true, _) => Some(format!(
                "the data have {} of the model's {classes} classes, which are matched by name",
                own.len()
            )),
            (false, false) => {
                let moved = places.iter().enumerate().find(|(class, place)| class != *place);
                moved.map(|(class, place)| {
                    let name = own.get(class).map_or("", String::as_str);
                    format!(
                        "the data's classes stand in another order than the model's, and are matched by name: `{name}` is \
                         class {class} of the data and {place} of the model"
                    )
                })
            }
            (false, true) => None,
        };
        let mut names: Vec<String> = self
            .names
            .iter()
            .filter_map(|names| names.first())
            .cloned()
            .collect();
        for (name, &place) in own.iter().zip(&places) {
            if let Some(slot) = names.get_mut(place) {
                slot.clone_from(name);
            }
        }
        Ok(Matched {
            data: data.relabelled(&places, names),
            places,
            note,
        })
    }
}

/// Whether the names only say which number each class has: `0`, `1` … or transformers' `LABEL_0`.
fn numbers(names: &[String]) -> bool {
    let number = |name: &str| name.strip_prefix("LABEL_").unwrap_or(name).parse::<usize>();
    names
        .iter()
        .enumerate()
        .all(|(class, name)| number(name) == Ok(class))
}

fn exact(name: &str) -> String {
    name.to_owned()
}

/// The words of a name, in lower case.
fn words(name: &str) -> String {
    let words = name
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// The words without a number before them.
fn unnumbered(name: &str) -> String {
    let words = words(name);
    match words.split_once(' ') {
        Some((number, rest)) if number.parse::<u64>().is_ok() => rest.to_owned(),
        _ => words,
    }
}

/// The first of several names, and how many more there are.
struct Few<'a> {
    names: Vec<&'a str>,
    more: usize,
}

impl<'a> Few<'a> {
    fn of(names: impl Iterator<Item = &'a String>) -> Few<'a> {
        let mut names = names.map(String::as_str);
        Few {
            names: names.by_ref().take(SHOWN).collect(),
            more: names.count(),
        }
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

impl fmt::Display for Few<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.names.join("`, `"))?;
        match self.more {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vitesse_data::{Image, Samples};

    use super::*;

    fn strings<const N: usize>(names: [&str; N]) -> Vec<String> {
        names.map(str::to_owned).to_vec()
    }

    fn known<const N: usize>(names: [&str; N]) -> ClassNames {
        let config = Config {
            label_names: strings(names).into_iter().enumerate().collect(),
            label_descriptions: BTreeMap::from([("n01".to_owned(), "tench, Tinca tinca".to_owned())]),
            ..Config::default()
        };
        ClassNames::of(&config, N)
    }

    /// One sample a class.
    #[derive(Debug)]
    struct One(usize);

    impl Samples for One {
        fn len(&self) -> usize {
            self.0
        }
        fn label(&self, index: usize) -> Option<usize> {
            Some(index)
        }
        fn name(&self, index: usize) -> String {
            index.to_string()
        }
        fn load(&self, _: usize) -> vitesse_data::Result<Image> {
            Image::new(1, 1, vec![0; 3])
        }
    }

    fn data<const N: usize>(names: [&str; N]) -> DataSet {
        DataSet::new(One(N), strings(names))
    }

    #[test]
    fn classes_are_found_by_name_however_they_are_spelt() {
        let model = known(["dog", "Great_White-shark", "n01"]);
        for (names, places) in [
            (vec!["dog"], vec![0]),
            (vec!["003_dog", "004.great white shark"], vec![0, 1]),
            (vec!["n01", "dog"], vec![2, 0]),
            (vec!["great white shark", "tench, tinca tinca"], vec![1, 2]),
        ] {
            let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
            assert_eq!(model.places(&names).unwrap(), Some(places));
        }
    }

    #[test]
    fn what_has_no_names_is_taken_by_position() {
        let model = known(["LABEL_0", "LABEL_1"]);
        assert_eq!(model.places(&strings(["dog", "cat"])).unwrap(), None);
        let model = known(["dog", "cat"]);
        assert_eq!(model.places(&strings(["0", "1"])).unwrap(), None);
        assert_eq!(model.places(&[]).unwrap(), None);
        assert_eq!(ClassNames::default().places(&strings(["dog"])).unwrap(), None);
        // Names of some classes only tell nothing of the others.
        let config = Config {
            label_names: BTreeMap::from([(1, "dog".to_owned())]),
            ..Config::default()
        };
        assert_eq!(ClassNames::of(&config, 2), ClassNames::default());
    }

    #[test]
    fn names_that_do_not_fit_are_refused_and_named() {
        let model = known(["dog", "cat", "crane", "crane"]);
        for (names, says) in [
            (strings(["cat", "lynx"]), "`lynx`"),
            // Which crane? Where they stand in order, it is clear.
            (strings(["crane", "cat"]), "`crane`"),
            // Two folders of one class.
            (strings(["Dog", "dog"]), "`Dog`, `dog`"),
            (strings(["a", "b", "c", "d", "e"]), "`a`, `b`, `c` and 2 more"),
            // With their numbers they are two, the model has none.
            (strings(["1 cat", "2 cat"]), "`1 cat`, `2 cat`"),
            // Numbers out of order are names.
            (strings(["1", "0"]), "`1`, `0`"),
        ] {
            let error = model.places(&names).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("`dog`"), "{error}");
            assert!(error.contains("--labels-by index"), "{error}");
        }
    }

    #[test]
    fn names_that_fit_where_they_stand_need_not_tell_all_apart() {
        let model = known(["dog", "crane", "crane"]);
        // A number before a name, or what stands behind it, may be all that tells two apart.
        let cents = known(["1 cent", "10 cent", "2 cent"]);
        let found = cents.places(&strings(["1 cent", "2 cent", "10 cent"])).unwrap();
        assert_eq!(found, Some(vec![0, 2, 1]));
        assert_eq!(cents.places(&strings(["2 cent"])).unwrap(), Some(vec![2]));
        assert_eq!(
            model.places(&strings(["dog", "crane", "crane"])).unwrap(),
            Some(vec![0, 1, 2])
        );
    }

    #[test]
    fn imagenet_is_known_by_synset_and_by_word() {
        let mut published = Config::default();
        published.pretrained_cfg.tag = Some("fb_in1k".into());
        // transformers names the classes in words alone.
        let words = imagenet::classes().map(|(_, words)| words.to_owned());
        let transformers = Config {
            label_names: words.enumerate().collect(),
            ..Config::default()
        };
        for config in [published, transformers] {
            let model = ClassNames::of(&config, imagenet::CLASSES);
            for (name, class) in [
                ("n02099601", 207),
                ("Golden_Retriever", 207),
                ("tench", 0),
                ("Tinca tinca", 0),
            ] {
                assert_eq!(
                    model.places(&strings([name])).unwrap(),
                    Some(vec![class]),
                    "{name}"
                );
            }
            assert!(model.places(&strings(["unicorn"])).is_err());
        }
    }

    #[test]
    fn matched_data_have_the_models_labels() {
        let model = known(["dog", "cat", "eel"]);
        let labels = |data: &DataSet| (0..data.len()).filter_map(|i| data.label(i)).collect::<Vec<_>>();
        let found = model.matched(&data(["eel", "Cat"]), 3, LabelsBy::Name).unwrap();
        assert_eq!(labels(&found.data), [2, 1]);
        assert_eq!(found.data.class_names(), strings(["dog", "Cat", "eel"]));
        assert!(found.note.unwrap().contains("2 of the model's 3 classes"));

        let found = model
            .matched(&data(["cat", "dog", "eel"]), 3, LabelsBy::Name)
            .unwrap();
        assert_eq!(labels(&found.data), [1, 0, 2]);
        assert!(
            found
                .note
                .unwrap()
                .contains("`cat` is class 0 of the data and 1 of the model")
        );

        let found = model
            .matched(&data(["dog", "cat", "eel"]), 3, LabelsBy::Name)
            .unwrap();
        assert_eq!((labels(&found.data), found.note), (vec![0, 1, 2], None));

        let found = model
            .matched(&data(["ant", "bee", "cow"]), 3, LabelsBy::Index)
            .unwrap();
        assert_eq!(labels(&found.data), [0, 1, 2]);
        assert!(found.note.unwrap().contains("`ant` is the model's `dog`"));
    }
}
