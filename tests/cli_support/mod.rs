//! What the tests of the command line share: running the program, and folders to run it in.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::fs;
#[cfg(unix)]
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use vitesse::model::spec::{NetworkSpec, PrefixToken, VitSpec};
use vitesse::model::{Checkpoint, ModelSpec};

/// A folder of its own for one test, in which the program runs.
pub(crate) struct Place(tempfile::TempDir);

/// What a run of the program left.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `vitesse` with arguments that are separated by spaces.
    pub(crate) fn run(&self, args: &str) -> Ran {
        self.run_into(args, Stdio::piped())
    }

    /// As [`Place::run`], with environment variables besides.
    pub(crate) fn run_with(&self, args: &str, variables: &[(&str, &str)]) -> Ran {
        self.start(args, variables, Stdio::piped())
    }

    /// As [`Place::run`], with standard output going elsewhere.
    pub(crate) fn run_into(&self, args: &str, stdout: Stdio) -> Ran {
        self.start(args, &[], stdout)
    }

    fn start(&self, args: &str, variables: &[(&str, &str)], stdout: Stdio) -> Ran {
        let child = Command::new(env!("CARGO_BIN_EXE_vitesse"))
            .args(args.split_whitespace())
            .envs(variables.iter().copied())
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.wait_with_output().unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs `vitesse`, and presses Ctrl-C once it has said a line with `when` in it.
    #[cfg(unix)]
    pub(crate) fn interrupt(&self, args: &str, when: &str) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vitesse"))
            .args(args.split_whitespace())
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut stderr = String::new();
        while !stderr.lines().last().is_some_and(|line| line.contains(when)) {
            assert!(
                said.read_line(&mut stderr).unwrap() > 0,
                "never said `{when}`: {stderr}"
            );
        }
        let kill = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        said.read_to_string(&mut stderr).unwrap();
        Ran {
            code: child.wait().unwrap().code().unwrap_or(-1),
            stdout: String::new(),
            stderr,
        }
    }

    /// Writes a file, and the folders above it.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Saves a checkpoint folder: a model of the zoo with fresh weights.
    pub(crate) fn model(&self, name: &str, architecture: &str, classes: usize) -> Checkpoint {
        let checkpoint = Checkpoint::fresh(architecture, Some(classes), None, 1).unwrap();
        checkpoint.save(&self.path(name), false).unwrap();
        checkpoint
    }

    /// Saves a checkpoint folder: a tiny model of one channel, five classes, fresh weights.
    pub(crate) fn one_channel(&self, name: &str) {
        let mut vit = VitSpec::plain(16, 8, 12, 2, 3, vec![PrefixToken::Class]);
        vit.in_chans = 1;
        let spec = ModelSpec {
            architecture: "vit_micro_patch4_32".to_owned(),
            num_classes: 5,
            network: NetworkSpec::Vit(vit),
            ops: Vec::new(),
        };
        let mut checkpoint = Checkpoint {
            tensors: spec.init(1).unwrap(),
            spec,
            config: Default::default(),
            source: Default::default(),
        };
        let cfg = &mut checkpoint.config.pretrained_cfg;
        (cfg.mean, cfg.std) = (vec![0.449], vec![0.226]);
        checkpoint.save(&self.path(name), false).unwrap();
    }

    /// The paths of all files and folders, with their sizes.
    pub(crate) fn listing(&self) -> Vec<(PathBuf, u64)> {
        let mut found = Vec::new();
        walk(self.0.path(), &mut found);
        found.sort();
        found
    }
}

fn walk(folder: &Path, found: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.push((path.clone(), 0));
            walk(&path, found);
        } else {
            let size = path.metadata().unwrap().len();
            found.push((path, size));
        }
    }
}

impl Ran {
    /// The run, which must have ended with `code`.
    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Ran {
        assert_eq!(
            self.code, code,
            "\nstdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }

    /// The one JSON document on standard output.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}\nstdout: {}\nstderr: {}", self.stdout, self.stderr))
    }

    /// Standard error, which must contain each of `parts`.
    #[track_caller]
    pub(crate) fn says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.stderr.contains(part), "`{part}` is not in: {}", self.stderr);
        }
    }
}
