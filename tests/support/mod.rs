//! What every golden test shares: finding the vectors, comparing, counting, reporting.

#![allow(dead_code, unreachable_pub, missing_debug_implementations)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Comparisons are written so that a NaN fails them.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

pub mod adapting;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vitesse::model::Tensors;
use vitesse::model::storage::safetensors;

/// The parts of keys that hold expected values.
const EXPECTED: [&str; 7] = ["out", "grad", "gradin", "gradout", "merged", "buf", "piecewise"];

/// The beginnings of keys that hold what is given.
const GIVEN: [&str; 3] = ["w.", "a.", "in."];

/// The folder of golden vectors: `VITESSE_GOLDEN`, or the project's `tests/golden`.
pub fn golden_root() -> PathBuf {
    std::env::var_os("VITESSE_GOLDEN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
        PathBuf::from,
    )
}

/// The project's `../shared`, if it is there; prints why a test is skipped otherwise.
pub fn shared(path: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    if found.exists() {
        return Some(found);
    }
    println!("skipped: no data (../shared/{path} is not there)");
    None
}

/// One file of vectors.
pub struct Vectors {
    pub file: String,
    pub path: PathBuf,
    pub config: Value,
    pub tensors: Tensors,
}

impl Vectors {
    pub fn read(path: &Path) -> Self {
        let (tensors, metadata) = safetensors::read(path).unwrap_or_else(|e| panic!("{e}"));
        let file = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = metadata
            .get("config")
            .unwrap_or_else(|| panic!("{file}: no `config` in the metadata"));
        let config = serde_json::from_str(text).unwrap_or_else(|e| panic!("{file}: config: {e}"));
        Vectors {
            file,
            path: path.to_owned(),
            config,
            tensors,
        }
    }

    /// The values of a key.
    pub fn f32(&self, key: &str) -> Vec<f32> {
        let tensor = self
            .tensors
            .get(key)
            .unwrap_or_else(|e| panic!("{}: {e}", self.file));
        tensor.to_f32().into_owned()
    }

    pub fn shape(&self, key: &str) -> Vec<usize> {
        self.tensors
            .get(key)
            .unwrap_or_else(|e| panic!("{}: {e}", self.file))
            .shape()
            .to_vec()
    }

