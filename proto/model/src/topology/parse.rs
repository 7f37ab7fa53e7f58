//! All tables of all files, gathered into a draft.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::check::{self, ports};
use super::decl::{Diagnostic, MeshDecl, SourceFile, TestDecl, Topology};
use super::draft::{Declared, Draft};
use super::read::{
    self, At, Context, Located, Read, Report, Reported, Schema, Table, clip, instead,
};
use super::tables::policy::{PolicyDraft, RuleDraft};
use super::tables::service::ServiceDraft;
use super::tables::test::TestDraft;
use super::tables::{
    device, edge, host, jwt, mesh, policy, ratelimit, rollout, route, service, test,
};
use super::values;
use crate::jwt::JwtProvider;
use crate::name::Name;
use crate::rules::{Action, Rule, Rules};

const MOST_BYTES: usize = 8 << 20;
const MOST_DECLARATIONS: usize = 65_536;
const MOST_RULES: usize = 100_000;
const MOST_ROUTES: usize = 20_000;

/// What stands at the top of a file, each with an example.
pub(super) const TOP: Schema = &[
    ("mesh", "[mesh]"),
    ("policy", "[policy]"),
    ("host", "[host.app-1]"),
    ("service", "[service.web]"),
    ("device", "[device.press]"),
    ("gateway", "[gateway.public]"),
    ("external", "[external.payments]"),
    ("jwt", "[jwt.login]"),
    ("allow", "[[allow]]"),
    ("deny", "[[deny]]"),
    ("route", "[[route.web]]"),
    ("rollout", "[rollout.web]"),
    ("ratelimit", "[ratelimit.web]"),
    ("test", "[[test]]"),
];

/// Reads files as one topology.
///
/// # Errors
///
/// Everything that is wrong with it, in the order of the files (at most 100 things).
pub fn parse(files: &[SourceFile]) -> Result<Topology, Vec<Diagnostic>> {
    let mut report = Report::new(files);
    if too_large(files, &mut report) {
        return Err(report.finish());
    }
    let mut draft = Draft::default();
    let mut complete = true;
    for (index, file) in files.iter().enumerate() {
        match read::read(index, &file.text, &mut report) {
            Ok(tree) => draft.read_file(index, &tree, &mut report),
            Err(_) => complete = false,
        }
    }
    // Without a file's declarations every name that it declares would seem to dangle.
    if complete {
        check::check(&draft, &mut report);
    }
    match draft.assemble() {
        Ok(topology) if report.is_empty() => Ok(topology),
        Ok(_) | Err(_) => Err(report.finish()),
    }
}

fn too_large(files: &[SourceFile], report: &mut Report<'_>) -> bool {
    let mut total = 0_usize;
    for (index, file) in files.iter().enumerate() {
        total = total.saturating_add(file.text.len());
        if total > MOST_BYTES {
            let message = format!("the topology has more than {} MiB", MOST_BYTES >> 20);
            report.error(
                At::new(index, 0..0),
                message,
                "name namespaces or labels in rules rather than each service",
            );
            return true;
        }
    }
    false
}

impl Draft {
    fn read_file(&mut self, file: usize, tree: &DeTable<'_>, report: &mut Report<'_>) {
        let mut rules = Vec::new();
        for (key, value) in tree {
            let word: &str = key.get_ref();
            let header = At::new(file, key.span());
            let at = At::new(file, value.span());
            match word {
                "mesh" => self.read_mesh(at, value.get_ref(), report),
                "policy" => self.read_policy(at, value.get_ref(), report),
                "host" | "service" | "device" | "gateway" | "external" | "jwt" | "rollout"
                | "ratelimit" => {
                    self.read_named(file, word, Located { value: value.get_ref(), at }, report);
                }
                "allow" => rules.extend(
                    elements(file, "allow", value, report).map(|rule| (Action::Allow, rule)),
                ),
                "deny" => rules
                    .extend(elements(file, "deny", value, report).map(|rule| (Action::Deny, rule))),
                "route" => self.read_routes(file, at, value.get_ref(), report),
                "test" => self.read_tests(elements(file, "test", value, report), report),
                _ => unknown(word, header, value.get_ref(), report),
            }
        }
        rules.sort_by_key(|(_, rule)| rule.at);
        self.read_rules(rules, report);
    }

