//! How a host comes to be of a fleet.
//!
//! ```text
//!   new host                                                                 host that invites
//!   makes a key ── TLS, the fleet known by its fingerprint ──────────────────►
//!               ── POST /join {token, request for a certificate, name, address} ─►  Inviter::admit: once for each token
//!               ◄── certificate, the fleet's own, other hosts, extra ──────────
//! ```
//!
//! The key never leaves the new host. Later the host asks in the same way, by the certificate that it has, for one that lasts
//! longer (POST /renew). If the answer is lost, the token is used up: the host is invited anew.

use crate::client::PeerClient;
use crate::exchange::{blocking, whole};
use crate::identity::{certificate, fingerprint, key_and_request};
use crate::tls::{Judge, Pinned, pinned_config, server_config};
use crate::{
    Caller, Code, Fleet, HostIdentity, HostInvitation, Patience, PeerError, Refusal, Result, Token, Validity,
    check_host_name,
};
use axum::body::Body;
use axum::extract::State;
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const QUESTION_BYTES_MAX: usize = 16 << 10;

/// A host, and where it is to be found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// What it is called.
    pub name: String,
    /// `ADDRESS:PORT`.
    pub address: String,
}

#[derive(Serialize, Deserialize)]
struct Question {
    token: String,
    csr_pem: String,
    name: String,
    address: String,
}

#[derive(Serialize, Deserialize)]
struct Admission {
    cert_pem: String,
    ca_pem: String,
    hosts: Vec<HostEntry>,
    extra: String,
}

/// Who wants to join.
#[derive(Debug, Clone)]
pub struct Newcomer {
    /// What lets it in.
    pub token: Token,
    /// What it wants to be called, and where it is to be found.
    pub host: HostEntry,
    /// The certificate that it will have.
    pub cert_pem: String,
}

/// What a new host is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Welcome {
    /// The hosts of the fleet.
    pub hosts: Vec<HostEntry>,
    /// Whatever else.
    pub extra: String,
}

/// Lets hosts in.
pub trait Inviter: Send + Sync {
    /// The fleet to sign for.
    fn fleet(&self) -> Fleet;

    /// Refuses names that are taken or were removed, redeems the token, and remembers the host: all of it durable when this
    /// returns, or nothing. Blocks.
    fn admit(&self, newcomer: &Newcomer) -> Result<Welcome, Refusal>;
}

/// The paths `/join`, for anybody with an invitation, and `/renew`, for hosts.
pub fn join_router(inviter: Arc<dyn Inviter>) -> Router {
    Router::new()
        .route("/join", post(admit))
        .route("/renew", post(certify))
        .with_state(inviter)
}

async fn certify(
    State(inviter): State<Arc<dyn Inviter>>,
    Extension(caller): Extension<Caller>,
    Json(csr_pem): Json<String>,
) -> Result<Json<String>, Refusal> {
    let Caller::Host(name) = caller else {
        return Err(Refusal::new(
            Code::Forbidden,
            "only a host of the fleet is certified again",
        ));
    };
    blocking(move || {
        let signed = inviter.fleet().issue(&csr_pem, &name, Validity::of_host());
        signed
            .map(Json)
            .map_err(|error| Refusal::new(Code::BadRequest, error.to_string()))
    })
    .await
}

/// Gets another certificate for a host, for the same key and name, from one that can sign.
pub fn renew(identity: &HostIdentity, signer: &PeerClient) -> Result<HostIdentity> {
    let renewed = HostIdentity {
        cert_pem: signer.post("/renew", &identity.request()?)?,
        ..identity.clone()
    };
    renewed.check(signer.peer())?;
    Ok(renewed)
}

