//! `[policy]`, `[[allow]]` and `[[deny]]`, each by itself.

use std::str::FromStr;
use std::sync::Arc;

use super::route::host;
use super::{jwt, ports, route};
use crate::condition::Condition;
use crate::name::Name;
use crate::route::{PathMatch, Pattern};
use crate::rules::{Action, PortRule, PortRuleError, RequestMatch, Rule, Subject};
use crate::topology::read::{At, Context, Entry, Located, Read, Report, Schema, Table, all, quote};
use crate::topology::values::{self, fields, words};

pub(crate) const POLICY: Schema = &[("default", "default = \"deny\""), ("audit", "audit = true")];

pub(crate) const RULE: Schema = &[
    ("name", "name = \"web reads accounts\""),
    ("from", "from = \"service:web\""),
    ("to", "to = \"service:accounts\""),
    ("ports", "ports = [\"tcp/22\"]"),
    ("http", "http = [{ method = \"GET\", path = \"/accounts/*\" }]"),
    ("sni", "sni = [\"shop.example.com\"]"),
    ("when", "when = \"request.method == 'GET'\""),
    ("audit", "audit = true"),
];

pub(crate) const HTTP: Schema = &[
    ("method", "method = \"GET\""),
    ("path", "path = \"/accounts/*\""),
    ("header", "header = { x-canary = \"1\" }"),
    ("query", "query = { version = \"2\" }"),
    ("host", "host = \"api.example.com\""),
    ("jwt", "jwt = { provider = \"login\", claims = { role = \"admin\" } }"),
    ("when", "when = \"request.method == 'GET'\""),
];

#[derive(Debug)]
pub(crate) struct PolicyDraft {
    pub(crate) default: Action,
    pub(crate) audit: bool,
    /// Traffic to these is audited.
    pub(crate) audited: Vec<Located<Subject>>,
}

/// A rule, and the places that checks between tables point at.
#[derive(Debug)]
pub(crate) struct RuleDraft {
    pub(crate) rule: Rule,
    pub(crate) name: At,
    pub(crate) from: Vec<At>,
    pub(crate) to: Vec<At>,
    pub(crate) http: At,
    pub(crate) sni: At,
    /// Issuers of the tokens that it requires.
    pub(crate) providers: Vec<(Name, At)>,
    /// Its `ports` that are names; the others are in the rule.
    pub(crate) port_names: Vec<Located<Name>>,
    /// Where its `ports` are, if it looks into what it lets pass, too.
    pub(crate) inspected: Option<At>,
}

pub(crate) fn policy(table: &Table<'_>, report: &mut Report<'_>) -> Read<PolicyDraft> {
    let default = table.optional("default", |entry| action(entry, report));
    let audit = table.optional("audit", |entry| audits(entry, report));
    let (audit, audited) = audit?.unwrap_or_default();
    Ok(PolicyDraft { default: default?.unwrap_or(Action::Deny), audit, audited })
}

/// `true`, or whom it is about.
fn audits(entry: Entry<'_>, report: &mut Report<'_>) -> Read<(bool, Vec<Located<Subject>>)> {
    if entry.is_list() || entry.text().is_some_and(|text| text.value.contains(':')) {
        return Ok((false, subjects(entry, report)?));
    }
    Ok((entry.boolean(report)?, Vec::new()))
}

pub(crate) fn action(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Action> {
    let text = entry.string(report)?;
    match text.value {
        "deny" => Ok(Action::Deny),
        "allow" => Ok(Action::Allow),
        other => {
            let message = format!("`{}` can't be {}", entry.key, quote(other));
            Err(report.error(text.at, message, "write \"deny\" or \"allow\""))
        }
    }
}

pub(crate) fn rule(action: Action, table: &Table<'_>, report: &mut Report<'_>) -> Read<RuleDraft> {
    let name = table.required("name", report).and_then(|entry| title("rule", entry, report));
    let from = table.required("from", report).and_then(|entry| subjects(entry, report));
    let to = table.required("to", report).and_then(|entry| subjects(entry, report));
    let wanted = table.optional("ports", |entry| {
        all(entry.strings(report)?, |text| ports::wanted(text, numbers::<PortRule>, report))
    });
    let mut providers = Vec::new();
    let http = table.optional("http", |entry| requests(action, entry, &mut providers, report));
    let when = table.optional("when", |entry| fields::condition(entry.string(report)?, report));
    let sni = table.optional("sni", |entry| all(entry.one_or_more(report)?, |it| host(it, report)));
    let audit = table.optional("audit", |entry| audit(action, entry, report));
    let both = separate(table, report);
    let (name, from, to, http) = (name?, from?, to?, http?);
    both?;
    let http = with_condition(http.unwrap_or_default(), when?);
    let (mut ports, mut port_names) = (Vec::new(), Vec::new());
    for one in wanted?.unwrap_or_default() {
        match one {
            ports::Wanted::Number(rule) => ports.push(rule),
            ports::Wanted::Name(name) => port_names.push(name),
        }
    }
    let looks = about_requests(table).or_else(|| table.get("sni"));
    let inspected = looks.and_then(|_| table.get("ports")).map(|entry| entry.at);
    let rule = Rule {
        name: name.value,
        action,
        from: from.iter().map(|subject| subject.value.clone()).collect(),
        to: to.iter().map(|subject| subject.value.clone()).collect(),
        ports,
        http,
        sni: sni?.unwrap_or_default(),
        audit: audit?.unwrap_or(false),
        origin: report.origin(table.at),
    };
    Ok(RuleDraft {
        rule,
        name: name.at,
        from: from.iter().map(|subject| subject.at).collect(),
        to: to.iter().map(|subject| subject.at).collect(),
        http: about_requests(table).map_or(table.at, |entry| entry.key_at),
        sni: table.get("sni").map_or(table.at, |entry| entry.key_at),
        providers,
        port_names,
        inspected,
    })
}

/// Keys that turn a rule into one about requests.
fn about_requests<'a>(table: &Table<'a>) -> Option<Entry<'a>> {
    table.get("http").or_else(|| table.get("when"))
}

