//! Metadata values.
//!
//! The format has thirteen types; a reader has no use for the width of a number, so that here there
//! are six.

use super::GgufError;
use super::cursor::Cursor;

/// A value in the metadata of a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number without a sign, of 8 to 64 bits.
    Unsigned(u64),
    /// A number with a sign, of 8 to 64 bits.
    Signed(i64),
    /// A binary32 or binary64.
    Float(f64),
    /// A truth value.
    Flag(bool),
    /// A text.
    Text(String),
    /// Values of one type.
    Array(Array),
}

/// Values of one type, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Numbers without a sign.
    Unsigned(Vec<u64>),
    /// Numbers with a sign.
    Signed(Vec<i64>),
    /// Binary32 or binary64.
    Floats(Vec<f64>),
    /// Truth values.
    Flags(Vec<bool>),
    /// Texts.
    Texts(Texts),
    /// Arrays.
    Arrays(Vec<Array>),
}

/// Many short texts in one piece of memory: a vocabulary of a hundred thousand tokens would else be
/// as many allocations, which a process that has no use for it gives back one page at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Texts {
    joined: String,
    /// Where each text ends in `joined`.
    ends: Vec<usize>,
}

impl Texts {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The texts in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.joined[start..end])
    }

    fn push(&mut self, text: &str) {
        self.joined.push_str(text);
        self.ends.push(self.joined.len());
    }
}

impl Value {
    /// The text, where it is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The truth value, where it is one.
    #[must_use]
    pub const fn as_flag(&self) -> Option<bool> {
        if let Self::Flag(flag) = self { Some(*flag) } else { None }
    }

    /// The number, where it is a whole one that is not negative.
    #[must_use]
    pub fn as_unsigned(&self) -> Option<u64> {
        match self {
            Self::Unsigned(number) => Some(*number),
            Self::Signed(number) => u64::try_from(*number).ok(),
            Self::Float(_) | Self::Flag(_) | Self::Text(_) | Self::Array(_) => None,
        }
    }

    /// The number, where it is one.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        reason = "whole numbers stand for factors, which are small"
    )]
    pub const fn as_float(&self) -> Option<f64> {
        match self {
            Self::Unsigned(number) => Some(*number as f64),
            Self::Signed(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            Self::Flag(_) | Self::Text(_) | Self::Array(_) => None,
        }
    }

    /// The texts, where it is an array of them.
    #[must_use]
    pub const fn as_texts(&self) -> Option<&Texts> {
        if let Self::Array(Array::Texts(texts)) = self { Some(texts) } else { None }
    }

    /// The numbers, where it is an array of whole ones.
    #[must_use]
    pub fn as_numbers(&self) -> Option<Vec<i64>> {
        match self {
            Self::Array(Array::Signed(numbers)) => Some(numbers.clone()),
            Self::Array(Array::Unsigned(numbers)) => {
                numbers.iter().map(|&number| i64::try_from(number).ok()).collect()
            }
            Self::Array(
                Array::Floats(_) | Array::Flags(_) | Array::Texts(_) | Array::Arrays(_),
            )
            | Self::Unsigned(_)
            | Self::Signed(_)
            | Self::Float(_)
            | Self::Flag(_)
            | Self::Text(_) => None,
        }
    }

    /// The value for a message: short, whatever it is.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Unsigned(number) => number.to_string(),
            Self::Signed(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
            Self::Array(_) => "an array".to_owned(),
        }
    }
}

/// Longest text: chat templates have some ten thousand bytes.
const TEXT_BYTES_MAX: u64 = 16 << 20;
/// Most elements of all arrays together: four times those of the largest vocabularies, which have
/// 262,144 tokens with scores and types and up to 600,000 merges.
pub(super) const ELEMENTS_MAX: u64 = 1 << 23;
/// How deep arrays may lie in each other; no known key has any.
const DEPTH_MAX: u32 = 3;

/// The numbers that the format gives to the types.
mod code {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const FLAG: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

const WHAT: &str = "a metadata value";

/// Reads the values of one file's metadata.
pub(super) struct Values {
    elements_left: u64,
}

impl Values {
    pub(super) const fn new() -> Self {
        Self { elements_left: ELEMENTS_MAX }
    }

