//! One transformer block in a device's memory.

mod experts;

use std::sync::atomic::{AtomicU64, Ordering};

use umbel_shard::layout::ExpertPart;
use umbel_shard::manifest::ManifestTensor;
use umbel_shard::{ModelConfig, Weight, WeightType};

use super::adapt::Place;
use super::cells::{Format, Source, packed_bytes};
use super::driver::{Buffer, CudaError};
use super::gpu::Gpu;
use super::matrix::{Matrix, ModuleRows, are_plain, optional};
use super::pass::Geometry;
pub(super) use experts::GpuExperts;
use experts::{ExpertTensors, is_down_of_expert, is_router};

use crate::checkpoint::{Checkpoint, LoadTensorError};
use crate::train::TargetModule;

/// Rows of the gate, and as many of the up projection behind them, in a tile of 16.
const GATED_TILE: usize = 8;

/// A name that no other block of this process has or had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlockId(u64);

impl BlockId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A block of Llama or of one of its relatives.
#[derive(Debug)]
pub(super) struct GpuBlock {
    pub(super) id: BlockId,
    pub(super) input_norm: Buffer,
    /// Queries, keys and values, of one type of weight each; where each begins among the rows of all.
    pub(super) qkv: Vec<(usize, Matrix)>,
    pub(super) qkv_bias: Option<Buffer>,
    pub(super) query_norm: Option<Buffer>,
    pub(super) key_norm: Option<Buffer>,
    pub(super) output: Matrix,
    pub(super) output_bias: Option<Buffer>,
    /// The most recent positions that a token sees; 0 for all.
    pub(super) window: usize,
    pub(super) post_norm: Buffer,
    pub(super) mlp: GpuMlp,
}

/// What stands between a block's second norm and its end.
#[derive(Debug)]
pub(super) enum GpuMlp {
    Dense(DenseMlp),
    Experts(GpuExperts),
}

/// The one MLP that all tokens go through.
#[derive(Debug)]
pub(super) struct DenseMlp {
    pub(super) gate_up: GateUp,
    pub(super) gate_up_bias: Option<Buffer>,
    pub(super) down: Matrix,
    pub(super) down_bias: Option<Buffer>,
}

/// The first matrices of the MLP.
#[derive(Debug)]
pub(super) enum GateUp {
    /// Interleaved, so that the product can gate its features itself.
    Tiles(Matrix),
    /// In binary32: the gates, and behind them the up projection.
    Plain(Matrix),
}

/// A module of the block, as an adapter adds to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Module<'a> {
    /// The matrix that has its rows, perhaps among others.
    pub(super) matrix: &'a Matrix,
    pub(super) rows: ModuleRows,
    /// What is added to products, at the columns of their rows.
    pub(super) bias: Option<&'a Buffer>,
}

impl GpuBlock {
    /// The MLP of a block that has one.
    ///
    /// # Panics
    /// Where experts stand in its place: they are not trained on a device, and nothing adds to them.
    pub(super) fn dense(&self) -> &DenseMlp {
        match &self.mlp {
            GpuMlp::Dense(mlp) => mlp,
            GpuMlp::Experts(_) => panic!("who asks for the one MLP knows that there is one"),
        }
    }

