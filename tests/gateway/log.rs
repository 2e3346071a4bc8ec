//! The log as an operator gets it: formats, files, rotation, and what happens when it cannot be written.

use crate::harness::{Confinement, Scratch, Setup, start, until};
use crate::preflight::unprivileged;
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Level and message of the notices in these lines; all of them are notices.
fn notices<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<(String, String)> {
    let notice = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        assert_eq!(record["event"], "notice", "{line}");
        let text = |name: &str| record[name].as_str().unwrap_or_else(|| panic!("no {name}: {line}")).to_owned();
        assert!(text("time").ends_with('Z'), "{line}");
        (text("level"), text("message"))
    };
    lines.into_iter().map(notice).collect()
}

fn has(notices: &[(String, String)], level: &str, begin: &str) -> bool {
    notices.iter().any(|notice| notice.0 == level && notice.1.starts_with(begin))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn json_on_standard_output_is_all_there_is() {
    let scratch = Scratch::new();
    // What a warning is said of.
    let mut gateway = start(&scratch.join("spool"), &["--log-format=json", "--oxsmtp-revision=4.0"]);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait().0, Some(0));
    let lines = gateway.lines();
    let notices = notices(lines.iter().map(String::as_str));
    assert!(has(&notices, "info", "draining: ") && has(&notices, "info", "drained"), "{notices:?}");
    assert!(gateway.started.iter().any(|line| line.starts_with("gatepost ")), "{:?}", gateway.started);
    assert!(gateway.stderr().contains("--oxsmtp-revision 4.0"), "standard error is for operators still");
}

#[test]
fn why_it_does_not_start_is_in_the_log_too() {
    let scratch = Scratch::new();
    let options = ["--log-format=json", "--listen=192.0.2.1:2525", "--oxsmtp-revision=4.0"];
    let failed = Setup::new(&scratch.join("spool"), &options).fail();
    assert_eq!(failed.code, Some(78), "{}", failed.stderr);
    let said = notices(failed.stdout.lines());
    assert!(has(&said, "warn", "--oxsmtp-revision 4.0") && has(&said, "warn", "--listen 192.0.2.1:2525: "), "{said:?}");
    assert_eq!(failed.stderr.lines().count(), said.len());
}

#[test]
fn a_file_is_rotated_by_name_and_signal() {
    let scratch = Scratch::new();
    let (path, renamed) = (scratch.join("gatepost.log"), scratch.join("gatepost.log.1"));
    let file = format!("--log-file={}", path.display());
    let mut gateway = start(&scratch.join("spool"), &["--log-format=json", &file]);
    assert!(gateway.started.iter().any(|line| line.starts_with("listening on ")), "still on standard output, as text");
    until("the lines of the start", || has(&notices(read(&path).lines()), "info", "metrics at "));
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o137, 0, "nobody else's to write");
    fs::rename(&path, &renamed).expect("a file");
    gateway.signal(Signal::HUP);
    until("a new file", || path.exists());
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), (Some(0), String::new()));
    assert_eq!(gateway.lines().last().map(String::as_str), Some("drained"));
    let (old, new) = (notices(read(&renamed).lines()), notices(read(&path).lines()));
    assert!(has(&old, "info", "listening on ") && !has(&old, "info", "drained"), "{old:?}");
    assert!(has(&new, "info", "drained") && !has(&new, "info", "listening on "), "{new:?}");
}

#[test]
fn text_in_a_file_is_appended() {
    let scratch = Scratch::new();
    let path = scratch.join("gatepost.log");
    fs::write(&path, "before\n").expect("a file");
    let file = format!("--log-file={}", path.display());
    start(&scratch.join("spool"), &[&file, "--log-level=info"]).stop();
    let text = read(&path);
    assert!(text.starts_with("before\n") && text.contains("Z info notice message=\"listening on 127.0.0.1:"), "{text}");
    start(&scratch.join("spool"), &[&file, "--log-level=off"]).stop();
    assert_eq!(read(&path), text, "off is nothing");
}

#[test]
fn a_full_disk_costs_records_and_nothing_else() {
    let scratch = Scratch::new();
    let mut gateway = start(&scratch.join("spool"), &["--log-file=/dev/full"]);
    until("lost records are counted", || gateway.metric("gatepost_log_records_lost_total") > 0.0);
    gateway.session().quit();
    gateway.signal(Signal::TERM);
    let (code, stderr) = gateway.wait();
    assert_eq!(code, Some(0), "{stderr}");
    let told = stderr.lines().filter(|line| line.contains("/dev/full cannot be written")).count();
    assert_eq!((told, stderr.lines().count()), (1, 1), "{stderr}");
}

#[test]
fn a_file_that_cannot_be_opened() {
    let scratch = Scratch::new();
    for (name, code) in [("absent/gatepost.log", 73), ("", 73)] {
        let path = scratch.join(name);
        let failed = Setup::new(&scratch.join("spool"), &[&format!("--log-file={}", path.display())]).fail();
        assert_eq!(failed.code, Some(code), "{}", failed.stderr);
        assert!(failed.stderr.contains("--log-file") && failed.stderr.contains("name another"), "{}", failed.stderr);
    }
    let (program, uid) = unprivileged(&scratch);
    let closed = scratch.join("closed.log");
    fs::write(&closed, "").expect("a file");
    fs::set_permissions(&closed, Permissions::from_mode(0o400)).expect("ours");
    let setup = Setup::new(&scratch.join("spool"), &[&format!("--log-file={}", closed.display())]);
    let failed = setup.program(&program).confined(Confinement { uid, ..Confinement::default() }).fail();
    assert_eq!(failed.code, Some(77), "{}", failed.stderr);
    assert!(failed.stderr.contains("closed.log"), "{}", failed.stderr);
}
