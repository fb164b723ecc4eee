//! `adapter_config.json`.

use serde_json::{Map, Value, json};

use super::super::super::narrow;
use super::super::{AdapterConfig, AdapterError, RANK_MAX, TargetModule};

/// Settings of a LoRA that are read.
const READ: [&str; 7] =
    ["r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "target_modules", "peft_type"];

/// Those of a prompt. Only of encoders with decoders are there two submodules.
const READ_OF_PROMPTS: [&str; 3] =
    ["num_virtual_tokens", "num_transformer_submodules", "peft_type"];

/// Settings that change nothing in what is computed with trained values, whatever they are.
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

/// The same of prompts: how they began, and sizes that those of the tensors tell too.
const HARMLESS_OF_PROMPTS: [&str; 7] = [
    "num_attention_heads",
    "num_layers",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "token_dim",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
];

/// What PEFT calls a LoRA.
const LORA: &str = "LORA";

/// What PEFT calls vectors before the text.
const PROMPT: &str = "PROMPT_TUNING";

/// The same with vectors that blocks add, which PEFT does not know: so it refuses the files, and does not
/// leave half of them out.
const DEEP_PROMPT: &str = "DEEP_PROMPT_TUNING";

/// How much of a value a message repeats.
const VALUE_CHARS_MAX: usize = 60;

/// Reads what PEFT writes.
pub(super) fn parse(bytes: &[u8]) -> Result<AdapterConfig, AdapterError> {
    let settings: Map<String, Value> = serde_json::from_slice(bytes).map_err(AdapterError::Json)?;
    let kind = settings.get("peft_type").ok_or(AdapterError::Setting { key: "peft_type" })?;
    let config = match kind.as_str() {
        Some(LORA) => lora(&settings)?,
        Some(PROMPT) => prompt(&settings, false)?,
        Some(DEEP_PROMPT) => prompt(&settings, true)?,
        Some(_) | None => return Err(unsupported("peft_type", kind)),
    };
    config.check()?;
    Ok(config)
}

fn lora(settings: &Map<String, Value>) -> Result<AdapterConfig, AdapterError> {
    check_known(settings, &[&READ, &HARMLESS])?;
    let setting = |key| settings.get(key).ok_or(AdapterError::Setting { key });
    let float = |key, default: Option<f64>| {
        let number = settings.get(key).map_or(default, Value::as_f64);
        number.map(narrow).ok_or(AdapterError::Setting { key })
    };
    let flag = |key| {
        let flag = settings.get(key).map_or(Some(false), Value::as_bool);
        flag.ok_or(AdapterError::Setting { key })
    };
    let rank = number(settings, "r")?;
    if rank == 0 {
        return Err(AdapterError::Rank { found: rank, max: RANK_MAX });
    }
    Ok(AdapterConfig {
        rank,
        alpha: float("lora_alpha", None)?,
        rank_stabilized: flag("use_rslora")?,
        weight_decomposed: flag("use_dora")?,
        dropout: float("lora_dropout", Some(0.0))?,
        target_modules: target_modules(setting("target_modules")?)?,
        ..AdapterConfig::default()
    })
}

fn prompt(settings: &Map<String, Value>, deep: bool) -> Result<AdapterConfig, AdapterError> {
    check_known(settings, &[&READ_OF_PROMPTS, &HARMLESS, &HARMLESS_OF_PROMPTS])?;
    if let Some(count) = settings.get("num_transformer_submodules")
        && !count.is_null()
        && count != 1
    {
        return Err(unsupported("num_transformer_submodules", count));
    }
    let prompt_tokens = number(settings, "num_virtual_tokens")?;
    if prompt_tokens == 0 {
        return Err(AdapterError::Setting { key: "num_virtual_tokens" });
    }
    let block_prompt_tokens = if deep { prompt_tokens } else { 0 };
    Ok(AdapterConfig { prompt_tokens, block_prompt_tokens, ..AdapterConfig::default() })
}

fn check_known(settings: &Map<String, Value>, known: &[&[&str]]) -> Result<(), AdapterError> {
    let is_known = |key: &str| known.iter().any(|keys| keys.contains(&key));
    let unknown = |(key, value): &(&String, &Value)| !is_known(key) && !is_neutral(key, value);
    match settings.iter().find(unknown) {
        Some((key, value)) => Err(unsupported(key, value)),
        None => Ok(()),
    }
}

fn number(settings: &Map<String, Value>, key: &'static str) -> Result<usize, AdapterError> {
    let number = settings.get(key).and_then(Value::as_u64).ok_or(AdapterError::Setting { key })?;
    Ok(usize::try_from(number).unwrap_or(usize::MAX))
}

/// Writes what PEFT needs to read an adapter for hidden states of this size; the rest has its defaults
/// there.
pub(super) fn write(config: &AdapterConfig, hidden_size: usize) -> Vec<u8> {
    let settings = if config.prompt_tokens > 0 {
        json!({
            "inference_mode": true,
            "num_transformer_submodules": 1,
            "num_virtual_tokens": config.prompt_tokens,
            "peft_type": if config.block_prompt_tokens > 0 { DEEP_PROMPT } else { PROMPT },
            "prompt_tuning_init": "RANDOM",
            "task_type": "CAUSAL_LM",
            "token_dim": hidden_size,
        })
    } else {
        of_lora(config)
    };
    format!("{settings:#}\n").into_bytes()
}

fn of_lora(config: &AdapterConfig) -> Value {
    let names: Vec<_> = config.target_modules.iter().map(|module| module.name()).collect();
    json!({
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "lora_alpha": shortest(config.alpha),
        "lora_dropout": shortest(config.dropout),
        "peft_type": LORA,
        "r": config.rank,
        "target_modules": names,
        "task_type": "CAUSAL_LM",
        "use_dora": config.weight_decomposed,
        "use_rslora": config.rank_stabilized,
    })
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
