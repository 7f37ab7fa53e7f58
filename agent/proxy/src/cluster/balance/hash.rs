//! Consistent hashing: the same key meets the same endpoint, on every host and after a restart, and
//! when an endpoint goes, hardly any other's keys move.

/// Points that each endpoint has on a ring, by the mean.
const POINTS: u64 = 160;
/// Slots of a Maglev table: a prime, a hundred times as many as there may be endpoints to be even.
const SLOTS: u64 = 16_381;

/// Hash table from keys to endpoints. Endpoints are known by their index in the list that it was made of.
#[derive(Debug)]
pub(crate) enum HashTable {
    /// Points and their endpoints, in order (Karger et al. 1997).
    Ring(Vec<(u64, u32)>),
    /// An endpoint for each slot (Eisenbud et al. 2016). Empty without endpoints.
    Maglev(Vec<u32>),
}

impl HashTable {
    /// A ring of endpoints that have these numbers and weights.
    pub(crate) fn ring(endpoints: &[(u64, u32)]) -> Self {
        let whole: f64 = endpoints.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let all = POINTS as f64 * endpoints.len() as f64;
        let count = |weight: u32| match weight {
            0 => 0,
            _ => ((f64::from(weight) / whole * all).round() as u64).max(1),
        };
        let mut points: Vec<(u64, u32)> = (0..)
            .zip(endpoints)
            .flat_map(|(at, (number, weight))| {
                (0..count(*weight)).map(move |point| (mix(*number, point), at))
            })
            .collect();
        points.sort_unstable();
        Self::Ring(points)
    }

    /// A Maglev table of endpoints that have these numbers and weights.
    pub(crate) fn maglev(endpoints: &[(u64, u32)]) -> Self {
        const FREE: u32 = u32::MAX;
        let heaviest = endpoints.iter().map(|(_, weight)| *weight).max().unwrap_or(0);
        let mut slots = vec![FREE; if heaviest == 0 { 0 } else { SLOTS as usize }];
        let mut turns: Vec<(u64, u64, u32, u32)> = endpoints
            .iter()
            .map(|(number, weight)| {
                (mix(*number, 1) % SLOTS, mix(*number, 2) % (SLOTS - 1) + 1, *weight, 0)
            })
            .collect();
        let mut left = slots.len();
        while left > 0 {
            for (at, (next, skip, weight, saved)) in (0..).zip(&mut turns) {
                // The heaviest takes a slot each time, half its weight every other time.
                *saved += *weight;
                if *saved < heaviest {
                    continue;
                }
                *saved -= heaviest;
                // Each takes the first free slot of its own permutation.
                while slots[*next as usize] != FREE {
                    *next = (*next + *skip) % SLOTS;
                }
                slots[*next as usize] = at;
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        Self::Maglev(slots)
    }

    /// The endpoint for a key among those that are open; none if none is.
    pub(crate) fn pick(&self, key: u64, is_open: impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::Ring(points) => {
                let start = points.partition_point(|(point, _)| *point < key);
                let (before, after) = points.split_at(start);
                let mut endpoints = after.iter().chain(before).map(|(_, at)| *at as usize);
                endpoints.find(|at| is_open(*at))
            }
            Self::Maglev(slots) => {
                let start = key.checked_rem(slots.len() as u64)? as usize;
                let (before, after) = slots.split_at(start);
                after.iter().chain(before).map(|at| *at as usize).find(|at| is_open(*at))
            }
        }
    }
}

/// A key's place: the same everywhere, so without a seed (FNV-1a, then SplitMix64's finaliser).
pub(crate) fn hash(key: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    finish(key.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
}

fn mix(number: u64, salt: u64) -> u64 {
    finish(finish(number).wrapping_add(salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn finish(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u64 = 20_000;

    fn equal(numbers: &[u64]) -> Vec<(u64, u32)> {
        numbers.iter().map(|number| (*number, 1)).collect()
    }

    fn owners(table: &HashTable, numbers: &[u64], is_open: impl Fn(usize) -> bool) -> Vec<u64> {
        let pick = |key: u64| table.pick(hash(&key.to_be_bytes()), &is_open).unwrap();
        (0..KEYS).map(|key| numbers[pick(key)]).collect()
    }

    #[test]
    fn keys_are_shared_evenly() {
        let numbers: Vec<u64> = (1..=5).collect();
        for (table, tolerance) in
            [(HashTable::ring(&equal(&numbers)), 1200), (HashTable::maglev(&equal(&numbers)), 300)]
        {
            let owners = owners(&table, &numbers, |_| true);
            for number in &numbers {
                let share = owners.iter().filter(|owner| *owner == number).count() as u64;
                assert!(share.abs_diff(KEYS / 5) < tolerance, "{number} has {share}");
            }
        }
    }

    #[test]
    fn keys_are_shared_by_weight() {
        let weighed = [(1, 3), (2, 1), (3, 0)];
        for table in [HashTable::ring(&weighed), HashTable::maglev(&weighed)] {
            let owners = owners(&table, &[1, 2, 3], |_| true);
            let share = |number| owners.iter().filter(|owner| **owner == number).count() as u64;
            assert!(share(1).abs_diff(KEYS * 3 / 4) < 1200, "{}", share(1));
            assert_eq!(share(3), 0);
        }
        assert_eq!(HashTable::maglev(&[(1, 0)]).pick(7, |_| true), None);
        assert_eq!(HashTable::ring(&[(1, 0)]).pick(7, |_| true), None);
    }

    #[test]
    fn when_an_endpoint_goes_the_others_keep_their_keys() {
        let (all, fewer): (Vec<u64>, Vec<u64>) = ((1..=5).collect(), vec![1, 2, 4, 5]);
        let moved = |one: &HashTable, other: &HashTable| {
            let (before, after) = (owners(one, &all, |_| true), owners(other, &fewer, |_| true));
            let pairs = before.into_iter().zip(after);
            pairs.filter(|(before, after)| *before != 3 && before != after).count() as u64
        };
        assert_eq!(moved(&HashTable::ring(&equal(&all)), &HashTable::ring(&equal(&fewer))), 0);
        // Maglev trades a few for evenness.
        let maglev = moved(&HashTable::maglev(&equal(&all)), &HashTable::maglev(&equal(&fewer)));
        assert!(maglev < KEYS / 20, "{maglev}");
    }

    #[test]
    fn keys_of_a_closed_endpoint_go_elsewhere_and_come_back() {
        let numbers: Vec<u64> = (1..=3).collect();
        for table in [HashTable::ring(&equal(&numbers)), HashTable::maglev(&equal(&numbers))] {
            let before = owners(&table, &numbers, |_| true);
            let during = owners(&table, &numbers, |at| at != 1);
            assert!(!during.contains(&2));
            let kept = before.iter().zip(&during).filter(|(before, _)| **before != 2);
            assert!(kept.into_iter().all(|(before, during)| before == during));
            assert_eq!(table.pick(7, |_| false), None);
        }
        assert_eq!(HashTable::ring(&[]).pick(7, |_| true), None);
        assert_eq!(HashTable::maglev(&[]).pick(7, |_| true), None);
    }

    #[test]
    fn a_hash_is_the_same_everywhere() {
        // Hosts must agree, also across versions.
        assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
    }
}
