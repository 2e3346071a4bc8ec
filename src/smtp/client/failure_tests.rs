//! What goes wrong at each stage, and what it means for each recipient. Dialogues like those in
//! [`tests`](super::tests).

use super::Wants;
use super::tests::{ENVELOPE, after_hello, message, offering, recipient, run, run_cut};

/// What can go wrong at any stage: what the server does, how it is told, what is said to those
/// whose fate it leaves open.
fn mishaps(stage: &str, senseless: &str, patience: u32) -> Vec<(String, String, String)> {
    let refused = |answer: &str| (format!("S: {answer}"), format!("refused at {stage}: {answer}"), answer.to_owned());
    let garbage = |said: &str| {
        let told = format!("senseless reply at {stage}");
        (format!("S: {said}"), told.clone(), format!("451 4.5.0 Next hop: {told}"))
    };
    let lost = |done: &str, told: &str| {
        let told = format!("{told} at {stage}");
        (done.to_owned(), told.clone(), format!("451 4.4.2 Next hop: {told}"))
    };
    vec![
        refused("421 4.3.2 closing"),
        garbage(senseless),
        garbage("hello"),
        garbage("150 x"),
        garbage("250-a\nS: 251 b"),
        lost("! eof", "connection lost"),
        lost("S: 2\\\n! eof", "connection lost"),
        lost(&format!("! pass {}\n! pass 1", patience - 1), "timed out"),
    ]
}

/// Runs a dialogue up to each mishap. `standings`: `open`, or the disposition a recipient has.
fn mishaps_after(dialogue: &str, stage: &str, senseless: &str, patience: u32, standings: &[&str]) {
    for (done, told, answer) in mishaps(stage, senseless, patience) {
        let dispositions: Vec<String> =
            standings.iter().map(|standing| standing.replace("open", &format!("deferred {answer}"))).collect();
        let dispositions = dispositions.join("; ");
        let colon = if dispositions.is_empty() { "" } else { ": " };
        run(&format!("{dialogue}\n{done}\n= failed {told}{colon}{dispositions}"));
    }
}

#[test]
fn mishaps_before_a_transaction() {
    mishaps_after("", "greeting", "250 x", 300, &[]);
    mishaps_after("S: 220 mx\nC: EHLO gw.example", "EHLO", "354 x", 300, &[]);
    mishaps_after("S: 220 mx\nC: EHLO gw.example\nS: 500 what\nC: HELO gw.example", "EHLO", "354 x", 300, &[]);
    for code in ["450", "554"] {
        run(&format!("S: {code} no\n= failed refused at greeting: {code} no"));
    }
    // Without a transaction nobody is waited for.
    for idle in
        ["! pass 100000\n! eof\n= failed connection lost at idle", "S: 421 bye\n= failed refused at idle: 421 bye"]
    {
        offering("", idle);
    }
    offering("", "S: 451 4.7.0 timeout\n= failed refused at idle: 451 4.7.0 timeout");
    offering("", "S: 250 ok\n= failed senseless reply at idle");
    offering("", "S: 4\\\n! pass 299\n! pass 1\n= failed timed out at idle");
    for (done, told) in [
        ("S: 421 bye", "closed"),
        ("S: 599 what", "closed"),
        ("! eof", "failed connection lost at QUIT"),
        ("! pass 300", "failed timed out at QUIT"),
        ("S: what", "failed senseless reply at QUIT"),
    ] {
        offering("", &format!("! quit\nC: QUIT\n{done}\n= {told}"));
    }
}

#[test]
fn mishaps_one_command_at_a_time() {
    let mut dialogue = after_hello("", "! begin\nC: MAIL FROM:<s@a.example>\n");
    mishaps_after(&dialogue, "MAIL", "354 x", 300, &["open", "open"]);
    dialogue += "S: 250 ok\nC: RCPT TO:<a@b.example>\n";
    mishaps_after(&dialogue, "RCPT", "354 x", 300, &["open", "open"]);
    dialogue += "S: 550 no\nC: RCPT TO:<c@d.example>\n";
    mishaps_after(&dialogue, "RCPT", "354 x", 300, &["failed 550 no", "open"]);
    dialogue += "S: 250 ok\nC: DATA\n";
    mishaps_after(&dialogue, "DATA", "250 x", 300, &["failed 550 no", "open"]);
    dialogue += "S: 354 go\n= body\n! hold\n! body x\n";
    mishaps_after(&dialogue, "content", "250 x", 180, &["failed 550 no", "open"]);
    let held = format!("{dialogue}! end\n");
    mishaps_after(&held, "end of data", "354 x", 180, &["failed 550 no", "open"]);
    let dialogue = dialogue.replace("! hold", "") + "! end\nC: x\nC: .\n";
    mishaps_after(&dialogue, "end of data", "354 x", 600, &["failed 550 no", "open"]);
}

