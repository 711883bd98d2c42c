//! Class folders: `root/class/*.jpg`, or the same below `train/`, `val/`, `test/`. Also a folder of pictures without labels.
//!
//! Classes are the folder names in natural order, and the union over all splits, so that a label means the same class in
//! every split even where a class has no pictures in one of them. What lies beside is passed over and written down.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::files::Files;
use super::walk::{Ignored, IgnoredReason, Kind, Search, real, shown, some};
use super::{Contents, Form, Part, natural};
use crate::{DecodeOptions, Error, Result};

/// Recognises folders of splits with class folders in them.
pub(super) fn with_splits(root: &Path) -> Result<Option<Box<dyn Form>>> {
    let names = std::fs::read_dir(root).map_err(Error::io(root))?.flatten();
    if !names
        .into_iter()
        .any(|entry| Part::spelt(&entry.file_name().to_string_lossy()).is_some())
    {
        // Looking closer would take long in a folder of a million pictures.
        return Ok(None);
    }
    let mut search = Search::below(root);
    let mut parts: Vec<PartFolder> = Vec::new();
    for entry in search.entries(root)? {
        let part = Part::spelt(&entry.name().to_string_lossy()).filter(|_| entry.kind.is_folder());
        let folder = part
            .map(|part| PartFolder::read(root, part, &entry.path))
            .transpose()?;
        match folder.filter(|folder| !folder.classes.is_empty()) {
            Some(folder) => parts.push(folder),
            None => search.ignore(&entry.path, IgnoredReason::Outside),
        }
    }
    if parts.is_empty() {
        return Ok(None);
    }
    parts.sort_by_key(|folder| folder.part as usize);
    for pair in parts.windows(2) {
        if let [one, other] = pair
            && one.part == other.part
        {
            let [one_name, other_name] =
                [one, other].map(|each| shown(each.folder.file_name().unwrap_or_default()));
            let split = one.part.name();
            let reason = format!(
                "`{one_name}/` and `{other_name}/` both mean the {split} split, expected one folder for it; rename the other, \
                 or move it away"
            );
            return Err(Error::data_set(root, reason));
        }
    }
    Folders::over(root, parts, search.ignored).map(Some)
}

/// Recognises class folders, or pictures, right below `root`.
pub(super) fn whole(root: &Path) -> Result<Option<Box<dyn Form>>> {
    let folder = PartFolder::read(root, Part::Whole, root)?;
    if folder.classes.is_empty() {
        return Ok(folder.pictures.then(|| {
            Box::new(Unlabelled {
                root: root.to_path_buf(),
            }) as Box<dyn Form>
        }));
    }
    if folder
        .classes
        .keys()
        .all(|name| Part::spelt(&name.to_string_lossy()).is_some())
    {
        let names: Vec<String> = folder
            .classes
            .keys()
            .map(|name| format!("{}/", shown(name)))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let reason = format!(
            "{} by name a split each, expected a folder a class in them, found none; a `labels.csv` beside them can say the \
             classes",
            some(&names)
        );
        return Err(Error::data_set(root, reason));
    }
    if let Some(inner) = folder
        .classes
        .values()
        .next()
        .filter(|_| folder.classes.len() == 1)
        && with_splits(inner)?.is_some()
    {
        let inner = inner.display();
        let reason = format!("its only folder is a data set with splits; give that: `{inner}`");
        return Err(Error::data_set(root, reason));
    }
    Folders::over(root, vec![folder], Vec::new()).map(Some)
}

/// A folder of class folders.
struct PartFolder {
    part: Part,
    folder: PathBuf,
    /// Class folders by their names, which need not be UTF-8.
    classes: BTreeMap<OsString, PathBuf>,
    /// Whether there are pictures beside the class folders.
    pictures: bool,
    ignored: Vec<Ignored>,
}

