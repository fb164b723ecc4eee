//! The adapters of clients, as they come.

use std::collections::BTreeMap;
use std::sync::Arc;

use umbel_coordinator::server::{AdapterKey, AdapterOrder};
use umbel_engine::train::{Adapter, AdapterConfig};
use umbel_shard::ModelConfig;

/// All that are held.
#[derive(Default)]
pub(super) struct Adapters {
    /// For which model, where any are taken.
    model: Option<ModelConfig>,
    held: BTreeMap<AdapterKey, Arc<Adapter>>,
}

impl Adapters {
    pub(super) const fn of(model: ModelConfig) -> Self {
        Self { model: Some(model), held: BTreeMap::new() }
    }

    /// Does as the machine says, which has checked what it was told.
    pub(super) fn order(&mut self, order: AdapterOrder) {
        match order {
            AdapterOrder::Hold { adapter, blocks, settings } => {
                let model = self.model.as_ref().expect("adapters are taken for a known model");
                let blank = Adapter::blank(AdapterConfig::from(&settings), model, blocks);
                let blank = blank.expect("settings and blocks were checked when they came");
                self.held.insert(adapter, Arc::new(blank));
            }
            AdapterOrder::Write { adapter, offset, values } => {
                let held = self.held.get_mut(&adapter).expect("what is written to is held");
                let held = Arc::get_mut(held).expect("no session uses it before it is whole");
                let written = held.write(offset, &values.to_f32());
                written.expect("values were counted, and checked when they came");
            }
            AdapterOrder::Drop { adapter } => {
                self.held.remove(&adapter);
            }
        }
    }

    /// One whose values were all written.
    pub(super) fn of_session(&self, adapter: AdapterKey) -> Arc<Adapter> {
        Arc::clone(self.held.get(&adapter).expect("it stays while sessions use it"))
    }
}
