//! Reading a transcript; `tests/transcripts/README.md` is the language's description.

use super::policy::{DoorSettings, Passwords, Settings};
use gatepost::limits;
use gatepost::policy::{AcceptedDomains, AddressRanges, DynamicBlocks, canonical, parse_range};
use gatepost::smtp::server::{Profile, Revision, Role};
use std::net::SocketAddr;
use std::time::Duration;

/// A transcript, read.
#[derive(Debug)]
pub struct Transcript {
    pub settings: Settings,
    /// Whether it holds for one role, or one revision, only.
    pub fixes_role: bool,
    pub fixes_revision: bool,
    /// Whether what happens depends on what arrives in one piece.
    pub is_whole: bool,
    pub items: Vec<Item>,
    /// Octets the client sends in all.
    pub client_octets: usize,
}

/// One line of a transcript, with its number.
#[derive(Debug)]
pub struct Item {
    pub line: usize,
    pub act: Act,
}

#[derive(Debug)]
pub enum Act {
    Client(Vec<u8>),
    Server(String),
    Directive(Directive),
}

#[derive(Debug)]
pub enum Directive {
    Wait,
    After(Duration),
    CommitFails,
    CommitTakes(Duration),
    LogonTakes(Duration),
    LogonUnavailable,
    /// The handshake is done, or fails.
    Tls {
        is_done: bool,
    },
    BodyFails,
    ResourcesShort(bool),
    Shutdown {
        at_once: bool,
    },
    Close,
    Marked(bool),
    Writes(usize),
    /// The next stored message; `None`: whatever its content.
    Message(Option<Vec<u8>>),
    /// The envelope of that message.
    Envelope(Envelope),
    /// The Received field of that message; `{id}` stands for its id.
    Received(String),
}

/// An envelope, its parameters as they are written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    pub from: String,
    pub to: Vec<Recipient>,
    /// `BODY=`; `None` for 7BIT.
    pub body: Option<String>,
    pub ret: Option<String>,
    pub envid: Option<String>,
    pub auth: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recipient {
    pub path: String,
    pub notify: Option<String>,
    pub orcpt: Option<String>,
}

/// Reads a transcript for a role and a revision, which it may fix itself.
pub fn parse(text: &str, role: &str, revision: &str) -> Result<Transcript, String> {
    let mut settings = defaults();
    configure(&mut settings, &format!("role={role}"))?;
    configure(&mut settings, &format!("revision={revision}"))?;
    let fixes = |key: &str| {
        text.lines()
            .filter_map(|line| line.strip_prefix("@config "))
            .flat_map(|rest| rest.split(' '))
            .any(|word| word.starts_with(key))
    };
    let (fixes_role, fixes_revision) = (fixes("role="), fixes("revision="));
    let is_whole = fixes("pieces=whole");
    let mut under_tls = false;
    let mut items: Vec<Item> = Vec::new();
    // A line, or the number of the block that its directive opens.
    let mut lines = Vec::new();
    let mut blocks: Vec<(&str, String)> = Vec::new();
    let mut in_block = false;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if let Some(content) = line.strip_prefix('|') {
            let open = blocks.last_mut().filter(|_| in_block);
            let (_, block) = open.ok_or_else(|| format!("line {number}: a block without a directive"))?;
            block.push_str(content.strip_prefix(' ').unwrap_or(content));
            block.push_str("\r\n");
            continue;
        }
        in_block = matches!(line, "@message" | "@received");
        if in_block {
            blocks.push((&line[1..], String::new()));
            lines.push((number, Err(blocks.len() - 1)));
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            lines.push((number, Ok(line)));
        }
    }
    for (number, line) in lines {
        let acts = match line {
            Ok("@ehlo") => Ok(banner(&settings).into_iter().chain(ehlo(&settings, under_tls)).collect()),
            Ok("@ehlo again") => Ok(ehlo(&settings, under_tls)),
            Ok(line) => line_acts(line, &mut settings, !items.is_empty()),
            Err(block) => block_directive(blocks[block].0, &blocks[block].1).map(|act| vec![Act::Directive(act)]),
        };
        let acts = acts.map_err(|error| format!("line {number}: {error}"))?;
        under_tls |= line == Ok("@tls");
        items.extend(acts.into_iter().map(|act| Item { line: number, act }));
    }
    let client_octets =
        items.iter().map(|item| if let Act::Client(octets) = &item.act { octets.len() } else { 0 }).sum();
    Ok(Transcript { settings, fixes_role, fixes_revision, is_whole, items, client_octets })
}

