//! The softmax by policy.

use burn::tensor::Device;
use vitesse::model::network::policy_softmax;

use super::doubles;
use crate::support::adapting::tensor;
use crate::support::{Report, Vectors};

pub(crate) fn softmax(v: &Vectors, report: &mut Report) {
    let device = Device::flex();
    let policy = tensor::<3>(v, "in.policy", &device);
    let [batch, tokens, _] = policy.dims();
    let logits = tensor(v, "in.attn_logits", &device);
    let found = policy_softmax(logits, policy.reshape([batch, tokens]), v.number("eps"));
    report.compare_f64(v, "out.attn", &doubles(&found), 1e-6);
}
