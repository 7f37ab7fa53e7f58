//! Rollouts.

use super::{Row, on};

pub(super) const ROWS: &[Row] = &[
    on(
        "rollout without a canary",
        "[[route.web]]\nname = \"web\"\n[rollout.web]\nroute = \"web\"\nstable = \"web\"",
        (11, 1),
        "[rollout.web] has no `canary`",
        "add `canary = \"api-v2\"`",
    ),
    on(
        "rollout of a route that isn't there",
        "[service.v2]\nport = 81\nprotocol = \"http\"\nhosts = [\"a\"]\n[[route.web]]\nname = \"web\"\n\
         [rollout.web]\nroute = \"wep\"\nstable = \"web\"\ncanary = \"v2\"",
        (16, 9),
        "there is no route \"wep\"",
        "did you mean \"web\"?",
    ),
    on(
        "rollout to a service that speaks no HTTP",
        "[[route.web]]\nname = \"web\"\n[rollout.web]\nroute = \"web\"\nstable = \"web\"\ncanary = \"db\"",
        (14, 10),
        "service \"db\" speaks tcp, not http",
        "write `protocol = \"http\"` in [service.db]",
    ),
    on(
        "rollout from a service to itself",
        "[[route.web]]\nname = \"web\"\n[rollout.web]\nroute = \"web\"\nstable = \"web\"\ncanary = \"web\"",
        (14, 10),
        "\"web\" can't take over from itself",
        "name the new version's service",
    ),
    on(
        "rollout of a route that leads elsewhere, too",
        "[service.v2]\nport = 81\nprotocol = \"http\"\nhosts = [\"a\"]\n\
         [service.v3]\nport = 82\nprotocol = \"http\"\nhosts = [\"a\"]\n\
         [[route.web]]\nname = \"web\"\nto = [{ service = \"web\" }, { service = \"v3\" }]\n\
         [rollout.web]\nroute = \"web\"\nstable = \"web\"\ncanary = \"v2\"",
        (21, 9),
        "route \"web\" also leads to \"v3\"",
        "write `to = [{ service = \"web\" }]` in the route",
    ),
    on(
        "steps that fall",
        "[rollout.web]\nroute = \"web\"\nstable = \"web\"\ncanary = \"v2\"\nsteps = [50, 25]",
        (13, 14),
        "25 can't be a step here",
        "steps = [5, 25, 50, 100]",
    ),
    on(
        "a quantile that isn't known",
        "[service.v2]\nport = 81\nprotocol = \"http\"\nhosts = [\"a\"]\n[[route.web]]\nname = \"web\"\n\
         [rollout.web]\nroute = \"web\"\nstable = \"web\"\ncanary = \"v2\"\nlatency = { p97 = \"1s\" }",
        (19, 13),
        "unknown key `p97` in `latency` of [rollout.web]",
        "did you mean `p9",
    ),
    on(
        "a share below the stable's",
        "[rollout.web]\nroute = \"web\"\nstable = \"web\"\ncanary = \"v2\"\nlatency = { p99 = \"90%\" }",
        (13, 19),
        "\"90%\" is no share of the stable's latency",
        "such as \"120%\"",
    ),
    on(
        "nothing to compare with",
        "[rollout.web]\nroute = \"web\"\nstable = \"web\"\ncanary = \"v2\"\nsteps = [100]\nlatency = { p99 = \"120%\" }",
        (14, 11),
        "the stable has no requests to compare latency with",
        "write times",
    ),
    on(
        "another end",
        "[rollout.web]\nroute = \"web\"\nstable = \"web\"\ncanary = \"v2\"\non_failure = \"rolback\"",
        (13, 14),
        "\"rolback\" can't follow a failure",
        "did you mean `rollback`?",
    ),
    on(
        "an interval below that of the agents' reports",
        "[rollout.web]\nroute = \"web\"\nstable = \"web\"\ncanary = \"v2\"\ninterval = \"100ms\"",
        (13, 12),
        "`interval` can't be 100ms",
        "from \"1s\"",
    ),
    on(
        "two rollouts of a route",
        "[service.v2]\nport = 81\nprotocol = \"http\"\nhosts = [\"a\"]\n[[route.web]]\nname = \"web\"\n\
         [rollout.one]\nroute = \"web\"\nstable = \"web\"\ncanary = \"v2\"\n\
         [rollout.two]\nroute = \"web\"\nstable = \"web\"\ncanary = \"v2\"",
        (20, 9),
        "rollout \"one\" moves the weights of \"web\" already",
        "routes of its own",
    ),
];
