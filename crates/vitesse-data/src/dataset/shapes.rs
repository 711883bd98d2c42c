//! `shapes`, the built-in data set: small pictures drawn by the program from controlled factors.
//!
//! A picture holds one or more solid figures of random shape, colour, texture, size, place and direction on a background of its
//! own, smaller figures that distract, and sensor noise. One factor is the label; the others vary freely, so nothing but that
//! factor predicts it. Tasks share the drawing and differ in the factor, as in VTAB's structured group, so that a model
//! pre-trained on one can be adapted to another. `silhouette` is the one that is learned in minutes: the figure is alone, light and
//! plain, on a dark and plain ground.
//!
//! | task | label | classes |
//! | --- | --- | --- |
//! | `shapes:shape` | what the large figure is | 8 figures |
//! | `shapes:count` | how many figures there are | 1 to 5 |
//! | `shapes:orientation` | where the arrow points | 8 directions |
//! | `shapes:location` | where the large figure is | 9 cells of a 3 x 3 grid |
//! | `shapes:silhouette` | what the figure is | 8 figures |
//! | `shapes:plain-count`, `shapes:plain-orientation`, `shapes:plain-location` | as above, drawn as silhouettes | |
//!
//! Sample `i` of a split is a pure function of (seed, task, split, i): more training pictures never change the ones
//! before or any test picture. Only exactly rounded operations and `libm` are used, so pixels are equal on every machine.

use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vitesse_rng::{Key, Rng};

use super::{Contents, Form, Fragile, Part, Samples};
use crate::{DecodeOptions, Error, Image, Result};

/// The name of the set.
const NAME: &str = "shapes";

/// Which factor of the drawing is the label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShapesTask {
    /// What the large figure is.
    #[default]
    Shape,
    /// How many figures there are.
    Count,
    /// Which of eight directions the arrow points to.
    Orientation,
    /// In which cell of a 3 x 3 grid the large figure is.
    Location,
    /// What the only figure is, light on a dark ground.
    Silhouette,
    /// How many figures there are, light on a dark ground.
    #[serde(rename = "plain-count")]
    PlainCount,
    /// Where the only figure, an arrow, points to, light on a dark ground.
    #[serde(rename = "plain-orientation")]
    PlainOrientation,
    /// Where the only figure is, light on a dark ground.
    #[serde(rename = "plain-location")]
    PlainLocation,
}

impl FromStr for ShapesTask {
    type Err = Error;

    fn from_str(text: &str) -> Result<ShapesTask> {
        match text {
            "shape" => Ok(ShapesTask::Shape),
            "count" => Ok(ShapesTask::Count),
            "orientation" => Ok(ShapesTask::Orientation),
            "location" => Ok(ShapesTask::Location),
            "silhouette" => Ok(ShapesTask::Silhouette),
            "plain-count" => Ok(ShapesTask::PlainCount),
            "plain-orientation" => Ok(ShapesTask::PlainOrientation),
            "plain-location" => Ok(ShapesTask::PlainLocation),
            _ => {
                let expected = "`shape`, `count`, `orientation`, `location`, `silhouette`, `plain-count`, `plain-orientation` or \
                                `plain-location`";
                Err(Error::setting("task of shapes", &format!("`{text}`"), expected))
            }
        }
    }
}

impl ShapesTask {
    /// The classes, in the order of the labels.
    pub fn class_names(self) -> &'static [&'static str] {
        match self {
            ShapesTask::Shape | ShapesTask::Silhouette => &[
                "circle", "ring", "crescent", "triangle", "square", "pentagon", "star", "cross",
            ],
            ShapesTask::Count | ShapesTask::PlainCount => &["1", "2", "3", "4", "5"],
            ShapesTask::Orientation | ShapesTask::PlainOrientation => &[
                "east",
                "south-east",
                "south",
                "south-west",
                "west",
                "north-west",
                "north",
                "north-east",
            ],
            ShapesTask::Location | ShapesTask::PlainLocation => &[
                "top left",
                "top",
                "top right",
                "left",
                "centre",
                "right",
                "bottom left",
                "bottom",
                "bottom right",
            ],
        }
    }
}

impl ShapesTask {
    /// Whether figures are light and flat, on a dark and flat ground, and nothing distracts.
    fn is_plain(self) -> bool {
        use ShapesTask::{PlainCount, PlainLocation, PlainOrientation, Silhouette};
        matches!(self, Silhouette | PlainCount | PlainOrientation | PlainLocation)
    }

