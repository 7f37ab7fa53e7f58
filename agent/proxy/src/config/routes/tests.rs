//! Route matching, as tables of cases.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use isthmus_model::route::{HostMatch, PathMatch};
use isthmus_model::topology::{SourceFile, Topology, parse};
use isthmus_policy::fields::{Readings, header_fits};
use proptest::prelude::*;

use super::{Asked, Compiled, Table};

/// `METHOD host path?query name=value…`, and the route it takes.
type Case = (&'static str, &'static str);

#[test]
fn the_more_specific_path_wins() {
    let routes = r#"
[[route.web]]
name = "root"
[[route.web]]
name = "prefix-a"
match = { path = { prefix = "/a" } }
[[route.web]]
name = "prefix-ab"
match = { path = { prefix = "/a/b" } }
[[route.web]]
name = "exact-ab"
match = { path = "/a/b" }
[[route.web]]
name = "exact-slash"
match = { path = "/a/b/" }
[[route.web]]
name = "regex"
match = { path = { regex = "/a/[0-9]+" } }
[[route.web]]
name = "longer-regex"
match = { path = { regex = "/a/[0-9]+|/a/7/.*" } }
[[route.web]]
name = "trailing"
match = { path = { prefix = "/t/" } }
"#;
    check(
        routes,
        &[
            ("GET h /", "root"),
            ("GET h /b", "root"),
            ("GET h /ab", "root"),
            ("GET h /a", "prefix-a"),
            ("GET h /a/", "prefix-a"),
            ("GET h /a?b=/a/b", "prefix-a"),
            ("GET h /a/c", "prefix-a"),
            ("GET h /a/bc", "prefix-a"),
            ("GET h /a/b", "exact-ab"),
            ("GET h /a/b/", "exact-slash"),
            ("GET h /a/b/c", "prefix-ab"),
            ("GET h /a/b/c/d/e", "prefix-ab"),
            ("GET h /a/12", "longer-regex"),
            ("GET h /a/7/x", "longer-regex"),
            ("GET h /a/12/x", "prefix-a"),
            ("GET h /a/x12", "prefix-a"),
            ("GET h /A/b", "root"),
            ("GET h /t", "trailing"),
            ("GET h /t/", "trailing"),
            ("GET h /tt", "root"),
            ("OPTIONS h *", "root"),
        ],
    );
}

#[test]
fn after_the_path_method_then_headers_then_parameters_then_order_decide() {
    let routes = r#"
[[route.web]]
name = "plain"
match = { path = { prefix = "/a" } }
[[route.web]]
name = "one-parameter"
match = { path = { prefix = "/a" }, query = { p = "1" } }
[[route.web]]
name = "two-parameters"
match = { path = { prefix = "/a" }, query = { p = "1", q = "1" } }
[[route.web]]
name = "one-header"
match = { path = { prefix = "/a" }, header = { x = "1" } }
[[route.web]]
name = "two-headers"
match = { path = { prefix = "/a" }, header = { x = "1", y = "1" } }
[[route.web]]
name = "method"
match = { path = { prefix = "/a" }, method = "PUT" }
[[route.web]]
name = "method-and-header"
match = { path = { prefix = "/a" }, method = "PUT", header = { x = "1" } }
[[route.web]]
name = "same-as-one-header"
match = { path = { prefix = "/a" }, header = { z = "1" } }
[[route.web]]
name = "elsewhere"
match = { method = "PUT", header = { x = "1", y = "1", z = "1" } }
"#;
    check(
        routes,
        &[
            ("GET h /a", "plain"),
            ("GET h /a?p=1", "one-parameter"),
            ("GET h /a?q=1", "plain"),
            ("GET h /a?q=1&p=1", "two-parameters"),
            ("GET h /a?p=2", "plain"),
            ("GET h /a x=1", "one-header"),
            ("GET h /a z=1", "same-as-one-header"),
            ("GET h /a x=1 z=1", "one-header"),
            ("GET h /a x=1 y=1", "two-headers"),
            ("GET h /a?p=1&q=1 x=1", "one-header"),
            ("PUT h /a", "method"),
            ("PUT h /a x=1", "method-and-header"),
            ("PUT h /a x=1 y=1", "method-and-header"),
            ("PUT h /a y=1 z=1", "method"),
            ("PUT h /a x=1 y=1 z=1", "method-and-header"),
            ("PUT h /b x=1 y=1 z=1", "elsewhere"),
            ("GET h /b x=1 y=1 z=1", "-"),
            ("POST h /a x=1", "one-header"),
        ],
    );
}

