//! Join with a token that isn't bound to a host.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{apply, empty, newcomer};
use isthmus_controller_core::{JoinError, Newcomer};

const TOPOLOGY: &str = "[host.web-1]\n[host.app-1]\nlabels = { role = \"app\" }\n[host.gw-1]\n[host.plain-1]\n\
     [service.web]\nport = 80\nhosts = [\"web-1\"]\n\
     [service.app]\nport = 81\nhosts = { role = \"app\" }\n\
     [device.press]\nvia = \"gw-1\"\nwireguard = { public_key = \"6dPMYUUTFuApQ1Hyv9gfqZ0sJoUQNl6VbMO0wU0NK1A=\" }\n";

#[test]
fn nobody_gets_by_a_name_what_the_token_does_not_grant() {
    let state = apply(&empty(), TOPOLOGY);
    let said = |name: &str, labels: &[(&str, &str)], is_expected| {
        let wanted = Newcomer { is_expected, ..newcomer(&state, name, labels) };
        match state.join(wanted) {
            Ok(_) => String::new(),
            Err(error @ JoinError::NameIsPlaced { .. }) => error.to_string(),
            Err(error) => panic!("{error}"),
        }
    };
    for (name, what) in
        [("web-1", "service \"web\""), ("app-1", "service \"app\""), ("gw-1", "device \"press\"")]
    {
        let text = said(name, &[], false);
        assert!(text.contains(what) && text.contains(&format!("--host {name}")), "{text}");
        assert_eq!(said(name, &[], true), "", "a token of its own");
    }
    // Who has no part in the topology, and what the token grants itself.
    for (name, labels) in [
        ("plain-1", &[][..]),
        ("new-1", &[]),
        ("new-1", &[("role", "app")]),
        ("app-1", &[("role", "app")]),
    ] {
        assert_eq!(said(name, labels, false), "", "{name}");
    }
}
