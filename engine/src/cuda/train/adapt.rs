//! What an adapter adds to whole sequences, and its gradients: `y = W x + b + scale B A dropout(x)`, or rows
//! of that which are scaled to learned norms, as [`train::lora`](crate::train) has them on the processor.

use super::super::adapt::{self, Dropping, Features, Inner, Products, Rows, Scales};
use super::super::adapter::Pair;
use super::super::block::{GpuBlock, Module};
use super::super::driver::{Buffer, CudaError};
use super::super::matrix::{Gradient, Matrix, ToRows, address, int};
use super::super::span::download;
use super::GpuTraining;
use crate::train::{Adapter, Sequence, TargetModule, stream_of};

/// An adapter, and what is dropped before it.
pub(super) struct Adaptation<'a> {
    adapter: &'a Adapter,
    /// How likely, in [0, 1), and the seed of each token's sequence.
    dropout: Option<(f32, Buffer)>,
}

/// A block with what an adapter adds to it.
pub(super) struct AdaptedBlock<'a> {
    pub(super) index: u32,
    pub(super) block: &'a GpuBlock,
    pairs: Vec<(TargetModule, Pair)>,
}

/// The gradients of a pair of matrices on the device: of A and of B's transpose `[rank, size]`, and of the
/// magnitudes where there are any.
pub(super) struct Found {
    module: TargetModule,
    rank: usize,
    a: Buffer,
    b: Buffer,
    magnitudes: Option<Buffer>,
}

/// The same on the processor, B row by row.
pub(crate) struct PairGradient {
    pub(crate) module: TargetModule,
    pub(crate) rank: usize,
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
    pub(crate) magnitudes: Vec<f32>,
}

impl<'a> Adaptation<'a> {
    /// `dropped` are the sequences in which something is: all that go through, or none.
    pub(super) fn new(
        training: &GpuTraining<'_>,
        adapter: &'a Adapter,
        dropped: &[Sequence],
    ) -> Result<Self, CudaError> {
        let probability = adapter.config().dropout;
        let dropout = if probability > 0.0 && !dropped.is_empty() {
            let seeds = |of: &Sequence| std::iter::repeat_n(of.dropout_seed, of.tokens);
            let seeds: Vec<u64> = dropped.iter().flat_map(seeds).collect();
            Some((probability, Buffer::of(training.gpu.context(), &seeds)?))
        } else {
            None
        };
        Ok(Self { adapter, dropout })
    }

    /// What a block adds to the first tokens of each sequence.
    pub(super) fn prompt(&self, index: u32) -> Option<&'a [f32]> {
        self.adapter.parameters().prompt_of(index)
    }
}

