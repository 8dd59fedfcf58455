//! The backend's threads: a fork-join that costs about a microsecond, because a decode step forks a hundred times.
//!
//! One thread leads at a time: the caller of [`Threads::run`]. While it leads, the others wait for loops actively;
//! soon after, they sleep. A loop's tasks are claimed one by one from `state` (compare and exchange), so a thread that
//! the system has put aside delays nothing but the task it holds. Lock order: `lead` only.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Work below this many multiply-adds runs on the calling thread: handing it over costs about as much.
const SPREAD_LEAST: usize = 20_000;

/// Idle turns of a thread before it lets others have its core.
const SPIN_TURNS: u32 = 4_000;

/// Idle turns before it sleeps, unless somebody leads. A step follows the one before within this time.
const AWAKE_TURNS: u32 = 20_000;

/// The backend's threads.
pub struct Threads {
    shared: Arc<Shared>,
    lead: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

/// A loop in work. `data`, `call` and `count` belong to the epoch in `state`: the leader writes them before it
/// publishes the epoch and not again until all its tasks are done.
struct Shared {
    /// Epoch in the high half; tasks that nobody has claimed yet in the low half.
    state: AtomicU64,
    /// The loop's closure.
    data: AtomicPtr<()>,
    /// `fn(*const (), usize)` that calls it.
    call: AtomicPtr<()>,
    count: AtomicUsize,
    /// Tasks of the epoch that are over.
    done: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Somebody leads: stay awake.
    leading: AtomicBool,
    stop: AtomicBool,
    sleeping: Vec<AtomicBool>,
}

thread_local! {
    /// What this thread is doing for which pool.
    static ROLE: Cell<Role> = const { Cell::new(Role::Outside) };
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Outside,
    /// Leads the pool whose `Shared` has this address.
    Leads(usize),
    /// Runs a task: loops inside it run in place.
    InTask,
}

impl Threads {
    /// A pool of `count` threads, the caller of [`Threads::run`] included.
    ///
    /// # Panics
    /// The system cannot start a thread.
    pub fn new(count: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            data: AtomicPtr::default(),
            call: AtomicPtr::default(),
            count: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            panic: Mutex::new(None),
            leading: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleeping: (1..count).map(|_| AtomicBool::new(false)).collect(),
        });
        let worker = |i: usize| {
            let shared = shared.clone();
            let builder = std::thread::Builder::new().name(format!("spindle-cpu-{i}"));
            builder.spawn(move || shared.work(i)).expect("the system can start the backend's threads")
        };
        let workers = (0..count.max(1) - 1).map(worker).collect();
        Threads { shared, lead: Mutex::new(()), workers }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `work` on the calling thread, which leads meanwhile: loops inside it find the others awake.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        let role = ROLE.get();
        if role == Role::InTask || role == self.leads() {
            return work();
        }
        let _lead = self.lead.lock().unwrap_or_else(PoisonError::into_inner);
        let _leading = Leading::start(self, role);
        work()
    }

    /// Calls `task(i)` for every `i` in `0..count`, each once, in any order, on any thread.
    /// `cost` is the multiply-adds of all tasks together.
    pub fn each(&self, count: usize, cost: usize, task: impl Fn(usize) + Send + Sync) {
        let alone = count <= 1 || cost < SPREAD_LEAST || self.workers.is_empty();
        if alone || ROLE.get() == Role::InTask {
            (0..count).for_each(task);
        } else {
            self.run(|| self.shared.spread(count, &task));
        }
    }

    fn leads(&self) -> Role {
        Role::Leads(Arc::as_ptr(&self.shared).addr())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker only ends by `stop`: its tasks' panics are caught and handed to the leader.
            let _ = worker.join();
        }
    }
}

/// Ends the lead on every way out of [`Threads::run`].
struct Leading<'a> {
    threads: &'a Threads,
    before: Role,
}

