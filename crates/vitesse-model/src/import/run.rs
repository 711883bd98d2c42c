//! What a training program wrote down of its model: timm's, in its checkpoints (`arch` and `args`) and in `args.yaml` beside
//! them, and DeiT's, in its checkpoints (`args`).
//!
//! What decides what the model is and how its images are prepared is put into the words of timm's `config.json` and read as
//! that. Everything else, such as rates and paths, is read over.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::spec::ModelSpec;
use crate::zoo::Entry;
use crate::{Error, Result, zoo};

/// timm's name for the arguments of a training run.
const ARGS_FILE: &str = "args.yaml";

/// The largest file of arguments; real ones have some kilobytes.
const MAX_ARGS: u64 = 1 << 20;

/// What is known of a run; nothing of most files.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The file that says it.
    file: PathBuf,
    architecture: Option<String>,
    /// Whether timm's program wrote it.
    timms: bool,
    args: Map<String, Value>,
}

/// What the weights file `weights` holds of its run, `recorded`, or else the file of arguments beside it.
pub(crate) fn with_args_beside(mut recorded: Map<String, Value>, weights: &Path) -> Result<Run> {
    let mut file = weights.to_owned();
    let args = match recorded.remove("args") {
        Some(Value::Object(args)) => args,
        _ => {
            let beside = weights.with_file_name(ARGS_FILE);
            match fs::metadata(&beside) {
                Ok(data) if data.is_file() && data.len() <= MAX_ARGS => {
                    let text = fs::read_to_string(&beside).map_err(Error::io("read", &beside))?;
                    file = beside;
                    parse_yaml(&text)
                }
                _ => Map::new(),
            }
        }
    };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    // Without arguments timm writes the name of the class there, which says little.
    let timms = recorded.contains_key("arch") || file != weights;
    let class = text(recorded.get("arch")).filter(|name| zoo::get(name).is_ok());
    Ok(Run {
        file,
        architecture: text(args.get("model")).or(class),
        timms,
        args,
    })
}

impl Run {
    /// The architecture that was trained, if the run says so.
    ///
    /// # Errors
    /// One that is not known.
    pub(crate) fn entry(&self) -> Result<Option<Entry>> {
        let known = |name: &String| {
            zoo::get(name).map_err(|error| Error::Weights {
                path: self.file.clone(),
                detail: format!(
                    "its training says that it is `{name}`; {error}; name another with `--architecture`"
                ),
            })
        };
        self.architecture.as_ref().map(known).transpose()
    }

    /// Whether timm's program trained it.
    pub(crate) fn is_timms(&self) -> bool {
        self.timms
    }

    /// The model as it was trained, with as many classes as its architecture has, and what to say about it.
    ///
    /// # Errors
    /// Arguments that no model here has, by the name they have in timm's `config.json`.
    pub(crate) fn describe(&self, entry: Entry) -> Result<(ModelSpec, Config, Vec<String>)> {
        let config = Config {
            pretrained_cfg: entry.pretrained_cfg,
            ..Config::default()
        };
        let (model_args, cfg) = self.translated(&entry.spec);
        if model_args.is_empty() && cfg.is_empty() {
            return Ok((entry.spec, config, Vec::new()));
        }
        let text = config.to_json(&entry.spec)?;
        let mut file: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
        let mut said = Vec::new();
        for (key, new) in [("model_args", model_args), ("pretrained_cfg", cfg)] {
            said.extend(new.iter().map(|(key, value)| format!("{key} {value}")));
            if let Some(object) = file.entry(key).or_insert_with(|| json!({})).as_object_mut() {
                object.extend(new);
            }
        }
        let mut notes = vec![format!(
            "`{}` says how it was trained: {}",
            self.file.display(),
            said.join(", ")
        )];
        let (spec, config) = Config::parse_noting(&Value::Object(file).to_string(), &self.file, &mut notes)?;
        Ok((spec, config, notes))
    }