    /// How many figures its label is about; others only distract.
    fn figures(self, label: usize) -> usize {
        match self {
            ShapesTask::Count | ShapesTask::PlainCount => label + 1,
            _ => 1,
        }
    }

    /// What its labels do not survive.
    fn fragile(self) -> Fragile {
        match self {
            ShapesTask::Shape | ShapesTask::Silhouette => Fragile::default(),
            ShapesTask::Count | ShapesTask::PlainCount => Fragile {
                flip: false,
                crop: true,
            },
            ShapesTask::Orientation
            | ShapesTask::Location
            | ShapesTask::PlainOrientation
            | ShapesTask::PlainLocation => Fragile {
                flip: true,
                crop: true,
            },
        }
    }
}

/// What the labels of the data set `path` do not survive; nothing is known of one that is not built in.
pub(super) fn fragile(path: &Path) -> Fragile {
    let task = path
        .to_str()
        .and_then(|text| text.strip_prefix(NAME)?.strip_prefix(':'));
    task.and_then(|task| task.parse::<ShapesTask>().ok())
        .map_or(Fragile::default(), ShapesTask::fragile)
}

/// What the built-in set draws.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapesConfig {
    /// Pixels a side, 16 to 512. Default 32.
    pub size: usize,
    /// Training pictures. Default 10,000.
    pub train: usize,
    /// Validation pictures. Default 1,000.
    pub validation: usize,
    /// Test pictures. Default 2,000.
    pub test: usize,
    /// Which world is drawn. Results are comparable only between equal seeds. Default 0.
    pub seed: u64,
}

impl Default for ShapesConfig {
    fn default() -> Self {
        ShapesConfig {
            size: 32,
            train: 10_000,
            validation: 1_000,
            test: 2_000,
            seed: 0,
        }
    }
}

/// Recognises `shapes` and `shapes:TASK`.
pub(super) fn recognise(path: &Path, config: &ShapesConfig) -> Result<Option<Box<dyn Form>>> {
    let task = match path.to_str().and_then(|text| text.strip_prefix(NAME)) {
        Some("") => ShapesTask::default(),
        Some(rest) if rest.starts_with(':') => rest[1..].parse()?,
        _ => return Ok(None),
    };
    if !(16..=512).contains(&config.size) {
        return Err(Error::setting("size of shapes", &config.size, "16 to 512 pixels"));
    }
    for (key, count) in [
        ("train", config.train),
        ("validation", config.validation),
        ("test", config.test),
    ] {
        if count == 0 {
            return Err(Error::setting(key, &count, "at least one picture of shapes"));
        }
    }
    Ok(Some(Box::new(Shapes {
        task,
        config: config.clone(),
    })))
}

struct Shapes {
    task: ShapesTask,
    config: ShapesConfig,
}

impl Form for Shapes {
    fn name(&self) -> &'static str {
        "drawn by the program"
    }

    fn parts(&self) -> Vec<Part> {
        vec![Part::Train, Part::Validation, Part::Test]
    }

    fn read(&self, part: Part, _: &DecodeOptions) -> Result<Contents> {
        let len = match part {
            Part::Train | Part::TrainValidation | Part::Whole => self.config.train,
            Part::Validation => self.config.validation,
            Part::Test => self.config.test,
        };
        let classes = self.task.class_names();
        let drawn = Drawn {
            task: self.task,
            size: self.config.size,
            len,
            stem: part.name(),
            key: Key::new(self.config.seed)
                .with(NAME)
                .at(self.task as u64)
                .with(part.name()),
        };
        Ok(Contents::new(
            drawn,
            classes.iter().map(|&name| name.to_owned()).collect(),
        ))
    }
}

/// One part of one task.
#[derive(Debug)]
struct Drawn {
    task: ShapesTask,
    size: usize,
    len: usize,
    stem: &'static str,
    key: Key,
}

impl Samples for Drawn {
    fn len(&self) -> usize {
        self.len
    }

    fn label(&self, index: usize) -> Option<usize> {
        // Every class equally often, to within one picture.
        Some(index % self.task.class_names().len())
    }

    fn name(&self, index: usize) -> String {
        format!("{NAME}-{}[{index}]", self.stem)
    }

    fn load(&self, index: usize) -> Result<Image> {
        let label = index % self.task.class_names().len();
        let mut rng = self.key.at(index as u64).rng();
        let scene = Scene::draw(self.task, label, &mut rng);
        Ok(scene.render(self.size, &mut rng))
    }
}