impl<'a> Leading<'a> {
    fn start(threads: &'a Threads, before: Role) -> Self {
        ROLE.set(threads.leads());
        threads.shared.leading.store(true, SeqCst);
        for (worker, sleeping) in threads.workers.iter().zip(&threads.shared.sleeping) {
            if sleeping.swap(false, SeqCst) {
                worker.thread().unpark();
            }
        }
        Leading { threads, before }
    }
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.threads.shared.leading.store(false, SeqCst);
        ROLE.set(self.before);
    }
}

/// # Safety
/// `data` is a live `F`.
unsafe fn call<F: Fn(usize) + Sync>(data: *const (), i: usize) {
    // SAFETY: by the caller's promise.
    unsafe { (*data.cast::<F>())(i) }
}

impl Shared {
    /// Publishes a loop, takes part in it, and returns when its last task is over.
    fn spread<F: Fn(usize) + Send + Sync>(&self, count: usize, task: &F) {
        let left = u32::try_from(count).expect("a loop has fewer than 2^32 tasks");
        let epoch = self.state.load(Relaxed) >> 32;
        self.data.store(std::ptr::from_ref(task).cast_mut().cast(), Relaxed);
        self.call.store(call::<F> as *mut (), Relaxed);
        self.count.store(count, Relaxed);
        self.done.store(0, Relaxed);
        self.state.store((epoch + 1) << 32 | u64::from(left), Release);
        let role = ROLE.replace(Role::InTask);
        while self.take_part() {}
        ROLE.set(role);
        let mut idle = 0;
        while self.done.load(Acquire) < count {
            idle += 1;
            if idle < SPIN_TURNS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if let Some(panic) = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            resume_unwind(panic);
        }
    }

    /// Claims and runs one task; whether there was one.
    fn take_part(&self) -> bool {
        let mut state = self.state.load(Acquire);
        loop {
            let left = state as u32;
            if left == 0 {
                return false;
            }
            let (data, call, count) = (self.data.load(Relaxed), self.call.load(Relaxed), self.count.load(Relaxed));
            match self.state.compare_exchange_weak(state, state - 1, AcqRel, Acquire) {
                Err(now) => state = now,
                Ok(_) => {
                    // SAFETY: `spread` stored a `call::<F>`. The exchange succeeded, so the epoch was still in work
                    // when the three were read, and `spread` keeps its closure until this task is counted below.
                    let run = || unsafe {
                        std::mem::transmute::<*mut (), unsafe fn(*const (), usize)>(call)(data, count - left as usize);
                    };
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                        *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                    }
                    self.done.fetch_add(1, Release);
                    return true;
                }
            }
        }
    }

    /// A worker's life.
    fn work(&self, me: usize) {
        ROLE.set(Role::InTask);
        let mut idle = 0;
        while !self.stop.load(Relaxed) {
            if self.take_part() {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle < SPIN_TURNS {
                std::hint::spin_loop();
            } else if idle < AWAKE_TURNS || self.leading.load(Relaxed) {
                std::thread::yield_now();
            } else {
                // Announced first, looked at second: `Leading::start` does the two in the other order.
                self.sleeping[me].store(true, SeqCst);
                if !self.leading.load(SeqCst) && !self.stop.load(SeqCst) {
                    std::thread::park();
                }
                self.sleeping[me].store(false, SeqCst);
                idle = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_threads() {
        for threads in [1, 2, 3, 5] {
            let threads = Threads::new(threads);
            for count in [0, 1, 2, 7, 1000] {
                for _ in 0..50 {
                    let calls: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    threads.each(count, usize::MAX >> 1, |i| {
                        calls[i].fetch_add(1, Relaxed);
                        threads.each(2, usize::MAX >> 1, |_| ());
                    });
                    assert!(calls.iter().all(|c| c.load(Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn callers_take_turns_and_a_panic_reaches_its_caller() {
        let threads = Threads::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        threads.run(|| threads.each(20, usize::MAX >> 1, |i| _ = sum.fetch_add(i, Relaxed)));
                        assert_eq!(sum.into_inner(), 190);
                    }
                });
            }
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| threads.each(9, usize::MAX >> 1, |i| assert_ne!(i, 5))));
        assert!(outcome.is_err());
        threads.each(9, usize::MAX >> 1, |_| ());
    }
}
