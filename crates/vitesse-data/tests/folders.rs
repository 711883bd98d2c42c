//! Folders as people have them: links, litter of systems, other spellings, classes that are missing or have odd names.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

use vitesse_data::{DataSet, Ignored, IgnoredReason, OpenOptions, Result, Split, open, splits};

/// A folder with one-pixel pictures at these paths.
fn folder(pictures: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for picture in pictures {
        write(root.path(), picture, &png());
    }
    root
}

fn write(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn png() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let pixel = image::RgbImage::from_pixel(1, 1, image::Rgb([1, 2, 3]));
    pixel.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn read(root: &Path, split: Option<Split>) -> Result<DataSet> {
    open(
        root,
        &OpenOptions {
            split,
            val_fraction: 0.0,
            ..OpenOptions::default()
        },
    )
}

fn all(root: &Path) -> DataSet {
    read(root, Some(Split::All)).unwrap()
}

fn refusal(root: &Path) -> String {
    read(root, None).unwrap_err().to_string()
}

/// Names and labels.
fn samples(data: &DataSet) -> Vec<(String, usize)> {
    (0..data.len())
        .map(|i| (data.name(i), data.label(i).unwrap()))
        .collect()
}

/// What was passed over for a reason.
fn ignored(data: &DataSet, reason: IgnoredReason) -> Vec<&str> {
    let of_reason = |each: &&Ignored| each.reason == reason;
    data.ignored()
        .iter()
        .filter(of_reason)
        .map(|each| each.name.as_str())
        .collect()
}

/// The one note that speaks of `about`.
fn note(data: &DataSet, about: &str) -> String {
    let notes = data.notes();
    let mut of = notes.iter().filter(|note| note.contains(about));
    of.next()
        .unwrap_or_else(|| panic!("`{about}` is in none of {notes:?}"))
        .clone()
}

#[cfg(unix)]
mod links {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn linked_folders_pictures_and_classes_are_read() {
        let away = folder(&["dogs/1.png", "more/deep/2.png", "one.png", "set/cat/9.png"]);
        let root = folder(&["train/cat/a.png"]);
        let train = root.path().join("train");
        symlink(away.path().join("dogs"), train.join("dog")).unwrap();
        symlink(away.path().join("more"), train.join("cat/more")).unwrap();
        symlink(away.path().join("one.png"), train.join("cat/z.png")).unwrap();
        symlink(away.path().join("set"), root.path().join("test")).unwrap();
        let data = all(root.path());
        let expected = [
            ("train/cat/a.png", 0),
            ("train/cat/z.png", 0),
            ("train/cat/more/deep/2.png", 0),
            ("train/dog/1.png", 1),
            ("test/cat/9.png", 0),
        ];
        assert_eq!(
            samples(&data),
            expected.map(|(name, label)| (name.to_owned(), label))
        );
        assert!((0..data.len()).all(|sample| data.load(sample).is_ok()));
        assert!(data.ignored().is_empty());
    }

    /// Every way round: to the folder itself, to its parent, to the data set, to `/`, and two that lead to each other.
    #[test]
    fn circles_end_and_are_named() {
        let root = folder(&["cat/a.png", "cat/x/1.png", "cat/y/2.png", "dog/3.png"]);
        let cat = root.path().join("cat");
        for (link, target) in [
            ("itself", "."),
            ("parent", ".."),
            ("system", "/"),
            ("x/other", "../y"),
            ("y/other", "../x"),
            ("again", "x"),
        ] {
            symlink(target, cat.join(link)).unwrap();
        }
        symlink(root.path(), cat.join("set")).unwrap();
        let data = all(root.path());
        let names: Vec<String> = samples(&data).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["cat/a.png", "cat/x/1.png", "cat/y/2.png", "dog/3.png"]);
        assert_eq!(
            ignored(&data, IgnoredReason::RepeatedFolder),
            [
                "cat/again",
                "cat/itself",
                "cat/parent",
                "cat/set",
                "cat/system",
                "cat/x/other",
                "cat/y/other"
            ]
        );
        assert!(note(&data, "cat/again").contains("and 4 more"));
    }

    /// Folders that link to each other in every possible way have more paths than can ever be walked.
    #[test]
    fn a_web_of_links_is_read_in_no_time() {
        let root = folder(&["dog/1.png"]);
        for one in 0..24 {
            let name = format!("cat/{one}");
            write(root.path(), &format!("{name}/p.png"), &png());
            for other in 0..24 {
                symlink(
                    format!("../{other}"),
                    root.path().join(format!("{name}/to{other}")),
                )
                .unwrap();
            }
        }
        assert_eq!(all(root.path()).len(), 25);
    }

    #[test]
    fn two_classes_may_share_a_folder_and_a_class_may_link_to_another() {
        let root = folder(&["cat/a.png", "dog/b.png"]);
        symlink("cat", root.path().join("pet")).unwrap();
        symlink("../cat", root.path().join("dog/cats")).unwrap();
        let names: Vec<(String, usize)> = samples(&all(root.path()));
        let expected = [
            ("cat/a.png", 0),
            ("dog/b.png", 1),
            ("dog/cats/a.png", 1),
            ("pet/a.png", 2),
        ];
        assert_eq!(names, expected.map(|(name, label)| (name.to_owned(), label)));
    }

    #[test]
    fn what_cannot_be_read_like_a_file_is_never_opened() {
        let root = folder(&["cat/a.png", "dog/b.png"]);
        let cat = root.path().join("cat");
        let made = std::process::Command::new("mkfifo")
            .arg(cat.join("pipe.jpg"))
            .status();
        assert!(made.unwrap().success());
        let _socket = UnixListener::bind(cat.join("socket.png")).unwrap();
        symlink("/dev/zero", cat.join("zero.bmp")).unwrap();
        symlink("pipe.jpg", cat.join("linked.jpg")).unwrap();
        symlink("nowhere", cat.join("folder")).unwrap();
        // Pictures that lead nowhere are pictures that cannot be read.
        symlink("gone.jpg", cat.join("lost.jpg")).unwrap();
        symlink("circle.jpg", cat.join("circle.jpg")).unwrap();
        let data = all(root.path());
        assert_eq!(
            ignored(&data, IgnoredReason::Special),
            ["cat/linked.jpg", "cat/pipe.jpg", "cat/socket.png", "cat/zero.bmp"]
        );
        assert_eq!(ignored(&data, IgnoredReason::BrokenLink), ["cat/folder"]);
        assert!(note(&data, "pipe.jpg").contains("a pipe, socket or device"));
        let failed: Vec<String> = (0..data.len())
            .filter_map(|sample| Some(data.load(sample).err()?.to_string()))
            .collect();
        assert!(failed.len() == 2 && failed[0].contains("circle.jpg") && failed[1].contains("lost.jpg"));
    }

    #[test]
    fn names_that_are_no_utf8_stay_apart() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let root = tempfile::tempdir().unwrap();
        for (class, count) in [
            (&b"caf\xe9"[..], 1),
            (b"caf\xe8", 2),
            (b"caf\xc3\xa9", 3),
            (b"caf", 4),
        ] {
            let class = Path::new("train").join(OsStr::from_bytes(class));
            fs::create_dir_all(root.path().join(&class)).unwrap();
            for number in 0..count {
                let name = [&[b'0' + number][..], b"\xff.png"].concat();
                fs::write(root.path().join(&class).join(OsStr::from_bytes(&name)), png()).unwrap();
            }
        }
        // The same bytes are the same class in every split.
        fs::create_dir_all(root.path().join("val").join(OsStr::from_bytes(b"caf\xe9"))).unwrap();
        fs::write(
            root.path().join("val").join(OsStr::from_bytes(b"caf\xe9/0.png")),
            png(),
        )
        .unwrap();
        let data = all(root.path());
        assert_eq!(data.class_names(), ["caf", "café", "caf\\xe8", "caf\\xe9"]);
        assert_eq!(data.class_sizes(), [4, 3, 2, 2]);
        assert_eq!(data.name(7), "train/caf\\xe8/0\\xff.png");
        assert!((0..data.len()).all(|sample| data.load(sample).is_ok()));
        // A name that is written like the bytes of another would make one class of two.
        write(root.path(), "train/caf\\xe9/0.png", &png());
        let error = refusal(root.path());
        assert!(
            error.contains("two class folders would both be called `caf\\xe9`"),
            "{error}"
        );
    }
}

