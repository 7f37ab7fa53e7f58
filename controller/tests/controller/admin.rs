use isthmus_proto::v1;
use isthmus_proto::v1::admin_client::AdminClient;
use isthmus_proto::v1::join_client::JoinClient;
use isthmus_proto::v1::sync_client::SyncClient;
use tonic::Code;

use crate::lab::{Controller, any, apply_request};

const TOPOLOGY: &str = r#"
[host.gw-1]

[service.web]
namespace = "prod"
port = 80
hosts = ["gw-1"]

[device.press]
via = "gw-1"
wireguard = { public_key = "6dPMYUUTFuApQ1Hyv9gfqZ0sJoUQNl6VbMO0wU0NK1A=" }

[[allow]]
name = "press reads web"
from = "device:press"
to = "service:web"

[[test]]
name = "the press reads web"
from = "device:press"
to = "service:web"
expect = "allow"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn each_service_is_for_those_it_is_for() {
    let controller = Controller::start().await;
    let host = controller.join("gw-1").await.identity;
    let operator = controller.operator_identity();
    for (identity, admin, sync) in [
        (None, Code::Unauthenticated, Code::Unauthenticated),
        (Some(&host), Code::PermissionDenied, Code::InvalidArgument),
        (Some(&operator), Code::Ok, Code::PermissionDenied),
    ] {
        let channel = controller.channel(identity).await;
        let status = AdminClient::new(channel.clone()).read_status(any()).await;
        assert_eq!(status.map_or_else(|status| status.code(), |_| Code::Ok), admin);
        let renewed = SyncClient::new(channel.clone()).renew(any()).await.unwrap_err();
        assert_eq!(renewed.code(), sync, "{}", renewed.message());
        // Anybody may try to join, with a token.
        let joined = JoinClient::new(channel).join(any()).await.unwrap_err();
        assert_eq!(joined.code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_an_operator_may_do_anything() {
    let controller = Controller::start().await;
    let host = controller.join("gw-1").await.identity;
    let mut admin = AdminClient::new(controller.channel(Some(&host)).await);
    let codes = [
        admin.apply(any()).await.err(),
        admin.read_topology(any()).await.err(),
        admin.watch_rollout(any()).await.err(),
        admin.create_token(any()).await.err(),
        admin.list_tokens(any()).await.err(),
        admin.revoke_token(any()).await.err(),
        admin.remove_host(v1::RemoveHostRequest { name: "gw-1".to_owned() }).await.err(),
        admin.export_device(any()).await.err(),
        admin.list_revisions(any()).await.err(),
        admin.confirm(any()).await.err(),
        admin.list_operators(any()).await.err(),
        admin.add_operator(any()).await.err(),
        admin.revoke_operator(any()).await.err(),
        admin.read_audit(any()).await.err(),
    ]
    .map(|status| status.map(|status| status.code()));
    assert_eq!(codes, [Some(Code::PermissionDenied); 14]);
    assert_eq!(controller.status().await.hosts.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_topology_leaves_the_running_revision() {
    let controller = Controller::start().await;
    controller.join("gw-1").await;
    let good = controller.apply(TOPOLOGY).await;
    let before = controller.status().await;
    let broken = [
        (TOPOLOGY.replace("port = 80", "prot = 80"), "prot"),
        (TOPOLOGY.replace("via = \"gw-1\"", "via = \"gw-2\""), "gw-2"),
        (format!("[mesh]\ntrust_domain = \"other.example\"\n{TOPOLOGY}"), "other.example"),
        (format!("[mesh]\nipv4 = \"10.0.0.0/8\"\n{TOPOLOGY}"), "hosts have joined"),
    ];
    for (text, expected) in broken {
        let refused = controller.try_apply(&text, false).await;
        let found = refused.diagnostics.iter().find(|found| found.message.contains(expected));
        let found = found.unwrap_or_else(|| panic!("{expected} isn't in {refused:?}"));
        assert!(found.line > 0 && !found.help.is_empty() && found.file == "mesh.toml");
        assert_eq!(refused.revision, good.revision);
    }
    assert_eq!(controller.status().await, before);
    let running = controller.admin().await.read_topology(any()).await.unwrap().into_inner();
    assert_eq!(running.files[0].text, TOPOLOGY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topology_that_fails_its_tests_is_refused() {
    let controller = Controller::start().await;
    let text = TOPOLOGY.replace("expect = \"allow\"", "expect = \"deny\"");
    let refused = controller.try_apply(&text, false).await;
    assert!(refused.tests.iter().any(|test| !test.passed && test.name == "the press reads web"));
    assert_eq!((refused.revision, controller.status().await.services.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_equal_topology_changes_nothing() {
    let controller = Controller::start().await;
    let first = controller.apply(TOPOLOGY).await;
    assert!(!first.unchanged && first.changes.iter().any(|change| change.subject == "service web"));
    let again = controller.apply(TOPOLOGY).await;
    assert!(again.unchanged && again.changes.is_empty() && again.affected.is_empty());
    assert_eq!(again.revision, first.revision);

    // Another comment where nothing moves: the text is kept, the revision stays.
    let commented = format!("{TOPOLOGY}# the end\n");
    let again = controller.apply(&commented).await;
    assert_eq!((again.unchanged, again.revision), (true, first.revision));
    let running = controller.admin().await.read_topology(any()).await.unwrap().into_inner();
    assert_eq!(running.files[0].text, commented);

    // Rules that stand on other lines: those who show the lines need to know.
    let moved = controller.apply(&format!("# the beginning\n{TOPOLOGY}")).await;
    assert!(!moved.unchanged && moved.changes.is_empty());
    assert_eq!(moved.revision, first.revision + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_and_does_nothing() {
    let controller = Controller::start().await;
    controller.join("gw-1").await;
    let before = controller.status().await;
    let told = controller.try_apply(TOPOLOGY, true).await;
    assert_eq!(told.affected, ["gw-1"]);
    assert!(!told.unchanged && !told.changes.is_empty() && told.tests.len() == 1);
    assert_eq!(told.revision, before.revision);
    assert_eq!(controller.status().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_much_away_is_done_on_yes_only() {
    let controller = Controller::start().await;
    controller.join("gw-1").await;
    controller.apply(TOPOLOGY).await;
    let before = controller.status().await;
    let request = |dry_run, yes| v1::ApplyRequest { yes, ..apply_request("", dry_run) };
    let held = controller.try_request(request(false, false)).await;
    assert!(held.asks[0].contains("say nothing") && !held.changes.is_empty(), "{held:?}");
    // Who doesn't know the question takes it for an error.
    assert_eq!(held.diagnostics[0].message, held.asks[0]);
    assert_eq!((held.revision, controller.status().await), (before.revision, before.clone()));
    let told = controller.try_request(request(true, false)).await;
    assert_eq!((&told.asks, &told.diagnostics[..]), (&held.asks, &[][..]));
    let done = controller.try_request(request(false, true)).await;
    assert!(done.diagnostics.is_empty() && done.revision > before.revision);
    assert!(controller.status().await.services.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gets_its_file_once_its_gateway_is_reachable() {
    let controller = Controller::start().await;
    let export = async |name: &str| {
        let request = v1::ExportDeviceRequest { name: name.to_owned() };
        controller.admin().await.export_device(request).await.map(|file| file.into_inner().config)
    };
    controller.apply(TOPOLOGY).await;
    assert_eq!(export("lathe").await.unwrap_err().code(), Code::NotFound);
    let status = export("press").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("hasn't joined"), "{}", status.message());

    let gateway = controller.join("gw-1").await;
    let status = export("press").await.unwrap_err();
    assert!(status.message().contains("endpoints"), "{}", status.message());

    let fixed = TOPOLOGY.replace("[host.gw-1]", "[host.gw-1]\nendpoints = [\"192.0.2.1:51820\"]");
    controller.apply(&fixed).await;
    let file = export("press").await.unwrap();
    let status = controller.status().await;
    let device = &status.devices[0];
    assert_eq!(device.via, gateway.name);
    let address =
        format!("Address = {}/32, {}/128", device.device.as_ref().unwrap().ipv4, device.ipv6);
    for line in [
        address.as_str(),
        "Endpoint = 192.0.2.1:51820",
        "PersistentKeepalive = 25",
        "MTU = 1420",
        "# PrivateKey = ...",
    ] {
        assert!(file.lines().any(|found| found == line), "no {line} in\n{file}");
    }
    let ranges = file.lines().find_map(|line| line.strip_prefix("AllowedIPs = ")).unwrap();
    let ranges: Vec<&str> = ranges.split(", ").collect();
    assert_eq!(ranges[0], "100.64.0.0/10");
    assert!(ranges[1].ends_with("::/48"), "{file}");
    let uncommented = file.lines().filter(|line| !line.starts_with('#'));
    assert!(!uncommented.clone().any(|line| line.contains("PrivateKey")));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_who_is_where() {
    let controller = Controller::start().await;
    controller.join("gw-1").await;
    controller.apply(TOPOLOGY).await;
    let status = controller.status().await;
    assert_eq!((status.name.as_str(), status.trust_domain.as_str()), ("corp", "corp.example"));
    assert_eq!(status.hosts[0].services, ["web"]);
    let web = &status.services[0];
    assert_eq!(
        (web.dns_name.as_str(), &web.hosts[..]),
        ("web.prod.mesh.internal", &["gw-1".to_owned()][..])
    );
    assert!(web.virtual_ipv6.starts_with("fd"));
}
