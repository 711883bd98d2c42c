//! Lists: a CSV file that names pictures and their classes, `filename,class_index[,…,name,split]`.
//!
//! File names are relative to the list. An empty `class_index` is a picture without a label. Class names come from the column
//! `name`; a class that none of the rows names is called by its number. Where there is a column `split`, it says which part a
//! picture is in. Other columns are for others.

use std::path::{Path, PathBuf};

use super::csv::{Row, rows};
use super::files::Files;
use super::{Contents, Form, MAX_CLASSES, Part};
use crate::{DecodeOptions, Error, Result};

/// The name of a list that makes its folder a data set.
const FILE: &str = "labels.csv";

pub(super) fn in_folder(root: &Path) -> Result<Option<Box<dyn Form>>> {
    let path = root.join(FILE);
    path.is_file().then(|| recognise(&path)).transpose()
}

pub(super) fn recognise(path: &Path) -> Result<Box<dyn Form>> {
    let bad = |reason: String| Error::data_set(path, reason);
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count();
        bad(format!("line {line} is no UTF-8; save the list as UTF-8"))
    })?;
    let mut rows = rows(&text);
    let header = rows
        .next()
        .transpose()
        .map_err(bad)?
        .map(|row| row.fields)
        .unwrap_or_default();
    let columns = Columns::of(&header).map_err(bad)?;
    let mut list = List {
        root: path.parent().unwrap_or(Path::new("")).to_path_buf(),
        pictures: Vec::new(),
        classes: Vec::new(),
    };
    for row in rows {
        let row = row.map_err(bad)?;
        if row.fields.len() != header.len() {
            let (found, expected) = (row.fields.len(), header.len());
            let line = row.line;
            return Err(bad(format!(
                "line {line} has {found} fields, the header has {expected}"
            )));
        }
        list.add(&columns, &row)
            .map_err(|reason| bad(format!("line {}{reason}", row.line)))?;
    }
    if list.pictures.is_empty() {
        return Err(bad(
            "expected one picture a line after the header, found no line".to_owned()
        ));
    }
    Ok(Box::new(list))
}

/// Where the columns are.
struct Columns {
    filename: usize,
    class_index: usize,
    name: Option<usize>,
    split: Option<usize>,
}

impl Columns {
    /// Finds the columns by their names; case, spaces, `_` and `-` do not count.
    fn of(header: &[String]) -> std::result::Result<Columns, String> {
        let plain = |name: &String| name.to_lowercase().replace([' ', '_', '-'], "");
        let plain: Vec<String> = header.iter().map(plain).collect();
        let column = |wanted: &str| {
            let mut places = (0..plain.len()).filter(|&place| plain[place] == wanted);
            match (places.next(), places.next()) {
                (Some(one), Some(other)) => Err(format!(
                    "the header has `{}` and `{}`, expected one such column",
                    header[one], header[other]
                )),
                (place, _) => Ok(place),
            }
        };
        let (Some(filename), Some(class_index)) = (column("filename")?, column("classindex")?) else {
            let found = header.join(",");
            return Err(format!(
                "expected a header `filename,class_index[,…,name,split]`, found `{found}`"
            ));
        };
        Ok(Columns {
            filename,
            class_index,
            name: column("name")?,
            split: column("split")?,
        })
    }
}

struct List {
    root: PathBuf,
    pictures: Vec<(Part, PathBuf, Option<usize>)>,
    classes: Vec<Option<String>>,
}

impl List {
    /// Takes a row, or says what is wrong with it.
    fn add(&mut self, columns: &Columns, row: &Row) -> std::result::Result<(), String> {
        let field = |column: usize| row.fields.get(column).map_or("", String::as_str);
        let file = field(columns.filename);
        if file.is_empty() {
            return Err(" has no file name".to_owned());
        }
        let text = field(columns.class_index);
        let label = match text.parse::<usize>() {
            Ok(label) if label < MAX_CLASSES => Some(label),
            _ if text.is_empty() => None,
            _ => {
                return Err(format!(
                    ": class_index is `{text}`, expected a whole number below {MAX_CLASSES}"
                ));
            }
        };
        if let Some(label) = label {
            self.classes.resize(self.classes.len().max(label + 1), None);
            let name = columns.name.map(field).filter(|name| !name.is_empty());
            if let Some(class) = self.classes.get_mut(label) {
                *class = class.take().or(name.map(str::to_owned));
            }
        }
        let part = match columns.split.map(field) {
            None => Part::Whole,
            Some("trainval") => Part::TrainValidation,
            Some(split) => Part::spelt(split).ok_or_else(|| {
                format!(": split is `{split}`, expected train, validation or test; call the column otherwise if it means something else")
            })?,
        };
        self.pictures.push((part, PathBuf::from(file), label));
        Ok(())
    }
}

