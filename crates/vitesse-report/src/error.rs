use std::fmt;

/// What can be wrong with something handed over to be shown.
#[derive(thiserror::Error)]
pub enum ReportError {
    /// The pixels do not fill the picture they are said to make.
    #[error(
        "thumbnail `{caption}`: a picture of {width} × {height} RGB pixels has {expected} bytes, but {found} were given; \
         pass height × width × 3 bytes in row order"
    )]
    PixelCount {
        /// The caption, so that the picture can be found.
        caption: String,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// `width * height * 3`.
        expected: u64,
        /// The number of bytes given.
        found: usize,
    },
    /// The picture could not be encoded as PNG (it has no pixels, or is too large).
    #[error("thumbnail `{caption}`: cannot be encoded as PNG: {source}")]
    Png {
        /// The caption, so that the picture can be found.
        caption: String,
        /// The encoder's reason.
        source: image::ImageError,
    },
}

/// The sentence: this is what a program prints whose `main` returns the error.
impl fmt::Debug for ReportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ReportError {
    /// A stable code for programs.
    pub fn code(&self) -> &'static str {
        "E_REPORT"
    }
}
