//! From checks to health.

use isthmus_model::HealthCheck;

/// Health check results of a workload. The first one decides; then it takes several in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Unknown,
    Healthy {
        /// In a row.
        failures: u32,
    },
    Unhealthy {
        /// In a row.
        passes: u32,
    },
}

impl State {
    pub(super) const fn is_healthy(self) -> bool {
        !matches!(self, Self::Unhealthy { .. })
    }

    /// Says whether this changes the workload's health.
    pub(super) fn on_check(&mut self, passes: bool, settings: &HealthCheck) -> bool {
        let was = self.is_healthy();
        *self = match (*self, passes) {
            (Self::Unknown | Self::Healthy { .. }, true) => Self::Healthy { failures: 0 },
            (Self::Unknown | Self::Unhealthy { .. }, false) => Self::Unhealthy { passes: 0 },
            (Self::Healthy { failures }, false) if failures + 1 >= settings.unhealthy_threshold => {
                Self::Unhealthy { passes: 0 }
            }
            (Self::Healthy { failures }, false) => Self::Healthy { failures: failures + 1 },
            (Self::Unhealthy { passes }, true) if passes + 1 >= settings.healthy_threshold => {
                Self::Healthy { failures: 0 }
            }
            (Self::Unhealthy { passes }, true) => Self::Unhealthy { passes: passes + 1 },
        };
        was != self.is_healthy()
    }
}

#[cfg(test)]
mod tests {
    use isthmus_model::HealthProbe;

    use super::*;

    #[test]
    fn the_first_check_decides_and_then_thresholds_do() {
        let settings = HealthCheck::new(HealthProbe::Tcp);
        assert_eq!((settings.unhealthy_threshold, settings.healthy_threshold), (3, 2));
        let health = |checks: &[bool]| {
            let mut state = State::default();
            for passes in checks {
                let _ = state.on_check(*passes, &settings);
            }
            state.is_healthy()
        };
        assert!(health(&[]));
        assert!(!health(&[false]));
        assert!(health(&[true, false, false]));
        assert!(!health(&[true, false, false, false]));
        assert!(health(&[true, false, false, true, false, false]));
        assert!(!health(&[false, true]));
        assert!(health(&[false, true, true]));
        assert!(!health(&[false, true, false, true]));
    }

    #[test]
    fn only_a_change_is_told() {
        let settings = HealthCheck::new(HealthProbe::Tcp);
        let mut state = State::default();
        assert!(!state.on_check(true, &settings));
        assert!(!state.on_check(false, &settings) && !state.on_check(false, &settings));
        assert!(state.on_check(false, &settings));
        assert!(!state.on_check(false, &settings) && !state.on_check(true, &settings));
        assert!(state.on_check(true, &settings));
    }
}