/// The outline of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outline {
    Circle,
    Ring,
    Crescent,
    Triangle,
    Square,
    Pentagon,
    Star,
    Cross,
    Arrow,
}

/// In the order of the labels of [`ShapesTask::Shape`].
const OUTLINES: [Outline; 8] = [
    Outline::Circle,
    Outline::Ring,
    Outline::Crescent,
    Outline::Triangle,
    Outline::Square,
    Outline::Pentagon,
    Outline::Star,
    Outline::Cross,
];

impl Outline {
    /// Whether the point is inside, in a frame in which the figure just fits the unit circle (and arrows point to +x).
    fn contains(self, x: f64, y: f64) -> bool {
        let radius = x * x + y * y;
        if radius > 1.0 {
            return false;
        }
        match self {
            Outline::Circle => true,
            Outline::Ring => radius > 0.3,
            Outline::Crescent => (x - 0.45) * (x - 0.45) + y * y > 0.55,
            Outline::Square => x.abs() < 0.75 && y.abs() < 0.75,
            Outline::Cross => x.abs() < 0.3 || y.abs() < 0.3,
            Outline::Triangle => inside(x, y, 3, 0.5),
            Outline::Pentagon => inside(x, y, 5, 0.809_016_994_374_947_5),
            // The five-pointed star is where at least four of the pentagon's five edges, moved inwards, are respected.
            Outline::Star => {
                edges(5)
                    .filter(|(nx, ny)| x * nx + y * ny < 0.309_016_994_374_947_4)
                    .count()
                    >= 4
            }
            Outline::Arrow => {
                let head = x > 0.0 && y.abs() < 0.8 * (1.0 - x);
                head || (x <= 0.0 && y.abs() < 0.28)
            }
        }
    }
}

/// The outward unit normals of a regular polygon's edges.
fn edges(sides: u32) -> impl Iterator<Item = (f64, f64)> {
    // cos and sin of multiples of a turn's third or fifth, written out: tables are equal on every machine.
    const THIRDS: [(f64, f64); 3] = [
        (1.0, 0.0),
        (-0.5, 0.866_025_403_784_438_6),
        (-0.5, -0.866_025_403_784_438_6),
    ];
    const FIFTHS: [(f64, f64); 5] = [
        (1.0, 0.0),
        (0.309_016_994_374_947_4, 0.951_056_516_295_153_5),
        (-0.809_016_994_374_947_5, 0.587_785_252_292_473_1),
        (-0.809_016_994_374_947_5, -0.587_785_252_292_473_1),
        (0.309_016_994_374_947_4, -0.951_056_516_295_153_5),
    ];
    if sides == 3 { THIRDS.iter() } else { FIFTHS.iter() }.copied()
}

fn inside(x: f64, y: f64, sides: u32, distance: f64) -> bool {
    edges(sides).all(|(nx, ny)| x * nx + y * ny < distance)
}

type Colour = [f64; 3];

/// How an area is filled.
#[derive(Debug, Clone, Copy)]
enum Texture {
    Flat,
    /// Bands across the figure, this many to a unit of length.
    Stripes(f64),
    Checks(f64),
}

impl Texture {
    /// Two thirds are flat.
    fn draw(rng: &mut Rng) -> Texture {
        match rng.below(6) {
            0 => Texture::Stripes(rng.uniform_in(1.0, 2.5)),
            1 => Texture::Checks(rng.uniform_in(1.0, 2.0)),
            _ => Texture::Flat,
        }
    }

    /// Whether a point has the second colour.
    fn second(self, x: f64, y: f64) -> bool {
        let odd = |at: f64| at.floor() as i64 & 1 == 1;
        match self {
            Texture::Flat => false,
            Texture::Stripes(frequency) => odd(x * frequency),
            Texture::Checks(frequency) => odd(x * frequency) ^ odd(y * frequency),
        }
    }
}

/// One figure; lengths in picture sides.
#[derive(Debug, Clone)]
struct Figure {
    outline: Outline,
    x: f64,
    y: f64,
    radius: f64,
    /// Cosine and sine of its direction.
    direction: (f64, f64),
    texture: Texture,
    colours: [Colour; 2],
}

/// Where a figure may be: ranges of its size and of its centre.
#[derive(Clone, Copy)]
struct Place {
    outline: Outline,
    radius: (f64, f64),
    columns: (f64, f64),
    rows: (f64, f64),
}

