//! IDX files, the form of MNIST and its relatives: `train-images-idx3-ubyte` with `train-labels-idx1-ubyte`, and `t10k-…` (or
//! `test-…`) for the test part; plain or gzip.
//!
//! Big-endian header: a magic number (0x803 images, 0x801 labels), the count, and for images rows and columns; then one
//! unsigned byte a pixel or a label. Grey becomes RGB. A file `labels.txt` beside them may name the classes, one a line.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use vitesse_words::counted;

use super::walk::is_of_a_system;
use super::{Contents, Form, Part, Samples};
use crate::{DecodeOptions, Error, Image, Result};

const IMAGES: u32 = 0x803;
const LABELS: u32 = 0x801;
/// Most bytes of pixels a file may unfold to; MNIST has 47 million.
const MAX_BYTES: usize = 4 << 30;

/// The two files of one part.
struct Pair {
    part: Part,
    images: PathBuf,
    labels: PathBuf,
}

struct Idx {
    pairs: Vec<Pair>,
    classes: Vec<String>,
}

pub(super) fn recognise(root: &Path) -> Result<Option<Box<dyn Form>>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root).map_err(Error::io(root))? {
        let entry = entry.map_err(Error::io(root))?;
        if !is_of_a_system(&entry.file_name()) {
            files.push(entry.path());
        }
    }
    // A file before its compressed copy.
    files.sort_unstable();
    let mut pairs = Vec::new();
    for images in &files {
        let name = images
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let Some((prefix, _)) = name
            .split_once("images")
            .filter(|(_, rest)| rest.contains("idx3"))
        else {
            continue;
        };
        let part = match prefix {
            _ if prefix.contains("train") => Part::Train,
            _ if prefix.contains("t10k") || prefix.contains("test") => Part::Test,
            _ if prefix.contains("val") => Part::Validation,
            _ => continue,
        };
        let labels = name.replacen("images", "labels", 1).replacen("idx3", "idx1", 1);
        let plain = labels.trim_end_matches(".gz");
        let candidates = [plain.to_owned(), format!("{plain}.gz")].map(|name| root.join(name));
        let Some(labels) = candidates.into_iter().find(|path| path.is_file()) else {
            return Err(Error::data_set(
                images,
                format!("expected its labels in `{plain}` (or `.gz`) beside it"),
            ));
        };
        // A file and its compressed copy are one part.
        if !pairs.iter().any(|pair: &Pair| pair.part == part) {
            pairs.push(Pair {
                part,
                images: images.clone(),
                labels,
            });
        }
    }
    if pairs.is_empty() {
        return Ok(None);
    }
    pairs.sort_by_key(|pair| pair.part as usize);
    let classes = class_names(root, &pairs)?;
    Ok(Some(Box::new(Idx { pairs, classes })))
}

fn class_names(root: &Path, pairs: &[Pair]) -> Result<Vec<String>> {
    let mut count = 0;
    for pair in pairs {
        let labels = read_labels(&pair.labels)?;
        count = labels
            .iter()
            .map(|&label| usize::from(label) + 1)
            .fold(count, usize::max);
    }
    let path = root.join("labels.txt");
    if !path.is_file() {
        return Ok((0..count).map(|label| label.to_string()).collect());
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    if names.len() < count {
        return Err(Error::data_set(
            &path,
            format!("expected {}, found {}", counted(count, "class name"), names.len()),
        ));
    }
    Ok(names)
}

impl Form for Idx {
    fn name(&self) -> &'static str {
        "IDX files"
    }

    fn parts(&self) -> Vec<Part> {
        self.pairs.iter().map(|pair| pair.part).collect()
    }

    fn read(&self, part: Part, _: &DecodeOptions) -> Result<Contents> {
        let found = self.pairs.iter().find(|pair| pair.part == part);
        let Pair { images, labels, .. } = found.ok_or_else(|| Error::NoSplit {
            data: "IDX files".to_owned(),
            asked: part.name().to_owned(),
            found: self
                .pairs
                .iter()
                .map(|pair| pair.part.name())
                .collect::<Vec<_>>()
                .join(", "),
        })?;
        let table = Table::read(images, labels)?;
        Ok(Contents::new(table, self.classes.clone()))
    }
}