#[test]
fn the_more_specific_host_wins_over_any_path() {
    let routes = r#"
[[route.web]]
name = "any"
match = { path = "/exact" }
[[route.web]]
name = "wide"
match = { host = "*.example.com" }
[[route.web]]
name = "narrow"
match = { host = "*.b.example.com", path = { prefix = "/p" } }
[[route.web]]
name = "exact"
match = { host = ["a.b.example.com", "other.example"], path = { prefix = "/p/q" } }
"#;
    check(
        routes,
        &[
            ("GET a.b.example.com /p/q", "exact"),
            ("GET other.example /p/q/r", "exact"),
            ("GET a.b.example.com /p/x", "narrow"),
            ("GET a.b.example.com /", "wide"),
            ("GET c.b.example.com /p/q", "narrow"),
            ("GET x.y.b.example.com /p", "narrow"),
            ("GET b.example.com /p", "wide"),
            ("GET example.com /", "-"),
            ("GET example.com /exact", "any"),
            ("GET a.b.example.com /exact", "wide"),
            ("GET other.example /", "-"),
            ("GET notexample.com /exact", "any"),
        ],
    );
}

#[test]
fn values_are_compared_whole() {
    let routes = r#"
[[route.web]]
name = "number"
match = { header = { n = { regex = "[0-9]+" } } }
[[route.web]]
name = "list"
match = { header = { l = "a, b" } }
[[route.web]]
name = "either"
match = [{ header = { e = "1" } }, { query = { e = "2" } }]
[[route.web]]
name = "decoded"
match = { query = { "a b" = "c&d" } }
[[route.web]]
name = "empty"
match = { query = { flag = "" } }
"#;
    check(
        routes,
        &[
            ("GET h / n=12", "number"),
            ("GET h / N=12", "number"),
            ("GET h / n=12x", "-"),
            ("GET h / n=", "-"),
            ("GET h / l=a l=b", "list"),
            ("GET h / l=a", "-"),
            ("GET h / l=b l=a", "-"),
            ("GET h / e=1", "either"),
            ("GET h /?e=2", "either"),
            ("GET h /?e=1", "-"),
            ("GET h /?e=1&e=2", "-"),
            ("GET h /?e=2&e=1", "either"),
            ("GET h /?a+b=c%26d", "decoded"),
            ("GET h /?a%20b=c%26d", "decoded"),
            ("GET h /?a+b=c&d", "-"),
            ("GET h /?flag", "empty"),
            ("GET h /?flag=", "empty"),
            ("GET h /?flag=1", "-"),
            ("GET h /?flags", "-"),
        ],
    );
}

#[test]
fn each_of_ten_thousand_routes_is_found() {
    let many: String = (0..10_000)
        .map(|number| {
            format!("[[route.web]]\nmatch = {{ path = {{ prefix = \"/s{number}/x\" }} }}\n")
        })
        .collect();
    let table = table(&many);
    let headers = HeaderMap::new();
    let asked = |path| Asked { method: "GET", host: "h", path, query: None, headers: &headers };
    assert_eq!(&*table.choose(&asked("/s0/x/y")).unwrap().route.name, "web-1");
    assert_eq!(&*table.choose(&asked("/s9999/x/y/z")).unwrap().route.name, "web-10000");
    assert!(table.choose(&asked("/s9999")).is_none());
}