#[test]
fn mishaps_in_one_group() {
    let mut dialogue = after_hello("PIPELINING", &format!("{ENVELOPE}C: DATA\n"));
    mishaps_after(&dialogue, "MAIL", "354 x", 300, &["open", "open"]);
    dialogue += "S: 250 ok\n";
    mishaps_after(&dialogue, "RCPT", "354 x", 300, &["open", "open"]);
    dialogue += "S: 452 later\n";
    mishaps_after(&dialogue, "RCPT", "354 x", 300, &["deferred 452 later", "open"]);
    dialogue += "S: 250 ok\n";
    mishaps_after(&dialogue, "DATA", "250 x", 300, &["deferred 452 later", "open"]);
    dialogue += "S: 354 go\n= body\n! body x\n! end\nC: x\nC: .\n";
    mishaps_after(&dialogue, "end of data", "354 x", 600, &["deferred 452 later", "open"]);

    // A refused MAIL speaks for everybody, whatever comes after it.
    let refused = after_hello("PIPELINING", &format!("{ENVELOPE}C: DATA\nS: 550 no\n"));
    mishaps_after(&refused, "RCPT", "354 x", 300, &["failed 550 no", "failed 550 no"]);
    let refused = format!("{refused}S: 250 ok\nS: 503 no\n");
    mishaps_after(&refused, "DATA", "250 x", 300, &["failed 550 no", "failed 550 no"]);
}

#[test]
fn mishaps_in_a_chunk() {
    let mut dialogue = after_hello("PIPELINING CHUNKING", ENVELOPE);
    mishaps_after(&dialogue, "MAIL", "354 x", 300, &["open", "open"]);
    dialogue += "S: 250 ok\nS: 250 ok\n";
    mishaps_after(&dialogue, "RCPT", "354 x", 300, &["open", "open"]);
    dialogue += "S: 250 ok\n= body\nC: BDAT 5 LAST\n! hold\n! body abcd\n";
    mishaps_after(&dialogue, "content", "250 x", 180, &["open", "open"]);
    // All octets were handed out: the next hop may have taken them, and its reply is the final one.
    dialogue += "! body e\n";
    mishaps_after(&dialogue, "end of data", "354 x", 180, &["open", "open"]);
    dialogue += "! end\n";
    mishaps_after(&dialogue, "end of data", "354 x", 180, &["open", "open"]);
    let dialogue = dialogue
        .replace("! hold", "")
        .replace("! end", "C: abcde\\\nS: 250 x\n= answered: delivered; delivered\n! end");
    run(&format!("{dialogue}! quit\nC: QUIT"));
}

/// Refusals that leave the session as it is, each followed by another transaction.
#[test]
fn refusals() {
    let again = "! begin\nC: RSET\nC: MAIL FROM:<s@a.example>";
    let afresh = "! begin\nC: MAIL FROM:<s@a.example>";
    let group = |replies: &str| {
        let replies: String = replies.split(';').map(|reply| format!("S: {reply}\n")).collect();
        format!("{ENVELOPE}C: DATA\n{replies}")
    };
    let next_group = |again: &str| format!("{again}\nC: RCPT TO:<a@b.example>\nC: RCPT TO:<c@d.example>\nC: DATA\n");
    let both = |told: &str| format!("= answered: {told}; {told}\n");
    for (code, fate) in [("450", "deferred"), ("452", "deferred"), ("550", "failed"), ("552", "failed")] {
        let told = both(&format!("{fate} {code} no"));
        let single = |dialogue: &str, again: &str| {
            offering("", &format!("! begin\nC: MAIL FROM:<s@a.example>\n{dialogue}\n{told}{again}"))
        };
        let grouped = |replies: &str, again: &str| {
            offering("PIPELINING", &format!("{}{told}{}", group(replies), next_group(again)));
        };
        // MAIL. What follows may be refused in its own words, or accepted by an odd server.
        single(&format!("S: {code} no"), &again.replace("\nC: MAIL FROM:<s@a.example>", ""));
        grouped(&format!("{code} no;503 a;503 b;503 c"), again);
        grouped(&format!("{code} no;250 a;550 b;554 c"), again);
        offering(
            "PIPELINING",
            &format!(
                "{}C: .\nS: 250 taken\n{told}{}",
                group(&format!("{code} no;250 a;250 b;354 c")),
                next_group(again)
            ),
        );
        // DATA.
        let rcpts = "S: 250 a\nC: RCPT TO:<a@b.example>\nS: 250 b\nC: RCPT TO:<c@d.example>\nS: 250 c\nC: DATA\n";
        single(&format!("{rcpts}S: {code} no"), &again.replace("\nC: MAIL FROM:<s@a.example>", ""));
        grouped(&format!("250 a;250 b;250 c;{code} no"), again);
        // The content.
        let content = "= body\n! body x\n! end\nC: x\nC: .\n";
        single(&format!("{rcpts}S: 354 go\n{content}S: {code} no"), afresh);
        let all = group("250 a;250 b;250 c;354 d");
        offering("PIPELINING", &format!("{all}{content}S: {code} no\n{told}{}", next_group(afresh)));
    }
}

