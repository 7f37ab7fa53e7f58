//! DNS messages as bytes, for what is relayed rather than understood.

/// Before the question.
const HEADER_BYTES: usize = 12;
const RESPONSE: u8 = 0x80;
const TRUNCATED: u8 = 0x02;
const OPCODE_AND_RECURSION_DESIRED: u8 = 0x79;

/// The longest name there is (RFC 1035, section 2.3.4).
const NAME_BYTES: usize = 255;

/// The bytes of a message's only question.
pub(super) fn question(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut end = HEADER_BYTES;
    loop {
        match *message.get(end)? {
            0 => break,
            // Nothing stands before a question that its name could point to.
            label @ 1..=63 => end += 1 + usize::from(label),
            64..=255 => return None,
        }
    }
    if end + 1 - HEADER_BYTES > NAME_BYTES {
        return None;
    }
    // The root label, the type, the class.
    message.get(HEADER_BYTES..end + 5)
}

/// Whether `reply` answers `query`: the same id, the same question.
pub(super) fn answers(reply: &[u8], query: &[u8]) -> bool {
    let (Some(asked), Some(answered)) = (question(query), question(reply)) else { return false };
    reply[..2] == query[..2] && reply[2] & RESPONSE != 0 && asked.eq_ignore_ascii_case(answered)
}

/// Whether a reply has an answer; none if its server failed to find out.
pub(super) fn has_answer(reply: &[u8]) -> Option<bool> {
    const SERVER_FAILURE: u8 = 2;
    match reply.get(3)? & 0x0f {
        0 => Some(reply.get(6..8)? != [0, 0]),
        SERVER_FAILURE => None,
        _ => Some(false),
    }
}

/// A reply without records. Repeats the question if there is a readable one.
///
/// `query` is at least a header.
pub(super) fn bare_reply(query: &[u8], code: u8) -> Vec<u8> {
    let question = question(query).unwrap_or_default();
    let mut reply = vec![0; HEADER_BYTES];
    for (to, from) in reply.iter_mut().zip(query).take(3) {
        *to = *from;
    }
    reply[2] = reply[2] & OPCODE_AND_RECURSION_DESIRED | RESPONSE;
    reply[3] = RECURSION_AVAILABLE | code & 0x0f;
    reply[5] = u8::from(!question.is_empty());
    reply.extend_from_slice(question);
    reply
}

const RECURSION_AVAILABLE: u8 = 0x80;

/// A reply cut down to its question, telling its reader to ask over TCP.
pub(super) fn truncated(mut reply: Vec<u8>) -> Vec<u8> {
    let length = HEADER_BYTES + question(&reply).map_or(0, <[u8]>::len);
    reply.truncate(length);
    if let Some(header) = reply.get_mut(..HEADER_BYTES) {
        header[2] |= TRUNCATED;
        header[5] = u8::from(length > HEADER_BYTES);
        header[6..].fill(0);
    }
    reply
}
