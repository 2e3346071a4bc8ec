//! What the black-box tests stand on: the real program as a process, and SMTP clients of all
//! manners.
//!
//! Every wait is bounded by [`PATIENCE`], far more than a loaded machine takes; no test asserts
//! that something was fast. A process is ended by the handle that started it, also when its test
//! fails. Ports are always 0: the start-up lines tell which one it became.

#![allow(dead_code, unused_imports, reason = "each test program uses its own part")]

#[path = "client.rs"]
mod client;
#[path = "tls_client.rs"]
pub mod tls_client;

pub use client::{Client, End, queue_id, stuffed};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The program under test; `GATEPOST_TEST_BINARY` puts another build in its place.
pub static GATEPOST: LazyLock<PathBuf> = LazyLock::new(|| {
    std::env::var_os("GATEPOST_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_gatepost").into(), PathBuf::from)
});
/// The longest that anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// The user that tests run the program as when they are root and must not be.
pub const NOBODY: u32 = 65534;

pub const TOTAL: &str =
    "421 4.3.2 The maximum number of concurrent server connections has exceeded a limit, closing transmission channel";
pub const PER_SOURCE: &str =
    "421 4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel";
pub const RATE: &str = "421 4.4.2 Message submission rate for this client has exceeded the configured limit";
pub const SHUTDOWN: &str = "421 4.3.2 Service shutting down";
pub const D1: &str = "421 4.4.1 Connection timed out";
pub const D2: &str = "451 4.7.0 Timeout waiting for client input";
pub const NOT_CONFIGURED: &str = "421 4.3.2 Service not available";
pub const RESOURCES: &str = "452 4.3.1 Insufficient system resources";
pub const BANNER: &str = "220 mx.test.example ESMTP Gatepost ready";

/// A directory that vanishes with the test.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("gatepost-test-{}-{count}", std::process::id()));
        // A directory of that name can only be left over from a run that was killed.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a temporary directory");
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How a process is to be confined before it runs the program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Confinement {
    /// Soft and hard limit.
    pub nofile: Option<(u64, u64)>,
    pub memlock: Option<(u64, u64)>,
    /// `io_uring_setup` fails with EPERM.
    pub no_io_uring: bool,
    pub uid: Option<u32>,
}