    /// Where a module is that the block has: see [`Geometry::module_shape`].
    pub(super) fn module(&self, geometry: &Geometry, module: TargetModule) -> Module<'_> {
        let Geometry { hidden_size, intermediate_size, heads, kv_heads, head_size, .. } = *geometry;
        let (queries, keys) = (heads * head_size, kv_heads * head_size);
        let projected = |first: usize, size| {
            let run = self.qkv.iter().rev().find(|(start, _)| *start <= first);
            let (start, matrix) = run.expect("the first run begins at 0");
            let place = Place::new(queries + 2 * keys, first);
            let rows = ModuleRows { start: *start, place, size };
            Module { matrix, rows, bias: self.qkv_bias.as_ref() }
        };
        let gated = |second: bool| {
            let DenseMlp { gate_up, gate_up_bias, .. } = self.dense();
            let (matrix, place) = match gate_up {
                GateUp::Tiles(matrix) => (matrix, Place::tiles(matrix.rows(), second)),
                GateUp::Plain(matrix) => {
                    let first = if second { intermediate_size } else { 0 };
                    (matrix, Place::new(matrix.rows(), first))
                }
            };
            let rows = ModuleRows { start: 0, place, size: intermediate_size };
            Module { matrix, rows, bias: gate_up_bias.as_ref() }
        };
        let rows = ModuleRows { start: 0, place: Place::new(hidden_size, 0), size: hidden_size };
        match module {
            TargetModule::Query => projected(0, queries),
            TargetModule::Key => projected(queries, keys),
            TargetModule::Value => projected(queries + keys, keys),
            TargetModule::Output => {
                Module { matrix: &self.output, rows, bias: self.output_bias.as_ref() }
            }
            TargetModule::Gate => gated(false),
            TargetModule::Up => gated(true),
            TargetModule::Down => {
                let DenseMlp { down, down_bias, .. } = self.dense();
                Module { matrix: down, rows, bias: down_bias.as_ref() }
            }
        }
    }
}

/// The tensors of a block, as its checkpoint has them.
struct Tensors {
    q: Weight,
    k: Weight,
    v: Weight,
    o: Weight,
    mlp: MlpTensors,
}

/// Those of its second half.
enum MlpTensors {
    /// Gate, up and down.
    Dense([Weight; 3]),
    Experts(ExpertTensors),
}

impl Tensors {
    fn of(checkpoint: Checkpoint<'_>, index: u32) -> Result<Self, LoadTensorError> {
        let config = checkpoint.config;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.head_count * config.head_size;
        let keys = config.kv_head_count * config.head_size;
        let get = |name: &str, rows, columns| {
            checkpoint.weight(&format!("model.layers.{index}.{name}.weight"), &[rows, columns])
        };
        let mlp = match config.experts {
            None => MlpTensors::Dense([
                get("mlp.gate_proj", inner, hidden)?,
                get("mlp.up_proj", inner, hidden)?,
                get("mlp.down_proj", hidden, inner)?,
            ]),
            Some(experts) => MlpTensors::Experts(ExpertTensors::of(config, experts, &get)?),
        };
        Ok(Self {
            q: get("self_attn.q_proj", queries, hidden)?,
            k: get("self_attn.k_proj", keys, hidden)?,
            v: get("self_attn.v_proj", keys, hidden)?,
            o: get("self_attn.o_proj", hidden, queries)?,
            mlp,
        })
    }

    /// All that are multiplied in the same way: not the router, which is in binary32 in any case.
    fn all(&self) -> Vec<&Weight> {
        let mut all = vec![&self.q, &self.k, &self.v, &self.o];
        match &self.mlp {
            MlpTensors::Dense(parts) => all.extend(parts),
            MlpTensors::Experts(experts) => all.extend(experts.all()),
        }
        all
    }
}

/// Bytes of a device's memory for tensors that are all of a block, or all of an end of a model: cells have
/// room for more scales than some files, and rows that are interleaved are of one type. What a file that
/// is not here has is known by its length alone.
pub(super) fn bytes_of(tensors: &[ManifestTensor]) -> u64 {
    let stored = tensors.iter().map(|tensor| Stored {
        name: &tensor.name,
        shape: &tensor.shape,
        kind: tensor.place.map(|place| place.weight_type),
        bytes: tensor.bytes,
    });
    packed(&stored.collect::<Vec<_>>())
}

/// Whether all matrices among tensors are in binary32, so that what is computed of them is, too.
pub(super) fn all_plain(tensors: &[ManifestTensor]) -> bool {
    let mut matrices =
        tensors.iter().filter(|tensor| tensor.shape.len() == 2 && !is_router(&tensor.name));
    let kind = |tensor: &ManifestTensor| tensor.place.map(|place| place.weight_type);
    matrices.all(|tensor| kind(tensor) == Some(WeightType::F32))
}

