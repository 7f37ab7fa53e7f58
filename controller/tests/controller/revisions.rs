//! History of revisions, and rollback.

use std::time::Duration;

use isthmus_proto::v1;
use tonic::Code;

use crate::lab::{Controller, any, apply_request, eventually};

const ONE: &str = "[host.a]\n[service.web]\nport = 80\nhosts = [\"a\"]\n";

fn two() -> String {
    ONE.replace("port = 80", "port = 81")
}

async fn history(controller: &Controller) -> Vec<v1::AppliedRevision> {
    controller.admin().await.list_revisions(any()).await.unwrap().into_inner().revisions
}

async fn running(controller: &Controller, revision: u64) -> v1::Topology {
    let request = v1::ReadTopologyRequest { revision };
    controller.admin().await.read_topology(request).await.unwrap().into_inner()
}

fn on_trial(text: &str, seconds: u64) -> v1::ApplyRequest {
    v1::ApplyRequest { confirm_within_seconds: seconds, ..apply_request(text, false) }
}

async fn unconfirmed(controller: &Controller) -> Option<v1::Problem> {
    let problems = controller.status().await.problems;
    problems.into_iter().find(|problem| problem.code == "unconfirmed")
}

async fn port(controller: &Controller) -> u32 {
    controller.status().await.services[0].service.as_ref().unwrap().port
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_applied_is_kept_with_who_and_when_over_a_restart() {
    let mut controller = Controller::start().await;
    assert!(
        history(&controller).await.is_empty() && running(&controller, 0).await.applied.is_none()
    );
    let first = controller.apply(ONE).await;
    assert_eq!(first.replaces, None, "nothing ran before");
    let first = first.revision;
    assert_eq!(controller.apply(ONE).await.replaces, None, "nothing changes");
    controller.join("a").await;
    let note = "web moves".to_owned();
    let second = controller.try_request(v1::ApplyRequest { note, ..apply_request(&two(), false) });
    let second = second.await;
    let replaced = second.replaces.unwrap();
    assert_eq!((replaced.revision, &*replaced.by), (first, "admin"));
    assert!(replaced.at > 1_700_000_000);
    let second = second.revision;
    // The same in other words stays the same revision.
    let commented = format!("{}# the end\n", two());
    controller.apply(&commented).await;
    for _ in 0..2 {
        let kept = history(&controller).await;
        let told: Vec<_> = kept.iter().map(|it| (it.revision, &*it.by, &*it.note)).collect();
        assert_eq!(told, [(second, "admin", "web moves"), (first, "admin", "")]);
        assert!(kept.iter().all(|it| it.at > 1_700_000_000 && it.undone_at == 0));
        assert_eq!(running(&controller, 0).await.files[0].text, commented);
        // What was in force when the host joined.
        let then = running(&controller, second - 1).await;
        assert_eq!((&*then.files[0].text, then.applied.unwrap().revision), (ONE, first));
        controller.restart().await;
    }
    let lost = v1::ReadTopologyRequest { revision: 99_999 };
    let lost = controller.admin().await.read_topology(lost).await.unwrap_err();
    assert_eq!(lost.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_operators_the_second_hears_of_the_first() {
    let controller = Controller::start().await;
    let seen = controller.apply(ONE).await.revision;
    // A host that joins is no operator.
    controller.join("a").await;
    let bob = controller.add_operator("bob", "apply").await;
    let request = |text: &str, revision| v1::ApplyRequest {
        if_revision: Some(revision),
        note: "by bob".to_owned(),
        ..apply_request(text, false)
    };
    let mut bobs = controller.admin_as(&bob).await;
    let done = bobs.apply(request(&two(), seen)).await.unwrap().into_inner().revision;
    for dry_run in [true, false] {
        let late = v1::ApplyRequest { dry_run, ..request(ONE, done - 1) };
        let late = controller.admin().await.apply(late).await.unwrap_err();
        assert_eq!(late.code(), Code::Aborted);
        for part in ["Nothing was changed", "bob applied revision", "(by bob)", "at 20"] {
            assert!(late.message().contains(part), "{part} in {}", late.message());
        }
    }
    assert_eq!(port(&controller).await, 81);
    let future = controller.admin().await.apply(request(ONE, done + 50)).await.unwrap_err();
    assert!(future.message().contains("no revision"), "{}", future.message());
    let back = controller.admin().await.apply(request(ONE, done)).await.unwrap().into_inner();
    let replaced = back.replaces.unwrap();
    assert_eq!((replaced.revision, &*replaced.by, &*replaced.note), (done, "bob", "by bob"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_confirms_is_undone() {
    let controller = Controller::start().await;
    controller.join("a").await;
    controller.apply(ONE).await;
    let tried = controller.try_request(on_trial(&two(), 1)).await;
    assert!(tried.undone_at > 0);
    eventually(async || port(&controller).await == 80).await;
    let kept = history(&controller).await;
    let note =
        format!("revision {} of admin was undone: nobody confirmed it within 1 s", tried.revision);
    assert_eq!((&*kept[0].by, &kept[0].note), ("controller", &note));
    assert!(unconfirmed(&controller).await.is_none());
    let late = controller.admin().await.confirm(any()).await.unwrap_err();
    assert!(late.code() == Code::NotFound && late.message().contains(&note), "{}", late.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_keeps_others_out_until_it_is_confirmed_or_taken_back() {
    let controller = Controller::start().await;
    controller.apply(ONE).await;
    let tried = controller.try_request(on_trial(&two(), 600)).await;
    let problem = unconfirmed(&controller).await.unwrap();
    assert!(problem.remedy.contains("agentctl confirm"));
    assert_eq!(history(&controller).await[0].undone_at, tried.undone_at);
    let other = controller.admin().await.apply(apply_request(ONE, false)).await.unwrap_err();
    assert!(
        other.message().contains("revision") && other.message().contains("of admin"),
        "{other}"
    );
    // Looking is free.
    controller.admin().await.apply(apply_request(ONE, true)).await.unwrap();
    let confirmed = controller.admin().await.confirm(any()).await.unwrap().into_inner();
    assert_eq!((confirmed.revision, port(&controller).await), (tried.revision, 81));
    assert!(unconfirmed(&controller).await.is_none());

    controller.try_request(on_trial(ONE, 600)).await;
    let undo = v1::ConfirmRequest { undo: true };
    let undone = controller.admin().await.confirm(undo).await.unwrap().into_inner();
    assert_eq!(
        (port(&controller).await, history(&controller).await[0].revision),
        (81, undone.revision)
    );
    controller.apply(ONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_outlives_the_controller() {
    let mut controller = Controller::start().await;
    controller.apply(ONE).await;
    controller.try_request(on_trial(&two(), 6)).await;
    controller.restart().await;
    assert!(port(&controller).await == 81 && unconfirmed(&controller).await.is_some());
    eventually(async || port(&controller).await == 80).await;

    // Its time is over while nobody runs.
    let tried = controller.try_request(on_trial(&two(), 1)).await;
    controller
        .restart_after(|_| {
            let over =
                || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            while over() < Duration::from_secs(u64::try_from(tried.undone_at).unwrap()) {
                std::thread::yield_now();
            }
        })
        .await;
    eventually(async || port(&controller).await == 80).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_a_trial_took_away_goes_on_where_it_was() {
    let controller = Controller::start().await;
    let rollout = "[host.a]\n[service.api]\nport = 80\nprotocol = \"http\"\nhosts = [\"a\"]\n\
                   [service.v2]\nport = 81\nprotocol = \"http\"\nhosts = [\"a\"]\n\
                   [[route.api]]\nname = \"api\"\n[rollout.api]\nroute = \"api\"\nstable = \"api\"\ncanary = \"v2\"\n";
    controller.apply(rollout).await;
    let promote = v1::SteerDeliveryRequest {
        name: "api".to_owned(),
        order: v1::steer_delivery_request::Order::Promote.into(),
    };
    controller.admin().await.steer_delivery(promote).await.unwrap();
    let tried = controller.try_request(on_trial(ONE, 600)).await;
    assert!(tried.notes[0].contains("rollout api ends (promoted at 100 %)"), "{:?}", tried.notes);
    controller.admin().await.confirm(v1::ConfirmRequest { undo: true }).await.unwrap();
    let listed = controller.admin().await.list_deliveries(any()).await.unwrap().into_inner();
    assert_eq!((&*listed.deliveries[0].phase, listed.deliveries[0].weight), ("promoted", 100));
}