    /// The value of `key`, which begins with the number of its type.
    pub(super) fn read(&mut self, cursor: &mut Cursor, key: &str) -> Result<Value, GgufError> {
        let kind = cursor.u32(WHAT)?;
        Ok(match kind {
            code::U8 | code::U16 | code::U32 | code::U64 => {
                Value::Unsigned(unsigned(cursor, kind)?)
            }
            code::I8 | code::I16 | code::I32 | code::I64 => Value::Signed(signed(cursor, kind)?),
            code::F32 | code::F64 => Value::Float(float(cursor, kind)?),
            code::FLAG => Value::Flag(cursor.array::<1>(WHAT)? != [0]),
            code::TEXT => Value::Text(cursor.text(TEXT_BYTES_MAX, WHAT)?.to_owned()),
            code::ARRAY => Value::Array(self.array(cursor, key, DEPTH_MAX)?),
            found => {
                return Err(GgufError::UnknownValueType { key: key.to_owned(), found });
            }
        })
    }

    fn array(&mut self, cursor: &mut Cursor, key: &str, depth: u32) -> Result<Array, GgufError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(GgufError::TooDeep { key: key.to_owned() });
        };
        let kind = cursor.u32(WHAT)?;
        let bytes_each = match kind {
            code::U8 | code::I8 | code::FLAG => 1,
            code::U16 | code::I16 => 2,
            code::U32 | code::I32 | code::F32 => 4,
            code::U64 | code::I64 | code::F64 | code::TEXT => 8,
            code::ARRAY => 12,
            found => {
                return Err(GgufError::UnknownValueType { key: key.to_owned(), found });
            }
        };
        let count = cursor.count("array elements", bytes_each, self.elements_left)?;
        self.elements_left -= count;
        Ok(match kind {
            code::U8 | code::U16 | code::U32 | code::U64 => {
                Array::Unsigned(repeat(count, || unsigned(cursor, kind))?)
            }
            code::I8 | code::I16 | code::I32 | code::I64 => {
                Array::Signed(repeat(count, || signed(cursor, kind))?)
            }
            code::F32 | code::F64 => Array::Floats(repeat(count, || float(cursor, kind))?),
            code::FLAG => Array::Flags(repeat(count, || Ok(cursor.array::<1>(WHAT)? != [0]))?),
            code::TEXT => Array::Texts(texts(cursor, count)?),
            _ => Array::Arrays(repeat(count, || self.array(cursor, key, depth))?),
        })
    }
}

fn repeat<T>(
    count: u64,
    mut one: impl FnMut() -> Result<T, GgufError>,
) -> Result<Vec<T>, GgufError> {
    (0..count).map(|_| one()).collect()
}

fn texts(cursor: &mut Cursor, count: u64) -> Result<Texts, GgufError> {
    let mut texts = Texts::default();
    for _ in 0..count {
        texts.push(cursor.text(TEXT_BYTES_MAX, WHAT)?);
    }
    Ok(texts)
}

fn unsigned(cursor: &mut Cursor, kind: u32) -> Result<u64, GgufError> {
    Ok(match kind {
        code::U8 => u8::from_le_bytes(cursor.array(WHAT)?).into(),
        code::U16 => u16::from_le_bytes(cursor.array(WHAT)?).into(),
        code::U32 => u32::from_le_bytes(cursor.array(WHAT)?).into(),
        _ => u64::from_le_bytes(cursor.array(WHAT)?),
    })
}

fn signed(cursor: &mut Cursor, kind: u32) -> Result<i64, GgufError> {
    Ok(match kind {
        code::I8 => i8::from_le_bytes(cursor.array(WHAT)?).into(),
        code::I16 => i16::from_le_bytes(cursor.array(WHAT)?).into(),
        code::I32 => i32::from_le_bytes(cursor.array(WHAT)?).into(),
        _ => i64::from_le_bytes(cursor.array(WHAT)?),
    })
}

fn float(cursor: &mut Cursor, kind: u32) -> Result<f64, GgufError> {
    Ok(match kind {
        code::F32 => f32::from_le_bytes(cursor.array(WHAT)?).into(),
        _ => f64::from_le_bytes(cursor.array(WHAT)?),
    })
}
