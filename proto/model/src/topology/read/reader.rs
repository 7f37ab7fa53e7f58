//! Tables of TOML, read key by key: what isn't as it should be is reported with its place, and
//! reading goes on.

use std::fmt;

use toml::de::{DeArray, DeInteger, DeTable, DeValue};

use super::report::{At, Located, Read, Report, Reported};
use super::suggest::nearest;

/// A key that may be anything, and the string that it has.
pub(crate) type Pair<'a> = (Located<&'a str>, Located<&'a str>);

/// The keys of a kind of table, each with an example of its use.
pub(crate) type Schema = &'static [(&'static str, &'static str)];

/// Which table a message is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Context<'a> {
    /// `[mesh]`
    Plain(&'static str),
    /// `[host.NAME]`
    Named(&'static str, &'a str),
    /// `[[allow]]`
    Item(&'static str),
    /// A table within `[service.NAME]`.
    Within(&'static str, &'static str, &'a str),
    /// An element of a list within `[[allow]]`.
    Element(&'static str, &'static str),
    /// An inline table in another.
    Key(&'static str, &'static str),
    /// `[[route.api]]`
    NamedItem(&'static str, &'a str),
}

impl fmt::Display for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(table) => write!(f, "[{table}]"),
            Self::Named(kind, name) => write!(f, "[{kind}.{}]", clip(name)),
            Self::Item(kind) => write!(f, "[[{kind}]]"),
            Self::Within(key, kind, name) => write!(f, "`{key}` of [{kind}.{}]", clip(name)),
            Self::Key(key, outer) => write!(f, "`{key}` of `{outer}`"),
            Self::Element(key, kind) => write!(f, "`{key}` of [[{kind}]]"),
            Self::NamedItem(kind, name) => write!(f, "[[{kind}.{}]]", clip(name)),
        }
    }
}

/// A table whose keys are all known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'a> {
    context: Context<'a>,
    pub(crate) at: At,
    items: &'a DeTable<'a>,
    schema: Schema,
}

impl<'a> Table<'a> {
    /// Reports the keys that aren't in the schema.
    pub(crate) fn new(
        context: Context<'a>,
        at: At,
        items: &'a DeTable<'a>,
        schema: Schema,
        report: &mut Report<'_>,
    ) -> Self {
        for key in items.keys() {
            let word: &str = key.get_ref();
            if !schema.iter().any(|(known, _)| *known == word) {
                let message = format!("unknown key `{}` in {context}", clip(word));
                let help =
                    instead(word, schema.iter().map(|(known, _)| *known), "the keys here are");
                report.error(at.within(key.span()), message, help);
            }
        }
        Self { context, at, items, schema }
    }

    pub(crate) fn get(&self, key: &'static str) -> Option<Entry<'a>> {
        let (written, value) = self.items.get_key_value(key)?;
        Some(Entry {
            context: self.context,
            key,
            example: self.example(key),
            key_at: self.at.within(written.span()),
            at: self.at.within(value.span()),
            value: value.get_ref(),
        })
    }

    pub(crate) fn required(&self, key: &'static str, report: &mut Report<'_>) -> Read<Entry<'a>> {
        self.get(key).ok_or_else(|| {
            let message = format!("{} has no `{key}`", self.context);
            report.error(self.at, message, format!("add `{}`", self.example(key)))
        })
    }

    /// Reads a key that may be absent.
    pub(crate) fn optional<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(Entry<'a>) -> Read<T>,
    ) -> Read<Option<T>> {
        self.get(key).map(read).transpose()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn example(&self, key: &str) -> &'static str {
        self.schema.iter().find(|(known, _)| *known == key).map_or("", |(_, example)| example)
    }
}

/// A key and its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) context: Context<'a>,
    pub(crate) key: &'static str,
    example: &'static str,
    pub(crate) key_at: At,
    pub(crate) at: At,
    value: &'a DeValue<'a>,
}

impl<'a> Entry<'a> {
    pub(crate) fn string(&self, report: &mut Report<'_>) -> Read<Located<&'a str>> {
        let text = self.value.as_str().ok_or_else(|| self.wrong_type("a string", report))?;
        Ok(Located { value: text, at: self.at })
    }

    /// The value, if it is a string.
    pub(crate) fn text(&self) -> Option<Located<&'a str>> {
        Some(Located { value: self.value.as_str()?, at: self.at })
    }

    /// The value, if it is true or false.
    pub(crate) fn flag(&self) -> Option<bool> {
        self.value.as_bool()
    }

    pub(crate) fn is_list(&self) -> bool {
        self.value.as_array().is_some()
    }