/// A tensor in its file.
struct Stored<'a> {
    name: &'a str,
    shape: &'a [usize],
    kind: Option<WeightType>,
    bytes: u64,
}

fn packed(tensors: &[Stored<'_>]) -> u64 {
    let is_gated = |tensor: &Stored<'_>| {
        let of_dense = ["mlp.gate_proj.weight", "mlp.up_proj.weight"];
        of_dense.iter().any(|part| tensor.name.ends_with(part))
            || ExpertPart::of(tensor.name) == Some(ExpertPart::GateUp)
    };
    let gated: Vec<_> = tensors.iter().filter(|tensor| is_gated(tensor)).collect();
    // All experts of a block lie in one matrix.
    let of_several_types = gated.windows(2).any(|pair| pair[0].kind != pair[1].kind);
    let down: Vec<_> = tensors.iter().filter(|tensor| is_down_of_expert(tensor.name)).collect();
    let down_of_several_types = down.windows(2).any(|pair| pair[0].kind != pair[1].kind);
    let mut matrices =
        tensors.iter().filter(|tensor| tensor.shape.len() == 2 && !is_router(tensor.name));
    let plain = matrices.all(|tensor| tensor.kind == Some(WeightType::F32));
    let bytes = |tensor: &Stored<'_>| match (tensor.shape, tensor.kind) {
        (&[rows, columns], Some(_)) if is_router(tensor.name) => {
            (rows * columns * size_of::<f32>()) as u64
        }
        (&[rows, columns], Some(kind)) if !plain => {
            let rounded = of_several_types && is_gated(tensor)
                || down_of_several_types && is_down_of_expert(tensor.name);
            let format = if rounded { Format::Bf16 } else { Format::of(kind) };
            packed_bytes(format, rows, columns) as u64
        }
        (&[values], Some(_)) => (values * size_of::<f32>()) as u64,
        _ => tensor.bytes,
    };
    tensors.iter().map(bytes).sum()
}

