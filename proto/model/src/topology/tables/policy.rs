//! `[policy]`, `[[allow]]`, `[[deny]]` and `[[test]]`, each by itself.

use std::str::FromStr;
use std::sync::Arc;

use super::declare::all;
use super::reader::{At, Context, Entry, Located, Read, Report, Schema, Table, quote};
use super::route::host;
use super::{TestDecl, fields, jwt, ports, question, route, values, words};
use crate::condition::Condition;
use crate::name::Name;
use crate::route::{PathMatch, Pattern};
use crate::rules::{Action, Layer4, PortRule, PortRuleError, RequestMatch, Rule, Subject};

pub(super) const POLICY: Schema = &[("default", "default = \"deny\""), ("audit", "audit = true")];

pub(super) const RULE: Schema = &[
    ("name", "name = \"web reads accounts\""),
    ("from", "from = \"service:web\""),
    ("to", "to = \"service:accounts\""),
    ("ports", "ports = [\"tcp/22\"]"),
    ("http", "http = [{ method = \"GET\", path = \"/accounts/*\" }]"),
    ("sni", "sni = [\"shop.example.com\"]"),
    ("when", "when = \"request.method == 'GET'\""),
    ("audit", "audit = true"),
];

pub(super) const TEST: Schema = &[
    ("name", "name = \"web can't reach the ledger\""),
    ("from", "from = \"service:web\""),
    ("to", "to = \"service:ledger\""),
    ("port", "port = \"tcp/22\""),
    ("method", "method = \"GET\""),
    ("path", "path = \"/accounts/1\""),
    ("host", "host = \"api.example.com\""),
    ("header", "header = { x-canary = \"1\" }"),
    ("query", "query = { version = \"2\" }"),
    ("jwt", "jwt = { provider = \"login\", claims = { role = \"admin\" } }"),
    ("expect", "expect = \"deny\""),
];

pub(super) const HTTP: Schema = &[
    ("method", "method = \"GET\""),
    ("path", "path = \"/accounts/*\""),
    ("header", "header = { x-canary = \"1\" }"),
    ("query", "query = { version = \"2\" }"),
    ("host", "host = \"api.example.com\""),
    ("jwt", "jwt = { provider = \"login\", claims = { role = \"admin\" } }"),
    ("when", "when = \"request.method == 'GET'\""),
];

#[derive(Debug)]
pub(super) struct PolicyDraft {
    pub(super) default: Action,
    pub(super) audit: bool,
    /// What goes to these is audited.
    pub(super) audited: Vec<Located<Subject>>,
}

/// A rule, and the places that checks between tables point at.
#[derive(Debug)]
pub(super) struct RuleDraft {
    pub(super) rule: Rule,
    pub(super) name: At,
    pub(super) from: Vec<At>,
    pub(super) to: Vec<At>,
    pub(super) http: At,
    pub(super) sni: At,
    /// Whose tokens it asks for.
    pub(super) providers: Vec<(Name, At)>,
    /// Its `ports` that are names; the others are in the rule.
    pub(super) port_names: Vec<Located<Name>>,
    /// Where its `ports` are, if it looks into what it lets pass, too.
    pub(super) inspected: Option<At>,
}

#[derive(Debug)]
pub(super) struct TestDraft {
    pub(super) decl: TestDecl,
    pub(super) name: At,
    pub(super) from: At,
    pub(super) to: At,
    pub(super) request: At,
    /// Of the provider of its token.
    pub(super) provider: Option<At>,
    /// Its `port`, if that is a name.
    pub(super) port_name: Option<Located<Name>>,
}

pub(super) fn policy(table: &Table<'_>, report: &mut Report<'_>) -> Read<PolicyDraft> {
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

fn action(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Action> {
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

pub(super) fn rule(action: Action, table: &Table<'_>, report: &mut Report<'_>) -> Read<RuleDraft> {
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

/// What makes a rule one about requests.
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

fn title(what: &str, entry: Entry<'_>, report: &mut Report<'_>) -> Read<Located<Arc<str>>> {
    let text = entry.string(report)?;
    values::title(what, text, report)?;
    Ok(Located { value: text.value.into(), at: text.at })
}

fn subjects(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Vec<Located<Subject>>> {
    all(entry.one_or_more(report)?, |text| subject(text, report))
}

fn subject(text: Located<&str>, report: &mut Report<'_>) -> Read<Located<Subject>> {
    match text.value.parse() {
        Ok(value) => Ok(Located { value, at: text.at }),
        Err(error) => {
            let (cause, help) = words::subject_error(text.value, &error);
            Err(report.error(text.at, cause, help))
        }
    }
}

fn numbers<P: FromStr<Err = PortRuleError>>(
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

pub(super) fn kind_of(action: Action) -> &'static str {
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

pub(super) fn test(table: &Table<'_>, report: &mut Report<'_>) -> Read<TestDraft> {
    let name = table.required("name", report).and_then(|entry| title("test", entry, report));
    let from = table.required("from", report).and_then(|entry| one(entry, report));
    let to = table.required("to", report).and_then(|entry| one(entry, report));
    let asked = table.optional("port", |entry| ports::asked(entry, numbers::<Layer4>, report));
    let request = question::request(table, report);
    let expect = table.required("expect", report).and_then(|entry| action(entry, report));
    let (name, from, to) = (name?, from?, to?);
    let (request, provider) = request?.unzip();
    let (layer4, port_name) = asked?.unwrap_or_default();
    let decl = TestDecl {
        name: name.value,
        from: from.value,
        to: to.value,
        layer4,
        request,
        expect: expect?,
        origin: report.origin(table.at),
    };
    let request =
        table.get("path").or_else(|| table.get("method")).map_or(table.at, |entry| entry.key_at);
    let provider = provider.flatten();
    Ok(TestDraft { decl, name: name.at, from: from.at, to: to.at, request, provider, port_name })
}

/// One service, host or device: a test asks about a single flow.
fn one(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Located<Subject>> {
    let subject = subject(entry.string(report)?, report)?;
    match subject.value {
        Subject::Service(_) | Subject::Host(_) | Subject::Device(_) => Ok(subject),
        Subject::Any
        | Subject::AnyService
        | Subject::Namespace(_)
        | Subject::AnyHost
        | Subject::AnyDevice => {
            let message =
                format!("a test can't ask about \"{}\": it is more than one", subject.value);
            let help = "name one, such as \"service:web\", \"host:app-1\" or \"device:press\"";
            Err(report.error(subject.at, message, help))
        }
    }
}