#[test]
fn litter_of_systems_is_no_class_and_no_picture() {
    let litter = [
        "__MACOSX/cat/._a.png",
        "@eaDir/cat/a.png",
        ".ipynb_checkpoints/a.png",
        ".cache/b.png",
        "cat/.thumbnails/a.png",
        "cat/__pycache__/a.png",
        "cat/@eaDir/a.png",
        "cat/._a.png",
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "cat/thumbs.DB",
        "dog/Desktop.ini",
        "$Recycle.Bin/a.png",
        "lost+found/a.png",
        "System Volume Information/a.png",
    ];
    for splits in [false, true] {
        let root = folder(&[]);
        let place = |name: &str| {
            if splits {
                format!("train/{name}")
            } else {
                name.to_owned()
            }
        };
        for name in litter.iter().chain(&["cat/a.png", "dog/b.png"]) {
            write(root.path(), &place(name), &png());
        }
        let data = all(root.path());
        assert_eq!(data.class_names(), ["cat", "dog"]);
        assert_eq!(samples(&data), [(place("cat/a.png"), 0), (place("dog/b.png"), 1)]);
        let mut found = ignored(&data, IgnoredReason::System);
        assert_eq!(found.len(), litter.len(), "{found:?}");
        found.sort_unstable();
        assert_eq!(found[0], place("$Recycle.Bin"));
        assert!(note(&data, "hidden, or of a system").contains("and 12 more"));
    }
}

