//! How a host is asked in: a line that is copied and pasted.
//!
//! ```text
//! martlet-host:ADDRESS:PORT:TOKEN:CAFINGERPRINT:CHECK     hexadecimal; IPv6 addresses in brackets
//! ```
//!
//! TOKEN is good once and for a while; who asks keeps only its hash. By CAFINGERPRINT the new host knows that it talks to the
//! fleet that it was asked into. CHECK tells a line that was cut or mistyped from one that is whole.

use crate::{Code, Refusal};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

const SCHEME: &str = "martlet-host";
/// Clocks that go back by no more are believed.
const CLOCK_SLACK_S: u64 = 5 * 60;
/// For so long after its end it is known what became of a token.
const REMEMBERED_S: u64 = 7 * 24 * 60 * 60;

/// A secret of 128 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; 16]);

impl Token {
    /// What nobody can guess.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut bytes).expect("the kernel has random bytes");
        Self(bytes)
    }

    fn hash(&self) -> String {
        let hash = blake3::derive_key("martlet 2026 host invitation: token", &self.0);
        blake3::Hash::from_bytes(hash).to_string()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Token {
    type Err = BadInvitation;

    fn from_str(hex: &str) -> Result<Self, BadInvitation> {
        if hex.len() != 32 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(BadInvitation("a token has 32 hexadecimal digits"));
        }
        let bytes =
            u128::from_str_radix(hex, 16).map_err(|_| BadInvitation("a token has 32 hexadecimal digits"))?;
        Ok(Self(bytes.to_be_bytes()))
    }
}

/// All that a new host has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInvitation {
    /// A host of the fleet: a name or an address, IPv6 in brackets, without port.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// Lets one host in, once.
    pub token: Token,
    /// What the fleet's certificate is known by.
    pub ca_fingerprint: [u8; 32],
}

impl HostInvitation {
    /// An invitation to the host at this name or address, of the fleet with this certificate.
    pub fn new(address: &str, port: u16, token: Token, ca_pem: &str) -> crate::Result<Self> {
        Ok(Self {
            address: written(address),
            port,
            token,
            ca_fingerprint: crate::identity::fingerprint(&crate::identity::certificate(ca_pem)?),
        })
    }
}

impl fmt::Display for HostInvitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fingerprint = blake3::Hash::from_bytes(self.ca_fingerprint).to_hex();
        let body = format!(
            "{SCHEME}:{}:{}:{}:{fingerprint}",
            self.address, self.port, self.token
        );
        write!(f, "{body}:{}", check(&body))
    }
}

/// The line is no invitation, or not all of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a whole invitation to a fleet: {0}")]
pub struct BadInvitation(&'static str);

impl FromStr for HostInvitation {
    type Err = BadInvitation;

    fn from_str(line: &str) -> Result<Self, BadInvitation> {
        let shape =
            BadInvitation("it is a line of the form martlet-host:ADDRESS:PORT:TOKEN:CAFINGERPRINT:CHECK");
        let line = line.trim();
        let (body, checked) = line.rsplit_once(':').ok_or(shape)?;
        let rest = body
            .strip_prefix(SCHEME)
            .and_then(|rest| rest.strip_prefix(':'))
            .ok_or(shape)?;
        if check(body) != checked {
            return Err(BadInvitation("something of it is missing or mistyped"));
        }
        // From the right, because IPv6 addresses have colons of their own.
        let mut parts = rest.rsplitn(4, ':');
        let mut part = || parts.next().ok_or(shape);
        let (fingerprint, token, port, address) = (part()?, part()?, part()?, part()?);
        if !is_written(address) {
            return Err(BadInvitation("an IPv6 address stands in brackets"));
        }
        let fingerprint = blake3::Hash::from_hex(fingerprint)
            .map_err(|_| BadInvitation("a fingerprint has 64 hexadecimal digits"))?;
        Ok(Self {
            address: address.to_owned(),
            port: port
                .parse()
                .map_err(|_| BadInvitation("a port is a number up to 65535"))?,
            token: token.parse()?,
            ca_fingerprint: *fingerprint.as_bytes(),
        })
    }
}

/// An address as it stands before a port.
pub(crate) fn written(address: &str) -> String {
    match address.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => address.to_owned(),
    }
}

/// Is this an address that stands before a port?
pub(crate) fn is_written(address: &str) -> bool {
    let in_brackets = address.starts_with('[') && address.ends_with(']');
    !address.is_empty() && (in_brackets || !address.contains(':'))
}

