#!/usr/bin/env python3
"""Mail from foreign clients through the release binary into foreign next hops.

usage: forward.py GATEPOST DIRECTORY [CASE...]

Clients: swaks, curl, smtplib, smtp-source. Next hops: smtp-sink, a Postfix with configuration,
queue and mailbox of its own, and `gatepost-load sink`, which stands beside GATEPOST. Works in
DIRECTORY alone (Postfix' own user must be able to get there), on 127.0.0.0/8. Every wait is
bounded; nothing depends on how fast anything is, save that an acknowledgement said to be immediate
must come before a limit of a minute or more. Ends with one line, `N passed, N failed`, and exits 1
when something failed. A program that is missing is a failure, not a reason to skip.

What is checked everywhere: each accepted message arrives once, octet by octet below the one
Received field that was added.
"""

import collections
import os
import re
import smtplib
import sys
import threading
import time

from harness import FROM, PATIENCE, SCRATCH, TO, Gateway, case, main, queue, run, same, shapes, smtp_source, until
from next_hops import UNLIMITED, NextHop, Postfix, Recorder, SmtpSink, check, delivered, reserve

# How many messages wait in the queue when it is stopped and started.
MANY = int(os.environ.get("GATEPOST_FORWARD_MESSAGES", "2000"))
# How late "at its limit" may be, on a machine that has other things to do.
LATE = 10


# --- every client, every shape -------------------------------------------------------------------


def contents():
    """What every client can send."""
    yield from shapes()
    header = b"From: a@b.example\r\nSubject: shapes\r\n"
    yield "no body", header
    yield "300 KB", header + b"\r\n" + b"".join(b".%06d %s\r\n" % (number, b"x" * 67) for number in range(3900))
    yield "3 MB", header + b"\r\n" + b"".join(b"%06d %s\r\n" % (number, b"y" * 67) for number in range(39_500))


def by_swaks(gateway, content):
    path = SCRATCH / "swaks.eml"
    # As it is, with the end of data: it would end every message with an empty line of its own.
    path.write_bytes(re.sub(rb"^\.", b"..", content, flags=re.MULTILINE) + b".\r\n")
    run("swaks", "--server", gateway.server, "--from", FROM, "--to", TO, "--helo", "swaks.example",
        "--data", f"@{path}", "--no-data-fixup", "--suppress-data")
    return content


def by_curl(gateway, content):
    path = SCRATCH / "curl.eml"
    path.write_bytes(content)
    run("curl", "--silent", "--show-error", f"smtp://{gateway.server}/curl.example", "--mail-from", FROM,
        "--mail-rcpt", TO, "--upload-file", path)
    return content


def connect(gateway):
    client = smtplib.SMTP(*gateway.address, local_hostname="smtplib.example", timeout=PATIENCE)
    client.ehlo()
    return client


def send(client, content, recipients=(TO,), options=(), recipient_options=()):
    """Sends a message by smtplib; its queue id."""
    assert client.mail(FROM, options)[0] == 250
    for recipient in recipients:
        code, text = client.rcpt(recipient, recipient_options)
        assert code == 250, text
    code, text = client.data(content)
    assert code == 250, text
    return re.match(rb"2\.6\.0 ([0-9A-Za-z]+) ", text)[1].decode()


def by_smtplib(gateway, content):
    with connect(gateway) as client:
        send(client, content)
    return content


def by_smtp_source(gateway, content):
    path = SCRATCH / "source.eml"
    path.write_bytes(content.replace(b"\r\n", b"\n"))
    smtp_source(gateway, "-m", "1", "-F", path)
    # It ends every file with an empty line of its own.
    return content + b"\r\n"


def by_bare_line_feeds(gateway, content):
    """Bare line feeds, which are mended."""
    with connect(gateway) as client:
        assert client.mail(FROM)[0] == 250 and client.rcpt(TO)[0] == 250
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        # A dot behind a bare line feed begins no line (RFC 5321 section 2.3.8): it is neither
        # taken off nor the end of data, and stays as it is.
        client.send(content.replace(b"\r\n", b"\n") + b"end\r\n.\r\n")
        assert client.getreply()[0] == 250
    return content + b"end\r\n"