#[test]
fn nobody_accepted() {
    let told = "= answered: failed 550 a; deferred 452 b\n";
    let reset = "! begin\nC: RSET\n";
    offering(
        "",
        &format!(
            "! begin\nC: MAIL FROM:<s@a.example>\nS: 250 ok\nC: RCPT TO:<a@b.example>\nS: 550 a
            C: RCPT TO:<c@d.example>\nS: 452 b\n{told}{reset}S: 250 ok\nC: MAIL FROM:<s@a.example>"
        ),
    );
    let next = "! begin\nC: RSET\nC: MAIL FROM:<s@a.example>\nC: RCPT TO:<a@b.example>\nC: RCPT TO:<c@d.example>\n";
    let group = format!("{ENVELOPE}S: 250 ok\nS: 550 a\nS: 452 b\n");
    offering("PIPELINING CHUNKING", &format!("{group}{told}{next}"));
    let group = format!("{ENVELOPE}C: DATA\nS: 250 ok\nS: 550 a\nS: 452 b\n");
    offering(
        "PIPELINING",
        &format!("{group}S: 554 c\n{told}{next}C: DATA\nS: 250 reset\nS: 250 ok\nS: 250 a\nS: 250 b\nS: 354 c\n= body"),
    );
    // The odd server that says 354 all the same gets nothing, and nothing it says counts.
    for reply in ["250 taken", "554 no"] {
        offering("PIPELINING", &format!("{group}S: 354 go\nC: .\nS: {reply}\n{told}{next}C: DATA"));
    }
    let nothing = after_hello("PIPELINING", &format!("{group}S: 354 go\nC: .\n"));
    mishaps_after(&nothing, "DATA", "354 x", 300, &["failed 550 a", "deferred 452 b"]);
}

#[test]
fn a_refused_reset_ends_the_session() {
    let refused =
        format!("{ENVELOPE}S: 550 no\nS: 503 a\nS: 503 b\n= answered: failed 550 no; failed 550 no\n! begin\n");
    for (reply, told, answer) in [
        ("500 no", "refused at MAIL: 500 no", "451 4.4.2 Next hop: refused at MAIL: 500 no"),
        ("450 no", "refused at MAIL: 450 no", "450 no"),
        ("354 no", "senseless reply at MAIL", "451 4.5.0 Next hop: senseless reply at MAIL"),
    ] {
        offering(
            "PIPELINING CHUNKING",
            &format!(
                "{refused}C: RSET\nC: MAIL FROM:<s@a.example>\nC: RCPT TO:<a@b.example>\nC: RCPT TO:<c@d.example>
                S: {reply}\n= failed {told}: deferred {answer}; deferred {answer}"
            ),
        );
    }
}

#[test]
fn too_many_recipients() {
    let dialogue = |first: &str, second: &str, end: &str| {
        offering(
            "PIPELINING CHUNKING",
            &format!(
                "{ENVELOPE}S: 250 ok\nS: {first}\nS: {second}\n= body\nC: BDAT 5 LAST\n! body abcde\n! end\nC: abcde\\\n{end}"
            ),
        );
    };
    for code in ["452", "552"] {
        dialogue("250 ok", &format!("{code} more"), &format!("S: 250 ok\n= answered: delivered; too many {code} more"));
        dialogue(
            &format!("{code} x"),
            "250 ok",
            "S: 550 no\n= answered: deferred CODE x; failed 550 no".replace("CODE", code).as_str(),
        );
        dialogue(
            "250 ok",
            &format!("{code} x"),
            &format!(
                "! eof\n= failed connection lost at end of data: deferred 451 4.4.2 Next hop: connection lost at end of data; deferred {code} x"
            ),
        );
    }
}

/// Octets that answer nothing. With the input cut before them they would come later, and might
/// then be taken for the answer to what was sent meanwhile: that is the network's doing.
fn whole(dialogue: &str) {
    run_cut(
        dialogue,
        &Wants::default(),
        &message(5, &[recipient("a@b.example"), recipient("c@d.example")]),
        usize::MAX,
    );
}

