//! Work that a device does in order: copies, kernels, and graphs of them.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{ARGUMENT_WORDS, Buffer, Context, CudaError, Launch, Named as _, Pinned};

/// What is computed one after the other.
#[derive(Debug)]
pub(in crate::cuda) struct Stream {
    context: Arc<Context>,
    stream: sys::CUstream,
}

// SAFETY: as for `Context`.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(in crate::cuda) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        context.bind()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .to("open a stream of work")?;
        Ok(Self { context: Arc::clone(context), stream })
    }

    /// Waits until all is done.
    pub(in crate::cuda) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.stream) }.to("finish its work")
    }

    /// What `work` gives. Where it ends midway, the part of it that was enqueued is waited for, since who
    /// comes next writes into the memory that copies under way read.
    pub(in crate::cuda) fn whole<T, E>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        work().inspect_err(|_| {
            // A device that is lost says so again at the next call.
            let _lost = self.synchronize();
        })
    }

    pub(in crate::cuda) fn launch(&self, mut launch: Launch) -> Result<(), CudaError> {
        let words = launch.words.as_mut_ptr();
        let mut arguments: [*mut c_void; ARGUMENT_WORDS] = [std::ptr::null_mut(); ARGUMENT_WORDS];
        for (argument, start) in arguments.iter_mut().zip(&launch.starts[..launch.arguments]) {
            // SAFETY: every argument begins within the words.
            *argument = unsafe { words.add(*start) }.cast();
        }
        let size = |size: usize| u32::try_from(size).expect("grids are checked by who makes them");
        let [x, y, z] = launch.grid.map(size);
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: size(launch.threads),
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: size(launch.shared_bytes),
            hStream: self.stream,
            attrs: &raw mut early,
            numAttrs: u32::from(self.context.begins_early()),
        };
        let (kernel, arguments) = (launch.kernel.0, arguments.as_mut_ptr());
        // SAFETY: the arguments are those of the kernel, in its order and with its sizes; each launch
        // is written beside the kernel's signature, and every one is tested. The attribute outlives
        // the call.
        unsafe { sys::cuLaunchKernelEx(&raw const config, kernel, arguments, std::ptr::null_mut()) }
            .result()
            .to("start a kernel")
    }

    /// Copies the first `bytes` of pinned memory to the device's.
    pub(in crate::cuda) fn upload(
        &self,
        from: &Pinned,
        bytes: usize,
        to: &Buffer,
    ) -> Result<(), CudaError> {
        assert!(bytes <= to.bytes, "what is copied fits");
        // SAFETY: both have so many bytes and live until the stream is waited for.
        unsafe { result::memcpy_htod_async(to.address, &from.as_slice()[..bytes], self.stream) }
            .to("copy to the device")
    }

    /// Copies from somewhere in pinned memory to somewhere in the device's.
    pub(in crate::cuda) fn upload_part(
        &self,
        from: &Pinned,
        range: std::ops::Range<usize>,
        to: &Buffer,
        start: usize,
    ) -> Result<(), CudaError> {
        assert!(start + range.len() <= to.bytes, "what is copied fits");
        let address = to.address + start as u64;
        // SAFETY: as in `upload`.
        unsafe { result::memcpy_htod_async(address, &from.as_slice()[range], self.stream) }
            .to("copy to the device")
    }

    /// Copies the first `bytes` at an address of the device to pinned memory.
    pub(in crate::cuda) fn download(
        &self,
        from: &Buffer,
        bytes: usize,
        to: &mut Pinned,
    ) -> Result<(), CudaError> {
        assert!(bytes <= from.bytes, "what is copied is there");
        let to = &mut to.as_mut_slice()[..bytes];
        // SAFETY: both have so many bytes and live until the stream is waited for.
        unsafe { result::memcpy_dtoh_async(to, from.address, self.stream) }
            .to("copy from the device")
    }

    /// Makes zeros of a part of a buffer.
    pub(in crate::cuda) fn clear(
        &self,
        buffer: &Buffer,
        start: usize,
        bytes: usize,
    ) -> Result<(), CudaError> {
        assert!(start + bytes <= buffer.bytes, "what is cleared lies in the buffer");
        // SAFETY: the part lies in the buffer, which lives until the stream is waited for.
        unsafe { result::memset_d8_async(buffer.address + start as u64, 0, bytes, self.stream) }
            .to("clear memory")
    }

    /// Copies all of a buffer into one of its size.
    pub(in crate::cuda) fn copy(&self, from: &Buffer, to: &Buffer) -> Result<(), CudaError> {
        assert_eq!(from.bytes, to.bytes, "a copy has the size of its original");
        // SAFETY: both have so many bytes; memory is freed when the stream has come so far.
        unsafe { result::memcpy_dtod_async(to.address, from.address, from.bytes, self.stream) }
            .to("copy within the device")
    }

    /// Copies within the memory of a buffer.
    pub(in crate::cuda) fn copy_within(
        &self,
        buffer: &Buffer,
        from: usize,
        to: usize,
        bytes: usize,
    ) -> Result<(), CudaError> {
        assert!(from.max(to) + bytes <= buffer.bytes, "what is copied lies in the buffer");
        let address = |place: usize| buffer.address + place as u64;
        // SAFETY: both places lie in the buffer, which lives until the stream is waited for.
        unsafe { result::memcpy_dtod_async(address(to), address(from), bytes, self.stream) }
            .to("copy within the device")
    }

    /// Notes what `work` launches instead of running it.
    pub(in crate::cuda) fn capture(
        &self,
        work: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives, and the capture is ended below whatever happens.
        unsafe { result::stream::begin_capture(self.stream, mode) }.to("note down a pass")?;
        let worked = work();
        // SAFETY: as above.
        let graph = unsafe { result::stream::end_capture(self.stream) }.to("note down a pass");
        let prepared = worked.and(graph).and_then(|graph| {
            // SAFETY: the graph came from the capture.
            unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) }
                .to("prepare a pass")
        });
        if let Ok(graph) = graph {
            // SAFETY: it is destroyed once, and what was made of it stands by itself.
            let _ = unsafe { result::graph::destroy(graph) };
        }
        Ok(Graph { context: Arc::clone(&self.context), executable: prepared? })
    }

    /// Runs what was noted.
    pub(in crate::cuda) fn run(&self, graph: &Graph) -> Result<(), CudaError> {
        // SAFETY: the graph lives, and what its kernels use is held by who noted it.
        unsafe { result::graph::launch(graph.executable, self.stream) }.to("start a pass")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once.
        let _ = self.context.bind().map(|()| unsafe { result::stream::destroy(self.stream) });
    }
}

/// A pass that was noted.
#[derive(Debug)]
pub(in crate::cuda) struct Graph {
    context: Arc<Context>,
    executable: sys::CUgraphExec,
}

// SAFETY: as for `Context`.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once, and no pass is under way.
        let _ =
            self.context.bind().map(|()| unsafe { result::graph::exec_destroy(self.executable) });
    }
}
