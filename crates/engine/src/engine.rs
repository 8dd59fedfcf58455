//! The engine's thread and the handle that others hold.
//!
//! Concurrency: one thread owns scheduler, runtime and readers' sinks; others send messages over one channel of
//! `MESSAGES_MAX` places and read events and a snapshot of metrics. There are no locks to order: the snapshot's mutex
//! is held for a copy, and never together with another.

use crate::clock::SystemClock;
use crate::config::{EngineConfig, MESSAGES_MAX};
use crate::event::{AbortReason, Event};
use crate::handle::RequestHandle;
use crate::outbox::{EventSink, Outbox, TextFactory};
use crate::request::{Refusal, Request, RequestId};
use crate::step::{Progress, Steps};
use crate::{Footprint, Forward, Metrics, Scheduler};
use backend::Runtime;
use kv::SequenceId;
use sparse::AlgorithmSpec;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A running engine. Dropping it aborts what runs and joins the thread.
pub struct Engine {
    messages: SyncSender<Message>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What others ask of the engine's thread.
pub(crate) enum Message {
    /// A new request, and where its events go.
    Submit(RequestId, Box<Request>, Box<dyn EventSink>),
    /// A request's caller has lost interest.
    Abort(RequestId),
    /// A held sequence is not needed any more.
    Release(SequenceId),
    /// What every sequence has.
    Footprints(FootprintsReply),
    /// Shutdown.
    Stop,
}

/// Takes the footprints of all sequences, ascending by number; must not wait.
pub type FootprintsReply = Box<dyn FnOnce(Vec<Footprint>) + Send>;

/// What both sides see.
#[derive(Default)]
struct Shared {
    requests_made: AtomicU64,
    /// Those at the start, then written after every step.
    metrics: Mutex<Metrics>,
    /// Set once, when the engine cannot go on.
    failure: Mutex<Option<String>>,
}

/// How often the thread looks whether host memory has grown.
const WAIT: Duration = Duration::from_millis(2);

/// Whether the thread goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    GoOn,
    Stop,
}

impl Engine {
    /// Starts the thread. `algorithms[i]` is `AlgorithmId(i)`; `texts` makes tokens text, where text is wanted.
    ///
    /// # Panics
    /// The system has no thread left.
    pub fn start(
        runtime: Arc<dyn Runtime>,
        forward: Arc<dyn Forward>,
        algorithms: Vec<AlgorithmSpec>,
        texts: Option<TextFactory>,
        config: EngineConfig,
    ) -> Engine {
        let scheduler = Scheduler::new(config, algorithms, forward.layers());
        let steps = Steps::new(scheduler, Outbox::new(texts), runtime, forward, Arc::new(SystemClock::new()));
        let (messages, inbox) = sync_channel(MESSAGES_MAX);
        let shared = Arc::new(Shared { metrics: Mutex::new(steps.metrics()), ..Shared::default() });
        let thread = Thread { steps, inbox, shared: shared.clone() };
        let spawned = std::thread::Builder::new().name("engine".to_string()).spawn(move || thread.run());
        Engine { messages, shared, thread: Some(spawned.expect("a thread for the engine")) }
    }

    /// Submits a request and waits until it is taken (at most about a step).
    ///
    /// # Errors
    /// It can never run, too many wait, or the engine has stopped.
    pub fn submit(&self, request: Request) -> Result<RequestHandle, Refusal> {
        let id = self.next_id();
        let (sink, mut handle) = RequestHandle::new(id, request.choices.max(1), self.messages.clone());
        self.send(id, request, Box::new(sink))?;
        match handle.next() {
            Some(Event::Accepted { .. }) => Ok(handle),
            Some(Event::Refused(refusal)) => Err(*refusal),
            _ => Err(self.stopped()),
        }
    }

    /// Submits a request whose events (a refusal too) go to `sink`; does not wait.
    ///
    /// # Errors
    /// `MESSAGES_MAX` messages wait, or the engine has stopped.
    pub fn submit_to(&self, request: Request, sink: Box<dyn EventSink>) -> Result<RequestId, Refusal> {
        let id = self.next_id();
        self.send(id, request, sink).map(|()| id)
    }

