//! With what the magnitudes of a new adapter (DoRA) begin: the norms of the frozen matrices' rows, which
//! servers have and the trainer has not.

use std::sync::Arc;

use umbel_engine::train::TrainingState;

use super::super::pipeline::Halt;
use super::{RemoteBlocks, halt_of};
use crate::train::TrainError;

impl RemoteBlocks {
    /// Asks the servers of a route for the norms, and gives all servers what follows from them. The norms
    /// are the same numbers on every server that has the weights.
    pub(in crate::train) async fn begin_magnitudes(
        &mut self,
        state: &mut Arc<TrainingState>,
    ) -> Result<(), TrainError> {
        self.begin(state).await?;
        self.unfinished = true;
        let norms = loop {
            match self.row_norms(state).await {
                Ok(norms) => break norms,
                Err(halt) => self.mend(halt, state).await?,
            }
        };
        let set = Arc::make_mut(state).set_magnitudes(&norms);
        set.map_err(|_| TrainError::Magnitudes)?;
        while let Err(halt) = self.write_values(state).await {
            self.mend(halt, state).await?;
        }
        self.unfinished = false;
        Ok(())
    }

    /// The norms of all blocks, from the servers of the first route.
    async fn row_norms(&mut self, state: &TrainingState) -> Result<Vec<f32>, Halt> {
        let swarm = Arc::clone(&self.swarm);
        let route = self.routes.first_mut().expect("a route was opened");
        let name = route.name;
        let asks = route.hops.iter_mut().enumerate().map(|(place, hop)| {
            let (swarm, count) = (&swarm, state.adapter().magnitude_count(hop.blocks()));
            async move { ((name, place), hop.row_norms(swarm, count).await) }
        });
        let (mut norms, mut ended) = (Vec::new(), Vec::new());
        for (place, found) in futures::future::join_all(asks).await {
            ended.push((place, found.map(|found| norms.extend(found))));
        }
        halt_of(ended).map(|()| norms)
    }

    async fn write_values(&mut self, state: &TrainingState) -> Result<(), Halt> {
        let swarm = Arc::clone(&self.swarm);
        let writes = self.hops().map(|(place, hop)| {
            let swarm = &swarm;
            async move { (place, hop.write_values(swarm, state).await) }
        });
        halt_of(futures::future::join_all(writes).await)
    }
}
