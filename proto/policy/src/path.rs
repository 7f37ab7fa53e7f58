//! Request paths: one canonical form, and the patterns that rules compare with it.
//!
//! A proxy that reads a path differently from the program behind it can be talked past: `/public/..
//! /admin`, `/%61dmin`, `//admin`. So a path is brought into one form first ([`canonical`]), and
//! refused where programs are known to disagree on what it means ([`Ambiguity`]).

use std::borrow::Cow;
use std::fmt;

use isthmus_model::PathMode;

/// Why a path can't be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Ambiguity {
    /// It doesn't begin with a slash.
    #[error("it doesn't begin with '/'")]
    Relative,
    /// `//`: some programs merge them.
    #[error("it has an empty segment, '//'")]
    EmptySegment,
    /// `.` or `..`, also encoded.
    #[error("it has a segment '.' or '..'")]
    DotSegment,
    /// `%2F`, `%5C` or `\`: a slash to some.
    #[error("it has an encoded slash or a backslash")]
    HiddenSlash,
    /// `;`: the begin of parameters to some, which they cut off.
    #[error("it has a ';'")]
    Parameter,
    /// `%` without two hexadecimal digits, or one that is left with them once decoded.
    #[error("it has a '%' that isn't an encoding, or is encoded twice")]
    BadEncoding,
    /// NUL, control characters, spaces; `?` and `#`, which end a path.
    #[error("it has a character that no path may have")]
    BadCharacter,
    /// Its encodings aren't UTF-8; overlong ones have been read as slashes.
    #[error("its encodings aren't UTF-8")]
    NotUtf8,
}

/// The canonical form of a path: what needs no encoding is decoded, what remains encoded is written
/// in upper case, and a slash at the end is dropped (to rules, `/a` and `/a/` are the same). Borrows
/// where nothing changes, which is the usual case.
///
/// # Errors
///
/// If programs disagree on what the path means.
pub fn canonical(path: &str) -> Result<Cow<'_, str>, Ambiguity> {
    let Some(inner) = path.strip_prefix('/') else { return Err(Ambiguity::Relative) };
    let plain = inner.bytes().all(|byte| PLAIN[usize::from(byte)]);
    let form = if plain { Cow::Borrowed(path) } else { Cow::Owned(recode(path)?) };
    check_segments(&form)?;
    Ok(without_last_slash(form))
}

/// The path as it is passed on, in a service's mode. What is judged is this one, too: the canonical
/// form of what it gives is that of what went in, and giving it its own result changes nothing.
///
/// # Errors
///
/// If the mode refuses the path, since programs disagree on what it means.
pub fn forwarded(mode: PathMode, path: &str) -> Result<Cow<'_, str>, Ambiguity> {
    if mode == PathMode::AsIs {
        return Ok(Cow::Borrowed(path));
    }
    let Err(why) = canonical(path) else { return Ok(Cow::Borrowed(path)) };
    let merged = match mode {
        PathMode::Strict | PathMode::AsIs => return Err(why),
        PathMode::MergeSlashes => merge(path)?,
        PathMode::DecodeAndMergeSlashes => merge(&with_slashes(path))?,
    };
    canonical(&merged)?;
    Ok(Cow::Owned(merged))
}

/// The form in which a path is compared, in a service's mode.
pub(crate) fn canonical_in(mode: PathMode, path: &str) -> Result<Cow<'_, str>, Ambiguity> {
    match canonical(path) {
        Err(_) if mode != PathMode::AsIs => {
            Ok(Cow::Owned(canonical(&forwarded(mode, path)?)?.into_owned()))
        }
        form => form,
    }
}

/// Decodes slashes and backslashes.
fn with_slashes(path: &str) -> String {
    let mut decoded = path.to_owned();
    for (encoded, slash) in [("%2F", "/"), ("%2f", "/"), ("%5C", "\\"), ("%5c", "\\")] {
        decoded = decoded.replace(encoded, slash);
    }
    decoded
}

/// Makes slashes of backslashes and one of several, and resolves `.` and `..` (RFC 3986, section
/// 5.2.4; but what leads above the root is refused).
fn merge(path: &str) -> Result<String, Ambiguity> {
    let path = path.replace('\\', "/");
    let Some(inner) = path.strip_prefix('/') else { return Err(Ambiguity::Relative) };
    let mut kept = Vec::new();
    let mut ends_in_slash = false;
    for segment in inner.split('/') {
        let dots = segment.replace("%2e", ".").replace("%2E", ".");
        ends_in_slash = matches!(&*dots, "" | "." | "..");
        match &*dots {
            "" | "." => {}
            ".." => drop(kept.pop().ok_or(Ambiguity::DotSegment)?),
            _ => kept.push(segment),
        }
    }
    let end = if ends_in_slash && !kept.is_empty() { "/" } else { "" };
    Ok(format!("/{}{end}", kept.join("/")))
}

