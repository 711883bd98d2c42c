//! Random erasing (Zhong et al., 2017) as in DeiT's recipe: one rectangle of the normalised picture becomes noise.

use vitesse_rng::Rng;

const ATTEMPTS: usize = 10;
/// Share of the picture's area.
const AREA: [f64; 2] = [0.02, 1.0 / 3.0];
/// Height over width, log-uniform.
const ASPECT: [f64; 2] = [0.3, 1.0 / 0.3];

/// Fills a random rectangle of `values`, `[channels, height, width]`, with independent draws of N(0, 1). None of ten
/// rectangles fitting, nothing changes.
pub(super) fn erase(values: &mut [f32], [_, height, width]: [usize; 3], rng: &mut Rng) {
    let log = ASPECT.map(libm::log);
    for _ in 0..ATTEMPTS {
        let area = rng.uniform_in(AREA[0], AREA[1]) * (height * width) as f64;
        let aspect = libm::exp(rng.uniform_in(log[0], log[1]));
        let h = (area * aspect).sqrt().round_ties_even() as usize;
        let w = (area / aspect).sqrt().round_ties_even() as usize;
        if w >= width || h >= height {
            continue;
        }
        let top = rng.below(height - h + 1);
        let left = rng.below(width - w + 1);
        for plane in values.chunks_exact_mut(height * width) {
            for row in plane.chunks_exact_mut(width).skip(top).take(h) {
                for pair in row[left..left + w].chunks_mut(2) {
                    let noise = rng.normal_pair().map(|value| value as f32);
                    pair.copy_from_slice(&noise[..pair.len()]);
                }
            }
        }
        return;
    }
}

#[cfg(test)]
mod tests {
    use vitesse_rng::Key;

    use super::*;

    #[test]
    fn a_rectangle_of_noise_is_left() {
        let shape = [3, 40, 30];
        for seed in 0..50 {
            let mut values = vec![9.0; 3 * 40 * 30];
            erase(&mut values, shape, &mut Key::new(seed).rng());
            let erased = |plane: usize, y: usize, x: usize| values[(plane * 40 + y) * 30 + x] != 9.0;
            let (mut rows, mut columns) = (0..40, 0..30);
            let first_row = rows.find(|&y| (0..30).any(|x| erased(0, y, x))).unwrap();
            let first_column = columns.find(|&x| (0..40).any(|y| erased(0, y, x))).unwrap();
            let count = values.iter().filter(|&&value| value != 9.0).count();
            assert!((3 * 20..=3 * 420).contains(&count), "{count}");
            assert!((0..3).all(|plane| erased(plane, first_row, first_column)));
        }
    }

    #[test]
    fn a_single_pixel_stays() {
        let mut values = vec![9.0; 3];
        erase(&mut values, [3, 1, 1], &mut Key::new(1).rng());
        assert_eq!(values, [9.0; 3]);
    }
}
