//! Moves every tensor of a checkpoint, one at a time, and demands that the logits move: nothing is loaded in vain.
//!
//! `cargo run --release --example perturb -- MODEL_FOLDER input.safetensors` (key `pixel_values`, first image used)

use std::path::Path;
use std::process::ExitCode;

use burn::tensor::{Device, Tensor, TensorData};
use vitesse::model::checkpoint::{Checkpoint, LoadOptions};
use vitesse::model::network::{Ctx, Fusion, Network};
use vitesse::model::storage::safetensors;
use vitesse::model::{self, ModelSpec, Tensors};

type Failure = Box<dyn std::error::Error>;

fn logits(spec: &ModelSpec, tensors: &Tensors, image: &Tensor<4>) -> Result<Vec<f32>, Failure> {
    let network = Network::new(spec, tensors, "the moved checkpoint", &Device::flex())?;
    let logits = network
        .forward(image.clone(), &mut Ctx::eval())?
        .joint(Fusion::LogitMean);
    logits.try_to_vec_as().map_err(|e| format!("{e:?}").into())
}

fn run() -> Result<bool, Failure> {
    let mut args = std::env::args().skip(1);
    let (Some(folder), Some(input)) = (args.next(), args.next()) else {
        return Err("usage: perturb MODEL_FOLDER input.safetensors".into());
    };
    let checkpoint = Checkpoint::load(Path::new(&folder), &LoadOptions::default())?;
    let (inputs, _) = safetensors::read(Path::new(&input))?;
    let pixels = inputs.get("pixel_values")?;
    let image = TensorData::new(pixels.to_f32().into_owned(), pixels.shape().to_vec());
    let image = Tensor::<4>::from_data(image, &Device::flex()).narrow(0, 0, 1);

    let (spec, tensors) = (&checkpoint.spec, &checkpoint.tensors);
    let before = logits(spec, tensors, &image)?;
    let mut still = Vec::new();
    let mut moved = 0;
    for tensor in spec.tensors()? {
        if tensor.role == model::spec::Role::Counter {
            continue;
        }
        let mut values = tensors.get(&tensor.name)?.to_f32().into_owned();
        // By amounts that differ: softmax does not see what all of a table's numbers are moved by.
        for (i, value) in values.iter_mut().enumerate() {
            *value += (0.5 + 0.5 * value.abs()) * (1 + i * 7 % 5) as f32;
        }
        let mut changed = tensors.clone();
        changed.insert_f32(&tensor.name, &tensor.shape, values)?;
        let after = logits(spec, &changed, &image)?;
        if before
            .iter()
            .zip(&after)
            .any(|(a, b)| (a - b).abs() > 1e-5 * a.abs().max(1.0))
        {
            moved += 1;
        } else {
            still.push(tensor.name);
        }
    }
    println!(
        "{moved} tensors move the logits, {} do not {still:?}",
        still.len()
    );
    Ok(still.is_empty())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
