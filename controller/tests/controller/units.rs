//! The systemd units in `configs/`.

use std::path::Path;

/// The values of a key in a unit's section.
fn values<'a>(unit: &'a str, section: &str, key: &str) -> Vec<&'a str> {
    let mut here = "";
    let mut found = Vec::new();
    for line in unit.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            here = name;
        } else if let Some((name, value)) = line.split_once('=')
            && (here, name) == (section, key)
        {
            found.push(value);
        }
    }
    found
}

#[test]
fn units_never_give_up() {
    for unit in ["isthmus-agent.service", "isthmus-controller.service"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(unit);
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(values(&text, "Unit", "StartLimitIntervalSec"), ["0"], "{unit}");
        assert_eq!(values(&text, "Service", "Restart"), ["always"], "{unit}");
        // Soon enough for the host's traffic, too rarely to fill a log.
        let wait = values(&text, "Service", "RestartSec");
        let seconds: u32 = wait[0].strip_suffix('s').unwrap().parse().unwrap();
        assert!(wait.len() == 1 && (1..=5).contains(&seconds), "{unit}: {wait:?}");
        // Else the limit is asked all the same.
        assert!(values(&text, "Service", "StartLimitIntervalSec").is_empty(), "{unit}");
    }
}

#[test]
fn the_agent_has_a_user_of_its_own_and_no_more_than_it_needs() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let read = |name: &str| std::fs::read_to_string(configs.join(name)).unwrap();
    let agent = read("isthmus-agent.service");
    let guard = read("isthmus-guard.service");
    for unit in [&agent, &guard] {
        // Whom the guard lets answer by the agent's ports is who runs it.
        assert_eq!(values(unit, "Service", "User"), ["isthmus"]);
        let bounds = values(unit, "Service", "CapabilityBoundingSet");
        assert_eq!(bounds, values(unit, "Service", "AmbientCapabilities"));
        assert!(
            !bounds[0].contains("SYS_PTRACE") && !bounds[0].contains("SYS_ADMIN"),
            "{bounds:?}"
        );
    }
    assert_eq!(values(&agent, "Service", "LoadCredential"), ["isthmus.token"]);
    assert!(!values(&agent, "Service", "WatchdogSec").is_empty());
    // The drop-in that the agent's message names.
    let programs = read("agent.service.d/programs.conf");
    assert_eq!(values(&programs, "Service", "AmbientCapabilities"), ["CAP_SYS_PTRACE"]);
}
