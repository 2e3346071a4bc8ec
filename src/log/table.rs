//! The tables: levels, formats, events and fields. `docs/log.md` is generated from them.

use crate::limits::{LOG_MESSAGE_MAX_OCTETS, LOG_VALUE_MAX_OCTETS};
use std::fmt::Write as _;

/// How much a record matters; as a threshold (`--log-level`), what is written at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Level {
    /// Nothing is written; no event has it.
    Off,
    /// Something is lost or broken.
    Error,
    /// Mail was refused or has not got on.
    Warn,
    /// What happens every day.
    Info,
    /// What only who looks for a fault wants to see.
    Debug,
}

impl Level {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Off => "off",
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }
}

/// How records are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Time, level and event, then `field=value`.
    #[default]
    Text,
    /// An object of JSON (RFC 8259) on each line.
    Json,
}

/// What a field's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text; what others sent is escaped and bounded.
    Text,
    /// A whole number.
    Number,
    /// Seconds with three decimals.
    Seconds,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Number => "number",
            Kind::Seconds => "seconds",
        }
    }
}

macro_rules! fields {
    ($($name:ident = $text:literal, $kind:ident, $meaning:literal;)*) => {
        /// A field of a record.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Field { $(#[doc = $meaning] $name,)* }

        impl Field {
            /// Every field, in the order of the table.
            pub const ALL: &'static [Field] = &[$(Field::$name,)*];

            /// As it is written.
            pub const fn name(self) -> &'static str {
                match self { $(Field::$name => $text,)* }
            }

            /// What its values are.
            pub const fn kind(self) -> Kind {
                match self { $(Field::$name => Kind::$kind,)* }
            }

            /// What it says.
            pub const fn meaning(self) -> &'static str {
                match self { $(Field::$name => $meaning,)* }
            }

            /// What stands before its value.
            pub(super) const fn prefix(self, format: Format) -> &'static str {
                match format {
                    Format::Text => match self { $(Field::$name => concat!(" ", $text, "="),)* },
                    Format::Json => match self { $(Field::$name => concat!(",\"", $text, "\":"),)* },
                }
            }
        }
    };
}

fields! {
    Time = "time", Text, "When it happened, in UTC with microseconds.";
    Level = "level", Text, "`error`, `warn`, `info` or `debug`.";
    Event = "event", Text, "What happened: the table of events.";
    Session = "session", Text, "The inbound session; the same in all its records.";
    Id = "id", Text, "The message's queue id, as in the 250, the Received field and `gatepost queue`.";
    Client = "client", Text, "The client's IP address; one that IPv6 maps is written as IPv4.";
    Proxy = "proxy", Text, "The address of the proxy that named the client (PROXY protocol).";
    Listener = "listener", Text, "The address and port that the client connected to.";
    Helo = "helo", Text, "What the client said in EHLO or HELO.";
    From = "from", Text, "The reverse-path, without angle brackets; empty for the null one.";
    To = "to", Text, "The forward-paths that it is about, with commas between them.";
    Size = "size", Number, "Octets of the message.";
    Nrcpt = "nrcpt", Number, "How many recipients it is about.";
    Reply = "reply", Text, "The reply's text with its code: ours to a client, the next hop's to us.";
    Dsn = "dsn", Text, "The enhanced status code (RFC 3463).";
    Relay = "relay", Text, "The next hop, and the address that was tried.";
    Delay = "delay", Seconds, "Time since the message was accepted.";
    Duration = "duration", Seconds, "How long it took: the session, the message from its first octet to its 250, the transaction with the next hop.";
    Status = "status", Text, "What has become of it: the event's name.";
    Reason = "reason", Text, "The limit or rule that decided; of a refusal, the label of `gatepost_refusals_total` or `gatepost_connections_refused_total`.";
    Tls = "tls", Text, "Protocol and cipher suite; absent in clear.";
    Auth = "auth", Text, "The authenticated user.";
    Messages = "messages", Number, "Messages accepted in the session.";
    Attempts = "attempts", Number, "Attempts at delivery so far, this one with them.";
    Lost = "lost", Number, "Records that could not be written since the last one that was.";
    Message = "message", Text, "What an operator is told.";
}

impl Field {
    /// The most octets of a value, as it was before it is escaped; a longer one is cut.
    pub(super) const fn max_octets(self) -> usize {
        match self {
            Field::Message => LOG_MESSAGE_MAX_OCTETS,
            _ => LOG_VALUE_MAX_OCTETS,
        }
    }
}