/// Everything but the noise.
#[derive(Debug)]
struct Scene {
    /// The background's colours in the four corners.
    corners: [Colour; 4],
    texture: Texture,
    /// How far the background's texture moves its colour.
    relief: f64,
    figures: Vec<Figure>,
    /// Deviation of the noise, in levels.
    noise: f64,
}

impl Scene {
    fn draw(task: ShapesTask, label: usize, rng: &mut Rng) -> Scene {
        let base = colour(rng);
        let corners = std::array::from_fn(|_| nearby(base, 25.0, rng));
        let texture = Texture::draw(rng);
        let mut scene = Scene {
            corners,
            texture,
            relief: rng.uniform_in(3.0, 12.0),
            figures: Vec::new(),
            noise: rng.uniform_in(2.0, 10.0),
        };
        let any = |rng: &mut Rng| OUTLINES[rng.below(OUTLINES.len())];
        match task {
            ShapesTask::Silhouette => {
                scene.darken(rng);
                let light = colour_in(155.0, 235.0, rng);
                scene.figures.push(Figure {
                    outline: OUTLINES[label % OUTLINES.len()],
                    x: rng.uniform_in(0.38, 0.62),
                    y: rng.uniform_in(0.38, 0.62),
                    radius: rng.uniform_in(0.28, 0.42),
                    direction: direction(tilt(rng)),
                    texture: Texture::Flat,
                    colours: [light; 2],
                });
            }
            ShapesTask::Shape => {
                let outline = OUTLINES[label % OUTLINES.len()];
                let middle = (0.3, 0.7);
                scene.place(
                    Place {
                        outline,
                        radius: (0.25, 0.4),
                        columns: middle,
                        rows: middle,
                    },
                    tilt(rng),
                    base,
                    rng,
                );
                scene.distract(2, base, rng);
            }
            ShapesTask::Count | ShapesTask::PlainCount => {
                let outline = any(rng);
                for _ in 0..=label {
                    let anywhere = (0.12, 0.88);
                    let place = Place {
                        outline,
                        radius: (0.1, 0.14),
                        columns: anywhere,
                        rows: anywhere,
                    };
                    scene.place(place, turn(rng), base, rng);
                }
            }
            ShapesTask::Orientation | ShapesTask::PlainOrientation => {
                // Eighths of a turn, the middle four fifths of each: the borders between classes are left out.
                let eighth = std::f64::consts::PI / 4.0;
                let angle = (label as f64 + rng.uniform_in(-0.4, 0.4)) * eighth;
                let (outline, middle) = (Outline::Arrow, (0.25, 0.75));
                scene.place(
                    Place {
                        outline,
                        radius: (0.2, 0.34),
                        columns: middle,
                        rows: middle,
                    },
                    angle,
                    base,
                    rng,
                );
                scene.distract(2, base, rng);
            }
            ShapesTask::Location | ShapesTask::PlainLocation => {
                let cell = |at: usize| {
                    let first = at as f64 / 3.0;
                    (first + 0.03, first + 1.0 / 3.0 - 0.03)
                };
                let (columns, rows) = (cell(label % 3), cell(label / 3 % 3));
                scene.place(
                    Place {
                        outline: any(rng),
                        radius: (0.13, 0.2),
                        columns,
                        rows,
                    },
                    turn(rng),
                    base,
                    rng,
                );
                scene.distract(3, base, rng);
            }
        }
        // A silhouette is plain from the start.
        if task.is_plain() && task != ShapesTask::Silhouette {
            scene.darken(rng);
            scene.figures.truncate(task.figures(label));
            for figure in &mut scene.figures {
                (figure.texture, figure.colours) = (Texture::Flat, [colour_in(155.0, 235.0, rng); 2]);
            }
        }
        scene
    }

    /// Makes the background dark and flat.
    fn darken(&mut self, rng: &mut Rng) {
        self.corners = std::array::from_fn(|_| colour_in(20.0, 100.0, rng));
        (self.texture, self.relief) = (Texture::Flat, 0.0);
    }

