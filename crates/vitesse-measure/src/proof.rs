//! Whether a model still is what it was: two models on the same images.

use vitesse_adapt::merge::Difference;
use vitesse_engine::{Engine, Options};
use vitesse_model::Checkpoint;

use crate::{Result, origin};

/// The same images, `[images, channels, height, width]`, through both models, on the engine in f32.
///
/// # Errors
/// A model that the engine does not run.
pub fn compare(found: &Checkpoint, expected: &Checkpoint, images: &[f32]) -> Result<Difference> {
    let size = expected.spec.input_size().iter().product::<usize>();
    let count = images.len() / size.max(1);
    let run = |checkpoint: &Checkpoint| -> Result<Vec<f32>> {
        let options = Options {
            threads: rayon::current_num_threads(),
            ..Options::default()
        };
        let engine = Engine::new(
            &checkpoint.spec,
            &checkpoint.tensors,
            &origin(checkpoint),
            options,
        )?;
        let output = engine.run(images, count)?;
        // Head by head within an image, so that classes can be told apart.
        Ok(if output.distillation.is_empty() {
            output.class
        } else {
            let pairs = output.class.iter().zip(&output.distillation);
            pairs.map(|(a, b)| (a + b) / 2.0).collect()
        })
    };
    Ok(Difference::of(&run(found)?, &run(expected)?, count))
}
