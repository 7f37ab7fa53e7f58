//! The names that conditions see, as values.

use std::collections::HashMap;

use cel::objects::{Key, Map};
use cel::{Context, Value};
use isthmus_model::{Condition, Identity};
use serde_json::Value as Json;

use crate::fields::{decoded, lenient_name};
use crate::verdict::{Query, Request};

thread_local! {
    /// What is built in. Making it costs twenty times what a condition does.
    static ROOT: Context<'static, 'static> = Context::default();
}

/// What a condition sees of a request.
#[derive(Debug)]
pub(crate) struct Names([(&'static str, Value); 3]);

impl Names {
    /// `path` and `host` are in their canonical forms; none if they have none.
    pub(crate) fn new(
        query: &Query<'_>,
        request: &Request<'_>,
        path: Option<&str>,
        host: Option<&str>,
    ) -> Self {
        Self([
            ("request", of_request(request, path, host)),
            ("source", of_source(query.from, request.source_host)),
            ("jwt", of_tokens(request)),
        ])
    }

    pub(crate) fn holds(&self, condition: &Condition) -> Result<bool, String> {
        ROOT.with(|root| {
            let mut scope = root.new_inner_scope();
            for (name, value) in &self.0 {
                scope.add_variable_from_value(*name, value.clone());
            }
            condition.holds(&scope)
        })
    }
}

fn of_request(request: &Request<'_>, path: Option<&str>, host: Option<&str>) -> Value {
    let mut headers = HashMap::<String, Option<String>>::new();
    request.headers.all(&mut |name, value| {
        // Bytes that are no text make the field unreadable, not absent in part.
        let text = std::str::from_utf8(value).ok();
        let joined = headers.entry(name.to_owned()).or_insert_with(|| Some(String::new()));
        *joined = match (joined.take(), text) {
            (Some(before), Some(text)) if before.is_empty() => Some(text.to_owned()),
            (Some(before), Some(text)) => Some(format!("{before}, {text}")),
            (_, _) => None,
        };
    });
    // To some programs it is the same field as the one with '-': then nobody knows what that is.
    let is_sign = |it: char| !it.is_ascii_alphanumeric();
    let is_odd = |name: &&String| name.contains(|it| it != '-' && is_sign(it));
    let others: Vec<_> = headers.keys().filter(is_odd).cloned().collect();
    headers.extend(others.into_iter().map(|name| (name.replace(is_sign, "-"), None)));
    let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value?.into())));
    let mut query = HashMap::<String, Value>::new();
    for pair in request.query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decoded(name), decoded(value).into_owned().into());
        // One that is there twice can't be compared with a text, nor one that some read as another.
        let both = |one: &mut Value| *one = Value::Null;
        let meant = lenient_name(&name);
        if *meant != *name {
            query.insert(meant, Value::Null);
        }
        query.entry(name.into_owned()).and_modify(both).or_insert(value);
    }
    let mut values = vec![("headers".to_owned(), map(headers)), ("query".to_owned(), map(query))];
    // To some servers it is the same as in capitals: then nobody knows which it is.
    let is_clear = !request.method.contains(|it: char| it.is_ascii_lowercase());
    values.extend(is_clear.then(|| ("method".to_owned(), request.method.into())));
    values.extend(path.map(|path| ("path".to_owned(), path.into())));
    values.extend(host.map(|host| ("host".to_owned(), host.into())));
    map(values)
}

fn of_source(from: &Identity, host: &str) -> Value {
    let (service, namespace, host) = match from {
        Identity::Service { namespace, name } => (name.as_str(), namespace.as_str(), host),
        Identity::Host(name) => ("", "", name.as_str()),
        Identity::Device(_) => ("", "", host),
    };
    map([
        ("identity".to_owned(), from.to_string().into()),
        ("service".to_owned(), service.into()),
        ("namespace".to_owned(), namespace.into()),
        ("host".to_owned(), host.into()),
    ])
}

/// The first token's: a request usually has one.
fn of_tokens(request: &Request<'_>) -> Value {
    let Some(token) = request.tokens.first() else { return map([]) };
    let claims = token.claims.iter().map(|(name, value)| (name.clone(), of_json(value)));
    let provider = ("provider".to_owned(), token.provider.as_str().into());
    map([("claims".to_owned(), map(claims)), provider])
}

fn map(pairs: impl IntoIterator<Item = (String, Value)>) -> Value {
    let map: HashMap<Key, Value> =
        pairs.into_iter().map(|(name, value)| (Key::from(name), value)).collect();
    Value::Map(Map { map: map.into() })
}

fn of_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Bool(*truth),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Value::Int(whole),
            (None, Some(number)) => Value::Float(number),
            (None, None) => Value::Null,
        },
        Json::String(text) => text.as_str().into(),
        Json::Array(list) => Value::List(list.iter().map(of_json).collect::<Vec<_>>().into()),
        Json::Object(fields) => map(fields.iter().map(|(name, it)| (name.clone(), of_json(it)))),
    }
}
