//! Passwords and tokens. A password is kept as what PBKDF2 makes of it (RFC 8018), in the form that password databases use; a
//! token says who has shown one, and is signed with a key that all members have, so each knows it by itself.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as URL_BASE64;
use prost::Message;
use ring::{digest, hmac, pbkdf2};

use crate::proto::v1::UserToken;

/// What what is kept of a password begins with.
const SCHEME: &str = "pbkdf2-sha256";
/// Bytes of what is made of a password, and of what is mixed into it.
const HASH_BYTES: usize = digest::SHA256_OUTPUT_LEN;
const SALT_BYTES: usize = 16;

/// A password as it is kept: what it was made with, and what came of it.
pub struct Password {
    rounds: NonZeroU32,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

impl Password {
    /// Makes one. Takes as long as it takes whoever guesses.
    pub fn make(password: &str, salt: [u8; SALT_BYTES], rounds: NonZeroU32) -> Self {
        let mut hash = vec![0; HASH_BYTES];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut hash);
        Self { rounds, salt: salt.to_vec(), hash }
    }

    /// Reads one; `None` if it is none.
    pub fn read(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix('$')?.split('$');
        let rounds = parts.next().filter(|scheme| *scheme == SCHEME).and_then(|_| parts.next()?.strip_prefix("i="))?;
        let mut bytes = || BASE64.decode(parts.next()?).ok();
        Some(Self { rounds: rounds.parse().ok()?, salt: bytes()?, hash: bytes()? })
    }

    /// Whether it is this one. Takes as long as making it took.
    pub fn is(&self, password: &str) -> bool {
        let (algorithm, password) = (pbkdf2::PBKDF2_HMAC_SHA256, password.as_bytes());
        pbkdf2::verify(algorithm, self.rounds, &self.salt, password, &self.hash).is_ok()
    }
}

impl std::fmt::Display for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (salt, hash) = (BASE64.encode(&self.salt), BASE64.encode(&self.hash));
        write!(f, "${SCHEME}$i={}${salt}${hash}", self.rounds)
    }
}

/// A token, signed.
pub fn sign_token(key: &[u8], token: &UserToken) -> String {
    let says = token.encode_to_vec();
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &says);
    format!("{}.{}", URL_BASE64.encode(says), URL_BASE64.encode(tag))
}

/// What a token says, if it was signed with this key; nothing, if there is none.
pub fn read_token(key: &[u8], text: &str) -> Option<UserToken> {
    let (says, tag) = text.split_once('.').filter(|_| !key.is_empty())?;
    let (says, tag) = (URL_BASE64.decode(says).ok()?, URL_BASE64.decode(tag).ok()?);
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), &says, &tag).ok()?;
    UserToken::decode(&*says).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: NonZeroU32 = NonZeroU32::new(2).unwrap();

    #[test]
    fn passwords_are_known_again() {
        let text = Password::make("secret", [7; SALT_BYTES], ROUNDS).to_string();
        assert!(text.starts_with("$pbkdf2-sha256$i=2$BwcHBwcHBwcHBwcHBwcHBw$"), "{text}");
        let read = Password::read(&text).unwrap();
        assert!(read.is("secret") && !read.is("Secret") && !read.is(""));
        let other_rounds = text.replace("i=2", "i=3");
        assert!(!Password::read(&other_rounds).unwrap().is("secret"));
        for bad in [
            "",
            "secret",
            "$argon2$i=2$AA$AA",
            "$pbkdf2-sha256$i=0$AA$AA",
            "$pbkdf2-sha256$i=2$AA",
            "$pbkdf2-sha256$i=2$*$AA",
        ] {
            assert!(Password::read(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn tokens_are_what_was_signed() {
        let token = UserToken { user: "alice".into(), since: 3, end_ms: 17 };
        let text = sign_token(b"key", &token);
        assert_eq!(read_token(b"key", &text), Some(token.clone()));
        let (says, tag) = text.split_once('.').unwrap();
        let forged = URL_BASE64.encode(UserToken { user: "root".into(), ..token }.encode_to_vec());
        for bad in [format!("{forged}.{tag}"), format!("{says}."), says.into(), format!("{says}.{tag}A"), ".".into()] {
            assert_eq!(read_token(b"key", &bad), None, "{bad}");
        }
        assert_eq!(read_token(b"another", &text), None);
        assert_eq!(read_token(b"", &sign_token(b"", &UserToken::default())), None, "anybody could sign that");
    }
}
