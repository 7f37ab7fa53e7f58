//! `exposure` and `listener`.

use std::fmt::Display;

use crate::guard::{Exposure, ListenerCheck};
use crate::topology::read::{Entry, Read, Report, Table, instead, quote};

pub(crate) fn exposure(table: &Table<'_>, report: &mut Report<'_>) -> Read<Option<Exposure>> {
    table.optional("exposure", |entry| one_of(&Exposure::ALL, entry, report))
}

pub(crate) fn listener(table: &Table<'_>, report: &mut Report<'_>) -> Read<ListenerCheck> {
    let check = table.optional("listener", |entry| {
        if table.get("workload").is_none() {
            let message = "`listener` without `workload`: nobody knows who may listen";
            let help = "add `workload = { systemd = \"web.service\" }`, or leave `listener` out";
            return Err(report.error(entry.key_at, message, help));
        }
        one_of(&ListenerCheck::ALL, entry, report)
    });
    Ok(check?.unwrap_or_default())
}

fn one_of<T: Copy + Display>(all: &[T], entry: Entry<'_>, report: &mut Report<'_>) -> Read<T> {
    let text = entry.string(report)?;
    let words: Vec<String> = all.iter().map(T::to_string).collect();
    match words.iter().position(|word| word == text.value) {
        Some(index) => Ok(all[index]),
        None => {
            let message = format!("`{}` can't be {}", entry.key, quote(text.value));
            let known = words.iter().map(String::as_str);
            Err(report.error(text.at, message, instead(text.value, known, "write one of")))
        }
    }
}
