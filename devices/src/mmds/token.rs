//! Session tokens: an expiry that nobody else can write.
//!
//! A token is a nonce, the time at which it expires, and a code over both (HMAC-SHA-256, cut to 128
//! bits) under a key that lives as long as this process. So no table has to be kept or bounded, a
//! guest cannot push another program's token out, and a restored copy of a machine takes none of the
//! tokens that its original gave.

use std::fmt::Write;
use std::io;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::Sha256;

/// Shortest life of a token, in seconds.
pub const MIN_TTL_S: u32 = 1;
/// Longest life of a token, in seconds: six hours.
pub const MAX_TTL_S: u32 = 21_600;

const NONCE: usize = 8;
/// Nonce and expiry (milliseconds, big-endian).
const SIGNED: usize = NONCE + 8;
const CODE: usize = 16;
const TOKEN: usize = SIGNED + CODE;

/// Why no token is given.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It would live too long or not at all. The text is Firecracker's.
    #[error(
        "Invalid time to live value provided for token: {0}. Please provide a value between \
         {MIN_TTL_S} and {MAX_TTL_S}."
    )]
    Ttl(u32),
    /// The host has no random numbers.
    #[error("Failed to make a token.")]
    Random(#[source] io::Error),
}

/// What gives tokens and knows its own again.
pub struct Tokens {
    keyed: Hmac<Sha256>,
}

impl std::fmt::Debug for Tokens {
    /// Keys are not for logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// With a new key.
    pub fn new() -> io::Result<Tokens> {
        let key: [u8; 32] = random()?;
        // A code of this kind takes keys of any length.
        let keyed = Hmac::new_from_slice(&key).map_err(io::Error::other)?;
        Ok(Tokens { keyed })
    }

    /// A token that is good for `ttl_s` seconds from `now`.
    pub fn issue(&self, ttl_s: u32, now: Duration) -> Result<String, TokenError> {
        if !(MIN_TTL_S..=MAX_TTL_S).contains(&ttl_s) {
            return Err(TokenError::Ttl(ttl_s));
        }
        let expiry = now + Duration::from_secs(ttl_s.into());
        let mut token = random::<NONCE>().map_err(TokenError::Random)?.to_vec();
        token.extend((expiry.as_millis() as u64).to_be_bytes());
        let code = self.keyed.clone().chain_update(&token).finalize().into_bytes();
        token.extend(&code[..CODE]);
        Ok(token.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }))
    }

    /// Whether `token` was given here and has not expired.
    pub fn accepts(&self, token: &str, now: Duration) -> bool {
        let Some(bytes) = decode(token) else { return false };
        let (signed, code) = bytes.split_at(SIGNED);
        // Compared in a time that does not depend on where they differ.
        let genuine = self.keyed.clone().chain_update(signed).verify_truncated_left(code).is_ok();
        let mut expiry = [0; 8];
        expiry.copy_from_slice(&signed[NONCE..]);
        genuine && u128::from(u64::from_be_bytes(expiry)) > now.as_millis()
    }
}

fn decode(token: &str) -> Option<[u8; TOKEN]> {
    let digits = token.as_bytes();
    if digits.len() != 2 * TOKEN {
        return None;
    }
    let mut bytes = [0; TOKEN];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? << 4 | digit(1)?) as u8;
    }
    Some(bytes)
}

/// Fewer than 256 bytes, which are always given whole (getrandom(2)).
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_millis(123_456);

    #[test]
    fn good_until_it_expires() {
        let tokens = Tokens::new().unwrap();
        let token = tokens.issue(10, NOW).unwrap();
        assert!(tokens.accepts(&token, NOW));
        assert!(tokens.accepts(&token.to_uppercase(), NOW + Duration::from_millis(9_999)));
        assert!(!tokens.accepts(&token, NOW + Duration::from_secs(10)));
        assert_ne!(token, tokens.issue(10, NOW).unwrap());
    }

    #[test]
    fn one_changed_digit_is_enough() {
        let tokens = Tokens::new().unwrap();
        let token = tokens.issue(MAX_TTL_S, NOW).unwrap();
        for at in 0..token.len() {
            for other in ["0", "8", "f", "x", "\u{7f}"] {
                let mut wrong = token.clone();
                wrong.replace_range(at..=at, other);
                assert!(wrong == token || !tokens.accepts(&wrong, NOW), "{at} {other:?}");
            }
        }
        for wrong in ["", "00", &token[1..], &format!("{token}0"), &"é".repeat(TOKEN)] {
            assert!(!tokens.accepts(wrong, NOW), "{wrong}");
        }
        assert!(!Tokens::new().unwrap().accepts(&token, NOW), "another process");
    }

    #[test]
    fn lives_have_bounds() {
        let tokens = Tokens::new().unwrap();
        for bad in [0, MAX_TTL_S + 1, u32::MAX] {
            let said = tokens.issue(bad, NOW).unwrap_err().to_string();
            assert!(said.ends_with("Please provide a value between 1 and 21600."), "{said}");
        }
        tokens.issue(MIN_TTL_S, NOW).unwrap();
    }
}
