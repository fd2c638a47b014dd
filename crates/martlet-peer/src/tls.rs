//! TLS 1.3 as hosts speak it to each other.
//!
//! ```text
//!   client ──ClientHello──► server
//!          ◄── its certificate and its fleet's ── : verified against the fleet's CA (or its fingerprint) and a name
//!          ── a certificate, or none ──►          : proven in the handshake, judged after it ──► Caller, or a Refusal
//! ```
//!
//! A server does not judge certificates in the handshake: in TLS 1.3 that has ended for the client before the verdict comes,
//! which is then lost with the connection. Nothing is served before the verdict, and a bad one is all that is answered.

use crate::identity::{certificate, dns_name, fingerprint, host_of};
use crate::{Caller, Code, HostIdentity, PeerError, Refusal, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme, version::TLS13,
};
use std::sync::{Arc, OnceLock};

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| rustls::crypto::ring::default_provider().into())
        .clone()
}

fn roots(ca: CertificateDer<'static>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    Ok(roots.into())
}

fn fleet_roots(identity: &HostIdentity) -> Result<Arc<RootCertStore>> {
    roots(certificate(&identity.ca_pem)?).map_err(unusable)
}

fn unusable(error: impl std::fmt::Display) -> PeerError {
    PeerError::Identity(format!("the host's certificate cannot be used: {error}"))
}

/// How a host serves.
pub(crate) fn server_config(identity: &HostIdentity) -> Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(Arc::new(JudgedLater))
        .with_single_cert(identity.chain()?, identity.key()?)
        .map_err(unusable)?;
    // Each connection proves anew who it is.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config.into())
}

/// How a host calls another, and the name that the other has to prove.
pub(crate) fn client_config(
    identity: &HostIdentity,
    peer: &str,
) -> Result<(Arc<ClientConfig>, ServerName<'static>)> {
    let verifier = WebPkiServerVerifier::builder_with_provider(fleet_roots(identity)?, provider())
        .build()
        .map_err(unusable)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(identity.chain()?, identity.key()?)
        .map_err(unusable)?;
    Ok((config.into(), server_name(peer)?))
}

/// How somebody without a certificate calls a host of which it knows only the fleet's fingerprint.
pub(crate) fn pinned_config(pinned: Arc<Pinned>) -> Result<(Arc<ClientConfig>, ServerName<'static>)> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(pinned.clone())
        .with_no_client_auth();
    let name = pinned.host.as_deref().unwrap_or("fleet").to_owned();
    Ok((config.into(), server_name(&name)?))
}

fn server_name(host: &str) -> Result<ServerName<'static>> {
    crate::check_host_name(host)?;
    ServerName::try_from(dns_name(host)).map_err(unusable)
}

/// Has whoever shows a certificate prove that it has the key, and leaves the rest to [`Judge`].
#[derive(Debug)]
struct JudgedLater;

impl ClientCertVerifier for JudgedLater {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Says who calls.
#[derive(Debug)]
pub(crate) struct Judge(Arc<dyn ClientCertVerifier>);

impl Judge {
    pub(crate) fn new(identity: &HostIdentity) -> Result<Self> {
        let verifier = WebPkiClientVerifier::builder_with_provider(fleet_roots(identity)?, provider());
        Ok(Self(verifier.build().map_err(unusable)?))
    }

    /// Who showed these certificates, of which the key was proven.
    pub(crate) fn caller(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<Caller, Refusal> {
        let Some([leaf, rest @ ..]) = chain else {
            return Ok(Caller::Anonymous);
        };
        let verified = self.0.verify_client_cert(leaf, rest, UnixTime::now());
        let stranger = |reason: &str| {
            let message = format!("your certificate is none of this fleet's: {reason}");
            Refusal::new(Code::Stranger, message)
        };
        match verified {
            Ok(_) => host_of(leaf)
                .map(Caller::Host)
                .ok_or_else(|| stranger("it is no host's")),
            Err(error) if is_out_of_time(&error) => {
                Err(Refusal::new(Code::Expired, "your certificate is not valid now"))
            }
            Err(error) => Err(stranger(&error.to_string())),
        }
    }
}

/// Believes the fleet with a fingerprint, which shows its certificate, and any of its hosts, or one of them.
#[derive(Debug)]
pub(crate) struct Pinned {
    ca_fingerprint: [u8; 32],
    host: Option<String>,
    seen: OnceLock<CertificateDer<'static>>,
}

impl Pinned {
    pub(crate) fn new(ca_fingerprint: [u8; 32]) -> Self {
        Self {
            ca_fingerprint,
            host: None,
            seen: OnceLock::new(),
        }
    }

    /// Of the fleet's hosts, only this one.
    pub(crate) fn to_host(ca_fingerprint: [u8; 32], host: &str) -> Self {
        Self {
            host: Some(host.to_owned()),
            ..Self::new(ca_fingerprint)
        }
    }

    /// The host that was talked to.
    pub(crate) fn host(&self) -> Option<String> {
        host_of(self.seen.get()?)
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = rest
            .iter()
            .find(|shown| fingerprint(shown) == self.ca_fingerprint);
        let ca = ca.ok_or(CertificateError::UnknownIssuer)?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &*roots(ca.clone().into_owned())?,
            &[],
            now,
            algorithms,
        )?;
        let host = host_of(leaf).ok_or(CertificateError::NotValidForName)?;
        if self.host.as_ref().is_some_and(|meant| *meant != host) {
            return Err(CertificateError::NotValidForName.into());
        }
        self.seen.get_or_init(|| leaf.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        JudgedLater.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        JudgedLater.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        JudgedLater.supported_verify_schemes()
    }
}

fn is_out_of_time(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
        )
    )
}

/// What a handshake that failed says about the other side.
pub(crate) fn handshake_error(peer: &str, error: std::io::Error) -> PeerError {
    let (peer, reason) = (peer.to_owned(), error.to_string());
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    match cause {
        Some(cause) if is_out_of_time(cause) => PeerError::Expired { whose: peer },
        Some(Error::InvalidCertificate(_)) => PeerError::WrongCertificate { peer, reason },
        Some(_) => PeerError::NotAPeer { peer, reason },
        None => PeerError::Unreachable { peer, reason },
    }
}