/// What a path may consist of that needs no second look.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        plain[byte] = is_plain(byte as u8) || byte as u8 == b'/';
        byte += 1;
    }
    plain
};

/// Characters that stand for themselves in a segment (RFC 3986, `pchar`), but for `;`.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'.' | b'_' | b'~')
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=')
        || matches!(byte, b':' | b'@')
}

fn recode(path: &str) -> Result<String, Ambiguity> {
    let mut form = String::with_capacity(path.len() + 16);
    let mut meaning = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match first {
            b'%' => decode(tail)?,
            b'/' => {
                form.push('/');
                meaning.push(b'/');
                rest = tail;
                continue;
            }
            b'?' | b'#' | b' ' => return Err(Ambiguity::BadCharacter),
            _ => (*first, tail),
        };
        push(&mut form, byte)?;
        meaning.push(byte);
        rest = tail;
    }
    if is_encoded(&meaning) {
        return Err(Ambiguity::BadEncoding);
    }
    std::str::from_utf8(&meaning).map_err(|_| Ambiguity::NotUtf8)?;
    Ok(form)
}

/// Whether what has been decoded could be decoded again: `%25%34%31` too, where every byte of the
/// inner encoding is encoded by itself.
fn is_encoded(meaning: &[u8]) -> bool {
    meaning
        .windows(3)
        .any(|three| matches!(three, [b'%', a, b] if hex(*a).is_some() && hex(*b).is_some()))
}

fn decode(after_percent: &[u8]) -> Result<(u8, &[u8]), Ambiguity> {
    let [high, low, tail @ ..] = after_percent else { return Err(Ambiguity::BadEncoding) };
    let (Some(high), Some(low)) = (hex(*high), hex(*low)) else {
        return Err(Ambiguity::BadEncoding);
    };
    Ok((high << 4 | low, tail))
}

const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn push(form: &mut String, byte: u8) -> Result<(), Ambiguity> {
    match byte {
        b'/' | b'\\' => return Err(Ambiguity::HiddenSlash),
        b';' => return Err(Ambiguity::Parameter),
        0..=0x1f | 0x7f => return Err(Ambiguity::BadCharacter),
        _ if is_plain(byte) => form.push(char::from(byte)),
        _ => {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            form.push('%');
            form.push(char::from(DIGITS[usize::from(byte >> 4)]));
            form.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    Ok(())
}

fn check_segments(form: &str) -> Result<(), Ambiguity> {
    // Only the last may be empty.
    let mut rest = &form.as_bytes()[1..];
    loop {
        let length = rest.iter().position(|byte| *byte == b'/');
        match (&rest[..length.unwrap_or(rest.len())], length) {
            (b"." | b"..", _) => return Err(Ambiguity::DotSegment),
            (b"", Some(_)) => return Err(Ambiguity::EmptySegment),
            (_, Some(length)) => rest = &rest[length + 1..],
            (_, None) => return Ok(()),
        }
    }
}

fn without_last_slash(form: Cow<'_, str>) -> Cow<'_, str> {
    if form.len() == 1 || !form.ends_with('/') {
        return form;
    }
    match form {
        Cow::Borrowed(text) => Cow::Borrowed(&text[..text.len() - 1]),
        Cow::Owned(mut text) => {
            text.pop();
            Cow::Owned(text)
        }
    }
}

/// A rule's `path`, ready to be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub(crate) segments: Vec<Segment>,
    /// What may follow.
    pub(crate) tail: Tail,
    /// The pattern has no canonical form, so no path matches it.
    pub(crate) never: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    Nothing,
    /// `*`: one or more segments.
    Some,
    /// `**`: none, or more.
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Literal(Box<str>),
    Any,
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        let (text, mut tail) = match text.strip_suffix("/**") {
            Some(start) => (if start.is_empty() { "/" } else { start }, Tail::Any),
            None => (text, Tail::Nothing),
        };
        let mut never = false;
        let mut parts: Vec<Segment> = segments(text)
            .map(|segment| {
                Segment::new(segment).unwrap_or_else(|| {
                    never = true;
                    Segment::Any
                })
            })
            .collect();
        never = never || !text.starts_with('/');
        if tail == Tail::Nothing && text.ends_with("/*") {
            parts.pop();
            tail = Tail::Some;
        }
        Self { segments: parts, tail, never }
    }

    /// Whether a canonical path matches.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let mut rest = segments(path);
        let all = self.segments.iter().all(|segment| rest.next().is_some_and(|s| segment.is(s)));
        let tail = match self.tail {
            Tail::Nothing => rest.next().is_none(),
            Tail::Some => rest.next().is_some(),
            Tail::Any => true,
        };
        !self.never && all && tail
    }
}

