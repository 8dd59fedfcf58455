//! The engine with its thread: what callers in other threads see.

use engine::{AbortReason, Engine, Event, FinishReason, Finished, Refusal, Request, RequestHandle, Waited};
use std::time::{Duration, Instant};
use testing::simulator::{SimulatorConfig, complete, letter, naive, prompt};

fn start() -> Engine {
    SimulatorConfig::new(200, 4).start()
}

fn finished(handle: &mut RequestHandle) -> Vec<Finished> {
    let ends = handle.filter_map(|event| match event {
        Event::Finished(finished) => Some(*finished),
        _ => None,
    });
    ends.collect()
}

/// Waits until the engine has nothing to do.
fn wait_until_empty(engine: &Engine) {
    let start = Instant::now();
    loop {
        let metrics = engine.metrics();
        let rows = metrics.free_rows + metrics.cached_rows;
        if 0 < metrics.steps && rows == metrics.pool_rows && metrics.lanes_free == metrics.lanes {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "rows or lanes leak: {metrics:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_completion_streams_its_text() {
    let engine = start();
    let handle = engine.submit(complete(prompt(1, 50), 1, 20)).expect("there is room");
    let text: String = handle
        .map(|event| match event {
            Event::Token(token) => token.text,
            Event::Finished(finished) => finished.text,
            _ => String::new(),
        })
        .collect();
    let expected = naive::completion(&prompt(1, 50), &[], &[], &backend::Sampling::default(), 20);
    assert_eq!(text, expected.into_iter().map(letter).collect::<String>());
    wait_until_empty(&engine);
}

#[test]
fn many_threads_submit_at_once() {
    let engine = start();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let engine = &engine;
            scope.spawn(move || {
                for at in 0..25 {
                    let mut request = complete(prompt(thread * 100 + at, 1 + at as usize * 3), (at % 4) as u8, 5);
                    request.choices = 1 + (at % 3) as usize;
                    let choices = request.choices;
                    let mut handle = engine.submit(request).expect("the queue is long enough");
                    if at % 5 == 4 {
                        drop(handle);
                    } else {
                        assert_eq!(finished(&mut handle).len(), choices);
                    }
                }
            });
        }
    });
    wait_until_empty(&engine);
    assert_eq!(engine.metrics().waiting_requests, 0);
}

#[test]
fn a_dropped_handle_frees_lane_and_rows() {
    let engine = start();
    let mut handle = engine.submit(complete(prompt(1, 200), 3, 1000)).expect("there is room");
    assert!(handle.any(|event| matches!(event, Event::Token(_))));
    drop(handle);
    wait_until_empty(&engine);
    let mut request = complete(prompt(1, 200), 3, 5);
    request.hold = true;
    drop(engine.submit(request).expect("there is room"));
    wait_until_empty(&engine);
}

#[test]
fn who_does_not_read_is_aborted_and_stalls_nobody() {
    let engine = SimulatorConfig::new(2000, 4).start();
    let mut idle = engine.submit(complete(prompt(1, 10), 0, 6000)).expect("there is room");
    let mut other = engine.submit(complete(prompt(2, 10), 0, 3000)).expect("there is room");
    assert_eq!(finished(&mut other)[0].reason, FinishReason::Length);
    let mut tokens = 0;
    let end = loop {
        match idle.next().expect("it ends with its last event") {
            Event::Token(_) => tokens += 1,
            Event::Finished(finished) => break finished,
            _ => {}
        }
    };
    assert_eq!(end.reason, FinishReason::Aborted(AbortReason::SlowReader));
    assert!(tokens <= engine::EVENTS_MAX);
    wait_until_empty(&engine);
}

#[test]
fn refusals_come_back_from_submit() {
    let engine = start();
    let refused = |request: Request| engine.submit(request).err().expect("it can never run");
    assert!(matches!(refused(complete(prompt(1, 5000), 0, 5)), Refusal::NeverFits { pool_rows: 200, .. }));
    assert_eq!(refused(complete(Vec::new(), 0, 5)), Refusal::Invalid("the prompt has no tokens".to_string()));
}

#[test]
fn a_wait_for_held_rows_ends_with_a_refusal() {
    let engine = SimulatorConfig::new(40, 1).start();
    let mut document = complete(prompt(1, 200), 0, 0);
    document.hold = true;
    // Read to its end: a handle that is dropped earlier lets go what its request holds.
    let document = engine.submit(document).expect("there is room");
    let held = document.filter_map(|event| match event {
        Event::Held { sequence, .. } => Some(sequence),
        _ => None,
    });
    let held = held.last().expect("the document is held");
    // It may be refused at once, where the one before has ended already.
    let running = engine.submit(complete(prompt(2, 10), 0, 80)).expect("there is room");
    let refusal = match engine.submit(complete(prompt(3, 120), 0, 8)) {
        Err(refusal) => refusal,
        Ok(mut waits) => match waits.next_timeout(Duration::from_secs(20)) {
            Waited::Event(Event::Refused(refusal)) => *refusal,
            other => panic!("{other:?}"),
        },
    };
    assert!(matches!(refusal, Refusal::HeldRows { wanted_rows: 17, held_rows: 25, pool_rows: 40, .. }), "{refusal}");
    assert!(running.last().is_some_and(|event| matches!(event, Event::Finished(_))));
    engine.release(held);
    wait_until_empty(&engine);
}

#[test]
fn shutdown_tells_those_who_run_and_those_who_wait() {
    let engine = SimulatorConfig::new(400, 1).start();
    let mut handles: Vec<RequestHandle> =
        (0..3).map(|seed| engine.submit(complete(prompt(seed, 10), 0, 3000)).expect("there is room")).collect();
    drop(engine);
    for handle in &mut handles {
        assert_eq!(finished(handle)[0].reason, FinishReason::Aborted(AbortReason::Shutdown));
    }
}

#[test]
fn a_lost_device_fails_the_requests_and_stops_the_engine() {
    let mut config = SimulatorConfig::new(200, 4);
    config.lost_after = Some(10);
    let engine = config.start();
    let handle = engine.submit(complete(prompt(1, 10), 0, 1000)).expect("there is room");
    let last = handle.last().expect("a failure is told");
    assert_eq!(last, Event::Failed("device lost: made up".to_string()));
    let start = Instant::now();
    let refusal = loop {
        match engine.submit(complete(prompt(1, 10), 0, 10)) {
            Err(refusal) => break refusal,
            Ok(_) => assert!(start.elapsed() < Duration::from_secs(20)),
        }
    };
    assert_eq!(refusal, Refusal::Stopped("device lost: made up".to_string()));
}