CLIENTS = (by_swaks, by_curl, by_smtplib, by_smtp_source, by_bare_line_feeds)


def every_client(next_hop, server=None, clients=CLIENTS):
    """Sends everything; what must arrive."""
    expected = []
    with Gateway("--next-hop=" + (server or next_hop.server), *UNLIMITED) as gateway:
        for client in clients:
            for name, content in contents():
                label = f"X-Label: {client.__name__} {name}\r\n".encode()
                expected.append(client(gateway, label + content))
        # Without any header: an empty line is the least that smtplib sends.
        for content in (b"\r\n", b".\r\n", b"\r\n\r\n.\r\n\r\n"):
            expected.append(by_smtplib(gateway, content))
        delivered(gateway)
        assert gateway.metric("gatepost_messages_accepted_total") == len(expected)
        errors = gateway.stop()
        assert errors == "", errors
    assert not queue(gateway.spool)
    return expected


@case
def every_client_into_smtp_sink():
    with SmtpSink() as sink:
        expected = every_client(sink)
        mails = sink.mails()
        check(mails, expected)
        assert {(mail.sender, *mail.recipients) for mail in mails} == {(f"<{FROM}>", f"<{TO}>")}


@case
def every_shape_into_smtp_sink_without_extensions():
    # Without ESMTP, without pipelining, without 8BITMIME and DSN.
    for options in (["-e"], ["-p"], ["-8", "-N"]):
        with SmtpSink(*options) as sink:
            expected = every_client(sink, clients=(by_curl, by_smtplib))
            check(sink.mails(), expected)


def into_recorder(verb, *options):
    with Recorder(*options) as sink:
        expected = every_client(sink)
        mails = sink.mails()
        check(mails, expected)
        for mail in mails:
            octets = len(mail.field) + len(mail.content)
            assert (mail.sender, mail.recipients) == (f"<{FROM}> SIZE={octets}", [f"<{TO}>"]), mail.sender
            assert mail.verb == verb, mail.verb


@case
def every_client_into_the_recorder_by_chunks():
    into_recorder("BDAT")


@case
def every_client_into_the_recorder_by_data():
    into_recorder("DATA", "--disable-extension=chunking")


def in_postfix(content):
    """What Postfix keeps of a message: where other lines follow the header, it ends it with an empty line."""
    header = re.match(rb"(?:[!-9;-~]+:.*\r\n(?:[ \t].*\r\n)*)*", content).end()
    return content if content[header:header + 2] in (b"", b"\r\n") else content[:header] + b"\r\n" + content[header:]


def into_postfix(way, server):
    with Postfix() as postfix:
        expected = every_client(postfix, server(postfix))
        check(postfix.mails(), map(in_postfix, expected))
        # Said when a session ends.
        total = lambda: sum(int(count) for count in re.findall(rf" {way}=(\d+)", postfix.log_text()))
        until(f"all came by {way.upper()}, see {postfix.log}", lambda: total() == len(expected))


@case
def every_client_into_postfix_by_chunks():
    into_postfix("bdat", lambda postfix: postfix.server)


@case
def every_client_into_postfix_by_data():
    into_postfix("data", lambda postfix: postfix.plain_server)


# --- many messages -------------------------------------------------------------------------------


