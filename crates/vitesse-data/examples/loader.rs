//! Epochs of a folder of pictures through the loader, with DeiT's augmentation at 224 pixels.
//!
//! ```sh
//! cargo run --release -p vitesse-data --example loader -- FOLDER [WORKERS] [EPOCHS]
//! ```
//!
//! Prints one JSON object for each epoch: images, seconds, and a checksum of the pixels, which says whether two builds
//! make the same batches. The rival is `benches/peers/loader.py`.

use std::time::Instant;

use vitesse_data::{Loader, LoaderOptions, OpenOptions, Order, Result, Split, TrainTransform, open};

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let folder = words.next().unwrap_or_else(|| ".".to_owned());
    let mut number = |otherwise: usize| {
        words
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or(otherwise)
    };
    let (workers, epochs) = (number(2), number(1));
    let data = open(
        folder,
        &OpenOptions {
            split: Some(Split::All),
            ..OpenOptions::default()
        },
    )?;
    let options = LoaderOptions {
        workers,
        order: Order::Shuffled,
        ..LoaderOptions::default()
    };
    let loader = Loader::new(data, TrainTransform::default(), options)?;
    for epoch in 0..epochs {
        let begun = Instant::now();
        let (mut images, mut checksum) = (0, 0u64);
        for batch in loader.epoch(epoch as u64)? {
            let batch = batch?;
            images += batch.len();
            // A few rows of every picture: the time of all of them would count.
            for value in batch.images.chunks(224).step_by(64).flatten() {
                checksum = checksum.wrapping_mul(31).wrapping_add(u64::from(value.to_bits()));
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        println!(r#"{{"images": {images}, "seconds": {seconds:.4}, "checksum": {checksum}}}"#);
    }
    Ok(())
}
