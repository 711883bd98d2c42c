//! Folders of VTAB-1k's tasks: lists of pictures, one a split, a path and a label a line.
//!
//! The list of train and validation together has copies of its own of their pictures. Classes are numbers. How many there are is
//! known for the 19 tasks by the name of the folder; elsewhere the largest label of all lists says it. One list alone would
//! not do: 800 pictures of 100 classes lack some.

use std::path::{Path, PathBuf};

use super::files::Files;
use super::{Contents, Form, MAX_CLASSES, Part};
use crate::vtab::Task;
use crate::{DecodeOptions, Error, Result};

/// The list of each part.
const LISTS: [(Part, &str); 4] = [
    (Part::Train, "train800.txt"),
    (Part::Validation, "val200.txt"),
    (Part::TrainValidation, "train800val200.txt"),
    (Part::Test, "test.txt"),
];

/// Recognises a folder with a list to learn from.
pub(super) fn recognise(root: &Path) -> Result<Option<Box<dyn Form>>> {
    let parts: Vec<Part> = LISTS
        .into_iter()
        .filter(|(_, list)| root.join(list).is_file())
        .map(|(part, _)| part)
        .collect();
    if !parts.contains(&Part::Train) && !parts.contains(&Part::TrainValidation) {
        return Ok(None);
    }
    let whole = match root.file_name() {
        Some(_) => root.to_path_buf(),
        // Such as `.`.
        None => std::fs::canonicalize(root).map_err(Error::io(root))?,
    };
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    Ok(Some(Box::new(Lists {
        root: root.to_path_buf(),
        parts,
        task: Task::find(&name),
    })))
}

struct Lists {
    root: PathBuf,
    parts: Vec<Part>,
    task: Option<&'static Task>,
}

impl Lists {
    /// The lines of a part's list; none where it is not stored.
    fn lines(&self, part: Part) -> Result<Vec<(PathBuf, usize)>> {
        let stored = self.parts.contains(&part);
        let list = LISTS.into_iter().find(|(each, _)| *each == part && stored);
        let Some((_, list)) = list else {
            return Ok(Vec::new());
        };
        let path = self.root.join(list);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let lines: Vec<(PathBuf, usize)> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(number, line)| self.line(&path, number + 1, line))
            .collect::<Result<_>>()?;
        if lines.is_empty() {
            return Err(Error::data_set(
                &path,
                "expected one picture a line, found no line",
            ));
        }
        Ok(lines)
    }

    fn line(&self, path: &Path, number: usize, line: &str) -> Result<(PathBuf, usize)> {
        let bad = |reason: String| Error::data_set(path, format!("line {number}: {reason}"));
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [file, label] = *fields else {
            let found = fields.len();
            return Err(bad(format!("expected a path and a label, found {found} fields")));
        };
        let most = self.task.map_or(MAX_CLASSES, |task| task.classes);
        match label.parse() {
            Ok(label) if label < most => Ok((PathBuf::from(file), label)),
            _ => {
                let of = self
                    .task
                    .map_or_else(String::new, |task| format!(", as `{}` has", task.name));
                Err(bad(format!(
                    "the label is `{label}`, expected a whole number below {most}{of}"
                )))
            }
        }
    }
}

