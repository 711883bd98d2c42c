//! Files and folders that are whole or absent.
//!
//! Everything is written under a temporary name beside its target, brought to the disk, and renamed. A process that
//! dies, a disk that fills up or a writer that fails leaves the target as it was.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::error::{Error, Result};

/// Writes the file `path` as a whole: `write` fills a temporary file in the same folder, which then takes the name.
///
/// An existing file is replaced, in one step, and one that is mapped or open elsewhere keeps its content there.
pub fn atomic_write(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let all = || -> io::Result<()> {
        let mut file = AtomicFile::create(path)?;
        let mut writer = BufWriter::with_capacity(1 << 20, file.file());
        write(&mut writer)?;
        writer.flush()?;
        drop(writer);
        file.commit()
    };
    all().map_err(Error::io("write", path))
}

/// A file in the making: fill [`AtomicFile::file`], then [`AtomicFile::commit`]. Dropped before that, it vanishes.
#[derive(Debug)]
pub(super) struct AtomicFile {
    temporary: NamedTempFile,
    folder: PathBuf,
    target: PathBuf,
}

impl AtomicFile {
    /// Begins the file `target`.
    pub(super) fn create(target: &Path) -> io::Result<AtomicFile> {
        let (folder, name) = split(target)?;
        Ok(AtomicFile {
            temporary: temporaries(&hidden(&name, ".new-"), 0o666).tempfile_in(&folder)?,
            folder,
            target: target.to_owned(),
        })
    }

    /// The temporary file, to be filled.
    pub(super) fn file(&mut self) -> &mut File {
        self.temporary.as_file_mut()
    }

    /// Brings the file to the disk and gives it its name, that of a file that was there before too.
    pub(super) fn commit(self) -> io::Result<()> {
        self.temporary.as_file().sync_all()?;
        self.temporary.persist(&self.target)?;
        sync_folder(&self.folder);
        Ok(())
    }
}

/// A folder in the making: fill [`AtomicDir::path`], then [`AtomicDir::commit`]. Dropped before that, it vanishes.
///
/// ```
/// use vitesse_model::storage::AtomicDir;
/// # let place = tempfile::tempdir()?;
/// # let target = place.path().join("deit_tiny");
/// let folder = AtomicDir::create(&target, false, "config.json")?;
/// std::fs::write(folder.path().join("config.json"), "{}")?;
/// assert!(!target.exists());
/// folder.commit()?;
/// assert!(target.join("config.json").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AtomicDir {
    temporary: TempDir,
    target: PathBuf,
    force: bool,
    marker: String,
}

impl AtomicDir {
    /// Begins the folder `target`.
    ///
    /// A target that exists is an error unless `force` is set, and even then only an empty folder or one that holds
    /// the file `marker` is replaced: the marker shows that it is an artefact of the same kind, not someone's home.
    pub fn create(target: &Path, force: bool, marker: &str) -> Result<AtomicDir> {
        let begin = || -> io::Result<TempDir> {
            let (parent, name) = split(target)?;
            fs::create_dir_all(&parent)?;
            temporaries(&hidden(&name, ".new-"), 0o777).tempdir_in(parent)
        };
        may_replace(target, force, marker)?;
        Ok(AtomicDir {
            temporary: begin().map_err(Error::io("create", target))?,
            target: target.to_owned(),
            force,
            marker: marker.to_owned(),
        })
    }

    /// The temporary folder, to be filled.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Brings everything in the folder to the disk and gives the folder its name.
    ///
    /// A folder being replaced is moved aside first and removed only when the new one is in place. (Should the machine
    /// stop between the two renames, the old one is found beside the target as `.NAME.old-…/NAME`.)
    pub fn commit(self) -> Result<()> {
        let AtomicDir {
            temporary,
            target,
            force,
            marker,
        } = self;
        may_replace(&target, force, &marker)?;
        sync_tree(temporary.path()).map_err(Error::io("write", &target))?;
        replace(temporary, &target).map_err(Error::io("replace", &target))
    }
}