    /// The topology, if every table of it is right.
    fn assemble(self) -> Read<Topology> {
        let rules = match self.policy {
            Some(policy) => policy.draft.ok_or(Reported)?,
            None => PolicyDraft { default: Action::Deny, audit: false, audited: Vec::new() },
        };
        let services = self.services;
        let test = |draft: TestDraft| TestDecl {
            layer4: ports::resolve_test(&draft, &services),
            ..draft.decl
        };
        let tests = self.tests.into_iter().map(test).collect();
        Ok(Topology {
            mesh: match self.mesh {
                Some(mesh) => mesh.draft.ok_or(Reported)?,
                None => MeshDecl::default(),
            },
            hosts: unwrap(self.hosts, |host| host.decl)?,
            devices: unwrap(self.devices, |device| device.decl)?,
            rules: Rules {
                default: rules.default,
                audit: rules.audit,
                audited: rules.audited.into_iter().map(|it| it.value).collect(),
                rules: complete(self.rules, &self.jwt, &services)?,
            },
            routes: self.routes.into_iter().map(|draft| draft.route).collect(),
            rollouts: unwrap(self.rollouts, |rollout| rollout.decl)?,
            ratelimits: unwrap(self.ratelimits, |ratelimit| ratelimit.limit)?,
            tests,
            services: unwrap(services, |service| service.decl)?,
        })
    }

    fn read_mesh(&mut self, at: At, value: &DeValue<'_>, report: &mut Report<'_>) {
        if let Some(first) = &self.mesh {
            return twice("[mesh]", first.at, at, report);
        }
        let draft = single("mesh", at, value, mesh::SCHEMA, report);
        let draft = draft.and_then(|table| mesh::read(&table, report)).ok();
        self.mesh = Some(Declared { at, draft });
    }

    fn read_policy(&mut self, at: At, value: &DeValue<'_>, report: &mut Report<'_>) {
        if let Some(first) = &self.policy {
            return twice("[policy]", first.at, at, report);
        }
        let draft = single("policy", at, value, policy::POLICY, report);
        let draft = draft.and_then(|table| policy::policy(&table, report)).ok();
        self.policy = Some(Declared { at, draft });
    }

    /// `[host.*]`, `[service.*]`, `[device.*]`, `[gateway.*]`, `[external.*]`, `[jwt.*]`,
    /// `[rollout.*]` or `[ratelimit.*]`.
    fn read_named(
        &mut self,
        file: usize,
        kind: &str,
        value: Located<&DeValue<'_>>,
        report: &mut Report<'_>,
    ) {
        let Some(tables) = value.value.as_table() else {
            let message = format!("`{kind}` must be tables with names");
            report.error(value.at, message, format!("write `{}`", example(kind)));
            return;
        };
        for (key, value) in tables {
            if report.is_full() {
                return;
            }
            let name = Located { value: &**key.get_ref(), at: At::new(file, key.span()) };
            let value = Located { value: value.get_ref(), at: At::new(file, value.span()) };
            match kind {
                "ratelimit" | "rollout" | "jwt" => {
                    self.read_rule_of_requests(kind, name, value, report)
                }
                _ => self.read_party(kind, name, value, report),
            }
        }
    }

    /// `[host.*]`, `[service.*]`, `[gateway.*]`, `[external.*]` or `[device.*]`.
    fn read_party(
        &mut self,
        kind: &str,
        name: Located<&str>,
        value: Located<&DeValue<'_>>,
        report: &mut Report<'_>,
    ) {
        match kind {
            "host" => named(
                "host",
                host::HOST,
                name,
                value,
                &mut self.hosts,
                report,
                |_, table, report| host::host(table, report),
            ),
            "service" => named(
                "service",
                service::SERVICE,
                name,
                value,
                &mut self.services,
                report,
                service::service,
            ),
            "gateway" => named(
                "gateway",
                edge::GATEWAY,
                name,
                value,
                &mut self.services,
                report,
                edge::gateway,
            ),
            "external" => named(
                "external",
                edge::EXTERNAL,
                name,
                value,
                &mut self.services,
                report,
                |_, table, report| edge::external(table, report),
            ),
            _ => named(
                "device",
                device::DEVICE,
                name,
                value,
                &mut self.devices,
                report,
                device::device,
            ),
        }
    }

