//! Where durations come from: the only clock below the command line, so that a simulator can bring its own.

use std::sync::Arc;
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

/// Tells how long each part of something took.
pub(crate) struct Watch {
    clock: Arc<dyn Clock>,
    since: f64,
}

impl Watch {
    /// Starts the first part.
    pub(crate) fn start(clock: Arc<dyn Clock>) -> Self {
        let since = clock.seconds();
        Watch { clock, since }
    }

    /// Microseconds of the part that ends here; the next one starts.
    pub(crate) fn lap(&mut self) -> u64 {
        let now = self.clock.seconds();
        let part = now - std::mem::replace(&mut self.since, now);
        (part * 1e6).round() as u64
    }
}
