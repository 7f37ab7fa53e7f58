//! Stores values by their text form, and numbers of hosts as numbers.

use std::fmt::Display;
use std::str::FromStr;

use isthmus_model::HostId;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    String::deserialize(from)?.parse().map_err(de::Error::custom)
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "HostId")]
pub(crate) struct HostNumber(u32);
