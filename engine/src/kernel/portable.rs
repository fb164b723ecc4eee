//! The inner loops for any machine: plain loops over arrays, which compilers turn into vectors.

pub(super) mod attention;
mod packed_dense;
pub(super) mod packed_quantized;

pub(super) use self::packed_dense::multiply_tile;
