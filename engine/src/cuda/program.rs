//! Our kernels, compiled for a device when it first needs them.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::read::GzDecoder;

use super::cells::Format;
use super::driver::{Context, CudaError, Kernel, Module, SharedMemory};

/// The files of a folder of `engine/cuda/ptx`, by name: those that every folder has, and its own.
macro_rules! files {
    ($folder:literal $(, $own:literal)*) => {
        files!(@ $folder: $($own,)* "adapt", "attention_bf16", "attention_bf16_large", "attention_bytes", "attention_bytes_large", "linear_few_bf16", "linear_few_f16",
            "linear_few_q4_affine", "linear_few_q4_symmetric", "linear_few_q5_affine",
            "linear_few_q5_symmetric", "linear_few_q6", "linear_few_q8", "linear_many", "plain",
            "rotary", "train")
    };
    (@ $folder:literal: $($name:literal),*) => {
        &[$(($name, include_bytes!(concat!("../../cuda/ptx/", $folder, "/", $name, ".ptx.gz")))),*]
    };
}

/// The same kernels for one kind of device.
type Files = &'static [(&'static str, &'static [u8])];

/// For all devices that are served.
const AMPERE: Files = files!("sm_80");

/// For devices on which a kernel may begin before the last one has ended.
const HOPPER: Files = files!("sm_90", "linear_hopper");

/// The kernels of a device by their names. The driver compiles a file when the first of its kernels is
/// asked for, some seconds at worst, and keeps the result on disk.
#[derive(Debug)]
pub(super) struct Program {
    context: Arc<Context>,
    loaded: Mutex<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    // Kernels go before the modules that they are of.
    kernels: BTreeMap<String, Kernel>,
    modules: BTreeMap<&'static str, Module>,
}

impl Program {
    pub(super) fn new(context: &Arc<Context>) -> Self {
        Self { context: Arc::clone(context), loaded: Mutex::default() }
    }

    /// The kernel `name` of `file`, which may use so much shared memory.
    pub(super) fn kernel(
        &self,
        file: &str,
        name: &str,
        shared: impl Into<SharedMemory>,
    ) -> Result<Kernel, CudaError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.kernels.get(name) {
            return Ok(*kernel);
        }
        let files = if self.context.begins_early() { HOPPER } else { AMPERE };
        let (file, packed) = files
            .iter()
            .find(|(found, _)| *found == file)
            .expect("a file that is asked for is one of ours");
        if !loaded.modules.contains_key(file) {
            let module = Module::compile(&self.context, &text(packed))?;
            loaded.modules.insert(file, module);
        }
        let kernel = loaded.modules[file].kernel(name, shared.into())?;
        loaded.kernels.insert(name.to_owned(), kernel);
        Ok(kernel)
    }

    /// The product of few tokens and a matrix in `format`; `size` is one of those of `cuda/linear_few.cu`.
    pub(super) fn linear_few(
        &self,
        format: Format,
        size: &str,
        shared_bytes: usize,
    ) -> Result<Kernel, CudaError> {
        let file = format!("linear_few_{}", format.name());
        self.kernel(&file, &format!("{file}_{size}"), shared_bytes)
    }
}

fn text(packed: &[u8]) -> CString {
    let mut text = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut text).expect("our own files are whole");
    CString::new(text).expect("PTX is text")
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::fs;
    use std::path::Path;

    use sha2::{Digest as _, Sha256};

    use super::*;

    /// Whoever changes a kernel compiles it: `engine/cuda/build.py`.
    #[test]
    fn the_ptx_is_that_of_the_sources() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
        let sources = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let mut sources: Vec<_> = sources
            .filter(|path| path.extension().is_some_and(|found| found == "cu" || found == "cuh"))
            .collect();
        sources.sort();
        let mut found = String::new();
        for source in sources {
            for byte in Sha256::digest(fs::read(&source).unwrap()) {
                write!(found, "{byte:02x}").unwrap();
            }
            let name = source.file_name().unwrap().to_str().unwrap();
            writeln!(found, "  {name}").unwrap();
        }
        let expected = fs::read_to_string(folder.join("ptx/sources.sha256")).unwrap();
        assert_eq!(found, expected, "run engine/cuda/build.py");
    }

    #[test]
    fn every_file_is_ptx() {
        for (files, target) in [(AMPERE, ".target sm_80"), (HOPPER, ".target sm_90")] {
            for (name, packed) in files {
                let text = text(packed).into_string().unwrap();
                assert!(text.contains(target) && text.contains(".entry"), "{name}");
            }
        }
    }
}
