//! `agentctl schema`: JSON Schemas of what Isthmus reads, for editors (taplo and its likes).
//!
//! That of topologies comes from the tables by which they are read; those of settings from the commented
//! files that are shipped, which hold every key with its default.

use anyhow::Result;
use isthmus_model::topology::reference::{self, Key, SECTIONS, Section, Shape};
use serde_json::{Map, Value, json};

use crate::cli::SchemaOf;
use crate::errors::Exit;
use crate::output;

/// What taplo reads.
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";
const AGENT: &str = include_str!("../../../configs/agent.toml");
const CONTROLLER: &str = include_str!("../../../configs/controller.toml");

pub(crate) fn schema(of: SchemaOf) -> Result<Exit> {
    output::json(&match of {
        SchemaOf::Topology => topology(),
        SchemaOf::Agent => settings("Settings of isthmus-agent", AGENT)?,
        SchemaOf::Controller => settings("Settings of isthmus-controller", CONTROLLER)?,
    })?;
    Ok(Exit::Success)
}

fn topology() -> Value {
    let properties = reference::top().iter().map(|(name, header)| {
        let one = json!({ "$ref": format!("#/definitions/{name}") });
        let named = |inner: Value| json!({ "type": "object", "additionalProperties": inner });
        let list = |inner: Value| json!({ "type": "array", "items": inner });
        // As its example is written: `[mesh]`, `[host.app-1]`, `[[allow]]`, `[[route.web]]`.
        let value = match (header.starts_with("[["), header.contains('.')) {
            (false, false) => one,
            (false, true) => named(one),
            (true, false) => list(one),
            (true, true) => named(list(one)),
        };
        ((*name).to_owned(), value)
    });
    let definitions = SECTIONS.iter().map(|it| (it.name.to_owned(), section(it)));
    json!({
        "$schema": DRAFT,
        "title": "Topology of an Isthmus mesh",
        "type": "object",
        "additionalProperties": false,
        "properties": properties.collect::<Map<_, _>>(),
        "definitions": definitions.collect::<Map<_, _>>(),
    })
}

fn section(section: &Section) -> Value {
    let required: Vec<&str> = section.keys().filter(|it| it.required).map(|it| it.name).collect();
    let properties = section.keys().map(|key| (key.name.to_owned(), property(&key)));
    json!({
        "description": format!("{} {}", section.header, section.about),
        "type": "object",
        "additionalProperties": false,
        "properties": properties.collect::<Map<_, _>>(),
        "required": required,
    })
}

fn property(key: &Key) -> Value {
    let shapes: Vec<Value> = match key.shapes {
        [] => of_example(key).into_iter().collect(),
        shapes => shapes.iter().map(shape).collect(),
    };
    let mut value = any_of(shapes);
    value["description"] = format!("{} Example: {}", key.about, key.example).trim().into();
    value
}

fn any_of(mut shapes: Vec<Value>) -> Value {
    match shapes.len() {
        0 => json!({}),
        1 => shapes.remove(0),
        _ => json!({ "anyOf": shapes }),
    }
}

fn shape(shape: &Shape) -> Value {
    let reference = |name: &str| json!({ "$ref": format!("#/definitions/{name}") });
    match shape {
        Shape::Text => json!({ "type": "string" }),
        Shape::OneOf(words) => json!({ "enum": words }),
        Shape::Texts => json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 }),
        Shape::Integer => json!({ "type": "integer" }),
        Shape::Number => json!({ "type": "number" }),
        Shape::Integers => json!({ "type": "array", "items": { "type": "integer" } }),
        Shape::Flag => json!({ "type": "boolean" }),
        // Beside `$ref` nothing else counts, also no description.
        Shape::Table(name) => json!({ "allOf": [reference(name)] }),
        Shape::Tables(name) => json!({ "type": "array", "items": reference(name), "minItems": 1 }),
        Shape::Map(values) => json!({
            "type": "object",
            "additionalProperties": any_of(values.iter().map(self::shape).collect()),
        }),
    }
}

