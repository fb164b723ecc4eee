//! Files for tests of models.

use super::*;

/// The folder of a stored checkpoint.
pub(crate) fn fixture_folder(name: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/checkpoints");
    Path::new(root).join(name)
}

/// Opens a whole model with a cache in `root`.
pub(crate) fn open(root: &Path, path: &Path) -> Result<Model, OpenModelError> {
    let source = ModelSource::parse(path.to_str().unwrap()).unwrap();
    Model::open(&source, &Cache::new(root.join("cache")), PartsNeeded::everything(), &Silent)
}

/// The tensors of all parts.
pub(crate) fn all_weights(model: &Model) -> Weights {
    let span = Span::new(0, model.config().block_count).unwrap();
    let parts = [Part::Embedding, Part::Blocks(span), Part::Head];
    parts
        .map(|part| model.weights(part).unwrap())
        .into_iter()
        .fold(Weights::default(), Weights::and)
}

/// A safetensors file of these tensors, all of them binary32.
pub(crate) fn write_safetensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [u8])>,
) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        let offsets = [start, data.len()];
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": offsets});
        header.insert(name.to_owned(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length, header.as_bytes(), &data].concat()).unwrap();
}

/// A fixture spread over three files: the ends, the even blocks, the odd blocks.
pub(crate) fn write_sharded(folder: &Path, fixture: &str, weights: &Weights) {
    fs::create_dir_all(folder).unwrap();
    fs::copy(fixture_folder(fixture).join("config.json"), folder.join("config.json")).unwrap();
    let file_of = |name: &str| match name.strip_prefix("model.layers.") {
        None => "ends.safetensors",
        Some(rest) if rest.starts_with(['0', '2']) => "blocks-a.safetensors",
        Some(_) => "blocks-b.safetensors",
    };
    for file in ["ends.safetensors", "blocks-a.safetensors", "blocks-b.safetensors"] {
        let own = weights.iter().filter(|(name, _)| file_of(name) == file);
        let tensors = own.map(|(name, weight)| (name, weight.shape(), weight.bytes()));
        write_safetensors(&folder.join(file), tensors);
    }
    let map: serde_json::Map<_, _> =
        weights.iter().map(|(name, _)| (name.to_owned(), file_of(name).into())).collect();
    let index = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}
