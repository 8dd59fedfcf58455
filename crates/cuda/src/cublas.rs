//! cuBLASLt as far as it is needed: one kind of product, its algorithm chosen once per shape and remembered.

use crate::driver::Stream;
use backend::BackendError;
use cudarc::cublaslt::sys;
use cudarc::cublaslt::sys::cublasLtMatmulDescAttributes_t as Attribute;
use cudarc::cublaslt::sys::cublasLtMatmulPreferenceAttributes_t as Preference;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Mutex;

/// The library's name.
const LIBRARY: &str = "libcublasLt.so.13";

/// Scratch that algorithms may ask for, in bytes.
pub(crate) const WORKSPACE_BYTES: usize = 32 << 20;

/// Shapes that are remembered.
const PLANS_MAX: usize = 1024;

/// `CUBLAS_OP_T`.
const TRANSPOSED: i32 = 1;

/// The library, opened once.
pub(crate) struct Cublas {
    handle: sys::cublasLtHandle_t,
    plans: Mutex<HashMap<Product, Plan>>,
}

// SAFETY: a handle may be used from any thread.
unsafe impl Send for Cublas {}
// SAFETY: cuBLASLt's handle is made to be shared; the plans have a lock.
unsafe impl Sync for Cublas {}

/// A product's shape: `out[m][n] = sum_k x[m][k] w[n][k]`, bf16 inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    pub(crate) rows: usize,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    /// Elements from row to row of x, of the weight and of the output.
    pub(crate) strides: [usize; 3],
    pub(crate) out_is_bf16: bool,
    /// What x's, the weight's and the output's address and stride are a multiple of, in bytes.
    pub(crate) alignments: [u32; 3],
}

/// What a shape is computed with.
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: handles that nobody changes once they are made.
unsafe impl Send for Plan {}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `plan`; a product that is enqueued has read them.
        unsafe {
            sys::cublasLtMatmulDescDestroy(self.operation);
            [self.weight, self.x, self.out].into_iter().for_each(|layout| {
                sys::cublasLtMatrixLayoutDestroy(layout);
            });
        }
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: made by `open`. An error at the end has nobody to hear it.
        let _ = unsafe { sys::cublasLtDestroy(self.handle) };
    }
}

impl Cublas {
    /// Opens the library: at `place` (a file or a folder) where it is given, else in CUDA_HOME's and the wheels' usual
    /// folders and on the loader's path.
    ///
    /// # Errors
    /// It is nowhere.
    pub(crate) fn open(place: Option<&Path>) -> Result<Self, BackendError> {
        let tried = candidates(place);
        let opened = tried.iter().any(|path| open_library(path));
        // SAFETY: looking for a library runs its initialisers, which are NVIDIA's.
        let present = (opened || place.is_none()) && unsafe { sys::is_culib_present() };
        if !present {
            let tried: Vec<String> = tried.iter().map(|path| path.display().to_string()).collect();
            return Err(BackendError::Unsupported {
                what: format!("this machine without {LIBRARY} (looked at {})", tried.join(", ")),
                supported: "cuBLASLt of CUDA 13: install the package nvidia-cublas or name its folder with --cublas",
            });
        }
        let mut handle = ptr::null_mut();
        // SAFETY: the call writes a handle.
        check(unsafe { sys::cublasLtCreate(&mut handle) }, "starting cuBLASLt")?;
        Ok(Cublas { handle, plans: Mutex::default() })
    }

