//! Wrong request matches in rules: fields, tokens, conditions.

use super::{Row, on};

const fn rule(
    name: &'static str,
    text: &'static str,
    column: u32,
    cause: &'static str,
    remedy: &'static str,
) -> Row {
    on(name, text, (13, column), cause, remedy)
}

pub(super) const ROWS: &[Row] = &[
    rule(
        "header that can't be one",
        "[[allow]]\nname = \"r\"\nfrom = \"any\"\nto = \"service:web\"\nhttp = [{ header = { \"x y\" = \"1\" } }]",
        22,
        "\"x y\" can't be the name of a header",
        "write a name such as `x-canary`",
    ),
    rule(
        "header as a number",
        "[[allow]]\nname = \"r\"\nfrom = \"any\"\nto = \"service:web\"\nhttp = [{ header = { x = 1 } }]",
        26,
        "must be a table, not the number 1",
        "write `header = { x-canary = \"1\" }`",
    ),
    rule(
        "path with a hole in a segment",
        "[[allow]]\nname = \"r\"\nfrom = \"any\"\nto = \"service:web\"\nhttp = [{ path = \"/a/x{id}\" }]",
        18,
        "has the segment \"x{id}\"",
        "write `{id}` as a whole segment",
    ),
    rule(
        "two stars within",
        "[[allow]]\nname = \"r\"\nfrom = \"any\"\nto = \"service:web\"\nhttp = [{ path = \"/a/**/b\" }]",
        18,
        "has a '*' within a segment",
        "write `*` as a whole segment",
    ),
    rule(
        "path that is no expression",
        "[[allow]]\nname = \"r\"\nfrom = \"any\"\nto = \"service:web\"\nhttp = [{ path = { regex = \"(\" } }]",
        28,
        "\"(\" is no regular expression",
        "without look-around",
    ),
    rule(
        "condition that isn't CEL",
        "[[allow]]\nname = \"r\"\nfrom = \"any\"\nto = \"service:web\"\nwhen = \"request.method ==\"",
        8,
        "is no condition",
        "write it in CEL, such as `request.method == 'GET'`",
    ),
    rule(
        "condition about nobody",
        "[[allow]]\nname = \"r\"\nfrom = \"any\"\nto = \"service:web\"\nhttp = [{ when = \"reqest.method == 'GET'\" }]",
        18,
        "there is no \"reqest\"",
        "the names are `request`, `source` and `jwt`",
    ),
    rule(
        "condition with ports",
        "[[allow]]\nname = \"r\"\nfrom = \"any\"\nto = \"service:web\"\nports = [\"tcp/1\"]\nwhen = \"true\"",
        9,
        "requests can't be seen at tcp/1 of service \"web\"",
        "name ports of it that speak http",
    ),
    rule(
        "token of nobody",
        "[[allow]]\nname = \"r\"\nfrom = \"any\"\nto = \"service:web\"\nhttp = [{ jwt = { provider = \"login\" } }]",
        30,
        "there is no jwt \"login\"",
        "declare it with `[jwt.login]`",
    ),
    rule(
        "claims without a provider",
        "[[allow]]\nname = \"r\"\nfrom = \"any\"\nto = \"service:web\"\nhttp = [{ jwt = { claims = { role = \"admin\" } } }]",
        17,
        "`jwt` of [[allow]] has no `provider`",
        "add `provider = \"login\"`",
    ),
    on(
        "provider without an issuer",
        "[jwt.login]\njwks = \"/etc/keys.json\"",
        (9, 1),
        "[jwt.login] has no `issuer`",
        "add `issuer = \"https://login.example.com\"`",
    ),
    on(
        "keys at no place",
        "[jwt.login]\nissuer = \"me\"\njwks = \"keys.json\"",
        (11, 8),
        "`jwks` can't be \"keys.json\"",
        "the absolute path of a file",
    ),
    on(
        "token in two places",
        "[jwt.login]\nissuer = \"me\"\njwks = \"/k\"\nheader = \"x\"\ncookie = \"y\"",
        (13, 1),
        "a token is in one place",
        "keep `header` or `cookie`",
    ),
    on(
        "clocks that hardly agree",
        "[jwt.login]\nissuer = \"me\"\njwks = \"/k\"\nleeway = \"1h\"",
        (12, 10),
        "lets tokens live too long",
        "up to \"10m\"",
    ),
    on(
        "unknown mode for paths",
        "[service.x]\nport = 1\nprotocol = \"http\"\nhosts = [\"a\"]\npaths = \"merge-slash\"",
        (13, 9),
        "`paths` can't be \"merge-slash\"",
        "did you mean `merge-slashes`?",
    ),
    on(
        "paths of what has none",
        "[service.x]\nport = 1\nhosts = [\"a\"]\npaths = \"strict\"",
        (12, 1),
        "`paths` is about requests, and this service speaks tcp",
        "write `protocol = \"http\"`",
    ),
];