fn block_directive(word: &str, content: &str) -> Result<Directive, String> {
    if word == "received" {
        return Ok(Directive::Received(content.to_owned()));
    }
    repeated(content).map(|content| Directive::Message(Some(content)))
}

fn line_acts(line: &str, settings: &mut Settings, begun: bool) -> Result<Vec<Act>, String> {
    if let Some(text) = line.strip_prefix("C:") {
        let mut octets = repeated(text.strip_prefix(' ').unwrap_or(text))?;
        octets.extend_from_slice(b"\r\n");
        return Ok(vec![Act::Client(octets)]);
    }
    if let Some(text) = line.strip_prefix("S:") {
        return Ok(vec![Act::Server(text.strip_prefix(' ').unwrap_or(text).to_owned())]);
    }
    let directive = line.strip_prefix('@').ok_or("neither C:, S:, @ nor #")?;
    let (word, rest) = directive.split_once(' ').unwrap_or((directive, ""));
    let rest = rest.trim();
    match word {
        "config" if begun => Err("@config after the session's beginning".to_owned()),
        "config" => rest.split(' ').try_for_each(|word| configure(settings, word)).map(|()| Vec::new()),
        "banner" => Ok(banner(settings)),
        "raw" => Ok(vec![Act::Client(quoted(rest)?)]),
        _ => directive_of(word, rest).map(|directive| vec![Act::Directive(directive)]),
    }
}

fn directive_of(word: &str, rest: &str) -> Result<Directive, String> {
    let words: Vec<&str> = rest.split(' ').collect();
    match (word, &words[..]) {
        ("wait", [""]) => Ok(Directive::Wait),
        ("after", [time]) => duration(time).map(Directive::After),
        ("commit", ["fails"]) => Ok(Directive::CommitFails),
        ("commit", ["takes", time]) => duration(time).map(Directive::CommitTakes),
        ("logon", ["takes", time]) => duration(time).map(Directive::LogonTakes),
        ("logon", ["unavailable"]) => Ok(Directive::LogonUnavailable),
        ("tls", [""]) => Ok(Directive::Tls { is_done: true }),
        ("tls", ["fails"]) => Ok(Directive::Tls { is_done: false }),
        ("body", ["fails"]) => Ok(Directive::BodyFails),
        ("resources", ["short"]) => Ok(Directive::ResourcesShort(true)),
        ("resources", ["enough"]) => Ok(Directive::ResourcesShort(false)),
        ("shutdown", [""]) => Ok(Directive::Shutdown { at_once: false }),
        ("shutdown", ["now"]) => Ok(Directive::Shutdown { at_once: true }),
        ("close", [""]) => Ok(Directive::Close),
        ("marked", ["yes"]) => Ok(Directive::Marked(true)),
        ("marked", ["no"]) => Ok(Directive::Marked(false)),
        ("writes", [count]) => count.parse().map(Directive::Writes).map_err(|error| format!("{error}")),
        ("message", ["any"]) => Ok(Directive::Message(None)),
        ("message", _) => quoted(rest).map(|content| Directive::Message(Some(content))),
        ("envelope", words) => envelope(words),
        _ => Err(format!("no such directive: @{word} {rest}")),
    }
}

