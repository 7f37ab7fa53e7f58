//! Hosts' tunnel keys that change.

use isthmus_proto::v1;
use isthmus_proto::v1::agent_message::Body as Say;
use isthmus_proto::v1::controller_message::Body as Heard;
use tonic::{Code, Status};

use crate::lab::{Agent, Controller, Joined, eventually, random};

const TOPOLOGY: &str = "[host.app-1]\n[host.gw-1]\n[[allow]]\nname = \"a\"\nfrom = \"host:app-1\"\nto = \"host:gw-1\"\n\
                        [device.press]\nvia = \"gw-1\"\nwireguard = { public_key = \"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\" }\n";

async fn rotate(
    controller: &Controller,
    name: &str,
    reissue: bool,
) -> Result<v1::RotateHostKeyResponse, Status> {
    let request = v1::RotateHostKeyRequest { name: name.to_owned(), reissue, overlap_seconds: 180 };
    controller.admin().await.rotate_host_key(request).await.map(tonic::Response::into_inner)
}

/// Follows until it is asked for a new key.
async fn is_asked(agent: &mut Agent) {
    loop {
        match agent.hear().await {
            Ok(Some(Heard::RotateKey(_))) => return,
            Ok(Some(Heard::Delta(delta))) => agent.accept(&delta).await,
            Ok(Some(_)) => {}
            other => panic!("it is asked for a key: {other:?}"),
        }
    }
}

async fn tell(agent: &Agent, public_key: Vec<u8>) {
    agent.say(Say::TunnelKey(v1::TunnelKey { public_key })).await;
}

fn keys(agent: &Agent, host: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let host = agent.knows_host(host)?;
    Some((host.public_key.clone(), host.former_public_key.clone()))
}

async fn mesh() -> (Controller, Joined, Agent) {
    let controller = Controller::start().await;
    controller.apply(TOPOLOGY).await;
    let (gateway, peer) = (controller.join("gw-1").await, controller.join("app-1").await);
    let mut peer = controller.connect(&peer).await;
    peer.follow_until(|peer| peer.knows_host("gw-1").is_some()).await;
    (controller, gateway, peer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_asked_for_until_there_is_one_and_both_are_published() {
    let (mut controller, gateway, peer) = mesh().await;
    let (before, none) = keys(&peer, "gw-1").unwrap();
    assert!(none.is_empty());
    let refused = rotate(&controller, "gw-1", false).await.unwrap_err();
    assert!(refused.message().contains("isn't connected"), "{refused}");
    let mut agent = controller.connect(&gateway).await;
    agent.follow().await;
    let refused = rotate(&controller, "gw-1", false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let words = ["files of press", "agentctl device export", "--reissue"];
    assert!(words.iter().all(|it| refused.message().contains(it)), "{refused}");

    let waiting = {
        let admin = controller.admin().await;
        tokio::spawn(async move {
            let mut admin = admin;
            let name = "gw-1".to_owned();
            let request = v1::RotateHostKeyRequest { name, reissue: true, overlap_seconds: 180 };
            admin.rotate_host_key(request).await
        })
    };
    is_asked(&mut agent).await;
    // Its agent dies before it has made one, and so does the controller: it is asked again.
    drop(agent);
    waiting.abort();
    controller.restart().await;
    let mut agent = controller.connect(&gateway).await;
    is_asked(&mut agent).await;
    let key = random();
    // What isn't a key, or somebody else's, isn't taken.
    for bad in [vec![1; 31], vec![0; 32], vec![1; 32], before.clone(), key.clone()] {
        tell(&agent, bad).await;
    }
    agent.follow_until(|agent| keys(agent, "gw-1") == Some((key.clone(), before.clone()))).await;
    // It was away since then; the host itself has yet to say that it has followed.
    eventually(async || controller.host("gw-1").await.former_key_awaits == ["app-1"]).await;
    let shown = controller.host("gw-1").await;
    assert!(shown.former_key_until > 0);
    tell(&agent, random()).await;

    let refused = rotate(&controller, "gw-1", true).await.unwrap_err();
    assert!(refused.message().contains("was changed a moment ago"), "{refused}");
    assert_eq!(controller.host("gw-1").await.host.unwrap().public_key, key);
    let audit = controller.audit().await;
    let told = |done| {
        audit.contains(&("admin".to_owned(), "rotate the tunnel key of host gw-1".to_owned(), done))
    };
    assert!(told(true) && told(false), "{audit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_understands_it_is_asked_and_only_for_times_that_make_sense() {
    let (controller, gateway, _peer) = mesh().await;
    let mut old = controller
        .connect_able(&gateway, Default::default(), 0, 0, vec!["route".to_owned()])
        .await
        .unwrap();
    old.follow().await;
    let refused = rotate(&controller, "gw-1", true).await.unwrap_err();
    assert!(refused.message().contains("too old to change its key"), "{refused}");
    let refused = rotate(&controller, "db-9", true).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    for overlap_seconds in [1, 179, 90 * 86_400 + 1, u64::MAX] {
        let request =
            v1::RotateHostKeyRequest { name: "gw-1".to_owned(), reissue: true, overlap_seconds };
        let refused = controller.admin().await.rotate_host_key(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let bob = controller.add_operator("bob", "apply").await;
    let request = v1::RotateHostKeyRequest { name: "gw-1".to_owned(), ..Default::default() };
    let refused = controller.admin_as(&bob).await.rotate_host_key(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    eventually(async || controller.host("gw-1").await.former_key_until == 0).await;
}
