//! Header fields, parameters and claims, and whether they are what a match asks for.
//!
//! What is there several times can be read in several ways. So an allow rule fits only if every way
//! fits, a deny rule if any does.

use std::borrow::Cow;
use std::fmt;

use isthmus_model::route::{FieldMatch, HostMatch, ValueMatch};
use serde_json::{Map, Value};

/// A request's header fields.
pub trait Headers: fmt::Debug + Sync {
    /// Tells each line of a name (in lower case), in order.
    fn lines(&self, name: &str, tell: &mut dyn FnMut(&[u8]));

    /// Tells every line there is, with its name in lower case.
    fn all(&self, tell: &mut dyn FnMut(&str, &[u8]));
}

/// Names, in lower case, and values.
impl<N: AsRef<str> + fmt::Debug + Sync, V: AsRef<str> + fmt::Debug + Sync> Headers for Vec<(N, V)> {
    fn lines(&self, name: &str, tell: &mut dyn FnMut(&[u8])) {
        let lines = self.iter().filter(|(known, _)| known.as_ref() == name);
        lines.for_each(|(_, value)| tell(value.as_ref().as_bytes()));
    }

    fn all(&self, tell: &mut dyn FnMut(&str, &[u8])) {
        self.iter().for_each(|(name, value)| tell(name.as_ref(), value.as_ref().as_bytes()));
    }
}

/// A request without any.
#[derive(Clone, Copy, Debug)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn lines(&self, _: &str, _: &mut dyn FnMut(&[u8])) {}
    fn all(&self, _: &mut dyn FnMut(&str, &[u8])) {}
}

/// Which of several readings of a request must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readings {
    /// Every one: for what lets pass.
    All,
    /// Any of them: for what refuses.
    Any,
}

/// Several lines of a name are one list (RFC 9110, section 5.3); some programs take only the first
/// or the last.
#[must_use]
pub fn header_fits(field: &FieldMatch, headers: &dyn Headers, readings: Readings) -> bool {
    let mut texts: Vec<Option<String>> = Vec::new();
    headers.lines(&field.name, &mut |line| {
        texts.push(std::str::from_utf8(line).ok().map(|line| line.trim().to_owned()));
    });
    let joined: Option<Vec<&str>> = texts.iter().map(Option::as_deref).collect();
    let joined = joined.map(|lines| lines.join(", "));
    let reading = |text: &Option<String>| match (text, &field.value) {
        (_, ValueMatch::Present) => true,
        (Some(text), wanted) => value_fits(wanted, text),
        // Nobody knows what it is to others.
        (None, _) => readings == Readings::Any,
    };
    match (&field.value, texts.len()) {
        (ValueMatch::Absent, there) => there == 0,
        (_, 0) => false,
        _ => match readings {
            Readings::All => reading(&joined),
            Readings::Any => texts.iter().chain(std::iter::once(&joined)).any(reading),
        },
    }
}

/// Whether a parameter is what is asked for.
#[must_use]
pub fn parameter_fits(field: &FieldMatch, query: &str, readings: Readings) -> bool {
    let by = |separators: &'static [char]| {
        let pairs = query.split(separators).map(|it| it.split_once('=').unwrap_or((it, "")));
        pairs.filter(|(name, _)| decoded(name) == *field.name).map(|(_, value)| decoded(value))
    };
    let mut values = by(&['&']).peekable();
    match (&field.value, readings) {
        (ValueMatch::Absent, Readings::All) => by(&['&', ';']).next().is_none(),
        (ValueMatch::Absent, Readings::Any) => values.next().is_none(),
        (wanted, Readings::All) => {
            values.peek().is_some() && values.all(|value| value_fits(wanted, &value))
        }
        // Some programs end parameters at ';', too.
        (wanted, Readings::Any) => {
            values.chain(by(&['&', ';'])).any(|value| value_fits(wanted, &value))
        }
    }
}

/// Whether a value that is there is what is asked for.
#[must_use]
pub fn value_fits(wanted: &ValueMatch, value: &str) -> bool {
    match wanted {
        ValueMatch::Exact(wanted) => **wanted == *value,
        ValueMatch::Regex(pattern) => pattern.fits(value),
        ValueMatch::Present => true,
        ValueMatch::Absent => false,
    }
}