/// `from=<a@b> to=<c@d>,<e@f> notify=NEVER body=8BITMIME`. Quoted local parts with spaces or commas: no.
fn envelope(words: &[&str]) -> Result<Directive, String> {
    let value = |text: &str| String::from_utf8(repeated(text)?).map_err(|error| error.to_string());
    let path = |text: &str| {
        let inner = text.strip_prefix('<').and_then(|text| text.strip_suffix('>'));
        value(inner.ok_or_else(|| format!("{text} is no path"))?)
    };
    let mut from = None;
    let mut envelope = Envelope::default();
    for word in words {
        let (key, text) = word.split_once('=').ok_or_else(|| format!("{word} is not key=value"))?;
        match (key, envelope.to.last_mut()) {
            ("from", _) => from = Some(path(text)?),
            ("to", _) => {
                for text in text.split(',') {
                    envelope.to.push(Recipient { path: path(text)?, ..Recipient::default() });
                }
            }
            ("notify", Some(recipient)) => recipient.notify = Some(value(text)?),
            ("orcpt", Some(recipient)) => recipient.orcpt = Some(value(text)?),
            ("ret", _) => envelope.ret = Some(value(text)?),
            ("envid", _) => envelope.envid = Some(value(text)?),
            ("auth", _) => envelope.auth = Some(value(text)?),
            ("body", _) => envelope.body = Some(text.to_owned()),
            _ => return Err(format!("not part of an envelope: {word}")),
        }
    }
    envelope.from = from.ok_or("an envelope needs from=<..>")?;
    Ok(Directive::Envelope(envelope))
}

fn defaults() -> Settings {
    Settings {
        profile: Profile {
            hostname: "mx.example.org".to_owned(),
            local_names: vec!["mx.example.org".to_owned()],
            header_size_max: Some(limits::HEADER_SIZE_MAX_DEFAULT_OCTETS),
            hops_max: Some(limits::HOPS_MAX_DEFAULT),
            local_hops_max: Some(limits::LOCAL_HOPS_MAX_DEFAULT),
            message_size_max: Some(limits::MESSAGE_SIZE_MAX_DEFAULT_OCTETS),
            recipients_max: Some(limits::RECIPIENTS_MAX_DEFAULT),
            protocol_errors_max: Some(limits::PROTOCOL_ERRORS_MAX_DEFAULT),
            logon_failures_max: Some(limits::LOGON_FAILURES_MAX_DEFAULT),
            // As soon as there are users.
            offers_auth: true,
            connection_timeout: Some(limits::CONNECTION_TIMEOUT_DEFAULT),
            inactivity_timeout: Some(limits::INACTIVITY_TIMEOUT_DEFAULT),
            ..Profile::default()
        },
        client: [192, 0, 2, 1].into(),
        accepted_domains: AcceptedDomains::from_iter(["example.org".parse().expect("a domain")]),
        relay_from: AddressRanges::from_iter([]),
        message_rate_per_minute: limits::MESSAGE_RATE_DEFAULT_PER_MINUTE,
        user_message_rate_per_minute: limits::RELAY_MESSAGE_RATE_DEFAULT_PER_MINUTE,
        logon_failures_per_minute: limits::LOGON_FAILURE_RATE_DEFAULT_PER_MINUTE,
        on_block_list: false,
        implicit_tls: false,
        binding: SocketAddr::from(([192, 0, 2, 25], 25)),
        users_text: String::new(),
        users: None,
        passwords: Passwords::default(),
        door: DoorSettings {
            allow: None,
            blocked: AddressRanges::from_iter([]),
            blocked_for_a_time: DynamicBlocks::default(),
            resources_short: false,
            connections_max: limits::CONNECTIONS_MAX_DEFAULT,
            connections_per_source_max: limits::CONNECTIONS_PER_SOURCE_MAX_DEFAULT,
            open: Vec::new(),
            marked: None,
            now_ms: 0,
        },
    }
}

