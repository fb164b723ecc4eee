//! What an adapter adds in a pass. Passes without one launch nothing of it.

use super::super::adapt::{self, Dropping, Features, Inner, Products, Rows};
use super::super::block::{GpuBlock, Module};
use super::super::cells::CELL_COLUMNS;
use super::super::driver::{Buffer, CudaError};
use super::super::matrix::{Matrix, ToActivations, address};
use super::Pass;
use super::rooms::AdaptedRooms;
use crate::train::TargetModule;

impl Pass<'_> {
    fn adapted(&self) -> &AdaptedRooms {
        self.rooms.adapted.as_ref().expect("room was made for an adapter before the pass")
    }

    /// Adds the vectors that a block has for the first tokens of sessions.
    pub(super) fn add_prompt(&self, index: u32) -> Result<(), CudaError> {
        let Some(prompt) = self.adapter.and_then(|adapter| adapter.prompt(index)) else {
            return Ok(());
        };
        let hidden = (self.hidden(), self.geometry.hidden_size, self.plan.tokens);
        let rows = (self.in_step(self.places.sequences), self.in_step(self.places.rows));
        adapt::add_prompt(self.gpu, hidden, rows, prompt)
    }

    /// Adds to queries, keys and values.
    pub(super) fn adapt_projected(&self, index: u32, block: &GpuBlock) -> Result<(), CudaError> {
        let projected = self.rooms.projected.address();
        for module in [TargetModule::Query, TargetModule::Key, TargetModule::Value] {
            self.adapt(index, block, module, (&self.rooms.normed, projected), projected)?;
        }
        Ok(())
    }

    /// Where the product of a module goes that is scaled before it is added to the hidden states.
    pub(super) fn scaled_product(&self, index: u32, module: TargetModule) -> Option<&Buffer> {
        self.adapter?.pair(index, module)?.scales()?;
        Some(&self.adapted().product)
    }

    /// Where gates and up projections go to which something is added.
    pub(super) fn adapted_gates(&self, index: u32) -> Option<&Buffer> {
        let adapter = self.adapter?;
        let mut modules = [TargetModule::Gate, TargetModule::Up].into_iter();
        modules.find_map(|module| adapter.pair(index, module))?;
        Some(&self.adapted().gate_up)
    }

    /// Gates features by themselves, after something was added to them.
    pub(super) fn gate_adapted(
        &self,
        index: u32,
        block: &GpuBlock,
        (matrix, gate_up): (&Matrix, &Buffer),
        output: ToActivations,
    ) -> Result<(), CudaError> {
        self.project_gates(index, block, matrix, gate_up)?;
        let size = self.geometry.intermediate_size;
        let words = size.next_multiple_of(CELL_COLUMNS) / 2;
        let from = (gate_up, matrix.rows());
        adapt::gate(self.gpu, from, (size, self.plan.tokens, words), output)
    }

    /// Adds to a module's product, which is at an address and was made of `input`. What is scaled goes to
    /// `output`: in its place, or onto the hidden states.
    pub(super) fn adapt(
        &self,
        index: u32,
        block: &GpuBlock,
        module: TargetModule,
        (input, product): (&Buffer, u64),
        output: u64,
    ) -> Result<(), CudaError> {
        let Some(adapter) = self.adapter else { return Ok(()) };
        let Some(pair) = adapter.pair(index, module) else { return Ok(()) };
        let Module { rows, bias, .. } = block.module(self.geometry, module);
        let features = if self.geometry.plain {
            Features::Rows(Rows::whole(input, pair.a.size))
        } else {
            Features::Cells(ToActivations::new(input, pair.a.size, self.order))
        };
        let (address_of_inner, tokens) = (self.adapted().inner.address(), self.plan.tokens);
        let inner = Inner { address: address_of_inner, tokens, scale: adapter.scale() };
        pair.a.multiply(self.gpu, features, inner)?;
        let to = Rows { address: output, place: rows.place };
        match pair.scales() {
            None => pair.b.add(self.gpu, inner, Dropping::nothing(), to),
            Some(scales) => {
                let products = Products { product, base: product, bias: address(bias) };
                let adds = product != output;
                pair.b.scale(self.gpu, inner, (scales, products), (to, adds))
            }
        }
    }
}
