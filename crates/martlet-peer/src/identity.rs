//! Who is who: a fleet has a certificate authority of its own, and each of its hosts a certificate that this has signed.
//!
//! ```text
//!   Fleet: CA certificate and key ──signs──► HostIdentity: certificate (URI martlet:host/NAME, DNS NAME.martlet) and key
//! ```
//!
//! Certificates begin a day before they are made, for clocks that are apart. All is PEM, for the caller to keep.

use crate::{PeerError, Result};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const URI: &str = "martlet:host/";

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From this time on.
    pub begins: SystemTime,
    /// For so long.
    pub lasts: Duration,
}

impl Validity {
    /// From a day ago on, until `lasts` from now.
    pub fn from_now(lasts: Duration) -> Self {
        Self {
            begins: SystemTime::now() - DAY,
            lasts: DAY + lasts,
        }
    }

    /// A host's, unless something else is said: a year.
    pub fn of_host() -> Self {
        Self::from_now(365 * DAY)
    }

    /// A fleet's, unless something else is said: ten years.
    pub fn of_fleet() -> Self {
        Self::from_now(3653 * DAY)
    }
}

/// A fleet's certificate authority. Whoever has it can make hosts.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    /// Its certificate, which every host knows.
    pub ca_pem: String,
    /// Its key.
    pub ca_key_pem: String,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fleet(…)")
    }
}

impl Fleet {
    /// A new fleet.
    pub fn create(name: &str, validity: Validity) -> Result<Self> {
        let mut params = params(&format!("Martlet fleet {name}"), validity);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(unusable("a key"))?;
        let certificate = params.self_signed(&key).map_err(unusable("a certificate"))?;
        Ok(Self {
            ca_pem: certificate.pem(),
            ca_key_pem: key.serialize_pem(),
        })
    }

    /// A host with a key made here: the first one of a fleet.
    pub fn host(&self, name: &str, validity: Validity) -> Result<HostIdentity> {
        let key = KeyPair::generate().map_err(unusable("a key"))?;
        Ok(HostIdentity {
            name: name.to_owned(),
            cert_pem: self.sign(&key, name, validity)?,
            key_pem: key.serialize_pem(),
            ca_pem: self.ca_pem.clone(),
        })
    }

    /// A certificate, in PEM, for who made the request, which is asked for nothing but its key: what the certificate says is
    /// said here.
    pub fn issue(&self, csr_pem: &str, name: &str, validity: Validity) -> Result<String> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(unusable("the request for a certificate"))?;
        self.sign(&request.public_key, name, validity)
    }

    fn sign(&self, key: &impl PublicKeyData, name: &str, validity: Validity) -> Result<String> {
        check_host_name(name)?;
        let ca_key = KeyPair::from_pem(&self.ca_key_pem).map_err(unusable("the fleet's key"))?;
        let issuer =
            Issuer::from_ca_cert_pem(&self.ca_pem, ca_key).map_err(unusable("the fleet's certificate"))?;
        let mut params = params(name, validity);
        let text = |text: String| Ia5String::try_from(text).map_err(unusable("the name"));
        params.subject_alt_names = vec![
            SanType::URI(text(format!("{URI}{name}"))?),
            SanType::DnsName(text(dns_name(name))?),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &issuer);
        Ok(certificate.map_err(unusable("a certificate"))?.pem())
    }
}

fn params(common_name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = validity.begins.into();
    params.not_after = (validity.begins + validity.lasts).into();
    params
}

/// What a host shows to others, and knows them by.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostIdentity {
    /// What it is called.
    pub name: String,
    /// Its certificate.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: String,
    /// Its fleet's certificate.
    pub ca_pem: String,
}

