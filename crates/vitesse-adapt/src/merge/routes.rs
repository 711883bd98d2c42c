//! Which op goes into which module, in which order, and which op goes nowhere.

use vitesse_model::ops::{OpKind, OpSpec};
use vitesse_model::spec::Projection;
use vitesse_model::{Site, Sites, Tensors};

use crate::Result;

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
pub(super) struct Routes {
    pub(super) folds: Vec<Fold>,
    pub(super) refused: Vec<(usize, String)>,
}

pub(super) fn routes(sites: &dyn Sites, tensors: &Tensors) -> Result<Routes> {
    let mut routes = Routes {
        folds: Vec::new(),
        refused: Vec::new(),
    };
    if let Some(embedding) = sites.embedding() {
        for (index, _) in sites.ops_at(Site::Embed, None) {
            routes.fold(index, Target::On(embedding.name.clone()));
        }
        routes.after(sites, tensors, (Site::PatchOut, None), &embedding)?;
    }
    for layer in 0..sites.depth() {
        for site in Site::PROJECTIONS {
            routes.projection(sites, tensors, site, layer)?;
        }
        for site in [
            Site::BlockIn,
            Site::AttnLogits,
            Site::AttnProbs,
            Site::Mid,
            Site::BlockOut,
        ] {
            for (index, op) in sites.ops_at(site, Some(layer)) {
                let reason = op.nonlinear().unwrap_or_else(|| {
                    "it changes the residual stream itself, which no single projection writes".into()
                });
                routes.refused.push((index, reason));
            }
        }
    }
    let layers = (0..sites.depth()).map(|layer| (Site::MergeIn, Some(layer)));
    for (site, layer) in layers.chain([(Site::PatchNorm, None), (Site::FinalNorm, None)]) {
        routes.behind_norm(sites, site, layer);
    }
    routes.refused.sort_unstable();
    Ok(routes)
}

/// Why an op before the projection of a map that is filled up cannot be folded into it.
const FILLED: &str = "windows do not fit the map, which is filled up with zeros behind it, and the projection cannot tell these \
                      from tokens; choose an image size that gives multiples of the window";

/// Whether the op scales and shifts each channel by itself.
fn is_diagonal(op: &OpSpec) -> bool {
    matches!(op.kind, OpKind::ScaleShift(_))
}

impl Routes {
    fn fold(&mut self, op: usize, target: Target) {
        self.folds.push(Fold { op, target });
    }

    /// The ops at `site` of `layer`, behind a norm after which no projection of a block comes.
    fn behind_norm(&mut self, sites: &dyn Sites, site: Site, layer: Option<usize>) {
        for (index, op) in sites.ops_at(site, layer) {
            match sites.norm(site, layer) {
                Some(norm) if is_diagonal(op) => self.fold(index, Target::Norm(norm)),
                _ => {
                    let reason = op.nonlinear().unwrap_or_else(|| "no projection follows".into());
                    self.refused.push((index, reason));
                }
            }
        }
    }

    /// The ops in front of, on and behind the projection at `site`.
    fn projection(&mut self, sites: &dyn Sites, tensors: &Tensors, site: Site, layer: usize) -> Result<()> {
        let (Some(projection), Some(input), Some(output)) =
            (sites.projection(site, layer), site.input(), site.output())
        else {
            return Ok(());
        };
        let (name, at) = (&projection.name, Some(layer));
        let shared = shared(sites, site, layer, name);
        for (index, _) in sites.ops_at(site, at) {
            match &shared {
                Some(reason) => self.refused.push((index, reason.clone())),
                None => self.fold(index, Target::On(name.clone())),
            }
        }
        let before: Vec<(usize, &OpSpec)> = sites.ops_at(input, at).collect();
        let own_norm = sites
            .norm(input, at)
            .filter(|_| sites.sharing(input, layer).len() == 1);
        let first = match own_norm {
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
        let filled = (site == Site::Qkv && sites.fills_up(layer)).then_some(FILLED);
        for (index, op) in rest.iter().rev() {
            match reason(op, shared.as_deref().or(filled), blocked) {
                None => self.fold(*index, Target::Before(name.clone())),
                Some(reason) => {
                    blocked = true;
                    self.refused.push((*index, reason));
                }
            }
        }
        match shared {
            None => self.after(sites, tensors, (output, at), &projection),
            Some(shared) => {
                for (index, op) in sites.ops_at(output, at) {
                    let reason = op.nonlinear().unwrap_or_else(|| shared.clone());
                    self.refused.push((index, reason));
                }
                Ok(())
            }
        }
    }

    /// The ops at `site` of `layer`, behind `projection`.
    fn after(
        &mut self,
        sites: &dyn Sites,
        tensors: &Tensors,
        (site, layer): (Site, Option<usize>),
        projection: &Projection,
    ) -> Result<()> {
        let written = projection.written.as_deref();
        let mut blocked = false;
        for (index, op) in sites.ops_at(site, layer) {
            let reason = match (reason(op, None, blocked), written) {
                (None, Some(written)) => beyond(op, index, tensors, written)?,
                (reason, _) => reason,
            };
            match reason {
                None => self.fold(
                    index,
                    Target::After(projection.name.clone(), projection.written.clone()),
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
fn shared(sites: &dyn Sites, site: Site, layer: usize, module: &str) -> Option<String> {
    let users = sites.sharing(site, layer);
    (users.len() > 1).then(|| {
        let users: Vec<String> = users.iter().map(usize::to_string).collect();
        format!(
            "`{module}` is shared by blocks {}, and folding would change it for all of them",
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
