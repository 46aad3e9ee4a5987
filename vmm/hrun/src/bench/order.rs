//! The order in which arms take turns: shuffled for every round, and the same again for the same
//! seed.

/// A source of orders: xorshift64*, which is plenty for shuffling a handful of arms.
#[derive(Debug)]
pub(crate) struct Order(u64);

impl Order {
    /// Orders that follow from a seed.
    pub(crate) fn new(seed: u64) -> Self {
        // Zero is the one state that such a generator never leaves.
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// The numbers 0 to `count` - 1 in a new order (Fisher and Yates).
    pub(crate) fn of(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            // The high bits are the good ones; what is cut off here was above a handful anyway.
            let random = usize::try_from(self.next() >> 33).unwrap_or(0);
            order.swap(last, random % (last + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_arm_has_one_turn_and_every_place_in_time() {
        let mut order = Order::new(1);
        let mut seen = HashSet::new();
        for _ in 0..100 {
            let mut turn = order.of(4);
            seen.extend(turn.iter().copied().enumerate());
            turn.sort_unstable();
            assert_eq!(turn, [0, 1, 2, 3]);
        }
        assert_eq!(seen.len(), 16);
        assert!(order.of(0).is_empty());
    }

    #[test]
    fn a_seed_gives_the_same_orders_again() {
        let orders = |seed| (0..9).map(|_| Order::new(seed).of(9)).collect::<Vec<_>>();
        assert_eq!(orders(5), orders(5));
        assert_ne!(Order::new(5).of(9), Order::new(6).of(9));
    }
}
