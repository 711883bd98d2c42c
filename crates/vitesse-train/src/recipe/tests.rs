use super::*;
use crate::schedule::Per;

const SMALLEST: &str = "[model]\nname = \"vit_nano_patch4_32\"\n[data]\npath = \"shapes\"\n";

fn refusal(text: &str) -> String {
    Recipe::parse(&format!("{SMALLEST}{text}"), "my.toml", &[])
        .unwrap_err()
        .to_string()
}

#[test]
fn defaults_are_deits() {
    let recipe = Recipe::parse(SMALLEST, "my.toml", &[]).unwrap();
    assert_eq!(
        (
            recipe.train.epochs,
            recipe.train.batch_size,
            recipe.train.smoothing
        ),
        (300, 1024, 0.1)
    );
    assert_eq!(
        (recipe.optim.lr, recipe.optim.weight_decay, recipe.optim.betas),
        (5e-4, 0.05, [0.9, 0.999])
    );
    assert_eq!(recipe.schedule, Schedule::default());
    assert!(!recipe.distill.distils());
}

#[test]
fn an_override_beats_the_file_and_the_file_its_preset() {
    let text = format!("preset = \"small\"\n{SMALLEST}[train]\nepochs = 7\nseed = 3\n");
    let recipe = Recipe::parse(&text, "my.toml", &[("train.epochs", Value::Integer(2))]).unwrap();
    let preset = Recipe::parse(&format!("preset = \"small\"\n{SMALLEST}"), "my.toml", &[]).unwrap();
    assert_eq!((recipe.train.epochs, recipe.train.seed), (2, 3));
    assert_eq!(recipe.train.batch_size, preset.train.batch_size);
    assert_ne!(preset.train.batch_size, 1024);
}

#[test]
fn every_preset_is_a_recipe() {
    for preset in Recipe::presets() {
        let text = format!("preset = \"{preset}\"\n{SMALLEST}");
        // Recovery is distillation: it does not stand without a teacher.
        let teacher = [("distill.teacher", Value::from("teacher"))];
        let keys = if preset == "recover" { &teacher[..] } else { &[] };
        let recipe = Recipe::parse(&text, preset, keys).unwrap();
        assert_eq!(recipe.warnings(1), Vec::<String>::new(), "{preset}");
    }
}

#[test]
fn the_effective_recipe_repeats_the_run() {
    let mut recipe = Recipe::parse(SMALLEST, "my.toml", &[]).unwrap();
    recipe.distill.teacher = Some("teacher".into());
    recipe.distill.joint = vitesse_model::network::Fusion::SoftmaxMean;
    recipe.optim.clip_grad = Some(5.0);
    recipe.optim.lr = 0.1 + 0.2;
    recipe.train.ema_decay = Some(0.99996);
    let text = recipe.to_toml().unwrap();
    assert_eq!(Recipe::parse(&text, "again.toml", &[]).unwrap(), recipe);
}

#[test]
fn unknown_keys_are_refused_with_what_was_probably_meant() {
    assert_eq!(
        refusal("[train]\nepoch = 3\n"),
        "`my.toml`: unknown key `train.epoch`; did you mean `train.epochs`?"
    );
    assert_eq!(
        refusal("[train]\nlr = 0.1\n"),
        "`my.toml`: unknown key `train.lr`; it belongs in [optim]"
    );
    assert_eq!(
        refusal("[optimiser]\nlr = 0.1\n"),
        "`my.toml`: unknown key `optimiser`; did you mean [optim]?"
    );
    assert_eq!(
        refusal("[train]\nzzz = 1\n"),
        "`my.toml`: unknown key `train.zzz`"
    );
}