def many(next_hop, messages, may_refuse=False):
    """Thousands of messages from smtp-source, on lasting connections and on one for each."""
    with next_hop, Gateway("--next-hop=" + next_hop.server, *UNLIMITED) as gateway:
        began = time.monotonic()
        smtp_source(gateway, "-d", "-m", messages, "-s", "20", "-l", "4096")
        smtp_source(gateway, "-m", messages, "-s", "20", "-l", "1000", "-r", "3")
        delivered(gateway)
        print(f"    {2 * messages / (time.monotonic() - began):.0f} messages/s")
        assert gateway.metric("gatepost_messages_accepted_total") == 2 * messages
        errors = gateway.stop().splitlines()
        # One that refuses connections before it has answered the first hello looks down until then.
        falls, rises = ([line for line in errors if words in line] for words in ("refused at greeting: 421", "reached again"))
        assert not errors or (may_refuse and len(falls) == len(rises) == len(errors) // 2), errors
        mails = next_hop.mails()
    recipients = collections.Counter(recipient for mail in mails for recipient in mail.recipients)
    assert recipients == {f"<{TO}>": 2 * messages, f"<2{TO}>": messages, f"<3{TO}>": messages}, recipients
    # Postfix files a message for each of its recipients.
    mails = [mail for mail in mails if f"<{TO}>" in mail.recipients]
    # Each has a Message-Id of its own.
    header = re.compile(rb"From: <.*>\r\nTo: <.*>\r\nDate: .*\r\nMessage-Id: (<.*>)\r\n\r\n")
    heads = [header.match(mail.content) for mail in mails]
    assert all(heads), mails[0].content[:300]
    assert len({head[1] for head in heads}) == len({mail.identifier for mail in mails}) == len(mails) == 2 * messages
    bodies = collections.Counter(mail.content[head.end():] for mail, head in zip(mails, heads))
    assert sorted(bodies.values()) == [messages, messages], [(count, body[:100]) for body, count in bodies.items()]
    return mails


@case
def many_into_smtp_sink():
    many(SmtpSink(), 1500)


@case
def many_into_the_recorder():
    mails = many(Recorder(), 1500)
    assert all(len(mail.recipients) in (1, 3) for mail in mails)


@case
def many_into_postfix():
    many(Postfix(), 500)


@case
def many_into_a_postfix_that_allows_few_connections():
    postfix = Postfix("smtpd_client_connection_count_limit = 3", "smtpd_client_event_limit_exceptions =")
    many(postfix, 200, may_refuse=True)
    assert "Connection concurrency limit exceeded" in postfix.log_text()


# --- envelopes -----------------------------------------------------------------------------------

# What a client says of a recipient, and how Postfix keeps it: 1 is NEVER, 2 SUCCESS, 4 FAILURE, 8 DELAY.
ASKED = [
    ("<one@held.example>", "", ["dsn_orig_rcpt=rfc822;one@held.example"]),
    ("<two@held.example>", "NOTIFY=NEVER", ["notify_flags=1", "dsn_orig_rcpt=rfc822;two@held.example"]),
    ("<three@held.example>", "NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;third+2Bthree@held.example",
     ["notify_flags=14", "dsn_orig_rcpt=rfc822;third+three@held.example"]),
    ("<four@held.example>", "ORCPT=x400;a+20b", ["dsn_orig_rcpt=x400;a b"]),
    ("<five@held.example>", "NOTIFY=FAILURE", ["notify_flags=4", "dsn_orig_rcpt=rfc822;five@held.example"]),
]
ENVELOPE = "RET=HDRS ENVID=QQ314159+2Bx"
CONTENT = b"From: a@b.example\r\nSubject: envelope\r\n\r\n.\r\nGr\xc3\xbc\xc3\x9fe\r\n"
HELD = [*UNLIMITED, "--accept-domain=held.example"]


def send_with_parameters(gateway):
    with connect(gateway) as client:
        assert "dsn" in client.esmtp_features
        assert client.mail(FROM, [*ENVELOPE.split(), "BODY=8BITMIME"])[0] == 250
        for recipient, parameters, *_ in ASKED:
            code, text = client.docmd("RCPT", f"TO:{recipient} {parameters}".rstrip())
            assert code == 250, text
        assert client.data(CONTENT)[0] == 250
    delivered(gateway)


@case
def dsn_parameters_arrive_as_they_came():
    for make in (SmtpSink, Recorder):
        with make() as sink, Gateway("--next-hop=" + sink.server, *HELD) as gateway:
            send_with_parameters(gateway)
            mail, = sink.mails()
            same(mail.content, CONTENT)
            sender, *parameters = mail.sender.split()
            wanted = {*ENVELOPE.split(), "BODY=8BITMIME"}
            if make is Recorder:
                wanted.add(f"SIZE={len(mail.field) + len(mail.content)}")
            assert sender == f"<{FROM}>" and sorted(parameters) == sorted(wanted), mail.sender
            wanted = [f"{recipient} {parameters}".rstrip() for recipient, parameters, *_ in ASKED]
            got = [" ".join([word.split()[0], *sorted(word.split()[1:])]) for word in mail.recipients]
            assert got == [" ".join([word.split()[0], *sorted(word.split()[1:])]) for word in wanted], mail.recipients


@case
def dsn_parameters_are_known_to_postfix():
    with Postfix() as postfix:
        for server in (postfix.server, postfix.plain_server):
            with Gateway("--next-hop=" + server, *HELD) as gateway:
                send_with_parameters(gateway)
        envelopes = postfix.held()
        assert len(envelopes) == 2
        for envelope in envelopes:
            assert "envelope_id=QQ314159+x\n" in envelope and "ret_flags=2\n" in envelope, envelope
            got = re.findall(r"((?:^named_attribute: (?:notify_flags|dsn_orig_rcpt)=.*\n)*)"
                             r"^original_recipient: (.*)\n", envelope, re.MULTILINE)
            got = [(f"<{path}>", re.findall(": (.*)", attributes)) for attributes, path in got]
            assert got == [(path, attributes) for path, _, attributes in ASKED], envelope


@case
def nothing_is_asked_of_a_next_hop_without_dsn():
    with Recorder("--disable-extension=dsn") as sink, Gateway("--next-hop=" + sink.server, *HELD) as gateway:
        send_with_parameters(gateway)
        mail, = sink.mails()
        same(mail.content, CONTENT)
        assert "ENVID" not in mail.sender and "RET" not in mail.sender, mail.sender
        assert mail.recipients == [recipient for recipient, *_ in ASKED], mail.recipients


@case
def two_hundred_recipients_over_four_routes():
    domains = ["test.example", "one.example", "two.example", "sub.three.example"]
    recipients = [f"r{number}@{domains[number * 7 % 4]}" for number in range(200)]
    asked = [f"NOTIFY=FAILURE ORCPT=rfc822;r{number}+2B@origin.example" for number in range(200)]
    sinks = [SmtpSink(), Recorder(), Recorder("--disable-extension=chunking"), Recorder()]
    with sinks[0], sinks[1], sinks[2], sinks[3]:
        routes = [f"--next-hop={sinks[0].server}", f"--route=one.example={sinks[1].server}",
                  f"--route=two.example={sinks[2].server}", f"--route=.three.example={sinks[3].server}"]
        accepted = ["--accept-domain=one.example", "--accept-domain=two.example", "--accept-domain=.three.example"]
        for content in (CONTENT, b"Subject: large\r\n\r\n" + b".%076d\r\n" * 10_000 % tuple(range(10_000))):
            with Gateway(*routes, *accepted, *UNLIMITED) as gateway:
                with connect(gateway) as client:
                    assert client.mail(FROM, ENVELOPE.split())[0] == 250
                    for recipient, parameters in zip(recipients, asked):
                        assert client.docmd("RCPT", f"TO:<{recipient}> {parameters}")[0] == 250
                    code, text = client.data(content)
                    assert code == 250, text
                delivered(gateway)
                assert gateway.stop() == ""
            fields = set()
            for domain, sink in zip(domains, sinks):
                mail, = [mail for mail in sink.mails() if mail.identifier.encode() in text]
                wanted = [f"<{recipient}> {parameters}" for recipient, parameters in zip(recipients, asked)
                          if recipient.endswith("@" + domain)]
                assert len(wanted) == 50 and mail.recipients == wanted, f"{domain}: {mail.recipients}"
                assert set(ENVELOPE.split()) < set(mail.sender.split()), mail.sender
                same(mail.content, content)
                fields.add(mail.field)
            assert len(fields) == 1, fields


# --- next hops that are stopped, and Gatepost stopped --------------------------------------------


def skipped(gateway, reason):
    return gateway.metric(f'gatepost_ack_delays_total{{reason="{reason}"}}')


def numbered(number):
    return b"Subject: %d\r\n\r\n.%s\r\n" % (number, b"x" * (number % 3000))


def send_numbered(gateway, numbers):
    """Sends numbered messages in one session: contents by queue id."""
    with connect(gateway) as client:
        return {send(client, numbered(number)): numbered(number) for number in numbers}


def check_numbered(mails, sent):
    check(mails, sent.values())
    for mail in mails:
        same(mail.content, sent[mail.identifier])


@case
def mail_for_a_stopped_next_hop_is_accepted_and_arrives_later():
    sink = SmtpSink()
    with Gateway("--next-hop=" + sink.server, "--ack-delay=60s", *UNLIMITED) as gateway:
        began = time.monotonic()
        sent = send_numbered(gateway, range(1000))
        took = time.monotonic() - began
        print(f"    {1000 / took:.0f} messages/s accepted in one session while the next hop is down")
        assert took < 60, f"{took:.1f} s"
        assert (skipped(gateway, "next_hop_down"), skipped(gateway, "limit")) == (1000, 0)
        waiting = queue(gateway.spool)
        assert {identifier: content for identifier, (_, _, content) in waiting.items()} == sent
        with sink:
            delivered(gateway)
            check_numbered(sink.mails(), sent)
            # It goes down under a gateway that has connections to it, and comes back.
            sink.stop()
            later = send_numbered(gateway, range(1000, 1200))
            assert queue(gateway.spool).keys() == later.keys()
            sink.start()
            delivered(gateway)
            errors = gateway.stop().splitlines()
            check_numbered(sink.mails(), sent | later)
    said = [line for line in errors if "its mail waits in the queue" in line]
    assert len(said) in (1, 2) and len(errors) == 2 * len(said), errors
    assert not queue(gateway.spool)


@case
def a_stopped_gateway_goes_on_where_it_was():
    sink = Recorder()
    options = ["--next-hop=" + sink.server, *UNLIMITED]
    with Gateway(*options) as gateway:
        sent = {}
        while len(sent) < MANY:
            sent |= send_numbered(gateway, range(len(sent), min(len(sent) + 1000, MANY)))
        assert len(sent) == MANY
        gateway.stop()
    with Gateway(*options, spool=gateway.spool) as gateway:
        assert gateway.metric("gatepost_queue_messages") == MANY
        print(f"    {gateway.resident() >> 10} KB resident with {MANY} messages in the queue")
        assert queue(gateway.spool).keys() == sent.keys()
        gateway.stop()
    sink.start()
    with sink:
        began = time.monotonic()
        # Stopped twice on the way.
        for part in (4, 2):
            with Gateway(*options, spool=gateway.spool) as gateway:
                until("some have arrived", lambda part=part: sink.count() > MANY // part)
                gateway.stop()
        print(f"    {MANY - sink.count()} of {MANY} are left when it is stopped for the last time")
        with Gateway(*options, spool=gateway.spool) as gateway:
            until("all have arrived", lambda: sink.count() >= MANY)
            print(f"    all have arrived after {time.monotonic() - began:.1f} s")
            delivered(gateway)
            gateway.stop()
        check_numbered(sink.mails(), sent)
    assert not queue(gateway.spool)


@case
def a_next_hop_that_is_killed_again_and_again_loses_nothing():
    sink = Recorder()
    with sink, Gateway("--next-hop=" + sink.server, "--ack-delay=0", *UNLIMITED) as gateway:
        sent, failures = {}, []

        def load(start):
            try:
                sent.update(send_numbered(gateway, range(start, start + 500)))
            except Exception as error:  # pylint: disable=broad-except
                failures.append(error)

        threads = [threading.Thread(target=load, args=(500 * thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for round in range(1, 5):
            until("more has arrived", lambda round=round: sink.count() >= 200 * round)
            sink.process.kill()
            sink.process.wait()
            sink.start()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]
        delivered(gateway)
        unanswered = gateway.metric('gatepost_possible_duplicates_total{window="next_hop_silent"}')
        gateway.stop()
        mails = sink.mails()
    by_identifier = {mail.identifier: mail for mail in mails}
    check_numbered(by_identifier.values(), sent)
    # Where its last reply was lost, nobody can know.
    print(f"    {len(mails) - len(sent)} arrived twice, {unanswered:.0f} may have")
    assert len(mails) - len(sent) <= unanswered


@case
def a_drain_under_load_loses_and_doubles_nothing():
    # With the delay, sessions wait for the next hop when the drain begins.
    for ack_delay in ("0", "90s"):
        drained(ack_delay)


def drained(ack_delay):
    slow, down = Recorder("--fault=end=slow:30ms"), Recorder()
    drain = 60
    options = [f"--next-hop={slow.server}", f"--route=down.example={down.server}", "--accept-domain=down.example",
               f"--ack-delay={ack_delay}", f"--drain-timeout={drain}s", *UNLIMITED]
    sent, failures = {}, []

    def load(thread):
        number = thread
        try:
            with connect(gateway) as client:
                while True:
                    recipients = [(TO,), ("rcpt@down.example",), (TO, "rcpt@down.example")][number // 8 % 3]
                    identifier = send(client, numbered(number), recipients)
                    sent[identifier] = number, recipients
                    number += 8
        except (smtplib.SMTPException, AssertionError, OSError) as error:
            failures.append(error)

    with slow:
        with Gateway(*options) as gateway:
            threads = [threading.Thread(target=load, args=(thread,)) for thread in range(8)]
            for thread in threads:
                thread.start()
            try:
                until("there is enough of everything", lambda: len(sent) > 500 and slow.count() > 100)
                assert not failures, failures[0]
                began = time.monotonic()
                gateway.stop()
                took = time.monotonic() - began
            finally:
                gateway.process.kill()
                for thread in threads:
                    thread.join()
        assert took < drain, f"{took:.1f} s"
        waiting, arrived = queue(gateway.spool), {mail.identifier for mail in slow.mails()}
        print(f"    {len(sent)} acknowledged, {len(arrived)} at the next hop, {len(waiting)} in the queue, "
              f"stopped in {took:.1f} s")
        lost = sent.keys() - waiting.keys() - arrived
        assert not lost, f"acknowledged and lost: {lost}"
        for identifier, (_, recipients) in sent.items():
            # What waits for the one that is down is still there; what does not is either here or there.
            expected = (recipients != (TO,)) or identifier not in arrived
            assert (identifier in waiting) == expected, f"{identifier} to {recipients}"
        with down, Gateway(*options, spool=gateway.spool) as gateway:
            delivered(gateway)
            gateway.stop()
            for sink, recipient in ((slow, TO), (down, "rcpt@down.example")):
                mails = sink.mails()
                assert all(mail.recipients == [f"<{recipient}>"] for mail in mails)
                wanted = {identifier: numbered(number) for identifier, (number, recipients) in sent.items()
                          if recipient in recipients}
                # What was committed while the session ended is in the queue too, and nobody was told.
                mine = [mail for mail in mails if mail.identifier in sent]
                assert len({mail.identifier for mail in mails}) == len(mails)
                check_numbered(mine, wanted)
                assert len(mails) - len(mine) <= len(threads), f"{len(mails) - len(mine)} were not acknowledged"
    assert not queue(gateway.spool)


# --- acknowledgement delay -----------------------------------------------------------------------


def timed(gateway, recipients=(TO,)):
    """Sends a message; the reply to its end, and how long it took."""
    with connect(gateway) as client:
        assert client.mail(FROM)[0] == 250
        for recipient in recipients:
            assert client.rcpt(recipient)[0] == 250
        began = time.monotonic()
        code, text = client.data(CONTENT)
        return code, text.decode(), time.monotonic() - began


@case
def an_acknowledgement_comes_when_the_next_hop_has_the_message():
    for options, least in (([], 0), (["--fault=end=slow:1s"], 1), (["--fault=mail=slow:1s"], 1)):
        with Recorder(*options) as sink, Gateway("--next-hop=" + sink.server, "--ack-delay=90s", *UNLIMITED) as gateway:
            for count in range(1, 4 if options else 21):
                code, text, took = timed(gateway)
                assert code == 250 and text.endswith(" Queued mail for delivery"), text
                mails = sink.mails()
                assert len(mails) == count and mails[-1].identifier in text, f"{options}: {len(mails)} of {count}"
                assert least <= took < 90, f"{options}: {took:.2f} s"
            print(f"    {' '.join(options) or 'quick'}: {1000 * took:.1f} ms")
            delivered(gateway)
            assert skipped(gateway, "delivered") == count
            check(sink.mails(), [CONTENT] * count)


@case
def an_acknowledgement_waits_no_longer_than_its_delay():
    for fault, arrives in (("end=slow:3s", True), ("end=hang", False), ("ehlo=hang", False), ("rcpt=hang", False)):
        with Recorder("--fault=" + fault) as sink, Gateway("--next-hop=" + sink.server, "--ack-delay=1s", *UNLIMITED) as gateway:
            code, text, took = timed(gateway)
            assert code == 250, text
            print(f"    {fault}: {took:.3f} s for a delay of 1 s")
            assert 1 <= took < 1 + LATE, f"{fault}: {took:.2f} s"
            if arrives:
                delivered(gateway)
                check(sink.mails(), [CONTENT])
            else:
                identifier, = queue(gateway.spool)
                assert identifier in text
            # Unless a wait of a second took three.
            assert skipped(gateway, "limit") == 1 or took > 3


@case
def an_acknowledgement_does_not_wait_for_a_next_hop_that_is_down():
    # Nobody listens there.
    held = reserve(NextHop.host)
    with held, Gateway(f"--next-hop={NextHop.host}:{held.getsockname()[1]}", "--ack-delay=90s", *UNLIMITED) as gateway:
        for count in range(1, 21):
            code, text, took = timed(gateway)
            assert code == 250 and took < 60, f"{text}: {took:.1f} s"
        print(f"    down: {1000 * took:.1f} ms")
        assert len(queue(gateway.spool)) == count
        assert skipped(gateway, "next_hop_down") == 20


@case
def a_refusal_by_the_next_hop_is_passed_on():
    refusal = "550 5.7.1 We do not want this"
    both = (TO, "other@test.example")
    for fault, recipients, expected, times in (
            ("end=" + refusal, (TO,), refusal, 3),
            ("end=" + refusal, both, refusal, 3),
            ("mail=" + refusal, both, refusal, 3),
            ("rcpt=" + refusal, both, refusal, 3),
            ("rcpt=550 no enhanced code", (TO,), "550 5.0.0 no enhanced code", 3),
            ("end=554 5.6.0 first line\\n5.6.0 last line", (TO,), "554 5.6.0 last line", 3),
            # One of two: accepted, and a failure of that one.
            ("rcpt[other]=" + refusal, both, None, 1),
            # For now only: accepted, and tried again.
            ("end=451 4.3.0 later,first:1", both, None, 1)):
        with Recorder("--fault=" + fault) as sink, Gateway("--next-hop=" + sink.server, "--ack-delay=90s", *UNLIMITED) as gateway:
            for _ in range(times):
                code, text, took = timed(gateway, recipients)
                assert took < 60, f"{fault}: {took:.1f} s"
                if expected:
                    assert f"{code} {text}" == expected, f"{fault}: {code} {text}"
                else:
                    assert code == 250, f"{fault}: {code} {text}"
            if expected:
                delivered(gateway)
                assert not queue(gateway.spool) and not sink.mails()
                assert gateway.metric("gatepost_messages_accepted_total") == 0
                assert skipped(gateway, "refused") == times
            else:
                until("it arrives", lambda sink=sink: sink.count() > 0)
                mail, = sink.mails()
                same(mail.content, CONTENT)
                assert mail.identifier in text
                wanted = [f"<{path}>" for path in both if path == TO or "rcpt" not in fault]
                assert mail.recipients == wanted, f"{fault}: {mail.recipients}"
            gateway.stop()
        assert len(sink.mails()) == (0 if expected else 1)


if __name__ == "__main__":
    sys.exit(main())
