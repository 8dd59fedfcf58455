//! Everything recounted from scratch: tests call it after every step.

use super::Scheduler;
use crate::sequence::{Phase, Sequence};

impl Scheduler {
    /// Recounts rows, lanes, slots and requests.
    ///
    /// # Errors
    /// Says what disagrees.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.check_rows()?;
        self.prefixes.check_integrity()?;
        self.check_lanes()?;
        self.check_requests()?;
        self.check_slots()
    }

    fn check_rows(&self) -> Result<(), String> {
        let retiring = self.retiring.iter().filter_map(|retiring| retiring.kv.as_ref());
        let kvs: Vec<_> = self.sequences.values().map(|sequence| &sequence.kv).chain(retiring).collect();
        let held = || kvs.iter().flat_map(|kv| kv.held_rows());
        let promised = kvs.iter().flat_map(|kv| kv.promised().pool());
        self.tiers.pool.check_integrity(held(), self.prefixes.kept(), promised)?;
        self.tiers.dram.check_integrity(held(), [], kvs.iter().map(|kv| &kv.promised().dram))
    }

    fn check_lanes(&self) -> Result<(), String> {
        for (at, holder) in self.lanes.iter().enumerate() {
            let Some(id) = holder else { continue };
            let living = self.sequences.get(id).and_then(|sequence| sequence.lane).is_some_and(|lane| lane.at() == at);
            let retiring = self.retiring.iter().filter_map(|retiring| retiring.lane).any(|lane| lane.at() == at);
            if living == retiring {
                return Err(format!("lane {at} of {id}: in use {living}, retiring {retiring}"));
            }
        }
        let lanes = self.sequences.values().filter(|sequence| sequence.lane.is_some()).count();
        let retiring = self.retiring.iter().filter(|retiring| retiring.lane.is_some()).count();
        let taken = self.lanes.iter().flatten().count();
        if lanes + retiring == taken { Ok(()) } else { Err(format!("{taken} lanes taken, {lanes} + {retiring} used")) }
    }

    fn check_requests(&self) -> Result<(), String> {
        for (id, group) in &self.requests {
            let waits = self.waiting.contains(id);
            if waits != group.alive.is_empty() {
                return Err(format!("{id}: waiting {waits}, {} choices alive", group.alive.len()));
            }
            let constrained = group.request.constraint.is_some();
            let constraints = if waits && constrained { group.request.choices } else { 0 };
            if group.constraints.len() != constraints {
                return Err(format!("{id}: {} constraints wait, not {constraints}", group.constraints.len()));
            }
            let known = |choice| {
                let sequence: Option<&Sequence> = self.sequences.get(choice);
                sequence.is_some_and(|of| of.request == *id && of.constraint.is_some() == constrained)
            };
            if !group.alive.iter().all(known) {
                return Err(format!("{id}: a living choice is no sequence"));
            }
        }
        for sequence in self.sequences.values() {
            let held = matches!(sequence.phase, Phase::Held);
            let alive = self.requests.get(&sequence.request).is_some_and(|group| group.alive.contains(&sequence.id));
            if held == alive || held && sequence.lane.is_some() {
                return Err(format!("{}: held {held}, alive {alive}, {:?}", sequence.id, sequence.lane));
            }
            if let Phase::Running(running) = &sequence.phase
                && !(running.committed <= running.planned && running.planned <= running.outputs_max.max(1))
            {
                return Err(format!("{}: {running:?}", sequence.id));
            }
        }
        Ok(())
    }

    fn check_slots(&self) -> Result<(), String> {
        for (slot, holder) in self.slots.iter().enumerate() {
            let Some(id) = holder else { continue };
            let has = self.sequences.get(id).and_then(|sequence| sequence.prefill()).and_then(|prefill| prefill.slot);
            if has != Some(slot) {
                return Err(format!("pass buffers {slot} are {id}'s, which has {has:?}"));
            }
        }
        let holders = self.prefilling().filter(|(_, prefill)| prefill.slot.is_some()).count();
        let taken = self.slots.iter().flatten().count();
        if holders == taken { Ok(()) } else { Err(format!("{taken} pass buffers taken, {holders} held")) }
    }
}