#[test]
fn wrong_values_are_refused_by_key() {
    let wrong = [
        (
            "[train]\nepochs = 0\n",
            "`train.epochs` is 0, expected at least 1",
        ),
        ("[train]\nepochs = \"many\"\n", "[train]"),
        ("[train]\naccumulate = 2000\n", "at most `train.batch_size`, 1024"),
        (
            "[optim]\nbetas = [0.9, 1.0]\n",
            "`optim.betas` is 1, expected at least 0 and below 1",
        ),
        ("[optim]\nlr = nan\n", "`optim.lr`"),
        ("[distill]\nkind = \"soft\"\n", "needs a teacher"),
        ("[distill]\nkind = \"firm\"\n", "firm"),
        ("[schedule]\nwarmup_epochs = -1\n", "`schedule.warmup_epochs`"),
        (
            "[train]\namp = \"fp16\"\n",
            "unknown variant `fp16`, expected `bf16`",
        ),
        ("[train\n", "my.toml"),
    ];
    for (text, expected) in wrong {
        let found = refusal(text);
        assert!(found.contains(expected), "{text}: {found}");
    }
    for (key, value) in [
        ("model.num_heads", Value::Array(vec![Value::Integer(3)])),
        ("model.head_dim", Value::Integer(64)),
    ] {
        let found = Recipe::parse(SMALLEST, "my.toml", &[(key, value)]).unwrap_err();
        let found = found.to_string();
        assert!(found.contains(key) && found.contains("absent"), "{found}");
    }
    let no_model = Recipe::parse("[data]\npath = \"shapes\"\n", "my.toml", &[])
        .unwrap_err()
        .to_string();
    assert!(no_model.contains("`model.name` is not set"), "{no_model}");
    let table = Recipe::parse(&format!("train = 3\n{SMALLEST}"), "my.toml", &[])
        .unwrap_err()
        .to_string();
    assert!(table.contains("`train` should be a table"), "{table}");
    let preset = Recipe::parse("preset = \"tiny\"\n", "my.toml", &[])
        .unwrap_err()
        .to_string();
    assert!(preset.contains("one of `deit`, `small`, `finetune`"), "{preset}");
}

