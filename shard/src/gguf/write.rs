//! Writes GGUF v3 files: for tests, benchmarks, and tools that convert checkpoints.

use std::io::{self, Write};

use super::ggml_type::type_number;
use super::header::ALIGNMENT_KEY;
use super::random::RandomBlocks;
use crate::weight::WeightType;

/// A metadata value with the width in which it is written.
#[derive(Debug, Clone, PartialEq)]
pub enum WriteValue {
    /// 16 bits without a sign.
    U16(u16),
    /// 32 bits without a sign.
    U32(u32),
    /// 64 bits without a sign.
    U64(u64),
    /// 32 bits with a sign.
    I32(i32),
    /// Binary32.
    F32(f32),
    /// A truth value.
    Flag(bool),
    /// A text.
    Text(String),
    /// An array of texts.
    Texts(Vec<String>),
    /// An array of binary32.
    F32s(Vec<f32>),
    /// An array of numbers of 32 bits with a sign.
    I32s(Vec<i32>),
}

impl From<&str> for WriteValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A GGUF file that is being put together.
#[derive(Debug, Default)]
pub struct GgufWriter {
    metadata: Vec<(String, WriteValue)>,
    tensors: Vec<WriteTensor>,
}

#[derive(Debug)]
struct WriteTensor {
    name: String,
    weight_type: WeightType,
    shape: Vec<usize>,
    content: Content,
}

/// The bytes of a tensor.
#[derive(Debug)]
enum Content {
    Given(Vec<u8>),
    /// Made while they are written, so that a large file needs no memory.
    Random(RandomBlocks),
}

impl Content {
    fn bytes(&self) -> usize {
        match self {
            Self::Given(bytes) => bytes.len(),
            Self::Random(blocks) => blocks.bytes(),
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Given(bytes) => out.write_all(bytes),
            Self::Random(blocks) => blocks.write(out),
        }
    }
}

/// The alignment that is written: the format's default.
const ALIGNMENT: usize = 32;

impl GgufWriter {
    /// A file with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metadata value.
    pub fn value(&mut self, key: &str, value: impl Into<WriteValue>) -> &mut Self {
        debug_assert_ne!(key, ALIGNMENT_KEY, "the alignment is the format's default");
        self.metadata.push((key.to_owned(), value.into()));
        self
    }

    /// Adds a tensor; `shape` has the slowest dimension first, and `bytes` what it asks for.
    pub fn tensor(
        &mut self,
        name: &str,
        weight_type: WeightType,
        shape: &[usize],
        bytes: Vec<u8>,
    ) -> &mut Self {
        self.push(name, weight_type, shape, Content::Given(bytes))
    }

    /// Adds a tensor of random values.
    pub(super) fn random_tensor(
        &mut self,
        name: &str,
        weight_type: WeightType,
        shape: &[usize],
        seed: u64,
    ) -> &mut Self {
        let blocks = RandomBlocks::new(weight_type, shape, seed);
        self.push(name, weight_type, shape, Content::Random(blocks))
    }

    fn push(
        &mut self,
        name: &str,
        weight_type: WeightType,
        shape: &[usize],
        content: Content,
    ) -> &mut Self {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        self.tensors.push(WriteTensor { name, weight_type, shape, content });
        self
    }

    /// The same in `count` files, as `llama-gguf-split` of llama.cpp cuts one: the first has the metadata.
    #[must_use]
    pub fn into_parts(self, count: u16) -> Vec<Self> {
        let Self { mut metadata, tensors } = self;
        let total = i32::try_from(tensors.len()).expect("no model has so many tensors");
        let each = tensors.len().div_ceil(usize::from(count).max(1));
        let mut tensors = tensors.into_iter();
        let part = |number| {
            let metadata = std::mem::take(&mut metadata);
            let mut part = Self { metadata, tensors: tensors.by_ref().take(each).collect() };
            part.value("split.no", WriteValue::U16(number))
                .value("split.count", WriteValue::U16(count))
                .value("split.tensors.count", WriteValue::I32(total));
            part
        };
        (0..count).map(part).collect()
    }

    /// The whole file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out).expect("memory takes everything");
        out
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let header = self.header();
        out.write_all(&header)?;
        let mut written = header.len();
        for tensor in &self.tensors {
            // Offsets are counted from the header's end, which is aligned as well.
            let start = written.next_multiple_of(ALIGNMENT);
            out.write_all(&[0; ALIGNMENT][..start - written])?;
            tensor.content.write(out)?;
            written = start + tensor.content.bytes();
        }
        Ok(())
    }

    fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        number(&mut out, self.tensors.len());
        number(&mut out, self.metadata.len());
        for (key, value) in &self.metadata {
            text(&mut out, key);
            write_value(&mut out, value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            write_dimensions(&mut out, &tensor.shape);
            out.extend(type_number(tensor.weight_type).to_le_bytes());
            number(&mut out, offset);
            offset = (offset + tensor.content.bytes()).next_multiple_of(ALIGNMENT);
        }
        out
    }
}

fn write_dimensions(out: &mut Vec<u8>, shape: &[usize]) {
    #[allow(clippy::cast_possible_truncation, reason = "tensors have up to four dimensions")]
    out.extend((shape.len() as u32).to_le_bytes());
    for &size in shape.iter().rev() {
        number(out, size);
    }
}

fn write_value(out: &mut Vec<u8>, value: &WriteValue) {
    let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
    let array = |out: &mut Vec<u8>, element: u32, count: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(element.to_le_bytes());
        number(out, count);
    };
    match value {
        WriteValue::U16(value) => {
            kind(out, 2);
            out.extend(value.to_le_bytes());
        }
        WriteValue::U32(value) => {
            kind(out, 4);
            out.extend(value.to_le_bytes());
        }
        WriteValue::U64(value) => {
            kind(out, 10);
            out.extend(value.to_le_bytes());
        }
        WriteValue::I32(value) => {
            kind(out, 5);
            out.extend(value.to_le_bytes());
        }
        WriteValue::F32(value) => {
            kind(out, 6);
            out.extend(value.to_le_bytes());
        }
        WriteValue::Flag(value) => {
            kind(out, 7);
            out.push(u8::from(*value));
        }
        WriteValue::Text(value) => {
            kind(out, 8);
            text(out, value);
        }
        WriteValue::Texts(values) => {
            array(out, 8, values.len());
            values.iter().for_each(|value| text(out, value));
        }
        WriteValue::F32s(values) => {
            array(out, 6, values.len());
            values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        }
        WriteValue::I32s(values) => {
            array(out, 5, values.len());
            values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        }
    }
}

fn text(out: &mut Vec<u8>, value: &str) {
    number(out, value.len());
    out.extend_from_slice(value.as_bytes());
}

fn number(out: &mut Vec<u8>, value: usize) {
    out.extend((value as u64).to_le_bytes());
}
