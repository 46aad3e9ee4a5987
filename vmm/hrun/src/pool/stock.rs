//! What the pool keeps and what it should do next: decisions only, no I/O and no clock of its own.
//!
//! `V` is a VM that waits; whoever gets one back from here ends it or hands it on.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::class::PoolClass;
use super::protocol::{ClassStatus, HeldBack, Refusal};

/// A container that was just started shall have the machine for itself: this long after the last
/// claim nothing is loaded...
const QUIET: Duration = Duration::from_millis(600);

/// ...but a pool that is claimed from all the time must be filled up all the same.
const MAX_POSTPONED: Duration = Duration::from_secs(2);

/// A VM that waited this long is no sign of trouble when it ends.
const HEALTHY: Duration = Duration::from_secs(60);

/// Pause after the first failure; each further one doubles it...
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// ...up to this.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// How often it is looked at most whether the template is still the one to use.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How soon it is looked again whether the host has memory.
const HOST_MEMORY_INTERVAL: Duration = Duration::from_secs(5);

/// Classes that are kept or counted. Claims for more are not counted.
pub(super) const MAX_CLASSES: usize = 64;

/// VMs of a class.
pub(super) const MAX_SIZE: usize = 1000;

/// Names a VM for as long as the daemon lives.
pub(super) type VmId = u64;

/// A VM that waits to be claimed.
#[derive(Debug)]
pub(super) struct Waiting<V> {
    pub(super) id: VmId,
    pub(super) vm: V,
    /// What it has to itself, in bytes, measured when it was loaded.
    pub(super) memory: u64,
    pub(super) since: Instant,
}

/// A VM that was just loaded.
#[derive(Debug)]
pub(super) struct Loaded<V> {
    pub(super) id: VmId,
    pub(super) vm: V,
    pub(super) memory: u64,
    /// Of the template it is made from.
    pub(super) key: String,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Load a VM of this class and tell what came of it.
    Load(PoolClass),
    /// Find out which template is the one to use for this class.
    Check(PoolClass),
    /// Ask again at this moment, or when something has changed.
    WaitUntil(Instant),
    /// Ask again when something has changed.
    Wait,
}

/// More classes or VMs than a pool may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResizeError {
    #[error("A pool keeps {MAX_SIZE} VMs of a class at most")]
    Size,
    #[error("A pool keeps {MAX_CLASSES} classes at most")]
    Classes,
}

/// All classes of a pool.
#[derive(Debug)]
pub(super) struct Stock<V> {
    classes: Vec<Kept<V>>,
    memory_limit: Option<u64>,
    /// How many classes may be kept that nobody named, because they were asked for.
    learn: usize,
    /// Those that are kept no more, to be ended.
    surplus: Vec<V>,
    last_claim: Option<Instant>,
    held_back: Option<HeldBack>,
    /// When to look again whether the host has memory.
    host_memory_at: Option<Instant>,
}

/// One class.
#[derive(Debug)]
struct Kept<V> {
    class: PoolClass,
    size: usize,
    /// One is kept because it was asked for, last at this time.
    learned: Option<Instant>,
    ready: VecDeque<Waiting<V>>,
    loading: bool,
    /// Of the template that those in `ready` are made from.
    key: Option<String>,
    /// When the first of those that are missing went missing.
    short_since: Option<Instant>,
    /// The most that one had to itself when it was loaded, in bytes.
    memory: u64,
    failures: u32,
    retry_at: Option<Instant>,
    /// A claimer came with another template: when to see who is right.
    check_at: Option<Instant>,
    last_check: Option<Instant>,
    claimed: u64,
    missed: u64,
    trouble: Option<String>,
}

impl<V> Stock<V> {
    /// Keeps nothing yet. One VM each of as many as `learn` classes is kept once they were asked
    /// for.
    pub(super) fn new(memory_limit: Option<u64>, learn: usize) -> Self {
        Self {
            classes: Vec::new(),
            memory_limit,
            learn,
            surplus: Vec::new(),
            last_claim: None,
            held_back: None,
            host_memory_at: None,
        }
    }

