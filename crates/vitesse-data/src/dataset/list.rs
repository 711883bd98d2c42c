//! Lists: a CSV file that names pictures and their classes, `filename,class_index[,…,name]`.
//!
//! File names are relative to the list. An empty `class_index` is a picture without a label. Class names come from the column
//! `name`; a class that none of the rows names is called by its number.

use std::path::{Path, PathBuf};

use super::files::Files;
use super::{Contents, Form, MAX_CLASSES, Part};
use crate::{DecodeOptions, Error, Result};

/// The name of a list that makes its folder a data set.
const FILE: &str = "labels.csv";

pub(super) fn in_folder(root: &Path) -> Result<Option<Box<dyn Form>>> {
    let path = root.join(FILE);
    Ok(path.is_file().then(|| recognise(&path)))
}

pub(super) fn recognise(path: &Path) -> Box<dyn Form> {
    Box::new(List {
        path: path.to_path_buf(),
    })
}

struct List {
    path: PathBuf,
}

impl Form for List {
    fn name(&self) -> &'static str {
        "a list"
    }

    fn parts(&self) -> Vec<Part> {
        vec![Part::Whole]
    }

    fn read(&self, _: Part, decode: &DecodeOptions) -> Result<Contents> {
        let bad = |reason: String| Error::data_set(&self.path, reason);
        let file = std::fs::File::open(&self.path).map_err(Error::io(&self.path))?;
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
        let header = reader.headers().map_err(|error| bad(error.to_string()))?.clone();
        let column = |name: &str| header.iter().position(|column| column == name);
        let (Some(filename), Some(class)) = (column("filename"), column("class_index")) else {
            let found = header.iter().collect::<Vec<_>>().join(",");
            return Err(bad(format!(
                "expected a header `filename,class_index[,…,name]`, found `{found}`"
            )));
        };
        let name = column("name");

        let mut files = Files::new(self.path.parent().unwrap_or(Path::new("")), decode);
        let mut classes: Vec<Option<String>> = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|error| bad(error.to_string()))?;
            let line = record.position().map_or(0, csv::Position::line);
            let file = record.get(filename).unwrap_or_default();
            if file.is_empty() {
                return Err(bad(format!("line {line} has no file name")));
            }
            let text = record.get(class).unwrap_or_default();
            let label = match text.parse::<usize>() {
                Ok(label) if label < MAX_CLASSES => Some(label),
                _ if text.is_empty() => None,
                _ => {
                    let expected = format!("a whole number below {MAX_CLASSES}");
                    return Err(bad(format!(
                        "line {line}: class_index is `{text}`, expected {expected}"
                    )));
                }
            };
            if let Some(label) = label {
                classes.resize(classes.len().max(label + 1), None);
                let named = name
                    .and_then(|name| record.get(name))
                    .filter(|name| !name.is_empty());
                classes[label] = classes[label].take().or(named.map(str::to_owned));
            }
            files.push(PathBuf::from(file), label);
        }
        let classes = classes.into_iter().enumerate();
        let classes = classes
            .map(|(label, name)| name.unwrap_or_else(|| label.to_string()))
            .collect();
        let contents = files.into_contents(classes);
        if contents.samples.is_empty() {
            return Err(bad(
                "expected one picture a line after the header, found no line".to_owned()
            ));
        }
        Ok(contents)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{OpenOptions, Split, open};
    use super::*;

    fn list(text: &str) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(FILE), text).unwrap();
        let path = root.path().to_path_buf();
        (root, path)
    }

    #[test]
    fn columns_are_found_by_name_and_quotes_are_understood() {
        let (_root, path) =
            list("class_index,name,filename\n2,\"cat, grey\",\"a \"\"b\"\".jpg\"\n0,dog,b.jpg\n,,c.jpg\n");
        let data = open(&path, &OpenOptions::default()).unwrap();
        assert_eq!(data.split(), Split::All);
        assert_eq!(data.class_names(), ["dog", "1", "cat, grey"]);
        assert_eq!(data.name(0), "a \"b\".jpg");
        assert_eq!(
            [data.label(0), data.label(1), data.label(2)],
            [Some(2), Some(0), None]
        );
        let error = data.load(1).unwrap_err().to_string();
        assert!(error.contains("b.jpg"), "{error}");
        assert_eq!(open(path.join(FILE), &OpenOptions::default()).unwrap().len(), 3);
    }

    #[test]
    fn bad_lists_are_sentences() {
        for (text, expected) in [
            (
                "a.jpg,3\n",
                "expected a header `filename,class_index[,…,name]`, found `a.jpg,3`",
            ),
            ("filename,class_index\n", "found no line"),
            ("filename,class_index\na.jpg,x\n", "line 2: class_index is `x`"),
            ("filename,class_index\na.jpg,-1\n", "line 2: class_index is `-1`"),
            ("filename,class_index\na.jpg,99999999999\n", "line 2: class_index"),
            ("filename,class_index\n,1\n", "line 2 has no file name"),
            ("filename,class_index\na.jpg,1,2\n", "line: 2"),
        ] {
            let (_root, path) = list(text);
            let error = open(&path, &OpenOptions::default()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(FILE), "{error}");
        }
    }
}
