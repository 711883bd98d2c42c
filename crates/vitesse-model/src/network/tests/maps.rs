//! Where attention is fused although ops stand at its maps.

use super::*;
use crate::ops::relative_positions::{Method, Mode};
use crate::ops::{HeadMixing, RelativePositions};

#[test]
fn attention_with_mixed_heads_and_positions_of_keys_is_one_segment_and_with_other_ops_at_its_maps_none() {
    let device = Device::flex();
    let at = |site, kind| OpSpec {
        site,
        layer: Some(1),
        kind,
    };
    let positions = |edit: fn(&mut RelativePositions)| {
        let mut op = RelativePositions::published(true);
        edit(&mut op);
        at(op.site(), OpKind::RelativePositions(op))
    };
    let mixed = |site| at(site, OpKind::HeadMixing(HeadMixing { bias: true }));
    let (before, after) = (|| mixed(Site::AttnLogits), || mixed(Site::AttnProbs));
    let whole: &[&str] = &["Map", "MixedHeads", "Map", "Perceptron"];
    let composed: &[&str] = &["Map", "Map", "Perceptron"];
    let network_of = |ops: Vec<OpSpec>| {
        let with = ModelSpec { ops, ..spec(|_| {}) };
        Network::new(&with, &weights(&with), "test", &device).unwrap()
    };
    for (ops, block) in [
        (vec![positions(|_| {}), before(), after()], whole),
        (vec![positions(|op| op.method = Method::Euclidean)], whole),
        (
            vec![
                positions(|op| (op.method, op.shared_heads) = (Method::Quant, false)),
                after(),
            ],
            whole,
        ),
        (vec![before()], whole),
        (vec![before(), positions(|_| {})], composed),
        (vec![before(), before()], composed),
        (vec![positions(|op| op.method = Method::Cross)], composed),
        (vec![positions(|op| op.mode = Mode::Bias)], composed),
        (vec![positions(|op| op.of = QkvPart::Q)], composed),
        (vec![positions(|op| op.of = QkvPart::V), after()], composed),
        // More buckets than a byte can name.
        (vec![positions(|op| op.ratio = 4.0)], composed),
    ] {
        let what = format!("{ops:?}");
        assert_eq!(
            segments(&network_of(ops), |_| {}),
            expected([WHOLE, block, WHOLE]),
            "{what}"
        );
    }
    let network = network_of(vec![before()]);
    let traced = segments(&network, |ctx| {
        ctx.trace = Trace::pairs([(Site::AttnLogits, Some(1))]);
    });
    assert_eq!(traced, expected([WHOLE, composed, WHOLE]));
}
