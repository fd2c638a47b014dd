//! What Martlet is measured against, and figures of both.
//!
//! ```text
//!  a machine of ours ──its command line──► Recipe ──► Stock: the same hardware and disk in a stock QEMU,
//!                                                            saved and restored QEMU's own way
//!  rounds, ours and theirs by turns ──► Figure: median, spread, ratio, conditions
//!                                  └──► Point ──► Plot ──► SVG
//!  what single steps cost ──► fork_model: the same on more hosts than there are
//! ```
//!
//! Both sides are measured in one run, by turns, because machines are noisy: a ratio survives what a duration does not.

pub mod archive;
mod error;
mod figure;
pub mod fork_model;
mod image_file;
pub mod interrupted;
pub mod many_hosts;
pub mod plot;
pub mod plots;
mod point;
pub mod roam;
mod stock;

pub use error::BenchError;
pub use figure::{Figure, Figures, Samples, median};
pub use image_file::ImageFile;
pub use martlet_vm::usage;
pub use point::{Point, Rounds};
pub use stock::{Change, Migration, Recipe, Restored, Stock};