/// A key that nobody has described yet is what its example is.
fn of_example(key: &Key) -> Option<Value> {
    let table: toml::Table = key.example.parse().ok()?;
    table.get(key.name).map(of_value)
}

fn of_value(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(_) => json!({ "type": "string" }),
        toml::Value::Integer(_) => json!({ "type": "integer" }),
        toml::Value::Float(_) => json!({ "type": "number" }),
        toml::Value::Boolean(_) => json!({ "type": "boolean" }),
        toml::Value::Datetime(_) => json!({}),
        toml::Value::Array(list) => {
            let items = list.first().map_or_else(|| json!({ "type": "string" }), of_value);
            json!({ "type": "array", "items": items })
        }
        toml::Value::Table(_) => json!({ "type": "object" }),
    }
}

/// Of a file that has every key.
fn settings(title: &str, text: &str) -> Result<Value> {
    let table: toml::Table = text.parse()?;
    let mut schema = of_settings(&table, &comments(text), "");
    schema["$schema"] = DRAFT.into();
    schema["title"] = title.into();
    Ok(schema)
}

fn of_settings(table: &toml::Table, comments: &Map<String, Value>, within: &str) -> Value {
    let property = |(key, value): (&String, &toml::Value)| {
        let name = format!("{within}{key}");
        let mut property = match value {
            toml::Value::Table(inner) => of_settings(inner, comments, &format!("{name}.")),
            value @ (toml::Value::String(_)
            | toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_)
            | toml::Value::Array(_)) => of_value(value),
        };
        if let Some(comment) = comments.get(&name) {
            property["description"] = comment.clone();
        }
        (key.clone(), property)
    };
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": table.iter().map(property).collect::<Map<_, _>>(),
    })
}

