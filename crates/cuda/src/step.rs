//! A step: its input goes to a pinned slot, and one captured graph applies it and runs to the sampled tokens. The host
//! may launch the next step before it collects this one.

use crate::abi::LaneOutputArgument;
use crate::driver::{Event, Pinned, Stream, check};
use crate::kernels::{Launch, arg};
use crate::residency;
use crate::runtime::CudaRuntime;
use crate::sample::{Closed, lane_output};
use backend::{BackendError, RowTableKind, RuntimeShape, StepInput, StepKey, StepOutput, Ticket, TokenMask};
use cudarc::driver::sys;
use kv::LaneId;
use std::collections::{HashMap, VecDeque};
use std::ptr;
use std::sync::atomic::Ordering;

/// Steps that may be in flight.
pub(crate) const IN_FLIGHT: usize = 2;

/// Graphs that are kept; the least recently used one makes room.
const GRAPHS_MAX: usize = 64;

/// Captured graphs and what is in flight.
pub(crate) struct Steps {
    /// Two slots of `slot_bytes`: inputs of even and odd steps.
    input: Pinned,
    slot_bytes: usize,
    graphs: HashMap<StepKey, Graph>,
    /// Decode steps launched: the number of the last one.
    launched: u64,
    tickets: u64,
    flights: VecDeque<Flight>,
    /// Lanes of the last step.
    pub(crate) active: Vec<LaneId>,
}

struct Graph {
    raw: sys::CUgraphExec,
    /// Number of the last step that it ran.
    used: u64,
}

// SAFETY: a graph may be launched from any thread, one at a time.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `instantiate`; the driver keeps what still runs.
        let _ = unsafe { sys::cuGraphExecDestroy(self.raw) };
    }
}

/// What a ticket stands for.
struct Flight {
    ticket: u64,
    /// Missing where the device failed before.
    done: Option<Event>,
    /// The step's number and lanes; `None` for a fence.
    step: Option<(u64, Vec<LaneId>)>,
    prefilled: Closed,
}

/// Lanes that a slot has room for.
fn width(max_lanes: usize) -> usize {
    max_lanes.next_multiple_of(4)
}

impl Steps {
    pub(crate) fn new(shape: &RuntimeShape) -> Result<Self, BackendError> {
        let width = width(shape.max_lanes);
        let slot_bytes = 4 * (4 + 12 * width + width * shape.vocab.div_ceil(32)).next_multiple_of(64);
        Ok(Steps {
            input: Pinned::new(2 * slot_bytes)?,
            slot_bytes,
            graphs: HashMap::new(),
            launched: 0,
            tickets: 0,
            flights: VecDeque::new(),
            active: Vec::new(),
        })
    }

    /// Writes a step's input to its slot; its last user was collected.
    fn write(&mut self, shape: &RuntimeShape, input: &StepInput) {
        let width = width(shape.max_lanes);
        assert!(input.active.is_sorted_by(|a, b| a < b), "active lanes ascend: {:?}", input.active);
        assert!(input.active.len() <= width && input.rows.len() <= 2 * width, "a step's input is bounded by the lanes");
        assert!(input.forced.len() <= width && input.masks.len() <= width, "one forced token and one mask a lane");
        let mask_words = shape.vocab.div_ceil(32);
        let fits = |(_, mask): &(LaneId, TokenMask)| mask.words().len() == mask_words;
        assert!(input.masks.iter().all(fits), "masks of the model's vocabulary");
        let slot = (self.launched as usize & 1) * self.slot_bytes;
        // SAFETY: the slot has that many words, aligned to 4, and no kernel reads it now.
        let words =
            unsafe { std::slice::from_raw_parts_mut(self.input.host.add(slot).cast::<u32>(), self.slot_bytes / 4) };
        let (head, rest) = words.split_at_mut(4);
        let counts = [input.active.len(), input.rows.len(), input.forced.len(), input.masks.len()];
        head.iter_mut().zip(counts).for_each(|(word, count)| *word = count as u32);
        let (active, rest) = rest.split_at_mut(width);
        active.iter_mut().zip(&input.active).for_each(|(word, lane)| *word = u32::from(lane.0));
        let (rows, rest) = rest.split_at_mut(8 * width);
        for (words, delta) in rows.chunks_exact_mut(4).zip(&input.rows) {
            let table = u32::from(delta.table == RowTableKind::Summary);
            words.copy_from_slice(&[u32::from(delta.lane.0), table, delta.index as u32, delta.row.0]);
        }
        let (forced, rest) = rest.split_at_mut(2 * width);
        for (words, (lane, token)) in forced.chunks_exact_mut(2).zip(&input.forced) {
            words.copy_from_slice(&[u32::from(lane.0), *token]);
        }
        let (masked, masks) = rest.split_at_mut(width);
        for (i, (lane, mask)) in input.masks.iter().enumerate() {
            masked[i] = u32::from(lane.0);
            masks[i * mask.words().len()..][..mask.words().len()].copy_from_slice(mask.words());
        }
    }

