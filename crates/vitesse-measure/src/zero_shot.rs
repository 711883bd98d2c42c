//! Zero-shot classification: an image is of the class whose text is most like it.
//!
//! Paper: Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, ICML 2021, section 3.1. The
//! text encoder is not here: what it made of the classes is read from a file. A class's score is
//!
//! ```text
//! softmax over classes of  scale · cos(image features, text features)
//! ```

use std::path::Path;

use vitesse_model::storage::safetensors;
use vitesse_model::{Tensor, Tensors};

use crate::{Error, Labels, Result};

/// The tensor of the texts, `[classes, dim]`, of any length and floating-point type.
const FEATURES: &str = "text_features";
/// The logarithm of the scale, one number, as CLIP learned it.
const SCALE: &str = "logit_scale";
/// What the metadata calls the names of the classes: a list, as JSON.
const LABELS: &str = "labels";

/// The scale that CLIP's training ends with, and is not let exceed.
const CLIPS_SCALE: f64 = 100.0;
/// The largest logarithm of a scale that is taken for one: e¹⁰ is 22026.
const MOST: f32 = 10.0;

/// Tensors that a sentence names at most.
const SHOWN: usize = 5;

/// What texts, one for each class, look like to a model that knows images and texts.
#[derive(Debug, Clone)]
pub struct TextFeatures {
    /// `[classes, dim]`, each row of length 1.
    rows: Vec<f32>,
    dim: usize,
    scale: f64,
    labels: Labels,
}

impl TextFeatures {
    /// Those of a safetensors file: `text_features` `[classes, dim]`; if it is there, `logit_scale`, the logarithm of the scale;
    /// in the metadata, if it is there, `labels`, the names of the classes as a JSON list.
    ///
    /// # Errors
    /// A file that cannot be read, or does not hold such features.
    pub fn read(path: &Path) -> Result<TextFeatures> {
        let bad = |reason: String| Error::TextFeatures {
            path: path.to_owned(),
            reason,
        };
        let (tensors, metadata) = safetensors::read(path)?;
        let Ok(tensor) = tensors.get(FEATURES) else {
            let names: Vec<&str> = tensors.names().take(SHOWN).collect();
            return Err(Error::NoTensor {
                path: path.to_owned(),
                name: FEATURES,
                expected: "[classes, dim]".to_owned(),
                found: match names.is_empty() {
                    true => "no tensor".to_owned(),
                    false => format!("`{}`", names.join("`, `")),
                },
            });
        };
        let &[classes, dim] = tensor.shape() else {
            return Err(Error::TensorShape {
                path: path.to_owned(),
                name: FEATURES,
                expected: "[classes, dim]".to_owned(),
                found: format!("has {:?}", tensor.shape()),
            });
        };
        let rows = floats(tensor, FEATURES).map_err(bad)?;
        let scale = scale(&tensors).map_err(bad)?;
        let labels = match metadata.get(LABELS) {
            Some(text) => labels(text, classes).map_err(bad)?,
            None => Labels::default(),
        };
        TextFeatures::new(rows, dim, scale, labels).map_err(bad)
    }

    /// Features `[classes, dim]`, the scale itself (CLIP's is 100) and the names of the classes, where they are known.
    ///
    /// # Errors
    /// In a sentence: no class, rows of another width, one without a direction; a scale that is no positive number.
    pub fn new(
        mut rows: Vec<f32>,
        dim: usize,
        scale: f64,
        labels: Labels,
    ) -> std::result::Result<TextFeatures, String> {
        if dim == 0 || rows.is_empty() {
            return Err(format!("`{FEATURES}` holds no class"));
        }
        if !rows.len().is_multiple_of(dim) {
            return Err(format!(
                "`{FEATURES}` has {} numbers, which make no rows of {dim}",
                rows.len()
            ));
        }
        if !(scale.is_finite() && scale > 0.0) {
            return Err(format!("the scale is {scale}, and should be a positive number"));
        }
        for (class, row) in rows.chunks_exact_mut(dim).enumerate() {
            let length = length(row);
            if !length.is_finite() || length == 0.0 {
                let what = match length == 0.0 {
                    true => "is zero, which points nowhere",
                    false => "is not finite",
                };
                return Err(format!("row {class} of `{FEATURES}` {what}; make the file again"));
            }
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
        Ok(TextFeatures {
            rows,
            dim,
            scale,
            labels,
        })
    }

    /// Numbers in the features of a text, and so in those of an image.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.rows.len() / self.dim
    }

