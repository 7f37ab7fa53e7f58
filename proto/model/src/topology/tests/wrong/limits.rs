//! Rate limits.

use super::{Row, on};

pub(super) const ROWS: &[Row] = &[
    on(
        "limit without a rate",
        "[ratelimit.web]\nservice = \"web\"",
        (9, 1),
        "[ratelimit.web] has no `rate`",
        "add `rate = 50`",
    ),
    on(
        "limit of a service that isn't there",
        "[ratelimit.web]\nservice = \"wep\"\nrate = 5",
        (10, 11),
        "there is no service \"wep\"",
        "did you mean \"web\"?",
    ),
    on(
        "limit of a service that speaks no HTTP",
        "[ratelimit.db]\nservice = \"db\"\nrate = 5",
        (10, 11),
        "service \"db\" speaks tcp, not http",
        "write `protocol = \"http\"` in [service.db]",
    ),
    on(
        "limit of an external that each host speaks to by itself",
        "[external.pay]\nhost = \"pay.example\"\ntls = true\n[ratelimit.pay]\nservice = \"pay\"\nrate = 5",
        (13, 11),
        "each caller's host speaks to external \"pay\" by itself",
        "add `via` to [external.pay]",
    ),
    on(
        "rate of nothing",
        "[ratelimit.web]\nservice = \"web\"\nrate = 0",
        (11, 8),
        "`rate` can't be 0",
        "from 0.001 to 1000000",
    ),
    on(
        "rate in words",
        "[ratelimit.web]\nservice = \"web\"\nrate = \"50/s\"",
        (11, 8),
        "`rate`",
        "rate = 50",
    ),
    on(
        "burst of nothing",
        "[ratelimit.web]\nservice = \"web\"\nrate = 5\nburst = 0",
        (12, 9),
        "`burst` can't be 0",
        "from 1 to 1000000",
    ),
    on(
        "limit per something else",
        "[ratelimit.web]\nservice = \"web\"\nrate = 5\nper = \"ip\"",
        (12, 7),
        "requests can't be counted per \"ip\"",
        "write \"identity\" or { header = \"x-api-key\" }",
    ),
    on(
        "limit per a header that can't be",
        "[ratelimit.web]\nservice = \"web\"\nrate = 5\nper = { header = \"x key\" }",
        (12, 18),
        "\"x key\"",
        "",
    ),
    on(
        "limit with another scope",
        "[ratelimit.web]\nservice = \"web\"\nrate = 5\nscope = \"hosts\"",
        (12, 9),
        "there is no scope \"hosts\"",
        "did you mean `host`?",
    ),
    on(
        "limit with an unknown key",
        "[ratelimit.web]\nservice = \"web\"\nrate = 5\nbrust = 5",
        (12, 1),
        "brust",
        "did you mean `burst`?",
    ),
    on(
        "limit by server name",
        "[ratelimit.web]\nservice = \"web\"\nrate = 5\nmatch = { sni = \"a.example\" }",
        (12, 1),
        "`sni` is about TLS that nobody reads",
        "leave `match` out",
    ),
];