    /// The graph of a key, if it was captured.
    fn graph(&mut self, key: &StepKey) -> Option<sys::CUgraphExec> {
        let launched = self.launched;
        self.graphs.get_mut(key).map(|graph| {
            graph.used = launched;
            graph.raw
        })
    }

    fn keep(&mut self, key: StepKey, raw: sys::CUgraphExec) {
        if self.graphs.len() == GRAPHS_MAX {
            let oldest = self.graphs.iter().min_by_key(|(_, graph)| graph.used).map(|(key, _)| *key);
            oldest.iter().for_each(|key| drop(self.graphs.remove(key)));
        }
        self.graphs.insert(key, Graph { raw, used: self.launched });
    }
}

/// A stream that captures, until this goes.
struct Capturing<'a>(&'a Stream);

/// What was captured; not needed once it is instantiated.
struct Captured(sys::CUgraph);

impl<'a> Capturing<'a> {
    fn begin(stream: &'a Stream) -> Result<Self, BackendError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: a stream that lives and captures nothing yet.
        check(unsafe { sys::cuStreamBeginCapture_v2(stream.raw, mode) }, "capturing a step")?;
        Ok(Capturing(stream))
    }

    fn end(self) -> Result<Captured, BackendError> {
        let mut graph = ptr::null_mut();
        // SAFETY: the stream captures; the call writes a handle.
        let ended = unsafe { sys::cuStreamEndCapture(self.0.raw, &mut graph) };
        std::mem::forget(self);
        check(ended, "capturing a step").map(|()| Captured(graph))
    }
}

