//! Budgets as one HTML file.

use super::report::Report;
use vitesse::report::Page;

/// The page.
pub(super) fn page(report: &Report) -> String {
    Page::new(format!("{}, pruned", report.model)).render()
}
