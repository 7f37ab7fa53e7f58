use super::*;
use crate::tls::tests::{Authority, HostCertificate};

pub(crate) fn member() -> Member {
    Member {
        host_id: HostId(7),
        host: "app-1".parse().unwrap(),
        mesh: "corp".to_owned(),
        trust_domain: "corp.example".parse().unwrap(),
        controllers: vec!["192.0.2.1:7443".to_owned()],
        prefixes: Vec::new(),
    }
}

pub(crate) fn identity() -> Identity {
    identity_by(&Authority::new(), &HostCertificate::of(&member()))
}

pub(crate) fn identity_by(authority: &Authority, names: &HostCertificate) -> Identity {
    let key = TlsKey::generate().unwrap();
    let chain = authority.sign(&key.request().unwrap(), names);
    let tls = key.with_chain(chain, &authority.hash(), &member()).unwrap();
    Identity { member: member(), tunnel: TunnelKey::generate().unwrap(), next: None, tls }
}

#[test]
fn a_public_key_follows_from_the_private_one() {
    // RFC 7748, section 6.1: Alice's keys.
    let alice = [
        0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66,
        0x45, 0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9,
        0x2c, 0x2a,
    ];
    let key = TunnelKey::from_bytes(Zeroizing::new(alice));
    assert_eq!(key.public().unwrap().0[..4], [0x85, 0x20, 0xf0, 0x09]);
}

#[test]
fn a_certificate_for_another_host_key_or_ca_is_refused() {
    let authority = Authority::new();
    let sign = |key: &TlsKey, host: &str| {
        let names = HostCertificate { host: host.to_owned(), ..HostCertificate::of(&member()) };
        authority.sign(&key.request().unwrap(), &names)
    };
    let key = TlsKey::generate().unwrap();
    let chain = sign(&key, "app-2");
    let error = key.with_chain(chain, &authority.hash(), &member()).err().unwrap();
    assert!(error.to_string().contains("host/app-1"), "{error}");

    let (key, other) = (TlsKey::generate().unwrap(), TlsKey::generate().unwrap());
    let chain = sign(&other, "app-1");
    let error = key.with_chain(chain, &authority.hash(), &member()).err().unwrap();
    assert!(error.to_string().contains("another key"), "{error}");

    let key = TlsKey::generate().unwrap();
    let chain = sign(&key, "app-1");
    let error = key.with_chain(chain, &Authority::new().hash(), &member()).err().unwrap();
    assert!(error.to_string().contains("another CA"), "{error}");
}

const LIFE: Duration = Duration::from_secs(86_400);

/// When a certificate of a day is renewed that was got just now, by a host whose clock shows `ours`
/// when the controller's shows `theirs`.
fn renewal(ours: SystemTime, theirs: SystemTime, jitter: f64) -> Duration {
    let clock = Clock::told(milliseconds(theirs));
    let backdated = theirs - Duration::from_secs(3_600);
    let validity = Validity { from: backdated, obtained: ours, until: theirs + LIFE };
    validity.renewal_in(&clock, jitter)
}

fn milliseconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

fn about(found: Duration, wanted: Duration) {
    assert!(found.abs_diff(wanted) < Duration::from_secs(5), "{found:?}, not {wanted:?}");
}

#[test]
fn renewal_comes_before_half_of_the_life_is_over() {
    let now = SystemTime::now();
    about(renewal(now, now, 0.0), LIFE / 2);
    about(renewal(now, now, 1.0), LIFE.mul_f64(0.4));
    let clock = Clock::ours();
    let late = Validity { from: now - LIFE, obtained: now - LIFE, until: now + LIFE / 2 };
    assert_eq!(late.renewal_in(&clock, 0.0), Duration::ZERO);
}

#[test]
fn renewal_does_not_depend_on_this_hosts_clock() {
    let (now, days) = (SystemTime::now(), 2 * LIFE);
    // Ours is what the test has; the controller's differs.
    about(renewal(now, now - days, 0.0), LIFE / 2);
    about(renewal(now, now + days, 0.0), LIFE / 2);
}

#[test]
fn a_clock_that_was_set_since_makes_no_renewal_after_the_other() {
    let now = SystemTime::now();
    let validity = Validity { from: now - LIFE / 24, obtained: now + 2 * LIFE, until: now + LIFE };
    let wait = validity.renewal_in(&Clock::ours(), 0.0);
    assert!(wait > LIFE / 3, "{wait:?}");
}

#[test]
fn a_certificates_life_begins_when_the_host_gets_it() {
    let backdated = HostCertificate {
        age: Duration::from_secs(300),
        left: Duration::from_secs(20),
        ..HostCertificate::of(&member())
    };
    let validity = identity_by(&Authority::new(), &backdated).tls.validity().unwrap();
    assert!(validity.renewal_in(&Clock::ours(), 1.0) > Duration::from_secs(6));
}

#[test]
fn a_tls_key_is_read_as_it_was_written() {
    let key = TlsKey::generate().unwrap();
    let again = TlsKey::from_der(&key.to_der()).unwrap();
    assert_eq!(key.0.subject_public_key_info(), again.0.subject_public_key_info());
    assert!(TlsKey::from_der(b"no key").is_err());
}

#[test]
fn new_addresses_of_the_controller_come_first_and_old_ones_stay() {
    let said = |texts: &[&str]| {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        member().with_controllers(&texts).controllers
    };
    assert_eq!(said(&["ctl.example:7443"]), ["ctl.example:7443", "192.0.2.1:7443"]);
    assert_eq!(said(&["[2001:db8::1]:1", "192.0.2.1:7443"]).len(), 2);
    for bad in ["", "x", "x:", ":1", "x:0", "x y:1", "x:70000"] {
        assert_eq!(said(&[bad]), ["192.0.2.1:7443"], "{bad}");
    }
    let many: Vec<String> = (0..100).map(|n| format!("c{n}:1")).collect();
    assert_eq!(member().with_controllers(&many).controllers.len(), MOST_CONTROLLERS);
}

#[test]
fn a_membership_survives_its_file() {
    let text = member().to_toml().unwrap();
    assert_eq!(Member::from_toml(&text).unwrap(), member());
    assert!(Member::from_toml("host_id = 1\n").is_err());
    let prefixes = ["fd00:1:2::/48", "100.64.0.0/10"].map(|it| it.parse().unwrap()).to_vec();
    let knowing = Member { prefixes, ..member() };
    assert_eq!(Member::from_toml(&knowing.to_toml().unwrap()).unwrap(), knowing);
    let older = text.replace("prefixes = []\n", "");
    assert_ne!(older, text);
    assert_eq!(Member::from_toml(&older).unwrap(), member());
}
