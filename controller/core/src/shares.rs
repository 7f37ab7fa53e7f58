//! Shares of a limit that holds for the whole mesh: each host gets a part of the rate, by its demand.
//!
//! INVARIANT: what hosts were told, and what they may still work by since they haven't confirmed less, is
//! together never more than the limit. So a share is taken from one host first, and given to another once
//! the first has said that it works by less.
//!
//! ```text
//!  agent ── demand, share, round ─▶ controller       each second
//!        ◀─ shares of round n ─────                  it works by them, until it is told others
//! ```
//!
//! A host keeps its share while it can't reach the controller. Of one that isn't heard of for
//! [`SILENCE`] the least share is set apart and the rest is dealt out again: most likely it is down. If it
//! is only cut off, the limit may be exceeded by what it had.
//!
//! A host that is heard of has heard, too: one that doesn't confirm within [`OBEYS`], or says that it works by
//! more than it was ever told, holds nothing back from others by that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use isthmus_model::HostId;
use isthmus_model::ratelimit::{WHOLE, least_share, scaled};

/// Time for which a silent host keeps its share.
pub const SILENCE: Duration = Duration::from_secs(30);
/// Within this time a host that is heard of works by less, if it is told so.
pub const OBEYS: Duration = Duration::from_secs(10);
/// A host gets this part more than it asks for, if there is enough, so that it can grow.
const ROOM: u64 = 4;

/// The shares of one limit, in billionths of it.
#[derive(Clone, Debug)]
pub struct Shares {
    hosts: BTreeMap<HostId, Holder>,
    /// Until then, a host that wasn't heard of yet may have any share of an earlier controller's.
    settles_at: Option<Instant>,
}

/// A host's report about a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its demand, in billionths of the limit.
    pub demand: u64,
    /// The share that it applies.
    pub share: u32,
    /// The newest round that it was told of; 0 for none.
    pub round: u64,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    told: u32,
    /// In which round it was told so.
    told_in: u64,
    /// The most that it may work by.
    held: u32,
    /// Since when that is more than it was told.
    exceeds_since: Option<Instant>,
    demand: u64,
    /// When a report came; at first, when its silence began.
    heard: Instant,
    reports: bool,
}

impl Holder {
    const fn new(hosts: u32, now: Instant) -> Self {
        let least = least_share(hosts);
        Self {
            told: least,
            told_in: 0,
            held: least,
            exceeds_since: None,
            demand: 0,
            heard: now,
            reports: false,
        }
    }

    fn tell(&mut self, share: u32, round: u64, now: Instant) {
        if self.told != share {
            (self.told, self.told_in) = (share, round);
            self.hold(self.held.max(share), now);
        }
    }

    fn hold(&mut self, share: u32, now: Instant) {
        self.held = share;
        self.exceeds_since =
            if share > self.told { self.exceeds_since.or(Some(now)) } else { None };
    }

    fn obeys(&mut self, now: Instant) {
        let over = |since: Instant| now.saturating_duration_since(since) >= OBEYS;
        if self.exceeds_since.is_some_and(over) {
            self.hold(self.told, now);
        }
    }
}

impl Shares {
    /// A new limit: every host begins with the least share.
    #[must_use]
    pub fn new(hosts: &[HostId], now: Instant) -> Self {
        let count = count(hosts.len());
        let hosts = hosts.iter().map(|host| (*host, Holder::new(count, now))).collect();
        Self { hosts, settles_at: None }
    }

    /// A limit that an earlier controller has dealt out, in shares that only the hosts know: until all
    /// are heard of, nothing moves.
    #[must_use]
    pub fn resumed(hosts: &[HostId], now: Instant) -> Self {
        Self { settles_at: Some(now + SILENCE), ..Self::new(hosts, now) }
    }

