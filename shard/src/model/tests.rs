//! Models from files of every kind.

use std::fs;
use std::path::{Path, PathBuf};

use umbel_protocol::Span;

use super::*;
use crate::config::{Family, RopeScaling};
use crate::gguf::write::{GgufWriter, WriteValue};
use crate::part::{BlocksNeeded, PartsNeeded};
use crate::progress::Silent;
use crate::source::ModelSource;
use crate::store::Cache;
use crate::tokenizer::TokenizerSource;
use crate::weight::WeightType;

mod broken;
mod parts;
pub(crate) mod support;

use support::{all_weights, fixture_folder, open, write_safetensors};

const FIXTURES: [&str; 8] =
    ["llama", "llama-tied-mha", "llama3-rope", "mistral", "qwen2", "qwen3", "mixtral", "qwen3-moe"];

#[test]
fn every_fixture_has_the_tensors_of_its_configuration() {
    let root = tempfile::tempdir().unwrap();
    for name in FIXTURES {
        let model = open(root.path(), &fixture_folder(name)).unwrap();
        assert_eq!(model.name(), name);
        assert_eq!(model.manifest().quantization(), "F32");
        let weights = all_weights(&model);
        let head = weights.contains("lm_head.weight");
        assert_ne!(head, model.config().tied_embeddings, "{name}");
        assert_eq!(weights.bytes_total(), model.manifest().total_bytes());
        let query = weights.get("model.layers.3.self_attn.q_proj.weight").unwrap();
        let config = model.config();
        assert_eq!(query.shape(), [config.head_count * config.head_size, config.hidden_size]);
        assert_eq!(query.bytes().len(), query.rows() * query.row_bytes());
        let biased = weights.contains("model.layers.0.self_attn.k_proj.bias");
        assert_eq!(biased, config.family == Family::Qwen2, "{name}");
        assert!(weights.get("model.layers.4.mlp.up_proj.weight").is_err());
    }
}

#[test]
fn a_gguf_file_of_a_checkpoint_gives_the_same_tensors() {
    let root = tempfile::tempdir().unwrap();
    for name in FIXTURES {
        let original = open(root.path(), &fixture_folder(name)).unwrap();
        let weights = all_weights(&original);
        let path = root.path().join(format!("{name}.gguf"));
        let file = GgufWriter::of_model(original.config(), &weights).unwrap().to_bytes();
        fs::write(&path, file).unwrap();
        let converted = open(root.path(), &path).unwrap();
        assert_eq!((original.gguf_path(), converted.gguf_path()), (None, Some(path.as_path())));
        let mut expected = original.config().clone();
        if let RopeScaling::Llama3 { .. } = expected.rope.scaling {
            let RopeScaling::Factors(factors) = &converted.config().rope.scaling else {
                panic!("{:?}", converted.config().rope)
            };
            assert_eq!((factors[0], factors[7]), (1.0, 8.0), "short waves stay, long ones stretch");
            expected.rope = converted.config().rope.clone();
        }
        assert_eq!(converted.config(), &expected, "{name}");
        let found = all_weights(&converted);
        assert_eq!(found.iter().count(), weights.iter().count());
        for (tensor, weight) in weights.iter() {
            let other = found.get(tensor).unwrap();
            assert_eq!(other.shape(), weight.shape(), "{name} {tensor}");
            assert!(other.bytes() == weight.bytes(), "{name} {tensor} has other bytes");
        }
        assert_ne!(converted.id(), original.id(), "other files are another model");
    }
}

