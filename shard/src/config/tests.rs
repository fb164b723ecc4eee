//! Configurations of real and broken files.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn fixture(name: &str) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/checkpoints");
    std::fs::read_to_string(format!("{root}/{name}")).unwrap()
}

/// The configuration of a fixture with some fields changed; `null` stays `null`.
fn changed(name: &str, changes: Value) -> Result<ModelConfig, ConfigError> {
    let mut config: Value = serde_json::from_str(&fixture(&format!("{name}/config.json"))).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelConfig::from_json(&config.to_string())
}

fn without(name: &str, fields: &[&str]) -> Result<ModelConfig, ConfigError> {
    let mut config: Value = serde_json::from_str(&fixture(&format!("{name}/config.json"))).unwrap();
    for field in fields {
        config.as_object_mut().unwrap().remove(*field);
    }
    ModelConfig::from_json(&config.to_string())
}

fn message(result: Result<ModelConfig, ConfigError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_grouped_query_llama_is_read() {
    let config = ModelConfig::from_json(&fixture("llama/config.json")).unwrap();
    let expected = ModelConfig {
        family: Family::Llama,
        hidden_size: 64,
        intermediate_size: 112,
        block_count: 4,
        head_count: 4,
        kv_head_count: 2,
        head_size: 16,
        vocabulary_size: 288,
        context_tokens: 256,
        rms_norm_eps: 1e-6,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        attention_windows: vec![None; 4],
        attention_bias: false,
        output_bias: false,
        mlp_bias: false,
        experts: None,
        tied_embeddings: false,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    };
    assert_eq!(config, expected);
    assert_eq!(config.kv_token_bytes_per_block(), 2 * 2 * 16 * 4);
}

#[test]
fn each_family_has_what_sets_it_apart() {
    let mistral = changed("mistral", json!({})).unwrap();
    assert_eq!(mistral.attention_windows, [Some(8); 4]);
    let qwen2 = changed("qwen2", json!({})).unwrap();
    assert!(qwen2.attention_bias && !qwen2.output_bias && qwen2.tied_embeddings);
    assert_eq!((qwen2.head_size, qwen2.attention_windows), (16, vec![None; 4]));
    let qwen3 = changed("qwen3", json!({})).unwrap();
    assert!(qwen3.has_query_key_norms() && !qwen3.attention_bias);
    assert_eq!(qwen3.head_size, 24);
    let mixtral = changed("mixtral", json!({})).unwrap();
    assert_eq!(mixtral.experts, Some(Experts { count: 4, per_token: 2, normalized: true }));
    assert!(!mixtral.has_query_key_norms());
    assert_eq!((mixtral.intermediate_size, mixtral.attention_windows), (112, vec![None; 4]));
    let sparse = changed("qwen3-moe", json!({})).unwrap();
    assert_eq!(sparse.experts, Some(Experts { count: 6, per_token: 3, normalized: true }));
    assert_eq!((sparse.intermediate_size, sparse.head_size), (48, 24));
    assert!(sparse.has_query_key_norms());
    let raw = changed("qwen3-moe-raw", json!({})).unwrap();
    assert_eq!(raw.experts, Some(Experts { count: 3, per_token: 2, normalized: false }));
    let biased = changed("llama", json!({"attention_bias": true, "mlp_bias": true})).unwrap();
    assert!(biased.attention_bias && biased.output_bias && biased.mlp_bias);
}

#[test]
fn both_versions_of_transformers_write_the_same_configuration() {
    let new = ModelConfig::from_json(&fixture("llama3-rope/config.json")).unwrap();
    let old = ModelConfig::from_json(&fixture("llama3-rope/config.transformers4.json")).unwrap();
    assert_eq!(new, old);
    assert_eq!(new.canonical_bytes(), old.canonical_bytes());
    let RopeScaling::Llama3 { factor, original_context_tokens, .. } = new.rope.scaling else {
        panic!("{:?}", new.rope)
    };
    assert_eq!((factor, original_context_tokens, new.rope.theta), (8.0, 32, 500_000.0));
}

#[test]
fn absent_and_null_fields_mean_what_transformers_takes_them_for() {
    let plain = changed("llama", json!({"head_dim": null, "num_key_value_heads": null})).unwrap();
    assert_eq!((plain.head_size, plain.kv_head_count), (16, 4));
    let absent = without("llama", &["head_dim", "num_key_value_heads"]).unwrap();
    assert_eq!((absent.head_size, absent.kv_head_count), (16, 4));
    assert_eq!(without("qwen3", &["head_dim"]).unwrap().head_size, 128);
    assert_eq!(without("mistral", &["sliding_window"]).unwrap().attention_windows, [Some(4096); 4]);
    let none = changed("mistral", json!({"sliding_window": null})).unwrap();
    assert_eq!(none.attention_windows, [None; 4]);
    let bare = without("llama", &["rope_parameters", "tie_word_embeddings", "hidden_act"]).unwrap();
    assert_eq!(bare.rope, Rope { theta: 10_000.0, scaling: RopeScaling::None });
    let null = json!({"rope_parameters": null, "rope_scaling": null, "rope_theta": 25.0});
    assert_eq!(changed("llama", null).unwrap().rope.theta, 25.0);
    assert_eq!(changed("llama", json!({"eos_token_id": [7, 9]})).unwrap().eos_token_ids, [7, 9]);
    let none = changed("llama", json!({"eos_token_id": null})).unwrap();
    assert!(none.eos_token_ids.is_empty());
}

#[test]
fn the_windows_of_qwen_follow_its_layer_types() {
    let window = json!({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": 3});
    let mut listed = window.clone();
    listed["layer_types"] =
        json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"]);
    let listed = changed("qwen2", listed).unwrap();
    assert_eq!(listed.attention_windows, [Some(16), None, None, Some(16)]);
    let mut counted = window;
    counted["layer_types"] = Value::Null;
    let counted = changed("qwen2", counted).unwrap();
    assert_eq!(counted.attention_windows, [None, None, None, Some(16)]);
    let unused = json!({"sliding_window": 16, "layer_types": null, "max_window_layers": 0});
    assert_eq!(changed("qwen2", unused).unwrap().attention_windows, [None; 4]);
    let few = changed("qwen2", json!({"layer_types": ["full_attention"]}));
    assert!(message(few).contains("layer_types"));
    let other = changed("qwen2", json!({"layer_types": vec!["linear_attention"; 4]}));
    assert!(message(other).contains("linear_attention"));
}

#[test]
fn every_supported_rope_type_is_read() {
    let linear = json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0}});
    let linear = changed("llama", linear).unwrap();
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    let old = json!({"rope_parameters": null, "rope_scaling": {"type": "linear", "factor": 2}});
    assert_eq!(changed("llama", old).unwrap().rope.scaling, linear.rope.scaling);
    // As Qwen2.5 writes it: 0.1 * ln(4) + 1.
    let yarn = json!({"rope_parameters": null, "rope_scaling":
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}});
    let expected = RopeScaling::Yarn {
        factor: 4.0,
        original_context_tokens: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.138_629_4,
        truncate: true,
    };
    assert_eq!(changed("qwen2", yarn).unwrap().rope.scaling, expected);
}

