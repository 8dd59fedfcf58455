//! `/metrics`: our names, and those of vLLM's gauges, counters and histograms that dashboards and gateways read.

use crate::app::App;
use crate::measures::FINISHED;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;

/// Everything, in Prometheus' text format.
pub(crate) fn text(app: &App) -> String {
    let mut page = Page { out: String::new(), labels: format!("model_name=\"{}\"", escaped(&app.config.names[0])) };
    engine(&mut page, app);
    residency(&mut page, app);
    vllm(&mut page, app);
    page.out
}

/// The text so far, and the labels of every series.
struct Page {
    out: String,
    labels: String,
}

impl Page {
    fn series(&mut self, kind: &str, name: &str, help: &str, value: f64) {
        let labels = &self.labels;
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{{labels}}} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.series("gauge", name, help, value as f64);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.series("counter", name, help, value as f64);
    }
}

fn engine(page: &mut Page, app: &App) {
    let (engine, own) = (app.engine.metrics(), &app.measures);
    page.gauge("spindle_requests_waiting", "Requests in the queue.", engine.waiting_requests);
    page.gauge("spindle_requests_open", "Requests that are not answered to their end.", app.live.len());
    page.gauge("spindle_sequences_prefilling", "Sequences whose prompt is read.", engine.prefilling_sequences);
    page.gauge("spindle_sequences_running", "Sequences that decode.", engine.running_sequences);
    page.gauge("spindle_lanes", "Sequences that can decode at once.", engine.lanes);
    page.gauge("spindle_lanes_free", "Lanes that nobody has.", engine.lanes_free);
    page.gauge("spindle_rows", "Rows of the pool.", engine.pool_rows);
    page.gauge("spindle_rows_free", "Rows without content.", engine.free_rows);
    page.gauge("spindle_rows_reserved", "Free rows that are promised to admitted sequences.", engine.reserved_rows);
    page.gauge("spindle_rows_cached", "Rows that the prefix cache alone holds.", engine.cached_rows);
    page.gauge("spindle_rows_kv", "Places in KV row tables.", engine.kv_table_rows);
    page.gauge("spindle_rows_summary", "Places in summary row tables.", engine.summary_table_rows);
    page.gauge("spindle_row_bytes", "Bytes of a row.", engine.row_bytes as usize);
    page.gauge("spindle_prefixes_cached", "Prompts in the prefix cache.", engine.cached_sequences);
    let evicted = engine.prefix_evicted_tokens_total;
    page.counter("spindle_prefix_evicted_tokens_total", "Tokens that the prefix cache let go.", evicted);
    page.counter("spindle_steps_total", "Steps planned.", engine.steps);
    page.counter("spindle_requests_refused_total", "Requests that the engine refused.", engine.refused_requests_total);
    page.counter("spindle_requests_aborted_total", "Requests that were aborted.", engine.aborted_requests_total);
    let parts = [
        ("schedule", engine.times.schedule_us),
        ("device", engine.times.device_us),
        ("deliver", engine.times.deliver_us),
    ];
    let name = "spindle_step_seconds_total";
    let _ = writeln!(page.out, "# HELP {name} Where the step loop's time went.\n# TYPE {name} counter");
    for (part, us) in parts {
        let _ = writeln!(page.out, "{name}{{{},part=\"{part}\"}} {}", page.labels, us as f64 / 1e6);
    }
    let errors = own.errors.load(Ordering::Relaxed);
    page.counter("spindle_http_errors_total", "Responses with an error status.", errors);
    let slow = own.slow_readers.load(Ordering::Relaxed);
    page.counter("spindle_slow_readers_total", "Requests ended because their events were not read in time.", slow);
    let help = "Seconds that HTTP adds to the engine's time to the first token.";
    own.http_overhead.write(&mut page.out, "spindle_http_overhead_seconds", help, &page.labels);
}