/// One `key=value` of `@config`. 0 is unlimited, as on the command line.
fn configure(settings: &mut Settings, word: &str) -> Result<(), String> {
    let (key, value) = word.split_once('=').ok_or_else(|| format!("{word} is not key=value"))?;
    let number = || value.parse::<u32>().map_err(|error| format!("{word}: {error}"));
    let limit = || number().map(|number| (number != 0).then_some(number));
    let timeout = || duration(value).map(|timeout| (!timeout.is_zero()).then_some(timeout));
    let profile = &mut settings.profile;
    match key {
        "hostname" => {
            profile.hostname = value.to_owned();
            profile.local_names[0] = value.to_owned();
        }
        "local-name" => profile.local_names.push(value.to_owned()),
        "role" => match value {
            "gateway" => {
                profile.role = Role::Gateway;
                profile.connection_timeout = Some(limits::CONNECTION_TIMEOUT_DEFAULT);
                profile.inactivity_timeout = Some(limits::INACTIVITY_TIMEOUT_DEFAULT);
            }
            "relay" => {
                profile.role = Role::Relay;
                profile.connection_timeout = Some(limits::RELAY_CONNECTION_TIMEOUT_DEFAULT);
                profile.inactivity_timeout = Some(limits::RELAY_INACTIVITY_TIMEOUT_DEFAULT);
            }
            _ => return Err(format!("{word}: gateway or relay")),
        },
        "revision" => match value {
            "4.0" => profile.revision = Revision::V4,
            "13.0" => profile.revision = Revision::V13,
            _ => return Err(format!("{word}: 4.0 or 13.0")),
        },
        "without" => match value {
            "PIPELINING" => profile.extensions.pipelining = false,
            "8BITMIME" => {
                profile.extensions.eight_bit_mime = false;
                profile.extensions.binary_mime = false;
            }
            "BINARYMIME" => profile.extensions.binary_mime = false,
            "CHUNKING" => {
                profile.extensions.chunking = false;
                profile.extensions.binary_mime = false;
            }
            "STARTTLS" => profile.offers_tls = false,
            "AUTH" => profile.offers_auth = false,
            _ => return Err(format!("{word}: no extension that can be switched off")),
        },
        "requires" => match value {
            "auth" => profile.requires_auth = true,
            "tls" => profile.requires_tls = true,
            _ => return Err(format!("{word}: auth or tls")),
        },
        "tls" => match value {
            "offered" => profile.offers_tls = true,
            "implicit" => {
                profile.offers_tls = true;
                settings.implicit_tls = true;
            }
            _ => return Err(format!("{word}: offered or implicit")),
        },
        "plaintext-auth" if value == "yes" => profile.plaintext_auth = true,
        "user" => settings.add_user(value).map_err(|error| format!("{word}: {error}"))?,
        "port" => settings.binding.set_port(value.parse().map_err(|error| format!("{word}: {error}"))?),
        "header-size" => profile.header_size_max = limit()?.map(u64::from),
        "hops" => profile.hops_max = limit()?,
        "local-hops" => profile.local_hops_max = limit()?,
        "tarpit" => profile.tarpit = timeout()?,
        "client" => settings.client = value.parse().map_err(|error| format!("{word}: {error}"))?,
        "accept-domain" => settings.accepted_domains.extend([value.parse().map_err(|error| format!("{error}"))?]),
        "relay-from" => {
            settings.relay_from = AddressRanges::from_iter([parse_range(value).map_err(|error| format!("{error}"))?]);
        }
        "default-domain" => profile.default_domain = Some(value.to_owned()),
        "message-size" => {
            profile.message_size_max =
                value.parse().map(|size| (size != 0).then_some(size)).map_err(|error| format!("{word}: {error}"))?
        }
        "recipients" => profile.recipients_max = limit()?,
        "logon-failures" => profile.logon_failures_max = limit()?,
        "dnsbl" if value == "listed" => settings.on_block_list = true,
        "logon-failure-rate" => settings.logon_failures_per_minute = number()?,
        "relay-message-rate" => settings.user_message_rate_per_minute = number()?,
        "protocol-errors" => profile.protocol_errors_max = limit()?,
        "connection-timeout" => profile.connection_timeout = timeout()?,
        "inactivity-timeout" => profile.inactivity_timeout = timeout()?,
        "message-rate" => settings.message_rate_per_minute = number()?,
        _ => return configure_door(&mut settings.door, word),
    }
    Ok(())
}