impl Confinement {
    fn apply(self, command: &mut Command) {
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        let limit = |(current, maximum)| Rlimit { current: Some(current), maximum: Some(maximum) };
        let act = move || {
            if let Some(nofile) = self.nofile {
                rustix::process::setrlimit(Resource::Nofile, limit(nofile))?;
            }
            if let Some(memlock) = self.memlock {
                rustix::process::setrlimit(Resource::Memlock, limit(memlock))?;
            }
            if self.no_io_uring {
                forbid_io_uring()?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only: it neither allocates
        // nor takes locks.
        unsafe { command.pre_exec(act) };
    }
}

/// A seccomp filter, as container runtimes install one, that lets everything but io_uring pass.
fn forbid_io_uring() -> io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut filter = [
        // The number of the system call is the first word of what a filter looks at.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: libc::SYS_io_uring_setup as u32,
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program points to a filter that lives through the call; the kernel copies it.
    let result = unsafe {
        match libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) {
            0 => libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
            failed => failed,
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What a process that ended by itself left.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program to its end, which must come by itself.
pub fn run_to_end(mut command: Command) -> Ended {
    let mut child = spawn(&mut command);
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let status = wait(&mut child).unwrap_or_else(|| {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{command:?} does not end")
    });
    let text = |thread: JoinHandle<Vec<u8>>| String::from_utf8_lossy(&thread.join().expect("a reader")).into_owned();
    Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Starts a program with nothing to read, and pipes for what it prints.
fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let deadline = Instant::now() + PATIENCE;
    loop {
        match command.spawn() {
            // A copy of the program: a child that another test's thread forked while it was written holds
            // it open, until it runs its own program.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            spawned => return spawned.unwrap_or_else(|error| panic!("{command:?}: {error}")),
        }
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Waits until `done` says so.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The program, without the variables that set up the tests: it would take them for options.
pub fn gatepost(program: &Path) -> Command {
    let mut command = Command::new(program);
    let names = std::env::vars_os().map(|(name, _)| name);
    for name in names.filter(|name| name.as_encoded_bytes().starts_with(b"GATEPOST_")) {
        command.env_remove(name);
    }
    command
}

/// `gatepost serve` with these options, to be started or to fail.
#[derive(Debug)]
pub struct Setup {
    program: PathBuf,
    spool: PathBuf,
    options: Vec<String>,
    variables: Vec<(String, String)>,
    /// Nothing is given but `options`.
    is_bare: bool,
    confinement: Confinement,
}

impl Setup {
    /// A gateway on `spool` that accepts mail for `test.example`. Listens on 127.0.0.1 and a free
    /// port unless `options` have a `--listen`.
    pub fn new(spool: &Path, options: &[&str]) -> Self {
        Setup {
            program: GATEPOST.clone(),
            spool: spool.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            variables: Vec::new(),
            is_bare: false,
            confinement: Confinement::default(),
        }
    }

    /// A gateway on `spool` with all else from this configuration file.
    pub fn of_file(spool: &Path, file: &Path) -> Self {
        let config = format!("--config={}", file.display());
        Setup { is_bare: true, ..Setup::new(spool, &[&config]) }
    }

    pub fn confined(mut self, confinement: Confinement) -> Self {
        self.confinement = confinement;
        self
    }

    /// Another copy of the program: one that every user may run.
    pub fn program(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    /// A variable of its environment.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn command(&self) -> Command {
        let mut command = gatepost(&self.program);
        if self.is_bare {
            command.arg("serve").arg("--spool").arg(&self.spool).args(&self.options);
            return command;
        }
        command.args(["serve", "--accept-domain=test.example"]);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let given = |name: &str| self.options.iter().any(|option| option.starts_with(name));
        if !given("--hostname") {
            command.arg("--hostname=mx.test.example");
        }
        if !given("--listen") {
            command.arg("--listen=127.0.0.1:0");
        }
        if !given("--metrics-listen") {
            command.arg("--metrics-listen=127.0.0.1:0");
        }
        if !given("--max-connections=") && self.confinement.nofile.is_none() {
            // So that the tests run where the limit of open files is a usual one.
            command.arg("--max-connections=400");
        }
        if !given("--shards") {
            command.arg("--shards=2");
        }
        // So that no test depends on what the machine has to spare, or waits for late refusals.
        for switched_off in ["--min-free-disk", "--min-free-memory", "--tarpit"] {
            if !given(switched_off) {
                command.arg(format!("{switched_off}=0"));
            }
        }
        command.arg("--spool").arg(&self.spool).args(&self.options);
        self.confinement.apply(&mut command);
        command
    }

    /// Starts it, for it to fail by itself.
    pub fn fail(&self) -> Ended {
        let ended = run_to_end(self.command());
        assert_ne!(ended.code, Some(0), "it should have failed: {}", ended.stdout);
        ended
    }

    /// Starts it and waits until it serves.
    pub fn start(&self) -> Gateway {
        let mut command = self.command();
        let mut child = spawn(&mut command);
        let (send, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let errors = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let gather = errors.clone();
        let stderr = thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // Also for whoever reads the output of a test that failed.
                eprintln!("[stderr] {line}");
                let mut errors = gather.lock().expect("no reader panics");
                errors.push_str(&line);
                errors.push('\n');
            }
        });
        let mut gateway = Gateway {
            child,
            spool: self.spool.clone(),
            started: Vec::new(),
            listening: Vec::new(),
            metrics: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            lines,
            errors,
            stderr: Some(stderr),
        };
        gateway.read_start();
        // Answered by the thread that handles signals: from here on SIGTERM drains.
        gateway.metric("gatepost_connections");
        gateway
    }
}

/// Whether a line is a record of the log, in text: it begins with its time.
fn is_record(line: &str) -> bool {
    line.split(' ').next().is_some_and(|word| word.len() == 27 && word.ends_with('Z') && word.starts_with("20"))
}

/// Starts a gateway on `spool` with further options.
pub fn start(spool: &Path, options: &[&str]) -> Gateway {
    Setup::new(spool, options).start()
}

/// A gateway that serves; killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    pub spool: PathBuf,
    /// The lines it printed when it started.
    pub started: Vec<String>,
    pub listening: Vec<SocketAddr>,
    pub metrics: SocketAddr,
    lines: Receiver<String>,
    errors: Arc<Mutex<String>>,
    stderr: Option<JoinHandle<()>>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Gateway {
    fn read_start(&mut self) {
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                let _ = self.child.kill();
                let status = self.child.wait();
                panic!("it did not start ({status:?}): {}\n{}", self.started.join("\n"), self.stderr());
            };
            // A record, where the log is JSON.
            let record = serde_json::from_str::<serde_json::Value>(&line).ok();
            let line = record.and_then(|record| Some(record["message"].as_str()?.to_owned())).unwrap_or(line);
            if let Some(address) = line.strip_prefix("listening on ") {
                self.listening.push(address.parse().expect("an address"));
            }
            let metrics = line
                .strip_prefix("metrics at http://")
                .and_then(|rest| rest.strip_suffix("/metrics"))
                .map(|address| address.parse().unwrap_or_else(|error| panic!("{address}: {error}")));
            self.started.push(line);
            // The last of the lines that every test's gateway prints.
            if let Some(metrics) = metrics {
                self.metrics = metrics;
                return;
            }
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.listening[0]
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it has printed on standard error so far.
    pub fn stderr(&self) -> String {
        self.errors.lock().expect("no reader panics").clone()
    }

    /// The next line on standard output that is for operators, and no record of the log.
    pub fn line(&self) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("a line on standard output");
            if !is_record(&line) {
                return line;
            }
        }
    }

    /// The lines on standard output that nobody has taken, when it has ended.
    pub fn output(&self) -> Vec<String> {
        self.lines.iter().collect()
    }

    /// Those of them that are for operators.
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().filter(|line| !is_record(line)).collect()
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address(), None)
    }

