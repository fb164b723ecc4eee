//! Where a server computes: on a GPU or on the processor, and why.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use umbel_engine::{Gpu, OpenGpuError};

/// What a person asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceWish {
    /// The first GPU if one can be used, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number, from 0, and nothing else.
    Cuda(usize),
    /// Every GPU, each with a server of its own.
    All,
}

/// A device that has another name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no device; there are auto, cpu, cuda, cuda:1, cuda:2 and so on, and all")]
pub struct UnknownDevice(String);

impl FromStr for DeviceWish {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice(text.to_owned());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "all" => Ok(Self::All),
            _ => {
                let number = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                number.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl fmt::Display for DeviceWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::All => f.write_str("all"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// The GPU to compute on, if it is to be one. Says what was chosen, and why.
///
/// # Errors
/// Where a GPU was asked for that cannot be used.
pub fn choose(wish: DeviceWish) -> anyhow::Result<Option<Gpu>> {
    let opened = match wish {
        DeviceWish::Cpu => {
            tracing::info!("computing on the processor, as was asked");
            return Ok(None);
        }
        DeviceWish::All => bail!("each GPU has a server of its own"),
        DeviceWish::Cuda(ordinal) => {
            Some(Gpu::open(ordinal).context("the GPU that was asked for cannot be used")?)
        }
        DeviceWish::Auto => match Gpu::open(0) {
            Ok(gpu) => Some(gpu),
            Err(reason @ (OpenGpuError::NoDriver | OpenGpuError::NoDevice { .. })) => {
                tracing::info!(%reason, "computing on the processor");
                None
            }
            // There is something that a person could mend.
            Err(reason) => {
                tracing::warn!(%reason, "computing on the processor");
                None
            }
        },
    };
    if let Some(gpu) = &opened {
        let (free, total) = gpu.memory()?;
        tracing::info!(
            gpu = gpu.name(),
            number = gpu.ordinal(),
            free_mb = free / 1_000_000,
            of_mb = total / 1_000_000,
            "computing on the GPU"
        );
        let count = Gpu::count()?;
        if wish == DeviceWish::Auto && count > 1 {
            tracing::info!(count, "further GPUs are idle: --device all serves on each");
        }
    }
    Ok(opened)
}

/// The name of a GPU as a part of file names: figures that are measured hold for it alone.
#[must_use]
pub fn file_name(gpu: &Gpu) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    format!("cuda-{}", gpu.name().to_lowercase().chars().map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for wish in [DeviceWish::Auto, DeviceWish::Cpu, DeviceWish::All, DeviceWish::Cuda(3)] {
            assert_eq!(wish.to_string().parse(), Ok(wish));
        }
        assert_eq!("cuda".parse(), Ok(DeviceWish::Cuda(0)));
        for text in ["gpu", "cuda:", "cuda:-1", "CPU", ""] {
            let error = text.parse::<DeviceWish>().unwrap_err().to_string();
            assert!(error.contains("cuda:1"), "{error}");
        }
    }
}