    pub(crate) fn boolean(&self, report: &mut Report<'_>) -> Read<bool> {
        self.value.as_bool().ok_or_else(|| self.wrong_type("true or false", report))
    }

    pub(crate) fn integer(&self, report: &mut Report<'_>) -> Read<i64> {
        let number =
            self.value.as_integer().ok_or_else(|| self.wrong_type("a whole number", report))?;
        number_of(number).ok_or_else(|| {
            let message = format!("`{}` is too large: {}", self.key, clip(number.as_str()));
            report.error(self.at, message, format!("write `{}`", self.example))
        })
    }

    /// A number, whole or not.
    pub(crate) fn number(&self, report: &mut Report<'_>) -> Read<f64> {
        let whole = self.value.as_integer().and_then(number_of).map(|number| number as f64);
        let number = whole.or_else(|| self.value.as_float()?.as_str().parse().ok());
        number
            .filter(|number| number.is_finite())
            .ok_or_else(|| self.wrong_type("a number", report))
    }

    /// A list of strings that isn't empty.
    pub(crate) fn strings(&self, report: &mut Report<'_>) -> Read<Vec<Located<&'a str>>> {
        let list = self.value.as_array();
        self.elements(list.ok_or_else(|| self.wrong_type("a list", report))?, report)
    }

    /// A string, or a list of them that isn't empty.
    pub(crate) fn one_or_more(&self, report: &mut Report<'_>) -> Read<Vec<Located<&'a str>>> {
        if let Some(text) = self.value.as_str() {
            return Ok(vec![Located { value: text, at: self.at }]);
        }
        let list = self.value.as_array();
        self.elements(list.ok_or_else(|| self.wrong_type("a string or a list", report))?, report)
    }

    /// A list of whole numbers that isn't empty.
    pub(crate) fn integers(&self, report: &mut Report<'_>) -> Read<Vec<Located<i64>>> {
        let list = self.value.as_array();
        let list = list.ok_or_else(|| self.wrong_type("a list of whole numbers", report))?;
        if list.is_empty() {
            return Err(self.empty(report));
        }
        let read: Vec<Read<_>> = list
            .iter()
            .map(|element| {
                let entry =
                    Self { at: self.at.within(element.span()), value: element.get_ref(), ..*self };
                Ok(Located { value: entry.integer(report)?, at: entry.at })
            })
            .collect();
        read.into_iter().collect()
    }

    fn elements(
        &self,
        list: &'a DeArray<'a>,
        report: &mut Report<'_>,
    ) -> Read<Vec<Located<&'a str>>> {
        if list.is_empty() {
            return Err(self.empty(report));
        }
        let read: Vec<Read<_>> = list
            .iter()
            .map(|element| {
                let entry =
                    Self { at: self.at.within(element.span()), value: element.get_ref(), ..*self };
                let text = entry.value.as_str();
                let value = text.ok_or_else(|| entry.wrong_type("a list of strings", report))?;
                Ok(Located { value, at: entry.at })
            })
            .collect();
        read.into_iter().collect()
    }

    pub(crate) fn table(
        &self,
        context: Context<'a>,
        schema: Schema,
        report: &mut Report<'_>,
    ) -> Read<Table<'a>> {
        let items = self.value.as_table().ok_or_else(|| self.wrong_type("a table", report))?;
        Ok(Table::new(context, self.at, items, schema, report))
    }

    /// A table of tables, each with its name.
    pub(crate) fn named_tables(
        &self,
        context: Context<'a>,
        schema: Schema,
        report: &mut Report<'_>,
    ) -> Read<Vec<(Located<&'a str>, Table<'a>)>> {
        let items = self.value.as_table().ok_or_else(|| self.wrong_type("a table", report))?;
        let read: Vec<Read<_>> = items
            .iter()
            .map(|(key, value)| {
                let name = Located { value: &**key.get_ref(), at: self.at.within(key.span()) };
                let at = self.at.within(value.span());
                let Some(items) = value.get_ref().as_table() else {
                    let found = describe(value.get_ref());
                    let message = format!(
                        "`{}` in {} must be a table, not {found}",
                        clip(name.value),
                        self.context
                    );
                    return Err(report.error(at, message, format!("write `{}`", self.example)));
                };
                Ok((name, Table::new(context, at, items, schema, report)))
            })
            .collect();
        read.into_iter().collect()
    }