    pub fn connect_from(&self, source: &str) -> Client {
        Client::connect(self.address(), Some(source.parse().expect("an address")))
    }

    /// A session after EHLO.
    pub fn session(&self) -> Client {
        let mut client = self.connect();
        client.hello();
        client
    }

    pub fn session_from(&self, source: &str) -> Client {
        let mut client = self.connect_from(source);
        client.hello();
        client
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Waits for its end: exit code (None: a signal) and standard error.
    pub fn wait(&mut self) -> (Option<i32>, String) {
        let status = wait(&mut self.child).unwrap_or_else(|| panic!("it does not end; {}", self.stderr()));
        if let Some(stderr) = self.stderr.take() {
            stderr.join().expect("a reader");
        }
        (status.code(), self.stderr())
    }

    /// What it said on standard error but for writes that a kill cut short, which are no damage,
    /// nobody was told of their messages; for next hops that come and go; and for shards that get no time
    /// on a machine that has much to do.
    pub fn complaints(&self) -> String {
        let said = self.stderr();
        let usual = [": the log is cut off at ", "gatepost: next hop ", " does not answer: ", " answers again, "];
        let is_usual = |line: &&str| usual.iter().any(|usual| line.contains(usual));
        said.lines().filter(|line| !is_usual(line)).collect()
    }

    /// Ends it with SIGTERM, which must go well.
    pub fn stop(mut self) -> Vec<String> {
        self.signal(Signal::TERM);
        let (code, _) = self.wait();
        assert_eq!((code, self.complaints().as_str()), (Some(0), ""), "after SIGTERM");
        self.lines()
    }

    /// Ends it with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        let status = self.child.wait().expect("a child of ours");
        assert_eq!(status.signal(), Some(9), "it had ended by itself: {}", self.stderr());
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    pub fn scrape(&self) -> String {
        let response = http(self.metrics, "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        response
    }

    /// The sum of a metric over all its labels.
    pub fn metric(&self, name: &str) -> f64 {
        sum(&self.scrape(), |sample| {
            sample == name || sample.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
        })
    }

    /// The counter of refusals with this reason.
    pub fn refusals(&self, metric: &str, reason: &str) -> f64 {
        self.metric_with(metric, "reason", reason)
    }

    /// The recipients whose attempts came to this outcome.
    pub fn recipients(&self, outcome: &str) -> f64 {
        self.metric_with("gatepost_delivery_recipients_total", "outcome", outcome)
    }

    /// The counter whose one label has this value.
    pub fn metric_with(&self, metric: &str, label: &str, value: &str) -> f64 {
        let sample = format!("{metric}{{{label}=\"{value}\"}}");
        sum(&self.scrape(), |name| name == sample)
    }

    /// The sum of a metric's counters that have this label, as it is written.
    pub fn metric_where(&self, metric: &str, label: &str) -> f64 {
        sum(&self.scrape(), |sample| sample.starts_with(&format!("{metric}{{")) && sample.contains(label))
    }

    /// Waits until no connection is counted any more.
    pub fn until_empty(&self) {
        self.until_connections(0.0);
    }

    /// Waits until so many connections are counted.
    pub fn until_connections(&self, count: f64) {
        until("so many connections", || self.metric("gatepost_connections") == count);
    }

    /// Waits until nothing is in the queue: everything was delivered, and that is on the disk.
    #[track_caller]
    pub fn until_delivered(&self) {
        until("the queue is empty", || self.metric("gatepost_queue_messages") == 0.0);
    }

    /// CPU time it has used.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        // The name of the program is in parentheses and may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
        let ticks = |field: usize| fields[field].parse::<u64>().expect("a number");
        let total = ticks(11) + ticks(12);
        Duration::from_millis(total * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// Memory it has resident, in octets.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Runs another command of the program on this gateway: `gatepost ARGUMENTS --spool SPOOL`.
    pub fn command(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(&*GATEPOST);
        command.args(arguments).arg("--spool").arg(&self.spool);
        run_to_end(command)
    }

    /// The same, which must go well; what it prints.
    #[track_caller]
    pub fn tell(&self, arguments: &[&str]) -> String {
        let ended = self.command(arguments);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{arguments:?}");
        ended.stdout
    }

    /// Names of the files in its shards' directories that begin with `prefix`.
    pub fn files(&self, prefix: &str) -> Vec<PathBuf> {
        files(&self.spool, prefix)
    }
}

/// Names of the files in the shards' directories of a spool that begin with `prefix`.
pub fn files(spool: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for shard in fs::read_dir(spool).expect("a spool").map(|entry| entry.expect("an entry").path()) {
        if shard.is_dir() {
            let entries = fs::read_dir(shard).expect("a shard").map(|entry| entry.expect("an entry").path());
            found.extend(entries.filter(|path| {
                path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
            }));
        }
    }
    found.sort();
    found
}

fn sum(scrape: &str, wanted: impl Fn(&str) -> bool) -> f64 {
    let samples = scrape.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    samples.filter(|(name, _)| wanted(name)).map(|(_, value)| value.parse::<f64>().expect("a number")).sum()
}

/// Sends a request and reads the response to its end.
pub fn http(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the metrics endpoint");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.write_all(request.as_bytes()).expect("an endpoint that reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("an endpoint that answers");
    response
}

fn queue(spool: &Path, what: &str, arguments: &[&str]) -> (Vec<u8>, String) {
    let output = Command::new(&*GATEPOST)
        .args(["queue", what, "--spool"])
        .arg(spool)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "queue {what}: {stderr}");
    (output.stdout, stderr)
}

/// One line of `gatepost queue list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub id: String,
    pub octets: u64,
    pub from: String,
    pub to: String,
}

/// What `gatepost queue list` shows.
#[track_caller]
pub fn list(spool: &Path) -> Vec<Listed> {
    let (stdout, stderr) = queue(spool, "list", &[]);
    let text = String::from_utf8(stdout).expect("addresses are ASCII here");
    let listed: Vec<Listed> = text
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let [id, arrived, octets, from, to] = fields[..] else { panic!("five fields: {line}") };
            assert!(arrived.ends_with('Z') && arrived.len() == 24, "a time: {line}");
            Listed {
                id: id.to_owned(),
                octets: octets.parse().expect("a number"),
                from: from.strip_prefix("from=").expect("from=").to_owned(),
                to: to.strip_prefix("to=").expect("to=").to_owned(),
            }
        })
        .collect();
    let octets: u64 = listed.iter().map(|message| message.octets).sum();
    assert_eq!(stderr, format!("{} messages, {octets} octets\n", listed.len()));
    listed
}

