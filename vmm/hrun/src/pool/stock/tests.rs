//! Tests of the decisions, on a clock that is moved by hand.

use super::*;
use crate::template::Class;

const SMALL: PoolClass = PoolClass::any(Class {
    cpus: 1,
    memory: 256 << 20,
});
const LARGE: PoolClass = PoolClass::any(Class {
    cpus: 2,
    memory: 1 << 30,
});
const MIB: u64 = 1 << 20;

/// A stock of numbers in the place of VMs, and a clock.
struct Bench {
    stock: Stock<VmId>,
    now: Instant,
    next_id: VmId,
    host_is_short: bool,
}

impl Bench {
    fn new(memory_limit: Option<u64>) -> Self {
        Self {
            stock: Stock::new(memory_limit, 0),
            now: Instant::now(),
            next_id: 0,
            host_is_short: false,
        }
    }

    fn keeping(class: PoolClass, size: usize) -> Self {
        let mut bench = Self::new(None);
        bench.resize(class, size);
        bench
    }

    fn resize(&mut self, class: PoolClass, size: usize) -> Vec<VmId> {
        self.stock.resize(class, size, self.now).unwrap()
    }

    fn next(&mut self) -> Step {
        self.stock.next(self.now, || self.host_is_short)
    }

    fn load(&mut self, class: PoolClass, key: &str, memory: u64) -> Vec<VmId> {
        self.next_id += 1;
        let loaded = Loaded {
            id: self.next_id,
            vm: self.next_id,
            memory,
            key: key.into(),
        };
        self.stock.loaded(class, loaded, self.now)
    }

    /// Does what is to be done until there is nothing more, at this moment.
    fn fill(&mut self) -> usize {
        let mut loaded = 0;
        while let Step::Load(class) = self.next() {
            assert!(self.load(class, "key", MIB).is_empty());
            loaded += 1;
        }
        loaded
    }

    fn claim(&mut self, class: PoolClass, key: &str) -> Result<VmId, Refusal> {
        let claimed = self.stock.claim(class, key, self.now, |_| true);
        claimed.map(|waiting| waiting.vm)
    }