async fn admit(State(inviter): State<Arc<dyn Inviter>>, body: Body) -> Result<Json<Admission>, Refusal> {
    let bad = |reason: String| Refusal::new(Code::BadRequest, reason);
    let body = whole(body, QUESTION_BYTES_MAX).await?;
    let question: Question = serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
    let token: Token = question
        .token
        .parse()
        .map_err(|_| bad("this is no token".into()))?;
    blocking(move || {
        let fleet = inviter.fleet();
        // First, so that a question which cannot be answered does not use the token up.
        let signed = fleet.issue(&question.csr_pem, &question.name, Validity::of_host());
        let cert_pem = signed.map_err(|error| bad(error.to_string()))?;
        let newcomer = Newcomer {
            token,
            host: HostEntry {
                name: question.name,
                address: question.address,
            },
            cert_pem,
        };
        let welcome = inviter.admit(&newcomer)?;
        Ok(Json(Admission {
            cert_pem: newcomer.cert_pem,
            ca_pem: fleet.ca_pem,
            hosts: welcome.hosts,
            extra: welcome.extra,
        }))
    })
    .await
}

impl HostIdentity {
    /// Is what `signer` has signed for this host's name and key, and by its fleet?
    fn check(&self, signer: &str) -> Result<()> {
        let wrong = |reason: &dyn ToString| {
            PeerError::wrong(signer, "the certificate of this host", reason.to_string())
        };
        let chain = self.chain().map_err(|error| wrong(&error))?;
        server_config(self).map_err(|error| wrong(&error))?; // which wants them to fit
        match Judge::new(self)?.caller(Some(&chain)) {
            Ok(Caller::Host(name)) if name == self.name => Ok(()),
            Ok(_) => Err(wrong(&"it is for another name")),
            Err(refusal) => Err(wrong(&refusal.message)),
        }
    }
}

/// This host is of a fleet.
#[derive(Debug, Clone)]
pub struct Joined {
    /// Who it is, to be kept.
    pub identity: HostIdentity,
    /// Who let it in.
    pub inviter: HostEntry,
    /// The hosts of the fleet, as the inviter knows them.
    pub hosts: Vec<HostEntry>,
    /// Whatever else the inviter said.
    pub extra: String,
}

/// Joins a fleet by an invitation, as `own`.
pub fn join(line: &str, own: &HostEntry, patience: Patience) -> Result<Joined> {
    let invitation: HostInvitation = line.parse()?;
    check_host_name(&own.name)?;
    let (key_pem, csr_pem) = key_and_request()?;
    let pinned = Arc::new(Pinned::new(invitation.ca_fingerprint));
    let address = format!("{}:{}", invitation.address, invitation.port);
    let client = PeerClient::with(
        pinned_config(pinned.clone())?,
        "the host that invites",
        &address,
        patience,
    );
    let question = Question {
        token: invitation.token.to_string(),
        csr_pem,
        name: own.name.clone(),
        address: own.address.clone(),
    };
    let admission: Admission = client.post("/join", &question)?;
    let identity = HostIdentity {
        name: own.name.clone(),
        cert_pem: admission.cert_pem,
        key_pem,
        ca_pem: admission.ca_pem,
    };
    let wrong = |reason: &str| PeerError::wrong(&address, "the certificate of this host", reason);
    if fingerprint(&certificate(&identity.ca_pem)?) != invitation.ca_fingerprint {
        return Err(wrong("it is of another fleet"));
    }
    identity.check(&address)?;
    let name = pinned.host().ok_or_else(|| wrong("nobody has shown one"))?;
    Ok(Joined {
        identity,
        inviter: HostEntry { name, address },
        hosts: admission.hosts,
        extra: admission.extra,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_taken_only_for_its_key_name_and_fleet() {
        let [fleet, other] = [(); 2].map(|()| Fleet::create("home", Validity::of_fleet()).unwrap());
        let host = fleet.host("attic", Validity::of_host()).unwrap();
        host.check("signer").unwrap();
        let request = host.request().unwrap();
        let certificates = [
            fleet.host("attic", Validity::of_host()).unwrap().cert_pem, // of another key
            fleet.issue(&request, "cellar", Validity::of_host()).unwrap(),
            other.issue(&request, "attic", Validity::of_host()).unwrap(),
            "nothing".into(),
        ];
        for cert_pem in certificates {
            let host = HostIdentity {
                cert_pem,
                ..host.clone()
            };
            let error = host.check("signer").unwrap_err();
            assert!(matches!(error, PeerError::Wrong { .. }), "{error}");
        }
    }
}
