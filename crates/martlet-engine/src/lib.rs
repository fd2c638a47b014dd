//! engine
mod state;
