//! Agreement of the reference with the files that use the keys.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::Value;

use crate::topology::reference::{self, SECTIONS, Section, Shape};

/// Holds that the reference knows everything in a file that is right, as schemas made of it must.
pub(super) fn takes(text: &str) {
    let file: toml::Table = text.parse().unwrap();
    for (kind, value) in &file {
        let section = section(kind);
        let header = reference::top().iter().find(|(name, _)| name == kind).unwrap().1;
        match (header.starts_with("[["), header.contains('.')) {
            (false, false) => check(section, value),
            (false, true) => value.as_table().unwrap().values().for_each(|it| check(section, it)),
            (true, false) => value.as_array().unwrap().iter().for_each(|it| check(section, it)),
            (true, true) => {
                let lists = value.as_table().unwrap().values();
                lists.flat_map(|it| it.as_array().unwrap()).for_each(|it| check(section, it));
            }
        }
    }
}

fn section(name: &str) -> &'static Section {
    SECTIONS.iter().find(|section| section.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn check(section: &Section, value: &Value) {
    let table = value.as_table().unwrap();
    for key in section.keys().filter(|key| key.required) {
        assert!(table.contains_key(key.name), "{} needs {}: {table}", section.name, key.name);
    }
    for (name, value) in table {
        let key = section.keys().find(|key| key.name == name);
        let key = key.unwrap_or_else(|| panic!("`{name}` of {} isn't in its tables", section.name));
        let fits = key.shapes.is_empty() || key.shapes.iter().any(|shape| fits(shape, value));
        assert!(fits, "reference/notes.rs says that `{name}` of {} can't be {value}", section.name);
    }
}

fn fits(shape: &Shape, value: &Value) -> bool {
    let all = |list: Option<&Vec<Value>>, one: fn(&Value) -> bool| {
        list.is_some_and(|it| it.iter().all(one))
    };
    match shape {
        Shape::Text => value.is_str(),
        Shape::OneOf(words) => value.as_str().is_some_and(|word| words.contains(&word)),
        Shape::Texts => all(value.as_array(), Value::is_str),
        Shape::Integer => value.is_integer(),
        Shape::Number => value.is_integer() || value.is_float(),
        Shape::Integers => all(value.as_array(), Value::is_integer),
        Shape::Flag => value.is_bool(),
        Shape::Table(name) => {
            let is_table = value.is_table();
            if is_table {
                check(section(name), value);
            }
            is_table
        }
        Shape::Tables(name) => {
            let is_list = all(value.as_array(), Value::is_table);
            if is_list {
                value.as_array().unwrap().iter().for_each(|it| check(section(name), it));
            }
            is_list
        }
        Shape::Map(values) => value.as_table().is_some_and(|table| {
            table.values().all(|it| values.iter().any(|shape| fits(shape, it)))
        }),
    }
}

#[test]
fn every_key_has_a_note_and_every_note_a_key() {
    for section in SECTIONS {
        assert!(!section.about.is_empty() && !section.header.is_empty());
        let keys: BTreeSet<&str> = section.keys().map(|key| key.name).collect();
        for key in section.keys() {
            assert!(
                !key.about.is_empty() && !key.shapes.is_empty(),
                "add a note on `{}` of {} to topology/reference/",
                key.name,
                section.name
            );
        }
        let noted: BTreeSet<&str> = section.noted().collect();
        assert_eq!(noted, keys, "notes on {}", section.name);
    }
}

/// A table that the reference doesn't have would be missing in schemas, too.
#[test]
fn every_table_that_files_are_read_by_has_a_section() {
    let found = schemas_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/topology"));
    // The top of a file has none, and rules have two.
    assert_eq!(
        SECTIONS.len(),
        found,
        "add the new `Schema` to SECTIONS in topology/reference/mod.rs"
    );
    let top: Vec<&str> = reference::top().iter().map(|(name, _)| *name).collect();
    let first: Vec<&str> = SECTIONS.iter().map(|section| section.name).take(top.len()).collect();
    assert_eq!(first, top);
}

/// How many tables the sources in a folder read, tests aside.
fn schemas_in(folder: &Path) -> usize {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let count = |path: PathBuf| match path.is_dir() {
        true if path.ends_with("tests") => 0,
        true => schemas_in(&path),
        false => std::fs::read_to_string(path).unwrap().matches(": Schema =").count(),
    };
    paths.map(count).sum()
}
