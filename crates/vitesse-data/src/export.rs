//! Pictures of a data set as files: to look at, or to be a data set themselves.

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use crate::{DataSet, Error, Result};

/// The list of all pictures.
pub const LIST: &str = "labels.csv";

/// Writes all pictures of `data` as PNG files below `folder`, a folder a class, and a [`LIST`] of them, with which the folder is
/// a data set. `progress` is told how many are written, and may break off: then the list is missing.
///
/// # Errors
/// Pictures that cannot be read, files that cannot be written.
pub fn export(
    data: &DataSet,
    folder: &Path,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<()> {
    let classes: Vec<String> = data
        .class_names()
        .iter()
        .enumerate()
        .map(|(i, name)| folder_name(i, name))
        .collect();
    for class in &classes {
        let path = folder.join(class);
        fs::create_dir(&path).map_err(Error::write(&path))?;
    }
    let path = folder.join(LIST);
    let mut list = String::from("filename,class_index,name\n");
    // The number of each class's last picture.
    let mut drawn: HashMap<Option<&str>, usize> = HashMap::new();
    for sample in 0..data.len() {
        let image = data.load(sample)?;
        let label = data.label(sample);
        let class = label.and_then(|label| classes.get(label)).map(String::as_str);
        let number = drawn.entry(class).and_modify(|number| *number += 1).or_insert(0);
        let file = class.map_or_else(String::new, |class| format!("{class}/")) + &format!("{number:05}.png");
        let (width, height) = (image.width() as u32, image.height() as u32);
        let color = image::ColorType::Rgb8;
        let picture = folder.join(&file);
        image::save_buffer(&picture, image.data(), width, height, color).map_err(Error::write(&picture))?;
        let name = label.and_then(|label| data.class_names().get(label));
        let index = label.map(|label| label.to_string()).unwrap_or_default();
        list += &format!("{file},{index},{}\n", field(name.map_or("", String::as_str)));
        if progress(sample + 1).is_break() {
            return Ok(());
        }
    }
    fs::write(&path, list).map_err(Error::write(&path))
}

/// A field of the list, in quotes where it would be read otherwise without.
fn field(text: &str) -> String {
    let plain = !text.contains([',', '"', '\n', '\r']) && text.trim() == text;
    if plain {
        text.to_owned()
    } else {
        format!("\"{}\"", text.replace('"', "\"\""))
    }
}

/// A folder for a class: its index, so that folders sort as labels do and no two are equal, and what of its name a file
/// system takes everywhere.
fn folder_name(index: usize, name: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || c == '-' { c } else { '_' };
    format!(
        "{index:03}_{}",
        name.chars().take(60).map(plain).collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, open};

    #[test]
    fn what_is_written_is_a_data_set_of_the_same_pictures() {
        let data = open("shapes:silhouette", &OpenOptions::default())
            .unwrap()
            .limit(12, 0);
        let folder = tempfile::tempdir().unwrap();
        let mut told = Vec::new();
        export(&data, folder.path(), &mut |done| {
            told.push(done);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(told, (1..=12).collect::<Vec<_>>());
        let written = open(folder.path(), &OpenOptions::default()).unwrap();
        assert_eq!(written.class_names(), data.class_names());
        assert_eq!(written.class_sizes(), data.class_sizes());
        let pixels = |set: &DataSet| -> Vec<Vec<u8>> {
            let mut all: Vec<_> = (0..set.len())
                .map(|i| set.load(i).unwrap().data().to_vec())
                .collect();
            all.sort();
            all
        };
        assert_eq!(pixels(&written), pixels(&data));
    }

    #[test]
    fn whoever_breaks_off_leaves_no_list() {
        let data = open("shapes:silhouette", &OpenOptions::default())
            .unwrap()
            .limit(4, 0);
        let folder = tempfile::tempdir().unwrap();
        export(&data, folder.path(), &mut |_| ControlFlow::Break(())).unwrap();
        assert!(!folder.path().join(LIST).exists());
    }
}
