//! What the arguments mean on this machine: folders, and what the environment says.

use std::env;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context as _;
use umbel_engine::kernel::InstructionSet;
use umbel_engine::{Arithmetic, Device};
use umbel_shard::{Cache, HubConfig};

use crate::args::Arguments;

/// Where things are kept, and how the hub is reached.
#[derive(Debug, Clone)]
pub struct Config {
    /// Downloaded models, shared by every process of the user.
    pub cache_dir: PathBuf,
    /// What must outlive a process: the identity.
    pub data_dir: PathBuf,
    /// Where models are downloaded from.
    pub hub: HubConfig,
    /// Threads that compute; `None` for one a core.
    pub threads: Option<u16>,
    /// The instructions that compute, by name; `None` for the best.
    pub instructions: Option<String>,
    /// How activations are multiplied with quantized weights.
    pub arithmetic: Arithmetic,
    /// The log filter, as it was typed, for child processes.
    pub log: Option<String>,
}

impl Config {
    /// Reads the environment for what the arguments leave open.
    ///
    /// # Errors
    /// Where the user has no cache or data folder.
    pub fn resolve(arguments: &Arguments) -> anyhow::Result<Self> {
        let cache_dir = match &arguments.cache_dir {
            Some(dir) => dir.clone(),
            None => dirs::cache_dir()
                .context("the user has no cache folder: name one with --cache-dir")?
                .join("umbel"),
        };
        let data_dir = dirs::data_dir()
            .context("the user has no data folder: set HOME or XDG_DATA_HOME")?
            .join("umbel");
        let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let default = HubConfig::default();
        let hub = HubConfig {
            endpoint: set("HF_ENDPOINT").unwrap_or(default.endpoint),
            token: set("HF_TOKEN").or_else(saved_token),
        };
        Ok(Self {
            cache_dir,
            data_dir,
            hub,
            threads: arguments.threads,
            instructions: arguments.instructions.clone(),
            arithmetic: arguments.arithmetic,
            log: arguments.log.clone(),
        })
    }

    /// The cache of models.
    #[must_use]
    pub fn cache(&self) -> Cache {
        Cache::new(&self.cache_dir).with_hub(self.hub.clone())
    }

    /// What computes, by name: figures that are measured hold for it alone.
    #[must_use]
    pub fn device_name(&self) -> String {
        let threads = self.threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            usize::from,
        );
        let instructions = self.instructions.as_ref().map(|name| format!("-{name}"));
        format!("cpu-{threads}{}", instructions.unwrap_or_default())
    }

    /// Lets everything that is computed in this process use the instructions and as many threads as were
    /// asked for.
    ///
    /// # Errors
    /// Where this machine does not have them.
    pub fn choose_processor(&self) -> anyhow::Result<()> {
        if let Some(name) = &self.instructions {
            InstructionSet::choose(name).context("choose others with --instructions")?;
        }
        if let Some(threads) = self.threads.and_then(|threads| NonZeroUsize::new(threads.into())) {
            Device::choose_shared(threads)?;
        }
        Ok(())
    }
}

/// What the user says of colours.
pub(crate) fn no_color() -> Option<OsString> {
    env::var_os("NO_COLOR")
}

/// The user's home folder, which `~` stands for.
pub(crate) fn home() -> Option<PathBuf> {
    dirs::home_dir()
}

/// The token that `hf auth login` has saved.
fn saved_token() -> Option<String> {
    let home = env::var_os("HF_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(dirs::cache_dir()?.join("huggingface")))?;
    let token = std::fs::read_to_string(home.join("token")).ok()?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}
