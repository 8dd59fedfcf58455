//! An error in a kernel: running requests fail with the driver's words, later ones are refused, and nothing hangs.

use crate::arguments::Arguments;
use backend::{AlgorithmId, Backend, RowCopy, Runtime, StepKey};
use engine::{CostModel, Engine, EngineConfig, Event, RequestHandle};
use kv::{LaneId, RowId};
use model::{Decoder, DecoderLimits, Forward, ModelSource, PassView};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use testing::greedy::request;
use testing::rig::document_and_question;

/// The command of the process that loses its device.
pub(crate) const CHILD: &str = "lost-child";

/// A prompt of this many tokens breaks the device.
const BREAKING: usize = 333;

/// Runs the child, and waits a minute at most.
pub(crate) fn check(arguments: &Arguments) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program has a file"));
    command.args(arguments.words(CHILD)).stdout(Stdio::piped());
    let (mut child, since) = (command.spawn().expect("this program runs"), Instant::now());
    loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(_) => break,
            None if Duration::from_secs(60) < since.elapsed() => {
                child.kill().expect("a child can be ended");
                panic!("the engine hangs on a lost device");
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    }
    let output = child.wait_with_output().expect("a child's output");
    let said = String::from_utf8_lossy(&output.stdout).trim().to_string();
    assert!(output.status.success(), "{said}");
    said.lines().last().unwrap_or_default().to_string()
}

/// A decoder that reads far outside the pool for one prompt.
struct Breaking(Decoder);

impl Forward for Breaking {
    fn layers(&self) -> usize {
        self.0.layers()
    }

    fn prefill_layer(&self, runtime: &dyn Runtime, pass: &PassView<'_>, layer: usize, tokens: Range<usize>) {
        if pass.tokens.len() == BREAKING {
            runtime.copy_rows(&[RowCopy { source: RowId(1 << 31), target: RowId(0) }]);
        }
        self.0.prefill_layer(runtime, pass, layer, tokens);
    }

    fn prefill_gather(&self, runtime: &dyn Runtime, pass: &PassView<'_>, layer: usize) {
        self.0.prefill_gather(runtime, pass, layer);
    }

    fn prefill_scatter(&self, runtime: &dyn Runtime, pass: &PassView<'_>, layer: usize) {
        self.0.prefill_scatter(runtime, pass, layer);
    }

    fn prefill_index(
        &self,
        runtime: &dyn Runtime,
        algorithm: AlgorithmId,
        layer: usize,
        kv_rows: &[RowId],
        summary_rows: &[RowId],
        tokens: (usize, usize),
    ) {
        self.0.prefill_index(runtime, algorithm, layer, kv_rows, summary_rows, tokens);
    }

    fn prefill_sample(&self, runtime: &dyn Runtime, pass: &PassView<'_>, lanes: &[LaneId]) {
        self.0.prefill_sample(runtime, pass, lanes);
    }

    fn decode(&self, runtime: &dyn Runtime, key: StepKey) {
        self.0.decode(runtime, key);
    }
}

fn failure(events: RequestHandle) -> Option<String> {
    { events }.find_map(|event| if let Event::Failed(why) = event { Some(why) } else { None })
}

/// Breaks the device under a running request.
pub(crate) fn run(arguments: &Arguments) -> bool {
    let (opened, backend) = (model::open(&ModelSource::Bundled).expect("it opens"), arguments.backend(true, None));
    let (config, pool_rows) = (opened.config(), 2000);
    let limits = DecoderLimits { max_lanes: 4, max_tokens: 4000, prefill_tokens: 4000 };
    let decoder = Decoder::load(backend.as_ref(), &opened.checkpoint, limits, &mut |_, _| ()).expect("it loads");
    let algorithms = decoder.algorithms().specs().all().to_vec();
    let attention = engine::Attention { algorithm: AlgorithmId(0), selection: algorithms[0].selection() };
    let runtime = backend.runtime(&config.runtime_shape(limits, pool_rows)).expect("the runtime fits");
    let engine_config = EngineConfig {
        max_lanes: limits.max_lanes,
        cost: CostModel::gpu(config.layer_parameters(), config.q_columns()),
        ..EngineConfig::new(pool_rows, config.geometry().row_bytes() as u64, limits.max_tokens, config.vocab_size)
    };
    let engine = Engine::start(runtime, Arc::new(Breaking(decoder)), algorithms, None, engine_config);
    let running = engine.submit(request(document_and_question(200, 1), attention, 3000)).expect("it is taken");
    let breaking = engine.submit(request(vec![9; BREAKING], attention, 10)).expect("it is taken");
    let why = failure(breaking).expect("the request that broke the device fails");
    assert!(failure(running).is_some(), "the request beside it fails");
    let later = engine.submit(request(document_and_question(200, 2), attention, 10));
    let refused = match later {
        Err(refusal) => refusal.to_string(),
        Ok(events) => failure(events).expect("a later request fails"),
    };
    assert!(why.contains("device lost"), "the driver's words: {why}");
    drop(engine);
    println!("'{why}'; afterwards '{refused}'");
    true
}
