//! martlet-vm.

pub mod agent;
