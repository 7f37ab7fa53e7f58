use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use proptest::prelude::*;

use super::support::*;
use crate::dns::wire;
use crate::dns::zone::{Reply, TTL, Transport, answer, failure};

#[test]
fn names_have_addresses_of_both_families() {
    let names = [
        ("web.prod.mesh.internal.", "100.127.0.1", "fd12:3456:789a::1"),
        ("former-web.prod.mesh.internal.", "100.127.0.1", "fd12:3456:789a::1"),
        ("app-1.host.mesh.internal.", "100.64.1.0", "fd12:3456:789a::1:0:0"),
        ("press.device.mesh.internal.", "100.64.2.9", "fd12:3456:789a::2:0:3"),
        // The service, not the host of the same name.
        ("db-1.host.mesh.internal.", "100.127.0.2", "fd12:3456:789a::2"),
    ];
    for (name, ipv4, ipv6) in names {
        let reply = asked(name, RecordType::A);
        assert_eq!(data(&reply), ipv4, "{name}");
        assert_eq!(reply.answers[0].ttl, TTL);
        assert!(reply.metadata.authoritative && reply.metadata.recursion_desired);
        assert_eq!(reply.metadata.id, ID);
        assert_eq!(data(&asked(name, RecordType::AAAA)), ipv6, "{name}");
    }
}

#[test]
fn names_may_leave_the_meshs_domain_out() {
    assert_eq!(data(&asked("Web.prod.", RecordType::A)), "100.127.0.1");
    assert_eq!(data(&asked("app-1.host.", RecordType::AAAA)), "fd12:3456:789a::1:0:0");
    let nothing = asked("web.prod.", RecordType::MX);
    assert_eq!((nothing.metadata.response_code, nothing.answers.len()), (ResponseCode::NoError, 0));
    // What isn't there may be the world's.
    for name in ["nobody.prod.", "prod.", "web.", "www.web.prod."] {
        let forwarded = reply(&query(name, RecordType::A));
        assert!(matches!(forwarded, Reply::Forward { .. }), "{name}: {forwarded:?}");
    }
    let bytes = query("web.prod.", RecordType::A).to_vec().unwrap();
    assert!(matches!(answer(&view(), false, &bytes, Transport::Udp), Reply::Forward { .. }));
}

#[test]
fn the_letters_case_does_not_matter_and_comes_back_as_it_was() {
    let reply = asked("wEb.PrOd.MESH.internaL.", RecordType::A);
    assert_eq!(data(&reply), "100.127.0.1");
    assert_eq!(reply.queries[0].name().to_ascii(), "wEb.PrOd.MESH.internaL.");
    assert_eq!(reply.answers[0].name.to_ascii(), "wEb.PrOd.MESH.internaL.");
}

#[test]
fn addresses_have_names() {
    let addresses = [
        ("100.127.0.1", "web.prod.mesh.internal."),
        ("100.64.2.2", "web.prod.mesh.internal."),
        ("100.64.1.0", "app-1.host.mesh.internal."),
        ("100.64.2.9", "press.device.mesh.internal."),
        ("100.127.0.0", "app-1.host.mesh.internal."),
        ("fd12:3456:789a::1", "web.prod.mesh.internal."),
        ("fd12:3456:789a:0:0:2:0:1", "web.prod.mesh.internal."),
        ("fd12:3456:789a:0:0:1::", "app-1.host.mesh.internal."),
        ("fd12:3456:789a:0:0:2:0:3", "press.device.mesh.internal."),
    ];
    for (address, name) in addresses {
        let reverse = Name::from(address.parse::<std::net::IpAddr>().unwrap()).to_ascii();
        assert_eq!(data(&asked(&reverse, RecordType::PTR)), name, "{address}");
        assert_eq!(data(&asked(&reverse.to_uppercase(), RecordType::PTR)), name, "{address}");
    }
}

#[test]
fn what_does_not_exist_is_nxdomain_with_the_zones_soa() {
    let names = [
        ("nobody.prod.mesh.internal.", "mesh.internal."),
        ("nowhere.mesh.internal.", "mesh.internal."),
        ("a.web.prod.mesh.internal.", "mesh.internal."),
        ("9.9.127.100.in-addr.arpa.", "100.in-addr.arpa."),
        ("1.1.0.127.100.in-addr.arpa.", "100.in-addr.arpa."),
        ("01.0.127.100.in-addr.arpa.", "100.in-addr.arpa."),
        (
            "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.",
            "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.",
        ),
    ];
    for (name, zone) in names {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::PTR, RecordType::TXT] {
            let reply = asked(name, kind);
            assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name} {kind}");
            assert_soa(&reply, zone);
        }
    }
}