    /// A table, or a list of tables that isn't empty.
    pub(crate) fn table_or_tables(
        &self,
        context: Context<'a>,
        schema: Schema,
        report: &mut Report<'_>,
    ) -> Read<Vec<Table<'a>>> {
        match self.value.as_table() {
            Some(items) => Ok(vec![Table::new(context, self.at, items, schema, report)]),
            None => self.tables(context, schema, report),
        }
    }

    /// What a table with free keys holds.
    pub(crate) fn entries(&self, report: &mut Report<'_>) -> Read<Vec<(Located<&'a str>, Self)>> {
        let items = self.value.as_table().ok_or_else(|| self.wrong_type("a table", report))?;
        let entry = |(key, value): (&'a toml::Spanned<_>, &'a toml::Spanned<DeValue<'a>>)| {
            let key: &toml::Spanned<std::borrow::Cow<'a, str>> = key;
            let name = Located { value: &**key.get_ref(), at: self.at.within(key.span()) };
            (name, Self { at: self.at.within(value.span()), value: value.get_ref(), ..*self })
        };
        Ok(items.iter().map(entry).collect())
    }

    /// A list of tables that isn't empty.
    pub(crate) fn tables(
        &self,
        context: Context<'a>,
        schema: Schema,
        report: &mut Report<'_>,
    ) -> Read<Vec<Table<'a>>> {
        let list = self.value.as_array();
        let list = list.ok_or_else(|| self.wrong_type("a list of tables", report))?;
        if list.is_empty() {
            return Err(self.empty(report));
        }
        let read: Vec<Read<_>> = list
            .iter()
            .map(|element| {
                let entry =
                    Self { at: self.at.within(element.span()), value: element.get_ref(), ..*self };
                let items = entry.value.as_table();
                let items = items.ok_or_else(|| entry.wrong_type("a list of tables", report))?;
                Ok(Table::new(context, entry.at, items, schema, report))
            })
            .collect();
        read.into_iter().collect()
    }

    /// The pairs of a table with free keys and strings as values; none if it is no table.
    pub(crate) fn pairs(&self, report: &mut Report<'_>) -> Option<Read<Vec<Pair<'a>>>> {
        let items = self.value.as_table()?;
        let read: Vec<Read<_>> = items
            .iter()
            .map(|(key, value)| {
                let at = self.at.within(value.span());
                let text = value.get_ref().as_str().ok_or_else(|| {
                    let found = describe(value.get_ref());
                    let name = clip(key.get_ref());
                    let message =
                        format!("label `{name}` in {} must be a string, not {found}", self.context);
                    report.error(at, message, format!("write `{}`", self.example))
                })?;
                let key = Located { value: &**key.get_ref(), at: self.at.within(key.span()) };
                Ok((key, Located { value: text, at }))
            })
            .collect();
        Some(read.into_iter().collect())
    }

    pub(crate) fn wrong_type(&self, wanted: &str, report: &mut Report<'_>) -> Reported {
        let (key, found) = (self.key, describe(self.value));
        let message = format!("`{key}` in {} must be {wanted}, not {found}", self.context);
        report.error(self.at, message, format!("write `{}`", self.example))
    }

    pub(crate) fn empty(&self, report: &mut Report<'_>) -> Reported {
        let message = format!("`{}` in {} is empty", self.key, self.context);
        report.error(self.at, message, format!("write `{}`", self.example))
    }
}

/// What to write instead of an unknown word.
pub(crate) fn instead<'c>(
    word: &str,
    known: impl Iterator<Item = &'c str> + Clone,
    intro: &str,
) -> String {
    match nearest(word, known.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let all: Vec<String> = known.map(|word| format!("`{word}`")).collect();
            format!("{intro} {}", all.join(", "))
        }
    }
}

/// A value as a message shows it.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {}", quote(text)),
        DeValue::Integer(number) => format!("the number {}", clip(&number.to_string())),
        DeValue::Float(number) => format!("the number {}", clip(number.as_str())),
        DeValue::Boolean(truth) => format!("{truth}"),
        DeValue::Datetime(time) => format!("the date or time {time}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn number_of(number: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A text that a message can hold, in quotes.
pub(crate) fn quote(text: &str) -> String {
    let clipped: String = text.chars().take(80).collect();
    let more = if clipped.len() < text.len() { "…" } else { "" };
    format!("{clipped:?}{more}")
}

/// The beginning of a text, on one line.
pub(crate) fn clip(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut clipped = String::new();
    for (index, letter) in text.chars().enumerate() {
        if index == LONGEST {
            clipped.push('…');
            break;
        }
        match letter {
            _ if letter.is_control() => clipped.extend(letter.escape_default()),
            _ => clipped.push(letter),
        }
    }
    clipped
}
