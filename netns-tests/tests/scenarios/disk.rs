//! Disks that are full or can only be read: nothing stops, everybody is told, and all is well by itself once
//! there is room.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use isthmus_netns_tests::{Mesh, Output, wait_for};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.web]
namespace = "prod"
port = 8080
hosts = ["web-1"]
workload = { user = "40001" }

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }
"#;

const ALLOW: &str = r#"
[[allow]]
name = "client reads web"
from = "service:client"
to = "service:web"
"#;

/// A small disk in the place of a folder.
struct Disk(PathBuf);

impl Disk {
    fn instead_of(folder: PathBuf) -> Self {
        let copy = folder.with_extension("copy");
        let (folder_, copy) = (folder.display(), copy.display());
        sh(&format!(
            "cp -a {folder_} {copy} && mount -t tmpfs -o size=6m,mode=700 tmpfs {folder_} && \
             cp -a {copy}/. {folder_}/ && rm -r {copy}"
        ));
        Self(folder)
    }

    fn fill(&self) {
        // It ends when nothing fits any more.
        let file = self.0.join("ballast");
        let _ = Output::of(shell(&format!("cat /dev/zero >{}", file.display())));
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("ballast")).expect("it was filled");
    }

    fn remount(&self, how: &str) {
        sh(&format!("mount -o remount,{how} {}", self.0.display()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Output::of(shell(&format!("umount -l {}", self.0.display())));
    }
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn sh(script: &str) {
    let _ = Output::of(shell(script)).expect_success();
}

fn has(problems: &Value, code: &str) -> bool {
    problems.as_array().is_some_and(|all| all.iter().any(|it| it["code"] == code))
}

fn wait_for_problem(mesh: &Mesh, host: Option<&str>, code: &str, is_there: bool) {
    wait_for(&format!("{code}: {is_there}"), SOON, || {
        let status = mesh.status();
        let problems = match host {
            None => &status["problems"],
            Some(name) => status["hosts"]
                .as_array()
                .and_then(|hosts| hosts.iter().find(|host| host["name"] == name))
                .map_or(&Value::Null, |host| &host["problems"]),
        };
        has(problems, code) == is_there
    });
}

fn state(mesh: &Mesh, host: &str) -> PathBuf {
    mesh.host(host).node.folder().join("state")
}

fn snapshot(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("snapshot")).unwrap_or_default()
}

#[test]
fn a_full_or_read_only_disk_stops_nobody_and_heals_by_itself() {
    let mut mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(&format!("{TOPOLOGY}{ALLOW}"));
    mesh.controller().terminate(SOON);
    let store = Disk::instead_of(mesh.controller_state());
    mesh.start_controller();
    mesh.host_mut("web-1").agent().terminate(SOON);
    let disk = Disk::instead_of(state(&mesh, "web-1"));
    mesh.host_mut("web-1").start_agent();
    wait_for("both are connected", SOON, || {
        let status = mesh.status();
        status["hosts"].as_array().is_some_and(|all| all.iter().all(|it| it["connected"] == true))
    });

    // The host's is full: the revision is worked by, and apply says that it isn't kept.
    disk.fill();
    let before = snapshot(&disk.0);
    let applied = mesh.try_apply(TOPOLOGY);
    let said = format!("{}{}", applied.stdout, applied.stderr);
    assert_eq!(applied.code(), Some(4), "{said}");
    assert!(said.contains("web-1") && said.contains("couldn't be kept"), "{said}");
    wait_for_problem(&mesh, Some("web-1"), "snapshot-not-kept", true);
    assert_eq!(snapshot(&disk.0), before);
    disk.make_room();
    wait_for_problem(&mesh, Some("web-1"), "snapshot-not-kept", false);
    assert_ne!(snapshot(&disk.0), before, "kept without another apply");

    // The controller's is full: nothing is changed, and after that it goes on.
    store.fill();
    let large = format!("{TOPOLOGY}{ALLOW}# {}\n", "x".repeat(3 << 20));
    let refused = mesh.try_apply(&large);
    assert!(refused.stderr.contains("Nothing was changed"), "{}", refused.stderr);
    wait_for_problem(&mesh, None, "store-failing", true);
    store.make_room();
    wait_for_problem(&mesh, None, "store-failing", false);
    mesh.apply(&format!("{TOPOLOGY}{ALLOW}"));

    // Both can only be read: both start and work by what is there.
    mesh.controller().terminate(SOON);
    mesh.host_mut("web-1").agent().kill();
    store.remount("ro");
    disk.remount("ro");
    mesh.start_controller();
    mesh.host_mut("web-1").start_agent();
    wait_for_problem(&mesh, None, "store-failing", true);
    wait_for_problem(&mesh, Some("web-1"), "state-not-writable", true);
    assert!(mesh.host("web-1").status()["revision"].as_u64() > Some(0));
    store.remount("rw");
    disk.remount("rw");
    wait_for_problem(&mesh, None, "store-failing", false);
    wait_for_problem(&mesh, Some("web-1"), "state-not-writable", false);
    mesh.apply(TOPOLOGY);
}
