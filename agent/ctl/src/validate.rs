//! `agentctl validate`: what can be known of files without a controller.

use anyhow::Result;
use isthmus_model::topology::{SourceFile, Topology, warnings};
use isthmus_policy::{TestResult, run_tests};
use serde_json::{Value, json};

use crate::cli::{Files, Format};
use crate::diagnostics::{self, Finding};
use crate::errors::Exit;
use crate::output::{self, Tone, paint};
use crate::sources;
use crate::transport::Session;
use crate::words::count;

/// Findings about files.
#[derive(Debug)]
pub(crate) struct Checked {
    /// None if the files contradict themselves.
    pub(crate) topology: Option<Topology>,
    /// What is wrong, failed tests included.
    pub(crate) findings: Vec<Finding>,
    /// What isn't wrong, but hardly meant.
    pub(crate) warnings: Vec<Finding>,
    pub(crate) tests: Vec<TestResult>,
}

/// Parses files and runs their tests.
pub(crate) fn check(files: &[SourceFile]) -> Checked {
    match sources::topology(files) {
        Ok(topology) => {
            let tests = run_tests(&topology);
            let failed = tests.iter().filter(|test| !test.passed);
            let findings = failed.map(|test| diagnostics::from_test(test, files)).collect();
            let warnings = warnings(&topology).into_iter();
            let warnings = warnings.map(|it| diagnostics::from_warning(it, files)).collect();
            Checked { topology: Some(topology), findings, warnings, tests }
        }
        Err(findings) => {
            Checked { topology: None, findings, warnings: Vec::new(), tests: Vec::new() }
        }
    }
}

pub(crate) fn validate(session: &Session, arguments: &Files) -> Result<Exit> {
    let files = sources::read(&arguments.file)?;
    let checked = check(&files);
    checked.warn(session, &files);
    if session.output == Format::Json {
        output::json(&checked.json())?;
    } else if let (Some(topology), true) = (&checked.topology, checked.findings.is_empty()) {
        output::say(&summary(topology))?;
    } else {
        output::complain(&checked.complaint(&files));
    }
    Ok(if checked.findings.is_empty() { Exit::Success } else { Exit::Negative })
}

fn summary(topology: &Topology) -> String {
    let parts = [
        count(topology.hosts.len(), "host"),
        count(topology.services.len(), "service"),
        count(topology.devices.len(), "device"),
        count(topology.rules.rules.len(), "rule"),
        count(topology.routes.len(), "route"),
    ];
    let tests = match topology.tests.len() {
        0 => "no tests (write [[test]]s: they keep a change from breaking what works)".to_owned(),
        number => format!("{} passed", count(number, "test")),
    };
    format!("{} {}; {tests}", paint("valid:", Tone::Good), parts.join(", "))
}

impl Checked {
    /// Says to people what is hardly meant.
    pub(crate) fn warn(&self, session: &Session, files: &[SourceFile]) {
        if session.output == Format::Text && !self.warnings.is_empty() {
            output::complain(&diagnostics::render_warnings(&self.warnings, files));
        }
    }

    /// The findings, and a last line that sums up.
    pub(crate) fn complaint(&self, files: &[SourceFile]) -> String {
        let failed = self.tests.iter().filter(|test| !test.passed).count();
        let sum = match &self.topology {
            Some(_) => format!("{failed} of {} failed", count(self.tests.len(), "test")),
            None => format!("{} to mend", count(self.findings.len(), "error")),
        };
        let shown = diagnostics::render(&self.findings, files);
        format!("{shown}\n\n{} {sum}", paint("broken:", Tone::Bad))
    }

    fn json(&self) -> Value {
        let counts = self.topology.as_ref().map(|topology| {
            json!({
                "hosts": topology.hosts.len(),
                "services": topology.services.len(),
                "devices": topology.devices.len(),
                "rules": topology.rules.rules.len(),
                "routes": topology.routes.len(),
                "tests": topology.tests.len(),
            })
        });
        json!({
            "valid": self.findings.is_empty(),
            "topology": counts,
            "diagnostics": diagnostics::json(&self.findings),
            "warnings": diagnostics::json(&self.warnings),
            "tests": self.tests.iter().map(test_json).collect::<Value>(),
        })
    }
}

fn test_json(test: &TestResult) -> Value {
    json!({
        "name": *test.name,
        "passed": test.passed,
        "detail": test.detail,
        "file": *test.origin.file,
        "line": test.origin.line,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    fn file(text: &str) -> [SourceFile; 1] {
        [SourceFile { name: "dir/mesh.toml".into(), text: text.to_owned() }]
    }

    #[test]
    fn a_broken_file_shows_file_line_column_and_help() {
        let files = file(
            "[host.app-1]\n\n[service.web]\n  prot = \"tcp\"\nport = 80\nhosts = [\"app-1\"]\n",
        );
        let checked = check(&files);
        let shown = plain(&checked.complaint(&files));
        for part in
            ["dir/mesh.toml:4:3", "prot = \"tcp\"", "^^^^", "help", "protocol", "1 error to mend"]
        {
            assert!(shown.contains(part), "{part} in:\n{shown}");
        }
        let value = checked.json();
        assert_eq!((&value["valid"], &value["topology"]), (&false.into(), &Value::Null));
        assert_eq!(value["diagnostics"][0]["line"], 4);
    }

    #[test]
    fn a_failed_test_is_shown_where_it_stands() {
        let files = file(
            "[host.app-1]\n\n[[test]]\nname = \"ssh works\"\nfrom = \"host:app-1\"\nto = \"host:app-1\"\nport = \"tcp/22\"\nexpect = \"allow\"\n",
        );
        let checked = check(&files);
        let shown = plain(&checked.complaint(&files));
        for part in ["dir/mesh.toml:3:1", "[[test]]", "ssh works", "1 of 1 test failed"] {
            assert!(shown.contains(part), "{part} in:\n{shown}");
        }
        assert_eq!(checked.json()["tests"][0]["passed"], false);
    }

    #[test]
    fn what_is_hardly_meant_is_shown_and_valid() {
        let files = file(
            "[host.a]\n[service.x]\nport = 1\nhosts = [\"a\"]\nworkload = { exe = \"/bin/x\" }\n",
        );
        let checked = check(&files);
        assert!(checked.findings.is_empty());
        let shown = plain(&diagnostics::render_warnings(&checked.warnings, &files));
        for part in ["warning: ", "by its program alone", "dir/mesh.toml:2:1", "add `user`"] {
            assert!(shown.contains(part), "{part} in:\n{shown}");
        }
        assert_eq!(checked.json()["warnings"][0]["line"], 2);
    }

    #[test]
    fn a_good_file_is_summed_up() {
        let checked = check(&file("[host.app-1]\n[host.app-2]\n"));
        assert!(checked.findings.is_empty());
        let text = plain(&summary(&checked.topology.unwrap()));
        assert!(
            text.starts_with("valid: 2 hosts, 0 services, 0 devices, 0 rules, 0 routes; no tests"),
            "{text}"
        );
    }
}