#[test]
fn yarn_reaches_further_than_the_file_to_which_it_was_added() {
    let context = |original: Value, rope: Value, tokens: usize| {
        let mut changes = json!({"rope_parameters": rope, "max_position_embeddings": tokens});
        changes["original_max_position_embeddings"] = original;
        changed("qwen2", changes).map(|config| config.context_tokens)
    };
    let yarn = |original: Value| {
        let mut yarn = json!({"rope_type": "yarn", "factor": 4.0});
        yarn["original_max_position_embeddings"] = original;
        yarn
    };
    let nowhere = Value::Null;
    // Added by hand, as Qwen's cards have it, and released with it, as others' models are.
    assert_eq!(context(nowhere.clone(), yarn(json!(64)), 64).unwrap(), 256);
    assert_eq!(context(nowhere.clone(), yarn(json!(64)), 256).unwrap(), 256);
    assert_eq!(context(json!(64), yarn(nowhere.clone()), 64).unwrap(), 256);
    // Where the file does not say which length is the original one, its length is taken for the whole.
    assert_eq!(context(nowhere.clone(), yarn(nowhere.clone()), 256).unwrap(), 256);
    // A factor that follows from the two lengths stretches to the longer one.
    let without = json!({"rope_type": "yarn", "original_max_position_embeddings": 96});
    assert_eq!(context(nowhere.clone(), without, 1000).unwrap(), 1000);
    let old = json!({"rope_parameters": null, "max_position_embeddings": 64, "rope_scaling":
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}});
    assert_eq!(changed("qwen2", old).unwrap().context_tokens, 256);
    // Others are released with the length that they reach.
    for rope_type in ["linear", "llama3"] {
        let rope = json!({"rope_type": rope_type, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
        assert_eq!(context(nowhere.clone(), rope, 64).unwrap(), 64, "{rope_type}");
    }
    let mut beyond = yarn(json!(64));
    beyond["factor"] = json!(1e30);
    let refused = context(nowhere, beyond, 64).unwrap_err().to_string();
    assert!(refused.contains("max_position_embeddings"), "{refused}");
}

/// The first files of Qwen3 call the number of experts otherwise.
#[test]
fn experts_are_read_from_old_and_new_files() {
    let new = changed("qwen3-moe", json!({})).unwrap();
    let mut old: Value = serde_json::from_str(&fixture("qwen3-moe/config.json")).unwrap();
    old["num_experts"] = old.as_object_mut().unwrap().remove("num_local_experts").unwrap();
    assert_eq!(ModelConfig::from_json(&old.to_string()).unwrap(), new);
    let absent = ["num_local_experts", "num_experts_per_tok", "norm_topk_prob", "sliding_window"];
    let expected = Experts { count: 128, per_token: 8, normalized: false };
    assert_eq!(without("qwen3-moe", &absent).unwrap().experts, Some(expected));
    let absent =
        [&absent[..], &["rope_parameters", "rms_norm_eps", "num_key_value_heads"]].concat();
    let mixtral = changed("mixtral", json!({"num_attention_heads": 8, "sliding_window": 16}));
    assert_eq!(mixtral.unwrap().attention_windows, [Some(16); 4]);
    let mut mixtral: Value = serde_json::from_str(&fixture("mixtral/config.json")).unwrap();
    mixtral["num_attention_heads"] = json!(8);
    mixtral.as_object_mut().unwrap().retain(|field, _| !absent.contains(&field.as_str()));
    let mixtral = ModelConfig::from_json(&mixtral.to_string()).unwrap();
    assert_eq!(mixtral.experts, Some(Experts { count: 8, per_token: 2, normalized: true }));
    assert_eq!((mixtral.rope.theta, mixtral.rms_norm_eps), (1_000_000.0, 1e-5));
    assert_eq!((mixtral.kv_head_count, mixtral.attention_windows), (8, vec![None; 4]));
}

#[test]
fn experts_that_are_not_computed_here_are_refused() {
    for (name, changes, said) in [
        ("qwen3-moe", json!({"decoder_sparse_step": 2}), "decoder_sparse_step"),
        ("qwen3-moe", json!({"mlp_only_layers": [0]}), "mlp_only_layers"),
        ("qwen3-moe", json!({"moe_intermediate_size": null}), "moe_intermediate_size"),
        ("qwen3-moe", json!({"moe_intermediate_size": 0}), "intermediate_size"),
        ("mixtral", json!({"intermediate_size": 1 << 18}), "the size of an expert"),
        ("mixtral", json!({"num_local_experts": 0}), "num_experts"),
        ("mixtral", json!({"num_local_experts": 5000}), "num_experts"),
        ("mixtral", json!({"num_experts_per_tok": 0}), "num_experts_per_tok"),
        ("mixtral", json!({"num_experts_per_tok": 5}), "num_experts_per_tok"),
        ("mixtral", json!({"num_local_experts": 1024, "num_hidden_layers": 65}), "all blocks"),
        ("mistral", json!({"num_local_experts": 4}), "num_local_experts"),
    ] {
        let text = message(changed(name, changes.clone()));
        assert!(text.contains(said), "{changes}: {text}");
    }
}

#[test]
fn what_is_not_supported_is_named() {
    for (name, found) in [
        ("gemma3", "Gemma3ForCausalLM"),
        ("bloom", "BloomForCausalLM"),
        ("falcon", "FalconForCausalLM"),
    ] {
        let text = message(changed(name, json!({})));
        assert!(
            text.contains(found) && text.contains("llama, mistral, qwen2, qwen3, mixtral"),
            "{text}"
        );
    }
    for rope_type in ["dynamic", "longrope", "mrope"] {
        let rope = json!({"rope_parameters": {"rope_type": rope_type, "factor": 2.0}});
        assert!(message(changed("llama", rope)).contains(rope_type));
    }
    assert!(message(changed("llama", json!({"hidden_act": "gelu"}))).contains("gelu"));
    let quantized = json!({"quantization_config": {"quant_method": "awq", "bits": 4}});
    assert!(message(changed("llama", quantized)).contains("awq"));
    let partial = json!({"partial_rotary_factor": 0.5});
    assert!(message(changed("llama", partial)).contains("partial_rotary_factor"));
    let mixed = message(changed("llama", json!({"model_type": "qwen2"})));
    assert!(mixed.contains("qwen2") && mixed.contains("LlamaForCausalLM"), "{mixed}");
}

#[test]
fn absurd_numbers_are_refused_by_name() {
    for (field, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(u64::MAX)),
        ("intermediate_size", json!(0)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(4_000_000_000u64)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(0)),
        ("head_dim", json!(15)),
        ("vocab_size", json!(1u64 << 40)),
        ("max_position_embeddings", json!(0)),
        ("rms_norm_eps", json!(0.0)),
        ("rms_norm_eps", json!(-1.0)),
        ("rope_theta", json!(0.0)),
    ] {
        let text = message(changed("llama", json!({field: value, "rope_parameters": null})));
        assert!(text.contains(field), "{field}: {text}");
    }
    assert!(message(changed("llama", json!({"hidden_size": -1}))).contains("config.json"));
    for field in ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"] {
        assert!(message(without("llama", &[field])).contains(field));
    }
}

