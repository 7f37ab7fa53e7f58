use std::collections::BTreeMap;
use std::time::Instant;

use isthmus_model::Revision;
use isthmus_model::convert::snapshot;
use isthmus_proto::v1;
use isthmus_proto::v1::agent_message::Body as Say;
use isthmus_proto::v1::controller_message::Body as Heard;
use tonic::Code;

use crate::lab::{Agent, Controller, Joined, apply_request, eventually};

const TOPOLOGY: &str = r#"
[host.web-1]
[host.db-1]
[host.other-1]

[service.web]
port = 80
hosts = ["web-1"]
workload = { user = "web" }

[service.db]
port = 5432
hosts = ["db-1"]
"#;

const ALLOW: &str = r#"
[[allow]]
name = "web reads db"
from = "service:web"
to = "service:db"
"#;

fn allowed() -> String {
    format!("{TOPOLOGY}{ALLOW}")
}

async fn two() -> (Controller, [Joined; 2]) {
    let controller = Controller::start().await;
    let web = controller.join("web-1").await;
    let db = controller.join("db-1").await;
    (controller, [web, db])
}

fn assert_whole(agent: &Agent) {
    let slice = snapshot(Revision(agent.revision), agent.resources.values());
    assert!(slice.is_ok(), "{slice:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_gets_everything_first_and_then_what_differs() {
    let (controller, [web, db]) = two().await;
    let mut agent = controller.connect(&web).await;
    let first = agent.follow().await;
    assert_eq!(first.base, 0);
    assert_whole(&agent);
    assert!(agent.knows_host("db-1").is_none(), "nothing relates them yet");

    let applied = controller.apply(&allowed()).await;
    assert_eq!(applied.affected, ["db-1", "web-1"]);
    agent.follow_to(applied.revision).await;
    assert_whole(&agent);
    assert!(agent.knows_host("db-1").is_some_and(|host| host.id == db.id));
    let service = agent.resources.values().filter(|r| r.key.starts_with("service/"));
    assert_eq!(service.count(), 2);
    agent.settle(&controller, &web.name).await;

    let applied = controller.apply(&allowed().replace("5432", "5433")).await;
    let delta = agent.follow().await;
    assert_eq!((delta.revision, delta.base > 0), (applied.revision, true));
    assert_eq!(delta.changed.len(), 1, "{delta:?}");
    assert!(delta.gone.is_empty());

    controller.apply(TOPOLOGY).await;
    let delta = agent.follow().await;
    assert!(delta.gone.contains(&format!("host/{}", db.id)), "{delta:?}");
    assert!(delta.gone.contains(&"rule/web reads db".to_owned()), "{delta:?}");
    assert_whole(&agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_not_sent_what_does_not_concern_it() {
    let (controller, [web, _]) = two().await;
    let other = controller.join("other-1").await;
    controller.apply(&allowed()).await;
    let mut agent = controller.connect(&other).await;
    agent.settle(&controller, &other.name).await;
    let applied = controller.apply(&allowed().replace("user = \"web\"", "user = \"www\"")).await;
    assert_eq!(applied.affected, [web.name.as_str()]);
    // It is known to be up to date without a message.
    eventually(async || controller.host("other-1").await.revision == applied.revision).await;
    let applied = controller
        .apply(&format!("{}\n[service.new]\nport = 1\nhosts = [\"other-1\"]\n", allowed()))
        .await;
    assert_eq!(agent.delta().await.revision, applied.revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_an_answer_is_awaited_is_sent_as_one() {
    let (controller, [web, _]) = two().await;
    let mut agent = controller.connect(&web).await;
    let first = agent.delta().await;
    let mut last = 0;
    for port in 1..=5 {
        let text = allowed().replace("5432", &port.to_string());
        last = controller.apply(&text).await.revision;
    }
    eventually(async || controller.status().await.revision >= last).await;
    agent.accept(&first).await;
    let second = agent.delta().await;
    assert!(second.revision >= last && second.base == first.revision, "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_shown_and_the_next_delta_builds_on_what_the_agent_has() {
    let (controller, [web, db]) = two().await;
    let mut agent = controller.connect(&web).await;
    let mut other = controller.connect(&db).await;
    let settled = |name: &'static str| {
        move |agent: &Agent| agent.knows_host(name).is_some_and(|host| !host.endpoints.is_empty())
    };
    agent.follow_until(settled("web-1")).await;
    other.follow_until(settled("db-1")).await;

    let applied = controller.apply(&allowed()).await;
    let delta = agent.delta().await;
    let reason = "clashes with the route 100.64.0.0/10 via eth0".to_owned();
    let revision = delta.revision;
    agent.say(Say::Refused(v1::Refused { revision, reason: reason.clone() })).await;
    other.follow_to(applied.revision).await;
    controller
        .rollout(applied.revision, |rollout| {
            rollout.complete
                && rollout.accepted == ["db-1"]
                && rollout.refused.iter().any(|by| by.host == "web-1" && by.reason == reason)
        })
        .await;
    assert_eq!(controller.host("web-1").await.refusal, reason);

    let applied = controller.apply(&allowed().replace("5432", "5433")).await;
    let delta = agent.follow().await;
    assert_eq!(delta.revision, applied.revision);
    assert!(agent.knows_host("db-1").is_some());
    other.follow_to(applied.revision).await;
    controller
        .rollout(applied.revision, |rollout| rollout.complete && rollout.refused.is_empty())
        .await;
    assert_eq!(controller.host("web-1").await.refusal, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_asked_whether_a_route_is_in_the_way() {
    let (controller, [web, db]) = two().await;
    let mut agent = controller.connect(&web).await;
    let mut mute = controller.connect(&db).await;
    agent.settle(&controller, "web-1").await;
    mute.settle(&controller, "db-1").await;
    let before = controller.status().await.revision;
    let text = format!("[mesh]\nipv4 = \"100.64.0.0/10\"\n{}", allowed());

    let asking =
        |dry_run| v1::ApplyRequest { despite_clashes: false, ..apply_request(&text, dry_run) };
    let mut answer_with = async |clash: &str| {
        let check = loop {
            match agent.hear().await {
                Ok(Some(Heard::Check(check))) => break check,
                Ok(Some(Heard::Delta(delta))) => agent.accept(&delta).await,
                other => panic!("no question but {other:?}"),
            }
        };
        assert_eq!(check.prefixes.len(), 2);
        assert_eq!(check.prefixes[1], "100.64.0.0/10");
        let checked = v1::Checked { number: check.number, clash: clash.to_owned() };
        agent.say(Say::Checked(checked)).await;
    };
    let route = "100.64.0.0/12 via 192.0.2.1 dev eth0";
    let about_routes = |response: &v1::ApplyResponse| {
        response.notes.iter().filter(|note| note.contains("route")).cloned().collect::<Vec<_>>()
    };
    let (shown, ()) = tokio::join!(controller.try_request(asking(true)), answer_with(""));
    assert_eq!((about_routes(&shown), &*shown.diagnostics), (Vec::new(), &[][..]));
    // No topology brings it about, so none is held up. Who doesn't answer holds nobody up for long.
    for dry_run in [true, false] {
        assert_eq!(controller.status().await.revision, before);
        let (told, ()) = tokio::join!(controller.try_request(asking(dry_run)), answer_with(route));
        assert_eq!(told.diagnostics, []);
        let [note] = &*about_routes(&told) else { panic!("{told:?}") };
        for part in ["web-1", route, "remove the route"] {
            assert!(note.contains(part), "{part} in {note}");
        }
    }
    assert!(controller.status().await.revision > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_names_who_is_away() {
    let (controller, [web, db]) = two().await;
    let mut agent = controller.connect(&web).await;
    agent.follow().await;
    let applied = controller.apply(&allowed()).await;
    agent.follow_to(applied.revision).await;
    controller
        .rollout(applied.revision, |rollout| {
            !rollout.complete && rollout.accepted == ["web-1"] && rollout.disconnected == ["db-1"]
        })
        .await;
    let mut late = controller.connect(&db).await;
    late.follow_to(applied.revision).await;
    controller.rollout(applied.revision, |rollout| rollout.complete).await;
    let future = v1::WatchRolloutRequest { revision: 1_000 };
    let missing = controller.admin().await.watch_rollout(future).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_takes_the_place_of_the_older() {
    let (controller, [web, _]) = two().await;
    let mut older = controller.connect(&web).await;
    older
        .follow_until(|agent| {
            agent.knows_host("web-1").is_some_and(|host| !host.endpoints.is_empty())
        })
        .await;
    eventually(async || controller.host("web-1").await.revision == older.revision).await;
    let mut newer = controller.connect_again(&web, older.resources.clone(), older.revision).await;
    let delta = newer.follow().await;
    assert_eq!(delta.base, older.revision, "the controller knows what the agent has");
    assert!(delta.changed.is_empty() && delta.gone.is_empty(), "{delta:?}");
    assert_eq!(older.hear().await.unwrap_err().code(), Code::Aborted);
    assert!(controller.host("web-1").await.connected);
    drop(newer);
    eventually(async || !controller.host("web-1").await.connected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_host_is_told_at_once_and_forgotten_by_all() {
    let (controller, [web, db]) = two().await;
    controller.apply(&allowed()).await;
    let mut removed = controller.connect(&web).await;
    let mut stays = controller.connect(&db).await;
    removed.follow().await;
    stays.follow_until(|agent| agent.knows_host("web-1").is_some()).await;

    let start = Instant::now();
    let request = v1::RemoveHostRequest { name: "web-1".to_owned() };
    controller.admin().await.remove_host(request.clone()).await.unwrap();
    stays.follow_until(|agent| agent.knows_host("web-1").is_none()).await;
    assert_whole(&stays);
    let told = loop {
        match removed.hear().await.unwrap() {
            Some(
                Heard::Delta(_)
                | Heard::Check(_)
                | Heard::Watch(_)
                | Heard::Shares(_)
                | Heard::RotateKey(_)
                | Heard::Welcome(_),
            ) => {}
            Some(Heard::Removed(told)) => break told,
            None => panic!("it ended without a word"),
        }
    };
    assert!(start.elapsed().as_secs() < 1, "{:?}", start.elapsed());
    assert!(told.reason.contains("web-1"), "{}", told.reason);
    assert!(matches!(removed.hear().await, Ok(None)));

    // Its certificate is still good for TLS, and for nothing else.
    let mut again = controller.connect(&web).await;
    assert!(matches!(again.hear().await, Ok(Some(Heard::Removed(_)))));
    let missing = controller.admin().await.remove_host(request).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_numbers_addresses_and_the_revision() {
    let (mut controller, [web, db]) = two().await;
    controller.apply(&allowed()).await;
    let mut agent = controller.connect(&web).await;
    let mut other = controller.connect(&db).await;
    other.follow().await;
    agent
        .follow_until(|agent| {
            agent.knows_host("db-1").is_some_and(|host| !host.endpoints.is_empty())
        })
        .await;
    eventually(async || {
        controller.host("web-1").await.revision == controller.status().await.revision
    })
    .await;
    let before = controller.status().await;
    controller.restart().await;
    let after = controller.status().await;
    assert_eq!(after.revision, before.revision);
    assert_eq!(after.services, before.services);
    let hosts = |status: &v1::MeshStatus| -> Vec<_> {
        status
            .hosts
            .iter()
            .map(|host| (host.host.clone(), host.ipv6.clone(), host.joined))
            .collect()
    };
    assert_eq!(hosts(&after), hosts(&before));
    assert!(controller.apply(&allowed()).await.unchanged);

    // It doesn't know any more what agents have, so it sends everything.
    let mut again = controller.connect_again(&web, agent.resources.clone(), agent.revision).await;
    let delta = again.follow().await;
    assert_eq!(delta.base, 0);
    assert_eq!(again.resources, agent.resources);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_reach_those_who_need_them() {
    let (controller, [web, db]) = two().await;
    controller.apply(&allowed()).await;
    let mut agent = controller.connect(&web).await;
    let moving = controller.connect(&db).await;
    let at = |address: &str| {
        let wanted = vec![address.to_owned()];
        move |agent: &Agent| agent.knows_host("db-1").is_some_and(|host| host.endpoints == wanted)
    };
    agent.follow_until(at(&format!("192.0.2.{}:51820", db.id))).await;
    let addresses = vec!["198.51.100.7:4000".to_owned(), "nonsense".to_owned()];
    moving.say(Say::Endpoints(v1::Endpoints { addresses })).await;
    agent.follow_until(at("198.51.100.7:4000")).await;
    let fixed = allowed().replace("[host.db-1]", "[host.db-1]\nendpoints = [\"203.0.113.1:1\"]");
    controller.apply(&fixed).await;
    agent.follow_until(at("203.0.113.1:1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forgeries_are_shown_to_operators() {
    let (controller, [web, db]) = two().await;
    let other = controller.join("other-1").await;
    controller.apply(&allowed()).await;
    let mut agent = controller.connect(&web).await;
    agent.follow().await;
    let accuse = |from_host, source: &str| v1::Forgery {
        from_host,
        claimed_source: source.to_owned(),
        packets: 3,
    };
    // Whom it never meets, and what is no address, it can't have seen.
    let forgeries = vec![
        accuse(other.id, "100.64.0.98"),
        accuse(99, "100.64.0.97"),
        accuse(db.id, "who knows"),
        accuse(db.id, "100.64.0.99"),
    ];
    for _ in 0..2 {
        let forgeries = forgeries.clone();
        agent.say(Say::Report(v1::Report { forgeries, ..Default::default() })).await;
    }
    eventually(async || {
        controller.status().await.events.iter().any(|event| {
            event.reported_by == "web-1" && event.from_host == "db-1" && event.packets == 6
        })
    })
    .await;
    assert_eq!(controller.status().await.events.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_moves_all_the_time_keeps_nobody_busy() {
    let (controller, [web, db]) = two().await;
    let mut agent = controller.connect(&web).await;
    agent.settle(&controller, &web.name).await;
    let mut other = controller.connect(&db).await;
    other.settle(&controller, &db.name).await;
    let before = controller.status().await.revision;
    for port in 1..=200 {
        let addresses = vec![format!("192.0.2.99:{port}")];
        agent.say(Say::Endpoints(v1::Endpoints { addresses })).await;
        if port % 4 == 0 {
            // So that not all of it is gathered.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    eventually(async || {
        let problems = controller.status().await.problems;
        problems.iter().any(|it| it.code == "endpoints-restless" && it.subject == "web-1")
    })
    .await;
    let made = controller.status().await.revision - before;
    assert!((1..=5).contains(&made), "{made} revisions");
    // Another is followed at once.
    let addresses = vec!["192.0.2.77:1".to_owned()];
    other.say(Say::Endpoints(v1::Endpoints { addresses })).await;
    eventually(async || {
        let endpoints = controller.host("db-1").await.host.unwrap().endpoints;
        endpoints.iter().any(|it| it == "192.0.2.77:1")
    })
    .await;
}

fn has_problem(status: &v1::MeshStatus, code: &str, subject: &str) -> bool {
    status.problems.iter().any(|it| it.code == code && it.subject == subject)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_goes_back_aloud_and_gives_no_number_twice() {
    let (mut controller, [web, db]) = two().await;
    let store = isthmus_controller::store::Redb::FILE;
    let backup = |state: &std::path::Path| {
        std::fs::copy(state.join(store), state.join("backup")).unwrap();
    };
    let restore = |state: &std::path::Path| {
        std::fs::copy(state.join("backup"), state.join(store)).unwrap();
    };
    controller.restart_after(backup).await;
    let old = controller.status().await.revision;
    let lost = controller.join("other-1").await;
    controller.apply(&allowed()).await;
    let mut agent = controller.connect(&web).await;
    agent.settle(&controller, &web.name).await;
    let epoch = agent.epoch;
    let known = agent.revision;
    assert!(known > old && epoch != 0);

    controller.restart_after(restore).await;
    assert!(controller.status().await.problems.is_empty(), "nobody has come yet");
    let Agent { resources, .. } = agent;
    let mut agent = controller.connect_from(&web, resources.clone(), known, epoch).await.unwrap();
    let delta = agent.follow().await;
    assert!(delta.revision > known, "no revision has two meanings");
    assert_ne!(delta.epoch, epoch);
    assert!(has_problem(&controller.status().await, "store-restored", "web-1"));

    // A host that joined since wasn't removed: it must not forget the mesh.
    let mut stranger = controller.connect(&lost).await;
    let status = stranger.hear().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(has_problem(&controller.status().await, "host-unknown", "other-1"));
    controller.restart().await;
    let mut stranger = controller.connect(&lost).await;
    assert_eq!(stranger.hear().await.unwrap_err().code(), Code::FailedPrecondition);
    let newcomer = controller.join("other-2").await;
    assert!(newcomer.id > lost.id, "{} isn't given again", newcomer.id);

    // Later on it is told by the epoch alone. Then somebody says what is to be.
    assert!(controller.status().await.revision >= known);
    let mut late = controller.connect_from(&db, resources, known, epoch).await.unwrap();
    late.follow().await;
    assert!(has_problem(&controller.status().await, "store-restored", "db-1"));
    controller.apply(&allowed()).await;
    assert!(!has_problem(&controller.status().await, "store-restored", "db-1"));
    assert!(has_problem(&controller.status().await, "host-unknown", "other-1"));
    controller.join("other-1").await;
    assert!(controller.status().await.problems.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_on_the_stream_is_survived() {
    let (controller, [web, _]) = two().await;
    let mut agent = controller.connect(&web).await;
    agent.say(Say::Accepted(v1::Accepted { revision: 999, ..v1::Accepted::default() })).await;
    agent.say(Say::Refused(v1::Refused { revision: 999, reason: "x".repeat(5_000) })).await;
    agent.say(Say::Hello(v1::Hello::default())).await;
    let first = agent.follow().await;
    assert_eq!(first.base, 0);
    eventually(async || controller.host("web-1").await.revision >= first.revision).await;
    assert_eq!(controller.host("web-1").await.refusal, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_reaches_its_agents_fast() {
    let (controller, [web, db]) = two().await;
    controller.apply(&allowed()).await;
    let mut agents = BTreeMap::new();
    for joined in [&web, &db] {
        let mut agent = controller.connect(joined).await;
        agent.follow().await;
        agents.insert(joined.name.clone(), agent);
    }
    let mut admin = controller.admin().await;
    let mut times = Vec::new();
    for port in 1..=40 {
        let text = allowed().replace("5432", &port.to_string());
        let start = Instant::now();
        let applied = admin.apply(apply_request(&text, false));
        let applied = applied.await.unwrap().into_inner().revision;
        for agent in agents.values_mut() {
            agent.follow_to(applied).await;
        }
        let mut rollouts = admin
            .watch_rollout(v1::WatchRolloutRequest { revision: applied })
            .await
            .unwrap()
            .into_inner();
        while !rollouts.message().await.unwrap().is_some_and(|rollout| rollout.complete) {}
        times.push(start.elapsed());
    }
    times.sort();
    println!("apply to all accepted: p50 {:?}, max {:?}", times[20], times[39]);
    assert!(times[20].as_millis() < 50, "{times:?}");
}