impl Form for Lists {
    fn name(&self) -> &'static str {
        "lists of VTAB-1k"
    }

    fn parts(&self) -> Vec<Part> {
        self.parts.clone()
    }

    fn read(&self, part: Part, decode: &DecodeOptions) -> Result<Contents> {
        let lines = self.lines(part)?;
        let classes = match self.task {
            Some(task) => task.classes,
            None => {
                let mut most = 0;
                for &part in &self.parts {
                    let labels = self.lines(part)?.into_iter().map(|(_, label)| label + 1);
                    most = labels.fold(most, usize::max);
                }
                most
            }
        };
        let mut files = Files::new(&self.root, decode);
        for (file, label) in lines {
            files.push(file, Some(label));
        }
        Ok(files.into_contents((0..classes).map(|class| class.to_string()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DataSet, OpenOptions, Split, open};
    use super::*;

    /// A task of four pictures, one of them grey, in a folder of this name.
    fn task(name: &str) -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join(name);
        for split in ["train800", "val200", "train800val200", "test"] {
            std::fs::create_dir_all(root.join("images").join(split)).unwrap();
        }
        let save = |file: &str, red: u8| {
            image::RgbImage::from_pixel(2, 2, image::Rgb([red, 0, 0]))
                .save(root.join("images").join(file))
                .unwrap();
        };
        save("train800/000000.png", 1);
        save("val200/000000.png", 2);
        save("train800val200/000000.png", 1);
        save("train800val200/000001.png", 2);
        image::GrayImage::from_pixel(2, 2, image::Luma([90]))
            .save(root.join("images/test/000000.jpg"))
            .unwrap();
        let list = |name: &str, text: &str| std::fs::write(root.join(name), text).unwrap();
        list("train800.txt", "images/train800/000000.png 0\n");
        list("val200.txt", "images/val200/000000.png\t4\n");
        list(
            "train800val200.txt",
            "images/train800val200/000000.png 0\nimages/train800val200/000001.png 4\n",
        );
        list("test.txt", "images/test/000000.jpg 3\n\n");
        (place, root)
    }

    fn read(root: &Path, split: Split) -> Result<DataSet> {
        open(
            root,
            &OpenOptions {
                split: Some(split),
                ..OpenOptions::default()
            },
        )
    }

    #[test]
    fn the_lists_are_the_splits() {
        let (_place, root) = task("mine");
        let splits = [
            (Split::Train, vec![0]),
            (Split::Validation, vec![4]),
            (Split::TrainValidation, vec![0, 4]),
            (Split::Test, vec![3]),
            // The pictures that train and validation have copies of are not counted twice.
            (Split::All, vec![0, 4, 3]),
        ];
        for (split, labels) in splits {
            let data = read(&root, split).unwrap();
            let found: Vec<usize> = (0..data.len()).filter_map(|i| data.label(i)).collect();
            assert_eq!(found, labels, "{split}");
            // The largest label of all lists, not of those learned from.
            assert_eq!(data.class_names(), ["0", "1", "2", "3", "4"], "{split}");
        }
        let union = read(&root, Split::TrainValidation).unwrap();
        assert_eq!(union.name(1), "images/train800val200/000001.png");
        assert_eq!(union.load(1).unwrap().pixel(0, 0), [2, 0, 0]);
        let [red, green, blue] = read(&root, Split::Test).unwrap().load(0).unwrap().pixel(1, 1);
        assert_eq!((red, green), (green, blue));
        assert_eq!(open(&root, &OpenOptions::default()).unwrap().split(), Split::Test);
    }

    #[test]
    fn a_known_task_has_its_own_number_of_classes() {
        for name in ["oxford_iiit_pet", "oxford_pet"] {
            let (_place, root) = task(name);
            let data = read(&root, Split::Train).unwrap();
            assert_eq!(data.class_names().len(), 37, "{name}");
        }
        let (_place, root) = task("kitti");
        let error = read(&root, Split::Validation).unwrap_err().to_string();
        assert!(error.contains("val200.txt"), "{error}");
        assert!(
            error.contains("line 1: the label is `4`, expected a whole number below 4, as `kitti` has"),
            "{error}"
        );
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, expected) in [
            (
                "a.png 0\nb.png\n",
                "line 2: expected a path and a label, found 1 fields",
            ),
            (
                "a b.png 0\n",
                "line 1: expected a path and a label, found 3 fields",
            ),
            ("a.png -1\n", "line 1: the label is `-1`, expected a whole number"),
            ("a.png x\n", "line 1: the label is `x`"),
            ("\n", "found no line"),
        ] {
            let (_place, root) = task("mine");
            std::fs::write(root.join("val200.txt"), text).unwrap();
            let error = read(&root, Split::Validation).unwrap_err().to_string();
            assert!(
                error.contains(expected) && error.contains("val200.txt"),
                "{error}"
            );
        }
        let (_place, root) = task("mine");
        std::fs::remove_file(root.join("test.txt")).unwrap();
        let error = read(&root, Split::Test).unwrap_err().to_string();
        assert!(
            error.ends_with("has no test split, it has: train, validation, trainval"),
            "{error}"
        );
    }
}
