//! The layout that the messages share: a signature, a type, numbers at fixed places, and fields whose
//! lengths and offsets stand there too. Whatever points outside of its message is `None`.

use crate::limits::SASL_LINE_MAX_OCTETS;

/// Types of messages.
//= [MS-NLMP] 2.2.1
pub(super) const NEGOTIATE: u32 = 1;
pub(super) const CHALLENGE: u32 = 2;
pub(super) const AUTHENTICATE: u32 = 3;

const SIGNATURE: &[u8; 8] = b"NTLMSSP\0";

/// Longest message: what fits into a line of the exchange as base64, without the CRLF.
const MESSAGE_MAX_OCTETS: usize = (SASL_LINE_MAX_OCTETS - 2) / 4 * 3;

/// Bits of NegotiateFlags.
//= [MS-NLMP] 2.2.2.5
pub(super) mod flags {
    pub const UNICODE: u32 = 1;
    pub const OEM: u32 = 1 << 1;
    pub const REQUEST_TARGET: u32 = 1 << 2;
    pub const SIGN: u32 = 1 << 4;
    pub const NTLM: u32 = 1 << 9;
    pub const ALWAYS_SIGN: u32 = 1 << 15;
    pub const TARGET_TYPE_SERVER: u32 = 1 << 17;
    pub const EXTENDED_SESSION_SECURITY: u32 = 1 << 19;
    pub const TARGET_INFO: u32 = 1 << 23;
    pub const VERSION: u32 = 1 << 25;
    pub const ENCRYPT_128: u32 = 1 << 29;
    pub const KEY_EXCHANGE: u32 = 1 << 30;
    pub const ENCRYPT_56: u32 = 1 << 31;
}

/// VERSION: no product, and the one revision of NTLM there is.
//= [MS-NLMP] 2.2.2.10
pub(super) const VERSION: [u8; 8] = [0, 0, 0, 0, 0, 0, 0, 15];

/// Identifiers of AV_PAIRs.
//= [MS-NLMP] 2.2.2.1
pub(super) mod av {
    pub const END: u16 = 0;
    pub const NETBIOS_COMPUTER_NAME: u16 = 1;
    pub const NETBIOS_DOMAIN_NAME: u16 = 2;
    pub const DNS_COMPUTER_NAME: u16 = 3;
    pub const DNS_DOMAIN_NAME: u16 = 4;
    pub const FLAGS: u16 = 6;
    pub const TIMESTAMP: u16 = 7;

    /// The bit of the flags by which a client says that its message has a MIC.
    pub const HAS_MIC: u32 = 1 << 1;
}

/// How names that are not in AV_PAIRs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charset {
    /// UTF-16, least significant octet first.
    Unicode,
    /// A code page that nobody names: of it, ASCII is understood.
    Oem,
}

impl Charset {
    /// What the flags ask for; Unicode where they allow both.
    pub(super) const fn of(flags: u32) -> Option<Self> {
        match (flags & flags::UNICODE != 0, flags & flags::OEM != 0) {
            (true, _) => Some(Charset::Unicode),
            (false, true) => Some(Charset::Oem),
            (false, false) => None,
        }
    }

    pub(super) const fn flag(self) -> u32 {
        match self {
            Charset::Unicode => flags::UNICODE,
            Charset::Oem => flags::OEM,
        }
    }

    pub(super) fn encode(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Charset::Unicode => Some(utf16(text)),
            Charset::Oem => text.is_ascii().then(|| text.as_bytes().to_vec()),
        }
    }

    pub(super) fn decode(self, octets: &[u8]) -> Option<String> {
        match self {
            Charset::Unicode => {
                let (units, []) = octets.as_chunks() else { return None };
                char::decode_utf16(units.iter().map(|&unit| u16::from_le_bytes(unit))).collect::<Result<_, _>>().ok()
            }
            Charset::Oem => str::from_utf8(octets).ok().filter(|text| text.is_ascii()).map(str::to_owned),
        }
    }
}

pub(super) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// A message to be read.
#[derive(Clone, Copy)]
pub(super) struct Message<'m>(&'m [u8]);

impl<'m> Message<'m> {
    /// `None`: not a message of that type, or longer than any that fits into a line.
    pub(super) fn new(octets: &'m [u8], message_type: u32) -> Option<Self> {
        let message = Self(octets);
        let is_one = octets.len() <= MESSAGE_MAX_OCTETS
            && message.array(0)? == *SIGNATURE
            && message.u32(SIGNATURE.len())? == message_type;
        is_one.then_some(message)
    }

    pub(super) fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    pub(super) fn u16(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(super) fn u32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// The field whose length and offset stand at `at`. It has to lie behind the fixed part, which
    /// ends at `payload`; an empty one may claim to be anywhere.
    //= [MS-NLMP] 2.2.1.3 (MaxLen is ignored)
    pub(super) fn field(self, at: usize, payload: usize) -> Option<&'m [u8]> {
        let length = usize::from(self.u16(at)?);
        let offset = usize::try_from(self.u32(at + 4)?).ok()?;
        match length {
            0 => Some(&[]),
            _ if offset < payload => None,
            _ => self.0.get(offset..offset.checked_add(length)?),
        }
    }
}

/// The AV_PAIRs in `octets`, without the one that ends them. `None` where none does.
pub(super) fn av_pairs(octets: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut pairs = Vec::new();
    let mut rest = Message(octets);
    loop {
        let (id, length) = (rest.u16(0)?, usize::from(rest.u16(2)?));
        if id == av::END {
            return Some(pairs);
        }
        let (value, after) = rest.0.get(4..)?.split_at_checked(length)?;
        pairs.push((id, value));
        rest = Message(after);
    }
}

/// Appends an AV_PAIR. `None` if its value is too long for one.
pub(super) fn write_av_pair(out: &mut Vec<u8>, id: u16, value: &[u8]) -> Option<()> {
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&u16::try_from(value.len()).ok()?.to_le_bytes());
    out.extend_from_slice(value);
    Some(())
}

/// A message to be written: the fixed part grows, and the fields gather behind it.
pub(super) struct Writer {
    /// Octets of the fixed part when it is complete.
    payload: usize,
    fixed: Vec<u8>,
    fields: Vec<u8>,
}

impl Writer {
    pub(super) fn new(message_type: u32, payload: usize) -> Self {
        let mut fixed = SIGNATURE.to_vec();
        fixed.extend_from_slice(&message_type.to_le_bytes());
        Self { payload, fixed, fields: Vec::new() }
    }

    pub(super) fn octets(&mut self, octets: &[u8]) {
        self.fixed.extend_from_slice(octets);
    }

    pub(super) fn u32(&mut self, number: u32) {
        self.octets(&number.to_le_bytes());
    }

    /// Length, length once more, offset. `None` if the message is too long for that.
    pub(super) fn field(&mut self, value: &[u8]) -> Option<()> {
        let length = u16::try_from(value.len()).ok()?;
        let offset = u32::try_from(self.payload + self.fields.len()).ok()?;
        self.octets(&length.to_le_bytes());
        self.octets(&length.to_le_bytes());
        self.u32(offset);
        self.fields.extend_from_slice(value);
        Some(())
    }

    /// The version, where the flags say that there is one, else zeros.
    pub(super) fn version(&mut self, flags: u32) {
        self.octets(if flags & flags::VERSION == 0 { &[0; 8] } else { &VERSION });
    }

    /// The message, its fixed part filled up with zeros.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.fixed.resize(self.payload, 0);
        self.fixed.append(&mut self.fields);
        self.fixed
    }
}
