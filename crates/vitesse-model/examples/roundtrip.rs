//! Loads a checkpoint, or makes a fresh one, and saves it as a folder:
//!
//! ```text
//! roundtrip SOURCE TARGET [--num-classes N] [--img-size N] [--architecture NAME]
//! ```
//!
//! `SOURCE` is a folder, a weights file or, where no such file exists, a name of the zoo. What happened on the way goes
//! to standard output.

use std::path::Path;
use std::process::ExitCode;

use vitesse_model::{Checkpoint, LoadOptions};

fn run(arguments: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let [source, target, flags @ ..] = arguments else {
        return Err(
            "usage: roundtrip SOURCE TARGET [--num-classes N] [--img-size N] [--architecture NAME]".into(),
        );
    };
    let mut options = LoadOptions::default();
    for flag in flags.chunks(2) {
        match flag {
            [name, value] if name == "--num-classes" => options.num_classes = Some(value.parse()?),
            [name, value] if name == "--img-size" => options.img_size = Some([value.parse()?; 2]),
            [name, value] if name == "--architecture" => options.architecture = Some(value.clone()),
            _ => return Err(format!("cannot read the flag `{}`", flag.join(" ")).into()),
        }
    }
    let checkpoint = if Path::new(source).exists() {
        Checkpoint::load(source, &options)?
    } else {
        Checkpoint::fresh(source, options.num_classes, options.img_size, options.seed)?
    };
    for note in &checkpoint.source.notes {
        println!("{note}");
    }
    checkpoint.save(Path::new(target), true)?;
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