    /// Other hosts share the limit from now on. Where they are more, each gives up a part for the new
    /// ones, as agents do by themselves.
    pub fn set_hosts(&mut self, hosts: &[HostId], now: Instant) {
        if self.hosts.keys().eq(hosts) {
            return;
        }
        let (before, after) = (count(self.hosts.len()), count(hosts.len()));
        let mut old = std::mem::take(&mut self.hosts);
        let mut holder = |host: &HostId| {
            let Some(mut holder) = old.remove(host) else { return Holder::new(after, now) };
            // Where they are fewer, what is set apart for each is more: those who went had as much.
            let least = least_share(after);
            holder.told = scaled(holder.told, before, after).max(least);
            holder.held = scaled(holder.held, before, after).max(least);
            holder
        };
        self.hosts = hosts.iter().map(|host| (*host, holder(host))).collect();
    }

    /// A host says how it is.
    pub fn handle_report(&mut self, host: HostId, report: Report, now: Instant) {
        let least = least_share(count(self.hosts.len()));
        let Some(holder) = self.hosts.get_mut(&host) else { return };
        holder.demand = report.demand;
        (holder.heard, holder.reports) = (now, true);
        let confirmed = if report.round >= holder.told_in { holder.told } else { holder.held };
        // An earlier controller may have told it more, but nobody more than there is. It began with the least.
        let most = if self.settles_at.is_some() { WHOLE } else { least };
        holder.hold(confirmed.max(report.share.min(most)), now);
    }

    /// Deals out anew, in a round of a number above those before. The shares of all hosts that are heard
    /// of.
    pub fn handle_timeout(&mut self, now: Instant, round: u64) -> BTreeMap<HostId, u32> {
        let least = least_share(count(self.hosts.len()));
        for holder in self.hosts.values_mut() {
            if now.saturating_duration_since(holder.heard) >= SILENCE {
                *holder = Holder {
                    told: least,
                    held: least,
                    exceeds_since: None,
                    demand: 0,
                    reports: false,
                    ..*holder
                };
            }
            holder.obeys(now);
        }
        let unsettled = self.settles_at.is_some_and(|at| now < at)
            && self.hosts.values().any(|holder| !holder.reports);
        if unsettled {
            return BTreeMap::new();
        }
        self.settles_at = None;
        self.move_to(&self.targets(), round, now);
        let told = self.hosts.iter().filter(|(_, holder)| holder.reports);
        told.map(|(host, holder)| (*host, holder.told)).collect()
    }

    /// Less first: what becomes free is there once its host has confirmed.
    fn move_to(&mut self, targets: &BTreeMap<HostId, u32>, round: u64, now: Instant) {
        for (host, target) in targets {
            if let Some(holder) = self.hosts.get_mut(host) {
                holder.tell(holder.told.min(*target), round, now);
            }
        }
        let held: u64 = self.hosts.values().map(|holder| u64::from(holder.held)).sum();
        let free = u64::from(WHOLE).saturating_sub(held);
        let mut free = u32::try_from(free).unwrap_or(WHOLE);
        for (host, target) in targets {
            let Some(holder) = self.hosts.get_mut(host) else { continue };
            // What it holds anyway needs nothing of what is free.
            let more = target.saturating_sub(holder.held).min(free);
            free -= more;
            holder.tell((*target).min(holder.held + more).max(holder.told), round, now);
        }
    }