#[test]
fn nothing_is_kept_for_a_later_command() {
    whole("S: 220 mx\nS: 250 hi\n= failed senseless reply at EHLO");
    whole("S: 220 mx\nS: 421 bye\n= failed refused at EHLO: 421 bye");
    whole("S: 220 mx\nS: 25\\\n! pass 300\n= failed timed out at EHLO");
    whole("S: 220 mx\nC: EHLO gw.example\nS: 500 a\nS: 250 b\n= failed senseless reply at EHLO");
    whole("S: 220 mx\nC: EHLO gw.example\nS: 250 a\nS: 250 b\n= failed senseless reply at idle");
    whole("S: 220 mx\nC: EHLO gw.example\nS: 250 a\nS: 421 b\n= failed refused at idle: 421 b");
    whole("S: 220 mx\nC: EHLO gw.example\nS: 250 a\nS: \\r\\n\n= failed senseless reply at idle");
    let open = "deferred 451 4.5.0 Next hop: senseless reply at";
    let single = after_hello("", "! begin\nC: MAIL FROM:<s@a.example>\n");
    whole(&format!("{single}S: 250 a\nS: 250 b\n= failed senseless reply at RCPT: {open} RCPT; {open} RCPT"));
    let group = after_hello("PIPELINING", &format!("{ENVELOPE}C: DATA\nS: 250 a\nS: 250 b\nS: 250 c\nS: 354 d\n"));
    whole(&format!("{group}S: 250 x\n= failed senseless reply at content: {open} content; {open} content"));
    whole(&format!("{group}S: 421 x\n= failed refused at content: 421 x: deferred 421 x; deferred 421 x"));
    let chunk = after_hello("PIPELINING CHUNKING", &format!("{ENVELOPE}S: 250 a\nS: 250 b\nS: 250 c\n"));
    whole(&format!("{chunk}S: 250 x\n= failed senseless reply at content: {open} content; {open} content"));
    // The answer stands, and the connection is not used again.
    let done = format!("{group}= body\n! body x\n! end\nC: x\nC: .\nS: 250 taken\n");
    whole(&format!("{done}S: 250 x\n= answered: delivered; delivered\n= failed senseless reply at idle"));
    whole(&format!("{done}S: 421 x\n= answered: delivered; delivered\n= failed refused at idle: 421 x"));
    let told = "connection lost at idle";
    let left = format!("deferred 451 4.4.2 Next hop: {told}");
    whole(&format!(
        "{done}S: 2\\\n= answered: delivered; delivered\n! begin\n! pass 0\n= failed {told}: {left}; {left}"
    ));
}

/// A session that is asked for what it cannot do ends, and says what became of the recipients.
#[test]
fn out_of_turn() {
    let lost = "deferred 451 4.4.2 Next hop: connection lost at";
    run(&format!("! begin\nS: 220 mx\n= failed connection lost at greeting: {lost} greeting; {lost} greeting"));
    offering(
        "",
        &format!("! begin\nC: MAIL FROM:<s@a.example>\n! quit\nS: 250 ok\n= closed: {lost} MAIL; {lost} MAIL"),
    );
    offering("", "! body x\n! end\n! quit\nC: QUIT\n! quit\n! body x\n! end\nS: 221 ok\n= closed\n! quit");
    // After the end nothing is said, and what is read is thrown away.
    offering("", "S: x\n= failed senseless reply at idle\nS: 220 mx\nS: 250\\\n! body x\n! end\n! quit\n! pass 10000");
}

/// The content is of another size than BDAT announced: the chunk is never completed, or, when it
/// was complete before, no octet follows it.
#[test]
fn miscounted_content() {
    let chunk = after_hello(
        "CHUNKING PIPELINING",
        &format!("{ENVELOPE}S: 250 a\nS: 550 b\nS: 250 c\n= body\nC: BDAT 5 LAST\n"),
    );
    let told = |stage| {
        let told = format!("content of another size than announced at {stage}");
        format!("failed {told}: failed 550 b; deferred 451 4.3.0 Next hop: {told}")
    };
    run(&format!("{chunk}! body abcd\n! end\nC: abcd\\\n! pass 0\n= {}", told("content")));
    run(&format!("{chunk}! body abcd\n! body ef\n! end\nC: abcd\\\nS: 250 x\n= {}", told("content")));
    run(&format!("{chunk}! body abcde\n! body f\n! end\nC: abcde\\\n! eof\n= {}", told("end of data")));
}

/// A refusal that comes before all content was sent counts, but leaves the two out of step.
#[test]
fn an_early_final_reply_is_the_last() {
    let early =
        "= body\n! hold\n! body x\n! end\nS: 552 large\n= answered: failed 552 large; failed 552 large\n= closed";
    offering("PIPELINING", &format!("{ENVELOPE}C: DATA\nS: 250 a\nS: 250 b\nS: 250 c\nS: 354 d\n{early}"));
}
