//! Text that isn't TOML.

use super::{Row, row};

pub(super) const ROWS: &[Row] = &[
    row(
        "string without quotes",
        "[policy]
default = deny",
        (2, 11),
        "deny is not a value",
        r#"put strings in quotes: "deny""#,
    ),
    row(
        "header not closed",
        r#"[mesh
name = "corp""#,
        (1, 6),
        "header isn't closed",
        "`]` at its end",
    ),
    row(
        "list header not closed",
        r#"[[allow]
name = "x""#,
        (1, 9),
        "header isn't closed",
        "`]]` at its end",
    ),
    row(
        "string not closed",
        r#"[mesh]
name = "corp
"#,
        (2, 13),
        "string isn't closed",
        "end it with the quote",
    ),
    row(
        "list not closed",
        r#"[host.a]
endpoints = ["192.0.2.1:1""#,
        (2, 27),
        "list isn't closed",
        "write `]`",
    ),
    row(
        "comma missing",
        r#"[host.a]
labels = { a = "1" b = "2" }"#,
        (2, 20),
        "comma is missing",
        "put `,`",
    ),
    row(
        "key without value",
        "[mesh]
name",
        (2, 5),
        "has no value",
        "write `key = value`",
    ),
    row(
        "value missing",
        "[mesh]
name =
",
        (2, 7),
        "no value after `=`",
        "write `key = value`",
    ),
    row(
        "comment of another language",
        "// a mesh
[mesh]",
        (1, 1),
        "can't be in a key",
        "begins with `#`",
    ),
    row(
        "colon instead of equals sign",
        r#"[mesh]
name: "corp""#,
        (2, 5),
        "can't be in a key",
        "write `=`",
    ),
    row(
        "boolean in upper case",
        "[policy]
audit = True",
        (2, 9),
        r#""True" is not a value"#,
        "lower case",
    ),
    row(
        "address without quotes",
        "[mesh]
ipv4 = 10.0.0.0/8",
        (2, 12),
        "can't be part of a number or a time",
        "in quotes",
    ),
    row(
        "two entries on a line",
        r#"[mesh]
name = "corp" host_block = 28"#,
        (2, 15),
        "goes on where it should end",
        "begin a new line",
    ),
    row(
        "backslash in a string",
        r#"[mesh]
name = "a\d""#,
        (2, 11),
        "begins an escape",
        "single quotes",
    ),
    row(
        "table twice in a file",
        "[host.a]
[host.b]
[host.a]",
        (3, 7),
        "`a` is already defined",
        "keep one",
    ),
    row(
        "key twice in a table",
        r#"[host.a]
site = "x"
site = "y""#,
        (3, 1),
        "`site` is already defined",
        "keep one",
    ),
    row("nested too deeply", NESTED, (1, 85), "nested too deeply", "three levels"),
    row(
        "key of many parts",
        "[a]
x.a.a.a.a.a.a.a.a.a = 1",
        (2, 18),
        "nests tables too deeply",
        "three levels",
    ),
];

const NESTED: &str = "x = [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]";