/// All pictures of one part.
#[derive(Debug)]
struct Table {
    /// What a sample is called: `train-images`.
    stem: String,
    width: usize,
    height: usize,
    /// `[count, height, width]`.
    grey: Vec<u8>,
    labels: Vec<u8>,
}

impl Table {
    fn read(images: &Path, labels: &Path) -> Result<Table> {
        let mut reader = open(images)?;
        let [count, height, width] = header(images, &mut reader, IMAGES)?;
        let bytes = count.checked_mul(height).and_then(|n| n.checked_mul(width));
        let bytes = bytes.filter(|&bytes| bytes <= MAX_BYTES && height > 0 && width > 0);
        let promised = format!("{} of {width} x {height} pixels", counted(count, "image"));
        let Some(bytes) = bytes else {
            return Err(Error::data_set(images, format!("its header promises {promised}")));
        };
        let grey = body(images, reader, bytes, &promised)?;
        let labels_found = read_labels(labels)?;
        if labels_found.len() != count {
            let reason = format!(
                "expected {count} labels, one an image, found {}",
                labels_found.len()
            );
            return Err(Error::data_set(labels, reason));
        }
        let name = images
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let stem = name
            .split("idx3")
            .next()
            .unwrap_or_default()
            .trim_end_matches(['-', '.'])
            .to_owned();
        Ok(Table {
            stem,
            width,
            height,
            grey,
            labels: labels_found,
        })
    }
}

impl Samples for Table {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.labels.get(index).map(|&label| usize::from(label))
    }

    fn name(&self, index: usize) -> String {
        format!("{}[{index}]", self.stem)
    }

    fn load(&self, index: usize) -> Result<Image> {
        let pixels = self.width * self.height;
        let grey = self
            .grey
            .get(index * pixels..(index + 1) * pixels)
            .unwrap_or_default();
        Image::from_grey(self.width, self.height, grey)
    }
}

fn read_labels(path: &Path) -> Result<Vec<u8>> {
    let mut reader = open(path)?;
    let [count] = header(path, &mut reader, LABELS)?;
    body(path, reader, count, &format!("{count} labels"))
}

/// The file's bytes, unpacked if it is compressed (seen from its content).
fn open(path: &Path) -> Result<Box<dyn Read>> {
    let open = || File::open(path).map_err(Error::io(path));
    let mut magic = [0; 2];
    let gzip = open()?.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    let file = BufReader::new(open()?);
    Ok(if gzip {
        Box::new(flate2::read::MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    })
}

/// Checks the magic number and gives the `N` sizes after it.
fn header<const N: usize>(path: &Path, reader: &mut dyn Read, magic: u32) -> Result<[usize; N]> {
    let mut next = || -> Result<u32> {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).map_err(Error::io(path))?;
        Ok(u32::from_be_bytes(bytes))
    };
    let found = next()?;
    if found != magic {
        return Err(Error::data_set(
            path,
            format!("expected the IDX magic number {magic:#010x}, found {found:#010x}"),
        ));
    }
    let mut sizes = [0; N];
    for size in &mut sizes {
        *size = next()? as usize;
    }
    Ok(sizes)
}

