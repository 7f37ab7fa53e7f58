//! Header fields, parameters and claims, and whether they are what a match asks for.
//!
//! What is there several times can be read in several ways. So an allow rule fits only if every way
//! fits, a deny rule if any does.

use std::borrow::Cow;
use std::fmt;

use isthmus_model::route::{FieldMatch, ValueMatch};
use serde_json::{Map, Value};

/// A request's header fields.
pub trait Headers: fmt::Debug + Sync {
    /// Tells each line of a name (in lower case), in order.
    fn lines(&self, name: &str, tell: &mut dyn FnMut(&[u8]));

    /// Tells every line there is, with its name in lower case.
    fn all(&self, tell: &mut dyn FnMut(&str, &[u8]));

    /// Whether anybody knows which there are. If not, what looks at them lets nothing pass, and refuses.
    fn are_known(&self) -> bool {
        true
    }
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

/// Readings of a request that must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readings {
    /// Every one: for what lets pass.
    All,
    /// Any of them: for what refuses.
    Any,
}

/// Whether a header field is what is asked for.
///
/// Several lines of a name are one list (RFC 9110, section 5.3), and one line may be a list, too; some
/// programs take only the first element or the last. And to some, `x_role` and `x.role` are `x-role`. So what lets pass
/// must be the whole field, in one spelling; what refuses may be the whole, a line or an element.
#[must_use]
pub fn header_fits(field: &FieldMatch, headers: &dyn Headers, readings: Readings) -> bool {
    let FieldMatch { name, value } = field;
    if !headers.are_known() {
        return readings == Readings::Any;
    }
    let (mut count, mut fits) = (0, false);
    headers.lines(name, &mut |line| {
        count += 1;
        fits = fits || line_fits(value, line, readings);
    });
    let mut is_spelt_otherwise = false;
    if name.contains(|sign: char| !sign.is_ascii_alphanumeric()) {
        headers.all(&mut |other, line| {
            if is_other_spelling(other, name) {
                is_spelt_otherwise = true;
                fits = fits || line_fits(value, line, readings);
            }
        });
    }
    match (value, readings) {
        (ValueMatch::Absent, Readings::All) => count == 0 && !is_spelt_otherwise,
        (ValueMatch::Absent, Readings::Any) => count == 0,
        (ValueMatch::Present, Readings::All) => count > 0,
        (ValueMatch::Present, Readings::Any) => count > 0 || is_spelt_otherwise,
        (_, Readings::All) if is_spelt_otherwise => false,
        (_, Readings::All) if count < 2 => fits,
        (_, Readings::All) => joined_fits(field, headers, readings),
        (_, Readings::Any) => fits || (count > 1 && joined_fits(field, headers, readings)),
    }
}

fn line_fits(wanted: &ValueMatch, line: &[u8], readings: Readings) -> bool {
    let Ok(line) = std::str::from_utf8(line) else {
        // Nobody knows what it is to others.
        return readings == Readings::Any;
    };
    let whole = line.trim();
    let element = |element: &str| {
        let element = element.trim();
        let unquoted = element.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
        // With pairs such as `\m`, which mean the second character (RFC 9110, section 5.6.4).
        let fits = |it: &str| value_fits(wanted, it) || value_fits(wanted, &it.replace('\\', ""));
        value_fits(wanted, element) || unquoted.is_some_and(fits)
    };
    value_fits(wanted, whole) || (readings == Readings::Any && whole.split(',').any(element))
}

fn joined_fits(field: &FieldMatch, headers: &dyn Headers, readings: Readings) -> bool {
    let mut joined = Some(String::new());
    headers.lines(&field.name, &mut |line| {
        let text = std::str::from_utf8(line).ok().map(str::trim);
        joined = joined.take().zip(text).map(|(before, text)| match &*before {
            "" => text.to_owned(),
            _ => before + ", " + text,
        });
    });
    joined.map_or(readings == Readings::Any, |joined| value_fits(&field.value, &joined))
}

/// Whether programs that see all signs as the same (as CGI does) take one name for another.
fn is_other_spelling(one: &str, other: &str) -> bool {
    let is_sign = |byte: u8| !byte.is_ascii_alphanumeric();
    let same = |(a, b): (u8, u8)| a == b || (is_sign(a) && is_sign(b));
    one.len() == other.len() && one != other && one.bytes().zip(other.bytes()).all(same)
}

