//! martlet-vm.
