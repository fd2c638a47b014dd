//! martlet-pager.
