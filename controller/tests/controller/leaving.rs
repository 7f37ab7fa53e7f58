//! Hosts that take themselves out of the mesh.

use isthmus_proto::v1;
use isthmus_proto::v1::controller_message::Body as Heard;
use tonic::{Code, Status};

use crate::lab::{Controller, Joined, eventually};

async fn leave(controller: &Controller, joined: &Joined, instance: u8) -> Result<u64, Status> {
    let request = v1::LeaveRequest { instance: vec![instance] };
    let answer = controller.sync(&joined.identity).await.leave(request).await?;
    Ok(answer.into_inner().revision)
}

fn is_listed(status: &v1::MeshStatus, name: &str) -> bool {
    status.hosts.iter().any(|host| host.host.as_ref().unwrap().name == name)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_is_forgotten_by_all_and_can_come_again() {
    let mut controller = Controller::start().await;
    controller.apply("[host.app-1]\n[host.app-2]\n[[allow]]\nname = \"a\"\nfrom = \"host:app-1\"\nto = \"host:app-2\"\n").await;
    let (first, second) = (controller.join("app-1").await, controller.join("app-2").await);
    let mut peer = controller.connect(&second).await;
    peer.follow_until(|peer| peer.knows_host("app-1").is_some()).await;

    let revision = leave(&controller, &first, 1).await.unwrap();
    peer.follow_until(|peer| peer.knows_host("app-1").is_none()).await;
    assert_eq!(peer.revision, revision);
    controller.restart().await;
    let status = controller.status().await;
    assert!(!is_listed(&status, "app-1") && is_listed(&status, "app-2"), "{status:?}");
    let [problem] = &*status.problems else { panic!("{status:?}") };
    assert_eq!((&*problem.code, &*problem.subject), ("host-left", "app-1"));
    assert!(problem.text.contains("left the mesh at 20"), "{problem:?}");
    assert!(problem.remedy.starts_with("`agentctl token create --host app-1`"), "{problem:?}");
    let audit = controller.audit().await;
    assert_eq!(audit[0], ("host app-1".to_owned(), "leave the mesh".to_owned(), true));

    // Its keys are worth nothing any more; who didn't hear the answer may ask again.
    assert_eq!(controller.renew(&first).await.err().unwrap().code(), Code::PermissionDenied);
    let heard = controller.connect(&first).await.hear().await;
    assert!(matches!(heard, Ok(Some(Heard::Removed(_)))), "{heard:?}");
    assert_eq!(leave(&controller, &first, 1).await.unwrap(), revision);

    let again = controller.join("app-1").await;
    assert_ne!(again.id, first.id);
    assert_eq!(controller.status().await.problems, [], "it is there again");
    // Who has the keys of a former membership doesn't end this one.
    leave(&controller, &first, 1).await.unwrap();
    assert!(is_listed(&controller.status().await, "app-1"));

    let remove = v1::RemoveHostRequest { name: "app-1".to_owned() };
    controller.admin().await.remove_host(remove).await.unwrap();
    let problems = controller.status().await.problems;
    assert!(problems[0].text.contains("was removed from the mesh by admin at 20"), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_machine_does_not_take_the_originals_place_away() {
    let controller = Controller::start().await;
    let joined = controller.join("app-1").await;
    let mut original =
        controller.try_connect(&joined, Default::default(), 0, vec![1]).await.unwrap();
    original.settle(&controller, "app-1").await;
    let answering = tokio::spawn(async move {
        loop {
            if let Ok(Some(Heard::Check(check))) = original.hear().await {
                let checked = v1::Checked { number: check.number, clash: String::new() };
                original.say(v1::agent_message::Body::Checked(checked)).await;
                return original;
            }
        }
    });
    let refused = leave(&controller, &joined, 2).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("Another machine, at 127.0.0.1"), "{refused}");
    assert!(controller.host("app-1").await.connected);
    // The agent itself may, whose stream may not have ended yet.
    let _original = answering.await.unwrap();
    leave(&controller, &joined, 1).await.unwrap();
    eventually(async || !is_listed(&controller.status().await, "app-1")).await;
}