    /// Gives a VM of `class` made from the template `key`, the one that has waited longest.
    pub(super) fn claim(
        &mut self,
        class: PoolClass,
        key: &str,
        now: Instant,
        lives: impl Fn(&V) -> bool,
    ) -> Result<Waiting<V>, Refusal> {
        let Some(kept) = self.entry(class) else {
            return Err(Refusal::NotKept);
        };
        let claimed = kept.claim(key, now, lives);
        if let Some(asked) = &mut kept.learned {
            *asked = now;
        }
        match claimed {
            Ok(_) => self.last_claim = Some(now),
            Err(Refusal::NotKept) if self.learn(class, now) => return Err(Refusal::Learned),
            Err(_) => {}
        }
        claimed
    }

    /// Keeps one of a class that was asked for, instead of the one that was not asked for longest;
    /// false if nothing is to be learned.
    fn learn(&mut self, class: PoolClass, now: Instant) -> bool {
        let learned = self.classes.iter().filter(|kept| kept.learned.is_some());
        if learned.count() >= self.learn {
            let learned = self
                .classes
                .iter_mut()
                .filter(|kept| kept.learned.is_some());
            let Some(oldest) = learned.min_by_key(|kept| kept.learned) else {
                return false;
            };
            oldest.learned = None;
            oldest.size = 0;
            let surplus = oldest.ready.drain(..).map(|waiting| waiting.vm);
            self.surplus.extend(surplus);
            oldest.count_short(now);
        }
        let Some(kept) = self.find(class) else {
            return false;
        };
        kept.learned = Some(now);
        kept.size = 1;
        kept.count_short(now);
        true
    }

    /// Gives back those that are not to be kept any more because others were learned.
    pub(super) fn take_surplus(&mut self) -> Vec<V> {
        std::mem::take(&mut self.surplus)
    }

    /// What to do next; `host_is_short` tells whether the host has little memory left.
    pub(super) fn next(&mut self, now: Instant, host_is_short: impl Fn() -> bool) -> Step {
        for kept in &mut self.classes {
            kept.recover(now);
        }
        if let Some(class) = self.take_check(now) {
            return Step::Check(class);
        }
        self.held_back = None;
        let mut wake: Option<Instant> = self.classes.iter().filter_map(|kept| kept.check_at).min();
        let mut sooner = |at: Instant| wake = Some(wake.map_or(at, |wake| wake.min(at)));
        let mut due = Vec::new();
        for (index, kept) in self.classes.iter().enumerate() {
            let Some(at) = kept.due(self.last_claim) else {
                continue;
            };
            if !self.has_room_for(kept) {
                self.held_back = Some(HeldBack::MemoryLimit);
            } else if at <= now {
                due.push(index);
            } else {
                sooner(at);
            }
        }
        // The emptiest class first, measured by what it should have.
        let fill = |index: usize| {
            let kept = &self.classes[index];
            kept.ready.len() * MAX_SIZE / kept.size.max(1)
        };
        if let Some(index) = due.into_iter().min_by_key(|&index| fill(index)) {
            let at = self.host_memory_at.filter(|at| *at > now);
            if at.is_none() && !host_is_short() {
                self.host_memory_at = None;
                let kept = &mut self.classes[index];
                kept.loading = true;
                return Step::Load(kept.class);
            }
            let at = at.unwrap_or(now + HOST_MEMORY_INTERVAL);
            self.host_memory_at = Some(at);
            self.held_back = Some(HeldBack::HostMemory);
            sooner(at);
        }
        wake.map_or(Step::Wait, Step::WaitUntil)
    }

    /// A VM has been loaded. Gives back those that are not to be kept.
    pub(super) fn loaded(&mut self, class: PoolClass, loaded: Loaded<V>, now: Instant) -> Vec<V> {
        let allowed = self.memory_limit.unwrap_or(u64::MAX);
        let Some(kept) = self.find(class) else {
            return vec![loaded.vm];
        };
        kept.loading = false;
        let mut surplus = kept.template_is(loaded.key, now);
        kept.memory = kept.memory.max(loaded.memory);
        let fits = self.waiting_memory().saturating_add(loaded.memory) <= allowed;
        let Some(kept) = self.find(class) else {
            return vec![loaded.vm];
        };
        if kept.ready.len() < kept.size && fits {
            kept.ready.push_back(Waiting {
                id: loaded.id,
                vm: loaded.vm,
                memory: loaded.memory,
                since: now,
            });
        } else {
            surplus.push(loaded.vm);
        }
        kept.count_short(now);
        surplus
    }

