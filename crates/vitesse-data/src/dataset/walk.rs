//! What lies in the folders of a data set, and what of it is passed over.
//!
//! Links are followed, to files and to folders, as in torchvision and timm. Two rules make every search end, however links are
//! laid: a link to a folder that holds the data set, or the class, is passed over, and a folder is read once a class. Pipes,
//! sockets and devices are never opened, whatever their names promise: reading them can wait, or go on, for ever.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::fmt::Write;
use std::fs::FileType;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::natural;
use crate::decode::EXTENSIONS;
use crate::{Error, Result};

/// Something that lies in the folders of a data set and is not among its samples.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ignored {
    /// Its path inside the data set; of a folder, what is in it is not listed.
    pub name: String,
    /// Why it is passed over.
    pub reason: IgnoredReason,
}

/// Why something is not among the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IgnoredReason {
    /// Hidden, or written by a system or a program for itself: `.DS_Store`, `._1.jpg`, `__MACOSX`, `@eaDir`, `Thumbs.db`.
    System,
    /// A pipe, a socket or a device.
    Special,
    /// A link that leads nowhere, or in a circle.
    BrokenLink,
    /// A link to a folder that holds it, or that the class has already.
    RepeatedFolder,
    /// A folder or a picture beside those that are read: no class folder, no split.
    Outside,
    /// A picture of a format that is not supported.
    UnsupportedFormat,
    /// A file that is no picture by its name.
    OtherFile,
}

impl IgnoredReason {
    /// All of them, those that surprise most first.
    const ALL: [IgnoredReason; 7] = [
        IgnoredReason::Outside,
        IgnoredReason::Special,
        IgnoredReason::BrokenLink,
        IgnoredReason::RepeatedFolder,
        IgnoredReason::UnsupportedFormat,
        IgnoredReason::System,
        IgnoredReason::OtherFile,
    ];
}

impl std::fmt::Display for IgnoredReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            IgnoredReason::System => "hidden, or of a system",
            IgnoredReason::Special => "a pipe, socket or device",
            IgnoredReason::BrokenLink => "a link that leads nowhere",
            IgnoredReason::RepeatedFolder => "a link to a folder that is read already",
            IgnoredReason::Outside => "in no class folder of a split",
            IgnoredReason::UnsupportedFormat => "a format that is not supported",
            IgnoredReason::OtherFile => "no picture by its name",
        })
    }
}

/// A sentence for each reason for which something was passed over, naming the first few. Plain files that are no pictures
/// are left out: they lie in most data sets.
pub(super) fn notes(ignored: &[Ignored]) -> Vec<String> {
    let reasons = IgnoredReason::ALL.into_iter();
    let told = reasons.filter(|reason| *reason != IgnoredReason::OtherFile);
    told.filter_map(|reason| {
        let names = ignored.iter().filter(|each| each.reason == reason);
        let names: Vec<&str> = names.map(|each| each.name.as_str()).collect();
        (!names.is_empty()).then(|| format!("left out: {} ({reason})", some(&names)))
    })
    .collect()
}

/// The first few names, and how many there are besides.
pub(super) fn some(names: &[&str]) -> String {
    const SHOWN: usize = 3;
    let mut text = String::new();
    for (place, name) in names.iter().take(SHOWN).enumerate() {
        let before = if place == 0 { "" } else { ", " };
        let _ = write!(text, "{before}`{name}`");
    }
    if names.len() > SHOWN {
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}

/// What an entry of a folder is, links followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    LinkedFolder,
    File,
    Special,
    BrokenLink,
}

impl Kind {
    fn of(path: &Path, found: FileType) -> Kind {
        let linked = found.is_symlink();
        let found = match std::fs::metadata(path) {
            _ if !linked => found,
            Ok(target) => target.file_type(),
            // Whatever is wrong with what it leads to, it cannot be read.
            Err(_) => return Kind::BrokenLink,
        };
        match () {
            () if found.is_dir() && linked => Kind::LinkedFolder,
            () if found.is_dir() => Kind::Folder,
            () if found.is_file() => Kind::File,
            () => Kind::Special,
        }
    }

    pub(super) fn is_folder(self) -> bool {
        matches!(self, Kind::Folder | Kind::LinkedFolder)
    }
}

/// An entry of a folder.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
}

impl Entry {
    pub(super) fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// Whether it is a picture by kind and name. A broken link with such a name is one too: a picture that cannot be read.
    pub(super) fn is_picture(&self) -> bool {
        matches!(self.kind, Kind::File | Kind::BrokenLink) && has_extension(&self.path, &EXTENSIONS)
    }

