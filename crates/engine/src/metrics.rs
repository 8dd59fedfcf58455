//! Counts of the engine's state, computed from the state they describe.

use crate::Scheduler;
use crate::footprint::{Footprint, Stage};
use kv::{HeldRows, Residence};

/// Where the step loop's time went since the start, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Deciding: plan, reserve, commit.
    pub schedule_us: u64,
    /// Launching, and waiting for what is launched.
    pub device_us: u64,
    /// Tokens to text, text to readers.
    pub deliver_us: u64,
}

/// How many cache rows the sparsely resident sequences that decode have for each page that a step selects, in eighths;
/// zero where there are none. The least of them fetches most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotEighths {
    /// Of the sequence with the fewest.
    pub least: usize,
    /// Of the one in the middle; the upper one of two.
    pub median: usize,
    /// Of the one with the most.
    pub most: usize,
}

impl SlotEighths {
    fn of(mut all: Vec<usize>) -> Self {
        all.sort_unstable();
        let at = |place: usize| all.get(place).copied().unwrap_or(0);
        SlotEighths { least: at(0), median: at(all.len() / 2), most: at(all.len().saturating_sub(1)) }
    }
}

/// A snapshot between two steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Steps planned.
    pub steps: u64,
    /// Requests in the queue.
    pub waiting_requests: usize,
    /// Sequences whose prompt is being prefilled, and choices that follow them.
    pub prefilling_sequences: usize,
    /// Sequences that decode.
    pub running_sequences: usize,
    /// Sequences that were preempted: in host memory, or on their way there or back.
    pub parked_sequences: usize,
    /// Finished sequences that keep their rows.
    pub held_sequences: usize,
    /// Lanes.
    pub lanes: usize,
    /// Lanes that nobody has.
    pub lanes_free: usize,
    /// Rows of the pool.
    pub pool_rows: usize,
    /// Rows without content. What can be had for sequences is `free_rows + cached_rows - reserved_rows`.
    pub free_rows: usize,
    /// Free rows that are promised to admitted sequences.
    pub reserved_rows: usize,
    /// Prompts in the prefix cache.
    pub cached_sequences: usize,
    /// Rows that the prefix cache alone holds: it gives them up for whoever needs them.
    pub cached_rows: usize,
    /// Places in KV row tables of sequences (shared rows count once a table).
    pub kv_table_rows: usize,
    /// Places in summary row tables of sequences, in the pool.
    pub summary_table_rows: usize,
    /// Cache rows of sparsely resident sequences.
    pub cache_rows: usize,
    /// Cache rows for each page that a step selects.
    pub slot_eighths: SlotEighths,
    /// Sequences whose pages are at home in host memory, sink and tail aside.
    pub sparse_sequences: usize,
    /// Rows of host memory.
    pub dram_rows: usize,
    /// Of those, rows without content.
    pub dram_free_rows: usize,
    /// Free rows of host memory that are promised to admitted sequences.
    pub dram_reserved_rows: usize,
    /// Places of sequences' pages, and of parked summaries, in host memory (shared rows count once a table).
    pub dram_table_rows: usize,
    /// Bytes of one row.
    pub row_bytes: u64,
    /// Prompt tokens prefilled since the start.
    pub prefill_tokens_total: u64,
    /// Prompt tokens of admitted requests that the prefix cache was asked about since the start.
    pub prefix_queried_tokens_total: u64,
    /// Of those, tokens that it had.
    pub prefix_hit_tokens_total: u64,
    /// Tokens that the prefix cache let go for others since the start.
    pub prefix_evicted_tokens_total: u64,
    /// Pages selected in host memory since the start that a slot held, over layers and KV heads.
    pub page_hits_total: u64,
    /// Pages fetched since the start.
    pub page_misses_total: u64,
    /// Rows copied to host memory since the start.
    pub offloaded_rows_total: u64,
    /// Times that a sequence was preempted: parked in host memory.
    pub preemptions_total: u64,
    /// Sequences that became sparsely resident while they ran.
    pub made_sparse_total: u64,
    /// Tokens generated since the start.
    pub decode_tokens_total: u64,
    /// Requests that ran to their end.
    pub finished_requests_total: u64,
    /// Requests that were aborted.
    pub aborted_requests_total: u64,
    /// Requests that were refused.
    pub refused_requests_total: u64,
    /// Where time went; zero for a scheduler without a step loop.
    pub times: StepTimes,
}

impl Metrics {
    pub(crate) fn count(scheduler: &Scheduler) -> Self {
        let (totals, rows) = (scheduler.totals(), &scheduler.tiers().pool);
        let mut metrics = Metrics {
            steps: scheduler.steps().0,
            waiting_requests: scheduler.waiting_requests(),
            lanes: scheduler.config().max_lanes,
            lanes_free: scheduler.lanes_free(),
            pool_rows: rows.total(),
            free_rows: rows.free(),
            reserved_rows: rows.reserved(),
            cached_sequences: scheduler.prefixes().len(),
            cached_rows: rows.spare(),
            dram_rows: scheduler.tiers().dram.total(),
            dram_free_rows: scheduler.tiers().dram.free(),
            dram_reserved_rows: scheduler.tiers().dram.reserved(),
            row_bytes: scheduler.config().row_bytes,
            prefill_tokens_total: totals.prefill_tokens,
            prefix_queried_tokens_total: totals.prefix_queried,
            prefix_hit_tokens_total: totals.prefix_hits,
            prefix_evicted_tokens_total: scheduler.prefixes().evicted_tokens(),
            page_hits_total: totals.retrieved.hits,
            page_misses_total: totals.retrieved.misses,
            offloaded_rows_total: totals.offloaded_rows,
            made_sparse_total: totals.made_sparse,
            preemptions_total: totals.preempted,
            decode_tokens_total: totals.decode_tokens,
            finished_requests_total: totals.finished,
            aborted_requests_total: totals.aborted,
            refused_requests_total: totals.refused,
            ..Metrics::default()
        };
        // As many as lanes at most.
        let mut slot_eighths = Vec::new();
        for footprint in scheduler.sequences().map(Footprint::of) {
            match footprint.stage {
                Stage::Prefilling | Stage::Following => metrics.prefilling_sequences += 1,
                Stage::Running => metrics.running_sequences += 1,
                Stage::Parked => metrics.parked_sequences += 1,
                Stage::Held => metrics.held_sequences += 1,
            }
            let HeldRows { kv, cache, summary, dram } = footprint.rows;
            metrics.kv_table_rows += kv;
            metrics.cache_rows += cache;
            metrics.summary_table_rows += summary;
            metrics.dram_table_rows += dram;
            metrics.sparse_sequences += usize::from(footprint.residence == Residence::Sparse);
            slot_eighths.extend(footprint.slot_eighths());
        }
        Metrics { slot_eighths: SlotEighths::of(slot_eighths), ..metrics }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_median_and_most_of_any_number() {
        let check = |all: &[usize], wanted: [usize; 3]| {
            let SlotEighths { least, median, most } = SlotEighths::of(all.to_vec());
            assert_eq!([least, median, most], wanted, "{all:?}");
        };
        check(&[], [0, 0, 0]);
        check(&[48], [48, 48, 48]);
        check(&[48, 16], [16, 48, 48]);
        check(&[20, 48, 16, 17, 30], [16, 20, 48]);
    }
}
