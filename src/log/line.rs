//! A record as it is written: one line, in the buffer that it is made in.

use super::clock::Clock;
use super::escape;
use super::table::{Event, Field, Format, Kind, Level};
use std::fmt::{self, Display, Write as _};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// A line that is being made. Its buffers are kept from one record to the next.
#[derive(Debug, Default)]
pub(super) struct Line {
    format: Format,
    octets: Vec<u8>,
    /// Where a value is shown before its length and its characters are known.
    shown: String,
}

impl Line {
    /// Begins a record.
    pub(super) fn begin(&mut self, format: Format, event: Event, level: Level, time: SystemTime, clock: &mut Clock) {
        self.format = format;
        self.octets.clear();
        let [before, behind_time, behind_level, end] = match format {
            Format::Text => ["", " ", " ", ""],
            Format::Json => ["{\"time\":\"", "\",\"level\":\"", "\",\"event\":\"", "\""],
        };
        self.octets.extend_from_slice(before.as_bytes());
        self.octets.extend_from_slice(clock.text(time));
        for part in [behind_time, level.name(), behind_level, event.name(), end] {
            self.octets.extend_from_slice(part.as_bytes());
        }
    }

    /// Adds a text.
    pub(super) fn text(&mut self, field: Field, value: &[u8]) {
        debug_assert_eq!(field.kind(), Kind::Text, "{field:?}");
        self.octets.extend_from_slice(field.prefix(self.format).as_bytes());
        match self.format {
            Format::Text => escape::text(&mut self.octets, value, field.max_octets()),
            Format::Json => escape::json(&mut self.octets, value, field.max_octets()),
        }
    }

    /// Adds a text as it shows itself.
    pub(super) fn display(&mut self, field: Field, value: &dyn Display) {
        let mut shown = std::mem::take(&mut self.shown);
        shown.clear();
        // One octet more than may be written tells that it is cut.
        let room = field.max_octets() + 1;
        // What has no more room is an error to who writes it, and none to us.
        let _ = write!(Bounded { shown: &mut shown, room }, "{value}");
        self.text(field, shown.as_bytes());
        self.shown = shown;
    }

    /// Adds an IP address; one that IPv6 maps as IPv4.
    pub(super) fn address(&mut self, field: Field, value: IpAddr) {
        let IpAddr::V4(address) = value.to_canonical() else { return self.display(field, &value) };
        debug_assert_eq!(field.kind(), Kind::Text, "{field:?}");
        self.octets.extend_from_slice(field.prefix(self.format).as_bytes());
        let quote: &[u8] = if self.format == Format::Json { b"\"" } else { b"" };
        self.octets.extend_from_slice(quote);
        // Most records have one; showing it by way of a formatter takes a fifth of the record's time.
        let [first, rest @ ..] = address.octets();
        self.octets.extend_from_slice(itoa::Buffer::new().format(first).as_bytes());
        for octet in rest {
            self.octets.push(b'.');
            self.octets.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
        }
        self.octets.extend_from_slice(quote);
    }

    /// Adds a number.
    pub(super) fn number(&mut self, field: Field, value: u64) {
        debug_assert_eq!(field.kind(), Kind::Number, "{field:?}");
        self.octets.extend_from_slice(field.prefix(self.format).as_bytes());
        self.octets.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Adds a time span.
    pub(super) fn seconds(&mut self, field: Field, value: Duration) {
        debug_assert_eq!(field.kind(), Kind::Seconds, "{field:?}");
        self.octets.extend_from_slice(field.prefix(self.format).as_bytes());
        self.octets.extend_from_slice(itoa::Buffer::new().format(value.as_secs()).as_bytes());
        let millis = value.subsec_millis();
        let digit = |value: u32| b'0' + (value % 10) as u8;
        self.octets.extend_from_slice(&[b'.', digit(millis / 100), digit(millis / 10), digit(millis)]);
    }

    /// Ends the record: the whole line, with its end.
    pub(super) fn end(&mut self) -> &[u8] {
        let end = match self.format {
            Format::Text => "\n",
            Format::Json => "}\n",
        };
        self.octets.extend_from_slice(end.as_bytes());
        &self.octets
    }
}

/// Takes at most so many octets, and refuses what comes behind.
struct Bounded<'a> {
    shown: &'a mut String,
    room: usize,
}

impl fmt::Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.room - self.shown.len();
        if text.len() <= room {
            self.shown.push_str(text);
            return Ok(());
        }
        // The character that passes the bound comes too: without it nobody could see the cut.
        let end = (room..text.len()).find(|&end| text.is_char_boundary(end)).unwrap_or(text.len());
        self.shown.push_str(text.get(..end).unwrap_or_default());
        self.room = self.shown.len();
        Err(fmt::Error)
    }
}