#[test]
fn shots_take_so_many_of_each_class_and_leave_validation_alone() {
    let read = |text: &str| {
        let text = format!("[model]\nname = \"vit_nano_patch4_32\"\n[data]\npath = \"shapes:count\"\n{text}");
        Recipe::parse(&text, "my.toml", &[])
    };
    let open = |text: &str| read(text).unwrap().data.open().unwrap();
    let (learn, validation) = open("shots = 3\n");
    assert_eq!(learn.class_sizes(), [3; 5]);
    assert_eq!(validation.unwrap().len(), open("").1.unwrap().len());
    let names = |text: &str| {
        let (learn, _) = open(text);
        (0..learn.len()).map(|i| learn.name(i)).collect::<Vec<_>>()
    };
    assert_eq!(names("shots = 3\n"), names("shots = 3\n"));
    assert_ne!(names("shots = 3\n"), names("shots = 3\nseed = 1\n"));
    for (text, expected) in [
        ("shots = 0\n", "`data.shots` is 0, expected at least 1"),
        ("shots = 2\nlimit = 9\n", "absent where `data.limit` is set"),
    ] {
        let refusal = read(text).unwrap_err().to_string();
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn what_is_hardly_meant_is_said() {
    let mut recipe = Recipe::parse(SMALLEST, "my.toml", &[]).unwrap();
    recipe.train.epochs = 3;
    assert!(recipe.warnings(1)[0].contains("ends before its warm-up"));
    recipe.train.epochs = 30;
    // Mini-DeiT's published fine-tuning: the minimum is above the scaled peak.
    (recipe.optim.lr, recipe.optim.lr_base_size, recipe.schedule.min_lr) = (5e-6, Some(512), 5e-6);
    recipe.train.batch_size = 256;
    (recipe.schedule.warmup_lr, recipe.schedule.warmup_epochs) = (1e-6, 5.0);
    assert!(recipe.warnings(1)[0].contains("the learning rate will rise"));
}

#[test]
fn labels_that_augmentation_would_change_are_kept() {
    let read = |data: &str, text: &str| {
        let recipe = format!(
            "preset = \"small\"\n[model]\nname = \"vit_nano_patch4_32\"\n[data]\npath = \"{data}\"\n{text}"
        );
        Recipe::parse(&recipe, "my.toml", &[]).unwrap()
    };
    let usual = read("shapes", "").augment;
    let count = read("shapes:count", "").augment;
    assert_eq!(
        (count.hflip, count.scale, count.aa.as_str()),
        (usual.hflip, [1.0; 2], "none")
    );
    let location = read("shapes:location", "");
    assert_eq!((location.augment.hflip, location.warnings(1)), (0.0, vec![]));
    // Who asks for it gets it, and is told.
    let asked = read("shapes:location", "[augment]\nhflip = 0.5\naa = \"rand-m5\"\n");
    assert_eq!(asked.augment.hflip, 0.5);
    let warning = asked.warnings(1).join("");
    assert!(
        warning.contains("`hflip`, `aa`") && warning.contains("`shapes:location`"),
        "{warning}"
    );
    // What was effective is read as it was.
    let text = location.to_toml().unwrap();
    assert_eq!(Recipe::parse(&text, "again.toml", &[]).unwrap(), location);
}

#[test]
fn what_only_decides_the_speed_is_not_decisive() {
    let mut recipe = Recipe::parse(SMALLEST, "my.toml", &[]).unwrap();
    let before = recipe.decisive().unwrap();
    (recipe.train.workers, recipe.train.save_every) = (7, 3);
    recipe.train.grad_checkpointing = true;
    assert_eq!(recipe.decisive().unwrap(), before);
    recipe.train.seed += 1;
    assert_ne!(recipe.decisive().unwrap(), before);
}

#[test]
fn fewer_epochs_shorten_the_warm_up_unless_the_recipe_says_how_the_rate_grows() {
    let schedule = |preset: &str, more: &str| {
        let text = format!("preset = \"{preset}\"\n{SMALLEST}{more}");
        Recipe::parse(&text, "my.toml", &[]).unwrap().schedule
    };
    let usual = schedule("adapt", "");
    assert_eq!((usual.warmup_epochs, usual.per), (10.0, Per::Epoch));
    let short = schedule("adapt", "[train]\nepochs = 2\n");
    assert_eq!((short.warmup_epochs, short.per), (0.2, Per::Step));
    // Most of the run is at rates that learn: the mean over its steps is near half the peak.
    let rates: Vec<f64> = (0..20).map(|step| short.lr(1e-3, 2, 10, step)).collect();
    assert!(rates.iter().sum::<f64>() / 20.0 > 4e-4, "{rates:?}");
    let longer = schedule("adapt", "[train]\nepochs = 200\n");
    assert_eq!((longer.warmup_epochs, longer.per), (10.0, Per::Epoch));
    let said = schedule("adapt", "[train]\nepochs = 2\n[schedule]\nwarmup_epochs = 1.0\n");
    assert_eq!((said.warmup_epochs, said.per), (1.0, Per::Epoch));
    let said = schedule("adapt", "[train]\nepochs = 2\n[schedule]\nper = \"epoch\"\n");
    assert_eq!((said.warmup_epochs, said.per), (10.0, Per::Epoch));
}

#[test]
fn a_batch_is_made_to_fit_few_images() {
    let fitted = |limit: usize| {
        let text = format!(
            "preset = \"finetune\"\n[model]\nname = \"vit_nano_patch4_32\"\n[data]\npath = \"shapes\"\nlimit = {limit}\n"
        );
        let mut recipe = Recipe::parse(&text, "my.toml", &[]).unwrap();
        let note = recipe.fit_batch().unwrap();
        (recipe.train.batch_size, note)
    };
    assert_eq!(fitted(128), (32, None));
    let (batch, note) = fitted(100);
    assert!(batch == 16 && note.unwrap().contains("only 100 images"));
    assert_eq!((fitted(5).0, fitted(1).0), (1, 1));
}
