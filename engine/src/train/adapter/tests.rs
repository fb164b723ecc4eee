//! Adapters' files, sound and broken.

use proptest::prelude::*;
use serde_json::{Value, json};
use umbel_shard::Family;
use umbel_shard::safetensors::parse_header;

use super::*;
use crate::span::tests::model;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

fn config() -> ModelConfig {
    model::config(Family::Llama)
}

fn adapter() -> Adapter {
    let settings = AdapterConfig {
        rank: 4,
        alpha: 0.1,
        rank_stabilized: true,
        dropout: 0.05,
        target_modules: vec![TargetModule::Key, TargetModule::Down],
        ..AdapterConfig::default()
    };
    Adapter::begin(settings, &config(), span(0, 3), 1).unwrap()
}

/// Learned vectors before the text, and in each block where they are deep.
fn prompt(deep: bool) -> Adapter {
    let settings = AdapterConfig {
        prompt_tokens: 3,
        block_prompt_tokens: if deep { 3 } else { 0 },
        ..AdapterConfig::default()
    };
    let mut prompt = Adapter::begin(settings, &config(), span(0, 3), 1).unwrap();
    let count = u16::try_from(prompt.parameters().value_count()).unwrap();
    prompt.write(0, &(0..count).map(f32::from).collect::<Vec<_>>()).unwrap();
    prompt
}

fn load(files: &PeftFiles) -> Result<Adapter, AdapterError> {
    Adapter::from_peft(files, &config(), span(0, 3))
}

/// The shape that a tensor had to have.
fn expected_shape(refused: AdapterError) -> Vec<usize> {
    let words = refused.to_string();
    let AdapterError::Tensor { expected, .. } = refused else { panic!("{words}") };
    expected
}

/// The files with one setting changed.
fn with(key: &str, value: Value) -> PeftFiles {
    let mut files = adapter().to_peft();
    let mut settings: Value = serde_json::from_slice(&files.config).unwrap();
    settings[key] = value;
    files.config = settings.to_string().into_bytes();
    files
}

/// The files with the header of the tensors changed.
fn with_header(change: impl Fn(&mut serde_json::Map<String, Value>)) -> PeftFiles {
    with_header_of(adapter().to_peft(), change)
}

fn with_header_of(
    mut files: PeftFiles,
    change: impl Fn(&mut serde_json::Map<String, Value>),
) -> PeftFiles {
    let length = u64::from_le_bytes(*files.weights.first_chunk().unwrap());
    let end = 8 + usize::try_from(length).unwrap();
    let Value::Object(mut header) = serde_json::from_slice(&files.weights[8..end]).unwrap() else {
        panic!("a header is an object");
    };
    change(&mut header);
    let header = Value::Object(header).to_string().into_bytes();
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header);
    weights.extend_from_slice(&files.weights[end..]);
    files.weights = weights;
    files
}

#[test]
fn an_adapter_survives_its_files_and_its_parts_are_those_of_the_whole() {
    let whole = adapter();
    assert_eq!(load(&whole.to_peft()).unwrap(), whole);
    let part = Adapter::from_peft(&whole.to_peft(), &config(), span(1, 2)).unwrap();
    assert_eq!(part, whole.part(span(1, 2)).unwrap());
    let begun = Adapter::begin(whole.config().clone(), &config(), span(1, 2), 1).unwrap();
    assert_eq!(begun, part, "servers begin alike however the blocks are split");
    let parts = [span(0, 1), span(1, 2), span(2, 3)].map(|blocks| whole.part(blocks).unwrap());
    assert_eq!(Adapter::join(&parts).unwrap(), whole);
    assert!(matches!(Adapter::join(&[]), Err(AdapterError::Parts)));
    assert!(matches!(
        Adapter::join(&[parts[0].clone(), parts[2].clone()]),
        Err(AdapterError::Parts)
    ));
    assert!(matches!(part.part(span(0, 2)), Err(AdapterError::NoSuchBlocks { .. })));
}

