use std::collections::BTreeMap;

use isthmus_model::Capability;

use crate::lab::{Agent, Controller, eventually};

const TOPOLOGY: &str = r#"
[host.web-1]
[service.web]
port = 80
protocol = "http"
hosts = ["web-1"]
workload = { user = "web" }

[[allow]]
name = "who reads"
from = "service:web"
to = "service:web"
http = [{ method = "GET" }]
"#;

const BY_HEADER: &str = r#"
[[allow]]
name = "admins write"
from = "service:web"
to = "service:web"
http = [{ method = "POST", header = { x-role = "admin" } }]

[[deny]]
name = "no debugging"
from = "any"
to = "service:web"
http = [{ path = "/debug", header = { x-debug = "1" } }]
"#;

fn has(agent: &Agent, rule: &str) -> bool {
    agent.resources.contains_key(&format!("rule/{rule}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_agent_is_not_sent_an_allow_that_it_would_read_as_a_wider_one() {
    let controller = Controller::start().await;
    let joined = controller.join("web-1").await;
    controller.apply(TOPOLOGY).await;
    let names = Capability::ALL.into_iter().filter(|one| *one != Capability::Header);
    let older: Vec<String> = names.map(|one| one.name().to_owned()).collect();
    let mut agent = controller.connect_able(&joined, BTreeMap::new(), 0, 0, older).await.unwrap();
    agent.settle(&controller, "web-1").await;
    assert!(controller.host("web-1").await.problems.is_empty());

    let applied = controller.apply(&format!("{TOPOLOGY}{BY_HEADER}")).await;
    agent.follow_to(applied.revision).await;
    assert!(has(&agent, "who reads") && has(&agent, "no debugging"));
    assert!(!has(&agent, "admins write"));
    // Who applies is told, by name.
    controller.rollout(applied.revision, |rollout| rollout.warned.len() == 2).await;
    eventually(async || {
        let problems = controller.host("web-1").await.problems;
        let mut texts: Vec<String> = problems.into_iter().map(|it| it.text).collect();
        texts.sort();
        matches!(&*texts, [withheld, wider]
            if wider.contains("no debugging") && wider.contains("denies more")
                && withheld.contains("admins write") && withheld.contains("`header`"))
    })
    .await;

    // What was said once is no news of the next revision.
    let again = format!("{TOPOLOGY}{BY_HEADER}").replace("GET", "HEAD");
    let applied = controller.apply(&again).await;
    agent.follow_to(applied.revision).await;
    controller.rollout(applied.revision, |it| it.complete && it.warned.is_empty()).await;

    // The host's agent is updated: it gets what it was not sent before, and the deny as it is.
    drop(agent);
    let all = Capability::ALL.map(|one| one.name().to_owned()).to_vec();
    let mut agent = controller.connect_able(&joined, BTreeMap::new(), 0, 0, all).await.unwrap();
    agent.follow_until(|agent| has(agent, "admins write")).await;
    eventually(async || controller.host("web-1").await.problems.is_empty()).await;
}
