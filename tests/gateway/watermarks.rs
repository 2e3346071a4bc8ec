//! Watermarks of disk and memory (E8): by figures that no machine reaches. What happens when there is
//! room again is in `.ci/suites`, which can make a filesystem of its own.

use crate::harness::{BANNER, Gateway, NOT_CONFIGURED, RESOURCES, Scratch, start};
use rustix::process::Signal;

#[track_caller]
fn assert_refused(mut client: crate::harness::Client, text: &str) {
    assert_eq!(client.reply(), text);
    client.assert_ended();
}

/// The line that says why mail is refused, from what is short to the remedy.
#[track_caller]
fn assert_said(gateway: &Gateway, what: &str, option: &str) {
    let stderr = gateway.stderr();
    let [line] = stderr.lines().collect::<Vec<_>>()[..] else { panic!("one line: {stderr:?}") };
    let figure = line.strip_prefix(&format!("gatepost: {what} is ")).unwrap_or_else(|| panic!("{line}"));
    let figure = figure
        .strip_suffix(&format!(", below {option} 1000TB: mail is refused with 452 until there is more"))
        .unwrap_or_else(|| panic!("{line}"));
    let (number, unit) = figure.split_once(' ').expect("a number and a unit");
    assert!(number.parse::<u64>().is_ok() && ["B", "KB", "MB", "GB", "TB"].contains(&unit), "{line}");
}

#[test]
fn below_a_watermark_nobody_is_served() {
    for (option, metric) in
        [("--min-free-disk", "gatepost_free_disk_bytes"), ("--min-free-memory", "gatepost_free_memory_bytes")]
    {
        let scratch = Scratch::new();
        let mut gateway = start(
            &scratch.join("spool"),
            &[
                "--listen=127.0.0.1:0",
                "--listen=[::1]:0,role=relay",
                "--listen=127.0.0.1:0,allow=127.9.9.9",
                &format!("{option}=1000TB"),
            ],
        );
        // From the first connection on, whatever the role; but who is not to come at all is told so.
        for _ in 0..10 {
            assert_refused(gateway.connect(), RESOURCES);
        }
        for (listening, text) in [(1, RESOURCES), (2, NOT_CONFIGURED)] {
            assert_refused(crate::harness::Client::connect(gateway.listening[listening], None), text);
        }
        assert_eq!(gateway.refusals("gatepost_connections_refused_total", "resources"), 11.0);
        assert_eq!(gateway.metric("gatepost_resources_short"), 1.0);
        let free = gateway.metric(metric);
        assert!(free > 0.0 && free < (1000_u64 << 40) as f64, "{free}");
        let what = match option {
            "--min-free-disk" => {
                format!("free space on {}", gateway.spool.canonicalize().expect("it is there").display())
            }
            _ => "free memory".to_owned(),
        };
        assert_said(&gateway, &what, option);
        gateway.signal(Signal::TERM);
        assert_eq!(gateway.wait().0, Some(0));
    }
}

#[test]
fn above_them_everybody_is() {
    let scratch = Scratch::new();
    // Something is free wherever tests run.
    let gateway = start(&scratch.join("spool"), &["--min-free-disk=1B", "--min-free-memory=1B"]);
    assert_eq!(gateway.connect().reply(), BANNER);
    assert_eq!(gateway.metric("gatepost_resources_short"), 0.0);
    assert!(gateway.metric("gatepost_free_disk_bytes") > 0.0 && gateway.metric("gatepost_free_memory_bytes") > 0.0);
    gateway.stop();
}
