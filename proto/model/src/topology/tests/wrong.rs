//! Wrong topologies, and what is said of each: the place, the cause and the remedy.

mod between;
mod edges;
mod limits;
mod requests;
mod rollouts;
mod routes;
mod syntax;
mod tables;
mod values;

use std::collections::BTreeSet;

use super::*;

/// One mistake. Its place is a line and a column.
struct Row {
    name: &'static str,
    /// Whether [`BASE`] stands above the text.
    on_base: bool,
    text: &'static str,
    place: (u32, u32),
    cause: &'static str,
    remedy: &'static str,
}

/// A host, a service that speaks HTTP and one that doesn't: eight lines.
const BASE: &str = r#"[host.a]
[service.web]
port = 80
protocol = "http"
hosts = ["a"]
[service.db]
port = 5432
hosts = ["a"]
"#;

const fn row(
    name: &'static str,
    text: &'static str,
    place: (u32, u32),
    cause: &'static str,
    remedy: &'static str,
) -> Row {
    Row { name, on_base: false, text, place, cause, remedy }
}

const fn on(
    name: &'static str,
    text: &'static str,
    place: (u32, u32),
    cause: &'static str,
    remedy: &'static str,
) -> Row {
    Row { name, on_base: true, text, place, cause, remedy }
}

fn rows() -> impl Iterator<Item = &'static Row> {
    [
        syntax::ROWS,
        tables::ROWS,
        values::ROWS,
        rollouts::ROWS,
        routes::ROWS,
        edges::ROWS,
        limits::ROWS,
        requests::ROWS,
        between::ROWS,
    ]
    .into_iter()
    .flatten()
}

impl Row {
    fn errors(&self) -> Vec<Diagnostic> {
        let text = if self.on_base { format!("{BASE}{}", self.text) } else { self.text.to_owned() };
        match parse(&[file(&text)]) {
            Ok(_) => panic!("{}: taken for right", self.name),
            Err(errors) => errors,
        }
    }
}

#[test]
fn every_mistake_is_told_with_its_place_cause_and_remedy() {
    let mut wrong = String::new();
    for row in rows() {
        let errors = row.errors();
        let [error] = errors.as_slice() else {
            wrong += &format!("{}: {} errors, not one:\n{}", row.name, errors.len(), show(&errors));
            continue;
        };
        let right = (error.line, error.column) == row.place
            && error.message.contains(row.cause)
            && error.help.contains(row.remedy);
        if !right {
            let (line, column) = row.place;
            wrong += &format!(
                "{}: expected {line}:{column}: {}; {}\n  {error}\n",
                row.name, row.cause, row.remedy
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_mistake_has_a_name_of_its_own() {
    let names: BTreeSet<_> = rows().map(|row| row.name).collect();
    assert_eq!(names.len(), rows().count());
}

#[test]
fn all_mistakes_of_all_files_are_told_at_once_in_their_order() {
    let files = [
        named("b.toml", "[host.a]\nsite = 1\nsitte = 2\n[policy]\ndefault = \"x\""),
        named("a.toml", "[[allow]]\nfrom = \"any\"\nto = \"host:b\""),
    ];
    let errors = parse(&files).unwrap_err();
    let places: Vec<_> = errors
        .iter()
        .map(|error| format!("{}:{}:{}", error.file, error.line, error.column))
        .collect();
    assert_eq!(places, ["b.toml:2:8", "b.toml:3:1", "b.toml:5:11", "a.toml:1:1"]);
}

#[test]
fn a_table_in_two_files_is_told_with_both_places() {
    let tables = [
        ("[mesh]", "[mesh]", 1),
        ("[policy]", "[policy]", 1),
        ("[host.a]", "host \"a\"", 7),
        ("[service.a]\nport = 1\nhosts = { a = \"b\" }", "service \"a\"", 10),
    ];
    for (table, what, column) in tables {
        let files = [named("one.toml", &format!("\n{table}")), named("two.toml", table)];
        let errors = parse(&files).unwrap_err();
        let expected = format!(
            "two.toml:1:{column}: {what} is already declared at one.toml:2; keep one of the two"
        );
        let [error] = errors.as_slice() else { panic!("{}", show(&errors)) };
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}

#[test]
fn a_file_that_is_no_toml_makes_no_names_dangle() {
    let files = [
        named("hosts.toml", "[host.a"),
        named("rules.toml", "[[allow]]\nname = \"r\"\nfrom = \"host:a\"\nto = \"any\""),
    ];
    let errors = parse(&files).unwrap_err();
    assert_eq!(errors.len(), 1, "{}", show(&errors));
}

#[test]
fn a_declaration_with_a_mistake_still_declares_its_name() {
    let text = "[host.a]\nsite = 1\n[service.web]\nport = 0\nnamespace = \"prod\"\nhosts = [\"a\"]\n[[allow]]\nname = \"r\"\nfrom = [\"host:a\", \"namespace:prod\"]\nto = \"service:web\"\nhttp = [{ method = \"GET\" }]";
    let errors = parse(&[file(text)]).unwrap_err();
    let lines: Vec<_> = errors.iter().map(|error| error.line).collect();
    assert_eq!(lines, [2, 4], "{}", show(&errors));
}

#[test]
fn columns_count_characters_and_spans_bytes() {
    let text = "[host.a]\nlabels = { role = \"é€\", rack = 7 }\n";
    let error = parse(&[file(text)]).unwrap_err().remove(0);
    assert_eq!((error.line, error.column), (2, 32));
    assert_eq!(&text[error.span], "7");
}

#[test]
fn no_more_than_a_hundred_mistakes_are_told() {
    let text: String = (0..5000).map(|number| format!("[host.h{number}]\nsite = 1\n")).collect();
    assert_eq!(parse(&[file(&text)]).unwrap_err().len(), 100);
}

#[test]
fn long_texts_are_cut_in_messages() {
    let text = format!("[mesh]\nname = \"{}\"\n{} = 1", "x".repeat(100_000), "k".repeat(100_000));
    for error in parse(&[file(&text)]).unwrap_err() {
        assert!(error.to_string().len() < 500, "{error}");
    }
}

#[test]
fn a_topology_that_is_too_large_is_refused_unread() {
    let files = [named("a.toml", &" ".repeat(5 << 20)), named("b.toml", &"#".repeat(5 << 20))];
    let errors = parse(&files).unwrap_err();
    let expected = "b.toml:1:1: the topology has more than 8 MiB";
    assert!(errors[0].to_string().starts_with(expected), "{}", errors[0]);
}

#[test]
fn too_many_rules_are_refused() {
    let mut text = "[[deny]]\nname='0'\nfrom='any'\nto='any'\n".to_owned();
    for number in 1..=100_000 {
        text += &format!("[[deny]]\nname='{number}'\nfrom='any'\nto='any'\n");
    }
    let errors = parse(&[file(&text)]).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].line, 400_001);
    assert!(errors[0].message.contains("more than 100000 rules"), "{}", errors[0]);
}
