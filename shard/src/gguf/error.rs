//! Why bytes are no usable GGUF file.

/// A file that is broken, cut off, lying, or of a type that is not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// The first four bytes are other ones.
    #[error("not a GGUF file (it does not begin with GGUF)")]
    NotGguf,
    /// A file for machines of the other byte order.
    #[error("a big-endian GGUF file; convert the model again for little-endian machines")]
    BigEndian,
    /// A version of the format that is not read.
    #[error("version {version} of GGUF is not supported; versions 2 and 3 are")]
    UnsupportedVersion {
        /// The version that the file names.
        version: u32,
    },
    /// The file ends before what it announces.
    #[error("the file ends inside {what}, at byte {offset}: it is cut off or corrupt")]
    CutOff {
        /// What was read.
        what: &'static str,
        /// Where in the file that begins.
        offset: u64,
    },
    /// More of something than any model has.
    #[error("the file claims {found} {what}; at most {max} are read")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many it claims.
        found: u64,
        /// How many are allowed.
        max: u64,
    },
    /// A text that is not UTF-8.
    #[error("the text at byte {offset} is not UTF-8")]
    NotUtf8 {
        /// Where in the file it begins.
        offset: u64,
    },
    /// A metadata value of an unknown type.
    #[error("the value of {key} has the unknown type {found}")]
    UnknownValueType {
        /// The key.
        key: String,
        /// The number of the type.
        found: u32,
    },
    /// Arrays inside arrays inside arrays.
    #[error("the arrays in {key} are nested too deeply")]
    TooDeep {
        /// The key.
        key: String,
    },
    /// A key or a tensor that the file has twice.
    #[error("{name} is in the file twice")]
    Duplicate {
        /// Its name.
        name: String,
    },
    /// An alignment that is no power of two, or absurdly large.
    #[error("the alignment of {found} is not a power of two up to {max}")]
    Alignment {
        /// What `general.alignment` holds.
        found: String,
        /// The largest allowed.
        max: u64,
    },
    /// A tensor of a type that the engine does not multiply.
    #[error(
        "tensor {tensor} has the type {found}, which is not supported; supported are F32, F16, \
         BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K"
    )]
    UnsupportedType {
        /// The tensor's name.
        tensor: String,
        /// The type's name, or its number where it has none.
        found: String,
    },
    /// Dimensions that no tensor of the type can have.
    #[error(
        "tensor {tensor} cannot have the dimensions {dimensions:?} with the type {weight_type}"
    )]
    Shape {
        /// The tensor's name.
        tensor: String,
        /// Its dimensions, in the file's order.
        dimensions: Vec<u64>,
        /// Its type.
        weight_type: &'static str,
    },
    /// A tensor that does not begin where the file's alignment asks.
    #[error(
        "tensor {tensor} begins at {offset}, which is no multiple of the alignment {alignment}"
    )]
    Misaligned {
        /// The tensor's name.
        tensor: String,
        /// Where it begins, counted from the start of the tensors' bytes.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor that goes on after the end of the file.
    #[error("tensor {tensor} ends beyond the file of {file_bytes} bytes: it is cut off or corrupt")]
    OutOfFile {
        /// The tensor's name.
        tensor: String,
        /// Bytes of the file.
        file_bytes: u64,
    },
    /// Two tensors that share bytes.
    #[error("the tensors {first} and {second} overlap")]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The one that begins inside it.
        second: String,
    },
}
