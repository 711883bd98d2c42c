//! CIFAR-10 and CIFAR-100 in their binary form.
//!
//! Each record is the label (CIFAR-100: the coarse label, then the fine one, which is used) and 3072 bytes, `[3, 32, 32]`. The
//! files may lie in the folder itself or in the sub-folder they are distributed in.

use std::path::{Path, PathBuf};

use vitesse_words::counted;

use super::{Contents, Form, Part, Samples};
use crate::{DecodeOptions, Error, Image, Result};

const SIDE: usize = 32;
const PIXELS: usize = SIDE * SIDE;

/// One of the two distributions.
struct Layout {
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    names: &'static str,
    classes: usize,
    /// Bytes before the pixels; the last of them is the label.
    label_bytes: usize,
}

const LAYOUTS: [Layout; 2] = [
    Layout {
        folder: "cifar-10-batches-bin",
        train: &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        test: "test_batch.bin",
        names: "batches.meta.txt",
        classes: 10,
        label_bytes: 1,
    },
    Layout {
        folder: "cifar-100-binary",
        train: &["train.bin"],
        test: "test.bin",
        names: "fine_label_names.txt",
        classes: 100,
        label_bytes: 2,
    },
];

struct Cifar {
    root: PathBuf,
    layout: &'static Layout,
}

pub(super) fn recognise(root: &Path) -> Result<Option<Box<dyn Form>>> {
    for layout in &LAYOUTS {
        for root in [root.to_path_buf(), root.join(layout.folder)] {
            let form = Cifar { root, layout };
            if !form.parts().is_empty() {
                return Ok(Some(Box::new(form)));
            }
        }
    }
    Ok(None)
}

impl Cifar {
    fn files(&self, part: Part) -> Vec<&'static str> {
        let names = match part {
            Part::Train => self.layout.train,
            Part::Test => std::slice::from_ref(&self.layout.test),
            Part::Validation | Part::TrainValidation | Part::Whole => &[],
        };
        names
            .iter()
            .copied()
            .filter(|name| self.root.join(name).is_file())
            .collect()
    }

    fn class_names(&self) -> Result<Vec<String>> {
        let path = self.root.join(self.layout.names);
        let count = self.layout.classes;
        if !path.is_file() {
            return Ok((0..count).map(|label| label.to_string()).collect());
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let names: Vec<String> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect();
        if names.len() != count {
            return Err(Error::data_set(
                &path,
                format!("expected {}, found {}", counted(count, "class name"), names.len()),
            ));
        }
        Ok(names)
    }
}

impl Form for Cifar {
    fn name(&self) -> &'static str {
        match self.layout.label_bytes {
            1 => "CIFAR-10 binary",
            _ => "CIFAR-100 binary",
        }
    }

    fn parts(&self) -> Vec<Part> {
        [Part::Train, Part::Test]
            .into_iter()
            .filter(|&part| !self.files(part).is_empty())
            .collect()
    }

    fn read(&self, part: Part, _: &DecodeOptions) -> Result<Contents> {
        let record = self.layout.label_bytes + 3 * PIXELS;
        let mut records = Records {
            stem: part.name().to_owned(),
            label_bytes: self.layout.label_bytes,
            bytes: Vec::new(),
        };
        for name in self.files(part) {
            let path = self.root.join(name);
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            if bytes.is_empty() || bytes.len() % record != 0 {
                let reason = format!(
                    "expected records of {record} bytes, found {} bytes in all",
                    bytes.len()
                );
                return Err(Error::data_set(&path, reason));
            }
            records.bytes.extend(bytes);
            let bad = (0..records.len())
                .find(|&i| records.label(i).is_none_or(|label| label >= self.layout.classes));
            if let Some(index) = bad {
                let reason = format!(
                    "record {index} of the {} part has a label outside 0..{}",
                    part.name(),
                    self.layout.classes
                );
                return Err(Error::data_set(&path, reason));
            }
        }
        Ok(Contents::new(records, self.class_names()?))
    }
}

/// All records of one part.
#[derive(Debug)]
struct Records {
    stem: String,
    label_bytes: usize,
    bytes: Vec<u8>,
}

impl Records {
    fn record(&self, index: usize) -> &[u8] {
        let size = self.label_bytes + 3 * PIXELS;
        self.bytes
            .get(index * size..(index + 1) * size)
            .unwrap_or_default()
    }
}

impl Samples for Records {
    fn len(&self) -> usize {
        self.bytes.len() / (self.label_bytes + 3 * PIXELS)
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.record(index)
            .get(self.label_bytes - 1)
            .map(|&label| usize::from(label))
    }

    fn name(&self, index: usize) -> String {
        format!("{}[{index}]", self.stem)
    }

    fn load(&self, index: usize) -> Result<Image> {
        let planes = self.record(index).get(self.label_bytes..).unwrap_or_default();
        let mut data = vec![0; planes.len()];
        for (channel, plane) in planes.chunks_exact(PIXELS).enumerate() {
            for (pixel, &level) in data.chunks_exact_mut(3).zip(plane) {
                pixel[channel] = level;
            }
        }
        Image::new(SIDE, SIDE, data)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{OpenOptions, Split, open};
    use super::*;

    fn record(labels: &[u8]) -> Vec<u8> {
        let mut bytes = labels.to_vec();
        for level in [10, 20, 30] {
            bytes.extend([level; PIXELS]);
        }
        bytes
    }

    #[test]
    fn both_distributions_are_read() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("cifar-100-binary");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(
            folder.join("test.bin"),
            [record(&[19, 99]), record(&[0, 7])].concat(),
        )
        .unwrap();
        let data = open(root.path(), &OpenOptions::default()).unwrap();
        assert_eq!(
            (data.len(), data.label(0), data.label(1), data.class_names().len()),
            (2, Some(99), Some(7), 100)
        );
        assert_eq!(data.load(1).unwrap().pixel(31, 31), [10, 20, 30]);

        let root = tempfile::tempdir().unwrap();
        for batch in ["data_batch_1.bin", "data_batch_3.bin"] {
            std::fs::write(root.path().join(batch), record(&[3])).unwrap();
        }
        std::fs::write(
            root.path().join("batches.meta.txt"),
            "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n",
        )
        .unwrap();
        let data = open(
            root.path(),
            &OpenOptions {
                split: Some(Split::All),
                ..OpenOptions::default()
            },
        )
        .unwrap();
        assert_eq!(
            (data.len(), data.name(1).as_str(), data.class_names()[3].as_str()),
            (2, "train[1]", "d")
        );
    }

    #[test]
    fn damaged_files_are_sentences() {
        for (bytes, expected) in [
            (vec![0; 100], "expected records of 3073 bytes"),
            (record(&[10]), "outside 0..10"),
        ] {
            let root = tempfile::tempdir().unwrap();
            std::fs::write(root.path().join("test_batch.bin"), bytes).unwrap();
            let error = open(root.path(), &OpenOptions::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(expected) && error.contains("test_batch.bin"),
                "{error}"
            );
        }
    }
}