impl PartFolder {
    fn read(root: &Path, part: Part, folder: &Path) -> Result<PartFolder> {
        let mut search = Search::below(root);
        let mut classes = BTreeMap::new();
        let mut pictures = false;
        for entry in search.entries(folder)? {
            if entry.kind == Kind::LinkedFolder && real(folder)?.starts_with(real(&entry.path)?) {
                search.ignore(&entry.path, IgnoredReason::RepeatedFolder);
            } else if entry.kind.is_folder() {
                classes.insert(entry.name().to_owned(), entry.path);
            } else {
                pictures = true;
                search.ignore(&entry.path, IgnoredReason::Outside);
            }
        }
        Ok(PartFolder {
            part,
            folder: folder.to_path_buf(),
            classes,
            pictures,
            ignored: search.ignored,
        })
    }
}

struct Folders {
    root: PathBuf,
    parts: Vec<PartFolder>,
    /// Names of the class folders, in the order of the labels.
    classes: Vec<OsString>,
    beside: Vec<Ignored>,
}

impl Folders {
    fn over(root: &Path, parts: Vec<PartFolder>, beside: Vec<Ignored>) -> Result<Box<dyn Form>> {
        let mut classes: Vec<OsString> = parts
            .iter()
            .flat_map(|part| part.classes.keys().cloned())
            .collect();
        classes.sort_by(|a, b| natural::compare(a.as_encoded_bytes(), b.as_encoded_bytes()));
        classes.dedup();
        let mut names: Vec<String> = classes.iter().map(|class| shown(class)).collect();
        names.sort_unstable();
        if let Some([name, _]) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let reason = format!(
                "two class folders would both be called `{name}`, expected names that differ; rename one"
            );
            return Err(Error::data_set(root, reason));
        }
        Ok(Box::new(Folders {
            root: root.to_path_buf(),
            parts,
            classes,
            beside,
        }))
    }

    /// An error where no part has a picture of a class.
    fn check_class(&self, class: &OsStr) -> Result<()> {
        let mut error = None;
        for folder in self.parts.iter().filter_map(|part| part.classes.get(class)) {
            let mut search = Search::below(&self.root);
            if !search.pictures(folder)?.is_empty() {
                return Ok(());
            }
            let unsupported = |each: &&Ignored| each.reason == IgnoredReason::UnsupportedFormat;
            let found = match search.ignored.iter().filter(unsupported).count() {
                0 => "none".to_owned(),
                n => format!("{n} of formats that are not supported"),
            };
            let reason = format!("expected pictures in this class folder, found {found}");
            error.get_or_insert(Error::data_set(folder, reason));
        }
        error.map_or(Ok(()), Err)
    }

    /// What is odd about a data set of one class: that what was meant as classes may lie one folder deeper.
    fn one_class(&self) -> Result<Option<String>> {
        let folder = self.parts.first().and_then(|part| part.classes.values().next());
        let Some(folder) = folder.filter(|_| self.classes.len() == 1) else {
            return Ok(None);
        };
        let entries = Search::below(&self.root).entries(folder)?;
        let deeper = !entries.is_empty() && entries.iter().all(|entry| entry.kind.is_folder());
        Ok(deeper.then(|| {
            let folder = folder.display();
            format!("`{folder}` is the only class, and has folders in it; if those are the classes, move them up or give its path")
        }))
    }
}

impl Form for Folders {
    fn name(&self) -> &'static str {
        match self.parts.as_slice() {
            [folder] if folder.part == Part::Whole => "class folders",
            _ => "class folders with splits",
        }
    }

    fn parts(&self) -> Vec<Part> {
        self.parts.iter().map(|folder| folder.part).collect()
    }

    fn beside(&self) -> Vec<Ignored> {
        self.beside.clone()
    }

    fn read(&self, part: Part, decode: &DecodeOptions) -> Result<Contents> {
        let mut files = Files::new(&self.root, decode);
        let mut search = Search::below(&self.root);
        let mut without = Vec::new();
        for folder in self.parts.iter().filter(|folder| folder.part == part) {
            search.ignored.extend(folder.ignored.iter().cloned());
            for (label, name) in self.classes.iter().enumerate() {
                let class = folder.classes.get(name);
                let pictures = class
                    .map(|class| search.pictures(class))
                    .transpose()?
                    .unwrap_or_default();
                if pictures.is_empty() {
                    self.check_class(name)?;
                    without.push(shown(name));
                }
                for picture in pictures {
                    files.push(picture, Some(label));
                }
            }
        }
        let mut notes: Vec<String> = self.one_class()?.into_iter().collect();
        if !without.is_empty() {
            let without: Vec<&str> = without.iter().map(String::as_str).collect();
            notes.push(format!(
                "the {} split has no pictures of {}",
                part.name(),
                some(&without)
            ));
        }
        Ok(Contents {
            notes,
            ignored: search.ignored,
            ..files.into_contents(self.classes.iter().map(|class| shown(class)).collect())
        })
    }
}

