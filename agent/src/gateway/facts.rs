//! Facts of a client's certificate, as Envoy writes them into `X-Forwarded-Client-Cert`.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// A header shouldn't be longer.
const MOST_BYTES: usize = 4096;

/// The hash of a verified certificate, whom it names, and by which URIs and DNS names.
#[must_use]
pub(super) fn of(certificate: &[u8]) -> String {
    let mut text = "Hash=".to_owned();
    for byte in digest(&SHA256, certificate).as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    let Ok((_, parsed)) = parse_x509_certificate(certificate) else { return text };
    let _ = write!(text, ";Subject=\"{}\"", quoted(&parsed.subject().to_string()));
    let names = parsed.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        let fact = if let GeneralName::URI(uri) = name {
            format!(";URI=\"{}\"", quoted(uri))
        } else if let GeneralName::DNSName(name) = name {
            format!(";DNS=\"{}\"", quoted(name))
        } else {
            continue;
        };
        if text.len() + fact.len() <= MOST_BYTES {
            text += &fact;
        }
    }
    text
}

/// Whoever issued the certificate chose these letters: none may end the quotes or the header.
fn quoted(text: &str) -> String {
    let mut safe = String::new();
    for letter in text.chars().take(1024) {
        match letter {
            '"' | '\\' => safe.extend(['\\', letter]),
            ' '..='~' => safe.push(letter),
            _ => safe.push('?'),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn a_certificate_says_whom_it_names_and_no_more() {
        let mut params = CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "Ann \"\n;Hash=00");
        let uri: Ia5String = "spiffe://x/y".to_owned().try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let text = of(certificate.der());
        let (hash, rest) = text.split_once(';').unwrap();
        assert_eq!(hash.len(), "Hash=".len() + 64);
        assert!(rest.contains("Ann \\\"?;Hash=00\""), "{rest}");
        assert!(rest.ends_with(";DNS=\"a.example\";URI=\"spiffe://x/y\""), "{rest}");
        assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        assert!(of(b"nothing").starts_with("Hash="));
    }
}
