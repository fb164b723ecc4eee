//! Models whose files are broken: each error names the file and what is wrong.

use umbel_protocol::error::in_one_line;

use super::*;

fn broken(root: &Path, path: &Path) -> String {
    in_one_line(&open(root, path).unwrap_err())
}

/// A copy of the fixture `llama` in `root`.
fn copy_of_llama(root: &Path) -> PathBuf {
    let folder = root.join("copy");
    fs::create_dir_all(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture_folder("llama").join(file), folder.join(file)).unwrap();
    }
    folder
}

#[test]
fn a_cut_off_file_is_named() {
    let root = tempfile::tempdir().unwrap();
    let folder = copy_of_llama(root.path());
    let weights = folder.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    for length in [0, 7, 8, 100, bytes.len() - 1] {
        fs::write(&weights, &bytes[..length]).unwrap();
        let text = broken(root.path(), &folder);
        assert!(text.contains("model.safetensors") && text.contains("cut off"), "{text}");
    }
    let model = open(root.path(), &fixture_folder("llama")).unwrap();
    let file = GgufWriter::of_model(model.config(), &all_weights(&model)).unwrap().to_bytes();
    let path = root.path().join("cut.gguf");
    for length in [10, 200, file.len() - 1] {
        fs::write(&path, &file[..length]).unwrap();
        let text = broken(root.path(), &path);
        assert!(text.contains("cut.gguf") && text.contains("cut off"), "{text}");
    }
    fs::write(&path, b"").unwrap();
    assert!(broken(root.path(), &path).contains("not a GGUF file"));
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let root = tempfile::tempdir().unwrap();
    let folder = copy_of_llama(root.path());
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let wider = config.replace("\"intermediate_size\": 112", "\"intermediate_size\": 120");
    fs::write(folder.join("config.json"), wider).unwrap();
    let text = broken(root.path(), &folder);
    assert!(
        text.contains("mlp") && text.contains("[112, 64]") && text.contains("[120, 64]"),
        "{text}"
    );
    assert!(text.contains("model.safetensors"), "{text}");
    let deeper = config.replace("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5");
    fs::write(folder.join("config.json"), deeper).unwrap();
    let text = broken(root.path(), &folder);
    assert!(text.contains("model.layers.4.") && text.contains("model.safetensors"), "{text}");
}

#[test]
fn a_tensor_of_another_type_is_named() {
    let root = tempfile::tempdir().unwrap();
    let folder = copy_of_llama(root.path());
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    // A type of the same size, so that all lengths hold.
    let place = bytes.windows(5).position(|window| window == b"\"F32\"").unwrap();
    let mut other = bytes;
    other[place..place + 5].copy_from_slice(b"\"I32\"");
    fs::write(&path, other).unwrap();
    let text = broken(root.path(), &folder);
    assert!(text.contains("I32") && text.contains("model.safetensors"), "{text}");
}

#[test]
fn folders_that_are_no_checkpoints_are_told_what_they_lack() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("empty");
    fs::create_dir(&folder).unwrap();
    assert!(broken(root.path(), &folder).contains("config.json"));
    fs::copy(fixture_folder("llama").join("config.json"), folder.join("config.json")).unwrap();
    assert!(broken(root.path(), &folder).contains("model.safetensors"));
    fs::write(folder.join("config.json"), "{").unwrap();
    assert!(broken(root.path(), &folder).contains("config.json"));
    fs::write(folder.join("config.json"), "x".repeat(2 << 20)).unwrap();
    assert!(broken(root.path(), &folder).contains("too much"));
    for name in ["gemma3", "bloom", "falcon"] {
        let text = broken(root.path(), &fixture_folder(name));
        assert!(text.contains("not supported") && text.contains("config.json"), "{text}");
    }
}

#[test]
fn an_index_cannot_lead_out_of_the_folder() {
    let root = tempfile::tempdir().unwrap();
    let folder = copy_of_llama(root.path());
    fs::rename(folder.join("model.safetensors"), root.path().join("model.safetensors")).unwrap();
    let index = r#"{"weight_map": {"model.norm.weight": "../model.safetensors"}}"#;
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    assert!(broken(root.path(), &folder).contains("../model.safetensors"));
    let index = r#"{"weight_map": {"model.norm.weight": "model.safetensors"}}"#;
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    let text = broken(root.path(), &folder);
    assert!(text.contains("model.safetensors.index.json has no tensor"), "{text}");
}

