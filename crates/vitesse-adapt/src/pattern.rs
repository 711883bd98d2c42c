//! Which modules a pattern means: PEFT's rules.
//!
//! As a list, a module matches if its path is an entry or ends with `.` and an entry; a single string is a regular
//! expression for the whole path, and `all-linear` means every projection of the blocks. The keys of `rank_pattern` and
//! `alpha_pattern` are regular expressions for the end of a path, from a dot on.

use regex_lite::Regex;
use serde::{Deserialize, Serialize};
use vitesse_model::{Site, Sites};

use crate::{Error, Result};

/// Names of modules, as in PEFT's `target_modules`.
///
/// Read from a list, or from a text by [`Targets::parse`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, from = "Written")]
pub enum Targets {
    /// A regular expression for the whole path, or `all-linear`.
    Pattern(String),
    /// Paths or their ends.
    List(Vec<String>),
}

/// Says of a path whether it matches.
type Matcher<'a> = Box<dyn Fn(&str) -> bool + 'a>;

/// As it stands in a file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    List(Vec<String>),
}

impl From<Written> for Targets {
    fn from(written: Written) -> Targets {
        match written {
            Written::Text(text) => Targets::parse(&text),
            Written::List(entries) => Targets::List(entries),
        }
    }
}

impl Targets {
    /// A list from `a,b,c`, or a regular expression where the text holds what no module's name does.
    pub fn parse(text: &str) -> Targets {
        if text == "all-linear" || text.contains(['*', '(', '|', '\\', '[', '+', '^', '$', '?']) {
            return Targets::Pattern(text.to_owned());
        }
        Targets::List(text.split(',').map(|entry| entry.trim().to_owned()).collect())
    }

    /// What decides whether a path matches; `embedding` is the path of the patch embedding.
    fn matcher<'a>(&'a self, embedding: Option<&'a str>) -> Result<Matcher<'a>> {
        Ok(match self {
            Targets::Pattern(pattern) if pattern == "all-linear" => {
                Box::new(move |path| Some(path) != embedding)
            }
            Targets::Pattern(pattern) => {
                let regex = whole(pattern)?;
                Box::new(move |path| regex.is_match(path))
            }
            Targets::List(entries) => {
                Box::new(move |path| entries.iter().any(|entry| ends_with(path, entry)))
            }
        })
    }

    /// The projections of blocks that are meant, as `(site, layer)` in the model's order, each matrix once.
    ///
    /// # Errors
    /// As [`Targets::modules`], and a pattern that names the patch embedding.
    pub fn projections(&self, sites: &dyn Sites) -> Result<Vec<(Site, usize)>> {
        let modules = self.modules(sites)?.into_iter();
        let blocks: Option<Vec<(Site, usize)>> = modules.map(|(site, layer)| Some((site, layer?))).collect();
        blocks.ok_or_else(|| Error::NamesPatches {
            pattern: self.to_string(),
            path: sites
                .embedding()
                .map_or_else(String::new, |embedding| embedding.name),
            instead: "name projections of blocks alone: it stands in none".into(),
        })
    }

    /// The projections that are meant, as `(site, layer)` in the model's order, each matrix once; the patch embedding, which
    /// stands in no layer, before them.
    ///
    /// # Errors
    /// A pattern that is no regular expression; an entry that names nothing in this model; one that names projections of
    /// blocks and the patch embedding (as `proj` does, which is seldom meant).
    pub fn modules(&self, sites: &dyn Sites) -> Result<Vec<(Site, Option<usize>)>> {
        let embedding = sites.embedding().map(|embedding| embedding.name);
        let matches = self.matcher(embedding.as_deref())?;
        let all: Vec<(Site, usize, String)> = sites
            .projections()
            .map(|(site, layer, projection)| (site, layer, projection.name))
            .collect();
        let none = |pattern: &str| Error::NoModule {
            pattern: pattern.to_owned(),
            available: available(sites),
        };
        let both = |pattern: &str, path: &str| Error::NamesPatches {
            pattern: pattern.to_owned(),
            path: path.to_owned(),
            instead: format!(
                "write `attn.proj` for the projection after attention, or `{path}` for the convolution"
            ),
        };
        let embedding = embedding.as_deref();
        if let Targets::List(entries) = self {
            for entry in entries {
                let known = all.iter().any(|(_, _, path)| ends_with(path, entry));
                match embedding.filter(|path| ends_with(path, entry)) {
                    None if !known => return Err(none(entry)),
                    Some(path) if known => return Err(both(entry, path)),
                    _ => {}
                }
            }
        }
        let blocks: Vec<(Site, Option<usize>)> = all
            .iter()
            .filter(|(_, _, path)| matches(path))
            .map(|&(site, layer, _)| (site, Some(layer)))
            .collect();
        let patches = embedding.filter(|path| matches(path));
        if let (Targets::Pattern(pattern), Some(path)) = (self, patches)
            && !blocks.is_empty()
        {
            return Err(both(pattern, path));
        }
        let found: Vec<(Site, Option<usize>)> = patches
            .map(|_| (Site::Embed, None))
            .into_iter()
            .chain(blocks)
            .collect();
        if found.is_empty() {
            return Err(none(&self.to_string()));
        }
        Ok(found)
    }
}

