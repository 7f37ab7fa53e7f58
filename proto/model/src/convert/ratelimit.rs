//! Rate limits as resources, and back.

use isthmus_proto::v1;
use v1::rate_limit::Per;

use super::decode::{Reason, bounded, filled, parse, text};
use super::routes::{MAX_LIST, decode_match, encode_match};
use crate::ratelimit::{LimitKey, LimitScope, RateLimit};
use crate::rules::Origin;

pub(super) fn encode(limit: &RateLimit) -> v1::RateLimit {
    v1::RateLimit {
        name: limit.name.to_string(),
        service: limit.service.to_string(),
        matches: limit.matches.iter().map(encode_match).collect(),
        rate: limit.rate,
        burst: limit.burst,
        per: Some(match &limit.per {
            LimitKey::All => Per::All(true),
            LimitKey::Identity => Per::Identity(true),
            LimitKey::Header(name) => Per::Header(name.to_string()),
        }),
        mesh: limit.scope == LimitScope::Mesh,
        hosts: limit.hosts,
        file: limit.origin.file.to_string(),
        line: limit.origin.line,
    }
}

pub(super) fn decode(body: &v1::RateLimit) -> Result<RateLimit, Reason> {
    bounded("matches", body.matches.len(), MAX_LIST)?;
    let per = body.per.as_ref().ok_or("per: it is of a kind that this version doesn't know")?;
    Ok(RateLimit {
        name: parse("name", &body.name)?,
        service: parse("service", &body.service)?,
        matches: body.matches.iter().map(decode_match).collect::<Result<_, _>>()?,
        rate: body.rate,
        burst: body.burst,
        per: match per {
            Per::All(_) => LimitKey::All,
            Per::Identity(_) => LimitKey::Identity,
            Per::Header(name) => LimitKey::Header(filled("per", name)?),
        },
        scope: if body.mesh { LimitScope::Mesh } else { LimitScope::Host },
        hosts: body.hosts,
        origin: Origin { file: text("file", &body.file)?, line: body.line },
    })
}