impl<'a> GpuTraining<'a> {
    /// Takes up what the adapter has for a block: one block's at a time is on the device.
    pub(super) fn adapted(
        &self,
        index: u32,
        block: &'a GpuBlock,
    ) -> Result<AdaptedBlock<'a>, CudaError> {
        let mut pairs = Vec::new();
        if let Some(Adaptation { adapter, .. }) = &self.adaptation {
            for module in TargetModule::ALL {
                if let Some(matrices) = adapter.parameters().at(index, module) {
                    let (place, scale) = ((block, self.geometry), adapter.config().scale());
                    pairs.push((module, Pair::load(self.gpu, place, module, matrices, scale)?));
                    self.end_part()?;
                }
            }
        }
        Ok(AdaptedBlock { index, block, pairs })
    }

    fn dropping(&self, index: u32, module: TargetModule) -> Dropping {
        let dropout = self.adaptation.as_ref().and_then(|of| of.dropout.as_ref());
        let Some((probability, seeds)) = dropout else { return Dropping::nothing() };
        Dropping {
            seeds: seeds.address(),
            bounds: self.bounds.address(),
            stream: stream_of(index, module),
            threshold: f64::from(*probability) * f64::from(1_u32 << 24),
            kept: 1.0 / (1.0 - probability),
            unused: 0,
        }
    }

    /// Inner products of as many ranks, to be computed.
    fn inner(&self, rows: &Buffer) -> Inner {
        let scale = self.adaptation.as_ref().map_or(0.0, |of| of.adapter.config().scale());
        Inner { address: rows.address(), tokens: self.tokens, scale }
    }

    /// What is left of a module's input, where something is dropped.
    fn left(
        &self,
        rows: &Buffer,
        size: usize,
        dropping: Dropping,
    ) -> Result<Option<Buffer>, CudaError> {
        if dropping.is_nothing() {
            return Ok(None);
        }
        let left = self.rows(size)?;
        adapt::drop_rows(self.gpu, (rows, size, self.tokens), dropping, (&left, false))?;
        Ok(Some(left))
    }

    /// What the frozen matrix of a module and its bias make of rows, at the columns where they stand.
    pub(super) fn product(&self, module: Module<'_>, rows: &Buffer) -> Result<Buffer, CudaError> {
        let Module { matrix, rows: of, bias } = module;
        let stride = of.place.stride();
        let (packed, product) = (self.packed(rows, matrix.columns())?, self.rows(stride)?);
        let to = ToRows {
            output: product.address(),
            bias: address(bias),
            residual: 0,
            stride: int(stride),
            first_row: int(of.start),
        };
        self.multiply(matrix, &packed, to)?;
        Ok(product)
    }

    /// Adds to the product of a module what the adapter has for `input`, its rows. What is scaled goes to
    /// `output`: in its place, or onto what is there.
    pub(super) fn adapt(
        &self,
        of: &AdaptedBlock<'_>,
        module: TargetModule,
        (input, product): (&Buffer, &Buffer),
        output: &Buffer,
    ) -> Result<(), CudaError> {
        let Some(pair) = of.pair(module) else { return Ok(()) };
        let place = of.block.module(self.geometry, module);
        let left = self.left(input, pair.a.size, self.dropping(of.index, module))?;
        let left = left.as_ref();
        let rows = self.rows(pair.a.rank)?;
        let inner = self.inner(&rows);
        let features = Features::Rows(Rows::whole(left.unwrap_or(input), pair.a.size));
        pair.a.multiply(self.gpu, features, inner)?;
        let to = Rows::new(output, place.rows.place);
        let Some(scales) = pair.scales() else {
            pair.b.add(self.gpu, inner, Dropping::nothing(), to)?;
            return self.end_part();
        };
        let base = left.map(|left| self.product(place, left)).transpose()?;
        let products = products(product, base.as_ref().unwrap_or(product), place);
        let adds = output.address() != product.address();
        pair.b.scale(self.gpu, inner, (scales, products), (to, adds))?;
        self.end_part()
    }

    /// Adds to `of_input` what comes back through the frozen matrices of some modules, which have one
    /// input, and through the adapter's; its gradients go to `found`. `gradient` is that of their products.
    pub(super) fn back_through(
        &self,
        of: &AdaptedBlock<'_>,
        modules: &[TargetModule],
        (input, gradient): (&Buffer, &Buffer),
        of_input: &Buffer,
        found: &mut Vec<Found>,
    ) -> Result<(), CudaError> {
        // As the frozen matrices take it, where that is another.
        let mut of_frozen = None;
        for &module in modules {
            let Some(pair) = of.pair(module) else { continue };
            let place = of.block.module(self.geometry, module);
            let dropping = self.dropping(of.index, module);
            let left = self.left(input, pair.a.size, dropping)?;
            let left = left.as_ref().unwrap_or(input);
            let scaled = match pair.scales() {
                None => None,
                Some(scales) if dropping.is_nothing() => {
                    if of_frozen.is_none() {
                        of_frozen = Some(self.copied(gradient)?);
                    }
                    let own = of_frozen.as_ref().expect("it was copied just now");
                    self.scale_gradient(own, place, (scales, 0.0), own)?;
                    None
                }
                Some(scales) => {
                    self.back_dropped(
                        of,
                        (modules, place),
                        (gradient, scales),
                        dropping,
                        of_input,
                    )?;
                    let own = Buffer::zeroed(self.gpu.context(), gradient.bytes())?;
                    self.scale_gradient(gradient, place, (scales, 0.0), &own)?;
                    Some(own)
                }
            };
            let of_sum = match (&scaled, &of_frozen, pair.scales()) {
                (Some(own), ..) => own,
                (None, Some(own), Some(_)) => own,
                (None, ..) => gradient,
            };
            found.push(self.pair_back(
                (module, pair, place),
                (left, gradient, of_sum),
                dropping,
                of_input,
            )?);
        }
        self.frozen_back(of, modules, of_frozen.as_ref().unwrap_or(gradient), of_input)
    }

    /// The gradients of a pair, and what comes back through it. `of_sum` is the gradient before rows are
    /// scaled, where they are.
    fn pair_back(
        &self,
        (module, pair, place): (TargetModule, &Pair, Module<'_>),
        (left, gradient, of_sum): (&Buffer, &Buffer, &Buffer),
        dropping: Dropping,
        of_input: &Buffer,
    ) -> Result<Found, CudaError> {
        let (inputs, rank) = (Rows::whole(left, pair.a.size), pair.a.rank);
        let of_sum = Rows::new(of_sum, place.rows.place);
        let (rows, of_rows) = (self.rows(rank)?, self.rows(rank)?);
        let (inner, of_inner) = (self.inner(&rows), self.inner(&of_rows));
        pair.a.multiply(self.gpu, Features::Rows(inputs), inner)?;
        pair.b.multiply(self.gpu, Features::Rows(of_sum), of_inner)?;
        self.end_part()?;
        pair.a.add(self.gpu, of_inner, dropping, Rows::whole(of_input, pair.a.size))?;
        let a = pair.a.gradient(self.gpu, of_inner, inputs)?;
        let b = pair.b.gradient(self.gpu, inner, of_sum)?;
        self.end_part()?;
        let magnitudes = match pair.scales() {
            None => None,
            Some(scales) => {
                // An output lacks what a magnitude scales where its factor is zero.
                let base = self.product(place, left)?;
                let products = products(&base, &base, place);
                let gradient = Rows::new(gradient, place.rows.place);
                Some(pair.b.of_magnitudes(self.gpu, inner, (scales, products), gradient)?)
            }
        };
        Ok(Found { module, rank, a, b, magnitudes })
    }

    /// What comes back through a frozen matrix that is multiplied with what is left of its input, which is
    /// added to the product with all of it.
    fn back_dropped(
        &self,
        of: &AdaptedBlock<'_>,
        (modules, place): (&[TargetModule], Module<'_>),
        (gradient, scales): (&Buffer, Scales),
        dropping: Dropping,
        of_input: &Buffer,
    ) -> Result<(), CudaError> {
        // Other modules of the same rows have no part in it.
        let own = Buffer::zeroed(self.gpu.context(), gradient.bytes())?;
        self.scale_gradient(gradient, place, (scales, 1.0), &own)?;
        let of_left = Buffer::zeroed(self.gpu.context(), of_input.bytes())?;
        self.frozen_back(of, modules, &own, &of_left)?;
        let rows = (&of_left, place.matrix.columns(), self.tokens);
        adapt::drop_rows(self.gpu, rows, dropping, (of_input, true))
    }

    /// A module's gradients times the factors of its rows, of which something is taken first.
    fn scale_gradient(
        &self,
        gradient: &Buffer,
        place: Module<'_>,
        scales: (Scales, f32),
        to: &Buffer,
    ) -> Result<(), CudaError> {
        let from = Rows::new(gradient, place.rows.place);
        adapt::scale_gradient(self.gpu, (from, place.rows.size, self.tokens), scales, to)
    }

    /// What comes back through the frozen matrices of some modules that have one input.
    fn frozen_back(
        &self,
        of: &AdaptedBlock<'_>,
        modules: &[TargetModule],
        gradient: &Buffer,
        of_input: &Buffer,
    ) -> Result<(), CudaError> {
        let mut matrices: Vec<(usize, usize, &Matrix)> = Vec::new();
        for &module in modules {
            let Module { matrix, rows, .. } = of.block.module(self.geometry, module);
            if matrices.iter().all(|(_, _, other)| !std::ptr::eq(*other, matrix)) {
                matrices.push((rows.start, rows.place.stride(), matrix));
            }
        }
        for (start, stride, matrix) in matrices {
            let address = gradient.address() + (start * size_of::<f32>()) as u64;
            let gradient = Gradient { address, stride, tokens: self.tokens };
            matrix.add_back(self.gpu, gradient, of_input)?;
            self.end_part()?;
        }
        Ok(())
    }

    /// What was found, on the processor.
    pub(super) fn found(&self, found: Vec<Found>) -> Result<Vec<PairGradient>, CudaError> {
        let host = |Found { module, rank, a, b, magnitudes }: Found| {
            let (a, b) = (download(self.gpu, &a)?, download(self.gpu, &b)?);
            let magnitudes = magnitudes.map(|of| download(self.gpu, &of)).transpose()?;
            let shape = self.geometry.module_shape(module);
            let [rows, _] = shape.expect("what was adapted is there");
            let b = (0..rows).flat_map(|row| b.iter().skip(row).step_by(rows).copied()).collect();
            let magnitudes = magnitudes.unwrap_or_default();
            Ok(PairGradient { module, rank, a, b, magnitudes })
        };
        found.into_iter().map(host).collect()
    }
}

impl AdaptedBlock<'_> {
    fn pair(&self, module: TargetModule) -> Option<&Pair> {
        self.pairs.iter().find(|(of, _)| *of == module).map(|(_, pair)| pair)
    }

    /// Whether rows of a module's product are scaled before they are added to anything.
    pub(super) fn is_scaled(&self, module: TargetModule) -> bool {
        self.pair(module).is_some_and(|pair| pair.scales().is_some())
    }
}

fn products(product: &Buffer, base: &Buffer, of: Module<'_>) -> Products {
    let (product, base) = (product.address(), base.address());
    Products { product, base, bias: address(of.bias) }
}
