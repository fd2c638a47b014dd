//! How a person is let in: a line that is copied and pasted.
//!
//! ```text
//! martlet-token:HOST:ADDRESS:PORT:SECRET:CAFINGERPRINT:CHECK     hexadecimal; IPv6 addresses in brackets
//! ```
//!
//! Each request carries SECRET; the host keeps only its hash. By CAFINGERPRINT and HOST the person's side knows that it talks to
//! that host of that fleet, before it says the secret. CHECK tells a line that was cut or mistyped from one that is whole.

use crate::connection::keep_alive;
use crate::identity::{certificate, fingerprint};
use crate::invite::{check, is_written, written};
use crate::tls::{Pinned, handshake_error, pinned_config};
use crate::{PeerError, Result, check_host_name};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const SCHEME: &str = "martlet-token";

/// A secret of 256 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// What nobody can guess.
    pub fn random() -> Self {
        let mut bytes = [0; 32];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut bytes).expect("the kernel has random bytes");
        Self(bytes)
    }

    /// What is kept of it. Who can read that cannot tell the secret.
    pub fn hash(&self) -> String {
        let hash = blake3::derive_key("martlet 2026 access token: secret", &self.0);
        blake3::Hash::from_bytes(hash).to_string()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Secret {
    type Err = BadAccess;

    fn from_str(hex: &str) -> Result<Self, BadAccess> {
        let hash =
            blake3::Hash::from_hex(hex).map_err(|_| BadAccess("a secret has 64 hexadecimal digits"))?;
        Ok(Self(*hash.as_bytes()))
    }
}

/// All that a person's side has to know to use a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLine {
    /// What the host is called in its fleet.
    pub host: String,
    /// Where it is: a name or an address, IPv6 in brackets, without port.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// What each request carries.
    pub secret: Secret,
    /// What the fleet's certificate is known by.
    pub ca_fingerprint: [u8; 32],
}

impl AccessLine {
    /// Access to the host of this name, which is at this name or address, in the fleet with this certificate.
    pub fn new(host: &str, address: &str, port: u16, secret: Secret, ca_pem: &str) -> Result<Self> {
        Ok(Self {
            host: host.to_owned(),
            address: written(address),
            port,
            secret,
            ca_fingerprint: fingerprint(&certificate(ca_pem)?),
        })
    }

    /// A connection to the host, which has proven who it is.
    pub async fn connect(
        &self,
        patience: Duration,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
        let peer = format!("host {} ({}:{})", self.host, self.address, self.port);
        let unreachable = |reason: String| PeerError::Unreachable {
            peer: peer.clone(),
            reason,
        };
        let pinned = Pinned::to_host(self.ca_fingerprint, &self.host);
        let (config, server_name) = pinned_config(pinned.into())?;
        let connected = async {
            let socket = TcpStream::connect(format!("{}:{}", self.address, self.port)).await;
            let socket = socket.map_err(|error| unreachable(error.to_string()))?;
            let _ = socket.set_nodelay(true);
            keep_alive(&socket);
            let tls = TlsConnector::from(config).connect(server_name, socket).await;
            tls.map_err(|error| handshake_error(&peer, error))
        };
        let late = |_| unreachable(format!("not within {} ms", patience.as_millis()));
        timeout(patience, connected).await.map_err(late)?
    }
}

impl fmt::Display for AccessLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fingerprint = blake3::Hash::from_bytes(self.ca_fingerprint).to_hex();
        let (host, address, port, secret) = (&self.host, &self.address, self.port, &self.secret);
        let body = format!("{SCHEME}:{host}:{address}:{port}:{secret}:{fingerprint}");
        write!(f, "{body}:{}", check(&body))
    }
}

/// The line is no token, or not all of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a whole token: {0}")]
pub struct BadAccess(&'static str);

impl FromStr for AccessLine {
    type Err = BadAccess;

    fn from_str(line: &str) -> Result<Self, BadAccess> {
        let shape =
            BadAccess("it is a line of the form martlet-token:HOST:ADDRESS:PORT:SECRET:CAFINGERPRINT:CHECK");
        let (body, checked) = line.trim().rsplit_once(':').ok_or(shape)?;
        let rest = body
            .strip_prefix(SCHEME)
            .and_then(|rest| rest.strip_prefix(':'))
            .ok_or(shape)?;
        if check(body) != checked {
            return Err(BadAccess("something of it is missing or mistyped"));
        }
        let (host, rest) = rest.split_once(':').ok_or(shape)?;
        check_host_name(host).map_err(|_| shape)?;
        // From the right, because IPv6 addresses have colons of their own.
        let mut parts = rest.rsplitn(4, ':');
        let mut part = || parts.next().ok_or(shape);
        let (fingerprint, secret, port, address) = (part()?, part()?, part()?, part()?);
        if !is_written(address) {
            return Err(BadAccess("an IPv6 address stands in brackets"));
        }
        let fingerprint = blake3::Hash::from_hex(fingerprint)
            .map_err(|_| BadAccess("a fingerprint has 64 hexadecimal digits"))?;
        Ok(Self {
            host: host.to_owned(),
            address: address.to_owned(),
            port: port
                .parse()
                .map_err(|_| BadAccess("a port is a number up to 65535"))?,
            secret: secret.parse()?,
            ca_fingerprint: *fingerprint.as_bytes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written_and_only_whole() {
        let fleet = crate::Fleet::create("home", crate::Validity::of_fleet()).unwrap();
        for address in ["192.0.2.7", "attic.example", "2001:db8::7"] {
            let access = AccessLine::new("attic-2", address, 7077, Secret([7; 32]), &fleet.ca_pem).unwrap();
            let line = access.to_string();
            assert_eq!(format!("  {line}\n").parse(), Ok(access.clone()));
            for end in 0..line.len() {
                line[..end].parse::<AccessLine>().unwrap_err();
            }
            line.replace("0707", "0708").parse::<AccessLine>().unwrap_err();
            assert!(!format!("{access:?}").contains("0707"), "secrets are not printed");
        }
    }

    #[test]
    fn what_is_kept_of_a_secret_does_not_tell_it() {
        let secret = Secret::random();
        assert_ne!(secret, Secret::random());
        assert_ne!(secret.hash(), secret.to_string());
        assert_eq!(
            secret.to_string().parse::<Secret>().unwrap().hash(),
            secret.hash()
        );
        "07".repeat(31).parse::<Secret>().unwrap_err();
    }
}
