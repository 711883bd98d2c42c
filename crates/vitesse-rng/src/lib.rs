//! Keyed random numbers.
//!
//! Everything random in Vitesse (the order of an epoch, an augmentation, drop path, a fresh weight) is a pure
//! function of *(seed, purpose, indices)*. There is no generator whose state would have to be saved, so a resumed
//! run draws what the uninterrupted one drew, and the number of threads cannot change a result.
//!
//! ```
//! use vitesse_rng::Key;
//!
//! let order = Key::new(42).with("order").at(3); // seed 42, epoch 3
//! assert_eq!(order.rng().permutation(5), order.rng().permutation(5));
//! assert_ne!(order.rng().next_u64(), Key::new(42).with("order").at(4).rng().next_u64());
//! ```
//!
//! A key is mixed with SplitMix64's finaliser; the numbers of one key come from xoshiro256++ (Blackman & Vigna,
//! 2019). Transcendental functions are `libm`'s, in pure Rust, so draws are equal on every machine.

/// What a draw is for: a seed, refined by purposes and indices. Cheap to copy; equal keys draw equal numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u64);

/// SplitMix64's finaliser: a bijection of 64 bits in which every input bit reaches every output bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Key {
    /// The root key of a seed.
    pub fn new(seed: u64) -> Self {
        Key(mix(seed.wrapping_add(GOLDEN)))
    }

    /// The key for one purpose, such as `"order"` or a tensor's name.
    pub fn with(self, purpose: &str) -> Self {
        // FNV-1a over the bytes, then one mix: purposes are few and short.
        let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        });
        self.at(hash)
    }

    /// The key for one index: an epoch, a step, a sample.
    pub fn at(self, index: u64) -> Self {
        Key(mix(
            self.0.wrapping_add(GOLDEN) ^ mix(index.wrapping_add(GOLDEN).rotate_left(17))
        ))
    }

    /// The numbers of this key, from the first.
    pub fn rng(self) -> Rng {
        let mut z = self.0;
        let state = [(); 4].map(|()| {
            z = z.wrapping_add(GOLDEN);
            mix(z)
        });
        Rng { state }
    }
}

/// The sequence of numbers that belongs to one [`Key`].
#[derive(Debug, Clone)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in `[0, 1)`, with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `[low, high)`.
    pub fn uniform_in(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// True with probability `p`.
    pub fn bernoulli(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Uniform in `0..n`, without bias (Lemire's multiplication with rejection); 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        if n == 0 {
            return 0;
        }
        let threshold = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= threshold {
                return (product >> 64) as usize;
            }
        }
    }

    /// Standard normal (Box and Muller's transform, cosine branch).
    pub fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.uniform()));
        radius * libm::cos(2.0 * std::f64::consts::PI * self.uniform())
    }

    /// Two independent standard normals from the same two draws: both branches of the transform, the cosine's first.
    pub fn normal_pair(&mut self) -> [f64; 2] {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.uniform()));
        let (sine, cosine) = libm::sincos(2.0 * std::f64::consts::PI * self.uniform());
        [radius * cosine, radius * sine]
    }

    /// Normal with mean 0 and deviation `std`, drawn again until it lies within `±bound`.
    pub fn truncated_normal(&mut self, std: f64, bound: f64) -> f64 {
        loop {
            let x = self.normal() * std;
            if x.abs() <= bound {
                return x;
            }
        }
    }

    /// Gamma with the given shape and scale 1 (Marsaglia & Tsang, 2000; shapes below 1 by boosting).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = libm::pow(1.0 - self.uniform(), 1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / libm::sqrt(9.0 * d);
        loop {
            let x = self.normal();
            let v = 1.0 + c * x;
            if v <= 0.0 {
                continue;
            }
            let v = v * v * v;
            if libm::log(1.0 - self.uniform()) < 0.5 * x * x + d - d * v + d * libm::log(v) {
                return d * v;
            }
        }
    }

    /// Beta with parameters `a` and `b`.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let x = self.gamma(a);
        let y = self.gamma(b);
        if x + y > 0.0 { x / (x + y) } else { 0.5 }
    }

    /// Shuffles in place (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// A random permutation of `0..n`.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and variance of `n` draws.
    fn moments(n: usize, mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let xs: Vec<f64> = (0..n).map(|_| draw()).collect();
        let mean = xs.iter().sum::<f64>() / n as f64;
        (
            mean,
            xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64,
        )
    }

    #[test]
    fn a_pair_is_two_independent_normals() {
        let mut rng = Key::new(5).rng();
        let pairs: Vec<[f64; 2]> = (0..20_000).map(|_| rng.normal_pair()).collect();
        let mean = |f: fn(&[f64; 2]) -> f64| pairs.iter().map(f).sum::<f64>() / pairs.len() as f64;
        for moment in [mean(|[a, _]| *a), mean(|[_, b]| *b), mean(|[a, b]| a * b)] {
            assert!(moment.abs() < 0.03, "{moment}");
        }
        assert!((mean(|[a, _]| a * a) - 1.0).abs() < 0.04 && (mean(|[_, b]| b * b) - 1.0).abs() < 0.04);
        assert_eq!(Key::new(5).rng().normal(), pairs[0][0]);
    }

    #[test]
    fn numbers_are_pinned() {
        // Checkpoints and data sets are reproduced from seeds: these values may never change.
        let mut rng = Key::new(0).with("pin").at(7).rng();
        let first: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(
            first,
            [
                11_425_764_522_025_471_918,
                4_123_368_172_406_421_801,
                10_057_373_151_606_875_768
            ]
        );
    }

    #[test]
    fn keys_differ_by_every_part() {
        let draw = |seed, purpose, index| Key::new(seed).with(purpose).at(index).rng().next_u64();
        let base = draw(1, "a", 2);
        assert!(
            [draw(2, "a", 2), draw(1, "b", 2), draw(1, "a", 3)]
                .iter()
                .all(|&x| x != base)
        );
        assert_ne!(Key::new(1).at(2).at(3), Key::new(1).at(3).at(2));
    }

    #[test]
    fn distributions_have_their_moments() {
        let mut rng = Key::new(9).rng();
        let (mean, var) = moments(40_000, || rng.uniform());
        assert!(
            (mean - 0.5).abs() < 0.01 && (var - 1.0 / 12.0).abs() < 0.005,
            "{mean} {var}"
        );
        let (mean, var) = moments(40_000, || rng.normal());
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.03, "{mean} {var}");
        // Beta(a, b): mean a/(a+b), variance ab/((a+b)²(a+b+1)).
        let (mean, var) = moments(40_000, || rng.beta(0.8, 0.8));
        assert!(
            (mean - 0.5).abs() < 0.01 && (var - 0.25 / 2.6).abs() < 0.005,
            "{mean} {var}"
        );
    }

    #[test]
    fn below_covers_its_range_and_permutations_are_complete() {
        let mut rng = Key::new(3).rng();
        let mut seen = [0usize; 7];
        for _ in 0..7_000 {
            seen[rng.below(7)] += 1;
        }
        assert!(seen.iter().all(|&n| (800..1200).contains(&n)), "{seen:?}");
        assert_eq!(rng.below(0), 0);
        let mut order = rng.permutation(100);
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