impl Form for List {
    fn name(&self) -> &'static str {
        "a list"
    }

    fn parts(&self) -> Vec<Part> {
        let mut parts: Vec<Part> = self.pictures.iter().map(|(part, ..)| *part).collect();
        parts.sort_by_key(|&part| part as usize);
        parts.dedup();
        parts
    }

    fn read(&self, part: Part, decode: &DecodeOptions) -> Result<Contents> {
        let mut files = Files::new(&self.root, decode);
        for (_, file, label) in self.pictures.iter().filter(|(each, ..)| *each == part) {
            files.push(file.clone(), *label);
        }
        let classes = self.classes.iter().enumerate();
        let classes = classes
            .map(|(label, name)| name.clone().unwrap_or_else(|| label.to_string()))
            .collect();
        Ok(files.into_contents(classes))
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
    fn names_in_quotes_are_the_names_of_files() {
        let (root, path) = list("");
        let names = [
            " a.png",
            "b.png ",
            "\tc.png",
            "d, \"e\".png",
            "plain.png",
            "two\nlines.png",
        ];
        let mut text = "filename,class_index\n".to_owned();
        for name in names {
            let pixel = image::RgbImage::from_pixel(1, 1, image::Rgb([1, 2, 3]));
            let path = root.path().join(name);
            pixel.save_with_format(path, image::ImageFormat::Png).unwrap();
            text += &format!("\"{}\", 0\n", name.replace('"', "\"\""));
        }
        text += " plain.png ,0\n";
        std::fs::write(path.join(FILE), text).unwrap();
        let data = open(&path, &OpenOptions::default()).unwrap();
        assert_eq!(data.len(), names.len() + 1);
        for sample in 0..data.len() {
            data.load(sample).unwrap();
        }
    }

    #[test]
    fn headers_are_known_in_other_spellings() {
        for header in [
            "filename,class_index,name",
            "FileName,Class_Index,NAME",
            " file_name , Class Index,Name",
            "File-Name,classindex,name",
        ] {
            for (mark, end) in [("", "\n"), ("\u{feff}", "\r\n"), ("", "\r")] {
                let (_root, path) = list(&format!("{mark}{header}{end}a.jpg,1,cat{end}{end}"));
                let data = open(&path, &OpenOptions::default()).unwrap();
                assert_eq!((data.name(0).as_str(), data.label(0)), ("a.jpg", Some(1)));
                assert_eq!(data.class_names(), ["0", "cat"]);
            }
        }
    }

    #[test]
    fn a_column_may_say_the_split() {
        let (_root, path) = list(
            "filename,class_index,name,split\nc.jpg,0,dog,test\na.jpg,1,cat,train\nb.jpg,2,,Val\nd.jpg,1,,TRAIN\n",
        );
        let names = |split| {
            let options = OpenOptions {
                split,
                ..OpenOptions::default()
            };
            let data = open(&path, &options).unwrap();
            assert_eq!(data.class_names(), ["dog", "cat", "2"]);
            (0..data.len())
                .map(|sample| data.name(sample))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(None), ["c.jpg"]);
        assert_eq!(names(Some(Split::Train)), ["a.jpg", "d.jpg"]);
        assert_eq!(names(Some(Split::Validation)), ["b.jpg"]);
        assert_eq!(names(Some(Split::All)), ["a.jpg", "d.jpg", "b.jpg", "c.jpg"]);
    }

    /// A list can name anything; what is no file is not opened.
    #[cfg(unix)]
    #[test]
    fn pipes_and_folders_in_a_list_are_named() {
        let (root, path) = list("filename,class_index\npipe.jpg,0\n.,0\n/dev/zero,0\n");
        let made = std::process::Command::new("mkfifo")
            .arg(root.path().join("pipe.jpg"))
            .status();
        assert!(made.unwrap().success());
        let data = open(&path, &OpenOptions::default()).unwrap();
        for (sample, expected) in [
            "pipe.jpg` cannot be decoded: expected a file, found a pipe, socket or device",
            "expected a file, found a folder",
            "`/dev/zero` cannot be decoded: expected a file, found a pipe, socket or device",
        ]
        .into_iter()
        .enumerate()
        {
            let error = data.load(sample).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_list_in_another_encoding_is_refused_by_its_line() {
        let (root, path) = list("");
        std::fs::write(
            root.path().join(FILE),
            b"filename,class_index\na.jpg,0\ncaf\xe9.jpg,1\n",
        )
        .unwrap();
        let error = open(&path, &OpenOptions::default()).unwrap_err().to_string();
        assert!(error.contains("line 3 is no UTF-8"), "{error}");
    }

    #[test]
    fn bad_lists_are_sentences() {
        for (text, expected) in [
            (
                "a.jpg,3\n",
                "expected a header `filename,class_index[,…,name,split]`, found `a.jpg,3`",
            ),
            ("filename,class_index\n", "found no line"),
            ("filename,class_index\na.jpg,x\n", "line 2: class_index is `x`"),
            ("filename,class_index\na.jpg,-1\n", "line 2: class_index is `-1`"),
            ("filename,class_index\na.jpg,99999999999\n", "line 2: class_index"),
            ("filename,class_index\n,1\n", "line 2 has no file name"),
            (
                "filename,class_index\na.jpg,1,2\n",
                "line 2 has 3 fields, the header has 2",
            ),
            ("filename,class_index\n\"a.jpg,1\n", "line 2: a quote is opened"),
            ("filename;class_index\na.jpg;1\n", "found `filename;class_index`"),
            (
                "filename,File Name,class_index\na.jpg,b.jpg,1\n",
                "the header has `filename` and `File Name`, expected one such column",
            ),
            (
                "filename,class_index,split\na.jpg,1,train\nb.jpg,1,fold-1\n",
                "line 3: split is `fold-1`, expected train, validation or test",
            ),
            (
                "",
                "expected a header `filename,class_index[,…,name,split]`, found ``",
            ),
        ] {
            let (_root, path) = list(text);
            let error = open(&path, &OpenOptions::default()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(FILE), "{error}");
        }
    }
}
