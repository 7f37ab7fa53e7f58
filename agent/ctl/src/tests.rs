//! Output of sample messages, for people and for programs.

use isthmus_proto::v1;
use serde_json::{Value, json};

use crate::mesh_view;

const NOW: i64 = 1_700_000_000;

pub(crate) fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

fn host(id: u32, name: &str, connected: bool) -> v1::HostStatus {
    v1::HostStatus {
        host: Some(v1::Host {
            id,
            name: name.to_owned(),
            site: "dc1".to_owned(),
            public_key: vec![7; 32],
            endpoints: vec!["10.9.0.11:51820".into(), "[fd09::11]:51820".into()],
            ipv4_block: "100.64.0.16/28".to_owned(),
            ..v1::Host::default()
        }),
        ipv6: format!("fd01:203:405:0:0:{id}::"),
        connected,
        revision: 7,
        version: "0.1.0".to_owned(),
        joined: NOW - 600,
        certificate_expires: NOW + 86_000,
        refusal: String::new(),
        services: vec!["web".to_owned()],
        problems: Vec::new(),
        former_key_until: 0,
        former_key_awaits: Vec::new(),
    }
}

pub(crate) fn mesh() -> v1::MeshStatus {
    let service = v1::Service {
        id: 12,
        name: "web".to_owned(),
        namespace: "prod".to_owned(),
        port: 8080,
        protocol: v1::Protocol::Http.into(),
        virtual_ipv4: "100.127.0.1".to_owned(),
        placements: [(1, "100.64.0.17".to_owned())].into(),
        ..v1::Service::default()
    };
    let device = v1::Device {
        id: 13,
        name: "press".to_owned(),
        public_key: vec![1; 32],
        via: 1,
        ipv4: "100.64.0.18".to_owned(),
    };
    v1::MeshStatus {
        name: "corp".to_owned(),
        trust_domain: "corp.example".to_owned(),
        revision: 7,
        hosts: vec![host(1, "app-1", true), host(2, "app-2", false)],
        services: vec![v1::ServiceStatus {
            service: Some(service),
            virtual_ipv6: "fd01:203:405::c".to_owned(),
            hosts: vec!["app-1".to_owned()],
            dns_name: "web.prod.mesh.internal".to_owned(),
        }],
        devices: vec![v1::DeviceStatus {
            device: Some(device),
            ipv6: "fd01:203:405:0:0:1:0:d".to_owned(),
            via: "app-1".to_owned(),
        }],
        problems: Vec::new(),
        events: vec![v1::SecurityEvent {
            at: NOW - 60,
            reported_by: "app-2".to_owned(),
            from_host: "app-1".to_owned(),
            claimed_source: "100.64.0.99".to_owned(),
            packets: 4,
            text: String::new(),
        }],
    }
}

#[test]
fn the_mesh_is_shown_with_all_its_parts() {
    let text = plain(&mesh_view::text(&mesh(), NOW));
    for part in [
        "mesh corp (corp.example), revision 7, 1 of 2 hosts connected",
        "app-1  dc1   connected  7         100.64.0.16  10.9.0.11:51820 (+1)  web       expires in 23 h",
        "app-2  dc1   away",
        "web      prod       http/8080  100.127.0.1   web.prod.mesh.internal  app-1",
        "press   app-1",
        "60 s ago        app-1    100.64.0.99    app-2",
    ] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
}

#[test]
fn an_empty_mesh_says_what_to_do_next() {
    let text = mesh_view::text(&v1::MeshStatus::default(), NOW);
    assert!(text.contains("agentctl token create"), "{text}");
}

#[test]
fn the_json_of_hosts_has_text_keys_and_times() {
    let value = mesh_view::json(&mesh());
    let host = &value["hosts"][0];
    assert_eq!(host["public_key"], "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
    assert_eq!(host["ipv4"], "100.64.0.16");
    assert_eq!(host["joined"], "2023-11-14T22:03:20Z");
    assert_eq!(host["refusal"], Value::Null);
    assert_eq!(value["hosts"][1]["connected"], false);
    assert_eq!(value["events"][0]["claimed_source"], "100.64.0.99");
    assert_eq!(value["devices"][0]["via"], "app-1");
}

#[test]
fn the_ipv6_address_of_a_workload_follows_from_the_numbers() {
    let value = mesh_view::json(&mesh());
    let service = &value["services"][0];
    assert_eq!(service["protocol"], "http");
    assert_eq!(
        service["workloads"],
        json!([{
            "host": "app-1",
            "ipv4": "100.64.0.17",
            "ipv6": "fd01:203:405::1:0:c",
            "leaving": false,
        }])
    );
}

#[test]
fn one_host_is_shown_with_all_that_is_known() {
    let mut host = host(1, "app-1", true);
    host.refusal = "100.64.0.0/12 is routed elsewhere".to_owned();
    let text = plain(&mesh_view::host_facts(&host, NOW));
    assert!(text.contains("state        refuses"), "{text}");
    assert!(text.contains("100.64.0.0/12 is routed elsewhere"), "{text}");
    assert!(text.contains("[fd09::11]:51820"), "{text}");
}
