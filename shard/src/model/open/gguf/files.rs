//! The files of a GGUF model: one, or the parts into which `llama-gguf-split` has cut it.
//!
//! Each part is a GGUF file with some of the tensors, and says how many there are and which it is; the
//! first has the metadata of the model. What belongs together is called `NAME-00001-of-00003.gguf`.

use std::path::{Path, PathBuf};

use super::super::super::OpenModelError;
use crate::config::ConfigError;
use crate::gguf::{self, GgufHeader};
use crate::mapping::Mapping;
use crate::store::ReadFileError;
use crate::weight::WeightType;

/// The tensor of the factors by which Llama 3.1 and later files stretch their context.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// Digits of the numbers in a part's name.
const NUMBER_DIGITS: usize = 5;

/// A GGUF model, whose files are all here.
pub(super) struct GgufFiles {
    /// The metadata, and the tensors of all files.
    pub(super) header: GgufHeader,
    /// The values of `rope_freqs.weight`, where there are some.
    pub(super) rope_factors: Option<Vec<f32>>,
    /// Where each file is, and its length.
    pub(super) files: Vec<(PathBuf, u64)>,
}

impl GgufFiles {
    /// Reads the headers of a file, and of all others where it is one part of several.
    pub(super) fn read(path: &Path) -> Result<Self, OpenModelError> {
        let named = Self::read_one(path)?;
        match named.number("split.count") {
            None | Some(0 | 1) => Ok(named),
            Some(count) => {
                let name = PartName::parse(path).filter(|name| name.count == count);
                let name =
                    name.ok_or_else(|| OpenModelError::PartName { path: path.to_owned() })?;
                Self::read_parts(&name, path)
            }
        }
    }

    fn read_parts(name: &PartName, named: &Path) -> Result<Self, OpenModelError> {
        let part = |number| -> Result<Self, OpenModelError> {
            let path = name.path(number);
            if !path.is_file() {
                let (named, count) = (named.to_owned(), name.count);
                return Err(OpenModelError::MissingPart { part: path, named, count });
            }
            let part = Self::read_one(&path)?;
            let placed = (part.number("split.no"), part.number("split.count"));
            if placed != (Some(number), Some(name.count)) {
                return Err(OpenModelError::OtherPart { path });
            }
            Ok(part)
        };
        let mut whole = part(0)?;
        for number in 1..name.count {
            let part = part(number)?;
            if !whole.header.join(part.header, whole.files.len()) {
                return Err(OpenModelError::OtherPart { path: name.path(number) });
            }
            whole.rope_factors = whole.rope_factors.or(part.rope_factors);
            whole.files.extend(part.files);
        }
        let tensors = whole.number("split.tensors.count");
        if tensors.is_some_and(|count| count != whole.header.tensors().len() as u64) {
            return Err(OpenModelError::OtherPart { path: named.to_owned() });
        }
        Ok(whole)
    }

    /// Reads one header. The file is mapped only meanwhile, so that the vocabulary's pages do not stay
    /// resident.
    fn read_one(path: &Path) -> Result<Self, OpenModelError> {
        let mapping = Mapping::open(path).map_err(|source| ReadFileError::io(path, source))?;
        let bytes = mapping.bytes();
        let header = gguf::parse_header(bytes)
            .map_err(|source| OpenModelError::Gguf { path: path.to_owned(), source })?;
        let rope_factors = rope_factors(&header, bytes)
            .map_err(|source| OpenModelError::Config { path: path.to_owned(), source })?;
        Ok(Self { header, rope_factors, files: vec![(path.to_owned(), bytes.len() as u64)] })
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.header.metadata().get(key)?.as_unsigned()
    }
}

/// What a model in this file is called: of a part the name that all parts share.
pub(in super::super) fn model_name(path: &Path) -> String {
    match PartName::parse(path) {
        Some(part) => part.stem.to_owned(),
        None => path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
    }
}

/// How a part is called.
struct PartName<'a> {
    path: &'a Path,
    stem: &'a str,
    count: u64,
    extension: &'a str,
}

impl<'a> PartName<'a> {
    fn parse(path: &'a Path) -> Option<Self> {
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<u64>().ok().filter(|_| plain && digits.len() == NUMBER_DIGITS)
        };
        let (name, extension) = path.file_name()?.to_str()?.rsplit_once('.')?;
        let (name, count) = name.rsplit_once("-of-")?;
        let (stem, own) = name.rsplit_once('-')?;
        number(own)?;
        Some(Self { path, stem, count: number(count)?, extension })
    }

    /// Where part `number` is, counted from 0.
    fn path(&self, number: u64) -> PathBuf {
        let Self { stem, count, extension, .. } = self;
        self.path.with_file_name(format!("{stem}-{:05}-of-{count:05}.{extension}", number + 1))
    }
}

fn rope_factors(header: &GgufHeader, bytes: &[u8]) -> Result<Option<Vec<f32>>, ConfigError> {
    let Some(tensor) = header.tensors().get(ROPE_FACTORS) else {
        return Ok(None);
    };
    if tensor.weight_type != WeightType::F32 {
        let (field, found) = (ROPE_FACTORS.to_owned(), tensor.weight_type.name().to_owned());
        return Err(ConfigError::Unsupported { field, found });
    }
    let range = usize::try_from(tensor.offset).ok().zip(usize::try_from(tensor.bytes).ok());
    let values = range.and_then(|(start, length)| bytes.get(start..start.checked_add(length)?));
    let missing = || ConfigError::Missing { field: ROPE_FACTORS.to_owned() };
    let quads = values.ok_or_else(missing)?.as_chunks::<4>().0;
    Ok(Some(quads.iter().map(|quad| f32::from_le_bytes(*quad)).collect()))
}
