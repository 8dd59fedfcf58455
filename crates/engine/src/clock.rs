//! Where durations come from: the only clock below the command line, so that a simulator can bring its own.

use std::time::Instant;

/// A clock that never goes back.
pub trait Clock: Send + Sync {
    /// Seconds since some start.
    fn seconds(&self) -> f64;
}

/// The machine's.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock that starts now.
    pub fn new() -> Self {
        SystemClock { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}