    /// Adds a figure, apart from the figures already there if a few tries find such a place.
    fn place(&mut self, place: Place, angle: f64, background: Colour, rng: &mut Rng) {
        let radius = rng.uniform_in(place.radius.0, place.radius.1);
        let (mut x, mut y) = (0.0, 0.0);
        for _ in 0..40 {
            x = rng.uniform_in(place.columns.0, place.columns.1);
            y = rng.uniform_in(place.rows.0, place.rows.1);
            let apart = |other: &Figure| {
                let (dx, dy, reach) = (x - other.x, y - other.y, radius + other.radius);
                dx * dx + dy * dy > reach * reach
            };
            if self.figures.iter().all(apart) {
                break;
            }
        }
        let first = distant(background, rng);
        let second = nearby(first, 35.0, rng);
        let texture = Texture::draw(rng);
        let colours = [first, second];
        self.figures.push(Figure {
            outline: place.outline,
            x,
            y,
            radius,
            direction: direction(angle),
            texture,
            colours,
        });
    }

    /// Adds up to `most` small figures.
    fn distract(&mut self, most: usize, background: Colour, rng: &mut Rng) {
        for _ in 0..rng.below(most + 1) {
            let outline = OUTLINES[rng.below(OUTLINES.len())];
            let anywhere = (0.05, 0.95);
            let place = Place {
                outline,
                radius: (0.05, 0.08),
                columns: anywhere,
                rows: anywhere,
            };
            self.place(place, turn(rng), background, rng);
        }
    }

    fn render(&self, size: usize, rng: &mut Rng) -> Image {
        let mut canvas: Vec<Colour> = Vec::with_capacity(size * size);
        let scale = 1.0 / size as f64;
        for row in 0..size {
            for column in 0..size {
                canvas.push(self.background((column as f64 + 0.5) * scale, (row as f64 + 0.5) * scale));
            }
        }
        for figure in &self.figures {
            figure.paint(&mut canvas, size);
        }
        let levels = canvas
            .into_iter()
            .flatten()
            .map(|level| to_byte(level + self.noise * bell(rng)));
        let data = levels.collect();
        Image::new(size, size, data).unwrap_or_else(|_| Image::filled(size, size, [0; 3]))
    }

    /// The background at a point of the unit square: a blend of the corners, and a texture.
    fn background(&self, x: f64, y: f64) -> Colour {
        let shift = if self.texture.second(3.0 * x, 3.0 * y) {
            self.relief
        } else {
            0.0
        };
        std::array::from_fn(|channel| {
            let [a, b, c, d] = self.corners.map(|corner| corner[channel]);
            (a * (1.0 - x) + b * x) * (1.0 - y) + (c * (1.0 - x) + d * x) * y + shift
        })
    }
}

impl Figure {
    /// Blends the figure into the picture; each pixel by the share of its sixteen sub-pixels that are inside.
    fn paint(&self, canvas: &mut [Colour], size: usize) {
        const SUB: usize = 4;
        let scale = 1.0 / size as f64;
        let range = |centre: f64| {
            let first = ((centre - self.radius) * size as f64).floor().max(0.0) as usize;
            let last = ((centre + self.radius) * size as f64).ceil().max(0.0) as usize;
            first..last.min(size)
        };
        let (cos, sin) = self.direction;
        for row in range(self.y) {
            for column in range(self.x) {
                let mut share = 0.0;
                let mut sum = [0.0; 3];
                for sub in 0..SUB * SUB {
                    let offset = |at: usize| (at as f64 + 0.5) / SUB as f64;
                    let dx = ((column as f64 + offset(sub % SUB)) * scale - self.x) / self.radius;
                    let dy = ((row as f64 + offset(sub / SUB)) * scale - self.y) / self.radius;
                    let (x, y) = (dx * cos + dy * sin, dy * cos - dx * sin);
                    if self.outline.contains(x, y) {
                        let colour = self.colours[usize::from(self.texture.second(x, y))];
                        share += 1.0;
                        for (sum, level) in sum.iter_mut().zip(colour) {
                            *sum += level;
                        }
                    }
                }
                let whole = (SUB * SUB) as f64;
                for (level, sum) in canvas[row * size + column].iter_mut().zip(sum) {
                    *level = *level * (1.0 - share / whole) + sum / whole;
                }
            }
        }
    }
}

fn turn(rng: &mut Rng) -> f64 {
    rng.uniform_in(0.0, 2.0 * std::f64::consts::PI)
}

/// About upright, a sixth of a half-turn to either side.
fn tilt(rng: &mut Rng) -> f64 {
    rng.uniform_in(-1.0, 1.0) * std::f64::consts::PI / 6.0
}

/// Cosine and sine.
fn direction(angle: f64) -> (f64, f64) {
    (libm::cos(angle), libm::sin(angle))
}

