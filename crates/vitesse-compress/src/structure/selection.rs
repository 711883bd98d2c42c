//! Which units are kept.

use std::collections::BTreeMap;

use vitesse_model::ModelSpec;
use vitesse_model::spec::Transformer;
use vitesse_words::counted;

use super::units::{Group, Id, Kind, groups};
use crate::{Error, Result};

/// For each group the units that are kept, ascending; all of a group that it does not name.
///
/// Kinds that speak of the same thing are met all at once: a dimension of a head stays if the head does, and if every one of
/// [`Kind::Dim`], [`Kind::Position`] and [`Kind::QkDim`] or [`Kind::VDim`] keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    kept: BTreeMap<Id, Vec<usize>>,
}

impl Selection {
    /// Keeps these units of a group, and no others; the order in which they are given does not matter.
    pub fn keep(&mut self, kind: Kind, core: Option<usize>, units: impl IntoIterator<Item = usize>) {
        let mut units: Vec<usize> = units.into_iter().collect();
        units.sort_unstable();
        units.dedup();
        self.kept.insert(Id { kind, core }, units);
    }

    /// Drops the attention or the perceptron ([`Kind::Attn`], [`Kind::Mlp`]) of a core, or every unit of another group.
    pub fn drop_all(&mut self, kind: Kind, core: Option<usize>) {
        self.keep(kind, core, []);
    }

    /// Keeps what both keep.
    pub fn meet(&mut self, other: &Selection) {
        for (id, units) in other.iter() {
            let both = match self.kept.get(&id) {
                Some(own) => own
                    .iter()
                    .copied()
                    .filter(|unit| units.binary_search(unit).is_ok())
                    .collect(),
                None => units.to_vec(),
            };
            self.kept.insert(id, both);
        }
    }

    /// What is left of a model after this selection and then `later`, which counts the units that this one kept. Kinds are composed one by
    /// one, so `later` may not speak of a kind whose units another kind of this one has cut: of dimensions where heads are gone.
    #[must_use]
    pub fn then(&self, later: &Selection) -> Selection {
        let mut out = self.clone();
        for (id, units) in later.iter() {
            let both = match self.kept.get(&id) {
                Some(own) => units.iter().filter_map(|&unit| own.get(unit).copied()).collect(),
                None => units.to_vec(),
            };
            out.kept.insert(id, both);
        }
        out
    }

    /// The units kept of a group; `None` where it says nothing, so that all are.
    pub fn of(&self, kind: Kind, core: Option<usize>) -> Option<&[usize]> {
        self.kept.get(&Id { kind, core }).map(Vec::as_slice)
    }

    /// Groups and what is kept of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &[usize])> {
        self.kept.iter().map(|(id, units)| (*id, units.as_slice()))
    }

    /// Refuses units that the model does not have.
    ///
    /// # Errors
    /// A group or a unit that is not there, by name; a model that cannot be pruned.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        let groups: BTreeMap<Id, Group> = groups(spec)?.into_iter().map(|group| (group.id, group)).collect();
        for (id, units) in self.iter() {
            let Some(group) = groups.get(&id) else {
                if let (Kind::Embed, Transformer::Swin(_)) = (id.kind, spec.transformer()?) {
                    return Err(Error::Selection(format!(
                        "channels of the stream cannot be cut out of `{}`: patch merging mixes all channels, so no channel runs through \
                         the whole model; cut heads and hidden units",
                        spec.architecture
                    )));
                }
                return Err(Error::Selection(format!(
                    "`{id}` names no units of this model; it may lack the sub-layer, or its heads may differ in width"
                )));
            };
            if let Some(unit) = units.last().filter(|unit| **unit >= group.units) {
                return Err(Error::Selection(format!(
                    "`{id}` has {}, but unit {unit} was to be kept",
                    counted(group.units, "unit")
                )));
            }
        }
        Ok(())
    }
}
