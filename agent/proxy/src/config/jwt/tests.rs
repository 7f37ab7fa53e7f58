//! Tokens, true and false.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
};
use http::HeaderValue;
use http::header::AUTHORIZATION;
use isthmus_model::KeySource;
use serde_json::json;

use super::*;

/// Somebody who issues tokens.
pub(crate) struct Signer {
    ed25519: Ed25519KeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    rsa: RsaKeyPair,
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    pub(crate) fn new() -> Self {
        Self {
            ed25519: Ed25519KeyPair::generate().unwrap(),
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            p384: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
        }
    }

    /// The public halves. There is a secret among them, as some issuers have it, and kinds that
    /// nobody here knows.
    pub(crate) fn set(&self) -> Value {
        let point = |pair: &EcdsaKeyPair, name: &str, id: &str| {
            let (x, y) =
                pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
            json!({ "kty": "EC", "crv": name, "kid": id, "x": encoded(x), "y": encoded(y) })
        };
        // RFC 8017, appendix A.1.1: a sequence of 256 bytes, behind a zero, and 65537.
        let rsa = self.rsa.public_key().as_ref();
        assert_eq!((rsa.len(), &rsa[265..]), (270, &[2, 3, 1, 0, 1][..]));
        let numbers = (&rsa[9..265], &rsa[267..]);
        json!({ "keys": [
            { "kty": "OKP", "crv": "Ed25519", "kid": "ed", "use": "sig",
              "x": encoded(self.ed25519.public_key()) },
            point(&self.p256, "P-256", "p256"),
            point(&self.p384, "P-384", "p384"),
            { "kty": "RSA", "kid": "rsa", "n": encoded(numbers.0), "e": encoded(numbers.1) },
            { "kty": "RSA", "kid": "enc", "use": "enc", "n": encoded(numbers.0), "e": encoded(numbers.1) },
            { "kty": "RSA", "kid": "ps", "alg": "PS256", "n": encoded(numbers.0), "e": encoded(numbers.1) },
            { "kty": "oct", "kid": "secret", "k": encoded("secret") },
            { "kty": "new" }, 7,
        ] })
    }

    /// A token with this header.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", encoded(header.to_string()), encoded(claims.to_string()));
        let (random, bytes) = (SystemRandom::new(), signed.as_bytes());
        let rsa = |how| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(how, &random, bytes, &mut signature).unwrap();
            signature
        };
        let signature = match header["alg"].as_str() {
            Some("ES256") => self.p256.sign(&random, bytes).unwrap().as_ref().to_vec(),
            Some("ES384") => self.p384.sign(&random, bytes).unwrap().as_ref().to_vec(),
            Some("RS256") => rsa(&RSA_PKCS1_SHA256),
            Some("PS256") => rsa(&RSA_PSS_SHA256),
            _ => self.ed25519.sign(bytes).as_ref().to_vec(),
        };
        format!("{signed}.{}", encoded(signature))
    }
}

/// 1,000,000 seconds after the epoch.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn claims() -> Value {
    json!({ "iss": "https://login", "aud": "mesh", "exp": 1_000_100, "sub": "ann" })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn provider() -> JwtProvider {
    JwtProvider {
        name: "login".parse().unwrap(),
        issuer: "https://login".into(),
        audiences: vec!["mesh".into()],
        keys: KeySource::File("/keys".into()),
        place: TokenPlace::Header("authorization".into()),
        leeway: Duration::from_secs(30),
    }
}

fn ring(signer: &Signer) -> KeyRing {
    let ring = KeyRing::default();
    let set = KeySet::parse(signer.set().to_string().as_bytes()).map_err(|error| error.to_string());
    ring.hold(&KeySource::File("/keys".into()), set);
    ring
}

fn ask(ring: &KeyRing, token: &str) -> Result<Vec<Token>, TokenError> {
    let mut headers = HeaderMap::new();
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    headers.extend(value.ok().map(|value| (AUTHORIZATION, value)));
    tokens(&[provider().into()], ring, &headers, now())
}