#[test]
fn the_rows_of_q_and_k_are_moved_in_llama_files_and_in_no_others() {
    let root = tempfile::tempdir().unwrap();
    for (name, moved) in [
        ("llama", true),
        ("mistral", true),
        ("mixtral", true),
        ("qwen2", false),
        ("qwen3", false),
        ("qwen3-moe", false),
    ] {
        let original = open(root.path(), &fixture_folder(name)).unwrap();
        let weights = all_weights(&original);
        let file = GgufWriter::of_model(original.config(), &weights).unwrap().to_bytes();
        let header = crate::gguf::parse_header(&file).unwrap();
        let key = &header.tensors()["blk.0.attn_k.weight"];
        let start = usize::try_from(key.offset).unwrap();
        let stored = &file[start..start + usize::try_from(key.bytes).unwrap()];
        let original = weights.get("model.layers.0.self_attn.k_proj.weight").unwrap();
        assert_eq!(stored != original.bytes(), moved, "{name}");
    }
}

#[test]
fn quantized_rows_and_biases_are_put_back_in_order() {
    let root = tempfile::tempdir().unwrap();
    let mut config = open(root.path(), &fixture_folder("llama")).unwrap().config().clone();
    (config.attention_bias, config.output_bias) = (true, true);
    config.intermediate_size = 128;
    let tensor = |one: crate::layout::LayoutTensor| {
        let quantized = one.shape.len() == 2 && one.shape[1].is_multiple_of(32);
        let kind = if quantized { WeightType::Q4_1 } else { WeightType::F32 };
        let length = usize::try_from(kind.tensor_bytes(&one.shape).unwrap()).unwrap();
        let seed = one.name.len();
        let bytes: Vec<u8> =
            (0..length).map(|i| u8::try_from((i * 31 + i / 7 + seed) % 251).unwrap()).collect();
        (one.name, Weight::new(kind, one.shape, bytes).unwrap())
    };
    let everything = crate::plan::tensors(&config, PartsNeeded::everything()).unwrap();
    let weights: Weights = everything.into_iter().map(tensor).collect();
    let path = root.path().join("quantized.gguf");
    fs::write(&path, GgufWriter::of_model(&config, &weights).unwrap().to_bytes()).unwrap();
    let model = open(root.path(), &path).unwrap();
    assert_eq!(model.config(), &config);
    assert_eq!(model.manifest().quantization(), "Q4_1");
    let found = all_weights(&model);
    for (name, weight) in weights.iter() {
        let other = found.get(name).unwrap();
        assert_eq!(other.weight_type(), weight.weight_type());
        assert!(other.bytes() == weight.bytes(), "{name}");
    }
}

#[test]
fn a_part_has_its_tensors_and_no_others() {
    let root = tempfile::tempdir().unwrap();
    let model = open(root.path(), &fixture_folder("llama-tied-mha")).unwrap();
    let names = |part| {
        let weights = model.weights(part).unwrap();
        weights.iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(Part::Embedding), ["model.embed_tokens.weight"]);
    assert_eq!(names(Part::Head), ["model.embed_tokens.weight", "model.norm.weight"]);
    let span = names(Part::Blocks(Span::new(1, 3).unwrap()));
    assert_eq!(span.len(), 2 * 9);
    assert!(span.iter().all(|name| name.contains(".1.") || name.contains(".2.")));
    let beyond = model.weights(Part::Blocks(Span::new(3, 5).unwrap())).unwrap_err();
    assert!(matches!(beyond, LoadError::SpanOutside(_)));
    let blocks = BlocksNeeded::Span(Span::new(3, 5).unwrap());
    let source = ModelSource::Folder(fixture_folder("llama-tied-mha"));
    let parts = PartsNeeded { blocks, ..PartsNeeded::nothing() };
    let refused = Model::open(&source, &Cache::new(root.path()), parts, &Silent).unwrap_err();
    assert!(refused.to_string().contains("3..5"), "{refused}");
}