    /// The arguments as `model_args` of the architecture and as `pretrained_cfg`.
    fn translated(&self, spec: &ModelSpec) -> (Map<String, Value>, Map<String, Value>) {
        let (mut model_args, mut cfg) = (Map::new(), Map::new());
        let given = |key: &str| self.args.get(key).filter(|value| is_given(value)).cloned();
        let in_chans = given("in_chans").or_else(|| given("input_size")?.get(0).cloned());
        if let Some(in_chans) = &in_chans {
            model_args.insert("in_chans".into(), in_chans.clone());
        }
        let in_chans = in_chans
            .and_then(|number| number.as_u64())
            .unwrap_or(spec.input_size()[0] as u64);
        // timm's is [channels, height, width], DeiT's the side.
        let size = match given("input_size") {
            Some(Value::Array(size)) => Some(json!(size)),
            Some(side) => Some(json!([in_chans, side, side])),
            None => given("img_size").map(|side| json!([in_chans, side, side])),
        };
        if let Some(size) = size {
            // A convolutional network takes any.
            if spec.is_transformer() {
                model_args.insert("img_size".into(), json!([size[1], size[2]]));
            }
            cfg.insert("input_size".into(), size);
        }
        if let Some(pool) = given("gp") {
            model_args.insert("global_pool".into(), pool);
        }
        if let Some(Value::Object(more)) = given("model_kwargs") {
            model_args.extend(more);
        }
        for key in ["mean", "std"] {
            match given(key) {
                // One number counts for every channel.
                Some(Value::Array(numbers)) if numbers.len() == 1 => {
                    let all = vec![
                        numbers.first().cloned().unwrap_or_default();
                        in_chans.clamp(1, 1 << 12) as usize
                    ];
                    cfg.insert(key.into(), all.into());
                }
                Some(numbers) => drop(cfg.insert(key.into(), numbers)),
                None => {}
            }
        }
        for key in ["interpolation", "crop_pct", "crop_mode"] {
            if let Some(value) = given(key) {
                cfg.insert(key.into(), value);
            }
        }
        (model_args, cfg)
    }
}

/// Whether an argument was given: those that were not are null, empty, or false where a text is expected.
fn is_given(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        _ => true,
    }
}

/// The arguments of timm's file: one key a line, below it the items of a list or of an object. Nothing else of YAML is in
/// such files, and lines that are something else are read over.
fn parse_yaml(text: &str) -> Map<String, Value> {
    let mut args = Map::new();
    let mut last: Option<String> = None;
    for line in text.lines() {
        let indented = line.starts_with([' ', '-']);
        let content = line.trim();
        if let (Some(item), true, Some(key)) = (content.strip_prefix("- "), indented, &last) {
            let list = args.entry(key.as_str()).or_insert_with(|| json!([]));
            if list.is_null() {
                *list = json!([]);
            }
            if let Value::Array(items) = list {
                items.push(scalar(item));
            }
        } else if let Some((name, value)) = content.split_once(':') {
            match &last {
                Some(key) if indented => {
                    let object = args.entry(key.as_str()).or_insert_with(|| json!({}));
                    if object.is_null() {
                        *object = json!({});
                    }
                    if let Value::Object(items) = object {
                        items.insert(name.to_owned(), scalar(value));
                    }
                }
                _ if indented => {}
                _ => {
                    args.insert(name.to_owned(), scalar(value));
                    last = Some(name.to_owned());
                }
            }
        }
    }
    args
}

/// A value that stands on one line. What is no number, truth, list or null is text.
fn scalar(text: &str) -> Value {
    let text = text.trim();
    match text {
        "" | "null" | "~" => Value::Null,
        _ => match text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
            Some(quoted) => quoted.replace("''", "'").into(),
            None => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timms_file_of_arguments_is_read() {
        let args = parse_yaml(
            "aa: null\nbatch_size: 128\ncrop_pct: 0.95\ninput_size:\n- 1\n- 32\n- 48\nlr: 1.0e-06\nmean:\n- 0.5\nmodel: \
             deit_micro_patch4_32\nmodel_kwargs:\n  global_pool: avg\n  img_size: 64\nname: 'it''s'\nlong: some text\n  that \
             goes on: here\nlist: []\nobject: {}\nflag: true\n",
        );
        assert_eq!(args["batch_size"], json!(128));
        assert_eq!(args["crop_pct"], json!(0.95));
        assert_eq!(args["input_size"], json!([1, 32, 48]));
        assert_eq!(args["mean"], json!([0.5]));
        assert_eq!(args["model"], json!("deit_micro_patch4_32"));
        assert_eq!(
            args["model_kwargs"],
            json!({"global_pool": "avg", "img_size": 64})
        );
        assert_eq!(
            (&args["name"], &args["aa"], &args["flag"]),
            (&json!("it's"), &Value::Null, &json!(true))
        );
        assert_eq!((&args["list"], &args["object"]), (&json!([]), &json!({})));
    }
}