impl Drop for Capturing<'_> {
    fn drop(&mut self) {
        // An op panicked: its step is given up.
        let mut graph = ptr::null_mut();
        // SAFETY: the stream captures; the call writes a handle, or null.
        let _ = unsafe { sys::cuStreamEndCapture(self.0.raw, &mut graph) };
        drop(Captured(graph));
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: captured, and destroyed once.
            let _ = unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

impl CudaRuntime {
    /// See [`backend::Runtime::launch`].
    pub(crate) fn launch_step(&self, key: StepKey, input: &StepInput, record: &mut (dyn FnMut() + Send)) -> Ticket {
        self.note(self.gpu.context.bind());
        self.join();
        let known = {
            let mut steps = self.steps.lock().expect("no launch panicked");
            let waiting = steps.flights.iter().filter(|flight| flight.step.is_some()).count();
            assert!(waiting < IN_FLIGHT, "a step is collected before the one after the next is launched");
            assert!(!input.active.is_empty() && input.active.len() <= key.bucket, "a bucket holds the active lanes");
            assert!(key.bucket <= self.shape.max_lanes, "a bucket of {} of {} lanes", key.bucket, self.shape.max_lanes);
            steps.launched += 1;
            steps.write(&self.shape, input);
            steps.active.clone_from(&input.active);
            steps.graph(&key)
        };
        self.bucket.store(key.bucket, Ordering::Relaxed);
        residency::move_homes(self, &input.moves);
        if self.failure().is_none() {
            let result = match known {
                Some(graph) => self.replay(graph),
                None if self.gpu.options.capture => self.capture(key, record).and_then(|graph| self.replay(graph)),
                None => {
                    self.record_step(key, record);
                    Ok(())
                }
            };
            self.note(result);
        }
        let step = self.steps.lock().expect("no launch panicked").launched;
        self.close(Some((step, input.active.clone())))
    }

    /// See [`backend::Runtime::fence`].
    pub(crate) fn fence_step(&self) -> Ticket {
        self.note(self.gpu.context.bind());
        self.join();
        self.close(None)
    }

    /// See [`backend::Runtime::collect`].
    pub(crate) fn collect_step(&self, ticket: &Ticket) -> Result<StepOutput, BackendError> {
        self.gpu.context.bind()?;
        let flight = self.steps.lock().expect("no launch panicked").flights.pop_front();
        let flight = flight.filter(|flight| flight.ticket == ticket.0).expect("tickets are collected in order, once");
        if self.failure().is_none() {
            flight.done.iter().for_each(|done| self.note(done.synchronize()));
        }
        if let Some(message) = self.failure() {
            return Err(BackendError::DeviceLost(message));
        }
        let (prefilled, scores) = self.prefilled.lock().expect("no sample panicked").take(flight.prefilled);
        let lanes = flight.step.map_or_else(Vec::new, |(step, active)| self.read_outputs(step, active.len()));
        Ok(StepOutput { lanes, prefilled, scores })
    }

    fn read_outputs(&self, step: u64, lanes: usize) -> Vec<backend::LaneOutput> {
        let first = (step as usize & 1) * self.shape.max_lanes;
        let outputs = self.outputs.host.cast::<LaneOutputArgument>();
        // SAFETY: the step is done, its slot has `max_lanes` records, and the next but one is not launched yet.
        (0..lanes).map(|i| lane_output(&unsafe { outputs.add(first + i).read_volatile() })).collect()
    }

    /// Marks the end of what was enqueued.
    fn close(&self, step: Option<(u64, Vec<LaneId>)>) -> Ticket {
        let done = Event::new().and_then(|event| event.record(&self.gpu.main).map(|()| event));
        let done = done.map_err(|error| self.note(Err(error))).ok();
        let prefilled = self.prefilled.lock().expect("no sample panicked").close();
        let mut steps = self.steps.lock().expect("no launch panicked");
        steps.tickets += 1;
        let ticket = steps.tickets;
        steps.flights.push_back(Flight { ticket, done, step, prefilled });
        Ticket(ticket)
    }

    /// Enqueues a step's kernels.
    fn record_step(&self, key: StepKey, record: &mut (dyn FnMut() + Send)) {
        let (slots, slot_bytes) = {
            let steps = self.steps.lock().expect("no launch panicked");
            (steps.input.device, steps.slot_bytes as i32)
        };
        let begin = Launch { kernel: "begin_step", grid: [1, 1, 1], threads: 1024, shared: 0 };
        let algorithms = key.algorithms.0 as i32;
        self.run(begin, &[arg(&self.argument), arg(&slots), arg(&slot_bytes), arg(&algorithms)]);
        let masks = Launch { kernel: "copy_masks", grid: [4, key.bucket, 1], threads: 256, shared: 0 };
        self.run(masks, &[arg(&self.argument), arg(&slots), arg(&slot_bytes)]);
        record();
    }

    /// Captures a step's kernels as a graph.
    fn capture(&self, key: StepKey, record: &mut (dyn FnMut() + Send)) -> Result<sys::CUgraphExec, BackendError> {
        let capturing = Capturing::begin(&self.gpu.main)?;
        self.record_step(key, record);
        let graph = capturing.end()?;
        if let Some(message) = self.failure() {
            return Err(BackendError::DeviceLost(message));
        }
        let mut raw = ptr::null_mut();
        // SAFETY: a graph that lives; the call writes a handle.
        check(unsafe { sys::cuGraphInstantiateWithFlags(&mut raw, graph.0, 0) }, "making a step's graph")?;
        self.steps.lock().expect("no launch panicked").keep(key, raw);
        Ok(raw)
    }

    fn replay(&self, graph: sys::CUgraphExec) -> Result<(), BackendError> {
        // SAFETY: a graph that is kept; its kernels' arguments live as long as the runtime.
        check(unsafe { sys::cuGraphLaunch(graph, self.gpu.main.raw) }, "launching a step")
    }
}
