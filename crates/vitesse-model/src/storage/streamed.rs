//! A safetensors file whose tensors all grow, piece by piece: so that what is written need not fit in memory.
//!
//! Names and shapes stand in the header and are known first, so that every piece has its place in the file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::atomic::AtomicFile;
use super::safetensors::{Listed, Metadata, header};
use crate::error::{Error, Result};
use crate::tensors::{DType, byte_len};

/// A file in the making: fill every tensor by [`Streamed::append`], then [`Streamed::commit`]. Dropped before that, it
/// vanishes.
///
/// ```
/// use vitesse_model::storage::streamed::Streamed;
/// # let place = tempfile::tempdir()?;
/// # let path = place.path().join("maps.safetensors");
/// let tensors = [("a".to_owned(), vec![2, 1]), ("b".to_owned(), vec![2, 3])];
/// let mut file = Streamed::create(&path, &tensors, &Default::default())?;
/// for row in [1.0, 2.0] {
///     file.append("a", &[row])?;
///     file.append("b", &[row; 3])?;
/// }
/// assert!(!path.exists());
/// file.commit()?;
/// assert!(path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Streamed {
    file: AtomicFile,
    path: PathBuf,
    tensors: Vec<Growing>,
}

#[derive(Debug)]
struct Growing {
    name: String,
    shape: Vec<usize>,
    /// Where its next bytes go.
    at: u64,
    end: u64,
}

impl Streamed {
    /// Begins the file `path` with tensors of `f32` of these names and shapes. It is laid out as by
    /// [`write`](super::safetensors::write()).
    ///
    /// # Errors
    /// Two tensors of one name; more than a file can hold; names and metadata for which its header has no room; whatever the file
    /// system says.
    pub fn create(path: &Path, tensors: &[(String, Vec<usize>)], metadata: &Metadata) -> Result<Streamed> {
        let mut order: Vec<Listed<'_>> = tensors
            .iter()
            .map(|(name, shape)| (name.as_str(), DType::F32, shape.as_slice()))
            .collect();
        order.sort_by_key(|(name, ..)| *name);
        if let Some((twice, _)) = order.iter().zip(order.iter().skip(1)).find(|(a, b)| a.0 == b.0) {
            return Err(Error::TensorDuplicate {
                name: twice.0.to_owned(),
            });
        }
        let header = header(path, &order, metadata)?;
        let begin = || -> io::Result<AtomicFile> {
            let mut file = AtomicFile::create(path)?;
            file.file().write_all(&header)?;
            Ok(file)
        };
        let file = begin().map_err(Error::io("write", path))?;
        let mut at = header.len() as u64;
        let growing = |(name, dtype, shape): Listed<'_>| {
            let begin = at;
            // The header has checked that it fits.
            at += byte_len(dtype, shape).unwrap_or(0) as u64;
            Growing {
                name: name.to_owned(),
                shape: shape.to_vec(),
                at: begin,
                end: at,
            }
        };
        Ok(Streamed {
            file,
            path: path.to_owned(),
            tensors: order.into_iter().map(growing).collect(),
        })
    }

    /// Adds the next values of the tensor `name`, in row-major order.
    ///
    /// # Errors
    /// A tensor that is none of the file's; more values than its shape holds; whatever the file system says.
    pub fn append(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let Some(tensor) = self.tensors.iter_mut().find(|tensor| tensor.name == name) else {
            return Err(Error::TensorValues {
                path: self.path.clone(),
                name: name.to_owned(),
                detail: "was given values, but is none of its tensors".to_owned(),
            });
        };
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if bytes.len() as u64 > tensor.end - tensor.at {
            return Err(tensor.wrong(&self.path, bytes.len() as u64));
        }
        let write = |file: &mut File| -> io::Result<()> {
            file.seek(SeekFrom::Start(tensor.at))?;
            file.write_all(bytes)
        };
        write(self.file.file()).map_err(Error::io("write", &self.path))?;
        tensor.at += bytes.len() as u64;
        Ok(())
    }

    /// Brings the file to the disk and gives it its name, that of a file that was there before too.
    ///
    /// # Errors
    /// A tensor that lacks values; whatever the file system says.
    pub fn commit(self) -> Result<()> {
        if let Some(short) = self.tensors.iter().find(|tensor| tensor.at < tensor.end) {
            return Err(short.wrong(&self.path, 0));
        }
        self.file.commit().map_err(Error::io("write", &self.path))
    }
}

impl Growing {
    /// It would have so many bytes more than it has.
    fn wrong(&self, path: &Path, more: u64) -> Error {
        let expected = byte_len(DType::F32, &self.shape).unwrap_or(0) as u64;
        let found = expected - (self.end - self.at) + more;
        Error::TensorValues {
            path: path.to_owned(),
            name: self.name.clone(),
            detail: format!(
                "of shape {:?} takes {expected} bytes, but was given {found}",
                self.shape
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::storage::safetensors;
    use crate::tensors::Tensors;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| i as f32).collect()
    }

    #[test]
    fn piece_by_piece_it_is_the_same_file() {
        let place = tempfile::tempdir().unwrap();
        let (whole, pieces) = (place.path().join("whole"), place.path().join("pieces"));
        let metadata = Metadata::from([("strides".to_owned(), "[4, 8]".to_owned())]);
        let shapes = [("stage2", vec![3, 2, 1, 1]), ("stage1", vec![3, 1, 2, 2])];
        let mut tensors = Tensors::new();
        for (name, shape) in &shapes {
            tensors
                .insert_f32(*name, shape, values(shape.iter().product()))
                .unwrap();
        }
        safetensors::write(&whole, &tensors, &metadata).unwrap();

        let listed = shapes.clone().map(|(name, shape)| (name.to_owned(), shape));
        let mut file = Streamed::create(&pieces, &listed, &metadata).unwrap();
        for rows in [0..2, 2..3] {
            for (name, shape) in &shapes {
                let row: usize = shape[1..].iter().product();
                let all = values(3 * row);
                file.append(name, &all[rows.start * row..rows.end * row]).unwrap();
            }
        }
        file.commit().unwrap();
        assert_eq!(fs::read(whole).unwrap(), fs::read(pieces).unwrap());
    }

    #[test]
    fn too_much_and_too_little_are_refused_and_leave_the_old_file() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x");
        fs::write(&path, "old").unwrap();
        let begin = |names: &[&str]| {
            let tensors: Vec<_> = names
                .iter()
                .map(|name| ((*name).to_owned(), vec![2, 2]))
                .collect();
            Streamed::create(&path, &tensors, &Metadata::new())
        };
        let mut file = begin(&["a"]).unwrap();
        file.append("a", &[1.0; 3]).unwrap();
        let says = |error: Error, detail: &str| {
            assert_eq!(
                error.to_string(),
                format!("`{}`: the tensor {detail}", path.display())
            );
        };
        says(
            file.append("a", &[1.0; 2]).unwrap_err(),
            "`a` of shape [2, 2] takes 16 bytes, but was given 20",
        );
        says(
            file.append("b", &[]).unwrap_err(),
            "`b` was given values, but is none of its tensors",
        );
        says(
            file.commit().unwrap_err(),
            "`a` of shape [2, 2] takes 16 bytes, but was given 12",
        );
        assert_eq!(begin(&["a", "b", "a"]).unwrap_err().code(), "E_TENSOR_DUPLICATE");
        let long = Metadata::from([("files".to_owned(), "x".repeat(100_000_000))]);
        let error = Streamed::create(&path, &[], &long).unwrap_err().to_string();
        assert!(error.contains("split it into several files"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
