//! Callers that found no place at the controller's port: told to operators for a while, with who came last.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use isthmus_model::{Code, Problem, Problems};
use parking_lot::Mutex;

/// It is told for so long after the last one.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How many found no place in this spell, and when the last one did.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    spell: Mutex<Option<(u64, Instant)>>,
}

impl Crowd {
    /// Somebody found none, or had to give one up.
    pub(crate) fn note(&self, problems: &Problems, from: IpAddr, now: Instant) {
        let mut spell = self.spell.lock();
        let callers = spell.map_or(0, |(callers, _)| callers) + 1;
        *spell = Some((callers, now));
        let text = format!(
            "{callers} callers without a certificate found no place at the controller's port, last one \
             from {from}: joins may fail; members have places of their own"
        );
        let remedy = format!(
            "see who holds them (`ss -Htn state established 'sport = :7443'`), and keep those out: `nft \
             add table inet crowd; nft add chain inet crowd in '{{ type filter hook input priority -10; \
             }}'; nft add rule inet crowd in {} saddr {from} tcp dport 7443 drop`",
            if from.is_ipv4() { "ip" } else { "ip6" }
        );
        problems.raise(Problem::new(Code::JoinPlaces, text, remedy));
    }

    pub(crate) fn forget_old(&self, problems: &Problems, now: Instant) {
        let mut spell = self.spell.lock();
        if spell.is_some_and(|(_, at)| now.duration_since(at) >= REMEMBERED) {
            *spell = None;
            problems.set(Code::JoinPlaces, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_found_no_place_is_told_until_nobody_did_for_a_while() {
        let (crowd, problems, now) = (Crowd::default(), Problems::default(), Instant::now());
        crowd.note(&problems, [192, 0, 2, 1].into(), now);
        crowd.note(&problems, [192, 0, 2, 9].into(), now);
        crowd.forget_old(&problems, now + REMEMBERED / 2);
        let told = problems.all().remove(0);
        assert!(told.text.starts_with("2 callers") && told.text.contains("192.0.2.9"), "{told:?}");
        crowd.forget_old(&problems, now + REMEMBERED);
        assert_eq!(problems.all(), []);
    }
}