#[test]
fn splits_are_known_by_the_spellings_people_use() {
    for (train, validation, test) in [
        ("train", "val", "test"),
        ("Train", "Valid", "Test"),
        ("TRAIN", "VALIDATION", "TEST"),
        ("training", "validation", "testing"),
        ("training_set", "val-set", "TestSet"),
        ("train set", "dev", "evaluation"),
        ("trainingSet", "devset", "eval"),
    ] {
        let pictures = [train, validation, test].map(|split| format!("{split}/cat/a.png"));
        let root = folder(&pictures.each_ref().map(String::as_str));
        assert_eq!(
            splits(root.path()).unwrap(),
            [Split::Train, Split::Validation, Split::Test],
            "{train}"
        );
        for (split, picture) in [Split::Train, Split::Validation, Split::Test]
            .into_iter()
            .zip(pictures)
        {
            assert_eq!(samples(&read(root.path(), Some(split)).unwrap()), [(picture, 0)]);
        }
    }
    // Words that only begin or end so are classes like any other.
    let root = folder(&[
        "trainers/a.png",
        "sandals/b.png",
        "set/c.png",
        "invalid/sub/d.png",
    ]);
    assert_eq!(splits(root.path()).unwrap(), [Split::All]);
    assert_eq!(
        all(root.path()).class_names(),
        ["invalid", "sandals", "set", "trainers"]
    );
    // So is a split's name over pictures, beside other classes.
    let root = folder(&["valid/a.png", "invalid/b.png", "test/c.png"]);
    assert_eq!(all(root.path()).class_names(), ["invalid", "test", "valid"]);
}

#[cfg(target_os = "linux")]
#[test]
fn two_folders_for_one_split_are_refused() {
    for (one, other, split) in [
        ("Train", "train", "train"),
        ("TEST", "testing", "test"),
        ("val", "valid", "validation"),
    ] {
        let root = folder(&[&format!("{one}/cat/a.png"), &format!("{other}/cat/b.png")]);
        let error = refusal(root.path());
        let expected = format!("`{one}/` and `{other}/` both mean the {split} split");
        assert!(error.contains(&expected), "{error}");
    }
    // One that has no class folders is no split, and is named.
    let root = folder(&["train/cat/a.png", "training/b.png"]);
    let data = all(root.path());
    assert_eq!(
        (data.len(), ignored(&data, IgnoredReason::Outside)),
        (1, vec!["training"])
    );
}

