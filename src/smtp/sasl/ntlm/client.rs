//! The client's side, for next hops that ask for AUTH.

use super::crypto::{self, KEY_OCTETS, Key, NtHash};
use super::message::{self, AUTHENTICATE, CHALLENGE, Charset, Message, NEGOTIATE, Writer, av, flags};

/// Octets of NEGOTIATE: its fields, domain and workstation, are empty.
//= [MS-NLMP] 2.2.1.1
const NEGOTIATE_OCTETS: usize = 40;
/// Octets of CHALLENGE before its fields. The version is not always sent.
//= [MS-NLMP] 2.2.1.2
const CHALLENGE_FIXED_OCTETS: usize = 48;
/// Octets of AUTHENTICATE before its fields, with the version and the MIC.
//= [MS-NLMP] 2.2.1.3
const AUTHENTICATE_FIXED_OCTETS: usize = 88;
/// Where the MIC stands.
const MIC_AT: usize = 72;

/// What is offered: what clients of Windows offer, as servers can demand it, but for sealing.
const OFFERED: u32 = flags::UNICODE
    | flags::OEM
    | flags::REQUEST_TARGET
    | flags::SIGN
    | flags::NTLM
    | flags::ALWAYS_SIGN
    | flags::EXTENDED_SESSION_SECURITY
    | flags::VERSION
    | flags::ENCRYPT_128
    | flags::KEY_EXCHANGE
    | flags::ENCRYPT_56;

/// What an exchange must not repeat.
#[derive(Clone, Copy)]
pub struct Randomness {
    /// The client's nonce.
    pub nonce: [u8; 8],
    /// A key that the server will know, and nobody else.
    pub session_key: [u8; KEY_OCTETS],
}

/// A client that authenticates. Its Debug does not show the hash of the password.
#[derive(Clone, Debug)]
pub struct ClientExchange {
    name: String,
    domain: String,
    nt_hash: NtHash,
    offered: u32,
}

impl ClientExchange {
    /// For this user. Without a domain the server decides where to look.
    pub fn new(name: &str, domain: Option<&str>, password: &str) -> Self {
        let domain = domain.unwrap_or_default().to_owned();
        Self { name: name.to_owned(), domain, nt_hash: crypto::nt_hash(password), offered: OFFERED }
    }

    /// The same client, but with other flags.
    #[cfg(test)]
    pub(super) fn offering(self, offered: u32) -> Self {
        Self { offered, ..self }
    }

    /// The NEGOTIATE message.
    //= [MS-NLMP] 3.1.5.1.1
    pub fn negotiate(&self) -> Vec<u8> {
        let mut writer = Writer::new(NEGOTIATE, NEGOTIATE_OCTETS);
        writer.u32(self.offered);
        writer.octets(&[0; 16]);
        writer.version(self.offered);
        writer.finish()
    }

    /// The AUTHENTICATE message for a CHALLENGE. `filetime` as in
    /// [`ServerExchange::new`](super::ServerExchange::new), used where the server does not tell its
    /// own time. `None`: not a CHALLENGE message, or the names cannot be written for this server.
    //= [MS-NLMP] 3.1.5.1.2
    pub fn authenticate(&self, challenge: &[u8], random: &Randomness, filetime: u64) -> Option<Vec<u8>> {
        let read = Message::new(challenge, CHALLENGE)?;
        let (flags, server_nonce) = (read.u32(20)? & (self.offered | flags::TARGET_INFO), read.array::<8>(24)?);
        let charset = Charset::of(flags)?;
        let told = match flags & flags::TARGET_INFO {
            0 => Vec::new(),
            _ => message::av_pairs(read.field(40, CHALLENGE_FIXED_OCTETS)?)?,
        };
        let server_time = told.iter().find(|(id, _)| *id == av::TIMESTAMP).map(|(_, value)| *value);
        let time: [u8; 8] = server_time.map_or(Ok(filetime.to_le_bytes()), TryInto::try_into).ok()?;
        let has_mic = server_time.is_some();

        let key = crypto::response_key(&self.nt_hash, &self.name, &self.domain);
        let blob = blob(&told, time, random.nonce, has_mic)?;
        let proof = crypto::hmac_md5(&key, &[&server_nonce, &blob]);
        // A server that tells its time wants no LM response.
        let lm_response = match has_mic {
            true => vec![0; 24],
            false => [&crypto::hmac_md5(&key, &[&server_nonce, &random.nonce])[..], &random.nonce].concat(),
        };
        let base_key = crypto::hmac_md5(&key, &[&proof[..]]);
        let exchanges_keys = flags & flags::KEY_EXCHANGE != 0;
        let exported_key = if exchanges_keys { Key::new(random.session_key) } else { base_key.clone() };

        let mut writer = Writer::new(AUTHENTICATE, AUTHENTICATE_FIXED_OCTETS);
        writer.field(&lm_response)?;
        writer.field(&[&proof[..], &blob].concat())?;
        writer.field(&charset.encode(&self.domain)?)?;
        writer.field(&charset.encode(&self.name)?)?;
        writer.field(&[])?;
        match exchanges_keys {
            true => writer.field(&crypto::rc4(&base_key, &exported_key)[..])?,
            false => writer.field(&[])?,
        }
        writer.u32(flags);
        writer.version(flags);
        let mut message = writer.finish();
        // `None` also where it would not fit into a line.
        Message::new(&message, AUTHENTICATE)?;
        if has_mic {
            let mic = crypto::hmac_md5(&exported_key, &[&self.negotiate(), challenge, &message]);
            message.get_mut(MIC_AT..)?.first_chunk_mut::<KEY_OCTETS>()?.copy_from_slice(&mic[..]);
        }
        Some(message)
    }
}

/// The client's part of an NT response: what the server told, and whether there is a MIC.
//= [MS-NLMP] 2.2.2.7
fn blob(told: &[(u16, &[u8])], time: [u8; 8], nonce: [u8; 8], has_mic: bool) -> Option<Vec<u8>> {
    let mut blob = vec![1, 1, 0, 0, 0, 0, 0, 0];
    blob.extend_from_slice(&time);
    blob.extend_from_slice(&nonce);
    blob.extend_from_slice(&[0; 4]);
    let mut av_flags = 0;
    for &(id, value) in told {
        match id {
            av::FLAGS => av_flags = u32::from_le_bytes(value.try_into().ok()?),
            _ => message::write_av_pair(&mut blob, id, value)?,
        }
    }
    if has_mic {
        message::write_av_pair(&mut blob, av::FLAGS, &(av_flags | av::HAS_MIC).to_le_bytes())?;
    }
    message::write_av_pair(&mut blob, av::END, &[])?;
    blob.extend_from_slice(&[0; 4]);
    Some(blob)
}
