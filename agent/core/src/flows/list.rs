//! Lists through the slots of a vector: no allocation, and removal from the middle costs nothing.

const NONE: u32 = u32::MAX;

/// A slot's neighbours in a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    previous: u32,
    next: u32,
}

/// The ends of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    head: u32,
    tail: u32,
}

/// A slot that can be in the list that `Name` stands for.
pub(super) trait Linked<Name> {
    fn links(&mut self) -> &mut Links;
}

impl Default for Links {
    fn default() -> Self {
        Self { previous: NONE, next: NONE }
    }
}

impl Default for List {
    fn default() -> Self {
        Self { head: NONE, tail: NONE }
    }
}

impl List {
    pub(super) fn first(self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }
}

pub(super) fn push_back<Name>(slots: &mut [impl Linked<Name>], list: &mut List, at: u32) {
    *slots[at as usize].links() = Links { previous: list.tail, next: NONE };
    match list.tail {
        NONE => list.head = at,
        tail => slots[tail as usize].links().next = at,
    }
    list.tail = at;
}

/// INVARIANT: the slot is in this list.
pub(super) fn unlink<Name>(slots: &mut [impl Linked<Name>], list: &mut List, at: u32) {
    let Links { previous, next } = std::mem::take(slots[at as usize].links());
    match previous {
        NONE => list.head = next,
        previous => slots[previous as usize].links().next = next,
    }
    match next {
        NONE => list.tail = previous,
        next => slots[next as usize].links().previous = previous,
    }
}