    /// A VM could not be loaded, or its template not be found.
    pub(super) fn failed(&mut self, class: PoolClass, trouble: String, now: Instant) {
        if let Some(kept) = self.find(class) {
            kept.loading = false;
            kept.fail(trouble, now);
        }
    }

    /// The template to use for a class is this one. Gives back the VMs made from another.
    pub(super) fn template_is(&mut self, class: PoolClass, key: String, now: Instant) -> Vec<V> {
        self.find(class)
            .map_or_else(Vec::new, |kept| kept.template_is(key, now))
    }

    /// A VM has ended: gives it back if it was waiting. The caller then says why by
    /// [`Stock::died`].
    pub(super) fn ended(&mut self, id: VmId) -> Option<(PoolClass, Waiting<V>)> {
        self.classes.iter_mut().find_map(|kept| {
            let index = kept.ready.iter().position(|waiting| waiting.id == id)?;
            Some((kept.class, kept.ready.remove(index)?))
        })
    }

    /// None of the VMs that were handed out runs any more: nobody is disturbed.
    pub(super) fn nobody_runs(&mut self) {
        self.last_claim = None;
    }

    /// Why a VM that was waiting since then has ended.
    pub(super) fn died(&mut self, class: PoolClass, since: Instant, trouble: String, now: Instant) {
        if let Some(kept) = self.find(class) {
            if now.saturating_duration_since(since) >= HEALTHY {
                kept.failures = 0;
            }
            kept.fail(trouble, now);
            kept.count_short(now);
        }
    }

    /// Keeps so many VMs of a class from now on. Gives back those that are too many.
    pub(super) fn resize(
        &mut self,
        class: PoolClass,
        size: usize,
        now: Instant,
    ) -> Result<Vec<V>, ResizeError> {
        if size > MAX_SIZE {
            return Err(ResizeError::Size);
        }
        let kept = self.entry(class).ok_or(ResizeError::Classes)?;
        kept.size = size;
        kept.learned = None;
        // Somebody cares: what failed before may succeed now.
        kept.retry_at = None;
        kept.failures = 0;
        let keep = size.min(kept.ready.len());
        let surplus = kept.ready.split_off(keep);
        kept.count_short(now);
        Ok(surplus.into_iter().map(|waiting| waiting.vm).collect())
    }

    /// Keeps nothing from now on, and learns nothing. Gives back everything.
    pub(super) fn drain(&mut self) -> Vec<V> {
        self.learn = 0;
        let drained = self.classes.iter_mut().flat_map(|kept| {
            kept.size = 0;
            kept.learned = None;
            kept.short_since = None;
            kept.ready.drain(..)
        });
        drained.map(|waiting| waiting.vm).collect()
    }

    /// What all that wait have to themselves, in bytes.
    pub(super) fn waiting_memory(&self) -> u64 {
        self.classes.iter().map(Kept::waiting_memory).sum()
    }

    pub(super) fn memory_limit(&self) -> Option<u64> {
        self.memory_limit
    }

    pub(super) fn held_back(&self) -> Option<HeldBack> {
        self.held_back
    }

    /// How the classes are; `running` counts those of a class that were handed out and live.
    pub(super) fn classes(&self, running: impl Fn(PoolClass) -> usize) -> Vec<ClassStatus> {
        self.classes
            .iter()
            .map(|kept| ClassStatus {
                class: kept.class,
                size: kept.size,
                learned: kept.learned.is_some(),
                ready: kept.ready.len(),
                loading: usize::from(kept.loading),
                running: running(kept.class),
                claimed: kept.claimed,
                missed: kept.missed,
                waiting_memory: kept.waiting_memory(),
                template: kept.key.clone(),
                trouble: kept.trouble.clone(),
            })
            .collect()
    }

    fn find(&mut self, class: PoolClass) -> Option<&mut Kept<V>> {
        self.classes.iter_mut().find(|kept| kept.class == class)
    }

