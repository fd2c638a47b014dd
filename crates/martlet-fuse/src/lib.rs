//! martlet-fuse.