/// One that concerns the client's coming.
fn configure_door(door: &mut DoorSettings, word: &str) -> Result<(), String> {
    let (key, value) = word.split_once('=').ok_or_else(|| format!("{word} is not key=value"))?;
    let number = |value: &str| value.parse::<u32>().map_err(|error| format!("{word}: {error}"));
    let address = |value: &str| value.parse().map_err(|error| format!("{word}: {error}"));
    let ranges = |value: &str| {
        let ranges: Result<Vec<_>, _> = value.split(',').map(parse_range).collect();
        ranges.map(AddressRanges::from_iter).map_err(|error| format!("{word}: {error}"))
    };
    match key {
        "allow" => door.allow = Some(ranges(value)?),
        "block" => door.blocked = ranges(value)?,
        "block-for-a-time" => {
            let (range, time) = value.split_once('*').ok_or_else(|| format!("{word} is not RANGE*TIME"))?;
            let range = parse_range(range).map_err(|error| format!("{word}: {error}"))?;
            let until_ms = duration(time)?.as_millis() as u64;
            door.blocked_for_a_time.add(range, until_ms).map_err(|error| format!("{word}: {error:?}"))?;
        }
        // Of the runner.
        "pieces" if value == "whole" => {}
        "resources" if value == "short" => door.resources_short = true,
        "max-connections" => door.connections_max = number(value)?,
        "max-connections-per-source" => door.connections_per_source_max = number(value)?,
        "open" => {
            let (client, count) = value.split_once('*').ok_or_else(|| format!("{word} is not ADDRESS*COUNT"))?;
            door.open.push((address(client)?, number(count)?));
        }
        "marked" => door.marked = Some(address(value)?),
        "connects-after" => door.now_ms = duration(value)?.as_millis() as u64,
        _ => return Err(format!("no such option: {key}")),
    }
    Ok(())
}

/// `250ms`, `5s`, `1m`, `2h`, `2d` or `0`.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|error| format!("{text}: {error}"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        "d" => Ok(Duration::from_secs(number * 86_400)),
        "" if number == 0 => Ok(Duration::ZERO),
        _ => Err(format!("{text} has no unit")),
    }
}

fn banner(settings: &Settings) -> Vec<Act> {
    vec![Act::Server(format!("220 {} ESMTP Gatepost ready", settings.profile.hostname))]
}

fn ehlo(settings: &Settings, under_tls: bool) -> Vec<Act> {
    let profile = &settings.profile;
    let size = profile.message_size_max.unwrap_or(0);
    let extensions = profile.extensions;
    let server = |text: &str| Act::Server(text.to_owned());
    let mut acts = vec![
        Act::Client(b"EHLO client.example\r\n".to_vec()),
        server(&format!("250-{} Hello [{}]", profile.hostname, canonical(settings.client))),
        server(&format!("250-SIZE {size}")),
    ];
    let under_tls = under_tls || settings.implicit_tls;
    if profile.offers_tls && !under_tls {
        acts.push(server("250-STARTTLS"));
    }
    if let Some(users) = settings.users.as_ref().filter(|_| profile.offers_auth && (under_tls || !profile.requires_tls))
    {
        let passwords = users.has_password() && (under_tls || profile.plaintext_auth);
        let names = [(users.has_nt_hash(), " NTLM"), (passwords, " LOGIN PLAIN")];
        let list: String = names.iter().filter(|(offered, _)| *offered).map(|(_, name)| *name).collect();
        if !list.is_empty() {
            acts.push(server(&format!("250-AUTH{list}")));
        }
    }
    for (offered, line) in [
        (extensions.pipelining, "250-PIPELINING"),
        (true, "250-DSN"),
        (extensions.eight_bit_mime, "250-8BITMIME"),
        (extensions.binary_mime, "250-BINARYMIME"),
        (extensions.chunking, "250-CHUNKING"),
        (true, "250 ENHANCEDSTATUSCODES"),
    ] {
        if offered {
            acts.push(server(line));
        }
    }
    acts
}