    /// The entry of a class, made if there is room: whoever asks for a class that is not kept is
    /// counted, so that the operator sees which one is missing.
    fn entry(&mut self, class: PoolClass) -> Option<&mut Kept<V>> {
        let index = match self.classes.iter().position(|kept| kept.class == class) {
            Some(index) => index,
            None if self.classes.len() < MAX_CLASSES => {
                self.classes.push(Kept::new(class));
                self.classes.len() - 1
            }
            None => {
                // One that is only counted makes room.
                let index = self.classes.iter().position(Kept::is_only_counted)?;
                self.classes[index] = Kept::new(class);
                index
            }
        };
        self.classes.get_mut(index)
    }

    /// A class whose template is to be looked at now.
    fn take_check(&mut self, now: Instant) -> Option<PoolClass> {
        let kept = self
            .classes
            .iter_mut()
            .find(|kept| kept.check_at.is_some_and(|at| at <= now))?;
        kept.check_at = None;
        kept.last_check = Some(now);
        Some(kept.class)
    }

    fn has_room_for(&self, kept: &Kept<V>) -> bool {
        let allowed = self.memory_limit.unwrap_or(u64::MAX);
        self.waiting_memory().saturating_add(kept.memory) <= allowed
    }
}

impl<V> Kept<V> {
    fn new(class: PoolClass) -> Self {
        Self {
            class,
            size: 0,
            learned: None,
            ready: VecDeque::new(),
            loading: false,
            key: None,
            short_since: None,
            memory: 0,
            failures: 0,
            retry_at: None,
            check_at: None,
            last_check: None,
            claimed: 0,
            missed: 0,
            trouble: None,
        }
    }

    fn claim(
        &mut self,
        key: &str,
        now: Instant,
        lives: impl Fn(&V) -> bool,
    ) -> Result<Waiting<V>, Refusal> {
        let refusal = if self.size == 0 {
            Refusal::NotKept
        } else if self.key.as_deref().is_some_and(|own| own != key) {
            let earliest = self.last_check.map_or(now, |last| last + CHECK_INTERVAL);
            self.check_at.get_or_insert(earliest.max(now));
            Refusal::OtherTemplate
        } else {
            // The dead are left where they are: that they died is about to be noticed.
            let found = self.ready.iter().position(|waiting| lives(&waiting.vm));
            match found.and_then(|index| self.ready.remove(index)) {
                Some(waiting) => {
                    self.claimed += 1;
                    self.count_short(now);
                    return Ok(waiting);
                }
                None => Refusal::Empty,
            }
        };
        self.missed += 1;
        Err(refusal)
    }

    /// When the next one is to be loaded, if one is missing.
    fn due(&self, last_claim: Option<Instant>) -> Option<Instant> {
        if self.loading || self.ready.len() >= self.size {
            return None;
        }
        let since = self.short_since?;
        let quiet = last_claim.map_or(since, |claim| (claim + QUIET).min(since + MAX_POSTPONED));
        Some(self.retry_at.map_or(quiet, |retry| quiet.max(retry)))
    }

    /// Notes since when there are fewer than there should be.
    fn count_short(&mut self, now: Instant) {
        if self.ready.len() >= self.size {
            self.short_since = None;
        } else {
            self.short_since.get_or_insert(now);
        }
    }

    fn fail(&mut self, trouble: String, now: Instant) {
        let doubled = FIRST_PAUSE * (1 << self.failures.min(10));
        self.retry_at = Some(now + doubled.min(MAX_PAUSE));
        self.failures += 1;
        self.trouble = Some(trouble);
    }

    /// Forgets what went wrong once a VM has waited in peace.
    fn recover(&mut self, now: Instant) {
        let healthy =
            |waiting: &Waiting<V>| now.saturating_duration_since(waiting.since) >= HEALTHY;
        if self.failures > 0 && self.ready.iter().any(healthy) {
            self.failures = 0;
            self.trouble = None;
        }
    }

    fn template_is(&mut self, key: String, now: Instant) -> Vec<V> {
        if self.key.as_ref() == Some(&key) {
            return Vec::new();
        }
        self.key = Some(key);
        self.memory = 0;
        let stale = self.ready.drain(..).map(|waiting| waiting.vm).collect();
        self.count_short(now);
        stale
    }

    fn is_only_counted(&self) -> bool {
        self.size == 0 && self.claimed == 0 && !self.loading && self.ready.is_empty()
    }

    fn waiting_memory(&self) -> u64 {
        self.ready.iter().map(|waiting| waiting.memory).sum()
    }
}

#[cfg(test)]
mod tests;
