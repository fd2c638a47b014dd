//! Real programs and real guests: daemon, keeper, QEMU and Debian, through the command line as a user has it.
//!
//! Needs root, QEMU and Debian's package archive, as `script/bootstrap` sees to. Guests are slow, so:
//! - bases and booted machines are made once ([`Fixture`]), and tests start from their checkpoints;
//! - at most two tests run at a time ([`Daemon::new`] waits for its turn);
//! - a test that takes longer than its deadline ends the whole program with its daemons' logs, so that nothing hangs.

mod allocators;
mod bad_input;
mod bench;
mod clones;
mod commands;
mod cycles;
mod daemon;
mod deadline;
mod documents;
mod every_step;
mod family;
mod fixture;
mod flock;
mod handover;
mod hosts;
mod imports;
mod inside;
mod life;
mod lines;
mod moves;
mod multicast;
mod no_byte;
mod outbound;
mod pool;
mod pressure;
mod recovery;
mod remotes;
mod slurm;
mod stress;
mod tap;

pub use daemon::Daemon;
pub use fixture::Fixture;