    /// What each host that is heard of should have: enough for its demand, as equal as can be where there
    /// isn't enough for all.
    fn targets(&self) -> BTreeMap<HostId, u32> {
        let least = u64::from(least_share(count(self.hosts.len())));
        let whole = u64::from(WHOLE);
        let silent = self.hosts.values().filter(|holder| !holder.reports);
        let set_apart: u64 = silent.map(|holder| u64::from(holder.held)).sum();
        let mut left = whole.saturating_sub(set_apart);
        let heard = self.hosts.iter().filter(|(_, holder)| holder.reports);
        let wish = |demand: u64| demand.saturating_add(demand / ROOM).clamp(least, whole);
        let mut wishes: Vec<(u64, HostId)> =
            heard.map(|(host, holder)| (wish(holder.demand), *host)).collect();
        wishes.sort_unstable();
        let mut targets = Vec::with_capacity(wishes.len());
        let mut others = wishes.len() as u64;
        for (wish, host) in wishes {
            let given = wish.min(left / others.max(1));
            (left, others) = (left - given, others - 1);
            targets.push((host, given));
        }
        // What nobody asks for is for whoever asks next.
        let extra = left.checked_div(targets.len() as u64).unwrap_or(0);
        let part = |given: u64| u32::try_from(given + extra).unwrap_or(WHOLE);
        targets.into_iter().map(|(host, given)| (host, part(given))).collect()
    }
}

