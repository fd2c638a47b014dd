//! martlet-disk.