/// Whether a parameter is what is asked for.
///
/// To some programs ` debug`, `debug[]` and `debug[a]` are `debug`, and `;` ends a parameter. As with header
/// fields, what lets pass must be spelt as it is asked for.
#[must_use]
pub fn parameter_fits(field: &FieldMatch, query: &str, readings: Readings) -> bool {
    let pairs = |separators: &'static [char]| {
        let pairs = query.split(separators).map(|it| it.split_once('=').unwrap_or((it, "")));
        pairs.map(|(name, value)| (decoded(name), value))
    };
    let by = |separators| {
        let named = pairs(separators).filter(|(name, _)| *name == *field.name);
        named.map(|(_, value)| decoded(value))
    };
    let spelt_otherwise = || {
        let is_other = |name: &str| name != &*field.name && lenient_name(name) == *field.name;
        pairs(&['&', ';']).filter(move |(name, _)| is_other(name))
    };
    let mut values = by(&['&']).peekable();
    match (&field.value, readings) {
        (ValueMatch::Absent, Readings::All) => {
            by(&['&', ';']).next().is_none() && spelt_otherwise().next().is_none()
        }
        (ValueMatch::Absent, Readings::Any) => values.next().is_none(),
        (wanted, Readings::All) => {
            values.peek().is_some()
                && values.all(|value| value_fits(wanted, &value))
                && spelt_otherwise().next().is_none()
        }
        (wanted, Readings::Any) => {
            let others = spelt_otherwise().map(|(_, value)| decoded(value));
            values.chain(by(&['&', ';'])).chain(others).any(|value| value_fits(wanted, &value))
        }
    }
}

/// A parameter's name as lenient programs read it (PHP's are the most lenient): without white space before it,
/// as far as it is no index, with `_` for what a variable's name can't have.
pub(crate) fn lenient_name(name: &str) -> String {
    let name = name.trim_start();
    let name = name.split(['[', '\0']).next().unwrap_or(name);
    name.replace(['.', ' '], "_")
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

pub(crate) fn text(value: &Value) -> Option<Cow<'_, str>> {
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
    fn of_a_list_in_one_line_each_element_is_refused_and_only_the_whole_lets_pass() {
        let fits = |line: &str, value: &str, readings| {
            header_fits(&exactly("x-role", value), &vec![("x-role", line)], readings)
        };
        for line in [
            "admin",
            "user, admin",
            "admin,user",
            "user,,admin ,",
            "\"admin\"",
            "user, \"ad\\min\"",
        ] {
            assert!(fits(line, "admin", Readings::Any), "{line}");
        }
        for line in ["user", "administrator, user", "user; admin", "\"admin"] {
            assert!(!fits(line, "admin", Readings::Any), "{line}");
        }
        assert!(fits("user, admin", "user, admin", Readings::Any));
        assert!(fits("user, admin", "user, admin", Readings::All));
        assert!(!fits("user, admin", "user", Readings::All));
        assert!(!fits("user, admin", "admin", Readings::All));
    }

    #[test]
    fn another_spelling_of_a_name_refuses_and_never_lets_pass() {
        for spelling in ["x_role", "x.role"] {
            let other = vec![(spelling, "admin")];
            assert!(header_fits(&exactly("x-role", "admin"), &other, Readings::Any), "{spelling}");
        }
        let other = vec![("x_role", "admin")];
        let both = vec![("x-role", "user"), ("x_role", "admin")];
        let admin = exactly("x-role", "admin");
        assert!(header_fits(&admin, &other, Readings::Any));
        assert!(header_fits(&admin, &both, Readings::Any));
        assert!(!header_fits(&admin, &other, Readings::All));
        assert!(!header_fits(&exactly("x-role", "user"), &both, Readings::All));
        assert!(!header_fits(&wants("x-role", ValueMatch::Absent), &other, Readings::All));
        assert!(header_fits(&wants("x-role", ValueMatch::Present), &other, Readings::Any));
        assert!(!header_fits(&exactly("xrole", "admin"), &other, Readings::Any));
    }

    #[test]
    fn another_spelling_of_a_parameter_refuses_and_never_lets_pass() {
        let debug = exactly("user_debug", "1");
        for other in [
            "+user_debug=1",
            "user_debug[]=1",
            "user_debug%5Ba%5D=1",
            "user_debug%00=1",
            "user.debug=1",
        ] {
            for query in [other.to_owned(), format!("user_debug=0&{other}"), format!("a;{other}")] {
                assert!(parameter_fits(&debug, &query, Readings::Any), "{query}");
                let zero = exactly("user_debug", "0");
                assert!(!parameter_fits(&zero, &query, Readings::All), "{query}");
                let absent = wants("user_debug", ValueMatch::Absent);
                assert!(!parameter_fits(&absent, &query, Readings::All), "{query}");
            }
        }
        assert!(!parameter_fits(&debug, "user_debugger=1&[user_debug]=1", Readings::Any));
        let indexed = exactly("filter[a]", "1");
        for readings in [Readings::All, Readings::Any] {
            assert!(parameter_fits(&indexed, "filter[a]=1&filter[b]=2", readings));
        }
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
