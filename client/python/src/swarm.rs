//! A swarm that has been joined.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use umbel_client::{ClientModel, SwarmConfig};
use umbel_net::{Join, SwarmKey, Way};
use umbel_shard::{Cache, ModelSource, Silent};

use crate::error::{failed, wrong};
use crate::model::Model;
use crate::waiting::{compute, give_up, wait};

/// A swarm, come into by the address of a peer or by an invite; several, in a list, are tried together.
#[pyclass(frozen, module = "umbel")]
pub(crate) struct Swarm {
    /// Absent once it was left.
    joined: Mutex<Option<Arc<umbel_client::Swarm>>>,
}

#[derive(FromPyObject)]
enum Joins {
    #[pyo3(transparent)]
    One(String),
    #[pyo3(transparent)]
    Several(Vec<String>),
}

#[pymethods]
impl Swarm {
    #[new]
    #[pyo3(signature = (join, *, swarm_key=None, patience=30.0))]
    fn new(
        py: Python<'_>,
        join: Joins,
        swarm_key: Option<PathBuf>,
        patience: f64,
    ) -> PyResult<Self> {
        let lines = match join {
            Joins::One(line) => vec![line],
            Joins::Several(lines) => lines,
        };
        let joins = lines.iter().map(|line| line.parse::<Join>().map_err(|error| wrong(&error)));
        let key = swarm_key.map(|file| SwarmKey::load(&file).map_err(|error| failed(&error)));
        let joins = joins.collect::<PyResult<Vec<_>>>()?;
        let way = Way::new(&joins, key.transpose()?).map_err(|error| wrong(&error))?;
        if way.addresses.is_empty() {
            return Err(PyValueError::new_err("where? name the address of a peer, or an invite"));
        }
        let patience = Duration::try_from_secs_f64(patience)
            .map_err(|_| PyValueError::new_err("patience is a number of seconds"))?;
        let config = SwarmConfig {
            join: way.addresses,
            swarm_key: way.swarm_key,
            patience,
            ..SwarmConfig::default()
        };
        let joined = wait(py, umbel_client::Swarm::join(config))?.map_err(|e| failed(&e))?;
        Ok(Self { joined: Mutex::new(Some(Arc::new(joined))) })
    }

    /// Opens the client's part of a model, fetching it first where it is not there: a name of the
    /// catalogue, `hf:OWNER/NAME`, a folder, or a `.gguf` file.
    #[pyo3(signature = (name="smollm2-135m", *, cache_dir=None))]
    fn model(&self, py: Python<'_>, name: &str, cache_dir: Option<PathBuf>) -> PyResult<Model> {
        let swarm = self.joined()?;
        let source = ModelSource::parse(name).map_err(|error| wrong(&error))?;
        let folder = cache_dir.or_else(|| Some(dirs::cache_dir()?.join("umbel")));
        let folder = folder.ok_or_else(|| {
            PyValueError::new_err("the user has no cache folder: name one as cache_dir")
        })?;
        let open = move || ClientModel::open(&source, &Cache::new(folder), &Silent);
        let model = compute(py, open)?.map_err(|error| failed(&error))?;
        Ok(Model::new(Arc::new(model), swarm))
    }

    /// Who serves what, as everybody announces it: a list of dictionaries.
    fn servers<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let swarm = self.joined()?;
        let announced = wait(py, swarm.announcements(None))?;
        let described = announced.into_iter().map(|server| {
            let about = PyDict::new(py);
            about.set_item("peer", server.peer.to_string())?;
            about.set_item("model", server.model_name)?;
            about.set_item("model_id", server.model.to_string())?;
            about.set_item("blocks", (server.span.start(), server.span.end()))?;
            about.set_item("block_count", server.block_count)?;
            about.set_item("free_tokens", server.kv_tokens_free)?;
            about.set_item("draining", server.draining)?;
            Ok(about)
        });
        described.collect()
    }

    /// This client's own name.
    #[getter]
    fn peer(&self) -> PyResult<String> {
        Ok(self.joined()?.peer().to_string())
    }

    /// Leaves the swarm, once nothing of it is used any more.
    fn close(&self) {
        give_up(self.joined.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn __enter__(own: Py<Self>) -> Py<Self> {
        own
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyAny>) {
        self.close();
    }
}

impl Swarm {
    fn joined(&self) -> PyResult<Arc<umbel_client::Swarm>> {
        let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        joined.clone().ok_or_else(|| PyRuntimeError::new_err("the swarm was left"))
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.close();
    }
}