/// Sparsely resident sequences: what they have in the pool and in host memory, and what their steps fetch.
fn residency(page: &mut Page, app: &App) {
    let engine = app.engine.metrics();
    page.gauge("spindle_sequences_sparse", "Sequences whose pages are in host memory.", engine.sparse_sequences);
    let help = "Cache rows of sparsely resident sequences: slots for pages that their steps select.";
    page.gauge("spindle_rows_slots", help, engine.cache_rows);
    page.gauge("spindle_host_rows", "Rows of host memory.", engine.dram_rows);
    page.gauge("spindle_host_rows_free", "Rows of host memory without content.", engine.dram_free_rows);
    let help = "Free rows of host memory that are promised to admitted sequences.";
    page.gauge("spindle_host_rows_reserved", help, engine.dram_reserved_rows);
    page.gauge(
        "spindle_host_rows_pages",
        "Places of sequences' pages, and of parked summaries, in host memory.",
        engine.dram_table_rows,
    );
    let name = "spindle_slots_per_selected_page";
    let help =
        "Slots that sparsely resident sequences have for each page that a step selects, among those that decode.";
    let _ = writeln!(page.out, "# HELP {name} {help}\n# TYPE {name} gauge");
    let slots = engine.slot_eighths;
    for (of, eighths) in [("least", slots.least), ("median", slots.median), ("most", slots.most)] {
        let _ = writeln!(page.out, "{name}{{{},of=\"{of}\"}} {}", page.labels, eighths as f64 / 8.0);
    }
    let help = "Pages selected in host memory that a slot held, over layers and KV heads.";
    page.counter("spindle_page_hits_total", help, engine.page_hits_total);
    let help = "Pages selected in host memory that were fetched, over layers and KV heads.";
    page.counter("spindle_page_misses_total", help, engine.page_misses_total);
    let fetched = engine.page_misses_total * app.page_bytes();
    page.counter("spindle_fetched_bytes_total", "Bytes fetched from host memory.", fetched);
    let (rows, bytes) = (engine.offloaded_rows_total, engine.offloaded_rows_total * engine.row_bytes);
    page.counter("spindle_offloaded_rows_total", "Rows copied from the pool to host memory.", rows);
    page.counter("spindle_offloaded_bytes_total", "Bytes copied from the pool to host memory.", bytes);
    page.gauge("spindle_sequences_parked", "Sequences that were preempted and wait.", engine.parked_sequences);
    let help = "Times that a sequence was preempted: parked in host memory so that an older one had room.";
    page.counter("spindle_preemptions_total", help, engine.preemptions_total);
    let help = "Sequences that became sparsely resident while they ran, so that others had room.";
    page.counter("spindle_sequences_made_sparse_total", help, engine.made_sparse_total);
}

fn vllm(page: &mut Page, app: &App) {
    let (engine, own) = (app.engine.metrics(), app.measures.clone());
    let running = engine.running_sequences + engine.prefilling_sequences;
    page.gauge("vllm:num_requests_running", "Sequences that are read or decode.", running);
    page.gauge("vllm:num_requests_waiting", "Requests in the queue.", engine.waiting_requests);
    let available = engine.free_rows + engine.cached_rows - engine.reserved_rows;
    let used = 1.0 - available as f64 / engine.pool_rows.max(1) as f64;
    page.series("gauge", "vllm:kv_cache_usage_perc", "Share of the rows in use or promised, 0 to 1.", used);
    let (asked, hit) = (engine.prefix_queried_tokens_total, engine.prefix_hit_tokens_total);
    page.counter("vllm:prefix_cache_queries_total", "Prompt tokens that the prefix cache was asked about.", asked);
    page.counter("vllm:prefix_cache_hits_total", "Prompt tokens that came from the prefix cache.", hit);
    page.counter("vllm:prompt_tokens_total", "Prompt tokens read.", engine.prefill_tokens_total);
    page.counter("vllm:generation_tokens_total", "Tokens generated.", engine.decode_tokens_total);
    page.counter("vllm:num_preemptions_total", "Preemptions; nothing is computed twice.", engine.preemptions_total);
    let name = "vllm:request_success_total";
    let _ = writeln!(page.out, "# HELP {name} Completions by how they ended.\n# TYPE {name} counter");
    for (reason, count) in FINISHED.iter().zip(own.finished()) {
        let _ = writeln!(page.out, "{name}{{{},finished_reason=\"{reason}\"}} {count}", page.labels);
    }
    let histograms = [
        ("time_to_first_token_seconds", "Seconds from the request to its first token.", &own.time_to_first_token),
        ("inter_token_latency_seconds", "Seconds between two tokens.", &own.inter_token),
        ("request_time_per_output_token_seconds", "Mean seconds of a token, by request.", &own.time_per_output_token),
        ("e2e_request_latency_seconds", "Seconds from the request to its end.", &own.end_to_end),
        ("request_queue_time_seconds", "Seconds in the queue.", &own.queued),
        ("request_prefill_time_seconds", "Seconds in which the prompt was read.", &own.prefill),
        ("request_decode_time_seconds", "Seconds in which tokens were generated.", &own.decode),
        ("request_prompt_tokens", "Prompt tokens by completion.", &own.prompt_tokens),
        ("request_generation_tokens", "Generated tokens by completion.", &own.generation_tokens),
    ];
    for (name, help, histogram) in histograms {
        histogram.write(&mut page.out, &format!("vllm:{name}"), help, &page.labels);
    }
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