impl fmt::Debug for HostIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostIdentity")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl HostIdentity {
    /// A request to have its key certified again, in PEM.
    pub(crate) fn request(&self) -> Result<String> {
        request(&KeyPair::from_pem(&self.key_pem).map_err(unusable("the host's key"))?)
    }

    /// When its certificate ends. It has to be renewed before that ([`crate::renew`]).
    pub fn expires(&self) -> Result<SystemTime> {
        let certificate = certificate(&self.cert_pem)?;
        let (_, certificate) =
            X509Certificate::from_der(&certificate).map_err(unusable("the certificate"))?;
        let unix_s = certificate.validity().not_after.timestamp();
        Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s.try_into().unwrap_or(0)))
    }

    /// What is shown: the host's certificate and its fleet's.
    pub(crate) fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        Ok(vec![certificate(&self.cert_pem)?, certificate(&self.ca_pem)?])
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(unusable("the host's key"))
    }
}

/// A key that never leaves this host, and the request to have it certified, in PEM.
pub(crate) fn key_and_request() -> Result<(String, String)> {
    let key = KeyPair::generate().map_err(unusable("a key"))?;
    Ok((key.serialize_pem(), request(&key)?))
}

fn request(key: &KeyPair) -> Result<String> {
    let request = CertificateParams::default().serialize_request(key);
    let request = request.and_then(|request| request.pem());
    request.map_err(unusable("the request for a certificate"))
}

pub(crate) fn certificate(pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(unusable("the certificate"))
}

/// What a certificate is known by.
pub(crate) fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    *blake3::hash(certificate).as_bytes()
}

/// The host that a certificate is for. Only to be believed of one that was verified.
pub(crate) fn host_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let name = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(URI),
        _ => None,
    })?;
    check_host_name(name).ok()?;
    Some(name.to_owned())
}

/// The name of a host in TLS.
pub(crate) fn dns_name(host: &str) -> String {
    format!("{host}.martlet")
}

/// Names of hosts are of 1 to 63 small letters, digits and hyphens, with no hyphen at either end.
pub fn check_host_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_good = (1..=63).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-');
    match is_good {
        true => Ok(()),
        false => Err(PeerError::Identity(format!(
            "{name:.80?} is no name of a host: use 1 to 63 of a to z, 0 to 9 and '-', with no '-' at either end"
        ))),
    }
}

fn unusable<E: fmt::Display>(what: &'static str) -> impl Fn(E) -> PeerError {
    move |error| PeerError::Identity(format!("{what} cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_says_whose_it_is_and_until_when() {
        let fleet = Fleet::create("home", Validity::of_fleet()).unwrap();
        let lasts = Duration::from_secs(1000);
        let host = fleet.host("attic-2", Validity::from_now(lasts)).unwrap();
        assert_eq!(host_of(&certificate(&host.cert_pem).unwrap()).unwrap(), "attic-2");
        assert_eq!(host_of(&certificate(&host.ca_pem).unwrap()), None);
        let left = host.expires().unwrap().duration_since(SystemTime::now()).unwrap();
        assert!((990..=1000).contains(&left.as_secs()), "{left:?}");
        let printed = format!("{fleet:?} {host:?}");
        assert!(!printed.contains("PRIVATE"), "{printed}");
        let kept = serde_json::to_string(&host).unwrap();
        assert_eq!(serde_json::from_str::<HostIdentity>(&kept).unwrap(), host);
    }

    #[test]
    fn a_request_is_asked_for_its_key_only() {
        let fleet = Fleet::create("home", Validity::of_fleet()).unwrap();
        let (_, request) = key_and_request().unwrap();
        let signed = fleet.issue(&request, "attic", Validity::of_host()).unwrap();
        assert_eq!(host_of(&certificate(&signed).unwrap()).unwrap(), "attic");
        for bad in ["", "-a", "a-", "A", "a.b", "ö", &"a".repeat(64)] {
            fleet.issue(&request, bad, Validity::of_host()).unwrap_err();
        }
        fleet.issue("nothing", "attic", Validity::of_host()).unwrap_err();
    }
}
