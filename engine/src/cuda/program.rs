//! Our kernels, compiled for a device when it first needs them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, fs};

use flate2::read::GzDecoder;

use super::cells::Format;
use super::driver::{Context, CudaError, Kernel, Module, SharedMemory};

/// The files of a folder of `engine/cuda/ptx`, by name: those that every folder has, and its own.
macro_rules! files {
    ($folder:literal $(, $own:literal)*) => {
        files!(@ $folder: $($own,)* "adapt", "attention_bf16", "attention_bf16_large", "attention_bytes", "attention_bytes_large", "experts", "experts_few_bf16", "experts_few_f16",
            "experts_few_q4_affine", "experts_few_q4_symmetric", "experts_few_q5_affine",
            "experts_few_q5_symmetric", "experts_few_q6", "experts_few_q8", "linear_few_bf16", "linear_few_f16",
            "linear_few_q4_affine", "linear_few_q4_symmetric", "linear_few_q5_affine",
            "linear_few_q5_symmetric", "linear_few_q6", "linear_few_q8", "linear_many", "plain",
            "rotary", "train")
    };
    (@ $folder:literal: $($name:literal),*) => {
        &[$(($name, include_bytes!(concat!("../../cuda/ptx/", $folder, "/", $name, ".ptx.gz")))),*]
    };
}

/// The kernels of all devices, in PTX.
#[derive(Clone)]
pub struct Kernels {
    /// For all devices that are served.
    ampere: Files,
    /// For devices on which a kernel may begin before the last one has ended.
    hopper: Files,
}

/// The files of one kind of device by their names, packed.
type Files = BTreeMap<&'static str, Cow<'static, [u8]>>;

const AMPERE: (&str, &[(&str, &[u8])]) = ("sm_80", files!("sm_80"));
const HOPPER: (&str, &[(&str, &[u8])]) = ("sm_90", files!("sm_90", "linear_hopper"));

impl Kernels {
    /// Those of a folder that `engine/cuda/build.py FOLDER` has written, for whoever changes kernels and
    /// compares them on one device.
    ///
    /// # Errors
    /// Where a file is missing or damaged; the error names it.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let read = |(kind, files): (&str, &[(&'static str, _)])| -> io::Result<Files> {
            let of_file = |(name, _): &(&'static str, _)| {
                let path = folder.join(kind).join(format!("{name}.ptx.gz"));
                let packed = fs::read(&path).and_then(|packed| text(&packed).map(|_| packed));
                let named = |error: io::Error| {
                    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                };
                Ok((*name, Cow::from(packed.map_err(named)?)))
            };
            files.iter().map(of_file).collect()
        };
        Ok(Self { ampere: read(AMPERE)?, hopper: read(HOPPER)? })
    }

    fn of(self, context: &Context) -> Files {
        if context.begins_early() { self.hopper } else { self.ampere }
    }
}

/// Those that Umbel is built with.
impl Default for Kernels {
    fn default() -> Self {
        let ours = |files: &[(&'static str, &'static [u8])]| {
            files.iter().map(|(name, packed)| (*name, Cow::from(*packed))).collect()
        };
        Self { ampere: ours(AMPERE.1), hopper: ours(HOPPER.1) }
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").finish_non_exhaustive()
    }
}

/// The kernels of a device by their names. The driver compiles a file when the first of its kernels is
/// asked for, some seconds at worst, and keeps the result on disk.
pub(super) struct Program {
    context: Arc<Context>,
    files: Files,
    loaded: Mutex<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    // Kernels go before the modules that they are of.
    kernels: BTreeMap<String, Kernel>,
    modules: BTreeMap<&'static str, Module>,
}

impl Program {
    pub(super) fn new(context: &Arc<Context>, kernels: Kernels) -> Self {
        let files = kernels.of(context);
        Self { context: Arc::clone(context), files, loaded: Mutex::default() }
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
        let (file, packed) =
            self.files.get_key_value(file).expect("a file that is asked for is one of ours");
        if !loaded.modules.contains_key(file) {
            let module =
                Module::compile(&self.context, &text(packed).expect("damaged files were refused"))?;
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

    /// The same of experts: one of `cuda/experts_few.cu`.
    pub(super) fn experts_few(
        &self,
        format: Format,
        size: &str,
        shared_bytes: usize,
    ) -> Result<Kernel, CudaError> {
        let file = format!("experts_few_{}", format.name());
        self.kernel(&file, &format!("{file}_{size}"), shared_bytes)
    }
}

fn text(packed: &[u8]) -> io::Result<CString> {
    let mut text = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut text)?;
    CString::new(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "this is no text"))
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
        for (folder, files) in [AMPERE, HOPPER] {
            let target = format!(".target {folder}");
            for (name, packed) in files {
                let text = text(packed).unwrap().into_string().unwrap();
                assert!(text.contains(&target) && text.contains(".entry"), "{name}");
            }
        }
    }

    /// What is compared is all of one folder, and none of what Umbel is built with.
    #[test]
    fn a_folder_of_kernels_is_whole_or_refused() {
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/ptx");
        assert_eq!(Kernels::read(&ours).unwrap().hopper, Kernels::default().hopper);
        let folder = tempfile::tempdir().unwrap();
        for (kind, files) in [AMPERE, HOPPER] {
            fs::create_dir(folder.path().join(kind)).unwrap();
            for (name, packed) in files {
                fs::write(folder.path().join(format!("{kind}/{name}.ptx.gz")), packed).unwrap();
            }
        }
        Kernels::read(folder.path()).unwrap();
        let last = folder.path().join("sm_90/train.ptx.gz");
        fs::write(&last, &fs::read(&last).unwrap()[..100]).unwrap();
        let damaged = Kernels::read(folder.path()).unwrap_err().to_string();
        fs::remove_file(&last).unwrap();
        let missing = Kernels::read(folder.path()).unwrap_err().to_string();
        assert!(damaged.contains("sm_90/train.ptx.gz") && missing.contains("sm_90/train.ptx.gz"));
    }
}