#[test]
fn what_exists_with_another_type_only_is_no_error_with_the_zones_soa() {
    let questions = [
        ("web.prod.mesh.internal.", RecordType::TXT),
        ("web.prod.mesh.internal.", RecordType::HTTPS),
        ("web.prod.mesh.internal.", RecordType::PTR),
        // There are names below these.
        ("prod.mesh.internal.", RecordType::A),
        ("host.mesh.internal.", RecordType::AAAA),
        ("mesh.internal.", RecordType::A),
        ("1.0.127.100.in-addr.arpa.", RecordType::A),
        ("0.127.100.in-addr.arpa.", RecordType::PTR),
    ];
    for (name, kind) in questions {
        let reply = asked(name, kind);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name} {kind}");
        assert!(reply.answers.is_empty(), "{name} {kind}");
        let [record] = reply.authorities.as_slice() else { panic!("{reply:?}") };
        assert!(matches!(record.data, RData::SOA(_)));
    }
    let reply = asked("mesh.internal.", RecordType::SOA);
    assert!(matches!(reply.answers[0].data, RData::SOA(_)));
}

#[test]
fn questions_about_the_mesh_never_leave_it_and_others_do() {
    let inside = [
        "mesh.internal.",
        "x.y.z.MESH.internal.",
        "1.2.64.100.in-addr.arpa.",
        "64.100.in-addr.arpa.",
        "127.100.in-addr.arpa.",
        "b._dns-sd._udp.0.1.64.100.in-addr.arpa.",
        "lb._dns-sd._udp.64.100.in-addr.arpa.",
        "lb._dns-sd._udp.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.",
        "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.",
        "1.a.9.8.7.6.5.4.3.2.1.D.F.IP6.ARPA.",
    ];
    let host_services = [
        "example.com.",
        "internal.",
        "notmesh.internal.",
        "mesh.internal.example.",
        ".",
        "128.100.in-addr.arpa.",
        "1.2.63.100.in-addr.arpa.",
        "100.in-addr.arpa.",
        "b.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.",
        "9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.",
    ];
    for name in inside {
        assert!(matches!(reply(&query(name, RecordType::PTR)), Reply::Answer(_)), "{name}");
    }
    for name in host_services {
        let forward = Reply::Forward { max_bytes: 512 };
        assert_eq!(reply(&query(name, RecordType::PTR)), forward, "{name}");
    }
}

#[test]
fn any_transfers_and_other_classes_are_refused_for_every_name() {
    for name in ["web.prod.mesh.internal.", "example.com."] {
        for kind in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR] {
            let code = asked(name, kind).metadata.response_code;
            assert_eq!(code, ResponseCode::Refused, "{name} {kind}");
        }
        let mut chaos = query(name, RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(answered(&chaos).metadata.response_code, ResponseCode::Refused, "{name}");
    }
}

#[test]
fn odd_messages_get_the_code_that_says_why() {
    let mut update = query("mesh.internal.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(answered(&update).metadata.response_code, ResponseCode::NotImp);

    let mut two = query("web.prod.mesh.internal.", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("example.com.").unwrap(), RecordType::A));
    assert_eq!(answered(&two).metadata.response_code, ResponseCode::FormErr);

    let mut future = with_edns(query("web.prod.mesh.internal.", RecordType::A), 4096);
    future.edns.as_mut().unwrap().set_version(1);
    // BADVERS and BADSIG are the same number.
    assert_eq!(u16::from(answered(&future).metadata.response_code), 16);

    let mut broken = query("web.prod.mesh.internal.", RecordType::A).to_vec().unwrap();
    broken.truncate(20);
    let Reply::Answer(bytes) = answer(&view(), true, &broken, Transport::Udp) else { panic!() };
    let reply = Message::from_vec(&bytes).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
    assert_eq!((reply.metadata.id, reply.metadata.message_type), (ID, MessageType::Response));
}

