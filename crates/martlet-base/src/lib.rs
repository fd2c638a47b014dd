//! martlet-base.
