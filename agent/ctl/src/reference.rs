//! `agentctl reference`: all keys of the topology language, with what they mean.

use std::collections::BTreeSet;

use anyhow::Result;
use isthmus_model::topology::reference::{Key, SECTIONS, Section, Shape};
use serde_json::{Value, json};

use crate::errors::{Exit, Failure};
use crate::output::{self, Tone, paint};
use crate::transport::Session;

pub(crate) fn reference(session: &Session, about: Option<&str>) -> Result<Exit> {
    let sections = match about {
        None => SECTIONS.iter().collect(),
        Some(name) => named(name).map_err(Failure::Usage)?,
    };
    output::show(
        session.output,
        || text(&sections),
        || sections.iter().map(|it| json(it)).collect(),
    )?;
    Ok(Exit::Success)
}

/// A section, and those that its keys lead to.
fn named(name: &str) -> Result<Vec<&'static Section>, String> {
    let bare = name.trim_matches(['[', ']', '`']).split('.').next().unwrap_or(name);
    if !SECTIONS.iter().any(|section| section.name == bare) {
        let known: Vec<&str> = SECTIONS.iter().map(|section| section.name).collect();
        return Err(format!("There is no table {name:?}; there is {}", known.join(", ")));
    }
    let mut wanted = BTreeSet::from([bare]);
    loop {
        let leads = SECTIONS.iter().filter(|section| wanted.contains(section.name));
        let shapes = leads.flat_map(Section::keys).flat_map(|key| key.shapes);
        let more: BTreeSet<&str> = shapes.filter_map(leads_to).collect();
        if more.is_subset(&wanted) {
            return Ok(SECTIONS.iter().filter(|section| wanted.contains(section.name)).collect());
        }
        wanted.extend(more);
    }
}

fn leads_to(shape: &Shape) -> Option<&'static str> {
    match shape {
        Shape::Table(name) | Shape::Tables(name) => Some(name),
        Shape::Map(values) => values.iter().find_map(leads_to),
        Shape::Text
        | Shape::OneOf(_)
        | Shape::Texts
        | Shape::Integer
        | Shape::Number
        | Shape::Integers
        | Shape::Flag => None,
    }
}

fn text(sections: &[&Section]) -> String {
    let mut text = String::new();
    for section in sections {
        let header = paint(section.header, Tone::Strong);
        text.push_str(&format!("{header}   {}\n\n", section.about));
        for key in section.keys() {
            text.push_str(&key_text(&key));
        }
        text.push('\n');
    }
    text
}

fn key_text(key: &Key) -> String {
    let required = if key.required { ", required" } else { "" };
    let shapes: Vec<String> = key.shapes.iter().map(shape).collect();
    let shapes = paint(&format!("{}{required}", shapes.join(", or ")), Tone::Quiet);
    format!("  {}   {shapes}\n      {}\n", key.example, key.about)
}

/// "a string".
fn shape(shape: &Shape) -> String {
    match shape {
        Shape::Text => "a string".to_owned(),
        Shape::OneOf(words) => {
            words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
        }
        Shape::Texts => "a list of strings".to_owned(),
        Shape::Integer => "a whole number".to_owned(),
        Shape::Number => "a number".to_owned(),
        Shape::Integers => "a list of whole numbers".to_owned(),
        Shape::Flag => "true or false".to_owned(),
        Shape::Table(name) => format!("a table ({name})"),
        Shape::Tables(name) => format!("a list of tables ({name})"),
        Shape::Map(values) => {
            let values: Vec<String> = values.iter().map(self::shape).collect();
            format!("a table of keys of your own, each {}", values.join(", or "))
        }
    }
}

fn json(section: &Section) -> Value {
    let key = |key: Key| {
        json!({
            "name": key.name,
            "example": key.example,
            "about": key.about,
            "values": key.shapes.iter().map(shape).collect::<Value>(),
            "required": key.required,
        })
    };
    json!({
        "name": section.name,
        "header": section.header,
        "about": section.about,
        "keys": section.keys().map(key).collect::<Value>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    #[test]
    fn a_table_is_shown_with_those_that_it_leads_to() {
        let shown = plain(&text(&named("[service.web]").unwrap()));
        for part in [
            "[service.NAME]   What a program is for",
            "  port = 8080   a whole number",
            "a list of strings, or a table of keys of your own, each a string",
            "`health` of a service",
            "  http = \"/healthz\"",
        ] {
            assert!(shown.contains(part), "{part} in:\n{shown}");
        }
        assert!(!shown.contains("[[route.SERVICE]]"));
        assert!(named("services").unwrap_err().contains("there is mesh, policy, host, service"));
    }

    #[test]
    fn every_table_that_a_key_leads_to_is_there() {
        let shapes = SECTIONS.iter().flat_map(Section::keys).flat_map(|key| key.shapes);
        for name in shapes.filter_map(leads_to) {
            assert!(SECTIONS.iter().any(|section| section.name == name), "{name}");
        }
    }
}
