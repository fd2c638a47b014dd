//! martlet-store.