#[test]
fn prompts_survive_their_files_and_parts_are_those_of_blocks() {
    for deep in [false, true] {
        let whole = prompt(deep);
        let files = whole.to_peft();
        assert_eq!(load(&files).unwrap(), whole);
        let settings: Value = serde_json::from_slice(&files.config).unwrap();
        let kind = if deep { "DEEP_PROMPT_TUNING" } else { "PROMPT_TUNING" };
        assert_eq!(settings["peft_type"], kind);
        assert_eq!(
            (&settings["num_virtual_tokens"], &settings["token_dim"]),
            (&json!(3), &json!(256))
        );
        let part = Adapter::from_peft(&files, &config(), span(1, 2)).unwrap();
        assert_eq!(part, whole.part(span(1, 2)).unwrap());
        assert_eq!(part.prompt(), [0.0; 0], "what stands before the text is no block's");
        let values = if deep { 3 * 256 } else { 0 };
        assert_eq!(part.parameters().value_count(), values);
        assert_eq!(whole.value_count(span(1, 2)), Some(values));
    }
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let with = |key: &str, value: Value| {
        let mut files = prompt(false).to_peft();
        let mut settings: Value = serde_json::from_slice(&files.config).unwrap();
        settings[key] = value;
        files.config = settings.to_string().into_bytes();
        load(&files)
    };
    assert_eq!(with("prompt_tuning_init_text", json!("You are a pirate")).unwrap(), prompt(false));
    let refused = with("num_virtual_tokens", json!(0)).unwrap_err();
    assert!(matches!(refused, AdapterError::Setting { key: "num_virtual_tokens" }));
    let refused = with("num_virtual_tokens", json!(257)).unwrap_err();
    assert!(matches!(refused, AdapterError::PromptTokens { found: 257, max: 256 }));
    let refused = with("num_virtual_tokens", json!(4)).unwrap_err();
    assert_eq!(expected_shape(refused), [4, 256]);
    let refused = with("peft_type", json!("DEEP_PROMPT_TUNING")).unwrap_err();
    assert!(matches!(refused, AdapterError::MissingTensor { .. }), "{refused}");
    for (key, value) in
        [("num_transformer_submodules", json!(2)), ("r", json!(8)), ("use_dora", json!(true))]
    {
        assert!(matches!(with(key, value), Err(AdapterError::Unsupported { .. })), "{key}");
    }
    let narrow = ModelConfig { hidden_size: 128, ..config() };
    let refused = Adapter::from_peft(&prompt(false).to_peft(), &narrow, span(0, 3)).unwrap_err();
    assert_eq!(expected_shape(refused), [3, 128]);
    let short = ModelConfig { context_tokens: 3, ..config() };
    let refused = Adapter::from_peft(&prompt(false).to_peft(), &short, span(0, 3)).unwrap_err();
    assert!(matches!(refused, AdapterError::PromptTokens { found: 3, max: 2 }), "{refused}");
    let both = AdapterConfig { prompt_tokens: 1, ..adapter().config().clone() };
    let refused = Adapter::begin(both, &config(), span(0, 3), 1).unwrap_err();
    assert!(matches!(refused, AdapterError::TwoKinds), "{refused}");
    let refused = prompt(false).set_prompt(&[0.0; 7]).unwrap_err();
    assert!(matches!(refused, AdapterError::PromptValues { expected: 768, found: 7 }), "{refused}");
}

#[test]
fn a_new_adapter_adds_nothing_and_its_values_are_bounded() {
    let adapter = adapter();
    for ((_, module), matrices) in adapter.parameters().iter() {
        let [_, columns] = module_shape(module, &config()).unwrap();
        let bound = 1.0 / (columns as f32).sqrt();
        assert!(matrices.b().iter().all(|value| *value == 0.0));
        assert!(matrices.a().iter().all(|value| value.abs() <= bound));
        assert!(matrices.a().iter().any(|value| value.abs() > bound / 2.0));
    }
    assert!((adapter.config().scale() - 0.05).abs() < 1e-8, "alpha by the root of the rank");
}

#[test]
fn settings_that_change_what_is_computed_are_refused() {
    for (key, value) in [
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("rank_pattern", json!({ "q_proj": 8 })),
        ("modules_to_save", json!(["lm_head"])),
        ("layers_to_transform", json!([0])),
        ("init_lora_weights", json!("pissa")),
        ("a_setting_of_tomorrow", json!(7)),
        ("target_modules", json!(".*_proj")),
        ("peft_type", json!("IA3")),
    ] {
        let refused = load(&with(key, value)).unwrap_err();
        let AdapterError::Unsupported { key: named, .. } = refused else {
            panic!("{key}: {refused}");
        };
        assert_eq!(named, key);
    }
    for (key, value) in [
        ("a_setting_of_tomorrow", json!(null)),
        ("loftq_config", json!({})),
        ("init_lora_weights", json!(true)),
        ("base_model_name_or_path", json!("somebody/model")),
    ] {
        assert_eq!(load(&with(key, value)).unwrap(), adapter(), "{key}");
    }
}