    fn status(&self, class: PoolClass) -> ClassStatus {
        let found = self.stock.classes(|_| 0).into_iter();
        found.into_iter().find(|kept| kept.class == class).unwrap()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

#[test]
fn a_pool_fills_up_one_at_a_time_and_gives_the_oldest_first() {
    let mut bench = Bench::keeping(SMALL, 3);
    assert_eq!(bench.next(), Step::Load(SMALL));
    assert_eq!(bench.next(), Step::Wait, "one is being loaded");
    assert_eq!(bench.claim(SMALL, "key"), Err(Refusal::Empty));
    bench.load(SMALL, "key", MIB);
    assert_eq!(bench.fill(), 2);
    assert_eq!(bench.next(), Step::Wait);
    for id in 1..=3 {
        assert_eq!(bench.claim(SMALL, "key"), Ok(id));
    }
    assert_eq!(bench.claim(SMALL, "key"), Err(Refusal::Empty));
    let status = bench.status(SMALL);
    assert_eq!((status.claimed, status.missed, status.ready), (3, 2, 0));
}

#[test]
fn nothing_is_loaded_beside_a_container_that_was_just_started() {
    let mut bench = Bench::keeping(SMALL, 2);
    bench.fill();
    bench.claim(SMALL, "key").unwrap();
    assert_eq!(bench.next(), Step::WaitUntil(bench.now + QUIET));
    bench.pass(QUIET);
    assert_eq!(bench.fill(), 1);
}

#[test]
fn a_container_that_has_ended_is_not_waited_for() {
    let mut bench = Bench::keeping(SMALL, 2);
    bench.fill();
    bench.claim(SMALL, "key").unwrap();
    assert_eq!(bench.fill(), 0);
    bench.stock.nobody_runs();
    assert_eq!(bench.fill(), 1);
}

#[test]
fn a_pool_that_is_never_left_alone_fills_up_all_the_same() {
    let mut bench = Bench::keeping(SMALL, 100);
    bench.fill();
    let mut passed = Duration::ZERO;
    let mut claimed = 0;
    while passed < MAX_POSTPONED {
        bench.claim(SMALL, "key").unwrap();
        claimed += 1;
        assert_eq!(bench.fill(), 0, "after {passed:?}");
        bench.pass(QUIET / 2);
        passed += QUIET / 2;
    }
    bench.claim(SMALL, "key").unwrap();
    assert_eq!(bench.fill(), claimed + 1);
}

#[test]
fn the_emptiest_class_comes_first() {
    let mut bench = Bench::keeping(SMALL, 4);
    bench.resize(LARGE, 1);
    let mut order = Vec::new();
    while let Step::Load(class) = bench.next() {
        bench.load(class, "key", MIB);
        order.push(class);
    }
    assert_eq!(order, [SMALL, LARGE, SMALL, SMALL, SMALL]);
}

#[test]
fn a_claimer_with_another_template_gets_nothing_and_has_it_looked_at() {
    let mut bench = Bench::keeping(SMALL, 2);
    bench.fill();
    assert_eq!(bench.claim(SMALL, "new"), Err(Refusal::OtherTemplate));
    assert_eq!(bench.next(), Step::Check(SMALL));
    // The pool is right: it was another kernel, named by the claimer.
    let stale = bench.stock.template_is(SMALL, "key".into(), bench.now);
    assert!(stale.is_empty());
    assert_eq!(bench.next(), Step::Wait);
    // Claimers like this do not keep the pool busy.
    assert_eq!(bench.claim(SMALL, "new"), Err(Refusal::OtherTemplate));
    let again = bench.now + CHECK_INTERVAL;
    assert_eq!(bench.next(), Step::WaitUntil(again));
    bench.pass(CHECK_INTERVAL);
    assert_eq!(bench.next(), Step::Check(SMALL));
    // The claimer is right: hrun was upgraded.
    let stale = bench.stock.template_is(SMALL, "new".into(), bench.now);
    assert_eq!(stale, [1, 2]);
    assert_eq!(bench.next(), Step::Load(SMALL));
    bench.load(SMALL, "new", MIB);
    assert_eq!(bench.claim(SMALL, "key"), Err(Refusal::OtherTemplate));
    assert_eq!(bench.claim(SMALL, "new"), Ok(3));
}

#[test]
fn a_vm_of_a_new_template_drives_out_those_of_the_old() {
    let mut bench = Bench::keeping(SMALL, 3);
    bench.fill();
    bench.claim(SMALL, "key").unwrap();
    bench.pass(QUIET);
    assert_eq!(bench.next(), Step::Load(SMALL));
    assert_eq!(bench.load(SMALL, "new", MIB), [2, 3]);
    assert_eq!(bench.status(SMALL).ready, 1);
    assert_eq!(bench.status(SMALL).template.as_deref(), Some("new"));
}

#[test]
fn classes_that_are_asked_for_and_not_kept_are_counted_up_to_a_point() {
    let mut bench = Bench::keeping(SMALL, 1);
    for _ in 0..3 {
        assert_eq!(bench.claim(LARGE, "key"), Err(Refusal::NotKept));
    }
    let status = bench.status(LARGE);
    assert_eq!((status.size, status.missed), (0, 3));
    for memory in 0..1000 {
        let class = PoolClass::any(Class { cpus: 3, memory });
        assert_eq!(bench.claim(class, "key"), Err(Refusal::NotKept));
    }
    assert_eq!(bench.stock.classes(|_| 0).len(), MAX_CLASSES);
    // They leave room for one that is wanted.
    assert!(bench.resize(LARGE, 1).is_empty());
    assert_eq!(bench.fill(), 2);
}

#[test]
fn a_pool_has_bounds() {
    let mut bench = Bench::new(None);
    let refused = bench.stock.resize(SMALL, MAX_SIZE + 1, bench.now);
    assert_eq!(refused, Err(ResizeError::Size));
    for memory in 0..MAX_CLASSES as u64 {
        bench.resize(PoolClass::any(Class { cpus: 1, memory }), 1);
    }
    let refused = bench.stock.resize(LARGE, 1, bench.now);
    assert_eq!(refused, Err(ResizeError::Classes));
    assert_eq!(bench.claim(LARGE, "key"), Err(Refusal::NotKept));
}

#[test]
fn the_memory_limit_holds_and_is_told() {
    let mut bench = Bench::new(Some(10 * MIB));
    bench.resize(SMALL, 4);
    for _ in 0..3 {
        assert_eq!(bench.next(), Step::Load(SMALL));
        bench.load(SMALL, "key", 3 * MIB);
    }
    assert_eq!(bench.next(), Step::Wait);
    assert_eq!(bench.stock.held_back(), Some(HeldBack::MemoryLimit));
    assert_eq!(bench.stock.waiting_memory(), 9 * MIB);
    // One that leaves makes room for the next.
    bench.claim(SMALL, "key").unwrap();
    bench.pass(QUIET);
    assert_eq!(bench.next(), Step::Load(SMALL));
    assert_eq!(bench.stock.held_back(), None);
    // It turns out larger than the last: it is not kept, and not tried again and again.
    assert_eq!(bench.load(SMALL, "key", 5 * MIB), [4]);
    assert_eq!(bench.next(), Step::Wait);
    assert_eq!(bench.stock.waiting_memory(), 6 * MIB);
}

#[test]
fn nothing_is_loaded_while_the_host_is_short_of_memory() {
    let mut bench = Bench::keeping(SMALL, 1);
    bench.host_is_short = true;
    let again = bench.now + HOST_MEMORY_INTERVAL;
    assert_eq!(bench.next(), Step::WaitUntil(again));
    assert_eq!(bench.stock.held_back(), Some(HeldBack::HostMemory));
    bench.host_is_short = false;
    bench.pass(HOST_MEMORY_INTERVAL / 2);
    assert_eq!(bench.next(), Step::WaitUntil(again));
    bench.pass(HOST_MEMORY_INTERVAL / 2);
    assert_eq!(bench.fill(), 1);
    assert_eq!(bench.stock.held_back(), None);
}

#[test]
fn a_vm_that_dies_is_replaced_slower_and_slower() {
    let mut bench = Bench::keeping(SMALL, 1);
    let mut pauses = Vec::new();
    for round in 0..12 {
        assert_eq!(bench.fill(), 1);
        let (class, vm) = bench.stock.ended(round + 1).unwrap();
        bench.stock.died(class, vm.since, "why".into(), bench.now);
        assert_eq!(bench.status(SMALL).trouble.as_deref(), Some("why"));
        let Step::WaitUntil(at) = bench.next() else {
            panic!("no pause in round {round}");
        };
        pauses.push(at - bench.now);
        bench.now = at;
    }
    assert_eq!(pauses[..3], [1, 2, 4].map(Duration::from_secs));
    assert_eq!(pauses[11], MAX_PAUSE);
    // Once one has waited in peace, it is forgotten.
    assert_eq!(bench.fill(), 1);
    bench.pass(HEALTHY);
    assert_eq!(bench.next(), Step::Wait);
    assert_eq!(bench.status(SMALL).trouble, None);
    assert!(bench.stock.ended(999).is_none());
}

#[test]
fn a_load_that_fails_is_tried_again_later_and_by_an_operator_at_once() {
    let mut bench = Bench::keeping(SMALL, 1);
    assert_eq!(bench.next(), Step::Load(SMALL));
    bench.stock.failed(SMALL, "no kernel".into(), bench.now);
    assert_eq!(bench.next(), Step::WaitUntil(bench.now + FIRST_PAUSE));
    bench.resize(SMALL, 1);
    assert_eq!(bench.fill(), 1);
}

#[test]
fn one_that_just_died_is_not_handed_out() {
    let mut bench = Bench::keeping(SMALL, 2);
    bench.fill();
    let claimed = bench.stock.claim(SMALL, "key", bench.now, |vm| *vm != 1);
    assert_eq!(claimed.unwrap().vm, 2);
    let claimed = bench.stock.claim(SMALL, "key", bench.now, |_| false);
    assert_eq!(claimed.unwrap_err(), Refusal::Empty);
    // It is still there to be found dead.
    assert_eq!(bench.stock.ended(1).unwrap().1.vm, 1);
}

#[test]
fn a_drained_pool_stays_empty_until_it_is_resized() {
    let mut bench = Bench::keeping(SMALL, 2);
    bench.resize(LARGE, 2);
    bench.fill();
    bench.claim(SMALL, "key").unwrap();
    bench.pass(QUIET);
    assert_eq!(bench.next(), Step::Load(SMALL));
    let mut drained = bench.stock.drain();
    drained.sort_unstable();
    assert_eq!(drained.len(), 3);
    // The one that was being loaded meanwhile is not kept either.
    assert_eq!(bench.load(SMALL, "key", MIB), [5]);
    assert_eq!(bench.next(), Step::Wait);
    assert_eq!(bench.claim(SMALL, "key"), Err(Refusal::NotKept));
    bench.resize(SMALL, 1);
    assert_eq!(bench.fill(), 1);
    assert_eq!(bench.status(LARGE).ready, 0);
}

#[test]
fn a_smaller_size_ends_the_surplus() {
    let mut bench = Bench::keeping(SMALL, 3);
    bench.fill();
    assert_eq!(bench.resize(SMALL, 1), [2, 3]);
    assert_eq!(bench.next(), Step::Wait);
    assert_eq!(bench.claim(SMALL, "key"), Ok(1));
}

#[test]
fn what_is_asked_for_is_learned_and_what_is_not_any_more_is_forgotten() {
    let mut bench = Bench::keeping(SMALL, 1);
    bench.stock.learn = 1;
    bench.fill();
    assert_eq!(bench.claim(LARGE, "key"), Err(Refusal::Learned));
    assert_eq!(bench.claim(LARGE, "key"), Err(Refusal::Empty));
    assert_eq!(bench.fill(), 1);
    assert!(bench.status(LARGE).learned);
    let learned = bench.claim(LARGE, "key").unwrap();
    bench.pass(QUIET);
    assert_eq!(bench.fill(), 1);
    // A third class takes the place of the second, not that of the first.
    let third = PoolClass::any(Class {
        cpus: 4,
        memory: 1 << 30,
    });
    assert_eq!(bench.claim(third, "key"), Err(Refusal::Learned));
    assert_eq!(bench.stock.take_surplus(), [learned + 1]);
    assert_eq!(bench.fill(), 1);
    let sizes = [SMALL, LARGE, third].map(|class| bench.status(class).size);
    assert_eq!(sizes, [1, 0, 1]);
}

#[test]
fn a_class_that_is_named_is_not_forgotten() {
    let mut bench = Bench::new(None);
    bench.stock.learn = 1;
    assert_eq!(bench.claim(LARGE, "key"), Err(Refusal::Learned));
    bench.resize(LARGE, 1);
    assert_eq!(bench.claim(SMALL, "key"), Err(Refusal::Learned));
    assert_eq!(bench.fill(), 2);
    bench.stock.drain();
    assert_eq!(bench.claim(SMALL, "key"), Err(Refusal::NotKept));
}