    /// Integers stored as I64.
    pub fn i64(&self, key: &str) -> Vec<i64> {
        let tensor = self
            .tensors
            .get(key)
            .unwrap_or_else(|e| panic!("{}: {e}", self.file));
        tensor
            .bytes()
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    /// Values stored as F64.
    pub fn f64(&self, key: &str) -> Vec<f64> {
        let tensor = self
            .tensors
            .get(key)
            .unwrap_or_else(|e| panic!("{}: {e}", self.file));
        tensor
            .bytes()
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    pub fn has(&self, key: &str) -> bool {
        self.tensors.contains(key)
    }

    /// The tensors under a prefix such as `w.`, without it.
    pub fn under(&self, prefix: &str) -> Tensors {
        let mut out = Tensors::new();
        for (name, tensor) in self.tensors.iter() {
            if let Some(name) = name.strip_prefix(prefix) {
                out.insert(name, tensor.clone());
            }
        }
        out
    }

    pub fn usize(&self, key: &str) -> usize {
        self.config[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{}: config.{key} is no number", self.file)) as usize
    }

    pub fn number(&self, key: &str) -> f64 {
        self.config[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{}: config.{key} is no number", self.file))
    }

    /// The keys that hold expected values, in order.
    fn expected(&self) -> BTreeSet<String> {
        // `out` may also be a part of a weight's name.
        let given = |key: &str| GIVEN.iter().any(|prefix| key.starts_with(prefix));
        let is_expected = |key: &&str| !given(key) && key.split('.').any(|part| EXPECTED.contains(&part));
        self.tensors
            .names()
            .filter(is_expected)
            .map(str::to_owned)
            .collect()
    }
}

/// What one golden test found.
#[derive(Default)]
pub struct Report {
    pub files: usize,
    pub keys: usize,
    pub failures: Vec<String>,
    pub skipped: Vec<String>,
    worst: Option<(f64, f64, String)>,
    seen: BTreeSet<String>,
    /// Whether the file at hand is left out as a whole.
    left_out: bool,
}

impl Report {
    /// Compares one key: `max |difference| ≤ 1e-4 · max(1, max |expected|)`.
    pub fn compare(&mut self, vectors: &Vectors, key: &str, found: &[f32]) {
        let found: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
        self.compare_f64(vectors, key, &found, 1e-4);
    }

    /// Compares a key once more, with what something else than before computed; `by` says what.
    pub fn compare_also(&mut self, vectors: &Vectors, key: &str, by: &str, found: &[f32]) {
        let found: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
        let at = format!("{}/{key} ({by})", vectors.file);
        self.difference(vectors, key, &at, &found, 1e-4);
    }

    /// The same for doubles, with a tolerance of its own.
    pub fn compare_f64(&mut self, vectors: &Vectors, key: &str, found: &[f64], tolerance: f64) {
        let at = format!("{}/{key}", vectors.file);
        if !self.seen.insert(key.to_owned()) {
            self.failures.push(format!("{at}: compared twice"));
        }
        self.keys += 1;
        self.difference(vectors, key, &at, found, tolerance);
    }

    fn difference(&mut self, vectors: &Vectors, key: &str, at: &str, found: &[f64], tolerance: f64) {
        use vitesse::model::DType;
        let tensor = vectors
            .tensors
            .get(key)
            .unwrap_or_else(|e| panic!("{}: {e}", vectors.file));
        let expected: Vec<f64> = match tensor.dtype() {
            DType::F64 => vectors.f64(key),
            DType::I64 => vectors.i64(key).into_iter().map(|x| x as f64).collect(),
            DType::U8 => tensor.bytes().iter().map(|&b| f64::from(b)).collect(),
            _ => vectors.f32(key).into_iter().map(f64::from).collect(),
        };
        if expected.len() != found.len() {
            self.failures.push(format!(
                "{at}: {} values expected, {} found",
                expected.len(),
                found.len()
            ));
            return;
        }
        let scale = expected.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        let mut largest = (0.0f64, 0usize);
        for (i, (e, f)) in expected.iter().zip(found).enumerate() {
            let difference = (e - f).abs();
            // A NaN must not hide behind a comparison that is always false.
            if !(difference <= largest.0) {
                largest = (
                    if difference.is_nan() {
                        f64::INFINITY
                    } else {
                        difference
                    },
                    i,
                );
            }
        }
        if self
            .worst
            .as_ref()
            .is_none_or(|(ratio, ..)| largest.0 / scale > *ratio)
        {
            self.worst = Some((largest.0 / scale, largest.0, at.to_owned()));
        }
        if !(largest.0 <= tolerance * scale) {
            self.failures.push(format!(
                "{at}: largest difference {:.3e} at element {} (expected {}, found {}, tolerance {:.1e})",
                largest.0,
                largest.1,
                expected[largest.1],
                found[largest.1],
                tolerance * scale
            ));
        }
    }

    /// Compares 8-bit pixels: within one level everywhere, equal on at least 99.9 % of them.
    pub fn compare_levels(&mut self, vectors: &Vectors, key: &str, found: &[u8]) {
        let expected = vectors
            .tensors
            .get(key)
            .unwrap_or_else(|e| panic!("{}: {e}", vectors.file))
            .bytes();
        let unequal = expected.iter().zip(found).filter(|(e, f)| e != f).count();
        if unequal * 1000 > expected.len() {
            self.failures.push(format!(
                "{}/{key}: {unequal} of {} pixels differ",
                vectors.file,
                expected.len()
            ));
        }
        let found: Vec<f64> = found.iter().map(|&b| f64::from(b)).collect();
        self.compare_f64(vectors, key, &found, 1.0 / 255.0);
    }

    /// Leaves a key out, with the reason; it is listed.
    pub fn skip(&mut self, vectors: &Vectors, key: &str, why: &str) {
        self.seen.insert(key.to_owned());
        self.skipped.push(format!("{}/{key} ({why})", vectors.file));
    }

    /// Leaves out every expected key of a file, with the reason.
    pub fn skip_file(&mut self, vectors: &Vectors, why: &str) {
        let keys = vectors.expected();
        self.skipped
            .push(format!("{}, {} keys ({why})", vectors.file, keys.len()));
        self.seen.extend(keys);
        self.left_out = true;
    }

    /// Compares something that is not a key of a file of vectors.
    pub fn expect(&mut self, at: &str, holds: bool, otherwise: impl FnOnce() -> String) {
        self.keys += 1;
        if !holds {
            self.failures.push(format!("{at}: {}", otherwise()));
        }
    }

    /// Every expected key must have been compared or skipped by name.
    fn finish_file(&mut self, vectors: &Vectors) {
        self.files += usize::from(!std::mem::take(&mut self.left_out));
        let seen = std::mem::take(&mut self.seen);
        for key in vectors.expected().difference(&seen) {
            self.failures
                .push(format!("{}/{key}: nothing compared it", vectors.file));
        }
    }

    fn summary(&self, name: &str) -> String {
        let (_, largest, at) = self.worst.clone().unwrap_or((0.0, 0.0, "nothing".into()));
        format!(
            "{name}: {} files, {} keys compared, largest difference {largest:.2e} at {at}",
            self.files, self.keys
        )
    }
}

/// Walks `folder` as [`walk_with`], where every file holds vectors.
pub fn walk(name: &str, folder: &Path, check: impl FnMut(&Vectors, &mut Report)) -> Result<Report, String> {
    walk_with(name, folder, check, unknown)
}

/// Walks `folder`, hands every file of vectors to `check` and everything else to `other`, prints the summary and what was
/// skipped, and returns the failures.
pub fn walk_with(
    name: &str,
    folder: &Path,
    mut check: impl FnMut(&Vectors, &mut Report),
    mut other: impl FnMut(&Path, &mut Report),
) -> Result<Report, String> {
    let listing = std::fs::read_dir(folder).map_err(|e| format!("{name}: {}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = listing.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut report = Report::default();
    for path in &paths {
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => {
                let vectors = Vectors::read(path);
                check(&vectors, &mut report);
                report.finish_file(&vectors);
            }
            Some("md") => {}
            _ => other(path, &mut report),
        }
    }
    println!("{}", report.summary(name));
    for skipped in &report.skipped {
        println!("{name}: skipped {skipped}");
    }
    if report.files == 0 {
        return Err(format!("{name}: no file of vectors in {}", folder.display()));
    }
    if report.failures.is_empty() {
        Ok(report)
    } else {
        Err(report.failures.join("\n"))
    }
}

/// Fails with what `check` finds wrong in the folder of vectors of this name.
pub fn agrees(folder: &str, check: fn(&Vectors, &mut Report)) {
    if let Err(failures) = walk(&format!("golden_{folder}"), &golden_root().join(folder), check) {
        panic!("{failures}");
    }
}

/// [`notices`] for keys of files in the folder of this name.
pub fn notices_each(folder: &str, places: &[(&str, &str)], check: fn(&Vectors, &mut Report)) {
    let name = format!("golden_{folder}");
    for (file, key) in places {
        notices(
            &name,
            &format!("{folder}/{file}.safetensors"),
            key,
            check,
            unknown,
        );
    }
}

/// A folder without vectors, or with a file of another kind, must not pass for one that agrees.
pub fn refuses_other_folders(folder: &str, check: fn(&Vectors, &mut Report)) {
    let empty = tempfile::tempdir().unwrap();
    assert!(walk(&format!("golden_{folder} (empty)"), empty.path(), check).is_err());
    std::fs::write(empty.path().join("notes.txt"), "?").unwrap();
    assert!(walk(&format!("golden_{folder} (unknown)"), empty.path(), check).is_err());
}

/// Proves that `check` could fail: in a copy of one of the project's own files, one value of `key` is moved by ten tolerances,
/// and nothing but that key may be found wrong. A file that is not there fails as well, since then nothing was proved.
pub fn notices(
    name: &str,
    file: &str,
    key: &str,
    check: impl FnMut(&Vectors, &mut Report),
    other: impl FnMut(&Path, &mut Report),
) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file);
    let (mut tensors, metadata) = safetensors::read(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
    let moved = tensors
        .get(key)
        .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let shape = moved.shape().to_vec();
    let mut values = moved.to_f32().into_owned();
    values[0] += 10.0 * 1e-4 * values.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    tensors.insert_f32(key, &shape, values).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let to = copy.path().join(file.file_name().unwrap());
    // Adapters that belong to the vectors stand beside them.
    let adapters = format!("{}_adapters", file.file_stem().unwrap().to_string_lossy());
    if file.with_file_name(&adapters).is_dir() {
        copy_folder(&file.with_file_name(&adapters), &to.with_file_name(&adapters));
    }
    safetensors::write(&to, &tensors, &metadata).unwrap();
    let failures = walk_with(&format!("{name} (one value moved)"), copy.path(), check, other)
        .err()
        .unwrap_or_else(|| panic!("{}: `{key}` was moved, and nothing noticed it", file.display()));
    assert!(failures.lines().all(|line| line.contains(key)), "{failures}");
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

/// The `other` of [`walk_with`] where every file holds vectors.
pub fn unknown(path: &Path, report: &mut Report) {
    report
        .failures
        .push(format!("{}: unknown kind of file", path.display()));
}