/// Whether there is a place for the folder `target`: the folder that it, or the first one that is missing above it, is made in can be written.
/// Known before any work is done.
pub(crate) fn may_create(target: &Path) -> Result<()> {
    let above = target.ancestors().skip(1).find(|folder| folder.exists());
    let place = above.filter(|folder| !folder.as_os_str().is_empty());
    let probe = tempfile::tempdir_in(place.unwrap_or(Path::new(".")));
    // The probe has a name of its own, which says nothing to anybody.
    probe
        .map(drop)
        .map_err(|error| Error::io("create", target)(error.kind().into()))
}

/// Whether a folder may take the name `target`.
pub(crate) fn may_replace(target: &Path, force: bool, marker: &str) -> Result<()> {
    let exists = |hint: String| {
        Err(Error::Exists {
            path: target.to_owned(),
            hint,
        })
    };
    if target.symlink_metadata().is_err() {
        return Ok(());
    }
    if !force {
        return exists("choose another name, or replace it with `--force`".to_owned());
    }
    let empty = || fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none());
    if target.join(marker).is_file() || empty() {
        return Ok(());
    }
    exists(format!(
        "it is not replaced, not even with `--force`, because it holds no `{marker}`: choose another name"
    ))
}

fn replace(temporary: TempDir, target: &Path) -> io::Result<()> {
    let (parent, name) = split(target)?;
    let old = if target.symlink_metadata().is_ok() {
        let aside = temporaries(&hidden(&name, ".old-"), 0o700).tempdir_in(&parent)?;
        fs::rename(target, aside.path().join(&name))?;
        Some(aside)
    } else {
        None
    };
    if let Err(error) = fs::rename(temporary.path(), target) {
        if let Some(aside) = old
            && fs::rename(aside.path().join(&name), target).is_err()
        {
            // Neither is in place: the old one must survive where it is.
            let kept = aside.keep().join(&name);
            let advice = format!("{error}; the previous folder is now `{}`", kept.display());
            return Err(io::Error::new(error.kind(), advice));
        }
        return Err(error);
    }
    // It has another name now: nothing to clean up under the temporary one.
    let _ = temporary.keep();
    sync_folder(&parent);
    old.map_or(Ok(()), TempDir::close)
}

/// The folder a path stands in, and its last part.
fn split(path: &Path) -> io::Result<(PathBuf, OsString)> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path does not end in a name"))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((parent, name.to_owned()))
}

/// The beginning of temporary names such as `.model.safetensors.new-x3Fa8Q`.
fn hidden(name: &OsStr, what: &str) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(what);
    prefix
}