#[track_caller]
fn check(routes: &str, cases: &[Case]) {
    let table = table(routes);
    let wrong: Vec<String> = cases
        .iter()
        .map(|(request, wanted)| (request, wanted, taken(&table, request)))
        .filter(|(_, wanted, got)| *wanted != got)
        .map(|(request, wanted, got)| format!("{request}: {got}, not {wanted}"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn taken(table: &Table, request: &str) -> String {
    let mut words = request.split(' ');
    let (method, host) = (words.next().unwrap(), words.next().unwrap());
    let target = words.next().unwrap();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let mut headers = HeaderMap::new();
    for field in words {
        let (name, value) = field.split_once('=').unwrap();
        let name = HeaderName::try_from(name).unwrap();
        headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    let chosen = table.choose(&Asked { method, host, path, query, headers: &headers });
    chosen.map_or_else(|| "-".to_owned(), |chosen| chosen.route.name.to_string())
}

fn parsed(routes: &str) -> Topology {
    let base = "[host.a]\n[service.web]\nport = 80\nprotocol = \"http\"\nhosts = [\"a\"]\n";
    let file = SourceFile { name: "mesh.toml".into(), text: format!("{base}{routes}") };
    parse(&[file]).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

fn table(routes: &str) -> Table {
    let topology = parsed(routes);
    let mut table = Table::default();
    for route in &topology.routes {
        table.add(&Arc::new(Compiled::new(route, &HashMap::new())), &route.matches);
    }
    table.finish();
    table
}

#[test]
fn routes_of_one_path_are_found_by_a_field_and_expressions_by_their_begin() {
    let tenants: String = (0..10_000)
        .map(|number| {
            format!(
                "[[route.web]]\nname = \"t{number}\"\n\
                 match = {{ path = {{ prefix = \"/t\" }}, header = {{ tenant = \"{number}\" }} }}\n\
                 [[route.web]]\nname = \"e{number}\"\n\
                 match = {{ path = {{ regex = \"/e{number}/[0-9]+\" }} }}\n"
            )
        })
        .collect();
    let table = table(&tenants);
    let mut headers = HeaderMap::new();
    headers.append("tenant", HeaderValue::from_static("9999"));
    let asked = |path| Asked { method: "GET", host: "h", path, query: None, headers: &headers };
    let taken = |path| table.choose(&asked(path)).map(|it| it.route.name.to_string());
    assert_eq!(taken("/t/x"), Some("t9999".to_owned()));
    assert_eq!(taken("/e9999/7"), Some("e9999".to_owned()));
    assert_eq!(taken("/e9999/x"), None);
    assert_eq!(table.candidates(&asked("/t/x")), 1);
    // What begins with `/e`, `/e9`, `/e99`… doesn't go on with a slash.
    assert_eq!(table.candidates(&asked("/e9999/7")), 1);
    assert_eq!(table.candidates(&asked("/other")), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_index_takes_the_route_that_a_search_through_all_takes(
        matches in prop::collection::vec(a_match(), 1..60),
        host in prop::sample::select(HOSTS),
        path in prop::sample::select(PATHS),
        method in prop::sample::select(vec!["GET", "POST"]),
        fields in prop::collection::vec(("[xy]", "[12]"), 0..4),
        query in prop::option::of("[pq]=[12]"),
    ) {
        let routes: String = matches
            .iter()
            .map(|it| format!("[[route.web]]\nmatch = {{ {it} }}\n"))
            .collect();
        let mut headers = HeaderMap::new();
        for (name, value) in &fields {
            let name = HeaderName::try_from(name.as_str()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let asked = Asked { method, host, path, query: query.as_deref(), headers: &headers };
        let taken = table(&routes).choose(&asked).map(|it| it.route.name.to_string());
        prop_assert_eq!(taken, searched(&routes, &asked), "{}", routes);
    }
}

const HOSTS: &[&str] = &["a.example", "b.a.example", "c.b.a.example", "example", ".example", ""];
const PATHS: &[&str] =
    &["/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/ab", "/b/a", "/a/b/c/d/e/f/g", "*"];

fn a_match() -> impl Strategy<Value = String> {
    let host = prop::sample::select(vec![
        "",
        "",
        "host = \"a.example\"",
        "host = \"*.example\"",
        "host = \"*.a.example\"",
        "host = [\"*.b.a.example\", \"example\"]",
    ]);
    let path = prop::sample::select(vec![
        "",
        "path = \"/a\"",
        "path = \"/a/b/\"",
        "path = { prefix = \"/\" }",
        "path = { prefix = \"/a\" }",
        "path = { prefix = \"/a/b\" }",
        "path = { regex = \"/a/.*\" }",
        "path = { regex = \"/a(/b)*\" }",
        "path = { regex = \".*b\" }",
    ]);
    let method = prop::sample::select(vec!["", "", "method = \"GET\"", "method = \"POST\""]);
    let header = prop::sample::select(vec![
        "",
        "header = { x = \"1\" }",
        "header = { x = \"2\" }",
        "header = { y = \"1\" }",
        "header = { x = \"1, 2\" }",
        "header = { x = \"1\", y = \"2\" }",
        "header = { y = { regex = \"[0-9]\" }, x = \"1\" }",
        "header = { y = true }",
    ]);
    let query = prop::sample::select(vec!["", "", "query = { p = \"1\" }"]);
    (host, path, method, header, query).prop_map(|(host, path, method, header, query)| {
        let parts = [host, path, method, header, query];
        let said = parts.into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join(", ");
        if said.is_empty() { "path = { prefix = \"/\" }".to_owned() } else { said }
    })
}

/// Slow, simple, and written apart from the index: of all that fits, what ranks first.
fn searched(routes: &str, asked: &Asked<'_>) -> Option<String> {
    let topology = parsed(routes);
    let mut fitting = Vec::new();
    for (order, route) in topology.routes.iter().enumerate() {
        let wanted = &route.matches[0];
        let hosts = wanted.hosts.iter().filter(|it| it.fits(asked.host)).map(|it| match it {
            HostMatch::Exact(_) => (0, 0),
            HostMatch::Suffix(suffix) => (1, usize::MAX - suffix.len()),
        });
        let host = if wanted.hosts.is_empty() { Some((2, 0)) } else { hosts.min() };
        let path = match &wanted.path {
            None => Some((2, usize::MAX - 1)),
            Some(PathMatch::Exact(path)) => (**path == *asked.path).then_some((0, 0)),
            Some(PathMatch::Regex(pattern)) => {
                pattern.fits(asked.path).then(|| (1, usize::MAX - pattern.as_str().len()))
            }
            Some(PathMatch::Prefix(prefix)) => {
                let rest = asked.path.strip_prefix(prefix.trim_end_matches('/'));
                let is_whole = rest.is_some_and(|it| it.is_empty() || it.starts_with('/'));
                let is_root = &**prefix == "/";
                (is_whole || is_root).then(|| (2, usize::MAX - prefix.len()))
            }
        };
        let counts = (usize::MAX - wanted.headers.len(), usize::MAX - wanted.query.len());
        let fits = wanted.method.as_deref().is_none_or(|it| it == asked.method)
            && wanted.headers.iter().all(|field| {
                header_fits(field, &crate::config::fields::Lines(asked.headers), Readings::All)
            })
            && wanted.query.iter().all(|_| asked.query == Some("p=1"));
        if let (Some(host), Some(path), true) = (host, path, fits) {
            // Of expressions that are equally long the first one's routes come first.
            let pattern = match &wanted.path {
                Some(PathMatch::Regex(pattern)) => topology.routes.iter().position(|it| {
                    matches!(&it.matches[0].path, Some(PathMatch::Regex(it)) if it == pattern)
                        && it.matches[0].hosts == wanted.hosts
                }),
                Some(PathMatch::Exact(_) | PathMatch::Prefix(_)) | None => None,
            };
            let rank = (host, path, pattern, wanted.method.is_none(), counts, order);
            fitting.push((rank, route.name.to_string()));
        }
    }
    fitting.into_iter().min().map(|(_, name)| name)
}