    /// Enqueues a product.
    pub(crate) fn run(
        &self,
        stream: &Stream,
        product: Product,
        [x, weight, out, workspace]: [u64; 4],
    ) -> Result<(), BackendError> {
        let mut plans = self.plans.lock().expect("no product panicked");
        if PLANS_MAX <= plans.len() && !plans.contains_key(&product) {
            // Prompts of many lengths: shapes in use come back at once.
            plans.clear();
        }
        let plan = match plans.entry(product) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(self.plan(product)?),
        };
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: addresses of device memory as large as the layouts say, by the callers' checks of shapes.
        let result = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                plan.operation,
                ptr::from_ref(&one).cast(),
                weight as *const c_void,
                plan.weight,
                x as *const c_void,
                plan.x,
                ptr::from_ref(&zero).cast(),
                out as *const c_void,
                plan.out,
                out as *mut c_void,
                plan.out,
                &plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.raw.cast(),
            )
        };
        check(result, "a matrix product")
    }

    /// Column-major as cuBLASLt sees it: `out^T [n][m] = w [n][k] x^T [k][m]`.
    fn plan(&self, product: Product) -> Result<Plan, BackendError> {
        let Product { rows, outputs, inputs, strides, out_is_bf16, alignments } = product;
        let out_type = if out_is_bf16 { sys::cudaDataType::CUDA_R_16BF } else { sys::cudaDataType::CUDA_R_32F };
        let bf16 = sys::cudaDataType::CUDA_R_16BF;
        let mut operation = ptr::null_mut();
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        // SAFETY: the calls write handles and read the values given by reference.
        unsafe {
            check(sys::cublasLtMatmulDescCreate(&mut operation, compute, scale), "describing a product")?;
            let set = sys::cublasLtMatmulDescSetAttribute(
                operation,
                Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
                ptr::from_ref(&TRANSPOSED).cast(),
                size_of_val(&TRANSPOSED),
            );
            check(set, "describing a product")?;
        }
        let weight = layout(bf16, inputs, outputs, strides[1])?;
        let x = layout(bf16, inputs, rows, strides[0])?;
        let out = layout(out_type, outputs, rows, strides[2])?;
        let algorithm = self.choose(operation, [weight, x, out], alignments, product)?;
        Ok(Plan { operation, weight, x, out, algorithm })
    }

    /// The library's first choice.
    fn choose(
        &self,
        operation: sys::cublasLtMatmulDesc_t,
        [weight, x, out]: [sys::cublasLtMatrixLayout_t; 3],
        [x_alignment, weight_alignment, out_alignment]: [u32; 3],
        product: Product,
    ) -> Result<sys::cublasLtMatmulAlgo_t, BackendError> {
        let mut preference = ptr::null_mut();
        // SAFETY: the call writes a handle.
        check(unsafe { sys::cublasLtMatmulPreferenceCreate(&mut preference) }, "choosing a product's algorithm")?;
        set(preference, Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE_BYTES as u64))?;
        set(preference, Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &weight_alignment)?;
        set(preference, Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &x_alignment)?;
        set(preference, Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &out_alignment)?;
        set(preference, Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &out_alignment)?;
        // SAFETY: plain data, for which all zeros are valid; the call fills it.
        let (mut found, mut count) = (unsafe { std::mem::zeroed::<sys::cublasLtMatmulHeuristicResult_t>() }, 0);
        // SAFETY: handles that live; room for one result.
        let result = unsafe {
            let result = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                operation,
                weight,
                x,
                out,
                out,
                preference,
                1,
                &mut found,
                &mut count,
            );
            sys::cublasLtMatmulPreferenceDestroy(preference);
            result
        };
        check(result, &format!("choosing an algorithm for {product:?}"))?;
        match count {
            0 => Err(BackendError::DeviceLost(format!("cuBLASLt has no algorithm for {product:?}"))),
            _ => Ok(found.algo),
        }
    }
}

fn layout(
    element: sys::cudaDataType,
    rows: usize,
    cols: usize,
    stride: usize,
) -> Result<sys::cublasLtMatrixLayout_t, BackendError> {
    let mut layout = ptr::null_mut();
    // SAFETY: the call writes a handle.
    let result =
        unsafe { sys::cublasLtMatrixLayoutCreate(&mut layout, element, rows as u64, cols as u64, stride as i64) };
    check(result, "describing a matrix")?;
    Ok(layout)
}

fn set<T>(preference: sys::cublasLtMatmulPreference_t, what: Preference, value: &T) -> Result<(), BackendError> {
    // SAFETY: a handle that lives; the call reads the value.
    let result = unsafe {
        sys::cublasLtMatmulPreferenceSetAttribute(preference, what, ptr::from_ref(value).cast(), size_of::<T>())
    };
    check(result, "choosing a product's algorithm")
}

fn check(result: sys::cublasStatus_t, what: &str) -> Result<(), BackendError> {
    match result {
        sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        other => Err(BackendError::DeviceLost(format!("{what}: {other:?}"))),
    }
}

/// Where the library may be.
fn candidates(place: Option<&Path>) -> Vec<PathBuf> {
    match place {
        Some(folder) if folder.is_dir() => vec![folder.join(LIBRARY)],
        Some(file) => vec![file.to_path_buf()],
        None => ["/usr/local/cuda/lib64", "/usr/local/cuda-13.0/lib64", "/usr/lib/x86_64-linux-gnu"]
            .iter()
            .map(|folder| Path::new(folder).join(LIBRARY))
            .chain([PathBuf::from(LIBRARY)])
            .collect(),
    }
}

/// Opens a library for good, so that whoever asks for it by its name finds it.
fn open_library(path: &Path) -> bool {
    // SAFETY: opening a library runs its initialisers, which are NVIDIA's.
    match unsafe { libloading::os::unix::Library::open(Some(path), libloading::os::unix::RTLD_NOW | GLOBAL) } {
        Ok(library) => {
            std::mem::forget(library);
            is_open()
        }
        Err(_) => false,
    }
}

/// Whether the library is open by its own name: a file may be something else.
fn is_open() -> bool {
    // SAFETY: nothing is opened that is not open yet.
    unsafe { libloading::os::unix::Library::open(Some(LIBRARY), libloading::os::unix::RTLD_NOW | NOLOAD) }.is_ok()
}

/// Only what is open already: `RTLD_NOLOAD` of Linux.
const NOLOAD: i32 = 4;

/// Symbols serve libraries that are opened later.
const GLOBAL: i32 = libloading::os::unix::RTLD_GLOBAL;