/// Why a block is not on the device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadGpuBlockError {
    #[error(transparent)]
    Tensor(#[from] LoadTensorError),
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Whether block `index` is computed in binary32: where its matrices are.
pub(super) fn is_plain(checkpoint: Checkpoint<'_>, index: u32) -> Result<bool, LoadTensorError> {
    Ok(are_plain(Tensors::of(checkpoint, index)?.all()))
}

impl GpuBlock {
    /// Takes block `index` out of a checkpoint; `plain` says to compute it in binary32.
    pub(super) fn load(
        gpu: &Gpu,
        checkpoint: Checkpoint<'_>,
        index: u32,
        plain: bool,
    ) -> Result<Self, LoadGpuBlockError> {
        let config = checkpoint.config;
        let tensors = Tensors::of(checkpoint, index)?;
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let vector = |part: &str, size| checkpoint.vector(&name(part), size);
        let load = |rows: &[Source<'_>], columns| Matrix::load(gpu, rows, columns, plain);
        let biases = Biases::of(config, &vector)?;
        let norm = |part: &str, size| -> Result<Buffer, LoadGpuBlockError> {
            Ok(Buffer::of(gpu.context(), &vector(part, size)?)?)
        };
        let head_norm = |part: &str| {
            config.has_query_key_norms().then(|| norm(part, config.head_size)).transpose()
        };
        let block = Self {
            id: BlockId::next(),
            input_norm: norm("input_layernorm.weight", config.hidden_size)?,
            qkv: load_runs(&[&tensors.q, &tensors.k, &tensors.v], |rows| {
                load(rows, config.hidden_size)
            })?,
            qkv_bias: optional(gpu, biases.qkv.as_deref())?,
            query_norm: head_norm("self_attn.q_norm.weight")?,
            key_norm: head_norm("self_attn.k_norm.weight")?,
            output: load(&rows_of(&tensors.o), tensors.o.columns())?,
            output_bias: optional(gpu, biases.output.as_deref())?,
            window: checkpoint.window(index).unwrap_or(0),
            post_norm: norm("post_attention_layernorm.weight", config.hidden_size)?,
            mlp: match &tensors.mlp {
                MlpTensors::Dense(parts) => {
                    GpuMlp::Dense(DenseMlp::load(gpu, parts, &biases, plain)?)
                }
                MlpTensors::Experts(parts) => GpuMlp::Experts(GpuExperts::load(gpu, parts, plain)?),
            },
        };
        for weight in tensors.all() {
            weight.release();
        }
        Ok(block)
    }
}

impl DenseMlp {
    fn load(
        gpu: &Gpu,
        [gate, up, down]: &[Weight; 3],
        biases: &Biases,
        plain: bool,
    ) -> Result<Self, CudaError> {
        let bias = if plain { biases.gate_up() } else { biases.interleaved_gate_up() };
        let gate_up = Matrix::load(gpu, &gate_up_rows([gate, up], plain), gate.columns(), plain)?;
        Ok(Self {
            gate_up: if plain { GateUp::Plain(gate_up) } else { GateUp::Tiles(gate_up) },
            gate_up_bias: optional(gpu, bias.as_deref())?,
            down: Matrix::load(gpu, &rows_of(down), down.columns(), plain)?,
            down_bias: optional(gpu, biases.down.as_deref())?,
        })
    }
}

/// Loads `weights` one behind the other, those of one type together.
fn load_runs(
    weights: &[&Weight],
    load: impl Fn(&[Source<'_>]) -> Result<Matrix, CudaError>,
) -> Result<Vec<(usize, Matrix)>, CudaError> {
    let (mut runs, mut start) = (Vec::new(), 0);
    for run in weights.chunk_by(|one, next| one.weight_type() == next.weight_type()) {
        let rows: Vec<Source<'_>> = run.iter().flat_map(|weight| rows_of(weight)).collect();
        runs.push((start, load(&rows)?));
        start += rows.len();
    }
    Ok(runs)
}

fn rows_of(weight: &Weight) -> Vec<Source<'_>> {
    (0..weight.rows()).map(|row| Some((weight, row))).collect()
}

/// The rows of gate and up projection, as they lie on the device.
fn gate_up_rows<'a>([gate, up]: [&'a Weight; 2], plain: bool) -> Vec<Source<'a>> {
    if plain { both(gate, up) } else { interleaved(gate, up) }
}

fn both<'a>(gate: &'a Weight, up: &'a Weight) -> Vec<Source<'a>> {
    rows_of(gate).into_iter().chain(rows_of(up)).collect()
}

/// 8 rows of the gate, the 8 of the up projection that belong to them, and so on; what is missing at
/// the end is zeros.
fn interleaved<'a>(gate: &'a Weight, up: &'a Weight) -> Vec<Source<'a>> {
    let rows = gate.rows();
    let part = |weight: &'a Weight, tile: usize| {
        (tile * GATED_TILE..(tile + 1) * GATED_TILE)
            .map(move |row| (row < rows).then_some((weight, row)))
    };
    (0..rows.div_ceil(GATED_TILE)).flat_map(|tile| part(gate, tile).chain(part(up, tile))).collect()
}

/// What is added to products, where a model has it.
struct Biases {
    qkv: Option<Vec<f32>>,
    output: Option<Vec<f32>>,
    gate: Option<Vec<f32>>,
    up: Option<Vec<f32>>,
    down: Option<Vec<f32>>,
}