/// Tells a line that is whole from one that is not.
pub(crate) fn check(body: &str) -> String {
    blake3::derive_key("martlet 2026 host invitation: check", body.as_bytes())[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Tokens that were given out. A value, for the caller to keep: what it says of a token has to be durable before the host is
/// let in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBook {
    tokens: Vec<Given>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Given {
    hash: String,
    made_unix_s: u64,
    ends_unix_s: u64,
    is_used: bool,
}

impl TokenBook {
    /// How long a token is good, unless something else is said.
    pub const LASTS: Duration = Duration::from_secs(60 * 60);

    /// A new token.
    pub fn add(&mut self, lasts: Duration, now: SystemTime) -> Token {
        let now_unix_s = unix_s(now);
        self.tokens
            .retain(|given| now_unix_s < given.ends_unix_s.saturating_add(REMEMBERED_S));
        let token = Token::random();
        self.tokens.push(Given {
            hash: token.hash(),
            made_unix_s: now_unix_s,
            ends_unix_s: now_unix_s.saturating_add(lasts.as_secs()),
            is_used: false,
        });
        token
    }

    /// Uses a token up. A clock that has gone back far does not make it good for longer.
    pub fn redeem(&mut self, token: &Token, now: SystemTime) -> Result<(), Refusal> {
        let (hash, now_unix_s) = (token.hash(), unix_s(now));
        let refuse = |code, message: &str| Err(Refusal::new(code, message));
        let Some(given) = self.tokens.iter_mut().find(|given| given.hash == hash) else {
            return refuse(Code::InvitationUnknown, "there is no such invitation");
        };
        if given.is_used {
            return refuse(
                Code::InvitationUsed,
                "a host has joined by this invitation: ask for another",
            );
        }
        let good = given.made_unix_s.saturating_sub(CLOCK_SLACK_S)..given.ends_unix_s;
        if !good.contains(&now_unix_s) {
            return refuse(
                Code::InvitationExpired,
                "the time of this invitation is over: ask for another",
            );
        }
        given.is_used = true;
        Ok(())
    }
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written_and_only_whole() {
        for address in ["192.0.2.7", "attic.example", "[2001:db8::7]"] {
            let invitation = HostInvitation {
                address: address.into(),
                port: 7443,
                token: Token([7; 16]),
                ca_fingerprint: [200; 32],
            };
            let line = invitation.to_string();
            assert_eq!(format!("  {line}\n").parse(), Ok(invitation.clone()));
            for end in 0..line.len() {
                line[..end].parse::<HostInvitation>().unwrap_err();
                let mut mistyped = line.clone().into_bytes();
                mistyped[end] = if mistyped[end] == b'0' { b'1' } else { b'0' };
                let mistyped = String::from_utf8(mistyped).unwrap();
                mistyped.parse::<HostInvitation>().unwrap_err();
            }
            assert!(
                !format!("{invitation:?}").contains("0707"),
                "tokens are not printed"
            );
        }
    }

    #[test]
    fn addresses_are_written_as_they_are_read() {
        let fleet = crate::Fleet::create("home", crate::Validity::of_fleet()).unwrap();
        for (given, written) in [
            ("2001:db8::7", "[2001:db8::7]"),
            ("[::1]", "[::1]"),
            ("attic", "attic"),
        ] {
            let invitation = HostInvitation::new(given, 7443, Token::random(), &fleet.ca_pem).unwrap();
            assert_eq!(invitation.address, written);
            assert_eq!(invitation.to_string().parse(), Ok(invitation));
        }
    }

    #[test]
    fn a_token_is_good_once_and_for_a_while() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut book = TokenBook::default();
        let [first, second, third] = [(); 3].map(|()| book.add(TokenBook::LASTS, start));
        let kept = serde_json::to_string(&book).unwrap();
        assert!(!kept.contains(&first.to_string()), "only hashes are kept");
        book = serde_json::from_str(&kept).unwrap();
        let code = |redeemed: Result<(), Refusal>| redeemed.unwrap_err().code;

        assert_eq!(
            code(book.redeem(&Token::random(), start)),
            Code::InvitationUnknown
        );
        book.redeem(&first, later(3599)).unwrap();
        assert_eq!(code(book.redeem(&first, later(3599))), Code::InvitationUsed);
        assert_eq!(code(book.redeem(&second, later(3600))), Code::InvitationExpired);
        // Clocks: a little back is nothing, an hour back is no longer life.
        assert_eq!(
            code(book.redeem(&second, start - Duration::from_secs(3600))),
            Code::InvitationExpired
        );
        book.redeem(&second, start - Duration::from_secs(60)).unwrap();
        // What is long over is forgotten.
        book.add(TokenBook::LASTS, later(30 * 24 * 3600));
        assert_eq!(code(book.redeem(&third, later(60))), Code::InvitationUnknown);
        assert_eq!(book.tokens.len(), 1);
    }
}
