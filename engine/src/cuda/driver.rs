//! The driver of NVIDIA's devices: memory, streams, kernels and graphs, each freed when it is dropped.
//!
//! The library is opened when a device is asked for, and never where nobody asks.

#![allow(
    unsafe_code,
    reason = "the driver's interface is C; what is safe about it is said at each call"
)]

mod stream;

use std::ffi::{CString, c_void};
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{DriverError, result, sys};

pub(super) use stream::{Graph, Stream};

/// The oldest driver that compiles our kernels, which are PTX 8.1: 12.1, the series 530.
const OLDEST_DRIVER: i32 = 12_010;

/// The oldest driver that notes in a graph which kernels may begin early: 12.3.
const EARLY_DRIVER: i32 = 12_030;

/// A call that the driver refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the GPU's driver could not {what}: {}", describe(*.code))]
pub struct CudaError {
    what: &'static str,
    code: sys::CUresult,
}

impl CudaError {
    /// Whether memory ran out: fewer or shorter sessions may go on.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        self.code == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY
    }

    /// Whether the device can be used no more by this process, whatever is tried.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        use sys::CUresult as Code;
        // After these, every call of the process gets the same answer.
        matches!(
            self.code,
            Code::CUDA_ERROR_ILLEGAL_ADDRESS
                | Code::CUDA_ERROR_LAUNCH_FAILED
                | Code::CUDA_ERROR_LAUNCH_TIMEOUT
                | Code::CUDA_ERROR_ASSERT
                | Code::CUDA_ERROR_CONTAINED
                | Code::CUDA_ERROR_ECC_UNCORRECTABLE
                | Code::CUDA_ERROR_NVLINK_UNCORRECTABLE
                | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
                | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
                | Code::CUDA_ERROR_MISALIGNED_ADDRESS
                | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
                | Code::CUDA_ERROR_INVALID_PC
                | Code::CUDA_ERROR_TENSOR_MEMORY_LEAK
                | Code::CUDA_ERROR_DEVICE_UNAVAILABLE
                | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
                | Code::CUDA_ERROR_UNKNOWN
        )
    }
}

fn describe(code: sys::CUresult) -> String {
    let error = DriverError(code);
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    text.unwrap_or_else(|_| format!("{code:?}"))
}

/// Names what was tried.
trait Named<T> {
    fn to(self, what: &'static str) -> Result<T, CudaError>;
}

impl<T> Named<T> for Result<T, DriverError> {
    fn to(self, what: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| CudaError { what, code: error.0 })
    }
}

/// A device that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenGpuError {
    /// There is no driver on this machine.
    #[error("this machine has no NVIDIA driver (libcuda.so.1); install one, or serve on the CPU")]
    NoDriver,
    /// The driver is older than the kernels need.
    #[error(
        "the NVIDIA driver supports CUDA {}.{} and Umbel's kernels need 12.1 (driver 530 or later); \
         update it",
        .found / 1000, .found % 1000 / 10
    )]
    OldDriver {
        /// Its version, 1000 for each major and 10 for each minor one.
        found: i32,
    },
    /// No device, or fewer than that.
    #[error("there is no GPU {wanted} on this machine: the driver knows of {found}")]
    NoDevice {
        /// The number that was asked for, from 0.
        wanted: usize,
        /// How many there are.
        found: usize,
    },
    /// The device is older than the kernels need.
    #[error(
        "the GPU {name} has the compute capability {major}.{minor} and Umbel's kernels need 8.0 \
         (Ampere, of 2020, or later)"
    )]
    OldDevice {
        /// What its maker calls it.
        name: String,
        /// Of its compute capability.
        major: i32,
        /// Of its compute capability.
        minor: i32,
    },
    /// The driver refused.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// A device, opened by this process.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    ordinal: usize,
    capability: (i32, i32),
    driver: i32,
}

// SAFETY: the driver may be called from any thread; a context is made current by each that uses it.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// How many devices this machine has, with a driver that can use them.
pub(super) fn device_count() -> Result<usize, OpenGpuError> {
    Ok(start()?.0)
}

/// As [`device_count`], with the driver's version.
fn start() -> Result<(usize, i32), OpenGpuError> {
    // SAFETY: opening the library runs only the driver's own initializers.
    if !unsafe { sys::is_culib_present() } {
        return Err(OpenGpuError::NoDriver);
    }
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok((0, 0)),
        init => init.to("start")?,
    }
    let mut found = 0;
    // SAFETY: the pointer is to an integer of ours.
    unsafe { sys::cuDriverGetVersion(&raw mut found) }.result().to("say its version")?;
    if found < OLDEST_DRIVER {
        return Err(OpenGpuError::OldDriver { found });
    }
    let count = result::device::get_count().to("count its devices")?;
    Ok((usize::try_from(count).unwrap_or(0), found))
}

