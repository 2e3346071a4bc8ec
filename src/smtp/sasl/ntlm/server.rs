//! The server's side: a challenge for a client, and what its answer proves.

use super::crypto::{self, KEY_OCTETS};
use super::message::{self, AUTHENTICATE, CHALLENGE, Charset, Message, NEGOTIATE, Writer, av, flags};
use std::fmt;

/// Octets of CHALLENGE before its fields.
//= [MS-NLMP] 2.2.1.2
const CHALLENGE_FIXED_OCTETS: usize = 56;
/// Octets of AUTHENTICATE before its fields, without version and MIC, which not all clients send.
//= [MS-NLMP] 2.2.1.3
const AUTHENTICATE_FIXED_OCTETS: usize = 64;
/// Where the MIC stands.
const MIC_AT: usize = 72;
/// Where AV_PAIRs begin in the client's part of an NT response.
//= [MS-NLMP] 2.2.2.7
const BLOB_AV_PAIRS_AT: usize = 28;
/// Longest NetBIOS name.
const NETBIOS_NAME_MAX_OCTETS: usize = 15;

/// What every client is told.
const TOLD: u32 = flags::REQUEST_TARGET
    | flags::NTLM
    | flags::TARGET_TYPE_SERVER
    | flags::EXTENDED_SESSION_SECURITY
    | flags::TARGET_INFO;
/// What a client is told that has asked for it. Nothing is ever signed or sealed, but some clients
/// give up where they are not told; and some leave the version out of AUTHENTICATE where the server
/// has none, so that the MIC is not where [MS-NLMP] has it.
const ECHOED: u32 =
    flags::SIGN | flags::ALWAYS_SIGN | flags::VERSION | flags::ENCRYPT_128 | flags::KEY_EXCHANGE | flags::ENCRYPT_56;

/// The exchange after NEGOTIATE.
#[derive(Clone, Debug)]
pub struct ServerExchange {
    nonce: [u8; 8],
    negotiate: Vec<u8>,
    challenge: Vec<u8>,
}

impl ServerExchange {
    /// The challenge for the client that sent `negotiate`. `hostname` is the server's domain name,
    /// `nonce` random and never used before, `filetime` the time in units of 100 ns since the
    /// beginning of 1601. `None`: not a NEGOTIATE message, or one that allows no character set.
    //= [MS-NLMP] 3.2.5.1.1
    pub fn new(negotiate: &[u8], hostname: &str, nonce: [u8; 8], filetime: u64) -> Option<Self> {
        let asked = Message::new(negotiate, NEGOTIATE)?.u32(12)?;
        let charset = Charset::of(asked)?;
        let netbios_name = netbios_name(hostname);
        let mut writer = Writer::new(CHALLENGE, CHALLENGE_FIXED_OCTETS);
        let flags = charset.flag() | TOLD | asked & ECHOED;
        writer.field(&charset.encode(&netbios_name)?)?;
        writer.u32(flags);
        writer.octets(&nonce);
        writer.octets(&[0; 8]);
        writer.field(&target_info(hostname, &netbios_name, filetime)?)?;
        writer.version(flags);
        Some(Self { nonce, negotiate: negotiate.to_vec(), challenge: writer.finish() })
    }

    /// The CHALLENGE message.
    pub fn challenge(&self) -> &[u8] {
        &self.challenge
    }

    /// What the AUTHENTICATE message says. `None`: it is not one, a field points outside of it, the
    /// response is of version 1 or LM, or nobody is named.
    //= [MS-NLMP] 3.2.5.1.2
    pub fn authenticate(&self, message: &[u8]) -> Option<Logon> {
        let read = Message::new(message, AUTHENTICATE)?;
        let field = |at| read.field(at, AUTHENTICATE_FIXED_OCTETS);
        let (_lm_response, nt_response) = (field(12)?, field(20)?);
        let (domain, name, _workstation) = (field(28)?, field(36)?, field(44)?);
        let (session_key, flags) = (field(52)?, read.u32(60)?);

        // A response of version 1 has 24 octets, fewer than the fixed part of this one.
        let (proof, blob) = nt_response.split_first_chunk()?;
        let has_mic = has_mic(blob)?;
        let charset = Charset::of(flags)?;
        let (name, domain) = (charset.decode(name)?, charset.decode(domain)?);
        if name.is_empty() || [&name, &domain].into_iter().any(|text| text.contains(char::is_control)) {
            return None;
        }
        let mic = if has_mic { Some(self.mic(message, session_key, flags)?) } else { None };
        Some(Logon { name, domain, nonce: self.nonce, proof: *proof, blob: blob.to_vec(), mic })
    }

