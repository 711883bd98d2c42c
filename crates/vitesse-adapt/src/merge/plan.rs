//! Which op goes into which module, in which order, and which op goes nowhere.

use vitesse_model::ops::{OpKind, OpSpec};
use vitesse_model::spec::{Pool, VitSpec};
use vitesse_model::{Site, Tensors};

use crate::Result;
use crate::pattern::PATCH_EMBED;

/// One op and where it goes.
pub(super) struct Fold {
    /// Index into the model's ops.
    pub(super) op: usize,
    pub(super) target: Target,
}

/// Where an op goes.
pub(super) enum Target {
    /// Behind this norm.
    Norm(String),
    /// In front of this projection.
    Before(String),
    /// Onto this projection.
    On(String),
    /// Behind this projection, which writes these channels (all when `None`).
    After(String, Option<Vec<usize>>),
}

impl Target {
    pub(super) fn module(&self) -> String {
        match self {
            Target::Norm(name) | Target::Before(name) | Target::On(name) | Target::After(name, _) => {
                name.clone()
            }
        }
    }
}

/// All folds in the order in which they are applied, and the ops without one, with the reason.
pub(super) struct Plan {
    pub(super) folds: Vec<Fold>,
    pub(super) refused: Vec<(usize, String)>,
}

/// `norm → before → projection → after`.
struct Stations {
    norm: Option<String>,
    before: Site,
    on: Site,
    after: Site,
}

pub(super) fn plan(vit: &VitSpec, tensors: &Tensors) -> Result<Plan> {
    let mut plan = Plan {
        folds: Vec::new(),
        refused: Vec::new(),
    };
    plan.after(vit, tensors, Site::PatchOut, None, PATCH_EMBED, None)?;
    for layer in 0..vit.layers.len() {
        for stations in stations(vit, layer) {
            plan.projection(vit, tensors, layer, &stations)?;
        }
        for site in [Site::BlockIn, Site::Mid, Site::BlockOut] {
            for (index, op) in vit.ops_at(site, Some(layer)) {
                let reason = op.nonlinear().unwrap_or_else(|| {
                    "it changes the residual stream itself, which no single projection writes".into()
                });
                plan.refused.push((index, reason));
            }
        }
    }
    let finals: Vec<(usize, &OpSpec)> = vit.ops_at(Site::FinalNorm, None).collect();
    for (index, op) in finals {
        if vit.pool == Pool::AvgThenNorm {
            let reason = "no token passes there: this model norms the mean of its tokens";
            plan.refused.push((index, reason.into()));
        } else if is_diagonal(op) {
            plan.fold(index, Target::Norm(vit.final_norm_name().into()));
        } else {
            plan.refused.push((
                index,
                op.nonlinear().unwrap_or_else(|| "no projection follows".into()),
            ));
        }
    }
    plan.refused.sort_unstable();
    Ok(plan)
}

fn stations(vit: &VitSpec, layer: usize) -> [Stations; 4] {
    let station = |norm, before, on, after| Stations {
        norm,
        before,
        on,
        after,
    };
    [
        station(
            Some(vit.norm_name(layer, 1)),
            Site::AttnIn,
            Site::Qkv,
            Site::AttnQkv,
        ),
        station(None, Site::AttnHeads, Site::Proj, Site::AttnOut),
        station(
            Some(vit.norm_name(layer, 2)),
            Site::MlpIn,
            Site::Fc1,
            Site::MlpFc1,
        ),
        station(None, Site::MlpHidden, Site::Fc2, Site::MlpOut),
    ]
}

/// Whether the op scales and shifts each channel by itself.
fn is_diagonal(op: &OpSpec) -> bool {
    matches!(op.kind, OpKind::ScaleShift(_))
}

impl Plan {
    fn fold(&mut self, op: usize, target: Target) {
        self.folds.push(Fold { op, target });
    }