/// A rule's own condition is one of each of its entries.
fn with_condition(mut http: Vec<RequestMatch>, when: Option<Condition>) -> Vec<RequestMatch> {
    if http.is_empty() && when.is_some() {
        http.push(RequestMatch::default());
    }
    for entry in &mut http {
        entry.when = entry.when.take().or_else(|| when.clone());
    }
    http
}

/// A rule is about requests or about TLS.
fn separate(table: &Table<'_>, report: &mut Report<'_>) -> Read<()> {
    // `http` and `when` belong together.
    let mut given = [about_requests(table), table.get("sni")].into_iter().flatten();
    let (Some(first), Some(second)) = (given.next(), given.next()) else {
        return Ok(());
    };
    let (one, other) = (first.key, second.key);
    let help = format!("leave `{other}` out, or write two rules");
    let message = format!("a rule with `{one}` sees nothing else, it can't have `{other}`");
    Err(report.error(second.key_at, message, help))
}

pub(crate) fn title(
    what: &str,
    entry: Entry<'_>,
    report: &mut Report<'_>,
) -> Read<Located<Arc<str>>> {
    let text = entry.string(report)?;
    values::title(what, text, report)?;
    Ok(Located { value: text.value.into(), at: text.at })
}

fn subjects(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Vec<Located<Subject>>> {
    all(entry.one_or_more(report)?, |text| subject(text, report))
}

pub(crate) fn subject(text: Located<&str>, report: &mut Report<'_>) -> Read<Located<Subject>> {
    match text.value.parse() {
        Ok(value) => Ok(Located { value, at: text.at }),
        Err(error) => {
            let (cause, help) = words::subject_error(text.value, &error);
            Err(report.error(text.at, cause, help))
        }
    }
}

pub(crate) fn numbers<P: FromStr<Err = PortRuleError>>(
    text: Located<&str>,
    report: &mut Report<'_>,
) -> Read<P> {
    text.value.parse().map_err(|error| {
        let (cause, help) = words::port_error(text.value, &error);
        report.error(text.at, cause, help)
    })
}

fn requests(
    action: Action,
    entry: Entry<'_>,
    providers: &mut Vec<(Name, At)>,
    report: &mut Report<'_>,
) -> Read<Vec<RequestMatch>> {
    let kind = kind_of(action);
    let tables = entry.tables(Context::Element("http", kind), HTTP, report)?;
    all(&tables, |table| {
        if table.is_empty() {
            let help = "name a method or a path; to match every request leave `http` out";
            return Err(report.error(
                table.at,
                "an empty entry of `http` matches every request",
                help,
            ));
        }
        let method = table.optional("method", |entry| {
            let text = entry.string(report)?;
            values::method(text, report).map(|()| Arc::from(text.value))
        });
        let path = table.optional("path", |entry| template(entry, report));
        let headers = table.optional("header", |entry| route::field_matches(entry, true, report));
        let query = table.optional("query", |entry| route::field_matches(entry, false, report));
        let hosts = table
            .optional("host", |entry| all(entry.one_or_more(report)?, |text| host(text, report)));
        let jwt = table.optional("jwt", |entry| jwt::matching(entry, kind, report));
        let when = table.optional("when", |entry| fields::condition(entry.string(report)?, report));
        let (path, path_regex) = path?.unwrap_or_default();
        let jwt = jwt?.map(|(jwt, at)| {
            providers.push((jwt.provider.name.clone(), at));
            jwt
        });
        Ok(RequestMatch {
            method: method?,
            path,
            path_regex,
            hosts: hosts?.unwrap_or_default(),
            headers: headers?.unwrap_or_default(),
            query: query?.unwrap_or_default(),
            jwt,
            when: when?,
        })
    })
}

/// A template, or what routes write: that is brought into a template, unless it is an expression.
fn template(
    entry: Entry<'_>,
    report: &mut Report<'_>,
) -> Read<(Option<Arc<str>>, Option<Pattern>)> {
    if let Some(text) = entry.text() {
        values::template(text, report)?;
        return Ok((Some(text.value.into()), None));
    }
    Ok(match route::path(entry, report)? {
        PathMatch::Exact(path) => (Some(path), None),
        PathMatch::Prefix(path) => {
            (Some(format!("{}/**", path.trim_end_matches('/')).into()), None)
        }
        PathMatch::Regex(pattern) => (None, Some(pattern)),
    })
}

pub(crate) fn kind_of(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    }
}

fn audit(action: Action, entry: Entry<'_>, report: &mut Report<'_>) -> Read<bool> {
    let audit = entry.boolean(report)?;
    match action {
        Action::Deny => Ok(audit),
        Action::Allow => {
            let help = "remove it: only a [[deny]] can log instead of refusing; for the whole mesh write `audit = true` in [policy]";
            Err(report.error(entry.key_at, "an [[allow]] has nothing to audit", help))
        }
    }
}
