//! `gpu rates`: what each kernel reaches of what the card allows, at the shapes of Llama-3.1-8B.
//!
//! A row's floor is the larger of its bytes by the copy bandwidth and its operations by the rate of a large matrix
//! product, both measured in the same run; its share is the floor over the time. Kernels of the decode step run in
//! captured graphs of many repetitions over different layers, rows or weights, so that no cache serves them; kernels of
//! prefill are enqueued one after the other.

mod attention;

pub(crate) mod bed;

mod card;

mod chain;

mod products;

mod residency;

mod rows;

mod selection;

mod sparse_step;

mod step;

use crate::arguments::Arguments;
use bed::{Bed, Prepare};
use card::Card;
use serde_json::{Value, json};

/// What a kernel must move and compute.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    /// Bytes read and written.
    pub(crate) bytes: f64,
    /// Floating-point operations of tensor cores.
    pub(crate) flops: f64,
}

impl Work {
    /// Only bytes.
    pub(crate) fn bytes(bytes: usize) -> Self {
        Work { bytes: bytes as f64, flops: 0.0 }
    }
}

/// The table as it grows.
pub(crate) struct Table<'a> {
    arguments: &'a Arguments,
    card: Card,
    /// Bytes a second that Retrieve gets over the link; 0 until it was measured.
    link_bytes: f64,
    rows: Vec<Value>,
}

impl Table<'_> {
    /// Whether a kernel is asked for.
    pub(crate) fn wants(&self, kernel: &str) -> bool {
        self.arguments.only.as_ref().is_none_or(|only| kernel.starts_with(only.as_str()))
    }

    /// Seconds that some work takes at least.
    pub(crate) fn floor(&self, work: Work) -> f64 {
        (work.bytes / self.card.copy_bytes).max(work.flops / self.card.product_flops)
    }

    /// Adds a line and prints it.
    fn add(&mut self, kernel: &str, shape: &str, work: Work, seconds: f64) {
        let floor = self.floor(work);
        let (share, micros) = (floor / seconds, 1e6 * seconds);
        let rate = match work.flops / self.card.product_flops < work.bytes / self.card.copy_bytes {
            true => format!("{:.0} GB/s", 1e-9 * work.bytes / seconds),
            false => format!("{:.0} TFLOP/s", 1e-12 * work.flops / seconds),
        };
        println!("| {kernel} | {shape} | {:.1} | {micros:.1} | {rate} | {:.1} % |", 1e6 * floor, 100.0 * share);
        self.rows.push(json!({
            "kernel": kernel, "shape": shape, "bytes": work.bytes, "flop": work.flops,
            "floor_us": 1e6 * floor, "measured_us": micros, "share": share,
        }));
    }

    /// Adds a line of bytes that pass the link; returns their rate, in bytes a second.
    fn over_link(&mut self, what: &str, shape: &str, bytes: usize, seconds: f64) -> f64 {
        let rate = bytes as f64 / seconds;
        println!("| {what} | {shape} | | {:.1} | {:.1} GB/s | |", 1e6 * seconds, 1e-9 * rate);
        self.rows.push(json!({
            "kernel": what, "shape": shape, "bytes": bytes, "measured_us": 1e6 * seconds, "gb_s": 1e-9 * rate,
        }));
        rate
    }

    /// Adds a line of what has no floor.
    fn note(&mut self, what: &str, shape: &str, seconds: f64) {
        println!("| {what} | {shape} | | {:.1} | | |", 1e6 * seconds);
        self.rows.push(json!({ "kernel": what, "shape": shape, "measured_us": 1e6 * seconds }));
    }

    /// Adds what is no line of the table.
    fn keep(&mut self, row: Value) {
        self.rows.push(row);
    }

    /// Times a kernel of the decode step: `record` with its number, as often as it takes for its graph to be long.
    pub(crate) fn step(
        &mut self,
        bed: &Bed,
        (kernel, shape): (&str, &str),
        work: Work,
        prepare: Prepare<'_>,
        record: &(dyn Fn(usize) + Sync),
    ) {
        if self.wants(kernel) {
            let seconds = bed.step_seconds(self.floor(work), prepare, record);
            self.add(kernel, shape, work, seconds);
        }
    }

    /// Times a kernel of prefill.
    pub(crate) fn unit(
        &mut self,
        bed: &Bed,
        (kernel, shape): (&str, &str),
        work: Work,
        record: &(dyn Fn(usize) + Sync),
    ) {
        if self.wants(kernel) {
            let seconds = bed.unit_seconds(self.floor(work), record);
            self.add(kernel, shape, work, seconds);
        }
    }
}

/// Measures all; whether everything ran.
pub(crate) fn run(arguments: &Arguments) -> bool {
    let backend = arguments.backend(true, None);
    let card = Card::measure(&backend);
    let (copy, product) = (1e-9 * card.copy_bytes, 1e-12 * card.product_flops);
    println!("copy {copy:.0} GB/s, bf16 product of 8192^3 {product:.0} TFLOP/s\n");
    println!("| kernel | shape | floor us | measured us | rate | share |\n| --- | --- | ---: | ---: | ---: | ---: |");
    let mut table = Table { arguments, card, link_bytes: 0.0, rows: Vec::new() };
    products::measure(&mut table, &backend);
    rows::measure(&mut table, &backend);
    attention::measure(&mut table, &backend);
    selection::measure(&mut table, &backend);
    step::measure(&mut table, &backend);
    residency::measure(&mut table, &backend);
    sparse_step::measure(&mut table, &backend);
    chain::measure(&mut table);
    arguments.write(&json!({
        "device": backend::Backend::info(backend.as_ref()).description,
        "copy_gb_s": copy, "product_tflop_s": product, "model_shape": "llama-3.1-8b", "rates": table.rows,
    }));
    true
}
