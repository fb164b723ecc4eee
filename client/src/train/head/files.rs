//! A head on disk: one file of safetensors, with what it is in its metadata.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use umbel_engine::train::AdamW;
use umbel_shard::WeightType;
use umbel_shard::safetensors::{StoredType, parse_header};

use super::{HeadError, Linear};

/// What it is called in its folder.
pub const HEAD_FILE: &str = "head.safetensors";

/// The longest file that is read: heads have some thousand values for each label.
const BYTES_MAX: u64 = 1 << 30;

/// Under which name the metadata has what the head is.
const METADATA: &str = "umbel_head";

/// Writes layers under their names, and `about`, which says what they are. The file is written beside its
/// place first, so that what was there survives a full disk.
///
/// # Errors
/// [`HeadError::File`] where the system refuses.
pub fn save(folder: &Path, about: &Value, layers: &[(&str, &Linear)]) -> Result<(), HeadError> {
    let mut header = json!({ "__metadata__": { METADATA: about.to_string(), "format": "pt" } });
    let mut values = Vec::new();
    for (name, layer) in layers {
        let (weight, bias) = layer.values().split_at(layer.rows() * layer.columns());
        let weight = ("weight", vec![layer.rows(), layer.columns()], weight);
        for (part, shape, tensor) in [weight, ("bias", vec![layer.rows()], bias)] {
            let start = values.len();
            values.extend(tensor.iter().flat_map(|value| value.to_le_bytes()));
            let offsets = [start, values.len()];
            header[format!("{name}.{part}")] =
                json!({ "dtype": "F32", "shape": shape, "data_offsets": offsets });
        }
    }
    let header = header.to_string().into_bytes();
    fs::create_dir_all(folder)?;
    let part = folder.join(HEAD_FILE).with_extension("part");
    let write = || {
        let mut file = File::create(&part)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        file.write_all(&values)?;
        file.sync_all()?;
        fs::rename(&part, folder.join(HEAD_FILE))
    };
    write().map_err(|error| {
        // Half a file would take room that a full disk lacks; that it cannot go away changes nothing.
        let _stays = fs::remove_file(&part);
        HeadError::File(error)
    })
}

/// Reads what [`save`] wrote: what the layers are, and the layers by their names, whose optimizers begin
/// anew.
///
/// # Errors
/// [`HeadError`] where there is no such file, or it is broken.
pub fn load(
    folder: &Path,
    settings: AdamW,
) -> Result<(Value, BTreeMap<String, Linear>), HeadError> {
    let path = folder.join(HEAD_FILE);
    if fs::metadata(&path)?.len() > BYTES_MAX {
        return Err(HeadError::Malformed { what: "its length" });
    }
    let bytes = fs::read(path)?;
    let broken = || HeadError::Malformed { what: "its header" };
    let header = parse_header(&bytes, bytes.len() as u64).map_err(|_| broken())?;
    let about = about(&bytes).ok_or_else(broken)?;
    let read = |name: &str| -> Option<(Vec<usize>, Vec<f32>)> {
        let tensor = header.tensors().get(name)?;
        let start = usize::try_from(tensor.offset).ok()?;
        let bytes = bytes.get(start..)?.get(..usize::try_from(tensor.bytes).ok()?)?;
        let is_float = matches!(tensor.stored_type, StoredType::Supported(WeightType::F32));
        let values: Vec<_> =
            bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        let sound = is_float && values.iter().all(|value| value.is_finite());
        sound.then(|| (tensor.shape.clone(), values))
    };
    let mut layers = BTreeMap::new();
    for name in header.tensors().keys().filter_map(|name| name.strip_suffix(".weight")) {
        let layer = read(&format!("{name}.weight")).zip(read(&format!("{name}.bias")));
        let broken = HeadError::Malformed { what: "one of its layers" };
        let Some(((shape, mut values), (of_bias, bias))) = layer else { return Err(broken) };
        let &[rows, columns] = &*shape else { return Err(broken) };
        if of_bias != [rows] {
            return Err(broken);
        }
        values.extend(bias);
        layers.insert(name.to_owned(), Linear::of(rows, columns, values, settings)?);
    }
    Ok((about, layers))
}

/// What the head is, as its metadata says.
fn about(bytes: &[u8]) -> Option<Value> {
    let length = u64::from_le_bytes(*bytes.first_chunk()?);
    let header = bytes.get(8..)?.get(..usize::try_from(length).ok()?)?;
    let header: Value = serde_json::from_slice(header).ok()?;
    serde_json::from_str(header["__metadata__"][METADATA].as_str()?).ok()
}
