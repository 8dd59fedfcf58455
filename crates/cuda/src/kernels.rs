//! Kernels by name: machine code embedded at build time, looked up once.

use crate::driver::{Context, Stream, check};
use backend::BackendError;
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

macro_rules! fatbins {
    ($($name:literal)*) => {
        &[$(include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin"))),*]
    };
}

/// Kernels of a decode step, by how their names begin, that wait for what they need themselves
/// (`wait_for_predecessor`: some thread of every grid, and every thread before it reads what another kernel of the step
/// wrote, `begin_step` aside, which nothing overlaps): they may start while the kernel before them still runs.
const OVERLAPPING: &[&str] = &[
    "add_norm",
    "attend_",
    "embed",
    "estimate_",
    "gemm_few_",
    "group_reduce",
    "made_up_selection",
    "merge",
    "pool_mean",
    "qkv_append",
    "resolve",
    "retrieve",
    "rotate_",
    "sample_",
    "score_codes_",
    "score_dot_",
    "silu_mul",
    "topk",
];

const FATBINS: &[&[u8]] = fatbins![
    "attend" "attention_mass" "copy_rows" "elementwise" "estimate" "gemm" "group_reduce" "made_up" "merge" "pool_mean"
    "prefill_attend" "qkv_append" "resolve" "retrieve" "rotate_code" "sample" "score_codes" "score_dot" "score_tokens"
    "staging" "step" "topk"
];

/// The architecture from which on `wait_for_predecessor` is more than nothing.
const WAITS_FROM: i32 = 90;

/// Architectures that machine code is embedded for.
pub(crate) const ARCHITECTURES: &str = env!("SPINDLE_CUDA_ARCHITECTURES");

/// Dynamic shared memory that a block has without asking: 48 KiB, less what a kernel's own arrays take of it.
const SHARED_DEFAULT: usize = 32 << 10;

/// All kernels of a context.
pub(crate) struct Kernels {
    context: Arc<Context>,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<String, Function>>,
}

#[derive(Clone, Copy)]
struct Function {
    raw: sys::CUfunction,
    /// Most dynamic shared memory asked for; grows.
    shared: usize,
    /// See [`OVERLAPPING`].
    overlaps: bool,
}

// SAFETY: handles may be used from any thread.
unsafe impl Send for Kernels {}
// SAFETY: the map has a lock, and the driver locks its own.
unsafe impl Sync for Kernels {}

/// A kernel's argument.
#[derive(Clone, Copy)]
pub(crate) struct Argument<'a>(*mut c_void, PhantomData<&'a ()>);

/// An argument by reference; its type must be what the kernel declares.
pub(crate) fn arg<T: Copy>(value: &T) -> Argument<'_> {
    Argument((value as *const T).cast_mut().cast(), PhantomData)
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch<'a> {
    /// Its name.
    pub(crate) kernel: &'a str,
    /// Blocks.
    pub(crate) grid: [usize; 3],
    /// Threads of a block.
    pub(crate) threads: usize,
    /// Bytes of dynamic shared memory.
    pub(crate) shared: usize,
}

impl Kernels {
    /// Loads all modules.
    pub(crate) fn load(context: Arc<Context>) -> Result<Self, BackendError> {
        let mut modules = Vec::new();
        for fatbin in FATBINS {
            let mut module = std::ptr::null_mut();
            // SAFETY: a fatbin made by nvcc; the call writes a handle.
            let result = unsafe { sys::cuModuleLoadData(&mut module, fatbin.as_ptr().cast()) };
            if result == sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU {
                return Err(BackendError::Unsupported {
                    what: "this GPU's architecture".to_string(),
                    supported: "compute capability 8.0 and newer; build with SPINDLE_CUDA_ARCHITECTURES for others",
                });
            }
            check(result, "loading the kernels (is the driver 580 or newer?)")?;
            modules.push(module);
        }
        let mut functions = HashMap::new();
        modules.iter().try_for_each(|module| add_functions(*module, &mut functions))?;
        Ok(Kernels { context, modules, functions: Mutex::new(functions) })
    }

    /// Whether this device's machine code has a kernel: some are for one architecture.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.functions.lock().expect("no launch panicked").contains_key(name)
    }

    /// Enqueues a kernel.
    ///
    /// # Panics
    /// There is no such kernel.
    pub(crate) fn launch(
        &self,
        stream: &Stream,
        how: Launch<'_>,
        arguments: &[Argument<'_>],
    ) -> Result<(), BackendError> {
        let [x, y, z] = how.grid.map(|extent| u32::try_from(extent).expect("a grid's extents have 32 bits"));
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let function = self.function(how.kernel, how.shared)?;
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(|argument| argument.0).collect();
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: how.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: how.shared as u32,
            hStream: stream.raw,
            attrs: &mut attribute,
            numAttrs: (stream.overlaps && function.overlaps).into(),
        };
        // SAFETY: the arguments have the kernel's types, by the convention of `src/<op>.rs` and `kernels/<op>.cu`;
        // the driver copies them before it returns.
        let launched =
            unsafe { sys::cuLaunchKernelEx(&config, function.raw, pointers.as_mut_ptr(), std::ptr::null_mut()) };
        check(launched, how.kernel)
    }

    fn function(&self, name: &str, shared: usize) -> Result<Function, BackendError> {
        let mut functions = self.functions.lock().expect("no launch panicked");
        let function = functions.get_mut(name).unwrap_or_else(|| panic!("there is no kernel {name}"));
        if function.shared < shared {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function that lives.
            check(unsafe { sys::cuFuncSetAttribute(function.raw, attribute, shared as i32) }, name)?;
            function.shared = shared;
        }
        Ok(*function)
    }
}

/// Adds a module's kernels.
fn add_functions(module: sys::CUmodule, functions: &mut HashMap<String, Function>) -> Result<(), BackendError> {
    let mut count = 0;
    // SAFETY: a module that lives; the call writes an int.
    check(unsafe { sys::cuModuleGetFunctionCount(&mut count, module) }, "counting kernels")?;
    let mut handles = vec![std::ptr::null_mut(); count as usize];
    // SAFETY: room for as many handles.
    check(unsafe { sys::cuModuleEnumerateFunctions(handles.as_mut_ptr(), count, module) }, "listing kernels")?;
    for raw in handles {
        let mut name = std::ptr::null();
        // SAFETY: a function that lives; the call writes a pointer to a string that lives as long.
        check(unsafe { sys::cuFuncGetName(&mut name, raw) }, "naming a kernel")?;
        // SAFETY: a string with a zero at its end.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let mut ptx = 0;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION;
        // SAFETY: a function that lives; the call writes an int.
        check(unsafe { sys::cuFuncGetAttribute(&mut ptx, attribute, raw) }, "asking for a kernel's architecture")?;
        let overlaps = WAITS_FROM <= ptx && OVERLAPPING.iter().any(|start| name.starts_with(start));
        functions.insert(name, Function { raw, shared: SHARED_DEFAULT, overlaps });
    }
    Ok(())
}

impl Drop for Kernels {
    fn drop(&mut self) {
        // The last owner may be any thread.
        let _ = self.context.bind();
        for module in &self.modules {
            // SAFETY: loaded in `load`.
            let _ = unsafe { sys::cuModuleUnload(*module) };
        }
    }
}
