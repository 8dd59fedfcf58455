//! What the machine can do: multiply-adds in registers, bytes read from memory.

use backend::cpu::Isa;
use backend::cpu::array::Array;
use backend::cpu::simd::{Kernel, Lanes, Simd};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

/// The processor's name.
pub(crate) fn name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or("unknown processor".to_owned(), |(_, name)| name.trim().to_owned())
}

/// What time is.
#[derive(Clone, Copy)]
pub(crate) enum Clock {
    /// On the wall, since then.
    Wall(Instant),
    /// On a processor, of the calling thread (Linux).
    Thread,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Clock::Wall(Instant::now())
    }

    /// Seconds so far.
    pub(crate) fn now(self) -> f64 {
        match self {
            Clock::Wall(start) => start.elapsed().as_secs_f64(),
            Clock::Thread => thread_seconds(),
        }
    }
}

/// Seconds that the calling thread has been on a processor.
fn thread_seconds() -> f64 {
    /// `CLOCK_THREAD_CPUTIME_ID` of Linux.
    const THREAD_TIME: i32 = 3;
    // SAFETY: declared as the C library of 64-bit Linux has it.
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    let mut time = [0; 2];
    // SAFETY: the C library, which std links, writes a `timespec` of two 64-bit numbers.
    let outcome = unsafe { clock_gettime(THREAD_TIME, &raw mut time) };
    assert_eq!(outcome, 0, "64-bit Linux has a thread clock");
    time[0] as f64 + time[1] as f64 / 1e9
}

/// Chains of multiply-adds that fill the pipelines: 4 cycles of latency, 2 a cycle, and some to spare.
const CHAINS: usize = 12;
const TURNS: usize = 1 << 21;

struct Fma(f32);

impl Kernel for Fma {
    /// Operations.
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self) -> usize {
        self.chains::<S::Wide>()
    }
}

impl Fma {
    #[inline(always)]
    fn chains<L: Lanes>(self) -> usize {
        let (x, y) = (L::splat(self.0), L::splat(1.0 - self.0));
        let mut sums = [L::splat(self.0); CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = L::fma(*sum, x, y);
            }
        }
        for sum in sums {
            std::hint::black_box(L::sum(sum));
        }
        TURNS * CHAINS * L::LANES * 2
    }
}

/// Runs `work(i)` on `threads` threads at once; seconds until the last is done.
fn together(clock: Clock, threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let timed = |i| {
        barrier.wait();
        let start = clock.now();
        work(i);
        clock.now() - start
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|i| scope.spawn(move || timed(i))).collect();
        handles.into_iter().map(|handle| handle.join().expect("no panic")).fold(0.0, f64::max)
    })
}

/// Floating-point operations a second of all threads in a loop without loads.
pub(crate) fn fma_peak(clock: Clock, isa: Isa, threads: usize) -> f64 {
    let operations = AtomicUsize::new(0);
    let seconds = together(clock, threads, |_| {
        operations.fetch_add(isa.run(Fma(std::hint::black_box(0.5))), Relaxed);
    });
    operations.into_inner() as f64 / seconds
}

/// Larger than any cache by far.
const READ_ELEMENTS: usize = 64 << 20;

/// Sums over a large array.
pub(crate) struct ReadBandwidth {
    elements: Array<f32>,
}

struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut sums = [S::splat(0.0); 8];
        for chunk in self.0.chunks_exact(64) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: eight elements inside the chunk.
                *sum = S::add(*sum, unsafe { S::load(chunk.as_ptr().add(8 * i)) });
            }
        }
        sums.into_iter().map(|sum| S::sum(sum)).sum()
    }
}

impl ReadBandwidth {
    pub(crate) fn new() -> Self {
        let elements = Array::zeros("a bench", READ_ELEMENTS).expect("memory");
        // SAFETY: nobody else has the array. Written, because untouched memory is one page of zeros read many times.
        unsafe { elements.part(0..READ_ELEMENTS) }.fill(1.0);
        ReadBandwidth { elements }
    }

    /// Bytes a second, with the number of threads that reads fastest.
    pub(crate) fn best(&self, clock: Clock, isa: Isa, threads: usize) -> f64 {
        let of = |threads: usize| {
            let part = READ_ELEMENTS / threads;
            let work =
                |i: usize| _ = std::hint::black_box(isa.run(Sum(&self.elements.all()[i * part..(i + 1) * part])));
            (4 * part * threads) as f64 / together(clock, threads, work)
        };
        (1..=threads).map(of).fold(0.0, f64::max)
    }
}
