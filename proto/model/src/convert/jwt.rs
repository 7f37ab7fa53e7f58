//! Token providers as resources, and back.

use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::v1;
use v1::jwt_provider::{Keys, Place};

use super::decode::{Reason, bounded, filled, parse};
use super::routes::{decode_fields, encode_field};
use crate::jwt::{JwtMatch, JwtProvider, KeySource, TokenPlace};

const MAX_AUDIENCES: usize = 64;

pub(super) fn encode(jwt: &JwtMatch) -> v1::JwtMatch {
    let provider = &jwt.provider;
    let keys = match &provider.keys {
        KeySource::File(path) => Keys::File(path.to_string_lossy().into_owned()),
        KeySource::Url(url) => Keys::Url(url.to_string()),
    };
    let place = match &provider.place {
        TokenPlace::Header(name) => Place::Header(name.to_string()),
        TokenPlace::Cookie(name) => Place::Cookie(name.to_string()),
    };
    let provider = v1::JwtProvider {
        name: provider.name.to_string(),
        issuer: provider.issuer.to_string(),
        audiences: provider.audiences.iter().map(ToString::to_string).collect(),
        leeway_ms: u64::try_from(provider.leeway.as_millis()).unwrap_or(u64::MAX),
        keys: Some(keys),
        place: Some(place),
    };
    let claims = jwt.claims.iter().map(encode_field).collect();
    v1::JwtMatch { provider: Some(provider), claims }
}

pub(super) fn decode(body: &v1::JwtMatch) -> Result<JwtMatch, Reason> {
    let provider = body.provider.as_ref().ok_or("jwt: it names no provider")?;
    Ok(JwtMatch {
        provider: Arc::new(decode_provider(provider)?),
        claims: decode_fields("claims", &body.claims)?,
    })
}

fn decode_provider(body: &v1::JwtProvider) -> Result<JwtProvider, Reason> {
    bounded("audiences", body.audiences.len(), MAX_AUDIENCES)?;
    let keys = match body.keys.as_ref().ok_or("jwt: it has no keys")? {
        Keys::File(path) => KeySource::File(filled("file", path)?.as_ref().into()),
        Keys::Url(url) => KeySource::Url(filled("url", url)?),
    };
    let place = match body.place.as_ref().ok_or("jwt: its tokens are nowhere")? {
        Place::Header(name) => TokenPlace::Header(filled("header", name)?),
        Place::Cookie(name) => TokenPlace::Cookie(filled("cookie", name)?),
    };
    Ok(JwtProvider {
        name: parse("name", &body.name)?,
        issuer: filled("issuer", &body.issuer)?,
        audiences: body
            .audiences
            .iter()
            .map(|audience| filled("audiences", audience))
            .collect::<Result<_, _>>()?,
        keys,
        place,
        leeway: Duration::from_millis(body.leeway_ms),
    })
}
