//! Blocks on NVIDIA's GPUs.
//!
//! One binary runs with and without a GPU: the driver is opened at run time (`cudarc` with dynamic
//! loading), and the kernels are our own, in `engine/cuda`, compiled to PTX that is kept beside them and
//! that the driver compiles for its device. No other library of CUDA is needed to build or to run.
//!
//! | module | what it holds |
//! |---|---|
//! | `driver` | memory, streams, kernels, graphs |
//! | `program` | our kernels by name |
//! | `cells` | how matrices are packed |
//! | `matrix` | a matrix on the device, and its products |
//! | `block`, `span` | the blocks of a model |
//! | `adapter`, `adapt` | what adapters add to products |
//! | `cache` | the paged cache |
//! | `pass` | one pass: copies, kernels, graphs |
//! | `norm` | the norm before a matrix |
//! | `head` | what stands behind the last block |
//! | `train` | whole sequences forward, and gradients back |
//! | `gpu` | the device, and what all spans on it share |

mod adapt;
mod adapter;
mod block;
mod cache;
mod cells;
mod driver;
mod gpu;
mod head;
mod matrix;
mod norm;
mod pass;
mod program;
mod span;
mod train;

pub(crate) use cache::{DeviceCache, DevicePage, PagePool, PrepareError, page_bytes};
pub use driver::{CudaError, OpenGpuError};
pub use gpu::Gpu;
pub(crate) use head::{HeadOnGpu, ROWS_TOGETHER as HEAD_ROWS_TOGETHER};
pub(crate) use pass::SessionRows;
pub use program::Kernels;
pub(crate) use span::{GpuSpan, LoadGpuSpanError};
pub(crate) use train::{
    BlockGradients, GpuBackward, GpuForward, GpuTraining, HEAD_SIZE_MAX as GPU_HEAD_SIZE_MAX,
    PairGradient,
};