#[test]
fn what_lies_beside_is_named() {
    let root = folder(&[
        "train/cat/a.png",
        "train/stray.jpg",
        "test/0.png",
        "annotations/a.png",
        "cover.jpg",
    ]);
    write(root.path(), "train/cat/notes.txt", b"");
    write(root.path(), "train/cat/scan.TIFF", b"");
    write(root.path(), "README.md", b"");
    let data = read(root.path(), Some(Split::Train)).unwrap();
    assert_eq!(splits(root.path()).unwrap(), [Split::Train]);
    assert_eq!(
        ignored(&data, IgnoredReason::Outside),
        ["annotations", "cover.jpg", "test", "train/stray.jpg"]
    );
    assert_eq!(
        ignored(&data, IgnoredReason::UnsupportedFormat),
        ["train/cat/scan.TIFF"]
    );
    assert_eq!(data.skipped(), 1);
    assert_eq!(
        ignored(&data, IgnoredReason::OtherFile),
        ["README.md", "train/cat/notes.txt"]
    );
    assert!(
        note(&data, "annotations").contains("and 1 more"),
        "{:?}",
        data.notes()
    );
    assert!(data.notes().iter().all(|note| !note.contains("notes.txt")));
}

#[test]
fn a_class_without_pictures_in_a_split_stays_a_class() {
    let root = folder(&[
        "train/bird/a.png",
        "train/cat/a.png",
        "train/dog/a.png",
        "val/dog/b.png",
        "test/cat/c.png",
        "test/eel/d.png",
    ]);
    fs::create_dir_all(root.path().join("val/cat")).unwrap();
    write(root.path(), "val/bird/notes.txt", b"");
    for (split, label, without) in [
        (Split::Train, 0, "the train split has no pictures of `eel`"),
        (
            Split::Validation,
            2,
            "the validation split has no pictures of `bird`, `cat`, `eel`",
        ),
        (Split::Test, 1, "the test split has no pictures of `bird`, `dog`"),
    ] {
        let data = read(root.path(), Some(split)).unwrap();
        assert_eq!(data.class_names(), ["bird", "cat", "dog", "eel"]);
        assert_eq!(data.label(0), Some(label));
        assert_eq!(note(&data, "has no pictures of"), without);
    }
    assert_eq!(all(root.path()).class_sizes(), [1, 2, 2, 1]);
    // One that has none anywhere is a slip.
    write(root.path(), "val/fox/scan.tif", b"");
    let error = refusal(root.path());
    assert!(
        error.contains("fox") && error.contains("found 1 of formats that are not supported"),
        "{error}"
    );
}

#[test]
fn classes_that_lie_one_folder_deeper_are_not_taken_for_one() {
    let root = folder(&["photos/train/cat/a.png", "photos/val/cat/a.png"]);
    write(root.path(), "__MACOSX/photos/._a.png", b"");
    let error = refusal(root.path());
    assert!(
        error.contains("its only folder is a data set with splits; give that: "),
        "{error}"
    );
    assert!(
        error.contains(&root.path().join("photos").display().to_string()),
        "{error}"
    );

    let root = folder(&["photos/cat/a.png", "photos/dog/a.png"]);
    let data = all(root.path());
    assert_eq!(data.class_sizes(), [2]);
    assert!(note(&data, "is the only class").contains("photos"));

    // With others beside it, the pictures of a class may lie in folders.
    let root = folder(&["cat/2024/A.PNG", "cat/2025/b.Png", "dog/c.JFIF"]);
    let data = all(root.path());
    assert_eq!((data.class_sizes(), data.notes()), (vec![2, 1], Vec::new()));

    for files in [&["train/a.png", "test/b.png"][..], &["Training/a.png"]] {
        let error = refusal(folder(files).path());
        assert!(
            error.contains("expected a folder a class in them, found none"),
            "{error}"
        );
    }
}

#[test]
fn files_that_cannot_be_read_are_named_one_by_one() {
    let root = folder(&["cat/a.png", "dog/a.png"]);
    write(root.path(), "cat/empty.jpg", b"");
    write(root.path(), "cat/text.jpg", b"hello");
    write(root.path(), "dog/cut.png", &png()[..40]);
    let data = all(root.path());
    let failed: Vec<String> = (0..data.len())
        .filter_map(|sample| Some(data.load(sample).err()?.to_string()))
        .collect();
    assert_eq!(failed.len(), 3);
    assert!(failed[0].contains("empty.jpg") && failed[0].contains("the file is empty"));
    assert!(failed[1].contains("text.jpg") && failed[1].contains("expected a JPEG"));
    assert!(failed[2].contains("cut.png"), "{failed:?}");
}
