//! Text, read as tables of TOML: what isn't as it should be is reported with its place.

mod reader;
mod report;
mod setting;
mod suggest;
mod syntax;

pub(crate) use reader::{Context, Entry, Pair, Schema, Table, clip, instead, quote};
pub(crate) use report::{At, Located, Read, Report, Reported, all};
pub use setting::{setting_at, setting_error};
pub(crate) use suggest::nearest;
pub(crate) use syntax::read;
