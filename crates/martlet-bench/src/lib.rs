//! What Martlet is measured against, and figures of both.
//!
//! ```text
//!  a machine of ours ──its command line──► Recipe ──► Stock: the same hardware and disk in a stock QEMU,
//!                                                            saved and restored QEMU's own way
//!  rounds, ours and theirs by turns ──► Figure: median, spread, ratio, conditions
//! ```
//!
//! Both sides are measured in one run, by turns, because machines are noisy: a ratio survives what a duration does not.

pub mod archive;
mod error;
mod figure;
mod image_file;
pub mod interrupted;
pub mod roam;
mod stock;

pub use error::BenchError;
pub use figure::{Figure, Figures, Samples};
pub use image_file::ImageFile;
pub use martlet_vm::usage;
pub use stock::{Change, Migration, Recipe, Restored, Stock};
