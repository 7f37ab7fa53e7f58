//! Diagnostics of a topology, shown at their place in the file.

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use isthmus_model::Origin as Place;
use isthmus_model::topology::{Diagnostic, SourceFile, Warning};
use isthmus_policy::TestResult;
use isthmus_proto::v1;
use serde_json::{Value, json};

use crate::output::clean;

/// Something wrong in a file, whoever found it.
pub(crate) type Finding = v1::Diagnostic;

/// Findings of the parser.
pub(crate) fn from_model(found: Diagnostic) -> Finding {
    let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    Finding {
        file: found.file.to_string(),
        line: found.line,
        column: found.column,
        start: offset(found.span.start),
        end: offset(found.span.end),
        message: found.message,
        help: found.help,
    }
}

/// A test that failed, at the line where it stands.
pub(crate) fn from_test(test: &TestResult, files: &[SourceFile]) -> Finding {
    let message = format!("test {:?} fails: {}", test.name, test.detail);
    at(&test.origin, files, message, "change the rules, or what the test expects".to_owned())
}

/// What is hardly meant, at the table that says it.
pub(crate) fn from_warning(warning: Warning, files: &[SourceFile]) -> Finding {
    at(&warning.origin, files, warning.message, warning.help)
}

fn at(origin: &Place, files: &[SourceFile], message: String, help: String) -> Finding {
    let text = files.iter().find(|file| file.name == origin.file).map_or("", |file| &file.text);
    let before: usize =
        text.split_inclusive('\n').take(origin.line.saturating_sub(1) as usize).map(str::len).sum();
    let line = text[before..].lines().next().unwrap_or_default();
    let indent = line.len() - line.trim_start().len();
    let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    Finding {
        file: origin.file.to_string(),
        line: origin.line,
        column: offset(indent + 1),
        start: offset(before + indent),
        end: offset(before + line.trim_end().len()),
        message,
        help,
    }
}

/// All of them, each with its source line and what to do.
pub(crate) fn render(findings: &[Finding], files: &[SourceFile]) -> String {
    render_as(Level::ERROR, findings, files)
}

/// Likewise, what isn't wrong.
pub(crate) fn render_warnings(findings: &[Finding], files: &[SourceFile]) -> String {
    render_as(Level::WARNING, findings, files)
}

fn render_as(level: Level<'static>, findings: &[Finding], files: &[SourceFile]) -> String {
    let one = |finding| render_one(level.clone(), finding, files);
    let shown: Vec<String> = findings.iter().map(one).collect();
    shown.join("\n\n")
}

fn render_one(level: Level<'static>, finding: &Finding, files: &[SourceFile]) -> String {
    let title = level.primary_title(clean(&finding.message));
    let source = files.iter().find(|file| *file.name == *finding.file);
    let group = match source {
        Some(file) => title.element(
            Snippet::source(&*file.text)
                .path(&*file.name)
                .annotation(AnnotationKind::Primary.span(span(finding, &file.text))),
        ),
        None => title.element(
            Origin::path(clean(&finding.file))
                .line(finding.line as usize)
                .char_column(finding.column as usize),
        ),
    };
    let group = if finding.help.is_empty() {
        group
    } else {
        group.element(Level::HELP.message(clean(&finding.help)))
    };
    Renderer::styled().render(&[group])
}

/// The part of the finding's span on its first line, within the text and between characters.
fn span(finding: &Finding, text: &str) -> std::ops::Range<usize> {
    let start = text.floor_char_boundary(finding.start as usize);
    let line_end = text[start..].find(['\n', '\r']).map_or(text.len(), |at| start + at);
    let end = text.ceil_char_boundary(finding.end as usize).clamp(start, line_end);
    start..end
}

/// As JSON has it.
pub(crate) fn json(findings: &[Finding]) -> Value {
    let one = |found: &Finding| {
        json!({
            "file": found.file,
            "line": found.line,
            "column": found.column,
            "start": found.start,
            "end": found.end,
            "message": found.message,
            "help": found.help,
        })
    };
    findings.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> [SourceFile; 1] {
        [SourceFile { name: "dir/mesh.toml".into(), text: text.to_owned() }]
    }

    fn finding(line: u32, start: u32, end: u32) -> Finding {
        Finding {
            file: "dir/mesh.toml".to_owned(),
            line,
            column: 1,
            start,
            end,
            message: "unknown key `prot`".to_owned(),
            help: "did you mean `protocol`?".to_owned(),
        }
    }

    fn plain(finding: Finding, text: &str) -> String {
        anstream::adapter::strip_str(&render(&[finding], &file(text))).to_string()
    }

    #[test]
    fn a_finding_shows_place_line_cause_and_help() {
        let shown = plain(finding(2, 14, 18), "[service.web]\nprot = 80\n");
        for part in
            ["error: unknown key `prot`", "dir/mesh.toml:2:1", "prot = 80", "^^^^", "did you mean"]
        {
            assert!(shown.contains(part), "{part} in:\n{shown}");
        }
    }

    #[test]
    fn odd_spans_are_shown_as_well_as_can_be() {
        for (text, start, end) in
            [("", 0, 0), ("a\n", 2, 2), ("äö", 1, 3), ("ab\ncd", 0, 5), ("a", 7, 9)]
        {
            assert!(plain(finding(1, start, end), text).contains("dir/mesh.toml:"), "{text:?}");
        }
        let mut elsewhere = finding(3, 0, 0);
        elsewhere.file = "other.toml".to_owned();
        assert!(plain(elsewhere, "").contains("other.toml:3:1"));
    }
}