/// Whether a host, in lower case and without its port, is one of these; any if there are none.
pub(crate) fn host_fits(hosts: &[HostMatch], host: &str) -> bool {
    let is = |wanted: &HostMatch| match wanted {
        HostMatch::Exact(name) => **name == *host,
        HostMatch::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
    };
    hosts.is_empty() || hosts.iter().any(is)
}

/// Whether a claim is what is asked for: of a list any element.
pub(crate) fn claim_fits(wanted: &FieldMatch, claims: &Map<String, Value>) -> bool {
    let value = find(claims, &wanted.name);
    let is = |value: &Value| text(value).is_some_and(|text| value_fits(&wanted.value, &text));
    match (&wanted.value, value) {
        (ValueMatch::Absent, value) => value.is_none(),
        (ValueMatch::Present, value) => value.is_some(),
        (_, None) => false,
        (_, Some(Value::Array(list))) => list.iter().any(is),
        (_, Some(Value::String(words))) if &*wanted.name == "scope" => {
            words.split(' ').any(|word| value_fits(&wanted.value, word))
        }
        (_, Some(value)) => is(value),
    }
}

/// A claim by its name, or by a way through nested ones: `realm_access.roles`.
fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    find(claims.get(first)?.as_object()?, rest)
}

fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Bool(truth) => Some(Cow::Borrowed(if *truth { "true" } else { "false" })),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A name or value of a query, decoded as forms are.
#[must_use]
pub fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match (first, tail) {
            (b'+', _) => (b' ', tail),
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                (_, _) => (b'%', tail),
            },
            (byte, _) => (*byte, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(name: &str, value: ValueMatch) -> FieldMatch {
        FieldMatch { name: name.into(), value }
    }

    fn exactly(name: &str, value: &str) -> FieldMatch {
        wants(name, ValueMatch::Exact(value.into()))
    }

    #[test]
    fn a_field_that_is_there_twice_is_read_in_each_way() {
        let twice = vec![("role", "user"), ("role", "admin")];
        let fits = |value: &str, readings| header_fits(&exactly("role", value), &twice, readings);
        assert!(!fits("user", Readings::All) && !fits("admin", Readings::All));
        assert!(fits("user", Readings::Any) && fits("admin", Readings::Any));
        assert!(fits("user, admin", Readings::All));
        assert!(!fits("root", Readings::Any));
    }

    #[test]
    fn a_parameter_that_is_there_twice_is_read_in_each_way() {
        let fits =
            |query: &str, readings| parameter_fits(&exactly("role", "user"), query, readings);
        assert!(fits("role=user", Readings::All) && fits("a&role=%75ser", Readings::All));
        assert!(!fits("role=user&role=admin", Readings::All) && !fits("", Readings::All));
        assert!(fits("role=admin&r%6fle=user", Readings::Any));
        assert!(fits("a=b;role=user", Readings::Any) && !fits("a=b;role=user", Readings::All));
    }

    #[test]
    fn presence_can_be_asked_for() {
        let there = vec![("x", "")];
        for readings in [Readings::All, Readings::Any] {
            assert!(header_fits(&wants("x", ValueMatch::Present), &there, readings));
            assert!(!header_fits(&wants("y", ValueMatch::Present), &there, readings));
            assert!(header_fits(&wants("y", ValueMatch::Absent), &there, readings));
            assert!(!header_fits(&wants("x", ValueMatch::Absent), &there, readings));
            assert!(parameter_fits(&wants("x", ValueMatch::Absent), "y=1", readings));
            assert!(parameter_fits(&wants("y", ValueMatch::Present), "y", readings));
        }
    }

    #[test]
    fn claims_may_be_lists_and_nested() {
        let claims = serde_json::json!({
            "role": "admin", "groups": ["a", "b"], "age": 7, "staff": true, "scope": "read write",
            "realm": { "roles": ["x"] }, "a.b": "c",
        });
        let fits = |name, value| claim_fits(&exactly(name, value), claims.as_object().unwrap());
        for (name, value) in [
            ("role", "admin"),
            ("groups", "b"),
            ("age", "7"),
            ("staff", "true"),
            ("scope", "write"),
            ("realm.roles", "x"),
            ("a.b", "c"),
        ] {
            assert!(fits(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("role", "adm"),
            ("groups", "a, b"),
            ("scope", "read write x"),
            ("realm", "x"),
            ("none", ""),
        ] {
            assert!(!fits(name, value), "{name}={value}");
        }
    }
}
