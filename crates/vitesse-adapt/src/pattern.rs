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

    /// The projections that are meant, as `(site, layer)` in the model's order, each matrix once.
    ///
    /// # Errors
    /// A pattern that is no regular expression; an entry that names nothing in this model; one that also names the patch
    /// embedding, which is a convolution (as `proj` does).
    pub fn projections(&self, sites: &dyn Sites) -> Result<Vec<(Site, usize)>> {
        let embedding = sites.embedding().map(|embedding| embedding.name);
        let matches = self.matcher(embedding.as_deref())?;
        let all: Vec<(Site, usize, String)> = sites
            .projections()
            .map(|(site, layer, projection)| (site, layer, projection.name))
            .collect();
        let none = |pattern: &str| Error::NoModule {
            pattern: pattern.to_owned(),
            available: endings(&all),
        };
        if let Targets::List(entries) = self {
            for entry in entries {
                let known = all.iter().any(|(_, _, path)| ends_with(path, entry));
                if !known && !embedding.as_deref().is_some_and(|path| ends_with(path, entry)) {
                    return Err(none(entry));
                }
            }
        }
        if let Some(path) = embedding.as_deref().filter(|path| matches(path)) {
            return Err(Error::Pattern {
                pattern: self.to_string(),
                detail: format!(
                    "it also names `{path}`, a convolution, which is not adapted; write `attn.proj` for the \
                     projection after attention"
                ),
            });
        }
        let found: Vec<(Site, usize)> = all
            .iter()
            .filter(|(_, _, path)| matches(path))
            .map(|&(site, layer, _)| (site, layer))
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

/// The different ends of the projections' paths, for a sentence.
fn endings(projections: &[(Site, usize, String)]) -> String {
    let mut ends: Vec<String> = Vec::new();
    for (_, _, path) in projections {
        let mut parts: Vec<&str> = path.rsplit('.').take(2).collect();
        parts.reverse();
        let end = format!("`{}`", parts.join("."));
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    ends.join(", ")
}

fn ends_with(path: &str, entry: &str) -> bool {
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