    fn mic(&self, message: &[u8], session_key: &[u8], flags: u32) -> Option<Mic> {
        let session_key = match session_key.is_empty() || flags & flags::KEY_EXCHANGE == 0 {
            true => None,
            false => Some(session_key.try_into().ok()?),
        };
        let mut transcript = [&self.negotiate, &self.challenge, message].concat();
        let place = transcript.len() - message.len() + MIC_AT;
        let place = transcript.get_mut(place..)?.first_chunk_mut::<KEY_OCTETS>()?;
        let octets = std::mem::take(place);
        Some(Mic { octets, session_key, transcript })
    }
}

/// Whether the client says, in its part of an NT response of version 2, that the message has a MIC.
/// `None`: it is no such part.
//= [MS-NLMP] 2.2.2.7 (RespType, HiRespType; what is reserved is ignored)
fn has_mic(blob: &[u8]) -> Option<bool> {
    let (fixed, pairs) = blob.split_at_checked(BLOB_AV_PAIRS_AT)?;
    if !fixed.starts_with(&[1, 1]) {
        return None;
    }
    message::av_pairs(pairs)?.into_iter().filter(|(id, _)| *id == av::FLAGS).try_fold(false, |found, (_, value)| {
        let flags = u32::from_le_bytes(value.try_into().ok()?);
        Some(found || flags & av::HAS_MIC != 0)
    })
}

/// The server's names, as one that belongs to no domain has them, and the time, which makes clients
/// send a MIC.
//= [MS-NLMP] 2.2.2.1
fn target_info(hostname: &str, netbios_name: &str, filetime: u64) -> Option<Vec<u8>> {
    let (netbios_name, hostname) = (message::utf16(netbios_name), message::utf16(hostname));
    let mut out = Vec::new();
    message::write_av_pair(&mut out, av::NETBIOS_DOMAIN_NAME, &netbios_name)?;
    message::write_av_pair(&mut out, av::NETBIOS_COMPUTER_NAME, &netbios_name)?;
    message::write_av_pair(&mut out, av::DNS_DOMAIN_NAME, &hostname)?;
    message::write_av_pair(&mut out, av::DNS_COMPUTER_NAME, &hostname)?;
    message::write_av_pair(&mut out, av::TIMESTAMP, &filetime.to_le_bytes())?;
    message::write_av_pair(&mut out, av::END, &[])?;
    Some(out)
}

/// The first label, in upper case.
fn netbios_name(hostname: &str) -> String {
    let letters = hostname.chars().take_while(|&character| character != '.').filter(char::is_ascii);
    letters.take(NETBIOS_NAME_MAX_OCTETS).collect::<String>().to_ascii_uppercase()
}

/// Who a client says it is, and its proof, which is not yet verified. Its Debug does not show the
/// proof.
#[derive(Clone)]
pub struct Logon {
    name: String,
    domain: String,
    nonce: [u8; 8],
    proof: [u8; KEY_OCTETS],
    blob: Vec<u8>,
    mic: Option<Mic>,
}

/// A MIC, and what it covers.
#[derive(Clone)]
struct Mic {
    octets: [u8; KEY_OCTETS],
    /// The exported session key, encrypted; without one, it is the key that would have encrypted it.
    session_key: Option<[u8; KEY_OCTETS]>,
    /// All three messages, with zeros for the MIC.
    transcript: Vec<u8>,
}

impl Logon {
    /// The user name as the client wrote it. It is proved but for its case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The domain as the client wrote it; often empty.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Whether the proof was made by one who has this NT hash. For a name that nobody has, call it
    /// with any hash, and refuse: names cannot be told from the time it takes, then.
    //= [MS-NLMP] 3.3.2
    pub fn verify(&self, nt_hash: &[u8; KEY_OCTETS]) -> bool {
        let key = crypto::response_key(nt_hash, &self.name, &self.domain);
        if !crypto::is_hmac_md5(&key, &[&self.nonce, &self.blob], &self.proof) {
            return false;
        }
        let Some(mic) = &self.mic else { return true };
        let base_key = crypto::hmac_md5(&key, &[&self.proof]);
        let exported_key = match &mic.session_key {
            Some(encrypted) => crypto::rc4(&base_key, encrypted),
            None => base_key,
        };
        crypto::is_hmac_md5(&exported_key, &[&mic.transcript], &mic.octets)
    }
}

impl fmt::Debug for Logon {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Logon").field("name", &self.name).field("domain", &self.domain).finish_non_exhaustive()
    }
}