#[test]
fn a_model_is_the_same_wherever_it_lies_and_whoever_wrote_its_configuration() {
    let root = tempfile::tempdir().unwrap();
    let original = open(root.path(), &fixture_folder("llama3-rope")).unwrap();
    let copy = root.path().join("another name");
    fs::create_dir(&copy).unwrap();
    let from = fixture_folder("llama3-rope");
    fs::copy(from.join("model.safetensors"), copy.join("model.safetensors")).unwrap();
    fs::copy(from.join("config.transformers4.json"), copy.join("config.json")).unwrap();
    let copied = open(root.path(), &copy).unwrap();
    assert_eq!(copied.id(), original.id());
    assert_eq!(copied.name(), "another name");
    let again = open(&root.path().join("another cache"), &copy).unwrap();
    assert_eq!(again.id(), original.id());

    let mut bytes = fs::read(copy.join("model.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(copy.join("model.safetensors"), bytes).unwrap();
    assert_ne!(open(root.path(), &copy).unwrap().id(), original.id(), "one bit differs");
}

#[test]
fn a_checkpoint_may_be_spread_over_files() {
    let root = tempfile::tempdir().unwrap();
    let original = open(root.path(), &fixture_folder("qwen3")).unwrap();
    let weights = all_weights(&original);
    let folder = root.path().join("sharded");
    support::write_sharded(&folder, "qwen3", &weights);
    let sharded = open(root.path(), &folder).unwrap();
    assert_eq!(sharded.manifest().files().len(), 3);
    let found = all_weights(&sharded);
    for (name, weight) in weights.iter() {
        assert!(found.get(name).unwrap().bytes() == weight.bytes(), "{name}");
    }
    fs::remove_file(folder.join("blocks-a.safetensors")).unwrap();
    let error = open(root.path(), &folder).unwrap_err();
    assert!(error.to_string().contains("blocks-a.safetensors"), "{error}");
}

#[test]
fn the_tokenizer_of_a_gguf_file_comes_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let original = open(root.path(), &fixture_folder("llama")).unwrap();
    let mut writer = GgufWriter::of_model(original.config(), &all_weights(&original)).unwrap();
    let tokens: Vec<String> = (0..288).map(|id| format!("token {id}")).collect();
    writer
        .value("general.file_type", WriteValue::U32(0))
        .value("tokenizer.ggml.model", "gpt2")
        .value("tokenizer.ggml.pre", "smollm")
        .value("tokenizer.ggml.tokens", WriteValue::Texts(tokens.clone()))
        .value("tokenizer.ggml.token_type", WriteValue::I32s(vec![1; 288]))
        .value("tokenizer.ggml.scores", WriteValue::F32s(vec![-0.5; 288]))
        .value("tokenizer.ggml.merges", WriteValue::Texts(vec!["a b".into()]))
        .value("tokenizer.ggml.add_bos_token", WriteValue::Flag(false))
        .value("tokenizer.chat_template", "{{ messages }}")
        .value("tokenizer.chat_template.tool_use", "{{ tools }}");
    let path = root.path().join("with tokenizer.gguf");
    fs::write(&path, writer.to_bytes()).unwrap();
    let model = open(root.path(), &path).unwrap();
    let Some(TokenizerSource::Gguf(tokenizer)) = model.tokenizer() else { panic!() };
    assert_eq!((tokenizer.model.as_str(), tokenizer.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!((&tokenizer.tokens, tokenizer.scores[287]), (&tokens, -0.5));
    assert_eq!((tokenizer.token_types[0], tokenizer.merges.len()), (1, 1));
    assert_eq!(
        (tokenizer.bos_id, tokenizer.add_bos, tokenizer.add_eos),
        (Some(1), Some(false), None)
    );
    assert_eq!(model.special_tokens().eos.as_deref(), Some("token 2"));
    assert_eq!(model.chat_template(), Some("{{ messages }}"));
    assert_eq!(model.tool_template(), Some("{{ tools }}"));
    let source = ModelSource::GgufFile(path);
    let span = PartsNeeded::span(Span::new(0, 1).unwrap());
    let server = Model::open(&source, &Cache::new(root.path()), span, &Silent).unwrap();
    assert!(server.tokenizer().is_none(), "a server has no use for it");
    assert_eq!(server.id(), model.id());
}

#[test]
fn answers_end_with_the_tokens_of_the_generation_configuration_too() {
    let root = tempfile::tempdir().unwrap();
    let original = open(root.path(), &fixture_folder("llama")).unwrap();
    let folder = root.path().join("copy");
    fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture_folder("llama").join(file), folder.join(file)).unwrap();
    }
    let with = |text: &str| {
        fs::write(folder.join("generation_config.json"), text).unwrap();
        open(root.path(), &folder)
    };
    for (text, ids) in [
        (r#"{"eos_token_id": [7, 2, 9], "temperature": 0.7}"#, vec![2, 7, 9]),
        (r#"{"eos_token_id": 5}"#, vec![2, 5]),
        (r#"{"eos_token_id": null}"#, vec![2]),
        ("{}", vec![2]),
    ] {
        let model = with(text).unwrap();
        assert_eq!(model.config().eos_token_ids, ids, "{text}");
        assert_eq!(model.id(), original.id(), "what ends an answer changes no number");
    }
    for text in ["{", r#"{"eos_token_id": "</s>"}"#] {
        let error = with(text).unwrap_err();
        assert!(error.to_string().contains("generation_config.json"), "{error}");
    }
    let many: Vec<u32> = (0..100).collect();
    assert!(with(&format!(r#"{{"eos_token_id": {many:?}}}"#)).is_err());
}

#[test]
fn the_tokens_that_end_an_answer_are_known_in_a_gguf_file_by_keys_and_by_spelling() {
    let root = tempfile::tempdir().unwrap();
    let original = open(root.path(), &fixture_folder("llama")).unwrap();
    let mut writer = GgufWriter::of_model(original.config(), &all_weights(&original)).unwrap();
    let mut tokens: Vec<String> = (0..288).map(|id| format!("token {id}")).collect();
    let mut kinds = vec![1; 288];
    for (id, text) in [(2, "<|eot_id|>"), (5, "<|end_of_text|>"), (6, "<|eom_id|>"), (8, "<s>")] {
        (tokens[id], kinds[id]) = (text.to_owned(), 3);
    }
    // Files call them what they like.
    for (id, kind) in [(7, 4), (9, 1)] {
        (tokens[id], kinds[id]) = ("<|im_end|>".to_owned(), kind);
    }
    writer
        .value("tokenizer.ggml.model", "gpt2")
        .value("tokenizer.ggml.tokens", WriteValue::Texts(tokens))
        .value("tokenizer.ggml.token_type", WriteValue::I32s(kinds))
        .value("tokenizer.ggml.eom_token_id", WriteValue::U32(6));
    let path = root.path().join("ends.gguf");
    fs::write(&path, writer.to_bytes()).unwrap();
    assert_eq!(open(root.path(), &path).unwrap().config().eos_token_ids, [2, 6, 5, 7, 9]);
}

#[test]
fn yarn_lengthens_the_context_of_a_gguf_file_too() {
    let root = tempfile::tempdir().unwrap();
    let original = open(root.path(), &fixture_folder("qwen2")).unwrap();
    let mut config = original.config().clone();
    config.context_tokens = 64;
    config.rope.scaling = RopeScaling::Yarn {
        factor: 4.0,
        original_context_tokens: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.138_629_4,
        truncate: true,
    };
    let path = root.path().join("yarn.gguf");
    let writer = GgufWriter::of_model(&config, &all_weights(&original)).unwrap();
    fs::write(&path, writer.to_bytes()).unwrap();
    config.context_tokens = 256;
    assert_eq!(open(root.path(), &path).unwrap().config(), &config);
}

#[test]
fn the_bytes_of_a_part_are_known_before_it_is_loaded() {
    let root = tempfile::tempdir().unwrap();
    let model = open(root.path(), &fixture_folder("llama")).unwrap();
    let span = Span::new(1, 3).unwrap();
    let weights = model.weights(Part::Blocks(span)).unwrap();
    let manifest = model.manifest();
    assert_eq!(weights.bytes_total(), manifest.block_bytes(1) + manifest.block_bytes(2));
}