impl Segment {
    /// None if no path can have it.
    fn new(text: &str) -> Option<Self> {
        let name = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        if text == "*" || name.is_some() {
            return Some(Self::Any);
        }
        let rooted = format!("/{text}");
        let form = canonical(&rooted).ok()?;
        Some(Self::Literal(form[1..].into()))
    }

    fn is(&self, text: &str) -> bool {
        match self {
            Self::Literal(literal) => **literal == *text,
            Self::Any => true,
        }
    }
}

/// The segments of a canonical path; `/` has none. A slash at the end says nothing.
pub(crate) fn segments(form: &str) -> impl Iterator<Item = &str> + Clone {
    let inner = form.strip_prefix('/').unwrap_or(form);
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    inner.split('/').filter(move |_| !inner.is_empty())
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => write!(f, "/{text}")?,
                Segment::Any => f.write_str("/*")?,
            }
        }
        let end = match self.tail {
            Tail::Some => "/*",
            Tail::Any => "/**",
            Tail::Nothing if self.segments.is_empty() => "/",
            Tail::Nothing => "",
        };
        f.write_str(end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_plain_path_is_borrowed() {
        for path in ["/", "/a/b", "/a/b/", "/a.b/~c/d=e,f:@!$&'()*+"] {
            assert!(matches!(canonical(path), Ok(Cow::Borrowed(_))), "{path}");
        }
    }

    #[test]
    fn what_programs_read_in_two_ways_is_named() {
        for (path, why) in [
            ("", Ambiguity::Relative),
            ("*", Ambiguity::Relative),
            ("//", Ambiguity::EmptySegment),
            ("/a//b", Ambiguity::EmptySegment),
            ("/a/..", Ambiguity::DotSegment),
            ("/.", Ambiguity::DotSegment),
            ("/%2e%2e/a", Ambiguity::DotSegment),
            ("/a%2Fb", Ambiguity::HiddenSlash),
            ("/a\\b", Ambiguity::HiddenSlash),
            ("/a;b", Ambiguity::Parameter),
            ("/a%", Ambiguity::BadEncoding),
            ("/a%4", Ambiguity::BadEncoding),
            ("/a%252e", Ambiguity::BadEncoding),
            ("/%25%32%65", Ambiguity::BadEncoding),
            ("/%252%65", Ambiguity::BadEncoding),
            ("/a\0", Ambiguity::BadCharacter),
            ("/a b", Ambiguity::BadCharacter),
            ("/a#b", Ambiguity::BadCharacter),
            ("/%c0%af", Ambiguity::NotUtf8),
        ] {
            assert_eq!(canonical(path), Err(why), "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_its_own(path in "/[a-c%0-9A-F./ ;\\u{0}-\u{ff}]{0,12}") {
            if let Ok(form) = canonical(&path) {
                prop_assert_eq!(canonical(&form), Ok(form.clone()));
                prop_assert!(form.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }

        #[test]
        fn encoding_a_path_changes_nothing(path in "(/[a-z*+~!]{1,3}){1,4}", which in any::<u16>()) {
            let encode = |(at, byte): (usize, u8)| match which >> (at % 16) & 1 {
                1 if byte != b'/' => format!("%{byte:02x}"),
                _ => char::from(byte).to_string(),
            };
            let encoded: String = path.bytes().enumerate().map(encode).collect();
            prop_assert_eq!(canonical(&encoded), Ok(Cow::Borrowed(&*path)));
        }

        #[test]
        fn a_pattern_without_stars_matches_itself_only(
            pattern in "(/[ab]{1,2}){0,3}",
            path in "(/[ab]{1,2}){1,3}",
        ) {
            let pattern = if pattern.is_empty() { "/".to_owned() } else { pattern };
            prop_assert!(Pattern::new(&pattern).matches(&pattern));
            prop_assert_eq!(Pattern::new(&pattern).matches(&path), pattern == path);
        }
    }
}
