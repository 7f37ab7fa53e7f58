//! Roles, revocation and the audit log.

use std::time::{Duration, Instant, SystemTime};

use isthmus_proto::v1;
use isthmus_proto::v1::credentials_client::CredentialsClient;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType, SerialNumber};
use tonic::{Code, Status};

use crate::lab::{
    Controller, Identity, any, apply_request, certificate_request, client_config, eventually,
    patiently,
};

const MESH: &str = "[host.a]\n[service.web]\nport = 80\nhosts = [\"a\"]\n";

/// What a role gets for each thing that it can ask.
async fn answers(controller: &Controller, identity: &Identity) -> Vec<(&'static str, Code)> {
    let mut admin = controller.admin_as(identity).await;
    let code = |done: Result<(), Status>| done.map_or_else(|status| status.code(), |()| Code::Ok);
    let steer = v1::SteerDeliveryRequest { name: "none".to_owned(), order: 1 };
    let add = v1::AddOperatorRequest {
        name: "zoe".to_owned(),
        role: "root".to_owned(),
        ..Default::default()
    };
    let revoke = v1::RevokeOperatorRequest { name: "zoe".to_owned(), yes: false };
    let host = v1::RemoveHostRequest { name: "none".to_owned() };
    let token = v1::RevokeTokenRequest { id: "0102030405060708".to_owned() };
    vec![
        ("status", code(admin.read_status(any()).await.map(drop))),
        ("topology", code(admin.read_topology(any()).await.map(drop))),
        ("history", code(admin.list_revisions(any()).await.map(drop))),
        ("tokens", code(admin.list_tokens(any()).await.map(drop))),
        ("deliveries", code(admin.list_deliveries(any()).await.map(drop))),
        ("operators", code(admin.list_operators(any()).await.map(drop))),
        ("audit", code(admin.read_audit(any()).await.map(drop))),
        ("watch", code(admin.watch_rollout(any()).await.map(drop))),
        ("device", code(admin.export_device(any()).await.map(drop))),
        ("dry run", code(admin.apply(apply_request(MESH, true)).await.map(drop))),
        ("apply", code(admin.apply(apply_request(MESH, false)).await.map(drop))),
        ("confirm", code(admin.confirm(any()).await.map(drop))),
        ("steer", code(admin.steer_delivery(steer).await.map(drop))),
        ("create token", code(admin.create_token(any()).await.map(drop))),
        ("revoke token", code(admin.revoke_token(token).await.map(drop))),
        ("remove host", code(admin.remove_host(host).await.map(drop))),
        ("add operator", code(admin.add_operator(add).await.map(drop))),
        ("revoke operator", code(admin.revoke_operator(revoke).await.map(drop))),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_what_it_is_for() {
    let controller = Controller::start().await;
    let expected = |denied: &[&'static str]| {
        let answer = |(what, granted): (&'static str, Code)| {
            (what, if denied.contains(&what) { Code::PermissionDenied } else { granted })
        };
        let (ok, none) = (Code::Ok, Code::NotFound);
        let all = [
            ("status", ok),
            ("topology", ok),
            ("history", ok),
            ("tokens", ok),
            ("deliveries", ok),
            ("operators", ok),
            ("audit", ok),
            ("watch", ok),
            ("device", none),
            ("dry run", ok),
            ("apply", ok),
            ("confirm", none),
            ("steer", none),
            ("create token", ok),
            ("revoke token", none),
            ("remove host", none),
            ("add operator", Code::InvalidArgument),
            ("revoke operator", none),
        ];
        all.map(answer).to_vec()
    };
    let admins = ["create token", "revoke token", "remove host", "add operator", "revoke operator"];
    let changes = [&["apply", "confirm", "steer"], &admins[..]].concat();
    for (role, denied) in [("view", &changes[..]), ("apply", &admins[..]), ("admin", &[][..])] {
        let identity = controller.add_operator(&format!("x-{role}"), role).await;
        assert_eq!(answers(&controller, &identity).await, expected(denied), "{role}");
    }
    // Another role holds for the same credentials.
    let bob = controller.add_operator("bob", "view").await;
    let role = |role: &str| v1::AddOperatorRequest {
        name: "bob".to_owned(),
        role: role.to_owned(),
        certificate_request: Vec::new(),
    };
    controller.admin().await.add_operator(role("apply")).await.unwrap();
    assert_eq!(answers(&controller, &bob).await, expected(&admins));
    let typo = v1::AddOperatorRequest { name: "bbo".to_owned(), ..role("apply") };
    let typo = controller.admin().await.add_operator(typo).await.unwrap_err();
    assert_eq!(typo.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_revoked_is_out_within_a_second_and_for_good() {
    let mut controller = Controller::start().await;
    let bob = controller.add_operator("bob", "admin").await;
    let mut bobs = controller.admin_as(&bob).await;
    controller.join("a").await;
    let revision = bobs.apply(apply_request(MESH, false)).await.unwrap().into_inner().revision;
    // An agent that is away keeps the stream open.
    let watch = v1::WatchRolloutRequest { revision };
    let mut stream = bobs.watch_rollout(watch).await.unwrap().into_inner();
    assert!(!stream.message().await.unwrap().unwrap().complete);

    let started = Instant::now();
    let revoke = v1::RevokeOperatorRequest { name: "bob".to_owned(), yes: false };
    controller.admin().await.revoke_operator(revoke).await.unwrap();
    assert!(patiently(stream.message()).await.unwrap().is_none(), "the stream ends");
    let refused = bobs.read_status(any()).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("revoked"), "{}", refused.message());

    // Not by a new connection, a renewal, a restart, or since somebody of that name is added again.
    let mut fresh = controller.add_operator("bob", "view").await;
    for _ in 0..2 {
        let again = controller.admin_as(&bob).await.read_status(any()).await.unwrap_err();
        assert_eq!(again.code(), Code::Unauthenticated);
        assert_eq!(renew(&controller, &bob).await.err().unwrap().code(), Code::Unauthenticated);
        controller.admin_as(&fresh).await.read_status(any()).await.unwrap();
        fresh = renew(&controller, &fresh).await.unwrap();
        controller.restart().await;
    }
    let typo = v1::RevokeOperatorRequest { name: "bbo".to_owned(), yes: false };
    let typo = controller.admin().await.revoke_operator(typo).await.unwrap_err();
    assert!(
        typo.code() == Code::NotFound && typo.message().contains("--yes"),
        "{}",
        typo.message()
    );
}

async fn renew(controller: &Controller, identity: &Identity) -> Result<Identity, Status> {
    let key = KeyPair::try_from(identity.key.clone()).unwrap();
    let request = v1::RenewRequest { certificate_request: certificate_request(&key) };
    let mut client = CredentialsClient::new(controller.channel(Some(identity)).await);
    let chain = client.renew(request).await?.into_inner().chain;
    Ok(Identity { chain, ..identity.clone() })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_good_for_a_new_one_and_nothing_else() {
    let mut controller = Controller::start().await;
    controller.operator_lifetime = Some(Duration::from_secs(2));
    controller.restart().await;
    let bob = controller.add_operator("bob", "view").await;
    eventually(async || {
        let status = controller.admin_as(&bob).await.read_status(any()).await;
        status.is_err_and(|status| status.message().contains("expired at 20"))
    })
    .await;
    let host = controller.join("a").await;
    assert_eq!(
        renew(&controller, &host.identity).await.err().unwrap().code(),
        Code::PermissionDenied
    );
    controller.operator_lifetime = None;
    controller.restart().await;
    let fresh = renew(&controller, &bob).await.unwrap();
    controller.admin_as(&fresh).await.read_status(any()).await.unwrap();
}

/// What an operator's certificate was before there were roles, and one that nobody used for long.
fn signed(controller: &Controller, name: &str, begins: i64, ends: i64) -> Identity {
    let file = |name: &str| std::fs::read_to_string(controller.state().join(name)).unwrap();
    let issuer = KeyPair::from_pem(&file("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&file("ca.pem"), issuer).unwrap();
    let mut params = CertificateParams::default();
    let time = |days: i64| {
        let span = Duration::from_secs(days.unsigned_abs() * 86_400);
        let now = SystemTime::now();
        if days < 0 { now - span } else { now + span }
    };
    (params.not_before, params.not_after) = (time(begins).into(), time(ends).into());
    let uri = format!("spiffe://corp.example/operator/{name}");
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.serial_number = Some(SerialNumber::from_slice(&[[0x20].to_vec(), vec![7; 15]].concat()));
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    Identity { chain: vec![leaf.der().to_vec()], key: key.serialize_der() }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_from_before_there_were_roles_are_administrators() {
    let controller = Controller::start().await;
    let old = signed(&controller, "old", -100, 265);
    let mut admin = controller.admin_as(&old).await;
    admin.create_token(any()).await.unwrap();
    renew(&controller, &old).await.unwrap();
    let listed = controller.admin().await.list_operators(any()).await.unwrap().into_inner();
    let listed: Vec<_> = listed.operators.iter().map(|it| (&*it.name, &*it.role)).collect();
    assert_eq!(listed, [("admin", "admin"), ("old", "admin")]);
    let revoke = v1::RevokeOperatorRequest { name: "old".to_owned(), yes: false };
    controller.admin().await.revoke_operator(revoke).await.unwrap();
    assert_eq!(admin.read_status(any()).await.unwrap_err().code(), Code::Unauthenticated);

    // Who was away for too long doesn't come as far as to ask.
    let away = signed(&controller, "away", -100, -31);
    let config = client_config(&controller.state().join("ca.pem"), Some(&away));
    if let Ok(channel) = controller.try_channel(config).await {
        let refused = CredentialsClient::new(channel).renew(any()).await.unwrap_err();
        assert_ne!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let late = signed(&controller, "late", -100, -29);
    renew(&controller, &late).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_act_is_written_down_whatever_became_of_it() {
    let mut controller = Controller::start().await;
    controller.join("a").await;
    let eve = controller.add_operator("eve", "view").await;
    let mut eves = controller.admin_as(&eve).await;
    for _ in 0..3 {
        eves.remove_host(v1::RemoveHostRequest { name: "a".to_owned() }).await.unwrap_err();
    }
    let note = "first".to_owned();
    controller.try_request(v1::ApplyRequest { note, ..apply_request(MESH, false) }).await;
    controller.try_apply("[host", false).await;
    controller.try_request(v1::ApplyRequest { yes: false, ..apply_request("", false) }).await;
    controller.try_apply(MESH, true).await;
    controller
        .admin()
        .await
        .remove_host(v1::RemoveHostRequest { name: "b".to_owned() })
        .await
        .unwrap_err();
    controller
        .admin()
        .await
        .remove_host(v1::RemoveHostRequest { name: "a".to_owned() })
        .await
        .unwrap();
    let expected = [
        ("admin", "remove host a", true),
        ("admin", "remove host b", false),
        ("admin", "apply a topology", false),
        ("admin", "apply a topology", false),
        ("admin", "apply a topology (first)", true),
        ("eve", "remove host a", false),
        ("admin", "add operator eve (view)", true),
        ("admin", "create a join token for host a", true),
    ];
    let expected = expected.map(|(who, what, done)| (who.to_owned(), what.to_owned(), done));
    assert_eq!(controller.audit().await, expected);
    controller.restart().await;
    assert_eq!(controller.audit().await, expected);
    let audit = v1::ReadAuditRequest { who: "eve".to_owned(), most: 5 };
    let acts = controller.admin_as(&eve).await.read_audit(audit).await.unwrap().into_inner().acts;
    let [act] = &acts[..] else { panic!("{acts:?}") };
    assert_eq!((act.times, &*act.from), (3, "127.0.0.1"));
    assert!(act.result.contains("role view") && act.at > 1_700_000_000, "{act:?}");
}
