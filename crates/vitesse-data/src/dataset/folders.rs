//! Class folders: `root/class/*.jpg`, or the same below `train/`, `val/`, `test/`. Also a folder of pictures without labels.
//!
//! Classes are the folder names in natural order, and the union over all splits, so that a label means the same class in
//! every split even where a class has no pictures in one of them. Hidden files are skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Contents, Form, Part, Samples, entries, natural};
use crate::decode::EXTENSIONS;
use crate::{DecodeOptions, Error, Image, Result, decode_file};

/// Extensions of picture formats that are not supported, counted so that their absence can be explained.
const UNSUPPORTED: [&str; 8] = ["tif", "tiff", "ppm", "pgm", "avif", "heic", "jp2", "jxl"];

/// Names of the folders of each stored part.
const PARTS: [(Part, &[&str]); 3] = [
    (Part::Train, &["train"]),
    (Part::Validation, &["val", "validation", "valid"]),
    (Part::Test, &["test"]),
];

/// Recognises `train/`, `val/`, `test/` with class folders in them.
pub(super) fn with_splits(root: &Path) -> Result<Option<Box<dyn Form>>> {
    let mut parts = Vec::new();
    for (part, names) in PARTS {
        for folder in names
            .iter()
            .map(|name| root.join(name))
            .filter(|folder| folder.is_dir())
        {
            if !class_folders(&folder)?.is_empty() {
                parts.push((part, folder));
            }
        }
    }
    if parts.is_empty() {
        Ok(None)
    } else {
        Folders::over(root, parts).map(Some)
    }
}

/// Recognises class folders, or pictures, right below `root`.
pub(super) fn whole(root: &Path) -> Result<Option<Box<dyn Form>>> {
    if !class_folders(root)?.is_empty() {
        return Folders::over(root, vec![(Part::Whole, root.to_path_buf())]).map(Some);
    }
    let pictures = entries(root)?
        .iter()
        .any(|path| path.is_file() && is_picture(path));
    Ok(pictures.then(|| {
        Box::new(Unlabelled {
            root: root.to_path_buf(),
        }) as Box<dyn Form>
    }))
}

fn class_folders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?
        .into_iter()
        .filter(|path| path.is_dir())
        .collect())
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|found| {
        extensions
            .iter()
            .any(|extension| found.eq_ignore_ascii_case(extension))
    })
}

fn is_picture(path: &Path) -> bool {
    has_extension(path, &EXTENSIONS)
}

struct Folders {
    root: PathBuf,
    parts: Vec<(Part, PathBuf)>,
    /// Class name → label.
    classes: BTreeMap<String, usize>,
}

impl Folders {
    fn over(root: &Path, parts: Vec<(Part, PathBuf)>) -> Result<Box<dyn Form>> {
        let mut names = Vec::new();
        for (_, folder) in &parts {
            names.extend(class_folders(folder)?.iter().map(|class| file_name(class)));
        }
        names.sort_by(|a, b| natural::compare(a, b));
        names.dedup();
        let classes = names
            .into_iter()
            .enumerate()
            .map(|(label, name)| (name, label))
            .collect();
        Ok(Box::new(Folders {
            root: root.to_path_buf(),
            parts,
            classes,
        }))
    }
}

impl Form for Folders {
    fn name(&self) -> &'static str {
        match self.parts.as_slice() {
            [(Part::Whole, _)] => "class folders",
            _ => "class folders with splits",
        }
    }

    fn parts(&self) -> Vec<Part> {
        self.parts.iter().map(|(part, _)| *part).collect()
    }

    fn read(&self, part: Part, decode: &DecodeOptions) -> Result<Contents> {
        let mut files = Files::new(&self.root, decode);
        for (_, folder) in self.parts.iter().filter(|(each, _)| *each == part) {
            for class in class_folders(folder)? {
                let before = (files.files.len(), files.skipped);
                files.collect(&class, self.classes.get(&file_name(&class)).copied())?;
                if files.files.len() == before.0 {
                    let reason = match files.skipped - before.1 {
                        0 => "expected pictures in this class folder, found none".to_owned(),
                        n => format!(
                            "expected pictures in this class folder, found {n} of formats that are not supported"
                        ),
                    };
                    return Err(Error::data_set(&class, reason));
                }
            }
        }
        let mut classes: Vec<(String, usize)> = self.classes.clone().into_iter().collect();
        classes.sort_by_key(|(_, label)| *label);
        Ok(files.into_contents(classes.into_iter().map(|(name, _)| name).collect()))
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
        files.collect(&self.root, None)?;
        Ok(files.into_contents(Vec::new()))
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Picture files with labels; the samples of this form and of lists.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    /// Path below `root`, and label.
    files: Vec<(PathBuf, Option<usize>)>,
    decode: DecodeOptions,
    skipped: usize,
}

impl Files {
    pub(super) fn new(root: &Path, decode: &DecodeOptions) -> Files {
        Files {
            root: root.to_path_buf(),
            files: Vec::new(),
            decode: decode.clone(),
            skipped: 0,
        }
    }

    pub(super) fn push(&mut self, file: PathBuf, label: Option<usize>) {
        self.files.push((file, label));
    }

    pub(super) fn into_contents(self, classes: Vec<String>) -> Contents {
        Contents {
            skipped: self.skipped,
            samples: Arc::new(self),
            classes,
        }
    }

    /// Adds the pictures below `folder`. Linked folders inside it are not followed: they could form a loop.
    fn collect(&mut self, folder: &Path, label: Option<usize>) -> Result<()> {
        for path in entries(folder)? {
            if path.is_dir() {
                if !path.is_symlink() {
                    self.collect(&path, label)?;
                }
            } else if is_picture(&path) {
                let below = path.strip_prefix(&self.root).unwrap_or(&path).to_path_buf();
                self.push(below, label);
            } else if has_extension(&path, &UNSUPPORTED) {
                self.skipped += 1;
            }
        }
        Ok(())
    }
}

impl Samples for Files {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.files[index].1
    }

    fn name(&self, index: usize) -> String {
        self.files[index].0.display().to_string()
    }

    fn load(&self, index: usize) -> Result<Image> {
        decode_file(&self.root.join(&self.files[index].0), &self.decode)
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
