//! Return of a host that was away, or whose answers were lost: it needs its key, or a token of its own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isthmus_proto::v1;
use isthmus_proto::v1::controller_message::Body as Heard;
use rcgen::KeyPair;
use tonic::Code;

use crate::lab::{
    Controller, Joined, any, certificate_request, client_config, eventually, join_request, random,
};

/// Of certificates that are to expire in a test. Long enough to be used on a busy machine.
const BRIEF: Duration = Duration::from_secs(4);

async fn expired(controller: &Controller, name: &str) {
    eventually(async || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        controller.host(name).await.certificate_expires <= i64::try_from(now).unwrap()
    })
    .await;
}

async fn status_of_connecting(controller: &Controller, joined: &Joined) -> tonic::Status {
    let connected = controller.try_connect(joined, Default::default(), 0, vec![]).await;
    connected.err().expect("it is refused")
}

async fn addresses(controller: &Controller, name: &str) -> (u32, String, String) {
    let status = controller.host(name).await;
    let host = status.host.unwrap();
    (host.id, status.ipv6, host.ipv4_block)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_renews_with_an_expired_certificate_and_nothing_else() {
    let mut controller = Controller::start_with(Some(BRIEF)).await;
    let mut hosts = Vec::new();
    for name in ["app-1", "app-2", "app-3"] {
        hosts.push(controller.join(name).await);
    }
    let before = addresses(&controller, "app-1").await;
    let removed = hosts.pop().unwrap();
    controller
        .admin()
        .await
        .remove_host(v1::RemoveHostRequest { name: removed.name.clone() })
        .await
        .unwrap();
    expired(&controller, "app-2").await;
    controller.restart().await;

    for host in &hosts {
        let refused = status_of_connecting(&controller, host).await;
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("expired at 20"), "{}", refused.message());
        let renewed = controller.renew(host).await.unwrap();
        assert_eq!(controller.connect(&renewed).await.follow().await.base, 0);
    }
    assert_eq!(addresses(&controller, "app-1").await, before);

    // One that was removed hears so, whatever its certificate.
    let refused = controller.renew(&removed).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let heard = controller.connect(&removed).await.hear().await;
    assert!(matches!(heard, Ok(Some(Heard::Removed(_)))), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_away_or_never_came_is_a_problem_with_a_since_and_a_remedy() {
    let mut controller = Controller::start_with(Some(BRIEF)).await;
    let topology = "[host.app-1]\n[host.db-9]\n";
    controller.apply(topology).await;
    let missing: Vec<String> =
        controller.status().await.problems.into_iter().map(|it| it.subject).collect();
    assert_eq!(missing, ["app-1", "db-9"]);
    let joined = controller.join("app-1").await;
    let agent = controller.connect(&joined).await;
    eventually(async || controller.host("app-1").await.problems.is_empty()).await;
    let status = controller.status().await;
    let [problem] = &*status.problems else { panic!("{status:?}") };
    assert_eq!((&*problem.code, &*problem.subject), ("host-not-joined", "db-9"));
    assert!(problem.since > 0 && problem.remedy.contains("`agentctl token create --host db-9`"));

    drop(agent);
    eventually(async || !controller.host("app-1").await.problems.is_empty()).await;
    expired(&controller, "app-1").await;
    let away = controller.host("app-1").await.problems.remove(0);
    assert_eq!((&*away.code, &*away.subject), ("host-away", "app-1"));
    assert!(
        away.text.contains("isn't connected") && away.text.contains("expired at 20"),
        "{away:?}"
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(i64::try_from(now).unwrap() - away.since < 60, "{away:?}");
    assert!(away.remedy.starts_with("`systemctl start isthmus-agent` on app-1"), "{away:?}");
    controller.restart().await;
    let away = controller.host("app-1").await.problems.remove(0);
    assert!(away.text.contains("since the controller began") && away.since > 0, "{away:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_outlives_its_certificate_goes_on_and_renews() {
    let controller = Controller::start_with(Some(BRIEF)).await;
    let joined = controller.join("app-1").await;
    let mut client = controller.sync(&joined.identity).await;
    let mut agent = controller.connect(&joined).await;
    agent.follow().await;
    expired(&controller, "app-1").await;
    let key = KeyPair::generate().unwrap();
    let request = v1::RenewRequest { certificate_request: certificate_request(&key) };
    client.renew(request).await.unwrap();
    controller.join("app-2").await;
    agent.follow().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_of_another_ca_is_worth_nothing() {
    let (controller, other) =
        tokio::join!(Controller::start(), Controller::start_with(Some(Duration::from_secs(1))));
    controller.join("app-1").await;
    let foreign = other.join("app-1").await;
    expired(&other, "app-1").await;
    let config = client_config(&controller.state().join("ca.pem"), Some(&foreign.identity));
    if let Ok(channel) = controller.try_channel(config).await {
        let mut client = v1::sync_client::SyncClient::new(channel);
        let request = v1::RenewRequest {
            certificate_request: certificate_request(&KeyPair::generate().unwrap()),
        };
        let refused = client.renew(request).await.unwrap_err();
        assert_ne!(refused.code(), Code::PermissionDenied, "it doesn't come so far: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_its_own_lets_a_member_join_anew_under_its_number() {
    let controller = Controller::start().await;
    let labels = [("role".to_owned(), "app".to_owned())].into();
    let token = controller.token(v1::CreateTokenRequest { labels, ..Default::default() }).await;
    let former = controller.join_with(&token, "app-1").await.unwrap();
    let before = addresses(&controller, "app-1").await;
    let mut agent = controller.connect(&former).await;
    agent.follow().await;

    let any_host = controller.token(v1::CreateTokenRequest::default()).await;
    let refused = controller.join_with(&any_host, "app-1").await.err().unwrap();
    assert!(refused.message().contains("token create --host app-1"), "{}", refused.message());

    let own = v1::CreateTokenRequest { host: "app-1".to_owned(), ..Default::default() };
    let own = controller.token(own).await;
    let again = controller.join_with(&own, "app-1").await.unwrap();
    assert_eq!(addresses(&controller, "app-1").await, before);
    assert_eq!(controller.host("app-1").await.host.unwrap().labels["role"], "app");
    controller.connect(&again).await.follow().await;
    controller.renew(&again).await.unwrap();

    // Whoever has the former keys isn't this host any more.
    let told = loop {
        if let Heard::Removed(removed) = agent.hear().await.unwrap().unwrap() {
            break removed.reason;
        }
    };
    assert!(told.contains("joined anew"), "{told}");
    let refused = controller.renew(&former).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_whose_answer_was_lost_gets_it_again() {
    let mut controller = Controller::start().await;
    let token = controller.token(v1::CreateTokenRequest::default()).await;
    let (request, key) = join_request(&token, "app-1");
    let lost = controller.join_by(request.clone(), &key).await.unwrap();
    controller.restart().await;
    let again = controller.join_by(request.clone(), &key).await.unwrap();
    assert_eq!(again.id, lost.id);
    controller.connect(&again).await.follow().await;
    let listed = controller.admin().await.list_tokens(any()).await.unwrap().into_inner().tokens;
    assert_eq!(listed[0].used, 1);

    // Whoever finds the token, and knows the host's public key, hasn't its private one.
    let other = KeyPair::generate().unwrap();
    let stolen =
        v1::JoinRequest { certificate_request: certificate_request(&other), ..request.clone() };
    let refused = controller.join_by(stolen, &other).await.err().unwrap();
    assert!(refused.message().contains("used up"), "{}", refused.message());
    let renamed = v1::JoinRequest { host: "app-2".to_owned(), ..request.clone() };
    assert!(controller.join_by(renamed, &key).await.is_err());
    let other_key = v1::JoinRequest { public_key: random(), ..request };
    assert!(controller.join_by(other_key, &key).await.is_err());
}
