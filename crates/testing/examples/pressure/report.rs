//! What was measured, as text and as a file.

use crate::requests::{GENERATED, SEQUENCES, Sizes};
use crate::{TURN_STEPS, TURNS};
use engine::Metrics;
use serde_json::{Value, json};

/// One algorithm on both pools.
pub(crate) struct Outcome {
    /// Its name.
    pub(crate) algorithm: String,
    /// What the requests take.
    pub(crate) demand: Sizes,
    /// Seconds of each turn, roomy and pressed.
    pub(crate) turns: Vec<[f64; 2]>,
    /// The pressed engine's, when all prompts were read.
    pub(crate) before: Metrics,
    /// And after the turns.
    pub(crate) after: Metrics,
    /// Both engines' after the turns.
    pub(crate) pools: [Metrics; 2],
}

impl Outcome {
    /// Tokens a second on the pressed pool, beside the roomy one's: of all turns together, and the turns' least, median
    /// and most.
    fn ratios(&self) -> [f64; 4] {
        let sum = |side: usize| self.turns.iter().map(|turn| turn[side]).sum::<f64>();
        let mut ratios: Vec<f64> = self.turns.iter().map(|[roomy, pressed]| roomy / pressed).collect();
        ratios.sort_by(f64::total_cmp);
        [sum(0) / sum(1), ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]]
    }

    fn hits(&self) -> u64 {
        self.after.page_hits_total - self.before.page_hits_total
    }

    fn misses(&self) -> u64 {
        self.after.page_misses_total - self.before.page_misses_total
    }

    fn hit_ratio(&self) -> f64 {
        self.hits() as f64 / (self.hits() + self.misses()) as f64
    }

    /// Cache rows beyond a step's selected pages, by those.
    fn beta(&self, metrics: &Metrics) -> f64 {
        metrics.cache_rows as f64 / (metrics.sparse_sequences * self.demand.selected).max(1) as f64 - 1.0
    }

    fn step_seconds(&self, side: usize) -> f64 {
        self.turns.iter().map(|turn| turn[side]).sum::<f64>() / (TURNS * TURN_STEPS) as f64
    }

    /// For a person.
    pub(crate) fn text(&self) -> String {
        let Outcome { algorithm, demand, before, after, pools: [roomy, pressed], .. } = self;
        let [all, least, median, most] = self.ratios();
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let rows = |rows: usize| format!("{rows} rows ({:.1} MiB)", mib(rows * demand.row_bytes));
        let hits = format!("hits {}, misses {}, hit ratio {:.3}", self.hits(), self.misses(), self.hit_ratio());
        let [earlier_hits, earlier_misses] = [before.page_hits_total, before.page_misses_total];
        let [roomy_ms, pressed_ms] = [0, 1].map(|side| 1e3 * self.step_seconds(side));
        let nobodys = |metrics: &Metrics| metrics.free_rows - metrics.reserved_rows;
        let times = pressed.times;
        [
            format!("{algorithm}: {SEQUENCES} sequences of up to {} tokens at once", demand.longest),
            format!("  pool: {}; pressed {}", rows(roomy.pool_rows), rows(pressed.pool_rows)),
            format!("  decode: {all:.3} of the roomy pool's tokens a second"),
            format!("  of each turn: {least:.3} to {most:.3}, median {median:.3}"),
            format!("  a step: {roomy_ms:.1} ms; pressed {pressed_ms:.1} ms"),
            format!("  running: {}; pressed {}", roomy.running_sequences, pressed.running_sequences),
            format!(
                "  sparsely resident: {}, made so while running {}",
                after.sparse_sequences, after.made_sparse_total
            ),
            format!("  {hits}; before the turns hits {earlier_hits}, misses {earlier_misses}"),
            format!("  fetched: {:.1} MiB", mib(self.misses() as usize * demand.page_bytes)),
            format!("  offloaded: {}", rows(after.offloaded_rows_total as usize)),
            format!("  at home in host memory: {}", rows(after.dram_table_rows)),
            format!("  cache: {} rows, later {}; k {}", before.cache_rows, after.cache_rows, demand.selected),
            format!("  beta: {:.2}, later {:.2}", self.beta(before), self.beta(after)),
            format!("  rows nobody has: {}, later {}", nobodys(before), nobodys(after)),
            format!("  host: schedule {:.1} % of a step", 1e2 * times.schedule_us as f64 / times.device_us as f64),
            "  answers: identical".to_string(),
        ]
        .join("\n")
    }

    fn json(&self) -> Value {
        let round = |value: f64, digits: i32| (value * 10f64.powi(digits)).round() / 10f64.powi(digits);
        let step_ms = |side: usize| round(1e3 * self.step_seconds(side), 2);
        let ([all, least, median, most], [roomy, pressed], sizes) = (self.ratios(), self.pools, &self.demand);
        json!({
            "algorithm": self.algorithm,
            "decode_throughput_beside_roomy": round(all, 3),
            "of_each_turn": { "least": round(least, 3), "median": round(median, 3), "most": round(most, 3) },
            "step_ms": { "roomy": step_ms(0), "pressed": step_ms(1) },
            "answers_identical": true,
            "running_at_once": { "roomy": roomy.running_sequences, "pressed": pressed.running_sequences },
            "sparsely_resident": pressed.sparse_sequences,
            "prompt_tokens": sizes.prompt_tokens,
            "row_bytes": sizes.row_bytes,
            "pool_rows": { "roomy": roomy.pool_rows, "pressed": pressed.pool_rows },
            "host_memory_rows": pressed.dram_rows,
            "selected_pages_a_step": sizes.selected,
            "cache_rows": { "first": self.before.cache_rows, "last": pressed.cache_rows },
            "beta": { "first": round(self.beta(&self.before), 2), "last": round(self.beta(&pressed), 2) },
            "hits": self.hits(),
            "misses": self.misses(),
            "hit_ratio": round(self.hit_ratio(), 4),
            "fetched_bytes": self.misses() * sizes.page_bytes as u64,
            "offloaded_bytes": pressed.offloaded_rows_total * sizes.row_bytes as u64,
            "bytes_at_home_in_host_memory": pressed.dram_table_rows * sizes.row_bytes,
            "made_sparse": pressed.made_sparse_total,
        })
    }
}

/// The result file.
pub(crate) fn json(outcomes: &[Outcome], context: usize, device: &str, commit: &str, date: &str) -> String {
    let value = json!({
        "what": "decode of 64 sequences at once on a pool with room for the K and V of 16 of them, beside a pool with \
                 room for all; bundled model",
        "machine": "AMD EPYC, 2 cores, virtual, shared host",
        "device": device,
        "date": date,
        "commit": commit,
        "command": format!("pressure {context} COMMIT DATE JSON"),
        "document_tokens": context,
        "tokens_an_answer": GENERATED,
        "turns": TURNS,
        "steps_a_turn": TURN_STEPS,
        "notes": [
            "dense: rows of K and V of a sequence to its end, without its summaries, which the pool must hold as well",
            "both engines in one process, both with all prompts read, in turns; hits, misses and fetched bytes are of \
             the turns, offloaded bytes and made_sparse since the start",
            "ratios are what this machine can say; its milliseconds depend on who else uses the host",
        ],
        "results": outcomes.iter().map(Outcome::json).collect::<Vec<_>>(),
    });
    format!("{value:#}\n")
}
