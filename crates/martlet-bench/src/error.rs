//! Why a measurement could not be made.

use martlet_vm::agent::AgentError;
use martlet_vm::qmp::QmpError;
use std::io;
use thiserror::Error;

/// A measurement could not be made.
#[derive(Debug, Error)]
pub enum BenchError {
    /// Files and processes.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// The stock QEMU refuses or is gone.
    #[error("the stock QEMU: {0}")]
    Qmp(#[from] QmpError),
    /// The guest in the stock QEMU does not answer.
    #[error("the guest in the stock QEMU: {0}")]
    Agent(#[from] AgentError),
    /// A store of our own, made for the measurement.
    #[error(transparent)]
    Store(#[from] martlet_store::StoreError),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl BenchError {
    /// For `map_err`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Could the same measurement succeed if it is made again?
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Other(_) => false,
            Self::Store(error) => error.is_retryable(),
            Self::Qmp(error) => error.is_retryable(),
            Self::Agent(error) => error.is_retryable(),
        }
    }
}
