//! The topology language: what is right has no contradictions, what is wrong has a place.

use std::collections::BTreeSet;
use std::sync::Arc;

use isthmus_model::topology::{
    ChangeKind, Diagnostic, Placement, SourceFile, Topology, diff, parse,
};
use isthmus_model::{Name, Subject};

/// No TOML file has this character: it parts the files.
const NEXT_FILE: char = '\u{c}';
const MOST_DIAGNOSTICS: usize = 100;

/// `input` is one or more files. Says whether they make a topology.
pub(crate) fn hold(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let files: Vec<SourceFile> = text
        .split(NEXT_FILE)
        .enumerate()
        .map(|(index, text)| SourceFile {
            name: format!("{index}.toml").into(),
            text: text.to_owned(),
        })
        .collect();
    let read = parse(&files);
    match &read {
        Ok(topology) => has_no_contradictions(&files, topology),
        Err(wrong) => says_what_is_wrong_where(&files, wrong),
    }
    read.is_ok()
}

fn says_what_is_wrong_where(files: &[SourceFile], wrong: &[Diagnostic]) {
    assert!((1..=MOST_DIAGNOSTICS).contains(&wrong.len()), "{} diagnostics", wrong.len());
    let mut last = (0, 0);
    for diagnostic in wrong {
        let index = files
            .iter()
            .position(|file| Arc::ptr_eq(&file.name, &diagnostic.file))
            .expect("a diagnostic is about one of the files");
        is_in_its_place(&files[index].text, diagnostic);
        let place = (index, diagnostic.span.start);
        assert!(last <= place, "{diagnostic} comes too late");
        last = place;
        assert!(!diagnostic.message.is_empty() && !diagnostic.help.is_empty(), "{diagnostic}");
        let line = diagnostic.to_string();
        assert!(!line.chars().any(char::is_control), "{line:?} isn't one line");
    }
}

fn is_in_its_place(text: &str, diagnostic: &Diagnostic) {
    let before = text.get(..diagnostic.span.start).expect("a span starts between characters");
    assert!(text.get(diagnostic.span.clone()).is_some(), "a span is a piece of its file");
    let line = 1 + before.matches('\n').count();
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let column = 1 + before[line_start..].chars().count();
    let place = (diagnostic.line as usize, diagnostic.column as usize);
    assert_eq!(place, (line, column), "{diagnostic}");
}

fn has_no_contradictions(files: &[SourceFile], topology: &Topology) {
    assert_eq!(parse(files).as_ref(), Ok(topology), "reading doesn't depend on chance");
    assert!(topology.same_meaning(topology));
    differs_only_by_addition_from_nothing(topology);
    every_name_is_declared(topology);
    no_blocks_overlap(topology);
}

fn differs_only_by_addition_from_nothing(topology: &Topology) {
    let changes = diff(None, topology);
    assert!(changes.iter().all(|change| change.kind != ChangeKind::Removed), "{changes:?}");
    let declared = topology.hosts.len() + topology.services.len() + topology.devices.len();
    let listed = topology.rules.rules.len() + topology.routes.len();
    assert!(changes.len() >= declared + listed, "{changes:?}");
}

fn every_name_is_declared(topology: &Topology) {
    for service in topology.services.values() {
        assert_ne!(service.port, 0);
        match &service.hosts {
            Placement::Names(names) => {
                assert!(names.iter().all(|name| topology.hosts.contains_key(name)));
            }
            Placement::Labels(labels) => assert!(!labels.is_empty()),
        }
    }
    assert!(topology.devices.values().all(|device| topology.hosts.contains_key(&device.via)));
    let namespaces: BTreeSet<&Name> =
        topology.services.values().map(|service| &service.namespace).collect();
    let rules = topology.rules.rules.iter().flat_map(|rule| rule.from.iter().chain(&rule.to));
    let tests = topology.tests.iter().flat_map(|test| [&test.from, &test.to]);
    for subject in rules.chain(tests) {
        let declared = match subject {
            Subject::Any | Subject::AnyService | Subject::AnyHost | Subject::AnyDevice => true,
            Subject::Service(name) => topology.services.contains_key(name),
            Subject::Namespace(name) => namespaces.contains(name),
            Subject::Host(name) => topology.hosts.contains_key(name),
            Subject::Device(name) => topology.devices.contains_key(name),
        };
        assert!(declared, "{subject} isn't declared");
    }
}

fn no_blocks_overlap(topology: &Topology) {
    let mesh = &topology.mesh;
    assert!(mesh.ipv4.contains(&mesh.virtual_ipv4) && mesh.ipv4 != mesh.virtual_ipv4);
    let mut taken = vec![mesh.virtual_ipv4];
    for block in topology.hosts.values().filter_map(|host| host.ipv4_block) {
        assert!(mesh.ipv4.contains(&block), "{block} isn't in the mesh");
        let free = taken.iter().all(|other| !other.contains(&block) && !block.contains(other));
        assert!(free, "{block} overlaps");
        taken.push(block);
    }
}