#[test]
fn ids_of_tokens_do_not_count_and_everything_else_does() {
    let plain = changed("llama", json!({})).unwrap().canonical_bytes();
    let tokens = changed("llama", json!({"eos_token_id": [5], "bos_token_id": null})).unwrap();
    assert_eq!(tokens.canonical_bytes(), plain);
    for other in [
        json!({"rms_norm_eps": 1e-5}),
        json!({"num_key_value_heads": 4}),
        json!({"tie_word_embeddings": true}),
        json!({"attention_bias": true}),
        json!({"max_position_embeddings": 512}),
        json!({"rope_parameters": {"rope_theta": 10_001.0, "rope_type": "default"}}),
        json!({"rope_parameters": {"factor": 2.0, "rope_type": "linear"}}),
    ] {
        assert_ne!(changed("llama", other.clone()).unwrap().canonical_bytes(), plain, "{other}");
    }
    let sparse = changed("qwen3-moe", json!({})).unwrap().canonical_bytes();
    for other in [
        json!({"num_local_experts": 7}),
        json!({"num_experts_per_tok": 2}),
        json!({"norm_topk_prob": false}),
    ] {
        let changed = changed("qwen3-moe", other.clone()).unwrap();
        assert_ne!(changed.canonical_bytes(), sparse, "{other}");
    }
}

proptest! {
    #[test]
    fn perturbed_files_never_panic(
        name in prop::sample::select(vec!["llama", "llama3-rope", "mistral", "qwen2", "qwen3", "mixtral", "qwen3-moe"]),
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = fixture(&format!("{name}/config.json")).into_bytes();
        for (place, byte) in places {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        for bytes in [&bytes[..], &bytes[..length.index(bytes.len())]] {
            if let Ok(text) = std::str::from_utf8(bytes) {
                let _ = ModelConfig::from_json(text);
            }
        }
    }

    #[test]
    fn numbers_of_any_size_never_panic(
        field in prop::sample::select(vec!["hidden_size", "num_hidden_layers", "head_dim",
            "num_attention_heads", "num_key_value_heads", "vocab_size", "sliding_window"]),
        value in any::<u64>(),
    ) {
        let _ = changed("mistral", json!({field: value}));
    }
}