#[test]
fn replies_and_scraps_are_not_answered() {
    let mut looping = query("web.prod.mesh.internal.", RecordType::A);
    looping.metadata.message_type = MessageType::Response;
    assert_eq!(reply(&looping), Reply::Ignore);
    assert_eq!(answer(&view(), true, &[0; 11], Transport::Udp), Reply::Ignore);
    assert_eq!(answer(&view(), true, &[], Transport::Tcp), Reply::Ignore);
}

#[test]
fn edns_is_answered_with_edns_and_its_size_counts_within_bounds() {
    let reply = answered(&with_edns(query("web.prod.mesh.internal.", RecordType::A), 4096));
    assert_eq!(reply.edns.unwrap().max_payload(), 1232);
    assert!(asked("web.prod.mesh.internal.", RecordType::A).edns.is_none());

    for (payload, max_bytes) in [(0, 512), (1000, 1000), (65535, 1232)] {
        let foreign = with_edns(query("example.com.", RecordType::A), payload);
        assert_eq!(super::support::reply(&foreign), Reply::Forward { max_bytes });
    }
    let foreign = query("example.com.", RecordType::A).to_vec().unwrap();
    let forward = Reply::Forward { max_bytes: 65535 };
    assert_eq!(answer(&view(), true, &foreign, Transport::Tcp), forward);
}

#[test]
fn a_failure_repeats_the_question() {
    let reply =
        Message::from_vec(&failure(&query("example.com.", RecordType::A).to_vec().unwrap()));
    let reply = reply.unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(reply.metadata.id, ID);
    assert_eq!(reply.queries[0].name().to_ascii(), "example.com.");
}

#[test]
fn a_truncated_reply_is_its_question_and_says_so() {
    let reply = with_edns(asked("web.prod.mesh.internal.", RecordType::A), 1232);
    let cut = Message::from_vec(&wire::truncated(reply.to_vec().unwrap())).unwrap();
    assert!(cut.metadata.truncation);
    assert_eq!(cut.queries, reply.queries);
    assert!(cut.answers.is_empty() && cut.edns.is_none());
}

#[test]
fn only_a_reply_to_the_same_question_is_an_answer() {
    let asked = query("Example.com.", RecordType::A).to_vec().unwrap();
    let mut reply = wire::bare_reply(&asked, 0);
    assert!(wire::answers(&reply, &asked));
    assert!(!wire::answers(&asked, &asked), "it is a query");
    reply[0] ^= 1;
    assert!(!wire::answers(&reply, &asked), "another id");
    let other = query("example.org.", RecordType::A).to_vec().unwrap();
    assert!(!wire::answers(&wire::bare_reply(&other, 0), &asked), "another name");
    assert!(!wire::answers(&[], &asked));
}

fn assert_soa(reply: &Message, zone: &str) {
    let [record] = reply.authorities.as_slice() else { panic!("{reply:?}") };
    assert_eq!((record.name.to_ascii().as_str(), record.ttl), (zone, TTL));
    let RData::SOA(soa) = &record.data else { panic!("{record:?}") };
    assert_eq!((soa.minimum, soa.serial), (TTL, 7));
}

/// Whatever comes, an answer is small, is a reply, and has the query's id.
fn check(bytes: &[u8]) {
    let view = view();
    for transport in [Transport::Udp, Transport::Tcp] {
        match answer(&view, true, bytes, transport) {
            Reply::Ignore => {}
            Reply::Forward { max_bytes } => assert!((512..=65535).contains(&max_bytes)),
            Reply::Answer(reply) => {
                assert_eq!(reply[..2], bytes[..2]);
                assert_eq!(reply[2] & 0x80, 0x80);
                let max = if transport == Transport::Udp { 1232 } else { 65535 };
                assert!(reply.len() <= max, "{}", reply.len());
            }
        }
    }
    let _ = wire::question(bytes);
    let _ = wire::answers(bytes, bytes);
    let _ = wire::truncated(bytes.to_vec());
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes);
    }

    #[test]
    fn damaged_queries_do_no_harm(
        name in prop::sample::select(vec![
            "web.prod.mesh.internal.", "1.0.127.100.in-addr.arpa.", "mesh.internal.", "example.com.",
        ]),
        kind in any::<u16>(),
        edns in any::<bool>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let message = query(name, kind.into());
        let message = if edns { with_edns(message, kind) } else { message };
        let mut bytes = message.to_vec().unwrap();
        check(&bytes);
        for (position, value) in damage {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        check(&bytes);
        check(&bytes[..cut.index(bytes.len())]);
    }
}
