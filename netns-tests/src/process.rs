//! Programs of a test: started in a namespace, ended with the test.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::wait::wait_for;

/// What a command may take.
const LONGEST: Duration = Duration::from_secs(120);

/// What a finished command said.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Runs a command to its end, at most for two minutes.
    ///
    /// # Panics
    ///
    /// If it can't be started.
    #[must_use]
    pub fn of(mut command: Command) -> Self {
        let line = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that a shell's children end with it.
        let child = command.process_group(0).spawn();
        let child = child.unwrap_or_else(|error| panic!("Failed to start {line}: {error}"));
        let group = format!("-{}", child.id());
        let (running, ended) = mpsc::channel::<()>();
        let watchdog = thread::spawn(move || {
            if ended.recv_timeout(LONGEST) == Err(RecvTimeoutError::Timeout) {
                let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            }
        });
        let output = child.wait_with_output();
        let output = output.unwrap_or_else(|error| panic!("Failed to read from {line}: {error}"));
        drop(running);
        let _ = watchdog.join();
        Self {
            command: line,
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Whether it exited with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The exit code; none after a signal.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Its standard output, given that it succeeded.
    ///
    /// # Panics
    ///
    /// With everything it said, if it failed.
    #[track_caller]
    #[must_use]
    pub fn expect_success(self) -> String {
        assert!(self.success(), "{self}");
        self.stdout
    }

    /// All that it said, given that it failed.
    ///
    /// # Panics
    ///
    /// If it succeeded.
    #[track_caller]
    #[must_use]
    pub fn expect_failure(self) -> String {
        assert!(!self.success(), "should have failed: {self}");
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Its standard output as JSON, given that it succeeded.
    ///
    /// # Panics
    ///
    /// If it failed or isn't JSON.
    #[track_caller]
    #[must_use]
    pub fn json(self) -> serde_json::Value {
        let text = self.expect_success();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{}\n{}\n{}", self.command, self.status, self.stdout, self.stderr)
    }
}

/// A program that runs beside the test; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program; its output goes to `log`.
    ///
    /// # Panics
    ///
    /// If it can't be started.
    #[must_use]
    pub fn start(mut command: Command, log: &Path) -> Self {
        let out =
            File::options().create(true).append(true).open(log).expect("the log can be written");
        let err = out.try_clone().expect("a file can be cloned");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child =
            command.spawn().unwrap_or_else(|error| panic!("Failed to start {command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    /// Starts a program that reads `input`.
    ///
    /// # Panics
    ///
    /// If it can't be started or doesn't read.
    #[must_use]
    pub fn run_with_input(mut command: Command, input: &[u8]) -> Output {
        let line = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("Failed to start {line}: {error}"));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(input).expect("the program reads its input");
        drop(stdin);
        let output = child.wait_with_output().expect("the program ends");
        Output {
            command: line,
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Its process id (that of the program itself: the wrappers `exec`).
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident memory in KiB.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or_default()
    }

    /// `kill -9`, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// `SIGTERM`, and waits for its end.
    ///
    /// # Panics
    ///
    /// If it doesn't end within the time.
    #[track_caller]
    pub fn terminate(&mut self, within: Duration) -> ExitStatus {
        let _ = Command::new("kill").args(["-TERM", &self.id().to_string()]).status();
        self.wait(within)
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// If it doesn't end within the time.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let started = Instant::now();
        wait_for("the process ends", within, || !self.is_running());
        let status = self.child.wait().expect("a process that ended can be reaped");
        assert!(started.elapsed() <= within + Duration::from_secs(1));
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The path of one of Isthmus' programs, from the same build as the test.
///
/// # Panics
///
/// If it hasn't been built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let mut folder = test.parent().expect("a program is in a folder");
    if folder.ends_with("deps") {
        folder = folder.parent().expect("`deps` is in the profile's folder");
    }
    let path = std::env::var_os("ISTHMUS_BIN_DIR")
        .map_or_else(|| folder.to_owned(), PathBuf::from)
        .join(name);
    assert!(path.exists(), "{} isn't there: run `cargo build --workspace` first", path.display());
    path
}