/// With magnitudes from 1 on.
fn decomposed() -> Adapter {
    let plain = adapter();
    let config = AdapterConfig { weight_decomposed: true, ..plain.config().clone() };
    let mut adapter = Adapter::begin(config, &self::config(), span(0, 3), 1).unwrap();
    assert!(adapter.lacks_magnitudes() && !plain.lacks_magnitudes());
    let count = u16::try_from(adapter.magnitude_count(span(0, 3))).unwrap();
    adapter.set_magnitudes(&(1..=count).map(f32::from).collect::<Vec<_>>()).unwrap();
    adapter
}

#[test]
fn magnitudes_survive_their_files_and_belong_to_their_rows() {
    let whole = decomposed();
    let files = whole.to_peft();
    assert_eq!(load(&files).unwrap(), whole);
    let settings: Value = serde_json::from_slice(&files.config).unwrap();
    assert_eq!(settings["use_dora"], true);
    let header = parse_header(&files.weights, files.weights.len() as u64).unwrap();
    let name = "base_model.model.model.layers.1.mlp.down_proj.lora_magnitude_vector";
    assert_eq!(header.tensors()[name].shape, [256]);
    let part = Adapter::from_peft(&files, &config(), span(1, 2)).unwrap();
    assert_eq!(part, whole.part(span(1, 2)).unwrap());
    assert_eq!(whole.value_count(span(1, 2)), Some(part.parameters().value_count()));
    let [keys, _] = module_shape(TargetModule::Key, &config()).unwrap();
    assert_eq!(part.magnitude_count(span(1, 2)), keys as u64 + 256);
    let first = part.parameters().at(1, TargetModule::Key).unwrap().magnitudes()[0];
    assert_eq!(first, 1.0 + keys as f32 + 256.0);
    let of_prompt =
        AdapterConfig { weight_decomposed: true, prompt_tokens: 1, ..AdapterConfig::default() };
    let refused = Adapter::begin(of_prompt, &config(), span(0, 3), 1).unwrap_err();
    assert!(matches!(refused, AdapterError::NoRows), "{refused}");
}

#[test]
fn broken_magnitudes_are_refused() {
    let name = "base_model.model.model.layers.2.self_attn.k_proj.lora_magnitude_vector";
    let broken = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        load(&with_header_of(decomposed().to_peft(), change)).unwrap_err()
    };
    let refused = broken(&|header| {
        let tensor = header.remove(name).unwrap();
        header.insert(name.replace("layers.2", "layers.3"), tensor);
    });
    assert!(matches!(refused, AdapterError::MissingTensor { name: missing } if missing == name));
    let [keys, _] = module_shape(TargetModule::Key, &config()).unwrap();
    let refused = broken(&|header| {
        let end = header[name]["data_offsets"][0].as_u64().unwrap() + 4 * keys as u64 - 4;
        header[name]["shape"] = json!([keys - 1]);
        header[name]["data_offsets"][1] = json!(end);
    });
    assert!(
        matches!(refused, AdapterError::Safetensors(_) | AdapterError::Tensor { .. }),
        "{refused}"
    );
    let refused = broken(&|header| header[name]["shape"] = json!([keys, 1]));
    assert_eq!(expected_shape(refused), [keys]);
    let mut files = decomposed().to_peft();
    let end = files.weights.len();
    files.weights[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let refused = load(&files).unwrap_err();
    assert!(
        matches!(&refused, AdapterError::NotFinite { name } if name.ends_with("magnitude_vector")),
        "{refused}"
    );
    // Said by the settings alone, or by the tensors alone.
    let refused = load(&with("use_dora", json!(true))).unwrap_err();
    assert!(matches!(refused, AdapterError::MissingTensor { .. }), "{refused}");
    let mut files = decomposed().to_peft();
    files.config = adapter().to_peft().config;
    assert!(matches!(
        load(&files).unwrap_err(),
        AdapterError::UnknownTensor { .. } | AdapterError::TooLong { .. }
    ));
    let refused = load(&with("use_dora", json!("yes"))).unwrap_err();
    assert!(matches!(refused, AdapterError::Setting { key: "use_dora" }), "{refused}");
}

