//! When each phase of a VM's start was reached.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use crate::api::Phase;

/// The phases so far, measured from the beginning of the process.
pub struct Timeline {
    start: Instant,
    phases: Mutex<Vec<Phase>>,
}

impl Timeline {
    /// A timeline that begins now.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            start: Instant::now(),
            phases: Mutex::default(),
        }
    }

    /// Notes that a phase was reached.
    pub fn reached(&self, name: &str) {
        let at_us = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let phase = Phase {
            name: name.into(),
            at_us,
        };
        self.phases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(phase);
    }

    /// All phases that were reached.
    #[must_use]
    pub fn phases(&self) -> Vec<Phase> {
        self.phases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