#[test]
fn a_gguf_file_without_what_it_needs_says_so() {
    let root = tempfile::tempdir().unwrap();
    let model = open(root.path(), &fixture_folder("llama")).unwrap();
    let weights = all_weights(&model);
    let path = root.path().join("model.gguf");
    let with = |key: &str, value: WriteValue| {
        let mut writer = GgufWriter::of_model(model.config(), &weights).unwrap();
        writer.value(key, value);
        fs::write(&path, writer.to_bytes()).unwrap();
        broken(root.path(), &path)
    };
    assert!(with("llama.expert_count", WriteValue::U32(8)).contains("expert_used_count"));
    assert!(with("llama.rope.scaling.type", "longrope".into()).contains("longrope"));
    let tokens = with("tokenizer.ggml.tokens", WriteValue::Texts(vec!["a".into()]));
    assert!(tokens.contains("model.embed_tokens.weight") && tokens.contains("[1, 64]"), "{tokens}");
    let write = |writer: &GgufWriter| {
        fs::write(&path, writer.to_bytes()).unwrap();
        broken(root.path(), &path)
    };
    let mut writer = GgufWriter::new();
    assert!(write(&writer).contains("general.architecture"));
    writer.value("general.architecture", "gemma3");
    assert!(write(&writer).contains("gemma3"));
    let mut writer = GgufWriter::new();
    writer
        .value("general.architecture", "llama")
        .value("llama.block_count", WriteValue::U32(u32::MAX));
    assert!(write(&writer).contains("num_hidden_layers"));
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let folder = copy_of_llama(root.path());
    let model = open(root.path(), &folder).unwrap();
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let span = Span::new(0, 4).unwrap();
    assert!(matches!(model.weights(Part::Blocks(span)), Err(LoadError::Changed { .. })));
    fs::remove_file(&path).unwrap();
    assert!(matches!(model.weights(Part::Embedding), Err(LoadError::Io { .. })));
}

#[test]
fn a_norm_that_is_quantized_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let model = open(root.path(), &fixture_folder("llama")).unwrap();
    let norm = Weight::new(WeightType::Q8_0, vec![64], vec![0; 68]).unwrap();
    let weights =
        all_weights(&model).and([("model.norm.weight".to_owned(), norm)].into_iter().collect());
    let path = root.path().join("norm.gguf");
    fs::write(&path, GgufWriter::of_model(model.config(), &weights).unwrap().to_bytes()).unwrap();
    let text = broken(root.path(), &path);
    assert!(text.contains("model.norm.weight") && text.contains("Q8_0"), "{text}");
}

#[test]
fn a_safetensors_file_may_have_tensors_that_nobody_asks_for() {
    let root = tempfile::tempdir().unwrap();
    let folder = copy_of_llama(root.path());
    let model = open(root.path(), &folder).unwrap();
    let weights = all_weights(&model);
    let extra = [("model.layers.0.self_attn.rotary_emb.inv_freq", &[1][..], &[0; 4][..])];
    let own = weights.iter().map(|(name, weight)| (name, weight.shape(), weight.bytes()));
    write_safetensors(&root.path().join("extra.safetensors"), own.chain(extra));
    let target = folder.join("model.safetensors");
    fs::rename(root.path().join("extra.safetensors"), target).unwrap();
    assert_eq!(
        all_weights(&open(root.path(), &folder).unwrap()).iter().count(),
        weights.iter().count()
    );
}

#[test]
fn experts_that_a_file_has_too_few_of_are_told() {
    let root = tempfile::tempdir().unwrap();
    let original = open(root.path(), &fixture_folder("mixtral")).unwrap();
    let file = GgufWriter::of_model(original.config(), &all_weights(&original)).unwrap();
    let path = root.path().join("few.gguf");
    let mut bytes = file.to_bytes();
    // The first of the dimensions, which is written last, of the four experts' gates.
    let name = b"blk.0.ffn_gate_exps.weight";
    let place = bytes.windows(name.len()).position(|found| found == name).unwrap();
    let dimension = place + name.len() + 4 + 2 * 8;
    assert_eq!(bytes[dimension], 4);
    bytes[dimension] = 3;
    fs::write(&path, bytes).unwrap();
    let text = broken(root.path(), &path);
    assert!(text.contains("blk.0.ffn_gate_exps.weight"), "{text}");
    assert!(text.contains("[3, 112, 64]") && text.contains("[4, 112, 64]"), "{text}");
    // What other models with experts do, and these files could ask for.
    for (key, value) in [
        ("llama.expert_shared_count", WriteValue::U32(1)),
        ("llama.expert_gating_func", WriteValue::U32(2)),
        ("llama.expert_weights_scale", WriteValue::F32(2.5)),
    ] {
        let mut file = GgufWriter::of_model(original.config(), &all_weights(&original)).unwrap();
        file.value(key, value);
        fs::write(&path, file.to_bytes()).unwrap();
        let text = broken(root.path(), &path);
        assert!(text.contains(key), "{text}");
    }
    let raw = open(root.path(), &fixture_folder("qwen3-moe-raw")).unwrap();
    let refused = GgufWriter::of_model(raw.config(), &all_weights(&raw)).unwrap_err();
    assert!(refused.to_string().contains("add up to 1"), "{refused}");
}