    /// `[ratelimit.*]`, `[rollout.*]` or `[jwt.*]`.
    fn read_rule_of_requests(
        &mut self,
        kind: &str,
        name: Located<&str>,
        value: Located<&DeValue<'_>>,
        report: &mut Report<'_>,
    ) {
        match kind {
            "ratelimit" => named(
                "ratelimit",
                ratelimit::RATELIMIT,
                name,
                value,
                &mut self.ratelimits,
                report,
                ratelimit::ratelimit,
            ),
            "rollout" => named(
                "rollout",
                rollout::ROLLOUT,
                name,
                value,
                &mut self.rollouts,
                report,
                rollout::rollout,
            ),
            _ => {
                named("jwt", jwt::JWT, name, value, &mut self.jwt, report, jwt::provider);
            }
        }
    }

    fn read_rules(&mut self, rules: Vec<(Action, Element<'_>)>, report: &mut Report<'_>) {
        for (action, element) in rules {
            if report.is_full() {
                return;
            }
            if self.rules.len() == MOST_RULES {
                return too_many("rules", MOST_RULES, element.at, report);
            }
            let context = Context::Item(policy::kind_of(action));
            let table = Table::new(context, element.at, element.items, policy::RULE, report);
            self.rules.extend(policy::rule(action, &table, report));
        }
    }

    /// `[[route.*]]`: a list for each service.
    fn read_routes(&mut self, file: usize, at: At, value: &DeValue<'_>, report: &mut Report<'_>) {
        let Some(services) = value.as_table() else {
            let help = format!("write `{}`, with the service's name", example("route"));
            report.error(at, "`route` must name a service", help);
            return;
        };
        let mut routes = Vec::new();
        for (key, list) in services {
            let word: &str = key.get_ref();
            let written = Located { value: word, at: At::new(file, key.span()) };
            let Ok(name) = values::name(written, report) else { continue };
            let name = Located { value: name, at: written.at };
            for element in elements(file, "route", list, report) {
                routes.push((word, name.clone(), element));
            }
        }
        // In the order in which they stand, whichever service they are of.
        routes.sort_by_key(|(.., element)| element.at);
        for (word, name, element) in routes {
            if report.is_full() {
                return;
            }
            if self.routes.len() == MOST_ROUTES {
                return too_many("routes", MOST_ROUTES, element.at, report);
            }
            let context = Context::NamedItem("route", word);
            let table = Table::new(context, element.at, element.items, route::ROUTE, report);
            let count = self.route_counts.entry(name.value.clone()).or_default();
            *count += 1;
            self.routes.extend(route::route(&name, *count, &table, report));
        }
    }

    fn read_tests<'a>(
        &mut self,
        tests: impl Iterator<Item = Element<'a>>,
        report: &mut Report<'_>,
    ) {
        for element in tests {
            if report.is_full() {
                return;
            }
            if self.tests.len() == MOST_RULES {
                return too_many("tests", MOST_RULES, element.at, report);
            }
            let table =
                Table::new(Context::Item("test"), element.at, element.items, test::TEST, report);
            self.tests.extend(test::test(&table, report));
        }
    }
}

/// The rules, and in them whose tokens they ask for.
fn complete(
    drafts: Vec<RuleDraft>,
    providers: &BTreeMap<Name, Declared<Arc<JwtProvider>>>,
    services: &BTreeMap<Name, Declared<ServiceDraft>>,
) -> Read<Vec<Rule>> {
    let complete = |draft: RuleDraft| {
        let ports = ports::resolve_rule(&draft, services);
        let mut rule = Rule { ports, ..draft.rule };
        for jwt in rule.http.iter_mut().filter_map(|entry| entry.jwt.as_mut()) {
            let found = providers.get(&jwt.provider.name).and_then(|it| it.draft.as_ref());
            jwt.provider = Arc::clone(found.ok_or(Reported)?);
        }
        Ok(rule)
    };
    drafts.into_iter().map(complete).collect()
}

/// One `[[allow]]`, `[[deny]]` or `[[test]]`.
#[derive(Debug)]
struct Element<'a> {
    at: At,
    items: &'a DeTable<'a>,
}

