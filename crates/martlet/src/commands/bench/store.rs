//! The store: single pages and whole images out of it, and two boots into it.

use super::{Bench, Peer, failed, no_qemu};
use crate::commands::understood;
use crate::failure::{Failure, Outcome};
use martlet_api::*;
use martlet_bench::{ImageFile, Samples, archive};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Pages read one by one in a round.
const SINGLE_PAGES: usize = 100;

impl Bench<'_> {
    /// Two machines that were booted from the same base, one after the other, and their images.
    pub(super) fn store(&mut self, peer: &Peer) -> Outcome {
        self.step("booting twice");
        let copies = ["first", "second"].map(|name| peer.recipe.file(name));
        let mut images = Vec::new();
        for (number, copy) in copies.iter().enumerate() {
            images.push(self.booted(number, copy)?);
        }

        let (mut size, mut time) = (Samples::new(), Samples::new());
        let mut decompressed = 0.0;
        for round in 0..self.rounds.min(3) {
            self.step("store");
            let place = |name: &str| -> Outcome<PathBuf> {
                let place = peer.recipe.file(&format!("{name}-{round}"));
                std::fs::create_dir(&place).map_err(|error| Failure::io("cannot make a directory", error))?;
                Ok(place)
            };
            let own = place("martlet")?;
            let ours = archive::ours(&copies, &own).map_err(failed)?;
            decompressed = archive::decompress_all(&own).map_err(failed)?;
            let casync = archive::casync(&copies, &place("casync")?).map_err(failed)?;
            let restic = archive::restic(&copies, &place("restic")?).map_err(failed)?;
            size.add(ours.size_bytes, casync.size_bytes.min(restic.size_bytes));
            time.add(ours.took_ms, casync.took_ms.min(restic.took_ms));
        }
        const BEST: &str = "the better of casync and restic";
        self.keep(&size, "store_second_boot_size", "bytes", BEST);
        self.keep(&time, "store_second_boot_time", "ms", BEST);

        let (mut fault, mut sequential) = (Samples::new(), Samples::new());
        for _ in 0..self.rounds {
            self.step("reading images");
            // The second image in between: more than the daemon keeps decompressed.
            images[1].read_in_order().map_err(failed)?;
            let (cold_ms, warm_ms) = images[0].read_single_pages(SINGLE_PAGES).map_err(failed)?;
            fault.add(cold_ms, warm_ms);
            sequential.add(images[0].read_in_order().map_err(failed)?, decompressed);
        }
        self.keep(
            &fault,
            "fault_cold_local",
            "ms",
            "the page again, the daemon having it decompressed",
        );
        self.keep(
            &sequential,
            "image_sequential",
            "bytes per second",
            "decompressing the packs of the same images in memory",
        );
        self.remove_made();
        Ok(())
    }

    /// Boots a machine, and starts it again from its checkpoint, so that its image is there as a file.
    fn booted(&mut self, number: usize, copy: &Path) -> Outcome<ImageFile> {
        let name = format!("{}-image-{number}", self.machine);
        self.start(&name, self.memory_bytes)?;
        let verb = |verb: &str| self.act(&format!("/v1/machines/{name}/{verb}"), &json!({}));
        let report: CheckpointReport = understood(verb("suspend")?)?;
        let machine: MachineInfo = understood(verb("resume")?)?;
        ImageFile::open(machine.pid.ok_or_else(no_qemu)?, &report.snapshot, copy).map_err(failed)
    }
}
