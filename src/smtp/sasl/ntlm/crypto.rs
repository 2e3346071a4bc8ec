//! Hashes and keys of NTLM version 2. What has to be compared is compared in constant time.

use hmac::{Hmac, KeyInit, Mac};
use md4::{Digest, Md4};
use md5::Md5;
use std::fmt;
use std::ops::Deref;
use zeroize::Zeroizing;

/// Octets of every hash and key here.
pub(super) const KEY_OCTETS: usize = 16;

/// A key, or a hash that serves as one.
pub(super) type Key = Zeroizing<[u8; KEY_OCTETS]>;

/// The NT hash of a password: as good as the password to one who has it. Its Debug does not show it.
#[derive(Clone)]
pub struct NtHash(Key);

impl NtHash {
    /// A hash that was computed before.
    pub fn new(octets: [u8; KEY_OCTETS]) -> Self {
        Self(Zeroizing::new(octets))
    }
}

impl Deref for NtHash {
    type Target = [u8; KEY_OCTETS];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Debug for NtHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("NtHash").finish_non_exhaustive()
    }
}

/// The NT hash of a password.
//= [MS-NLMP] 3.3.1 (NTOWFv1)
pub fn nt_hash(password: &str) -> NtHash {
    let mut md4 = Md4::new();
    for unit in password.encode_utf16() {
        md4.update(unit.to_le_bytes());
    }
    NtHash::new(md4.finalize().into())
}

/// The key that a user's responses are made with.
//= [MS-NLMP] 3.3.2 (NTOWFv2)
pub(super) fn response_key(nt_hash: &[u8; KEY_OCTETS], name: &str, domain: &str) -> Key {
    let mut mac = hmac(nt_hash);
    let mut units = [0; 2];
    for character in name.chars().map(upper).chain(domain.chars()) {
        for unit in character.encode_utf16(&mut units) {
            mac.update(&unit.to_le_bytes());
        }
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

/// Upper case as tables of UTF-16 units have it: one character for one. "ß" stays, and is not "SS".
fn upper(character: char) -> char {
    let mut upper = character.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(upper), None) => upper,
        _ => character,
    }
}

/// HMAC-MD5 (RFC 2104), to be fed.
fn hmac(key: &[u8; KEY_OCTETS]) -> Hmac<Md5> {
    // A key shorter than a block is one with zeros behind it (RFC 2104 section 2).
    let mut block = Zeroizing::new([0; 64]);
    block[..KEY_OCTETS].copy_from_slice(key);
    Hmac::new((&*block).into())
}

/// HMAC-MD5 over `parts`, one behind the other.
pub(super) fn hmac_md5(key: &[u8; KEY_OCTETS], parts: &[&[u8]]) -> Key {
    let mut mac = hmac(key);
    parts.iter().for_each(|part| mac.update(part));
    Zeroizing::new(mac.finalize().into_bytes().into())
}

/// Whether `found` is the HMAC-MD5 over `parts`.
pub(super) fn is_hmac_md5(key: &[u8; KEY_OCTETS], parts: &[&[u8]], found: &[u8; KEY_OCTETS]) -> bool {
    let mut mac = hmac(key);
    parts.iter().for_each(|part| mac.update(part));
    mac.verify_slice(found).is_ok()
}

/// RC4 of one key under another, which is its own inverse: how the exported session key travels.
//= [MS-NLMP] 3.1.5.1.2 (RC4K)
pub(super) fn rc4(key: &[u8; KEY_OCTETS], octets: &[u8; KEY_OCTETS]) -> Key {
    let mut state: Zeroizing<[u8; 256]> = Zeroizing::new(std::array::from_fn(|index| index as u8));
    let mut j = 0u8;
    for i in 0..=255u8 {
        j = j.wrapping_add(state[usize::from(i)]).wrapping_add(key[usize::from(i) % KEY_OCTETS]);
        state.swap(i.into(), j.into());
    }
    let mut out = Zeroizing::new(*octets);
    let (mut i, mut j) = (0u8, 0u8);
    for octet in out.iter_mut() {
        i = i.wrapping_add(1);
        j = j.wrapping_add(state[usize::from(i)]);
        state.swap(i.into(), j.into());
        *octet ^= state[usize::from(state[usize::from(i)].wrapping_add(state[usize::from(j)]))];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::sasl::ntlm::tests::hex;

    /// [MS-NLMP] 4.2.2.1.2 and 4.2.4.
    #[test]
    fn keys_of_the_document() {
        let hash = nt_hash("Password");
        assert_eq!(hash[..], hex("a4f49c406510bdcab6824ee7c30fd852"));
        let key = response_key(&hash, "User", "Domain");
        assert_eq!(key[..], hex("0c868a403bfd7a93a3001ef22ef02e3f"));
        let base = hmac_md5(&key, &[&hex("68cd0ab851e51c96aabc927bebef6a1c")]);
        assert_eq!(base[..], hex("8de40ccadbc14a82f15cb0ad0de95ca3"));
        let exported = rc4(&base, &[0x55; KEY_OCTETS]);
        assert_eq!(exported[..], hex("c5dad2544fc9799094ce1ce90bc9d03e"));
        assert_eq!(rc4(&base, &exported)[..], [0x55; KEY_OCTETS]);
    }

    /// RFC 2202 section 2, the first case: its key has sixteen octets.
    #[test]
    fn hmac_of_the_standard() {
        let key = [0x0b; KEY_OCTETS];
        let mac = hmac_md5(&key, &[b"Hi ", b"There"]);
        assert_eq!(mac[..], hex("9294727a3638bb1c13f48ef8158bfc9d"));
        assert!(is_hmac_md5(&key, &[b"Hi There"], &mac));
        assert!(!is_hmac_md5(&key, &[b"Hi there"], &mac));
    }

    #[test]
    fn the_name_is_taken_in_upper_case_and_the_domain_as_it_is() {
        let hash = nt_hash("Password");
        let key = |name: &str, domain: &str| *response_key(&hash, name, domain);
        assert_eq!(key("User", "Domain"), key("uSER", "Domain"));
        assert_ne!(key("User", "Domain"), key("User", "domain"));
        assert_eq!(key("jürgen", ""), key("JÜRGEN", ""));
        assert_ne!(key("ß", ""), key("SS", ""));
        assert_ne!(key("𐐨", ""), key("x", ""));
    }

    #[test]
    fn a_hash_is_not_shown() {
        assert_eq!(format!("{:?}", nt_hash("Password")), "NtHash { .. }");
    }
}
