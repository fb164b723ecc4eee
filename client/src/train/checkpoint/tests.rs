//! Files that are read as they were written, and those that are not.

use umbel_shard::{Family, Rope, RopeScaling};

use super::*;

fn model(hidden_size: usize) -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        hidden_size,
        intermediate_size: 16,
        block_count: 2,
        head_count: 2,
        kv_head_count: 1,
        head_size: 4,
        vocabulary_size: 8,
        context_tokens: 32,
        rms_norm_eps: 1e-6,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        attention_windows: vec![None; 2],
        attention_bias: false,
        output_bias: false,
        mlp_bias: false,
        experts: None,
        tied_embeddings: true,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

fn checkpoint() -> Checkpoint {
    let config = AdapterConfig {
        rank: 2,
        alpha: 3.5,
        rank_stabilized: true,
        dropout: 0.1,
        target_modules: vec![TargetModule::Query, TargetModule::Down],
        ..AdapterConfig::default()
    };
    let adamw = AdamW { weight_decay: 0.3, ..AdamW::default() };
    let all = Span::new(0, 2).unwrap();
    let mut state = TrainingState::begin((config, adamw), &model(8), all, (5, 41)).unwrap();
    let count = usize::try_from(state.value_count()).unwrap();
    state.write(StateKind::Means, 0, &vec![-0.5; count]).unwrap();
    state.write(StateKind::MeanSquares, 0, &vec![0.25; count]).unwrap();
    Checkpoint { state, model: "abc".to_owned(), sequences: 77, other: json!({ "epochs": 3 }) }
}

#[test]
fn a_checkpoint_of_prompts_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    for block_prompt_tokens in [0, 3] {
        let config =
            AdapterConfig { prompt_tokens: 3, block_prompt_tokens, ..AdapterConfig::default() };
        let all = Span::new(0, 2).unwrap();
        let settings = (config, AdamW::default());
        let mut state = TrainingState::begin(settings, &model(8), all, (5, 41)).unwrap();
        let count = u8::try_from(state.value_count()).unwrap();
        let values: Vec<_> = (0..count).map(f32::from).collect();
        state.write(StateKind::Values, 0, &values).unwrap();
        let checkpoint = Checkpoint { state, ..checkpoint() };
        checkpoint.write(&path).unwrap();
        assert_eq!(Checkpoint::read(&path, &model(8)).unwrap(), checkpoint);
    }
}

/// One from before there was DoRA has none.
#[test]
fn a_checkpoint_of_magnitudes_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let plain = checkpoint();
    let config =
        AdapterConfig { weight_decomposed: true, ..plain.state.adapter().config().clone() };
    let all = Span::new(0, 2).unwrap();
    let settings = (config, plain.state.settings());
    let mut state = TrainingState::begin(settings, &model(8), all, (5, 41)).unwrap();
    let count = u8::try_from(state.adapter().magnitude_count(all)).unwrap();
    state.set_magnitudes(&(1..=count).map(f32::from).collect::<Vec<_>>()).unwrap();
    let checkpoint = Checkpoint { state, ..plain.clone() };
    checkpoint.write(&path).unwrap();
    assert_eq!(Checkpoint::read(&path, &model(8)).unwrap(), checkpoint);

    plain.write(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let key = b"weight_decomposed";
    let place = bytes.windows(key.len()).position(|bytes| bytes == key).unwrap();
    let mut older = bytes.clone();
    older[place..place + key.len()].copy_from_slice(b"something_unknown");
    fs::write(&path, older).unwrap();
    assert_eq!(Checkpoint::read(&path, &model(8)).unwrap(), plain);
}

#[test]
fn a_checkpoint_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let checkpoint = checkpoint();
    checkpoint.write(&path).unwrap();
    assert_eq!(Checkpoint::read(&path, &model(8)).unwrap(), checkpoint);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    let bytes = fs::read(&path).unwrap();
    let header = umbel_shard::safetensors::parse_header(&bytes, bytes.len() as u64).unwrap();
    assert_eq!(header.tensors().len(), 3);
}

#[test]
fn what_was_there_stays_where_a_checkpoint_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let mut checkpoint = checkpoint();
    checkpoint.write(&path).unwrap();
    let before = fs::read(&path).unwrap();
    // In the way of the file that is written first.
    fs::create_dir(path.with_extension("part")).unwrap();
    checkpoint.sequences += 1;
    assert!(matches!(checkpoint.write(&path), Err(CheckpointError::File { .. })));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn broken_files_and_those_of_other_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    checkpoint().write(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    // A wider model has more values than the file.
    assert!(Checkpoint::read(&path, &model(16)).is_err());
    for length in [0, 5, 12, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(Checkpoint::read(&path, &model(8)).is_err(), "{length} bytes");
    }
    let mut huge = bytes.clone();
    huge[..8].fill(0xff);
    fs::write(&path, huge).unwrap();
    let refused = Checkpoint::read(&path, &model(8)).unwrap_err();
    assert!(matches!(refused, CheckpointError::Malformed { what: "its header" }));
    let mut infinite = bytes;
    infinite.truncate(infinite.len() - 4);
    infinite.extend(f32::INFINITY.to_le_bytes());
    fs::write(&path, infinite).unwrap();
    let refused = Checkpoint::read(&path, &model(8)).unwrap_err();
    assert!(matches!(refused, CheckpointError::Malformed { what: "its values" }));
}