/// Makes temporary files and folders with what the process's umask leaves of `mode`, like any new ones; they would be
/// private otherwise.
fn temporaries(prefix: &OsStr, mode: u32) -> tempfile::Builder<'_, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// Brings a folder's entries to the disk. Not every file system can; what was renamed is whole either way.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// Brings every file under `folder` to the disk, then the folders.
fn sync_tree(folder: &Path) -> io::Result<()> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => folders.push(entry.path()),
                // Windows syncs only what is open for writing.
                kind if kind.is_file() => {
                    File::options()
                        .read(true)
                        .write(cfg!(windows))
                        .open(entry.path())?
                        .sync_all()?;
                }
                _ => {}
            }
        }
        sync_folder(&folder);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("config.json");
        for content in ["first", "the second, longer"] {
            atomic_write(&path, |w| w.write_all(content.as_bytes())).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(names(place.path()), ["config.json"]);
    }

    #[test]
    fn a_writer_that_fails_leaves_the_old_file_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model.safetensors");
        fs::write(&path, "old").unwrap();
        // Failing before, within and behind the buffer's size.
        for written in [0, 10, 3 << 20] {
            let error = atomic_write(&path, |w| {
                w.write_all(&vec![7; written])?;
                Err(io::Error::new(io::ErrorKind::StorageFull, "no space left"))
            })
            .unwrap_err();
            assert_eq!(error.code(), "E_IO");
            assert!(error.to_string().contains("model.safetensors"), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(place.path()), ["model.safetensors"]);
    }

    #[test]
    fn a_full_device_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        let Ok(mut full) = File::options().write(true).open("/dev/full") else {
            return;
        };
        let path = place.path().join("x");
        let error = atomic_write(&path, |w| {
            w.write_all(b"some bytes")?;
            full.write_all(b"more bytes")
        })
        .unwrap_err();
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull));
        assert!(names(place.path()).is_empty());
    }

    #[test]
    fn paths_that_cannot_be_written_are_named() {
        let place = tempfile::tempdir().unwrap();
        for path in [
            place.path().join("no/such/folder/x"),
            PathBuf::from("/"),
            PathBuf::from(".."),
        ] {
            let error = atomic_write(&path, |_| Ok(())).unwrap_err();
            assert!(
                error.to_string().contains(&format!("`{}`", path.display())),
                "{error}"
            );
        }
    }

    #[cfg(unix)]
    #[test]
    fn new_files_and_folders_are_as_readable_as_any() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::write(place.path().join("plain"), "").unwrap();
        fs::create_dir(place.path().join("plain_folder")).unwrap();
        atomic_write(&place.path().join("ours"), |_| Ok(())).unwrap();
        AtomicDir::create(&place.path().join("our_folder"), false, "m")
            .unwrap()
            .commit()
            .unwrap();
        assert_eq!(
            mode(&place.path().join("ours")),
            mode(&place.path().join("plain"))
        );
        assert_eq!(
            mode(&place.path().join("our_folder")),
            mode(&place.path().join("plain_folder"))
        );
    }

    /// Writes a folder with one marker file of this content.
    fn write_folder(target: &Path, force: bool, content: &str) -> Result<()> {
        let folder = AtomicDir::create(target, force, "config.json")?;
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/x"), content).unwrap();
        fs::write(folder.path().join("config.json"), content).unwrap();
        folder.commit()
    }

    #[test]
    fn a_folder_appears_whole_and_is_replaced_only_by_force() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("runs/deit");
        write_folder(&target, false, "1").unwrap();
        assert_eq!(write_folder(&target, false, "2").unwrap_err().code(), "E_EXISTS");
        assert_eq!(fs::read_to_string(target.join("config.json")).unwrap(), "1");
        write_folder(&target, true, "3").unwrap();
        assert_eq!(fs::read_to_string(target.join("sub/x")).unwrap(), "3");
        assert_eq!(names(&place.path().join("runs")), ["deit"]);
    }

    #[test]
    fn a_folder_given_up_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("deit");
        let folder = AtomicDir::create(&target, false, "config.json").unwrap();
        fs::write(folder.path().join("config.json"), "half").unwrap();
        drop(folder);
        assert!(names(place.path()).is_empty());
    }

    #[test]
    fn force_does_not_replace_what_is_no_artefact() {
        let place = tempfile::tempdir().unwrap();
        let home = place.path().join("home");
        fs::create_dir(&home).unwrap();
        write_folder(&home, true, "an empty folder may be used").unwrap();
        fs::remove_file(home.join("config.json")).unwrap();
        let error = write_folder(&home, true, "").unwrap_err();
        assert!(error.to_string().contains("holds no `config.json`"), "{error}");
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(write_folder(&file, true, "").is_err());
        assert_eq!(names(place.path()), ["file", "home"]);
    }

    #[test]
    fn a_folder_that_appears_meanwhile_is_not_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("deit");
        let folder = AtomicDir::create(&target, false, "config.json").unwrap();
        write_folder(&target, false, "the other's").unwrap();
        assert_eq!(folder.commit().unwrap_err().code(), "E_EXISTS");
        assert_eq!(
            fs::read_to_string(target.join("config.json")).unwrap(),
            "the other's"
        );
        assert_eq!(names(place.path()), ["deit"]);
    }
}