    /// Why it is passed over, whatever is looked for: nothing here is a class, a split or a picture.
    fn passed_over(&self) -> Option<IgnoredReason> {
        match self.kind {
            _ if is_of_a_system(self.name()) => Some(IgnoredReason::System),
            Kind::Special => Some(IgnoredReason::Special),
            Kind::BrokenLink if !self.is_picture() => Some(IgnoredReason::BrokenLink),
            Kind::File if has_extension(&self.path, &UNSUPPORTED) => Some(IgnoredReason::UnsupportedFormat),
            Kind::File if !self.is_picture() => Some(IgnoredReason::OtherFile),
            _ => None,
        }
    }
}

/// Extensions of picture formats that are not supported, told apart so that their absence can be explained.
const UNSUPPORTED: [&str; 11] = [
    "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif", "heic", "heif", "jp2", "jxl",
];

/// Names that macOS, Windows, network storage, desktops and Python give their own files and folders. Hidden ones need no list.
const OF_SYSTEMS: [&str; 12] = [
    "__MACOSX",
    "Icon\r",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$RECYCLE.BIN",
    "System Volume Information",
    "@eaDir",
    "@Recycle",
    "#recycle",
    "lost+found",
    "__pycache__",
];

/// Whether a file or folder is hidden, or a system's own.
pub(super) fn is_of_a_system(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
        || OF_SYSTEMS.iter().any(|other| name.eq_ignore_ascii_case(other))
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|found| {
        extensions
            .iter()
            .any(|extension| found.eq_ignore_ascii_case(extension))
    })
}

/// A name as text. Bytes that are no UTF-8 are written `\xff`: what differs stays different.
pub(super) fn shown(name: &OsStr) -> String {
    let mut text = String::new();
    for chunk in name.as_encoded_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// A search below the folder of a data set, and what it passes over.
#[derive(Debug)]
pub(super) struct Search<'a> {
    root: &'a Path,
    pub(super) ignored: Vec<Ignored>,
}

impl<'a> Search<'a> {
    pub(super) fn below(root: &'a Path) -> Search<'a> {
        Search {
            root,
            ignored: Vec::new(),
        }
    }

    /// A path as it is called inside the data set.
    fn inside<'b>(&self, path: &'b Path) -> &'b Path {
        path.strip_prefix(self.root).unwrap_or(path)
    }

    /// Writes down that something is passed over.
    pub(super) fn ignore(&mut self, path: &Path, reason: IgnoredReason) {
        let name = shown(self.inside(path).as_os_str());
        self.ignored.push(Ignored { name, reason });
    }

    /// The sub-folders and pictures of a folder, in natural order.
    pub(super) fn entries(&mut self, folder: &Path) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            let entry = entry.map_err(Error::io(folder))?;
            let path = entry.path();
            let kind = Kind::of(&path, entry.file_type().map_err(Error::io(&path))?);
            found.push(Entry { path, kind });
        }
        found.sort_by(|a, b| natural::compare(a.name().as_encoded_bytes(), b.name().as_encoded_bytes()));
        found.retain(|entry| match entry.passed_over() {
            Some(reason) => {
                self.ignore(&entry.path, reason);
                false
            }
            None => true,
        });
        Ok(found)
    }

    /// The pictures in a folder and in those below it, by their paths inside the data set, in natural order; those behind
    /// links to folders come last.
    pub(super) fn pictures(&mut self, folder: &Path) -> Result<Vec<PathBuf>> {
        let parent = folder.parent().filter(|parent| parent.starts_with(self.root));
        let above = [Some(self.root), parent, Some(folder)].into_iter().flatten();
        let above: Vec<PathBuf> = above.map(real).collect::<Result<_>>()?;
        let mut found = Found::default();
        self.descend(folder, &real(folder)?, &mut found)?;
        // Folders go before links to them, so that only links are ever passed over.
        while let Some(link) = found.links.pop_front() {
            let target = real(&link)?;
            if above.iter().any(|above| above.starts_with(&target)) {
                self.ignore(&link, IgnoredReason::RepeatedFolder);
            } else {
                self.descend(&link, &target, &mut found)?;
            }
        }
        Ok(found.pictures)
    }

    fn descend(&mut self, folder: &Path, real: &Path, found: &mut Found) -> Result<()> {
        if !found.read.insert(real.to_path_buf()) {
            self.ignore(folder, IgnoredReason::RepeatedFolder);
            return Ok(());
        }
        for entry in self.entries(folder)? {
            match entry.kind {
                Kind::Folder => self.descend(&entry.path, &real.join(entry.name()), found)?,
                Kind::LinkedFolder => found.links.push_back(entry.path),
                Kind::File | Kind::Special | Kind::BrokenLink => {
                    found.pictures.push(self.inside(&entry.path).to_path_buf());
                }
            }
        }
        Ok(())
    }
}

/// What a search of one class has come to.
#[derive(Debug, Default)]
struct Found {
    pictures: Vec<PathBuf>,
    /// The folders that were read, without links.
    read: HashSet<PathBuf>,
    /// Links to folders, still to be followed.
    links: VecDeque<PathBuf>,
}

/// Where a path leads, without links.
pub(super) fn real(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(Error::io(path))
}