impl Context {
    pub(super) fn open(ordinal: usize) -> Result<Arc<Self>, OpenGpuError> {
        let (found, driver) = start()?;
        let index = i32::try_from(ordinal).ok().filter(|_| ordinal < found);
        let Some(index) = index else {
            return Err(OpenGpuError::NoDevice { wanted: ordinal, found });
        };
        let device = result::device::get(index).to("open the device")?;
        // SAFETY: `device` came from the driver; the context is released when this is dropped.
        let context =
            unsafe { result::primary_ctx::retain(device) }.to("open a context on the device")?;
        let mut this = Self { device, context, ordinal, capability: (0, 0), driver };
        this.bind()?;
        use sys::CUdevice_attribute as Attribute;
        let major = this.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = this.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if major < 8 {
            return Err(OpenGpuError::OldDevice { name: this.name()?, major, minor });
        }
        this.capability = (major, minor);
        Ok(Arc::new(this))
    }

    pub(super) const fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Major and minor number of what the device can do.
    pub(super) const fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Whether a kernel's blocks may begin while the last ones of the kernel before it run: kernels
    /// for such devices say what must wait.
    pub(super) const fn begins_early(&self) -> bool {
        self.capability.0 >= 9 && self.driver >= EARLY_DRIVER
    }

    /// Makes this the context of the calling thread: every entry from outside begins so.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as this.
        unsafe { result::ctx::set_current(self.context) }.to("use the device")
    }

    pub(super) fn name(&self) -> Result<String, CudaError> {
        result::device::get_name(self.device).to("name the device")
    }

    pub(super) fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<i32, CudaError> {
        // SAFETY: the device came from the driver.
        unsafe { result::device::get_attribute(self.device, attribute) }.to("describe the device")
    }

    /// Bytes that are free, and bytes in all.
    pub(super) fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.bind()?;
        result::mem_get_info().to("say how much memory is free")
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // A device that is lost refuses, and there is nothing left to be done about it.
        // SAFETY: it was retained once, and whatever lives in it holds it by an `Arc`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Memory of a device.
#[derive(Debug)]
pub(super) struct Buffer {
    context: Arc<Context>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Buffer {
    /// Memory that holds anything.
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        context.bind()?;
        // The driver gives no memory of no size.
        // SAFETY: the address is freed once, when this is dropped.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.to("give memory")?;
        Ok(Self { context: Arc::clone(context), address, bytes })
    }

    pub(super) fn zeroed(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let buffer = Self::new(context, bytes)?;
        // SAFETY: the buffer has so many bytes.
        unsafe { result::memset_d8_sync(buffer.address, 0, bytes) }.to("clear memory")?;
        finish_default_stream()?;
        Ok(buffer)
    }

    /// Memory with these values.
    pub(super) fn of<T: Pod>(context: &Arc<Context>, values: &[T]) -> Result<Self, CudaError> {
        let buffer = Self::new(context, size_of_val(values))?;
        // SAFETY: the buffer has as many bytes as the values, which the call has read when it returns.
        unsafe { result::memcpy_htod_sync(buffer.address, values) }.to("take up values")?;
        finish_default_stream()?;
        Ok(buffer)
    }

    /// Puts values where they begin so many bytes behind the first.
    pub(super) fn write<T: Pod>(&self, start: usize, values: &[T]) -> Result<(), CudaError> {
        assert!(start + size_of_val(values) <= self.bytes, "what is written has room");
        self.context.bind()?;
        // SAFETY: as in `of`, and nothing else is there.
        unsafe { result::memcpy_htod_sync(self.address + start as u64, values) }
            .to("take up values")?;
        finish_default_stream()
    }

    pub(super) const fn address(&self) -> u64 {
        self.address
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Waits until memory is as the calls have left it that name no stream: despite their names they return
/// before, and the streams of the engine do not wait for the default one.
fn finish_default_stream() -> Result<(), CudaError> {
    // SAFETY: no stream stands for the default one, which always lives.
    unsafe { result::stream::synchronize(std::ptr::null_mut()) }.to("finish its work")
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // A device that is lost has no memory to free.
        // SAFETY: nobody else has the address, and the driver waits for kernels that use it.
        let _ = self.context.bind().map(|()| unsafe { result::free_sync(self.address) });
    }
}

/// Memory of the processor that the device copies from and to by itself.
#[derive(Debug)]
pub(super) struct Pinned {
    context: Arc<Context>,
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: it is plain memory that only this owns.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        context.bind()?;
        // SAFETY: the memory is freed once, when this is dropped, and written before it is read.
        let start = unsafe { result::malloc_host(bytes.max(1), 0) }.to("give pinned memory")?;
        // SAFETY: the driver gave so many bytes.
        unsafe { start.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { context: Arc::clone(context), start, bytes })
    }

