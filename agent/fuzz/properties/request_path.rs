//! Request paths: one form for each, and one verdict for all ways to write it.

use std::sync::LazyLock;

use isthmus_model::topology::{SourceFile, Topology, parse};
use isthmus_model::{Identity, Layer4, PathMode};
use isthmus_policy::path::{canonical, forwarded};
use isthmus_policy::{BuiltIn, DecidedBy, Outcome, Policy, Query, Request};

/// `input` is the path of a request. Says whether it has one meaning.
pub(crate) fn hold(input: &[u8]) -> bool {
    let Ok(path) = std::str::from_utf8(input) else { return false };
    PathMode::ALL.into_iter().for_each(|mode| is_passed_on_as_judged(mode, path));
    let form = canonical(path);
    match &form {
        Ok(form) => {
            is_canonical(form);
            means_the_same(path, form);
            assert_eq!(outcomes(path), outcomes(form), "{path:?} and {form:?} are judged apart");
        }
        Err(_) => is_refused(path),
    }
    form.is_ok()
}

/// What a mode passes on has one meaning, is passed on as it is when it comes again, and is judged as
/// what came.
fn is_passed_on_as_judged(mode: PathMode, path: &str) {
    let Ok(passed) = forwarded(mode, path) else { return };
    assert_eq!(forwarded(mode, &passed).as_deref(), Ok(&*passed), "{path:?} by {mode}");
    if mode == PathMode::AsIs {
        assert_eq!(passed, path);
        return;
    }
    is_canonical(&canonical(&passed).expect("what is passed on has one meaning"));
    let judges = &JUDGES;
    let (came, went) = (judges.outcomes(mode, path), judges.outcomes(mode, &passed));
    assert_eq!(came, went, "{path:?} and {passed:?} by {mode} are judged apart");
    // The service's mode doesn't matter to what the proxy has brought into shape.
    assert_eq!(judges.outcomes(PathMode::Strict, &passed), went, "{passed:?} by {mode}");
}

fn is_canonical(form: &str) {
    assert_eq!(canonical(form).as_deref(), Ok(form), "a canonical form is its own");
    assert!(form.bytes().all(|byte| byte.is_ascii_graphic()), "{form:?}");
    assert!(!form.contains(['?', '#', ';', '\\']), "{form:?}");
    let inner = form.strip_prefix('/').expect("it begins with a slash");
    let mut segments = inner.split('/').filter(|_| !inner.is_empty());
    assert!(segments.all(|segment| !matches!(segment, "" | "." | "..")), "{form:?}");
    assert_eq!(unquote(&unquote(form.as_bytes())), unquote(form.as_bytes()), "encoded twice");
}

/// What a program reads that decodes a path is what it reads from its canonical form.
fn means_the_same(path: &str, form: &str) {
    let path = if path.len() > 1 { path.strip_suffix('/').unwrap_or(path) } else { path };
    assert_eq!(unquote(path.as_bytes()), unquote(form.as_bytes()));
    assert_eq!(path.matches('/').count(), form.matches('/').count());
}

/// Decodes once, as programs do.
fn unquote(path: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut rest = path;
    let mut decoded = Vec::new();
    while let [first, tail @ ..] = rest {
        (rest, _) = match tail {
            [high, low, tail @ ..] if *first == b'%' => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (tail, decoded.push(high << 4 | low)),
                (None, _) | (_, None) => (&rest[1..], decoded.push(*first)),
            },
            [..] => (tail, decoded.push(*first)),
        };
    }
    decoded
}

/// One policy for each mode.
struct Judges {
    policies: Vec<(PathMode, Policy)>,
    from: Identity,
    to: Identity,
}

/// Rules about paths of every shape.
const MESH: &str = r#"
[host.a]
[service.client]
port = 1
hosts = ["a"]
workload = { user = "1" }
[service.web]
port = 80
protocol = "http"
paths = "MODE"
hosts = ["a"]
workload = { user = "2" }
[[deny]]
name = "no admin"
from = "any"
to = "service:web"
http = [{ path = "/admin/**" }, { path = { regex = "/secret.*" } }]
[[allow]]
name = "some"
from = "service:client"
to = "service:web"
http = [{ method = "GET", path = "/" }, { path = "/a/{b}/c" }, { method = "GET", path = "/pub/*" }]
"#;

static JUDGES: LazyLock<Judges> = LazyLock::new(|| {
    let policy = |mode: PathMode| {
        let text = MESH.replace("MODE", &mode.to_string());
        let topology: Topology = parse(&[SourceFile { name: "mesh.toml".into(), text }])
            .expect("the topology above is right");
        (mode, Policy::for_topology(&topology))
    };
    let service = |name: &str| Identity::Service {
        namespace: "default".parse().expect("a name"),
        name: name.parse().expect("a name"),
    };
    Judges {
        policies: PathMode::ALL.into_iter().map(policy).collect(),
        from: service("client"),
        to: service("web"),
    }
});

impl Judges {
    fn outcomes(&self, mode: PathMode, path: &str) -> [(Outcome, DecidedBy); 2] {
        let policy = self.policies.iter().find(|(of, _)| *of == mode).map(|(_, policy)| policy);
        let policy = policy.expect("there is one for each mode");
        ["GET", "POST"].map(|method| {
            let query = Query {
                from: &self.from,
                to: &self.to,
                layer4: Layer4::Tcp(80),
                request: Some(Request::new(method, path)),
            };
            let verdict = policy.evaluate(&query);
            let explained = policy.explain(&query).verdict;
            assert_eq!(explained, verdict, "{path:?} is explained otherwise");
            (verdict.outcome, verdict.decided_by)
        })
    }
}

fn outcomes(path: &str) -> [(Outcome, DecidedBy); 2] {
    JUDGES.outcomes(PathMode::AsIs, path)
}

/// A deny rule about paths can't tell, so nothing may pass.
fn is_refused(path: &str) {
    let refused = (Outcome::Deny, DecidedBy::BuiltIn(BuiltIn::AmbiguousPath));
    assert_eq!(outcomes(path), [refused; 2], "{path:?}");
}