struct Unlabelled {
    root: PathBuf,
}

impl Form for Unlabelled {
    fn name(&self) -> &'static str {
        "pictures without labels"
    }

    fn parts(&self) -> Vec<Part> {
        vec![Part::Whole]
    }

    fn read(&self, _: Part, decode: &DecodeOptions) -> Result<Contents> {
        let mut files = Files::new(&self.root, decode);
        let mut search = Search::below(&self.root);
        for picture in search.pictures(&self.root)? {
            files.push(picture, None);
        }
        Ok(Contents {
            ignored: search.ignored,
            ..files.into_contents(Vec::new())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{OpenOptions, Split, open};
    use super::*;

    /// Writes one-pixel pictures.
    pub(super) fn write(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::from_pixel(1, 1, image::Rgb([1, 2, 3]))
                .save(path)
                .unwrap();
        }
    }

    fn with_split(split: Split) -> OpenOptions {
        OpenOptions {
            split: Some(split),
            ..OpenOptions::default()
        }
    }

    #[test]
    fn labels_mean_the_same_class_in_every_split() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                "train/c2/a.png",
                "train/c10/b.png",
                "train/c1/x.png",
                "test/c10/2.png",
                "test/c10/10.png",
            ],
        );
        std::fs::write(root.path().join("train/c2/.hidden.png"), b"").unwrap();
        std::fs::write(root.path().join("train/c2/notes.txt"), b"").unwrap();
        std::fs::write(root.path().join("train/c2/scan.tif"), b"").unwrap();
        let train = open(
            root.path(),
            &OpenOptions {
                val_fraction: 0.0,
                ..with_split(Split::Train)
            },
        )
        .unwrap();
        assert_eq!(train.class_names(), ["c1", "c2", "c10"]);
        assert_eq!((train.len(), train.skipped()), (3, 1));
        let test = open(root.path(), &OpenOptions::default()).unwrap();
        assert_eq!(test.split(), Split::Test);
        assert_eq!(test.name(0), Path::new("test/c10/2.png").display().to_string());
        assert_eq!((test.label(0), test.label(2)), (Some(2), None));
        assert_eq!(test.load(1).unwrap().pixel(0, 0), [1, 2, 3]);
        assert_eq!(open(root.path(), &with_split(Split::All)).unwrap().len(), 5);
    }

    #[test]
    fn an_empty_class_is_named() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &["a/1.png"]);
        std::fs::create_dir(root.path().join("b")).unwrap();
        let error = open(root.path(), &OpenOptions::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&root.path().join("b").display().to_string()),
            "{error}"
        );
        assert!(error.contains("expected pictures"), "{error}");
    }

    #[test]
    fn missing_parts_are_named() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &["val/a/1.png"]);
        let error = open(root.path(), &with_split(Split::Train))
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("has no train split, it has: validation"),
            "{error}"
        );
        assert!(
            open(root.path().join("nowhere"), &OpenOptions::default())
                .unwrap_err()
                .to_string()
                .contains("nowhere")
        );
        let empty = tempfile::tempdir().unwrap();
        let error = open(empty.path(), &OpenOptions::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("found none of them"), "{error}");
    }

    #[test]
    fn pictures_without_classes_have_no_labels() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &["b.png", "a.png"]);
        let data = open(root.path(), &OpenOptions::default()).unwrap();
        assert_eq!(
            (data.len(), data.name(0).as_str(), data.label(0)),
            (2, "a.png", None)
        );
        assert!(data.class_names().is_empty());
    }
}
