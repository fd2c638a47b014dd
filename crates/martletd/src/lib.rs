//! The host daemon: HTTP over a unix socket in front of [`control::Control`].

pub mod control;
pub mod metrics;