#[test]
fn settings_out_of_bounds_are_refused() {
    let refused = |key, value| load(&with(key, value)).unwrap_err();
    for rank in [json!(0), json!(RANK_MAX + 1), json!(u64::MAX)] {
        assert!(matches!(refused("r", rank), AdapterError::Rank { .. }));
    }
    assert!(matches!(refused("r", json!(-1)), AdapterError::Setting { key: "r" }));
    assert!(matches!(refused("r", json!("4")), AdapterError::Setting { key: "r" }));
    assert!(matches!(refused("lora_alpha", json!(0)), AdapterError::Alpha { .. }));
    assert!(matches!(refused("lora_alpha", json!(1e300)), AdapterError::Alpha { .. }));
    assert!(matches!(refused("lora_dropout", json!(1.0)), AdapterError::Dropout { .. }));
    let refused = |names| refused("target_modules", names);
    assert!(matches!(refused(json!([])), AdapterError::TargetModules));
    assert!(matches!(refused(json!(["k_proj", "k_proj"])), AdapterError::TargetModules));
    assert!(matches!(refused(json!(["lm_head"])), AdapterError::UnknownModule { .. }));
    assert!(matches!(refused(json!([3])), AdapterError::UnknownModule { .. }));
}

#[test]
fn files_for_another_model_are_refused() {
    let name = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight";
    let refused = load(&with_header(|header| {
        let tensor = header.remove(name).unwrap();
        header.insert(name.replace("layers.2", "layers.3"), tensor);
    }));
    assert!(
        matches!(refused, Err(AdapterError::MissingTensor { name: missing }) if missing == name)
    );
    let mut deeper = config();
    deeper.block_count = 2;
    deeper.attention_windows.pop();
    let refused = Adapter::from_peft(&adapter().to_peft(), &deeper, span(0, 2));
    assert!(matches!(
        refused,
        Err(AdapterError::TooLong { .. } | AdapterError::UnknownTensor { .. })
    ));
    let mut wider = config();
    wider.intermediate_size = 512;
    let refused = Adapter::from_peft(&adapter().to_peft(), &wider, span(0, 3)).unwrap_err();
    assert_eq!(expected_shape(refused), [4, 512]);
    let sparse = model::config(Family::Mixtral);
    let refused = Adapter::from_peft(&adapter().to_peft(), &sparse, span(0, 3)).unwrap_err();
    assert!(refused.to_string().contains("experts in the place of down_proj"), "{refused}");
    let refused = Adapter::from_peft(&adapter().to_peft(), &config(), span(2, 4));
    assert!(matches!(refused, Err(AdapterError::NoSuchBlocks { .. })));
    let refused = load(&with("r", json!(8)));
    assert!(matches!(refused, Err(AdapterError::Tensor { .. })));
}

#[test]
fn broken_tensors_are_refused() {
    let name = "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight";
    let refused = load(&with_header(|header| header[name]["dtype"] = json!("I32"))).unwrap_err();
    assert!(matches!(refused, AdapterError::Tensor { .. }));
    let refused = load(&with_header(|header| header[name]["shape"] = json!([256, 4]))).unwrap_err();
    assert!(matches!(refused, AdapterError::Tensor { .. }));
    let refused = load(&with_header(|header| header[name]["shape"] = json!([4]))).unwrap_err();
    assert!(matches!(refused, AdapterError::Safetensors(_)));
    let mut files = adapter().to_peft();
    let end = files.weights.len();
    files.weights[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert!(matches!(load(&files).unwrap_err(), AdapterError::NotFinite { .. }));
    files.weights.pop();
    assert!(matches!(load(&files).unwrap_err(), AdapterError::Safetensors(_)));
    files.weights.resize(1 << 20, 0);
    assert!(matches!(load(&files).unwrap_err(), AdapterError::TooLong { .. }));
}

#[test]
fn a_file_that_is_missing_or_far_too_long_is_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let read = || PeftFiles::read(folder.path(), &config()).unwrap_err();
    assert!(matches!(read(), AdapterError::File { file: PEFT_CONFIG_FILE, .. }));
    adapter().to_peft().write(folder.path()).unwrap();
    assert!(PeftFiles::read(folder.path(), &config()).is_ok());
    // A hole takes no room on the disk.
    let weights = std::fs::File::create(folder.path().join(PEFT_WEIGHTS_FILE)).unwrap();
    weights.set_len(1 << 40).unwrap();
    assert!(matches!(read(), AdapterError::TooLong { file: PEFT_WEIGHTS_FILE, .. }));
}

proptest! {
    #[test]
    fn perturbed_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        in_config in any::<bool>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut files = adapter().to_peft();
        let bytes = if in_config { &mut files.config } else { &mut files.weights };
        for (index, byte) in changes {
            // The header is where bytes mean something.
            let end = bytes.len().min(4096);
            bytes[index.index(end)] = byte;
        }
        bytes.truncate(bytes.len() - cut.index(3));
        if let Ok(adapter) = load(&files) {
            prop_assert_eq!(adapter.blocks(), span(0, 3));
        }
    }
}