impl Biases {
    fn of(
        config: &ModelConfig,
        vector: &impl Fn(&str, usize) -> Result<Vec<f32>, LoadTensorError>,
    ) -> Result<Self, LoadTensorError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.head_count * config.head_size;
        let keys = config.kv_head_count * config.head_size;
        let get = |wanted: bool, part: &str, size| {
            wanted.then(|| vector(&format!("{part}.bias"), size)).transpose()
        };
        let qkv = if config.attention_bias {
            let mut all = vector("self_attn.q_proj.bias", queries)?;
            all.extend(vector("self_attn.k_proj.bias", keys)?);
            all.extend(vector("self_attn.v_proj.bias", keys)?);
            Some(all)
        } else {
            None
        };
        Ok(Self {
            qkv,
            output: get(config.output_bias, "self_attn.o_proj", hidden)?,
            gate: get(config.mlp_bias, "mlp.gate_proj", inner)?,
            up: get(config.mlp_bias, "mlp.up_proj", inner)?,
            down: get(config.mlp_bias, "mlp.down_proj", hidden)?,
        })
    }

    fn gate_up(&self) -> Option<Vec<f32>> {
        Some([self.gate.as_deref()?, self.up.as_deref()?].concat())
    }

    fn interleaved_gate_up(&self) -> Option<Vec<f32>> {
        let (gate, up) = (self.gate.as_deref()?, self.up.as_deref()?);
        let mut all = Vec::with_capacity(2 * gate.len().next_multiple_of(GATED_TILE));
        for (gate, up) in gate.chunks(GATED_TILE).zip(up.chunks(GATED_TILE)) {
            for part in [gate, up] {
                all.extend_from_slice(part);
                all.resize(all.len().next_multiple_of(GATED_TILE), 0.0);
            }
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use umbel_shard::WeightType as Type;

    use super::*;

    fn stored<'a>(name: &'a str, shape: &'a [usize], kind: Option<Type>) -> Stored<'a> {
        Stored { name, shape, kind, bytes: 999 }
    }

    #[test]
    fn cells_count_as_they_lie_on_the_device() {
        let of = |kind| packed(&[stored("mlp.down_proj.weight", &[64, 512], kind)]);
        let values = 64 * 512;
        // With a scale and an offset, or two scales, of 16 bits each for 32 columns of a row, or one scale.
        assert_eq!(of(Some(Type::Q4K)), values * 5 / 8);
        assert_eq!(of(Some(Type::Q5K)), values * 6 / 8);
        assert_eq!(of(Some(Type::Q6K)), values * 7 / 8);
        assert_eq!(of(Some(Type::Q8_0)), values * 17 / 16);
        assert_eq!(of(Some(Type::BF16)), values * 2);
        // Binary32 stays what it is, and of a file that is not here the length is known.
        assert_eq!(of(Some(Type::F32)), 999);
        assert_eq!(of(None), 999);
    }

    #[test]
    fn experts_count_as_one_matrix_of_one_type_and_their_router_in_binary32() {
        let names = [
            ["mlp.experts.0.gate_proj", "mlp.experts.1.up_proj", "mlp.experts.0.down_proj"],
            [
                "block_sparse_moe.experts.0.w1",
                "block_sparse_moe.experts.1.w3",
                "block_sparse_moe.experts.0.w2",
            ],
        ];
        for [gate, up, down] in names.map(|names| names.map(|name| format!("{name}.weight"))) {
            let of = |up_kind, router, router_kind| {
                packed(&[
                    stored(router, &[3, 64], Some(router_kind)),
                    stored(&gate, &[32, 64], Some(Type::Q4K)),
                    stored(&up, &[32, 64], Some(up_kind)),
                    stored(&down, &[64, 32], Some(Type::Q8_0)),
                ])
            };
            let (router, values) = (3 * 64 * 4, 32 * 64);
            for (name, kind) in
                [("mlp.gate.weight", Type::F32), ("block_sparse_moe.gate.weight", Type::BF16)]
            {
                let down = values * 17 / 16;
                assert_eq!(of(Type::Q4K, name, kind), router + 2 * values * 5 / 8 + down);
                assert_eq!(of(Type::Q6K, name, kind), router + 2 * values * 2 + down);
            }
        }
    }

    #[test]
    fn rows_that_are_interleaved_are_of_one_type() {
        let with = |up| {
            packed(&[
                stored("input_layernorm.weight", &[64], Some(Type::F32)),
                stored("mlp.gate_proj.weight", &[32, 64], Some(Type::Q4K)),
                stored("mlp.up_proj.weight", &[32, 64], Some(up)),
            ])
        };
        let values = 2 * 32 * 64;
        assert_eq!(with(Type::Q4K), 256 + values * 5 / 8);
        assert_eq!(with(Type::Q6K), 256 + values * 2);
    }
}
