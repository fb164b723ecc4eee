//! Umbel from Python: `import umbel`.
//!
//! | module | what it holds |
//! |---|---|
//! | `swarm` | `umbel.Swarm` |
//! | `model` | `umbel.Model`: text and tokens, and what begins everything else |
//! | `generation` | `umbel.Generation`, an iterator over `umbel.Token` |
//! | `session` | `umbel.Session`: a cache that several answers share |
//! | `blocks` | `umbel.Blocks`: forward, and gradients back |
//! | `options` | keyword arguments |
//! | `tensor` | binary32 values as Python passes them around |
//! | `waiting` | waiting for the network without holding up Python |
//! | `error` | exceptions |

mod blocks;
mod error;
mod generation;
mod model;
mod options;
mod session;
mod swarm;
mod tensor;
mod waiting;

/// Runs language models on a swarm of machines: `umbel.Swarm(address).model(name)`.
#[pyo3::pymodule]
mod umbel {
    #[pymodule_export]
    use crate::blocks::{Blocks, Passed};
    #[pymodule_export]
    use crate::error::{Error, NotServedError};
    #[pymodule_export]
    use crate::generation::{Generation, Token};
    #[pymodule_export]
    use crate::model::Model;
    #[pymodule_export]
    use crate::session::Session;
    #[pymodule_export]
    use crate::swarm::Swarm;
}