fn elements<'a>(
    file: usize,
    kind: &str,
    value: &'a Spanned<DeValue<'a>>,
    report: &mut Report<'_>,
) -> impl Iterator<Item = Element<'a>> + use<'a> {
    let mut elements = Vec::new();
    let list = value.get_ref().as_array();
    if list.is_none() {
        wrong_brackets(kind, At::new(file, value.span()), report);
    }
    for element in list.into_iter().flat_map(|list| list.iter()) {
        let at = At::new(file, element.span());
        match element.get_ref().as_table() {
            Some(items) => elements.push(Element { at, items }),
            None => wrong_brackets(kind, at, report),
        }
    }
    elements.into_iter()
}

fn wrong_brackets(kind: &str, at: At, report: &mut Report<'_>) {
    let message = format!("`{kind}` must be a list of tables");
    report.error(at, message, format!("write `{}`, with two brackets on each side", example(kind)));
}

fn single<'a>(
    name: &'static str,
    at: At,
    value: &'a DeValue<'a>,
    schema: Schema,
    report: &mut Report<'_>,
) -> Read<Table<'a>> {
    match value.as_table() {
        Some(items) => Ok(Table::new(Context::Plain(name), at, items, schema, report)),
        None => {
            let message = format!("`{name}` must be a table");
            Err(report.error(
                at,
                message,
                format!("write `{}` on a line of its own", example(name)),
            ))
        }
    }
}

fn named<'a, D>(
    kind: &'static str,
    schema: Schema,
    key: Located<&'a str>,
    value: Located<&'a DeValue<'a>>,
    declared: &mut BTreeMap<Name, Declared<D>>,
    report: &mut Report<'_>,
    read: impl FnOnce(&'a str, &Table<'a>, &mut Report<'_>) -> Read<D>,
) {
    let name = values::name(key, report);
    let Some(items) = value.value.as_table() else {
        let message = format!("`{}` of `{kind}` must be a table", clip(key.value));
        let help = match schema.iter().find(|(known, _)| *known == key.value) {
            Some((_, example)) => format!("write `[{kind}.NAME]`, and `{example}` below it"),
            None => format!("write `[{kind}.NAME]` on a line of its own"),
        };
        report.error(value.at, message, help);
        return;
    };
    let table = Table::new(Context::Named(kind, key.value), value.at, items, schema, report);
    let draft = read(key.value, &table, report).ok();
    let Ok(name) = name else { return };
    if let Some(first) = declared.get(&name) {
        return twice(&format!("{kind} {:?}", name.as_str()), first.at, key.at, report);
    }
    if declared.len() == MOST_DECLARATIONS {
        return too_many(&format!("{kind}s"), MOST_DECLARATIONS, key.at, report);
    }
    declared.insert(name, Declared { at: key.at, draft });
}

fn unwrap<D, T>(
    declared: BTreeMap<Name, Declared<D>>,
    decl: impl Fn(D) -> T,
) -> Read<BTreeMap<Name, T>> {
    let pairs = declared.into_iter();
    pairs.map(|(name, declared)| Ok((name, decl(declared.draft.ok_or(Reported)?)))).collect()
}

fn twice(what: &str, first: At, second: At, report: &mut Report<'_>) {
    let first = report.origin(first);
    let message = format!("{what} is already declared at {first}");
    report.error(second, message, "keep one of the two");
}

fn too_many(what: &str, most: usize, at: At, report: &mut Report<'_>) {
    let message = format!("there are more than {most} {what}");
    report.error(at, message, "split the mesh, or name namespaces rather than each service");
}

fn unknown(word: &str, at: At, value: &DeValue<'_>, report: &mut Report<'_>) {
    let table = value.is_table()
        || value
            .as_array()
            .is_some_and(|list| list.iter().any(|element| element.get_ref().is_table()));
    let what = if table { "table" } else { "key" };
    let known = TOP.iter().map(|(known, _)| *known);
    let help = instead(word, known, "a topology consists of the tables");
    report.error(at, format!("unknown {what} `{}`", clip(word)), help);
}

fn example(kind: &str) -> &'static str {
    TOP.iter().find(|(known, _)| *known == kind).map_or("", |(_, example)| example)
}
