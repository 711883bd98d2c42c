//! What a model sees in pictures.
//!
//! `cargo run --release --example classify -- MODEL_FOLDER cat.jpg dog.jpg`

use vitesse::{Classifier, Result};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(model) = args.next() else {
        eprintln!("usage: classify MODEL_FOLDER PICTURE…");
        std::process::exit(2);
    };
    let pictures: Vec<String> = args.collect();
    let classifier = Classifier::load(model)?;
    for (picture, classes) in pictures.iter().zip(classifier.classify_all(&pictures)?) {
        println!("{picture}");
        for class in classes? {
            println!("{:8.2} %  {class}", 100.0 * class.score);
        }
    }
    Ok(())
}