    pub(super) const fn as_slice(&self) -> &[u8] {
        // SAFETY: so many bytes were given and written, and the device is waited for before.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.bytes) }
    }

    pub(super) const fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it came from the driver and is freed once.
        let _ = self.context.bind().map(|()| unsafe { result::free_host(self.start) });
    }
}

/// Kernels of one file, compiled for the device by its driver.
#[derive(Debug)]
pub(super) struct Module {
    context: Arc<Context>,
    module: sys::CUmodule,
}

// SAFETY: as for `Context`.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    pub(super) fn compile(context: &Arc<Context>, ptx: &CString) -> Result<Self, CudaError> {
        context.bind()?;
        // SAFETY: the text ends with a zero.
        let module = unsafe { result::module::load_data(ptx.as_ptr().cast()) }
            .to("compile our kernels for the device")?;
        Ok(Self { context: Arc::clone(context), module })
    }

    /// A kernel that may use so much shared memory.
    pub(super) fn kernel(&self, name: &str, shared: SharedMemory) -> Result<Kernel, CudaError> {
        self.context.bind()?;
        let name = CString::new(name).expect("names of kernels have no zeros");
        // SAFETY: the module lives at least as long as the kernels: `Program` has both.
        let function =
            unsafe { result::module::get_function(self.module, name) }.to("find a kernel")?;
        let set = |attribute, value: usize| {
            let value = i32::try_from(value).expect("shared memory is some KiB");
            // SAFETY: the function is of a loaded module.
            unsafe { result::function::set_function_attribute(function, attribute, value) }
                .to("give a kernel its shared memory")
        };
        if shared.bytes > STATIC_SHARED_BYTES {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            set(attribute, shared.bytes)?;
        }
        if let Some(blocks) = shared.blocks {
            let all = self.context.attribute(
                sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )?;
            let all = usize::try_from(all).unwrap_or(0).max(1);
            let percent = (blocks * (shared.bytes + BLOCK_SHARED_BYTES) * 100).div_ceil(all);
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            set(attribute, percent.min(100))?;
        }
        Ok(Kernel(function))
    }
}

/// The shared memory that a kernel may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedMemory {
    pub(super) bytes: usize,
    /// For how many blocks of a multiprocessor there is to be room, where the rest is better left to the
    /// first-level cache; else for as many as there can be.
    pub(super) blocks: Option<usize>,
}

impl From<usize> for SharedMemory {
    fn from(bytes: usize) -> Self {
        Self { bytes, blocks: None }
    }
}

/// What each block has besides what it asks for.
const BLOCK_SHARED_BYTES: usize = 1024;

/// What any kernel may use of shared memory without asking: 48 KiB, less what it has by itself.
const STATIC_SHARED_BYTES: usize = 40 * 1024;

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: its kernels are dropped with it.
        let _ = self.context.bind().map(|()| unsafe { result::module::unload(self.module) });
    }
}

/// A kernel of a module that is loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel(sys::CUfunction);

// SAFETY: as for `Context`.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// Words of all arguments of a kernel: more than any of ours has.
const ARGUMENT_WORDS: usize = 32;

/// A kernel with its arguments, ready to run.
pub(super) struct Launch {
    kernel: Kernel,
    grid: [usize; 3],
    threads: usize,
    shared_bytes: usize,
    words: [u64; ARGUMENT_WORDS],
    starts: [usize; ARGUMENT_WORDS],
    arguments: usize,
    used: usize,
}

impl Launch {
    /// So many blocks of so many threads.
    pub(super) const fn new(kernel: Kernel, grid: [usize; 3], threads: usize) -> Self {
        Self {
            kernel,
            grid,
            threads,
            shared_bytes: 0,
            words: [0; ARGUMENT_WORDS],
            starts: [0; ARGUMENT_WORDS],
            arguments: 0,
            used: 0,
        }
    }

    /// With so much shared memory for each block.
    pub(super) const fn shared(mut self, bytes: usize) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// The next argument, which must have the size that the kernel's has.
    pub(super) fn with<T: Pod>(mut self, argument: T) -> Self {
        let bytes = bytemuck::bytes_of(&argument);
        let words = bytes.len().div_ceil(8);
        self.starts[self.arguments] = self.used;
        let to = bytemuck::cast_slice_mut(&mut self.words[self.used..self.used + words]);
        to[..bytes.len()].copy_from_slice(bytes);
        self.arguments += 1;
        self.used += words;
        self
    }
}
