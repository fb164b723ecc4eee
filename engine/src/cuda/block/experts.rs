//! The experts of a block in a device's memory.

use umbel_shard::layout::{ExpertNames, ExpertPart};
use umbel_shard::{Experts, ModelConfig, Weight};

use super::{gate_up_rows, rows_of};
use crate::checkpoint::LoadTensorError;
use crate::cuda::driver::{Buffer, CudaError};
use crate::cuda::gpu::Gpu;
use crate::cuda::matrix::Stacked;
use crate::kernel::dequantize_row;

/// The experts of a block, and what chooses among them.
#[derive(Debug)]
pub(in crate::cuda) struct GpuExperts {
    /// In binary32, `[experts, hidden]`.
    pub(in crate::cuda) router: Buffer,
    /// The gates and up projections of each, as a block without experts has them.
    pub(in crate::cuda) gate_up: Stacked,
    pub(in crate::cuda) down: Stacked,
}

/// Whether a tensor of this name is the matrix that chooses among experts.
pub(super) fn is_router(name: &str) -> bool {
    ExpertPart::of(name) == Some(ExpertPart::Router)
}

/// Whether a tensor of this name is the last matrix of an expert.
pub(super) fn is_down_of_expert(name: &str) -> bool {
    ExpertPart::of(name) == Some(ExpertPart::Down)
}

/// The tensors of a block's experts, as its checkpoint has them.
pub(super) struct ExpertTensors {
    router: Weight,
    /// Gate, up and down of each.
    experts: Vec<[Weight; 3]>,
}

impl ExpertTensors {
    /// Those that `get` gives: by the name within the block, with rows and columns.
    pub(super) fn of(
        config: &ModelConfig,
        experts: Experts,
        get: &impl Fn(&str, usize, usize) -> Result<Weight, LoadTensorError>,
    ) -> Result<Self, LoadTensorError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let names = ExpertNames::of(config.family);
        let expert = |index| {
            let [gate, up, down] = names.expert(index);
            let (gate, up) = (get(&gate, inner, hidden)?, get(&up, inner, hidden)?);
            Ok([gate, up, get(&down, hidden, inner)?])
        };
        Ok(Self {
            router: get(names.router, experts.count, hidden)?,
            experts: (0..experts.count).map(expert).collect::<Result<_, LoadTensorError>>()?,
        })
    }

    /// The matrices of all experts.
    pub(super) fn all(&self) -> impl Iterator<Item = &Weight> {
        self.experts.iter().flatten()
    }
}

impl GpuExperts {
    pub(super) fn load(gpu: &Gpu, parts: &ExpertTensors, plain: bool) -> Result<Self, CudaError> {
        let ExpertTensors { router, experts } = parts;
        let mut rows = vec![0.0; router.rows() * router.columns()];
        let stored = router.bytes().chunks_exact(router.row_bytes());
        for (bytes, values) in stored.zip(rows.chunks_exact_mut(router.columns())) {
            dequantize_row(router.weight_type(), bytes, values);
        }
        router.release();
        let gates = |index: usize| {
            let [gate, up, _] = &experts[index];
            gate_up_rows([gate, up], plain)
        };
        let down = |index: usize| rows_of(&experts[index][2]);
        Ok(Self {
            router: Buffer::of(gpu.context(), &rows)?,
            gate_up: Stacked::load(gpu, experts.len(), plain, gates)?,
            down: Stacked::load(gpu, experts.len(), plain, down)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use umbel_shard::{Family, layout};

    use super::*;

    /// What memory is counted by, of all families that have experts.
    #[test]
    fn routers_and_down_projections_are_known_by_their_names() {
        let experts = Some(Experts { count: 3, per_token: 2, normalized: true });
        for family in [Family::Mixtral, Family::Qwen3Moe] {
            let config = ModelConfig { family, experts, ..ModelConfig::llama(1) };
            let names: Vec<_> =
                layout::block(&config, 0).into_iter().map(|tensor| tensor.name).collect();
            let count =
                |holds: fn(&str) -> bool| names.iter().filter(|name| holds(name.as_str())).count();
            assert_eq!((count(is_router), count(is_down_of_expert)), (1, 3), "{family}");
        }
        let dense = layout::block(&ModelConfig::llama(1), 0);
        let known = |name: &str| is_router(name) || is_down_of_expert(name);
        assert!(dense.iter().all(|tensor| !known(&tensor.name)));
    }
}