/// What stands above each key: `dns.listen` and its comment. Keys that follow each other without a break
/// share it.
fn comments(text: &str) -> Map<String, Value> {
    let (mut comments, mut lines, mut within) = (Map::new(), Vec::new(), String::new());
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix('#') {
            lines.push(comment.trim());
        } else if let Some(header) = line.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            within = format!("{header}.");
            lines.clear();
        } else if let Some((key, _)) = line.split_once('=').filter(|_| !lines.is_empty()) {
            comments.insert(format!("{within}{}", key.trim()), lines.join(" ").into());
        } else if line.is_empty() {
            lines.clear();
        }
    }
    comments
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs");

    /// Whether a schema of ours takes a value: just the words of JSON Schema that we write.
    fn takes(root: &Value, schema: &Value, value: &Value) -> bool {
        let known = [
            "$schema",
            "title",
            "description",
            "definitions",
            "$ref",
            "type",
            "enum",
            "anyOf",
            "allOf",
            "items",
            "minItems",
            "properties",
            "additionalProperties",
            "required",
        ];
        let words = schema.as_object().unwrap();
        assert!(words.keys().all(|word| known.contains(&&**word)), "{schema}");
        words.iter().all(|(word, wanted)| match &**word {
            "$ref" => {
                let name = wanted.as_str().unwrap().strip_prefix("#/definitions/").unwrap();
                takes(root, root["definitions"].get(name).expect("it is defined"), value)
            }
            "type" => match wanted.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_i64() || value.is_u64(),
                "number" => value.is_number(),
                other => panic!("{other}"),
            },
            "enum" => wanted.as_array().unwrap().contains(value),
            "anyOf" => wanted.as_array().unwrap().iter().any(|it| takes(root, it, value)),
            "allOf" => wanted.as_array().unwrap().iter().all(|it| takes(root, it, value)),
            "items" => {
                value.as_array().is_none_or(|list| list.iter().all(|it| takes(root, wanted, it)))
            }
            "minItems" => value.as_array().is_none_or(|list| !list.is_empty()),
            "properties" => value.as_object().is_none_or(|table| {
                table.iter().all(|(key, it)| wanted.get(key).is_none_or(|one| takes(root, one, it)))
            }),
            "additionalProperties" => value.as_object().is_none_or(|table| {
                let known = |key: &String| schema["properties"].get(key).is_some();
                let mut others = table.iter().filter(|(key, _)| !known(key));
                match wanted.as_bool() {
                    Some(free) => free || others.next().is_none(),
                    None => others.all(|(_, it)| takes(root, wanted, it)),
                }
            }),
            "required" => value.as_object().is_none_or(|table| {
                wanted
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|key| table.contains_key(key.as_str().unwrap()))
            }),
            _ => true,
        })
    }

    fn taken(schema: &Value, text: &str) -> bool {
        let table: toml::Table = text.parse().unwrap_or_else(|wrong| panic!("{wrong}: {text}"));
        takes(schema, schema, &serde_json::to_value(table).unwrap())
    }

    #[test]
    fn all_files_that_are_shipped_are_taken() {
        let schema = topology();
        let mut topologies = 0;
        for entry in std::fs::read_dir(CONFIGS).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.ends_with(".toml") && !["agent.toml", "controller.toml"].contains(&name) {
                topologies += 1;
                assert!(taken(&schema, &std::fs::read_to_string(&path).unwrap()), "{name}");
            }
        }
        assert!(topologies > 1);
        assert!(taken(&settings("", AGENT).unwrap(), AGENT));
        assert!(taken(&settings("", CONTROLLER).unwrap(), CONTROLLER));
    }

    #[test]
    fn each_example_is_taken_and_each_wrong_type_isnt() {
        let schema = topology();
        for section in SECTIONS {
            let schema_of = &schema["definitions"][section.name];
            let alone = json!({ "required": [], "definitions": schema["definitions"] });
            for key in section.keys() {
                let table: toml::Table = key.example.parse().unwrap();
                let value = serde_json::to_value(&table[key.name]).unwrap();
                let one = &schema_of["properties"][key.name];
                assert!(takes(&alone, one, &value), "{} of {}", key.example, section.name);
                let mut refused = 0;
                for wrong in
                    [json!("\u{1}"), json!(7), json!(7.5), json!(true), json!([[1]]), json!([])]
                {
                    refused += usize::from(!takes(&alone, one, &wrong));
                }
                assert!(refused >= 3, "{} of {} takes nearly everything", key.name, section.name);
            }
            let unknown = json!({ "nobody-knows-this": 1 });
            assert!(!takes(&alone, schema_of, &unknown), "{}", section.name);
        }
    }

    #[test]
    fn wrong_files_are_refused() {
        let schema = topology();
        for wrong in [
            "[service.web]\nport = \"8080\"",
            "[service.web]\nporte = 8080",
            "[service.web]\nprotocol = \"https\"",
            "[services.web]\nport = 8080",
            "[service]\nport = 8080",
            "[allow]\nname = \"a\"\nfrom = \"any\"\nto = \"any\"",
            "[[allow]]\nname = \"a\"\nfrom = \"any\"",
            "[[allow]]\nname = \"a\"\nfrom = 7\nto = \"any\"",
            "[[allow]]\nname = \"a\"\nfrom = \"any\"\nto = \"any\"\nhttp = [{ methods = \"GET\" }]",
            "[[route.web]]\nretry = { on = [\"503\"] }",
            "[host.a]\nlabels = { role = 1 }",
            "[policy]\ndefault = \"refuse\"",
            "[gateway.public]\nhosts = [\"a\"]",
        ] {
            assert!(!taken(&schema, wrong), "{wrong}");
        }
        let agent = settings("", AGENT).unwrap();
        for wrong in
            ["listen_port = \"51820\"", "listenport = 1", "[dns]\nlisten = \"yes\"", "dns = true"]
        {
            assert!(!taken(&agent, wrong), "{wrong}");
        }
        assert!(!taken(&settings("", CONTROLLER).unwrap(), "listen = 7443"));
    }

    #[test]
    fn settings_are_described_by_their_comments() {
        let schema = settings("", AGENT).unwrap();
        let about = |name: &str| schema.pointer(name).unwrap().as_str().unwrap().to_owned();
        assert!(about("/properties/listen_port/description").starts_with("The UDP port"));
        assert!(about("/properties/dns/properties/listen/description").contains("port 53"));
        assert_eq!(schema.pointer("/properties/mtu/type"), Some(&"integer".into()));
    }
}
