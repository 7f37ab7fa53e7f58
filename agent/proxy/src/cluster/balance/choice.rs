//! One of many, by weight and cost.

/// Endpoints that share requests among them: their places in a list, and what each weighs.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Level {
    places: Vec<usize>,
    /// Sums of the weights so far; empty where all are equal, which they mostly are.
    sums: Vec<f64>,
}

/// Weight of a difference in cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharpness {
    /// Twice the cost is a quarter of the chance: what is measured is never exact, and of two that
    /// are equal the one that was a little luckier must not get everything.
    Measured,
    /// Twice the cost is as good as no chance at all.
    Counted,
}

impl Level {
    /// Of places and weights. Those that weigh nothing aren't in it.
    pub(crate) fn new(weighed: impl Iterator<Item = (usize, f64)>) -> Self {
        let (places, weights): (Vec<usize>, Vec<f64>) =
            weighed.filter(|(_, weight)| *weight > 0.0).unzip();
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let mut sum = 0.0;
        let add = |weight: &f64| {
            sum += weight;
            sum
        };
        Self { places, sums: if equal { Vec::new() } else { weights.iter().map(add).collect() } }
    }

    pub(crate) fn places(&self) -> &[usize] {
        &self.places
    }

    /// Of two drawn at random, one: the chance of each is its weight, over its cost to a power.
    ///
    /// The first is drawn by weight, the second evenly among the others, and they meet as in
    /// Barker's sampler (1965): so that among equal costs everybody's share is exactly its weight,
    /// however many they are.
    pub(crate) fn cheaper_of_two(
        &self,
        random: u64,
        sharpness: Sharpness,
        cost: impl Fn(usize) -> f64,
    ) -> Option<usize> {
        let count = self.places.len();
        let [draw, other, coin] = split(random);
        let first = self.draw(draw)?;
        if count == 1 {
            return Some(self.places[first]);
        }
        // Not the first again.
        let second = (first + 1 + (other * (count - 1) as f64) as usize) % count;
        let dearer = cost(self.places[second]) / cost(self.places[first]);
        let odds = match sharpness {
            Sharpness::Measured => dearer.powi(2),
            Sharpness::Counted => dearer.powi(64),
        } * self.weight(first)
            / self.weight(second);
        // NaN, of two costs that are nothing or beyond all measure, is no reason for the second.
        let takes_second = coin < 1.0 / (1.0 + odds);
        Some(self.places[if takes_second { second } else { first }])
    }

    /// The next in a fixed order that gives everybody its share, evenly spread.
    pub(crate) fn in_turn(&self, turn: usize) -> Option<usize> {
        if self.sums.is_empty() {
            return self.places.get(turn.checked_rem(self.places.len())?).copied();
        }
        // Multiples of the golden ratio leave no gaps and make no heaps (Weyl; Knuth 6.4).
        let point = (turn as f64 * 0.618_033_988_749_894_9).fract();
        Some(self.places[self.draw(point)?])
    }

    /// A place among the places, by a number from 0 to 1 (which isn't in it).
    fn draw(&self, point: f64) -> Option<usize> {
        let last = self.places.len().checked_sub(1)?;
        let found = match self.sums.last() {
            None => (point * self.places.len() as f64) as usize,
            Some(whole) => self.sums.partition_point(|sum| *sum <= point * whole),
        };
        Some(found.min(last))
    }

    fn weight(&self, at: usize) -> f64 {
        match at.checked_sub(1) {
            _ if self.sums.is_empty() => 1.0,
            Some(before) => self.sums[at] - self.sums[before],
            None => self.sums[at],
        }
    }
}

/// Three numbers from 0 to 1 out of a random one.
fn split(random: u64) -> [f64; 3] {
    const BITS: u32 = 21;
    let part = |at: u32| (random >> (at * BITS) & ((1 << BITS) - 1)) as f64 / f64::from(1 << BITS);
    [part(0), part(1), part(2)]
}

#[cfg(test)]
mod tests {
    use super::super::tests::random;
    use super::*;

    const DRAWS: u64 = 40_000;

    fn shares(
        weights: &[f64],
        sharpness: Sharpness,
        cost: impl Fn(usize) -> f64 + Copy,
    ) -> Vec<f64> {
        let level = Level::new(weights.iter().copied().enumerate());
        let mut counts = vec![0.0; weights.len()];
        for number in 0..DRAWS {
            counts[level.cheaper_of_two(random(number), sharpness, cost).unwrap()] += 1.0;
        }
        counts.into_iter().map(|count| count / DRAWS as f64).collect()
    }

    #[test]
    fn among_equal_costs_everybody_gets_its_weight() {
        for weights in [&[1.0; 4][..], &[3.0, 1.0], &[1.0, 2.0, 3.0, 4.0], &[0.1, 1.0, 1.0], &[7.0]]
        {
            let whole: f64 = weights.iter().sum();
            for sharpness in [Sharpness::Measured, Sharpness::Counted] {
                for (share, weight) in shares(weights, sharpness, |_| 5.0).iter().zip(weights) {
                    assert!((share - weight / whole).abs() < 0.01, "{weights:?}: {share}");
                }
            }
        }
    }

    #[test]
    fn the_cheaper_of_two_gets_more_and_the_dearest_of_many_hardly_anything() {
        let two = shares(&[1.0; 2], Sharpness::Measured, |at| [1.0, 1.1][at]);
        assert!((0.53..0.57).contains(&two[0]), "a little better is a little more: {two:?}");
        let two = shares(&[1.0; 2], Sharpness::Measured, |at| [1.0, 10.0][at]);
        assert!(two[1] < 0.02, "{two:?}");
        let three = shares(&[1.0; 3], Sharpness::Measured, |at| [1.0, 1.0, 1000.0][at]);
        assert!(three[2] < 0.001 && (three[0] - three[1]).abs() < 0.02, "{three:?}");
        let counted = shares(&[1.0; 2], Sharpness::Counted, |at| [1.0, 2.0][at]);
        assert!(counted[1] < 0.01, "{counted:?}");
    }

    #[test]
    fn costs_without_measure_are_no_harm_and_weight_zero_gets_nothing() {
        for costs in [[0.0, 0.0], [f64::INFINITY, f64::INFINITY], [0.0, f64::INFINITY]] {
            assert!((shares(&[1.0; 2], Sharpness::Measured, |at| costs[at])[0]) > 0.0);
        }
        assert_eq!(shares(&[0.0, 1.0], Sharpness::Measured, |_| 1.0), [0.0, 1.0]);
        let nobody = Level::new([(0, 0.0)].into_iter());
        assert_eq!(nobody.cheaper_of_two(7, Sharpness::Measured, |_| 1.0), None);
        assert_eq!(nobody.in_turn(7), None);
    }

    #[test]
    fn turns_follow_weights_and_are_spread_evenly() {
        let level = Level::new([(0, 1.0), (1, 1.0), (2, 1.0)].into_iter());
        let turns: Vec<_> = (0..6).filter_map(|turn| level.in_turn(turn)).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
        let level = Level::new([(0, 3.0), (1, 1.0)].into_iter());
        for window in 0..50 {
            let ones = (window * 20..).take(20).filter(|turn| level.in_turn(*turn) == Some(1));
            assert!((4..=6).contains(&ones.count()));
        }
    }
}