fn colour(rng: &mut Rng) -> Colour {
    colour_in(20.0, 235.0, rng)
}

fn colour_in(least: f64, most: f64, rng: &mut Rng) -> Colour {
    std::array::from_fn(|_| rng.uniform_in(least, most))
}

fn nearby(colour: Colour, reach: f64, rng: &mut Rng) -> Colour {
    colour.map(|level| (level + rng.uniform_in(-reach, reach)).clamp(0.0, 255.0))
}

/// A colour that differs from another enough to be seen, sometimes only just.
fn distant(from: Colour, rng: &mut Rng) -> Colour {
    let mut found = colour(rng);
    for _ in 0..40 {
        let difference: f64 = found.iter().zip(from).map(|(a, b)| (a - b).abs()).sum();
        if difference > 200.0 {
            break;
        }
        found = colour(rng);
    }
    found
}

/// A bell-shaped number of deviation 1 from the four 16-bit parts of one draw (Irwin and Hall): cheap, and additions only.
fn bell(rng: &mut Rng) -> f64 {
    let bits = rng.next_u64();
    let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
    (sum as f64 / 65_536.0 - 2.0) * 1.732_050_807_568_877_2
}

fn to_byte(level: f64) -> u8 {
    (level + 0.5).clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::super::{OpenOptions, Split, open};
    use super::*;
    use crate::testing::checksum;

    #[test]
    fn pixels_are_pinned() {
        // Results on this set are comparable only while its pictures never change.
        let sums: Vec<u32> = ["shape", "count", "orientation", "location", "silhouette"]
            .iter()
            .map(|task| {
                let data = open(format!("shapes:{task}"), &OpenOptions::default()).unwrap();
                checksum(&data.load(5).unwrap())
            })
            .collect();
        assert_eq!(
            sums,
            [37_131_431, 833_421_769, 1_400_299_670, 787_627_046, 315_520_846]
        );
    }

    #[test]
    fn tasks_and_sizes() {
        let options = OpenOptions {
            split: Some(Split::Train),
            shapes: ShapesConfig {
                size: 48,
                train: 100,
                ..ShapesConfig::default()
            },
            ..OpenOptions::default()
        };
        let data = open("shapes", &options).unwrap();
        assert_eq!(
            (data.len(), data.class_names().len(), data.name(3).as_str()),
            (100, 8, "shapes-train[3]")
        );
        assert_eq!(data.load(0).unwrap().width(), 48);
        assert_eq!(data.load(99).unwrap(), data.load(99).unwrap());
        assert_ne!(data.load(0).unwrap(), data.load(8).unwrap());
        let error = open("shapes:colour", &options).unwrap_err().to_string();
        assert!(error.contains("`colour`") && error.contains("`count`"), "{error}");
        // A subset in which one class must not be missed.
        assert_eq!(data.limit(8, 1).len(), 8);
        let mut labels: Vec<_> = (0..16).map(|i| data.limit(16, 1).label(i)).collect();
        labels.sort_unstable();
        assert_eq!(labels, (0..16).map(|i| Some(i / 2)).collect::<Vec<_>>());
        let few = data.per_class(3, 1);
        assert_eq!(few.len(), 24);
        assert!((0..8).all(|class| (0..24).filter(|&i| few.label(i) == Some(class)).count() == 3));
    }

    #[test]
    fn a_task_says_what_its_labels_do_not_survive() {
        let of = |data: &str| Fragile::of(data);
        for sturdy in [
            "shapes",
            "shapes:shape",
            "shapes:colour",
            "./shapes:count",
            "cifar10",
        ] {
            assert_eq!(of(sturdy), Fragile::default(), "{sturdy}");
        }
        assert!(of("shapes:location").flip && of("shapes:orientation").crop);
        assert!(of("shapes:count").crop && !of("shapes:count").flip);
    }

    #[test]
    fn figures_are_inside_their_circle_and_not_empty() {
        for outline in OUTLINES.into_iter().chain([Outline::Arrow]) {
            let points =
                (0..10_000).map(|i| (f64::from(i % 100) / 40.0 - 1.25, f64::from(i / 100) / 40.0 - 1.25));
            let inside = points.filter(|&(x, y)| outline.contains(x, y));
            let count = inside.inspect(|(x, y)| assert!(x * x + y * y <= 1.0)).count();
            assert!((900..5100).contains(&count), "{outline:?} covers {count}");
        }
    }
}
