//! One pool of threads per backend, and the decision when a loop is worth spreading.

use rayon::prelude::*;

/// Work below this many multiply-adds runs on the calling thread: handing it over costs about as much.
const SPREAD_LEAST: usize = 40_000;

/// The backend's threads.
pub struct Threads {
    pool: rayon::ThreadPool,
}

impl Threads {
    /// A pool of `count` threads.
    ///
    /// # Panics
    /// The system cannot start a thread.
    pub fn new(count: usize) -> Self {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("spindle-cpu-{i}"))
            .build()
            .expect("the system can start the backend's threads");
        Threads { pool }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` on one of the threads; loops inside it spread without a hand-over from outside.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// Calls `task(i)` for every `i` in `0..count`, each once, in any order, on any thread.
    /// `cost` is the multiply-adds of all tasks together.
    pub fn each(&self, count: usize, cost: usize, task: impl Fn(usize) + Send + Sync) {
        if count <= 1 || cost < SPREAD_LEAST || self.count() == 1 {
            (0..count).for_each(task);
        } else {
            self.pool.install(|| (0..count).into_par_iter().with_max_len(1).for_each(task));
        }
    }
}
