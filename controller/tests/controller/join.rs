use std::time::{SystemTime, UNIX_EPOCH};

use isthmus_model::token::{Token, TokenId};
use isthmus_proto::v1;
use isthmus_proto::v1::join_client::JoinClient;
use rcgen::KeyPair;
use tonic::Code;
use zeroize::Zeroizing;

use crate::lab::{Controller, any, certificate_request, eventually, join_request, random};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_a_host_in_and_pins_the_ca() {
    let controller = Controller::start().await;
    let labels = [("role".to_owned(), "app".to_owned())].into();
    let token = controller.token(v1::CreateTokenRequest { labels, ..Default::default() }).await;
    let joined = controller.join_with(&token, "app-1").await.unwrap();
    assert_eq!(token.controllers, [controller.address.to_string()]);
    assert_eq!(token.ca_hash, *blake3::hash(&joined.identity.chain[1]).as_bytes());
    let status = controller.host("app-1").await;
    assert_eq!(status.host.as_ref().unwrap().labels["role"], "app");
    assert!(!status.connected && status.certificate_expires > status.joined);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_services_needs_a_token_of_its_own() {
    let controller = Controller::start().await;
    controller.apply("[host.web-1]\n[service.web]\nport = 80\nhosts = [\"web-1\"]\n").await;
    let any_host = controller.token(v1::CreateTokenRequest::default()).await;
    let refused = controller.join_with(&any_host, "web-1").await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("token create --host web-1"), "{}", refused.message());
    // It wasn't used up by that.
    controller.join_with(&any_host, "other-1").await.unwrap();
    controller.join("web-1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_is_refused_with_the_reason() {
    let controller = Controller::start().await;
    let said = async |token: &Token, name: &str| {
        let status = controller.join_with(token, name).await.err().expect("it is refused");
        assert_eq!(status.code(), Code::Unauthenticated);
        status.message().to_owned()
    };
    let good = controller.token(v1::CreateTokenRequest { uses: 2, ..Default::default() }).await;

    let unknown = Token { id: TokenId([9; 8]), ..good.clone() };
    assert!(said(&unknown, "a").await.contains("unknown token 0909090909090909"));
    let wrong = Token { secret: Zeroizing::new([9; 32]), ..good.clone() };
    assert!(said(&wrong, "a").await.contains("wrong secret"));

    controller.join_with(&good, "a").await.unwrap();
    controller.join_with(&good, "b").await.unwrap();
    assert!(said(&good, "c").await.contains("used up (2 of 2 uses)"));

    let revoked = controller.token(v1::CreateTokenRequest::default()).await;
    let request = v1::RevokeTokenRequest { id: revoked.id.to_string() };
    controller.admin().await.revoke_token(request).await.unwrap();
    assert!(said(&revoked, "c").await.contains("revoked"));

    let brief = v1::CreateTokenRequest { lifetime_seconds: 1, ..Default::default() };
    let brief = controller.token(brief).await;
    eventually(async || {
        let tokens = controller.admin().await.list_tokens(any()).await.unwrap().into_inner().tokens;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        tokens.iter().any(|token| token.expires <= i64::try_from(now).unwrap())
    })
    .await;
    assert!(said(&brief, "c").await.contains("expired at 20"));

    let bound = v1::CreateTokenRequest { host: "x".to_owned(), ..Default::default() };
    let bound = controller.token(bound).await;
    let text = said(&bound, "y").await;
    assert!(text.contains("\"x\" only") && text.contains("\"y\""), "{text}");
    controller.join_with(&bound, "x").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_name_or_key_is_refused_and_costs_no_use() {
    let controller = Controller::start().await;
    controller.join("app-1").await;
    let token = controller.token(v1::CreateTokenRequest::default()).await;
    let refused = controller.join_with(&token, "app-1").await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("agentctl host remove app-1"), "{}", refused.message());

    let mut client = JoinClient::new(controller.channel(None).await);
    let key = controller.host("app-1").await.host.unwrap().public_key;
    let (request, _) = join_request(&token, "app-2");
    let refused = client.join(v1::JoinRequest { public_key: key, ..request }).await.unwrap_err();
    assert!(refused.message().contains("\"app-1\""), "{}", refused.message());
    controller.join_with(&token, "app-2").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_request_is_refused_with_the_reason() {
    let controller = Controller::start().await;
    let token = controller.token(v1::CreateTokenRequest::default()).await;
    let mut client = JoinClient::new(controller.channel(None).await);
    let good = || join_request(&token, "app-1").0;
    let bad = [
        (v1::JoinRequest { host: "App".to_owned(), ..good() }, "\"App\""),
        (v1::JoinRequest { public_key: vec![1; 31], ..good() }, "32 bytes"),
        (v1::JoinRequest { certificate_request: random(), ..good() }, "certificate request"),
        (v1::JoinRequest { token_id: "x".to_owned(), ..good() }, "hexadecimal"),
    ];
    for (request, expected) in bad {
        let status = client.join(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(expected), "{}", status.message());
    }
    client.join(good()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_share_one_use_one_joins() {
    let controller = Controller::start().await;
    let token = controller.token(v1::CreateTokenRequest::default()).await;
    let (a, b) =
        tokio::join!(controller.join_with(&token, "app-1"), controller.join_with(&token, "app-2"));
    assert_eq!([a.is_ok(), b.is_ok()].iter().filter(|ok| **ok).count(), 1);
    assert_eq!(controller.status().await.hosts.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slowed_down() {
    let controller = Controller::start().await;
    let good = controller.token(v1::CreateTokenRequest::default()).await;
    let wrong = Token { secret: Zeroizing::new([9; 32]), ..good };
    let mut client = JoinClient::new(controller.channel(None).await);
    let mut codes = Vec::new();
    for _ in 0..30 {
        let (request, _) = join_request(&wrong, "app-1");
        codes.push(client.join(request).await.unwrap_err().code());
    }
    assert_eq!(codes[0], Code::Unauthenticated);
    assert_eq!(codes[29], Code::ResourceExhausted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_renews_its_certificate_until_it_is_removed() {
    let controller = Controller::start().await;
    let old = controller.join("app-1").await;
    let key = KeyPair::generate().unwrap();
    let renew = || v1::RenewRequest { certificate_request: certificate_request(&key) };
    let mut client = controller.sync(&old.identity).await;
    let renewed = client.renew(renew()).await.unwrap().into_inner();
    assert_eq!(renewed.chain.len(), 2);
    assert_ne!(renewed.chain[0], old.identity.chain[0]);
    let status = client.renew(v1::RenewRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);

    let remove = v1::RemoveHostRequest { name: "app-1".to_owned() };
    controller.admin().await.remove_host(remove).await.unwrap();
    let refused = client.renew(renew()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    // The name is free again; a certificate of the former membership stays worthless.
    let new = controller.join("app-1").await;
    assert_ne!(new.id, old.id);
    let refused = client.renew(renew()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("was removed"), "{}", refused.message());
    controller.sync(&new.identity).await.renew(renew()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_listed_without_their_secrets() {
    let controller = Controller::start().await;
    let token = controller.token(v1::CreateTokenRequest { uses: 3, ..Default::default() }).await;
    controller.join_with(&token, "app-1").await.unwrap();
    let listed = controller.admin().await.list_tokens(any()).await.unwrap().into_inner().tokens;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].used, listed[0].uses, listed[0].revoked), (1, 3, false));
    assert_eq!(listed[0].id, token.id.to_string());
    let request = v1::RevokeTokenRequest { id: "0000000000000000".to_owned() };
    let missing = controller.admin().await.revoke_token(request).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}