/// Reads exactly `bytes` more bytes, growing with what is there rather than with what is promised.
fn body(path: &Path, reader: impl Read, bytes: usize, promised: &str) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    reader
        .take(bytes as u64 + 1)
        .read_to_end(&mut body)
        .map_err(Error::io(path))?;
    if body.len() != bytes {
        let found = if body.len() > bytes {
            "more".to_owned()
        } else {
            format!("{} bytes", body.len())
        };
        return Err(Error::data_set(
            path,
            format!("its header promises {promised}, {bytes} bytes, found {found}"),
        ));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::{OpenOptions, Split, open};
    use super::*;

    fn images(count: u32, side: u32, pixels: &[u8]) -> Vec<u8> {
        let mut bytes = [IMAGES, count, side, side].map(u32::to_be_bytes).concat();
        bytes.extend(pixels);
        bytes
    }

    fn labels(labels: &[u8]) -> Vec<u8> {
        let mut bytes = [LABELS, labels.len() as u32].map(u32::to_be_bytes).concat();
        bytes.extend(labels);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn plain_and_compressed_files_are_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: Vec<u8>| std::fs::write(root.path().join(name), bytes).unwrap();
        write(
            "train-images-idx3-ubyte.gz",
            gzip(&images(3, 2, &(0..12).collect::<Vec<u8>>())),
        );
        write("train-labels-idx1-ubyte.gz", gzip(&labels(&[2, 0, 1])));
        write("t10k-images-idx3-ubyte", images(1, 2, &[9; 4]));
        write("t10k-labels-idx1-ubyte", labels(&[4]));
        let test = open(root.path(), &OpenOptions::default()).unwrap();
        assert_eq!(
            (test.split(), test.len(), test.name(0).as_str()),
            (Split::Test, 1, "t10k-images[0]")
        );
        assert_eq!(test.class_names(), ["0", "1", "2", "3", "4"]);
        let all = open(
            root.path(),
            &OpenOptions {
                split: Some(Split::All),
                ..OpenOptions::default()
            },
        )
        .unwrap();
        assert_eq!((all.len(), all.label(0), all.label(3)), (4, Some(2), Some(4)));
        assert_eq!(all.load(1).unwrap().pixel(1, 1), [7; 3]);
        assert_eq!(all.name(1), "train-images[1]");
    }

    #[test]
    fn damaged_files_are_sentences() {
        for (pictures, classes, expected) in [
            (images(2, 2, &[0; 7]), labels(&[0, 0]), "8 bytes, found 7 bytes"),
            (images(2, 2, &[0; 9]), labels(&[0, 0]), "8 bytes, found more"),
            (images(2, 2, &[0; 8]), labels(&[0]), "expected 2 labels"),
            (
                images(u32::MAX, u32::MAX, &[]),
                labels(&[0]),
                "its header promises",
            ),
            (
                labels(&[1; 16]),
                labels(&[0]),
                "expected the IDX magic number 0x00000803, found 0x00000801",
            ),
            (vec![0, 0], labels(&[0]), "train-images-idx3-ubyte"),
        ] {
            let root = tempfile::tempdir().unwrap();
            std::fs::write(root.path().join("train-images-idx3-ubyte"), pictures).unwrap();
            std::fs::write(root.path().join("train-labels-idx1-ubyte"), classes).unwrap();
            let error = open(root.path(), &OpenOptions::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_share_of_train_is_held_back() {
        let root = tempfile::tempdir().unwrap();
        let classes: Vec<u8> = (0..200).map(|i| u8::from(i % 4 == 0)).collect();
        std::fs::write(
            root.path().join("train-images-idx3-ubyte"),
            images(200, 1, &[0; 200]),
        )
        .unwrap();
        std::fs::write(root.path().join("train-labels-idx1-ubyte"), labels(&classes)).unwrap();
        let read = |split, seed| {
            let data = open(
                root.path(),
                &OpenOptions {
                    split: Some(split),
                    seed,
                    ..OpenOptions::default()
                },
            )
            .unwrap();
            (0..data.len())
                .map(|i| (data.name(i), data.label(i)))
                .collect::<Vec<_>>()
        };
        let (train, validation) = (read(Split::Train, 1), read(Split::Validation, 1));
        assert_eq!((train.len(), validation.len()), (180, 20));
        assert!(validation.iter().all(|sample| !train.contains(sample)));
        // A quarter of the samples is of class 1, held back or not.
        assert_eq!(
            validation.iter().filter(|(_, label)| *label == Some(1)).count(),
            5
        );
        assert_ne!(validation, read(Split::Validation, 2));
        assert_eq!(validation, read(Split::Validation, 1));
    }
}