    fn projection(
        &mut self,
        vit: &VitSpec,
        tensors: &Tensors,
        layer: usize,
        stations: &Stations,
    ) -> Result<()> {
        let Some(projection) = vit.projection(stations.on, layer) else {
            return Ok(());
        };
        let (name, at) = (projection.name, Some(layer));
        let shared = shared(vit, layer, &name);
        for (index, _) in vit.ops_at(stations.on, at) {
            match &shared {
                Some(reason) => self.refused.push((index, reason.clone())),
                None => self.fold(index, Target::On(name.clone())),
            }
        }
        let before: Vec<(usize, &OpSpec)> = vit.ops_at(stations.before, at).collect();
        let first = match &stations.norm {
            Some(norm) => {
                let diagonal = before.iter().take_while(|(_, op)| is_diagonal(op)).count();
                for (index, _) in before.iter().take(diagonal) {
                    self.fold(*index, Target::Norm(norm.clone()));
                }
                diagonal
            }
            None => 0,
        };
        let rest = before.get(first..).unwrap_or_default();
        let mut blocked = false;
        for (index, op) in rest.iter().rev() {
            match reason(op, shared.as_deref(), blocked) {
                None => self.fold(*index, Target::Before(name.clone())),
                Some(reason) => {
                    blocked = true;
                    self.refused.push((*index, reason));
                }
            }
        }
        let block = vit.block(layer);
        let written = match stations.on {
            Site::Proj => block.and_then(|block| block.attn.as_ref()?.out_idx.clone()),
            Site::Fc2 => block.and_then(|block| block.mlp.as_ref()?.out_idx.clone()),
            _ => None,
        };
        match shared {
            None => self.after(vit, tensors, stations.after, at, &name, written.as_deref()),
            Some(shared) => {
                for (index, op) in vit.ops_at(stations.after, at) {
                    let reason = op.nonlinear().unwrap_or_else(|| shared.clone());
                    self.refused.push((index, reason));
                }
                Ok(())
            }
        }
    }

    /// The ops at `site`, behind `module`, which writes only the channels `written`.
    fn after(
        &mut self,
        vit: &VitSpec,
        tensors: &Tensors,
        site: Site,
        layer: Option<usize>,
        module: &str,
        written: Option<&[usize]>,
    ) -> Result<()> {
        let mut blocked = false;
        for (index, op) in vit.ops_at(site, layer) {
            let reason = match (reason(op, None, blocked), written) {
                (None, Some(written)) => beyond(op, index, tensors, written)?,
                (reason, _) => reason,
            };
            match reason {
                None => self.fold(
                    index,
                    Target::After(module.to_owned(), written.map(<[usize]>::to_vec)),
                ),
                Some(reason) => {
                    blocked = true;
                    self.refused.push((index, reason));
                }
            }
        }
        Ok(())
    }
}

/// Why an op cannot be folded into the projection beside it.
fn reason(op: &OpSpec, shared: Option<&str>, blocked: bool) -> Option<String> {
    op.nonlinear().or_else(|| shared.map(str::to_owned)).or_else(|| {
        blocked.then(|| "another op, which cannot be folded, stands between it and the projection".into())
    })
}

/// Why several blocks' folds into one matrix are impossible, if several blocks have it.
fn shared(vit: &VitSpec, layer: usize, module: &str) -> Option<String> {
    let core = vit.layers.get(layer)?.core;
    let users: Vec<String> = vit
        .layers
        .iter()
        .enumerate()
        .filter(|(_, other)| other.core == core)
        .map(|(i, _)| i.to_string())
        .collect();
    (users.len() > 1).then(|| {
        format!(
            "`{module}` is shared by the blocks {}, and each would need another one",
            users.join(", ")
        )
    })
}

/// Why an op behind a projection that writes only some channels cannot be folded, if it changes others too.
fn beyond(op: &OpSpec, index: usize, tensors: &Tensors, written: &[usize]) -> Result<Option<String>> {
    let reason = Some("it changes channels that the projection before it does not write".to_owned());
    let OpKind::ScaleShift(kind) = &op.kind else {
        return Ok(reason);
    };
    if !kind.shift {
        return Ok(None);
    }
    let shift = tensors.get(&format!("{}.shift", op.prefix(index)))?.to_f32();
    let reaches = shift
        .iter()
        .enumerate()
        .any(|(channel, &x)| x != 0.0 && written.binary_search(&channel).is_err());
    Ok(reason.filter(|_| reaches))
}
