//! The tables of settings in `docs/methods` are what the methods' `Config`s say. A page holds `<!-- settings: NAME -->` for every method it
//! describes; what stands between such a line and `<!-- end -->` is generated:
//!
//! ```sh
//! UPDATE_DOCS=1 cargo test -p vitesse-compress --features train --test docs
//! ```
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

use vitesse_compress::Method;
use vitesse_train::method::described;

#[test]
fn the_tables_are_those_of_the_code() {
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/methods");
    for (method, _) in Method::all() {
        let name = method.name();
        let pages = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let found = pages.filter_map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let written = described(&text, &*method).unwrap()?;
            Some((path, text, written))
        });
        let found: Vec<_> = found.collect();
        assert_eq!(found.len(), 1, "one page of docs/methods describes `{name}`");
        for (path, text, written) in found {
            if text == written {
                continue;
            }
            assert!(
                update,
                "{} is not what the code says; run `UPDATE_DOCS=1 cargo test -p vitesse-compress --features train --test docs`",
                path.display()
            );
            fs::write(path, written).unwrap();
        }
    }
}