/// What `gatepost queue list --json` shows.
#[track_caller]
pub fn list_json(spool: &Path) -> Vec<serde_json::Value> {
    let (stdout, _) = queue(spool, "list", &["--json"]);
    let text = String::from_utf8(stdout).expect("JSON is UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// A stored message: its one Received field, and what follows it.
#[track_caller]
pub fn cat(spool: &Path, id: &str) -> (String, Vec<u8>) {
    let (stdout, stderr) = queue(spool, "cat", &[id]);
    assert_eq!(stderr, "", "queue cat {id}");
    let (field, content) = split_received(&stdout);
    assert!(field.contains(&format!(" id {id};")), "{field}");
    (field, content)
}

/// What `gatepost queue cat --all` prints.
pub fn cat_all(spool: &Path) -> Vec<u8> {
    let (stdout, stderr) = queue(spool, "cat", &["--all"]);
    assert_eq!(stderr, "", "queue cat --all");
    stdout
}

/// Splits a stored message behind its first header field, which must be ours.
#[track_caller]
pub fn split_received(message: &[u8]) -> (String, Vec<u8>) {
    let mut end = 0;
    loop {
        let line = message[end..].windows(2).position(|pair| pair == b"\r\n").expect("a whole line") + 2;
        end += line;
        if !matches!(message.get(end), Some(b' ' | b'\t')) {
            break;
        }
    }
    let field = String::from_utf8(message[..end].to_vec()).expect("ours is ASCII");
    assert!(field.starts_with("Received: from "), "{field}");
    assert!(field.contains("\r\n\tby mx.test.example (Gatepost) with "), "{field}");
    (field, message[end..].to_vec())
}

/// All messages of a spool: what the list says of each, its Received field, and its content.
#[track_caller]
pub fn stored(spool: &Path) -> Vec<(Listed, String, Vec<u8>)> {
    let listed = list(spool);
    let ids: Vec<&str> = listed.iter().map(|message| message.id.as_str()).collect();
    let (all, stderr) = queue(spool, "cat", &ids);
    assert_eq!(stderr, "", "queue cat");
    let mut rest = &all[..];
    let messages: Vec<_> = listed
        .into_iter()
        .map(|message| {
            let octets = usize::try_from(message.octets).expect("a size");
            assert!(octets <= rest.len(), "cat prints less than list says");
            let (this, after) = rest.split_at(octets);
            rest = after;
            let (field, content) = split_received(this);
            assert!(field.contains(&format!(" id {};", message.id)), "{field}");
            (message, field, content)
        })
        .collect();
    assert_eq!(rest, b"", "cat prints more than list says");
    messages
}

/// Asserts that a message is in the queue exactly as it should be.
#[track_caller]
pub fn assert_stored(spool: &Path, id: &str, expected: &[u8]) {
    let (_, content) = cat(spool, id);
    assert_same(id, &content, expected);
}

#[track_caller]
pub fn assert_same(id: &str, content: &[u8], expected: &[u8]) {
    if content != expected {
        let at = content.iter().zip(expected).position(|(one, other)| one != other);
        panic!(
            "message {id} is not what was sent: {} octets instead of {}, they differ at {at:?}",
            content.len(),
            expected.len()
        );
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