macro_rules! events {
    ($($name:ident = $text:literal, $level:ident, [$($field:ident)*], $meaning:literal;)*) => {
        /// What a record is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event { $(#[doc = $meaning] $name,)* }

        impl Event {
            /// Every event, in the order of the table.
            pub const ALL: &'static [Event] = &[$(Event::$name,)*];

            /// As it is written.
            pub const fn name(self) -> &'static str {
                match self { $(Event::$name => $text,)* }
            }

            /// How much it matters.
            pub const fn level(self) -> Level {
                match self { $(Event::$name => Level::$level,)* }
            }

            /// The fields that it may have, besides time, level and event.
            pub const fn fields(self) -> &'static [Field] {
                match self { $(Event::$name => &[$(Field::$field),*],)* }
            }

            /// What it says.
            pub const fn meaning(self) -> &'static str {
                match self { $(Event::$name => $meaning,)* }
            }
        }
    };
}

events! {
    Session = "session", Info, [Session Client Proxy Listener Helo Tls Auth Messages Duration Reason],
        "An inbound session has ended.";
    Accepted = "accepted", Info, [Session Id Client Proxy Listener Helo From To Size Nrcpt Duration Tls Auth],
        "A message was acknowledged with 250: it is on stable storage.";
    Refused = "refused", Warn,
        [Session Id Client Proxy Listener Helo From To Size Nrcpt Reply Reason Tls Auth],
        "A connection, a command or a message was refused.";
    Delivered = "delivered", Info,
        [Id From To Size Nrcpt Relay Reply Dsn Delay Duration Status Tls Attempts],
        "A next hop has taken a message for these recipients.";
    Deferred = "deferred", Warn,
        [Id From To Size Nrcpt Relay Reply Dsn Delay Duration Status Tls Attempts],
        "An attempt has failed for these recipients; there will be another.";
    Failed = "failed", Warn,
        [Id From To Size Nrcpt Relay Reply Dsn Delay Duration Status Tls Attempts],
        "A next hop has refused a message for these recipients for good.";
    Expired = "expired", Warn,
        [Id From To Size Nrcpt Relay Reply Dsn Delay Duration Status Tls Attempts],
        "Delivery to these recipients was tried for as long as it may be.";
    Notice = "notice", Info, [Message],
        "What operators are told; `warn` for what is on standard error too.";
    Lost = "lost", Error, [Lost],
        "Records were lost: the buffer was full, or they could not be written.";
}

/// The table of fields, as Markdown.
pub fn field_table_markdown() -> String {
    let mut table = "| field | values | meaning |\n|---|---|---|\n".to_owned();
    for field in Field::ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(table, "| `{}` | {} | {} |", field.name(), field.kind().name(), field.meaning());
    }
    table
}

/// The table of events, as Markdown.
pub fn event_table_markdown() -> String {
    let mut table = "| event | level | meaning | fields |\n|---|---|---|---|\n".to_owned();
    for event in Event::ALL {
        let fields: Vec<String> = event.fields().iter().map(|field| format!("`{}`", field.name())).collect();
        // As above.
        let _ = writeln!(
            table,
            "| `{}` | {} | {} | {} |",
            event.name(),
            event.level().name(),
            event.meaning(),
            fields.join(" ")
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_and_stand_once() {
        let fields = Field::ALL.iter().map(|field| (field.name(), field.meaning()));
        let events = Event::ALL.iter().map(|event| (event.name(), event.meaning()));
        for (names, count) in
            [(fields.collect::<Vec<_>>(), Field::ALL.len()), (events.collect::<Vec<_>>(), Event::ALL.len())]
        {
            assert_eq!(names.len(), count);
            for (name, meaning) in &names {
                assert!(name.bytes().all(|octet| octet.is_ascii_lowercase()), "{name}");
                assert!(meaning.ends_with('.') && !meaning.contains(['|', '\n']), "{name}");
                assert_eq!(names.iter().filter(|(other, _)| other == name).count(), 1, "{name}");
            }
        }
    }

    #[test]
    fn prefixes_are_made_of_the_names() {
        for field in Field::ALL {
            assert_eq!(field.prefix(Format::Text), format!(" {}=", field.name()));
            assert_eq!(field.prefix(Format::Json), format!(",\"{}\":", field.name()));
        }
    }

    #[test]
    fn events_have_levels_and_fields_of_their_own() {
        for event in Event::ALL {
            assert!(event.level() > Level::Off && !event.fields().is_empty(), "{event:?}");
            for (at, field) in event.fields().iter().enumerate() {
                assert!(!matches!(field, Field::Time | Field::Level | Field::Event), "{event:?}: {field:?}");
                assert!(!event.fields()[..at].contains(field), "{event:?}: {field:?} twice");
            }
        }
    }

    #[test]
    fn tables_have_a_row_for_each() {
        assert_eq!(field_table_markdown().lines().count(), 2 + Field::ALL.len());
        assert_eq!(event_table_markdown().lines().count(), 2 + Event::ALL.len());
    }
}