impl std::fmt::Display for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Targets::Pattern(pattern) => f.write_str(pattern),
            Targets::List(entries) => f.write_str(&entries.join(",")),
        }
    }
}

/// What projections a model has, by the different ends of their paths, for a sentence.
pub(crate) fn available(sites: &dyn Sites) -> String {
    let mut ends: Vec<String> = Vec::new();
    for (_, _, projection) in sites.projections() {
        let end = format!("`{}`", end(&projection.name));
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    match ends.is_empty() {
        true => "a convolutional network has no projections".to_owned(),
        false => format!("its projections are {}", ends.join(", ")),
    }
}

/// The last two parts of a path, such as `attn.qkv`.
pub(crate) fn end(path: &str) -> &str {
    let dots = path.rmatch_indices('.').nth(1);
    dots.map_or(path, |(dot, _)| path.get(dot + 1..).unwrap_or(path))
}

/// Whether `entry` of a list of targets means the module `path`.
pub(crate) fn ends_with(path: &str, entry: &str) -> bool {
    path == entry
        || path
            .strip_suffix(entry)
            .is_some_and(|rest| rest.ends_with('.') && !entry.is_empty())
}

/// A regular expression for a whole text.
fn whole(pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| Error::Pattern {
        pattern: pattern.to_owned(),
        detail: error.to_string(),
    })
}

/// Whether `key` of a `rank_pattern` or `alpha_pattern` means the module `path`.
///
/// # Errors
/// A key that is no regular expression.
pub fn key_matches(key: &str, path: &str) -> Result<bool> {
    Ok(whole(&format!(r"(.*\.)?({key})"))?.is_match(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pyramid::Pyramid;
    use vitesse_model::spec::{PrefixToken, VitSpec};

    fn vit() -> VitSpec {
        VitSpec::plain(16, 4, 12, 2, 3, vec![PrefixToken::Class])
    }

    fn sites(text: &str) -> Result<Vec<(Site, usize)>> {
        Targets::parse(text).projections(&vit())
    }

    #[test]
    fn lists_match_ends_of_paths_and_strings_whole_paths() {
        let both = |site| vec![(site, 0), (site, 1)];
        assert_eq!(sites("qkv").unwrap(), both(Site::Qkv));
        assert_eq!(sites("attn.proj").unwrap(), both(Site::Proj));
        assert_eq!(sites("blocks.1.mlp.fc1").unwrap(), [(Site::Fc1, 1)]);
        assert_eq!(sites("fc2,qkv").unwrap().len(), 4);
        assert_eq!(sites("all-linear").unwrap().len(), 8);
        assert_eq!(sites(r"blocks\.\d+\.mlp\.fc[12]").unwrap().len(), 4);
        assert_eq!(sites(r"blocks\.1\..*").unwrap().len(), 4);
    }

    #[test]
    fn any_familys_projections_are_matched() {
        let find = |text: &str| Targets::parse(text).projections(&Pyramid::default());
        let all =
            |site: Site, layers: &[usize]| layers.iter().map(|&layer| (site, layer)).collect::<Vec<_>>();
        assert_eq!(find("fc1").unwrap(), all(Site::Fc1, &[0, 1, 2]));
        assert_eq!(find("all-linear").unwrap().len(), 14);
        // A matrix that two layers share is adapted in both.
        let second = find(r"layers\.1\..*\.qkv").unwrap();
        assert_eq!(second, all(Site::Qkv, &[2, 3]));
        assert!(find("proj").unwrap_err().to_string().contains("patch_embed.proj"));
    }

    #[test]
    fn names_that_are_not_there_and_the_trap_of_proj_are_sentences() {
        let error = sites("query").unwrap_err().to_string();
        assert!(
            error.contains("`query` names no module") && error.contains("`attn.qkv`"),
            "{error}"
        );
        let error = sites("qkv,proj").unwrap_err().to_string();
        assert!(
            error.contains("patch_embed.proj") && error.contains("attn.proj"),
            "{error}"
        );
        let error = sites("fc1(").unwrap_err().to_string();
        assert!(error.contains("regular expression"), "{error}");
        // An end begins at a dot.
        assert!(sites("kv").is_err());
    }

    #[test]
    fn keys_of_patterns_match_from_a_dot_on() {
        assert!(key_matches("qkv", "blocks.0.attn.qkv").unwrap());
        assert!(key_matches(r"blocks\.0\.attn\.qkv", "blocks.0.attn.qkv").unwrap());
        assert!(!key_matches("kv", "blocks.0.attn.qkv").unwrap());
        assert!(!key_matches("qkv", "blocks.0.attn.qkv.x").unwrap());
    }
}
