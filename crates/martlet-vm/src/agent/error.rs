//! What can go wrong between host and agent.

use martlet_agent_api::{Identified, Outcome, RemoteError};
use std::io;

/// What can go wrong between host and agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The guest's agent port could not be opened.
    #[error("cannot connect to the guest's agent port: {0}")]
    Connect(#[source] io::Error),
    /// No answer in time.
    #[error("the guest's agent did not answer {what} in time")]
    Timeout {
        /// What it was asked.
        what: &'static str,
    },
    /// The connection has ended.
    #[error("the connection to the guest's agent has ended")]
    Disconnected,
    /// The guest talks nonsense.
    #[error("the guest's agent broke the protocol: {reason}")]
    Protocol {
        /// How.
        reason: String,
    },
    /// The agent is of another age.
    #[error("the guest's agent {agent_version} speaks no protocol that this version knows")]
    Version {
        /// Its version.
        agent_version: String,
    },
    /// The agent tried and could not.
    #[error("in the guest: {0}")]
    Remote(#[from] RemoteError),
    /// The guest could not put on its identity.
    #[error("the guest did not take its identity: {}", failed_steps(.0))]
    NotIdentified(Box<Identified>),
}

impl AgentError {
    pub(super) fn protocol(reason: impl Into<String>) -> Self {
        Self::Protocol {
            reason: reason.into(),
        }
    }

    /// May the same call succeed on a new connection?
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Timeout { .. } | Self::Disconnected)
    }
}

fn failed_steps(identified: &Identified) -> String {
    let failed = identified.steps.iter().filter_map(|step| match &step.outcome {
        Outcome::Failed(reason) => Some(format!("{} ({reason})", step.name)),
        Outcome::Done | Outcome::Skipped(_) => None,
    });
    failed.collect::<Vec<_>>().join(", ")
}
