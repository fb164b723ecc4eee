//! `adapter_config.json`.

use serde_json::{Map, Value, json};

use super::super::{AdapterConfig, AdapterError, TargetModule};

/// Settings that are read.
const READ: [&str; 6] =
    ["r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "peft_type"];

/// Settings that change nothing in what is computed with trained matrices, whatever their value.
const HARMLESS: [&str; 8] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
];

/// How much of a value a message repeats.
const VALUE_CHARS_MAX: usize = 60;

/// Reads what PEFT writes for a LoRA.
pub(super) fn parse(bytes: &[u8]) -> Result<AdapterConfig, AdapterError> {
    let settings: Map<String, Value> = serde_json::from_slice(bytes).map_err(AdapterError::Json)?;
    for (key, value) in &settings {
        let known = READ.contains(&key.as_str()) || HARMLESS.contains(&key.as_str());
        if !known && !is_neutral(key, value) {
            return Err(unsupported(key, value));
        }
    }
    let setting = |key| settings.get(key).ok_or(AdapterError::Setting { key });
    if setting("peft_type")? != "LORA" {
        return Err(unsupported("peft_type", setting("peft_type")?));
    }
    let rank = setting("r")?.as_u64().ok_or(AdapterError::Setting { key: "r" })?;
    let float = |key, default: Option<f64>| {
        let number = settings.get(key).map_or(default, Value::as_f64);
        number.map(narrow).ok_or(AdapterError::Setting { key })
    };
    let rank_stabilized = settings.get("use_rslora").map_or(Some(false), Value::as_bool);
    let config = AdapterConfig {
        rank: usize::try_from(rank).unwrap_or(usize::MAX),
        alpha: float("lora_alpha", None)?,
        rank_stabilized: rank_stabilized.ok_or(AdapterError::Setting { key: "use_rslora" })?,
        dropout: float("lora_dropout", Some(0.0))?,
        target_modules: target_modules(setting("target_modules")?)?,
    };
    config.check()?;
    Ok(config)
}

/// Writes what PEFT needs to read an adapter; the rest has its defaults there.
pub(super) fn write(config: &AdapterConfig) -> Vec<u8> {
    let names: Vec<_> = config.target_modules.iter().map(|module| module.name()).collect();
    let settings = json!({
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "lora_alpha": shortest(config.alpha),
        "lora_dropout": shortest(config.dropout),
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": names,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": config.rank_stabilized,
    });
    format!("{settings:#}\n").into_bytes()
}

/// In the order in which a token meets them: PEFT writes a set, in any order.
fn target_modules(value: &Value) -> Result<Vec<TargetModule>, AdapterError> {
    let Some(names) = value.as_array() else {
        // PEFT takes a string for a regular expression.
        return Err(unsupported("target_modules", value));
    };
    if names.len() > TargetModule::ALL.len() {
        return Err(AdapterError::TargetModules);
    }
    let module = |name: &Value| {
        let known = TargetModule::ALL.into_iter().find(|module| name == module.name());
        known.ok_or_else(|| AdapterError::UnknownModule { found: shown(name) })
    };
    let mut modules = names.iter().map(module).collect::<Result<Vec<_>, _>>()?;
    modules.sort_unstable();
    Ok(modules)
}

/// Whether a setting that is not known says that nothing is to be done.
fn is_neutral(key: &str, value: &Value) -> bool {
    let is_named = match key {
        "bias" => value == "none",
        // How the matrices began; other ways change the frozen weights too.
        "init_lora_weights" => value == true || value == "gaussian",
        _ => false,
    };
    let is_empty =
        value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
    is_named || is_empty || value.is_null() || value == false
}

fn unsupported(key: &str, value: &Value) -> AdapterError {
    AdapterError::Unsupported {
        key: key.chars().take(VALUE_CHARS_MAX).collect(),
        value: shown(value),
    }
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(VALUE_CHARS_MAX).collect()
}

/// The number with the fewest digits that is this one in binary32.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| value.into())
}

#[expect(clippy::cast_possible_truncation, reason = "adapters are computed in binary32")]
fn narrow(value: f64) -> f32 {
    value as f32
}