/// Writes `{3*ab}` out as `ababab`; other braces are themselves.
fn repeated(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        let (before, from) = rest.split_at(open);
        out.extend_from_slice(before.as_bytes());
        let repeat = from[1..].split_once('}').and_then(|(inner, after)| {
            let (count, unit) = inner.split_once('*')?;
            Some((count.parse::<usize>().ok()?, unit, after))
        });
        match repeat {
            Some((count, unit, after)) => {
                out.extend(unit.as_bytes().repeat(count));
                rest = after;
            }
            None => {
                out.push(b'{');
                rest = &from[1..];
            }
        }
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

/// `"..."` with `\r \n \t \0 \\ \" \xNN`, and repeats whose unit may have escapes.
fn quoted(text: &str) -> Result<Vec<u8>, String> {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).ok_or("expected \"...\"")?;
    let mut out = Vec::new();
    let mut rest = inner;
    while let Some(character) = rest.chars().next() {
        if let Some((count, unit, after)) = repeat_at(rest) {
            out.extend(unescaped(unit)?.repeat(count));
            rest = after;
            continue;
        }
        let octets = if character == '\\' { escape_octets(rest)? } else { character.len_utf8() };
        let (head, tail) = rest.split_at(octets);
        out.extend(unescaped(head)?);
        rest = tail;
    }
    Ok(out)
}

fn repeat_at(text: &str) -> Option<(usize, &str, &str)> {
    let (inner, after) = text.strip_prefix('{')?.split_once('}')?;
    let (count, unit) = inner.split_once('*')?;
    Some((count.parse().ok()?, unit, after))
}

/// Characters of the escape at the beginning.
fn escape_octets(text: &str) -> Result<usize, String> {
    let octets = if text[1..].starts_with('x') { 4 } else { 2 };
    text.is_char_boundary(octets).then_some(octets).ok_or_else(|| format!("an escape is cut off: {text}"))
}

fn unescaped(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(backslash) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..backslash]);
        let from = &rest[backslash..];
        let (escape, after) = from.split_at_checked(escape_octets(from)?).ok_or("an escape is cut off")?;
        out.push(match &escape[1..] {
            "r" => b'\r',
            "n" => b'\n',
            "t" => b'\t',
            "0" => 0,
            "\\" => b'\\',
            "\"" => b'"',
            "{" => b'{',
            hex => u8::from_str_radix(&hex[1..], 16).map_err(|_| format!("no such escape: {escape}"))?,
        });
        rest = after;
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

#[test]
fn language() {
    assert_eq!(repeated("a{3*bc}d{|}{").as_deref(), Ok(&b"abcbcbcd{|}{"[..]));
    assert_eq!(quoted(r#""a\r\n{2*\x00.\n}\"\\\{2*x}""#).as_deref(), Ok(&b"a\r\n\0.\n\0.\n\"\\{2*x}"[..]));
    assert!(quoted("a").is_err() && quoted(r#""\q1""#).is_err());
    for bad in
        ["X: 1", "@nothing", "| x", "C: x\n@config recipients=1", "@config recipients", "@after soon", "@envelope"]
    {
        assert!(parse(bad, "gateway", "13.0").is_err(), "{bad}");
    }
    let text = "# words\n\n@config recipients=2 revision=4.0\n@ehlo\n@message\n| a\n|\n|  b\n@close\n";
    let transcript = parse(text, "relay", "13.0").expect("a transcript");
    let blocks = transcript.items.iter().filter_map(|item| match &item.act {
        Act::Directive(Directive::Message(Some(content))) => Some(&content[..]),
        _ => None,
    });
    assert_eq!(blocks.collect::<Vec<_>>(), [b"a\r\n\r\n b\r\n"]);
    let profile = &transcript.settings.profile;
    assert_eq!((profile.recipients_max, profile.role, profile.revision), (Some(2), Role::Relay, Revision::V4));
    assert!(transcript.fixes_revision && !transcript.fixes_role);
}
