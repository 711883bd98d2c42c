use super::*;

const STUDY: &str = r#"
        name = "two arms"
        seeds = [3, 4]
        budget_hours = 1.0
        test = "shapes"
        [base]
        preset = "small"
        [base.model]
        name = "deit_nano_patch8_32"
        [base.data]
        path = "shapes"
        limit = 64
        validation_limit = 32
        [base.train]
        epochs = 1
        batch_size = 32
        [first.teacher.model]
        name = "regnety_nano_32"
        [[arm]]
        name = "none"
        [[arm]]
        name = "token"
        [arm.set.model]
        name = "deit_nano_distilled_patch8_32"
        [arm.set.distill]
        kind = "hard"
        teacher = "@teacher"
    "#;

fn study(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("study.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[test]
fn arms_differ_from_the_base_in_their_keys_alone() {
    let (_folder, path) = study(STUDY);
    let sweep = Sweep::read(&path).unwrap();
    let runs: Vec<(&str, u64)> = sweep.runs().iter().map(|run| (run.0, run.1)).collect();
    assert_eq!(
        runs,
        [
            ("teacher", 3),
            ("none", 3),
            ("token", 3),
            ("none", 4),
            ("token", 4)
        ]
    );
    let of = |index: usize| {
        let (name, seed, keys) = sweep.runs()[index];
        sweep.recipe(keys, seed, Path::new("out"), name).unwrap()
    };
    let (teacher, none, token) = (of(0), of(3), of(4));
    assert_eq!(teacher.model.name.as_deref(), Some("regnety_nano_32"));
    assert_eq!((none.train.seed, none.distill.teacher.is_none()), (4, true));
    let at = Path::new("out/teacher/seed3/final");
    assert_eq!(token.distill.teacher.as_deref(), Some(at));
    assert_eq!(token.optim, none.optim);
}

#[test]
fn lists_where_one_value_should_be_make_arms() {
    let text = STUDY
        .replace("epochs = 1\n", "epochs = [1, 2]\n")
        .replace(
            "[first.teacher.model]",
            "[base.optim]\nbetas = [0.9, 0.98]\n[first.teacher.train]\nepochs = 3\n[first.teacher.model]",
        )
        .replace(
            "name = \"none\"\n",
            "name = \"none\"\n[arm.set.optim]\nlr = [1e-3, 0.5]\n[arm.set.train]\nepochs = 1\n",
        );
    let (_folder, path) = study(&text);
    let sweep = Sweep::read(&path).unwrap();
    let names: Vec<&str> = sweep.arm.iter().map(|arm| arm.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "none, optim.lr=1e-3",
            "none, optim.lr=0.5",
            "token, train.epochs=1",
            "token, train.epochs=2"
        ]
    );
    let of = |name: &str| {
        let arm = sweep.arm.iter().find(|arm| arm.name == name).unwrap();
        sweep.recipe(&arm.set, 3, Path::new("out"), name).unwrap()
    };
    // A list by nature stays one.
    assert_eq!(of("none, optim.lr=0.5").optim.betas, [0.9, 0.98]);
    assert_eq!(of("none, optim.lr=0.5").optim.lr, 0.5);
    assert_eq!(of("token, train.epochs=2").train.epochs, 2);
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    for (from, to, say) in [
        ("@teacher", "@techer", "techer"),
        ("kind = \"hard\"", "kidn = \"hard\"", "kidn"),
        ("seeds = [3, 4]", "seeds = []", "seed"),
        ("budget_hours", "budget", "budget"),
        ("name = \"token\"", "name = \"none\"", "a name of its own"),
        (
            "[arm.set.distill]",
            "[arm.set.method]\nname = \"minivti\"\n[arm.set.distill]",
            "there is no method `minivti`",
        ),
    ] {
        let (_folder, path) = study(&STUDY.replace(from, to));
        let error = Sweep::read(&path).unwrap_err().to_string();
        assert!(error.contains(say), "{error}");
    }
}

#[test]
fn finished_runs_are_kept_and_the_budget_ends_a_study() {
    let text = STUDY.replace("seeds = [3, 4]", "seeds = [3]");
    let (folder, path) = study(&text);
    let out = folder.path().join("out");
    let run = |sweep: &Sweep| sweep.run(&out, &AtomicBool::new(false), &mut ());
    let sweep = Sweep::read(&path).unwrap();
    let broke = Sweep {
        budget_hours: 0.0,
        ..sweep.clone()
    };
    let study = run(&broke).unwrap();
    assert_eq!(
        (study.runs.len(), study.missing.len()),
        (1, 2),
        "the first run begins, the others do not"
    );
    let teacher = out.join("teacher/seed3/result.json");
    let before = std::fs::read(&teacher).unwrap();
    let study = run(&sweep).unwrap();
    assert_eq!((study.runs.len(), study.missing.len()), (3, 0));
    assert_eq!(std::fs::read(&teacher).unwrap(), before);
    assert!(study.runs[2].tokens.is_some() && study.runs[2].distillation_top1.is_some());
    assert!(study.spread("token", |run| Some(run.top1)).unwrap().mean > 0.0);
}

#[test]
fn arms_follow_methods_from_what_was_trained_first() {
    let (base, _) = STUDY.split_once("[first.teacher.model]").unwrap();
    let arms = r#"
        [first.pretrained.model]
        name = "deit_nano_patch8_32"
        [[arm]]
        name = "whole"
        [[arm]]
        name = "pairs"
        [arm.set.model]
        checkpoint = "@pretrained"
        [arm.set.distill]
        teacher = "@pretrained"
        [arm.set.method]
        name = "minivit"
        group = 2
    "#;
    let (folder, path) = study(&format!(
        "{}{arms}",
        base.replace("seeds = [3, 4]", "seeds = [3]")
    ));
    let out = folder.path().join("out");
    let sweep = Sweep::read(&path).unwrap();
    let study = sweep.run(&out, &AtomicBool::new(false), &mut ()).unwrap();
    let parameters: Vec<usize> = study.runs.iter().map(|run| run.param_count.unwrap()).collect();
    assert!(parameters[2] < parameters[1] * 6 / 10, "{parameters:?}");
    let log = std::fs::read_to_string(out.join("pairs/seed3/metrics.jsonl")).unwrap();
    assert!(log.contains("\"attn\"") && log.contains("\"hidden\""), "{log}");
    // Again: whatever is finished is kept.
    let again = sweep.run(&out, &AtomicBool::new(true), &mut ()).unwrap();
    assert_eq!(again.runs.len(), 3);
}