#[tokio::test]
async fn tokens_of_each_kind_are_believed() {
    let signer = Signer::new();
    let ring = ring(&signer);
    for (algorithm, key) in
        [("EdDSA", "ed"), ("ES256", "p256"), ("ES384", "p384"), ("RS256", "rsa"), ("PS256", "ps")]
    {
        for header in
            [json!({ "alg": algorithm, "kid": key, "typ": "JWT" }), json!({ "alg": algorithm })]
        {
            let tokens = ask(&ring, &signer.sign(&header, &claims()));
            let tokens = tokens.unwrap_or_else(|error| panic!("{header}: {error}"));
            assert_eq!(tokens[0].claims["sub"], "ann", "{header}");
        }
    }
}

#[tokio::test]
async fn what_is_no_true_token_is_told_why() {
    let signer = Signer::new();
    let ring = ring(&signer);
    let ed = json!({ "alg": "EdDSA", "kid": "ed" });
    let good = signer.sign(&ed, &claims());
    let parts: Vec<&str> = good.split('.').collect();
    let forged = encoded(with("sub", json!("root")).to_string());
    let other = Signer::new().sign(&ed, &claims());
    let headed = |header: Value| signer.sign(&header, &claims());
    let claiming = |claims: Value| signer.sign(&ed, &claims);
    let none = format!("{}.{}.", encoded(r#"{"alg":"none"}"#), parts[1]);
    let algorithm = |name: &str| TokenError::Algorithm(name.into());
    use TokenError::{
        Audience, Claims, Critical, Expired, Malformed, NoExpiry, NoKey, NotYet, Signature, TooLong,
    };
    for (case, token, why) in [
        ("none", none, algorithm("none")),
        ("None", headed(json!({ "alg": "None" })), algorithm("None")),
        (
            "HMAC with a public key",
            headed(json!({ "alg": "HS256", "kid": "ed" })),
            algorithm("HS256"),
        ),
        (
            "HMAC with the secret",
            headed(json!({ "alg": "HS256", "kid": "secret" })),
            algorithm("HS256"),
        ),
        ("another key's algorithm", headed(json!({ "alg": "ES256", "kid": "ed" })), NoKey),
        ("a curve's other algorithm", headed(json!({ "alg": "ES384", "kid": "p256" })), NoKey),
        ("a key that is for another", headed(json!({ "alg": "RS256", "kid": "ps" })), NoKey),
        ("a key that encrypts", headed(json!({ "alg": "RS256", "kid": "enc" })), NoKey),
        ("no such key", headed(json!({ "alg": "EdDSA", "kid": "x" })), NoKey),
        ("a critical extension", headed(json!({ "alg": "EdDSA", "crit": ["exp"] })), Critical),
        ("an empty critical list", headed(json!({ "alg": "EdDSA", "crit": [] })), Critical),
        ("another's signature", other, Signature),
        ("forged claims", format!("{}.{forged}.{}", parts[0], parts[2]), Signature),
        ("no signature", format!("{}.{}.", parts[0], parts[1]), Signature),
        ("half a signature", format!("{}.{}.{}", parts[0], parts[1], &parts[2][..40]), Signature),
        ("two parts", format!("{}.{}", parts[0], parts[1]), Malformed),
        ("four parts", format!("{good}.x"), Malformed),
        ("padding", format!("{good}="), Malformed),
        ("other base64", format!("{}.{}.+/{}", parts[0], parts[1], &parts[2][2..]), Malformed),
        ("nothing", String::new(), Malformed),
        ("claims that are a list", claiming(json!([])), Claims),
        ("a long one", "a".repeat(MAX_BYTES + 1), TooLong),
        ("expired", claiming(with("exp", json!(999_970))), Expired),
        ("no expiry", claiming(without("exp")), NoExpiry),
        ("an expiry as text", claiming(with("exp", json!("1000100"))), NoExpiry),
        ("not yet", claiming(with("nbf", json!(1_000_031))), NotYet),
        ("not yet as text", claiming(with("nbf", json!("x"))), NotYet),
        ("another audience", claiming(with("aud", json!("other"))), Audience),
        ("other audiences", claiming(with("aud", json!(["a", "b"]))), Audience),
        ("no audience", claiming(without("aud")), Audience),
        (
            "another issuer",
            claiming(with("iss", json!("https://login/"))),
            TokenError::Issuer("https://login/".into()),
        ),
        ("no issuer", claiming(without("iss")), TokenError::Issuer(String::new())),
    ] {
        assert_eq!(ask(&ring, &token), Err(why), "{case}");
    }
    for (case, claims) in [
        ("within the leeway", with("exp", json!(999_971))),
        ("about to begin", with("nbf", json!(1_000_030))),
        ("an audience of several", with("aud", json!(["a", "mesh"]))),
    ] {
        assert!(ask(&ring, &claiming(claims)).is_ok(), "{case}");
    }
    let header = encoded(r#"{"alg":"EdDSA","alg":"none"}"#);
    let twice = ask(&ring, &format!("{header}.{}.{}", parts[1], parts[2]));
    assert!(matches!(twice, Err(TokenError::Header(_))), "{twice:?}");
}

#[tokio::test]
async fn a_token_is_looked_for_in_its_place_only() {
    let signer = Signer::new();
    let ring = ring(&signer);
    let token = signer.sign(&json!({ "alg": "EdDSA" }), &claims());
    let find = |place: TokenPlace, lines: &[(&'static str, String)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        let provider = JwtProvider { place, ..provider() };
        tokens(&[provider.into()], &ring, &headers, now()).map(|found| found.len())
    };
    let header = |name: &str| TokenPlace::Header(name.into());
    let bearer = format!("bearer {token}");
    assert_eq!(find(header("authorization"), &[("authorization", bearer.clone())]), Ok(1));
    assert_eq!(find(header("authorization"), &[("authorization", "Basic YTpi".into())]), Ok(0));
    assert_eq!(find(header("authorization"), &[("x-token", token.clone())]), Ok(0));
    assert_eq!(find(header("x-token"), &[("x-token", token.clone())]), Ok(1));
    assert_eq!(find(header("x-token"), &[("x-token", bearer.clone())]), Ok(1));
    let twice = [("authorization", bearer.clone()), ("authorization", bearer)];
    assert_eq!(find(header("authorization"), &twice), Err(TokenError::Several));
    let cookie = TokenPlace::Cookie("session".into());
    let cookies = [("cookie", format!("a=b; session={token}; c=d"))];
    assert_eq!(find(cookie.clone(), &cookies), Ok(1));
    assert_eq!(find(cookie.clone(), &[("cookie", "Session=x".into())]), Ok(0));
    assert_eq!(
        find(cookie, &[("cookie", format!("session={token}; session=x"))]),
        Err(TokenError::Several)
    );
}

#[tokio::test]
async fn without_keys_tokens_are_refused_and_old_keys_outlive_a_failure() {
    let signer = Signer::new();
    let token = signer.sign(&json!({ "alg": "EdDSA" }), &claims());
    assert_eq!(ask(&KeyRing::default(), &token), Err(TokenError::NoKeys("login".into())));
    let ring = ring(&signer);
    ring.hold(&KeySource::File("/keys".into()), Err("gone".into()));
    assert!(ask(&ring, &token).is_ok());
}

#[test]
fn what_is_no_key_set_is_told_why() {
    for text in ["", "{}", "[]", r#"{"keys":{}}"#] {
        assert!(
            matches!(KeySet::parse(text.as_bytes()), Err(keys::KeySetError::Malformed(_))),
            "{text}"
        );
    }
    for keys in [
        json!([]),
        json!([{ "kty": "oct", "k": "c2VjcmV0" }]),
        json!([{ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" }]),
        json!([{ "kty": "OKP", "crv": "Ed25519", "x": "AA" }]),
        json!([{ "kty": "RSA", "n": "", "e": "AQAB" }]),
        json!([{ "kty": "RSA", "n": "A".repeat(2000), "e": "AQAB" }]),
    ] {
        let text = json!({ "keys": keys }).to_string();
        assert_eq!(
            KeySet::parse(text.as_bytes()).unwrap_err(),
            keys::KeySetError::NoUsableKey,
            "{text}"
        );
    }
}
