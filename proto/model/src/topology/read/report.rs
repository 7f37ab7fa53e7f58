//! Reports: what is wrong with a topology, each thing with its place.

use std::sync::Arc;

use crate::rules::Origin;
use crate::topology::decl::{Diagnostic, SourceFile};

/// More would be noise: the rest shows once these are gone.
const MOST_DIAGNOSTICS: usize = 100;

/// A piece of one of the files. 32 bits do, for a topology is smaller than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    file: u32,
    start: u32,
    end: u32,
}

impl At {
    pub(crate) fn new(file: usize, span: std::ops::Range<usize>) -> Self {
        let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self { file: narrow(file), start: narrow(span.start), end: narrow(span.end) }
    }

    pub(super) fn within(self, span: std::ops::Range<usize>) -> Self {
        Self::new(self.file as usize, span)
    }
}

/// A value and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    pub(crate) at: At,
}

/// Instead of a value: what is wrong has been reported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reported;

pub(crate) type Read<T> = Result<T, Reported>;

/// Reads every element, so that each bad one is reported.
pub(crate) fn all<T, U>(
    elements: impl IntoIterator<Item = T>,
    read: impl FnMut(T) -> Read<U>,
) -> Read<Vec<U>> {
    let read: Vec<Read<U>> = elements.into_iter().map(read).collect();
    read.into_iter().collect()
}

/// Collects what is wrong, and knows lines and columns.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    files: &'a [SourceFile],
    /// For each file, where its lines begin.
    lines: Vec<Vec<usize>>,
    found: Vec<(At, Diagnostic)>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(files: &'a [SourceFile]) -> Self {
        Self {
            files,
            lines: files.iter().map(|file| line_starts(&file.text)).collect(),
            found: Vec::new(),
        }
    }

    /// Whether so much is wrong that there is no sense in looking further.
    pub(crate) fn is_full(&self) -> bool {
        self.found.len() >= MOST_DIAGNOSTICS
    }

    pub(crate) fn error(
        &mut self,
        at: At,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Reported {
        if let Some(file) = self.files.get(at.file as usize).filter(|_| !self.is_full()) {
            let text = &file.text;
            let start = text.floor_char_boundary((at.start as usize).min(text.len()));
            let end = text.ceil_char_boundary((at.end as usize).min(text.len())).max(start);
            let (line, line_start) = self.line(at.file as usize, start);
            let column = text[line_start..start].chars().count() + 1;
            let diagnostic = Diagnostic {
                file: Arc::clone(&file.name),
                line,
                column: u32::try_from(column).unwrap_or(u32::MAX),
                span: start..end,
                message: message.into(),
                help: help.into(),
            };
            self.found.push((at, diagnostic));
        }
        Reported
    }

    pub(crate) fn origin(&self, at: At) -> Origin {
        let file = at.file as usize;
        Origin {
            file: self.files.get(file).map_or_else(|| "".into(), |file| Arc::clone(&file.name)),
            line: self.line(file, at.start as usize).0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Everything that is wrong, in the order of the files.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|(at, _)| *at);
        self.found.into_iter().map(|(_, diagnostic)| diagnostic).collect()
    }

    /// The number of the line that an offset is in, from 1, and where it begins.
    fn line(&self, file: usize, offset: usize) -> (u32, usize) {
        let starts = self.lines.get(file).map_or(&[][..], Vec::as_slice);
        let number = starts.partition_point(|start| *start <= offset).max(1);
        let start = starts.get(number - 1).copied().unwrap_or(0);
        (u32::try_from(number).unwrap_or(u32::MAX), start)
    }
}

fn line_starts(text: &str) -> Vec<usize> {
    let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
    std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect()
}