    /// Ends a request wherever it is, and lets go what it holds; one that is unknown is no error.
    pub fn abort(&self, request: RequestId) {
        let _ = self.messages.send(Message::Abort(request));
    }

    /// Lets a held sequence's rows go when its running forks have ended; forks of it that still wait are aborted.
    pub fn release(&self, sequence: SequenceId) {
        let _ = self.messages.send(Message::Release(sequence));
    }

    /// Counts as of the last step.
    pub fn metrics(&self) -> Metrics {
        *self.shared.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `reply` called with what every sequence has, within about a step. Where the engine stops first, `reply` is
    /// dropped.
    ///
    /// # Errors
    /// `MESSAGES_MAX` messages wait, or the engine has stopped.
    pub fn footprints(&self, reply: FootprintsReply) -> Result<(), Refusal> {
        self.try_send(Message::Footprints(reply))
    }

    /// Why the engine has stopped; `None` while it runs.
    pub fn failure(&self) -> Option<String> {
        let said = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A thread that panicked could not say it.
        let ended = || self.thread.as_ref().is_some_and(JoinHandle::is_finished);
        said.or_else(|| ended().then(|| "its thread has ended".to_string()))
    }

    /// Ends everything that waits or runs, whose readers are told so; nothing is taken any more.
    pub fn stop(&self) {
        // An engine that has ended has nothing to stop.
        let _ = self.messages.send(Message::Stop);
    }

    fn next_id(&self) -> RequestId {
        RequestId(self.shared.requests_made.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn send(&self, id: RequestId, request: Request, sink: Box<dyn EventSink>) -> Result<(), Refusal> {
        self.try_send(Message::Submit(id, Box::new(request), sink))
    }

    fn try_send(&self, message: Message) -> Result<(), Refusal> {
        self.messages.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::QueueFull { max_queue: MESSAGES_MAX },
            TrySendError::Disconnected(_) => self.stopped(),
        })
    }

    fn stopped(&self) -> Refusal {
        Refusal::Stopped(self.failure().unwrap_or_else(|| "its thread has ended".to_string()))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// The thread's side.
struct Thread {
    steps: Steps,
    inbox: Receiver<Message>,
    shared: Arc<Shared>,
}

impl Thread {
    fn run(mut self) {
        // Not idle: host memory may come before the first request does.
        let mut progress = Progress::Waiting;
        while self.receive(progress) == Turn::GoOn {
            progress = match self.steps.step() {
                Ok(progress) => progress,
                Err(error) => return self.fail(&error.to_string()),
            };
            self.publish();
        }
        self.steps.shut_down();
        self.publish();
    }

    /// Takes every message that is there; waits for one where there is nothing else to do.
    fn receive(&mut self, progress: Progress) -> Turn {
        let message = match progress {
            Progress::Worked => None,
            Progress::Waiting => self.inbox.recv_timeout(WAIT).ok(),
            Progress::Idle => match self.inbox.recv() {
                Ok(message) => Some(message),
                Err(_) => return Turn::Stop,
            },
        };
        if message.is_some_and(|message| self.take(message) == Turn::Stop) {
            return Turn::Stop;
        }
        loop {
            let turn = match self.inbox.try_recv() {
                Ok(message) => self.take(message),
                Err(TryRecvError::Empty) => return Turn::GoOn,
                Err(TryRecvError::Disconnected) => Turn::Stop,
            };
            if turn == Turn::Stop {
                return turn;
            }
        }
    }

    fn take(&mut self, message: Message) -> Turn {
        match message {
            Message::Submit(id, request, sink) => self.steps.submit(id, *request, sink),
            Message::Abort(id) => self.steps.abort(id, AbortReason::Caller),
            Message::Release(sequence) => self.steps.release(sequence),
            Message::Footprints(reply) => reply(self.steps.scheduler.sequences().map(Footprint::of).collect()),
            Message::Stop => return Turn::Stop,
        }
        Turn::GoOn
    }

    fn publish(&self) {
        *self.shared.metrics.lock().unwrap_or_else(PoisonError::into_inner) = self.steps.metrics();
    }

    fn fail(mut self, message: &str) {
        *self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.to_string());
        self.steps.abandon(message);
        self.publish();
    }
}