fn count(hosts: usize) -> u32 {
    u32::try_from(hosts).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PERCENT: u32 = WHOLE / 100;

    /// A mesh whose messages take their time: each agent has a queue of what it was told.
    struct Mesh {
        shares: Shares,
        agents: BTreeMap<HostId, Agent>,
        now: Instant,
        round: u64,
    }

    #[derive(Clone, Debug, Default)]
    struct Agent {
        share: u32,
        round: u64,
        demand: u64,
        told: Vec<(u64, u32)>,
    }

    impl Mesh {
        fn new(hosts: u32) -> Self {
            let now = Instant::now();
            let hosts: Vec<HostId> = (1..=hosts).map(HostId).collect();
            let share = least_share(count(hosts.len()));
            let agent = || Agent { share, ..Agent::default() };
            let agents = hosts.iter().map(|host| (*host, agent())).collect();
            Self { shares: Shares::new(&hosts, now), agents, now, round: 0 }
        }

        fn ask(&mut self, demands: &[u32]) {
            for (agent, percent) in self.agents.values_mut().zip(demands) {
                agent.demand = u64::from(*percent) * u64::from(PERCENT);
            }
        }

        fn report(&mut self, host: HostId) {
            let Agent { share, round, demand, .. } = self.agents[&host];
            self.shares.handle_report(host, Report { demand, share, round }, self.now);
        }

        fn deal(&mut self) {
            self.round += 1;
            for (host, share) in self.shares.handle_timeout(self.now, self.round) {
                let agent = self.agents.get_mut(&host).unwrap();
                agent.told.push((self.round, share));
            }
        }

        fn hear(&mut self, host: HostId) {
            let agent = self.agents.get_mut(&host).unwrap();
            if !agent.told.is_empty() {
                (agent.round, agent.share) = agent.told.remove(0);
            }
        }

        fn set_hosts(&mut self, hosts: &[HostId]) {
            let (before, after) = (count(self.agents.len()), count(hosts.len()));
            let mut old = std::mem::take(&mut self.agents);
            for host in hosts {
                let fresh = Agent { share: least_share(after), ..Agent::default() };
                let mut agent = old.remove(host).unwrap_or(fresh);
                agent.share = scaled(agent.share, before, after).max(least_share(after));
                // What is still on its way was said of the limit as it was.
                for (_, share) in &mut agent.told {
                    *share = scaled(*share, before, after);
                }
                self.agents.insert(*host, agent);
            }
            self.shares.set_hosts(hosts, self.now);
        }

        /// Rounds in which nothing is late.
        fn settle(&mut self, rounds: u32) -> Vec<u32> {
            let hosts: Vec<HostId> = self.agents.keys().copied().collect();
            for _ in 0..rounds {
                self.now += SECOND;
                hosts.iter().for_each(|host| self.report(*host));
                self.deal();
                hosts.iter().for_each(|host| self.hear(*host));
            }
            self.agents.values().map(|agent| agent.share).collect()
        }

        fn sum(&self) -> u64 {
            self.agents.values().map(|agent| u64::from(agent.share)).sum()
        }
    }

    #[test]
    fn without_demand_all_have_equal_parts() {
        assert_eq!(Mesh::new(4).settle(2), [25 * PERCENT; 4]);
        assert_eq!(Mesh::new(1).settle(1), [WHOLE]);
    }

    #[test]
    fn who_asks_for_little_leaves_the_rest_to_others() {
        let mut mesh = Mesh::new(4);
        mesh.settle(3);
        mesh.ask(&[8, 200, 200, 0]);
        let shares = mesh.settle(3);
        assert_eq!(shares[0], 10 * PERCENT);
        assert_eq!(shares[3], least_share(4));
        assert_eq!(shares[1], shares[2]);
        assert!(shares[1] >= 43 * PERCENT && mesh.sum() <= u64::from(WHOLE), "{shares:?}");
    }

    #[test]
    fn a_share_is_given_only_after_it_was_taken() {
        let mut mesh = Mesh::new(2);
        mesh.settle(2);
        mesh.ask(&[500, 0]);
        let (one, two) = (HostId(1), HostId(2));
        [one, two].into_iter().for_each(|host| mesh.report(host));
        mesh.deal();
        mesh.hear(one);
        assert_eq!(mesh.agents[&one].share, 50 * PERCENT);
        // The other hasn't heard of it yet, so nothing is free.
        mesh.deal();
        mesh.hear(one);
        assert_eq!(mesh.agents[&one].share, 50 * PERCENT);
        mesh.hear(two);
        mesh.report(two);
        mesh.deal();
        mesh.hear(one);
        assert_eq!(mesh.agents[&one].share, 95 * PERCENT);
    }

    #[test]
    fn what_a_dead_host_had_is_dealt_out_again_but_for_the_least_share() {
        let mut mesh = Mesh::new(2);
        mesh.ask(&[500, 500]);
        mesh.settle(3);
        mesh.now += SILENCE;
        mesh.report(HostId(1));
        mesh.deal();
        mesh.hear(HostId(1));
        assert_eq!(mesh.agents[&HostId(1)].share, WHOLE - least_share(2));
    }

    #[test]
    fn a_new_controller_moves_nothing_before_it_knows_all() {
        let mut mesh = Mesh::new(2);
        mesh.ask(&[500, 0]);
        mesh.settle(4);
        let hosts = [HostId(1), HostId(2)];
        mesh.shares = Shares::resumed(&hosts, mesh.now);
        (mesh.round, mesh.agents.get_mut(&HostId(1)).unwrap().round) = (0, 0);
        mesh.agents.get_mut(&HostId(2)).unwrap().round = 0;
        mesh.ask(&[0, 500]);
        mesh.report(HostId(2));
        mesh.deal();
        mesh.hear(HostId(2));
        assert_eq!(mesh.agents[&HostId(2)].share, least_share(2));
        assert_eq!(mesh.settle(3), [least_share(2), WHOLE - least_share(2)]);
        // And if one never comes back, it is known to be silent.
        mesh.shares = Shares::resumed(&hosts, mesh.now);
        mesh.now += SILENCE;
        mesh.report(HostId(2));
        mesh.deal();
        assert_eq!(mesh.agents[&HostId(2)].told.len(), 1);
    }

    /// Says that it works by everything, or by what it was told before, whatever it is told.
    fn defies(share: u32, round: u64) -> Report {
        Report { demand: 0, share, round }
    }

    /// Rounds in which the first host says what it likes.
    fn settle_against(mesh: &mut Mesh, liar: HostId, report: Report) {
        let honest: Vec<HostId> = mesh.agents.keys().copied().filter(|it| *it != liar).collect();
        for _ in 0..OBEYS.as_secs() + 4 {
            mesh.now += SECOND;
            honest.iter().for_each(|host| mesh.report(*host));
            mesh.shares.handle_report(liar, report, mesh.now);
            mesh.deal();
            honest.iter().for_each(|host| mesh.hear(*host));
        }
    }

    #[test]
    fn who_claims_more_than_it_was_told_starves_nobody() {
        for report in [defies(WHOLE, u64::MAX), defies(WHOLE, 0), defies(25 * PERCENT, 0)] {
            let mut mesh = Mesh::new(4);
            mesh.settle(3);
            mesh.ask(&[0, 500, 500, 500]);
            settle_against(&mut mesh, HostId(1), report);
            let shares: Vec<u32> = mesh.agents.values().skip(1).map(|agent| agent.share).collect();
            assert!(shares.iter().all(|share| *share >= 31 * PERCENT), "{report:?} {shares:?}");
        }
    }

    #[test]
    fn after_a_restart_nobody_is_starved_for_long() {
        let mut mesh = Mesh::new(2);
        let (liar, honest) = (HostId(1), HostId(2));
        mesh.shares = Shares::resumed(&[liar, honest], mesh.now);
        mesh.ask(&[0, 500]);
        settle_against(&mut mesh, liar, defies(WHOLE, 0));
        assert_eq!(mesh.agents[&honest].share, WHOLE - least_share(2));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Ask(u32, u32),
        Report(u32),
        Deal,
        Hear(u32),
        Restart(u32),
        Hosts(u32, u32),
    }

    fn a_step() -> impl Strategy<Value = Step> {
        let host = || 1_u32..7;
        prop_oneof![
            2 => (host(), 0_u32..300).prop_map(|(host, percent)| Step::Ask(host, percent)),
            6 => host().prop_map(Step::Report),
            6 => Just(Step::Deal),
            6 => host().prop_map(Step::Hear),
            1 => host().prop_map(Step::Restart),
            1 => (1_u32..4, 1_u32..6).prop_map(|(first, count)| Step::Hosts(first, count)),
        ]
    }

    proptest! {
        /// Whatever is late, who restarts, and however many hosts there are: what agents work by is never
        /// more than the limit together; and once messages come through, who asks gets.
        #[test]
        fn the_sum_is_never_above_the_limit(
            hosts in 1_u32..6,
            steps in proptest::collection::vec(a_step(), 1..120),
        ) {
            let mut mesh = Mesh::new(hosts);
            for step in steps {
                let known = |host: u32| Some(HostId(host)).filter(|it| mesh.agents.contains_key(it));
                match step {
                    Step::Ask(host, percent) => {
                        if let Some(agent) = mesh.agents.get_mut(&HostId(host)) {
                            agent.demand = u64::from(percent) * u64::from(PERCENT);
                        }
                    }
                    Step::Report(host) => known(host).into_iter().for_each(|it| mesh.report(it)),
                    Step::Deal => mesh.deal(),
                    Step::Hear(host) => known(host).into_iter().for_each(|it| mesh.hear(it)),
                    Step::Restart(host) => {
                        let share = least_share(count(mesh.agents.len()));
                        if let Some(agent) = mesh.agents.get_mut(&HostId(host)) {
                            *agent = Agent { share, demand: agent.demand, ..Agent::default() };
                        }
                    }
                    Step::Hosts(first, number) => {
                        let hosts: Vec<HostId> = (first..first + number).map(HostId).collect();
                        mesh.set_hosts(&hosts);
                    }
                }
                prop_assert!(mesh.sum() <= u64::from(WHOLE), "{:?}: {:?}", step, mesh.agents);
            }
            let agents = mesh.agents.len();
            mesh.agents.values_mut().for_each(|agent| agent.told.clear());
            mesh.ask(&vec![0; agents]);
            mesh.agents.values_mut().next_back().unwrap().demand = 3 * u64::from(WHOLE);
            let shares = mesh.settle(4);
            let least: u64 = (agents as u64 - 1) * u64::from(least_share(count(agents)));
            prop_assert!(u64::from(*shares.last().unwrap()) >= u64::from(WHOLE) - least - 10, "{shares:?}");
        }
    }
}
