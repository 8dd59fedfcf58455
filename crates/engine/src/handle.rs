//! A request's reader in another thread.

use crate::config::EVENTS_MAX;
use crate::engine::Message;
use crate::event::Event;
use crate::outbox::{Delivered, EventSink};
use crate::request::RequestId;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The events of one request, in order. Dropping it before its last event aborts the request, wherever it is, and lets
/// go what it holds.
pub struct RequestHandle {
    id: RequestId,
    events: Receiver<Event>,
    /// How the request ended, where its events had filled their bound.
    last: Arc<Mutex<Vec<Event>>>,
    engine: SyncSender<Message>,
    /// Choices that have not ended; 0 when nothing follows.
    open_choices: usize,
}

/// What a wait for an event came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Waited {
    /// The next event.
    Event(Event),
    /// None came in time.
    TimedOut,
    /// Nothing follows.
    Ended,
}

/// The writing end: a bounded channel, and a place for the last words where it is full.
pub(crate) struct ChannelSink {
    events: SyncSender<Event>,
    last: Arc<Mutex<Vec<Event>>>,
}

impl RequestHandle {
    /// Both ends.
    pub(crate) fn new(id: RequestId, choices: usize, engine: SyncSender<Message>) -> (ChannelSink, RequestHandle) {
        let (sender, events) = sync_channel(EVENTS_MAX);
        let last = Arc::new(Mutex::new(Vec::new()));
        let sink = ChannelSink { events: sender, last: last.clone() };
        (sink, RequestHandle { id, events, last, engine, open_choices: choices })
    }

    /// The request's number.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Ends the request; its choices still report how they ended.
    pub fn abort(&self) {
        // Without an engine there is nothing to abort.
        let _ = self.engine.send(Message::Abort(self.id));
    }

    /// Waits for the next event for at most `timeout`.
    pub fn next_timeout(&mut self, timeout: Duration) -> Waited {
        if self.open_choices == 0 {
            return Waited::Ended;
        }
        match self.events.recv_timeout(timeout) {
            Ok(event) => Waited::Event(self.seen(event)),
            Err(RecvTimeoutError::Timeout) => Waited::TimedOut,
            Err(RecvTimeoutError::Disconnected) => Waited::Event(self.last_event()),
        }
    }

    /// Counts the choices that end.
    fn seen(&mut self, event: Event) -> Event {
        match &event {
            Event::Finished(_) => self.open_choices -= 1,
            Event::Failed(_) | Event::Refused(_) => self.open_choices = 0,
            _ => {}
        }
        event
    }

    /// The channel is closed: what did not fit into it, or the engine's end.
    fn last_event(&mut self) -> Event {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let next = if last.is_empty() { None } else { Some(last.remove(0)) };
        drop(last);
        self.seen(next.unwrap_or_else(|| Event::Failed("the engine's thread has ended".to_string())))
    }
}

impl Iterator for RequestHandle {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.open_choices == 0 {
            return None;
        }
        let received = self.events.recv();
        Some(match received {
            Ok(event) => self.seen(event),
            Err(_) => self.last_event(),
        })
    }
}

impl Drop for RequestHandle {
    fn drop(&mut self) {
        if 0 < self.open_choices {
            self.abort();
        }
    }
}

impl EventSink for ChannelSink {
    fn send(&mut self, event: Event) -> Delivered {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !last.is_empty() {
            // Bounded: after the first, only the choices' ends follow.
            last.push(event);
            return Delivered::Full;
        }
        match self.events.try_send(event) {
            Ok(()) => Delivered::Taken,
            Err(TrySendError::Full(event)) => {
                last.push(event);
                Delivered::Full
            }
            Err(TrySendError::Disconnected(_)) => Delivered::Gone,
        }
    }
}
