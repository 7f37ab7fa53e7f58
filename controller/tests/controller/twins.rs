use isthmus_proto::v1;
use isthmus_proto::v1::agent_message::Body as Say;
use isthmus_proto::v1::controller_message::Body as Heard;
use tonic::Code;

use crate::lab::{Agent, Controller, Joined, eventually};

async fn connect(controller: &Controller, joined: &Joined, instance: u8) -> Agent {
    controller.try_connect(joined, Default::default(), 0, vec![instance]).await.unwrap()
}

/// An agent that is there: it answers.
async fn live(mut agent: Agent) -> Agent {
    loop {
        match agent.hear().await {
            Ok(Some(Heard::Check(v1::Check { number, .. }))) => {
                let clash = String::new();
                agent.say(Say::Checked(v1::Checked { number, clash })).await;
                return agent;
            }
            Ok(Some(Heard::Delta(delta))) => agent.accept(&delta).await,
            Ok(Some(_)) => {}
            other => panic!("the first one keeps its place: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_machines_with_one_identity_the_first_keeps_its_place() {
    let controller = Controller::start().await;
    let joined = controller.join("app-1").await;
    let mut first = connect(&controller, &joined, 1).await;
    first.settle(&controller, "app-1").await;
    assert_eq!(first.welcome.as_ref().unwrap().addresses, [controller.address.to_string()]);
    assert!(first.welcome.as_ref().unwrap().clock > 1_700_000_000_000);
    let revision = controller.status().await.revision;

    let first = tokio::spawn(live(first));
    let mut second = connect(&controller, &joined, 2).await;
    let refused = second.hear().await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("Another machine, at 127.0.0.1"), "{refused}");
    let _first = first.await.unwrap();

    let status = controller.status().await;
    assert_eq!(status.revision, revision, "nobody's endpoints moved");
    assert!(controller.host("app-1").await.connected);
    let problem = status.problems.iter().find(|it| it.code == "identity-twice").unwrap();
    assert_eq!(problem.subject, "app-1");
    let event = status.events.iter().find(|it| it.from_host == "app-1").unwrap();
    assert!(event.text.contains("second machine"), "{event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_gone_makes_room_for_its_next_run() {
    let controller = Controller::start().await;
    let joined = controller.join("app-1").await;
    let mut first = connect(&controller, &joined, 1).await;
    first.follow().await;
    // The same run comes back at once.
    let mut again = connect(&controller, &joined, 1).await;
    again.follow().await;
    drop((first, again));
    eventually(async || !controller.host("app-1").await.connected).await;
    connect(&controller, &joined, 2).await.follow().await;
    assert_eq!(controller.status().await.problems, []);
}