    /// What the classes are called.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// `scale · cos` of the features of one image `[dim]` and those of each class, `[classes]`; zeros for an image without a
    /// direction.
    pub fn logits(&self, image: &[f32]) -> Vec<f32> {
        let length = length(image);
        let factor = if length > 0.0 { self.scale / length } else { 0.0 };
        let cosine = |row: &[f32]| -> f64 {
            let products = row.iter().zip(image).map(|(a, b)| f64::from(*a) * f64::from(*b));
            products.sum()
        };
        let rows = self.rows.chunks_exact(self.dim);
        rows.map(|row| (factor * cosine(row)) as f32).collect()
    }
}

fn length(row: &[f32]) -> f64 {
    let squares = row.iter().map(|x| f64::from(*x) * f64::from(*x));
    squares.sum::<f64>().sqrt()
}

/// The values of a tensor of floating-point numbers.
fn floats(tensor: &Tensor, name: &str) -> std::result::Result<Vec<f32>, String> {
    if !tensor.dtype().is_float() {
        let found = tensor.dtype().name();
        return Err(format!(
            "`{name}` should hold floating-point numbers, but is of type {found}"
        ));
    }
    Ok(tensor.to_f32().into_owned())
}

/// The scale whose logarithm is in the file, or CLIP's.
fn scale(tensors: &Tensors) -> std::result::Result<f64, String> {
    let Ok(tensor) = tensors.get(SCALE) else {
        return Ok(CLIPS_SCALE);
    };
    match floats(tensor, SCALE)?.as_slice() {
        [log] if log.is_finite() && *log <= MOST => Ok(f64::from(*log).exp()),
        [log] => Err(format!(
            "`{SCALE}` is {log}, but should be the logarithm of the scale, such as CLIP's 4.6052 for 100; save the model's \
             `logit_scale` as it is"
        )),
        several => Err(format!(
            "`{SCALE}` should be one number, but holds {}",
            several.len()
        )),
    }
}

/// The names in the metadata.
fn labels(text: &str, classes: usize) -> std::result::Result<Labels, String> {
    let names: Vec<String> = serde_json::from_str(text).map_err(|_| {
        format!("its metadata `{LABELS}` should be a list of names as JSON, such as `[\"cat\", \"dog\"]`")
    })?;
    if names.len() != classes {
        return Err(format!(
            "its metadata `{LABELS}` has {}, and `{FEATURES}` {classes} rows",
            vitesse_words::counted(names.len(), "name")
        ));
    }
    Ok(Labels::from(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_are_scaled_cosines() {
        let rows = vec![3.0, 0.0, 0.0, 0.5, -2.0, 0.0];
        let texts = TextFeatures::new(rows, 2, 10.0, Labels::default()).unwrap();
        assert_eq!((texts.classes(), texts.dim()), (3, 2));
        let found = texts.logits(&[0.3, 0.4]);
        for (found, expected) in found.iter().zip([6.0, 8.0, -6.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert_eq!(texts.logits(&[0.0, 0.0]), [0.0; 3]);
    }

    #[test]
    fn what_has_no_direction_is_refused() {
        let refused = |rows, dim, scale| TextFeatures::new(rows, dim, scale, Labels::default()).unwrap_err();
        assert!(refused(vec![1.0, 0.0, 0.0, 0.0], 2, 1.0).contains("row 1"));
        assert!(refused(vec![f32::NAN, 0.0], 2, 1.0).contains("not finite"));
        assert!(refused(vec![1.0, 0.0, 0.0], 2, 1.0).contains("no rows of 2"));
        assert!(refused(Vec::new(), 2, 1.0).contains("no class"));
        assert!(refused(vec![1.0], 1, f64::INFINITY).contains("scale"));
        assert!(refused(vec![1.0], 1, 0.0).contains("scale"));
    }
}
