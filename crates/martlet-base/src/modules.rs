//! Kernel modules: which file a name means, what must be loaded before it, and its plain bytes.
//!
//! `modules.dep` (made by depmod) names for every module file the files it needs; `modules.builtin` names what is
//! compiled into the kernel and needs no loading.

use crate::command::Run;
use crate::error::IoContext;
use crate::{BaseError, Job};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// No module is larger; a compressed one that expands beyond it is not a module.
const MODULE_LIMIT_BYTES: u64 = 64 << 20;

/// The modules of one kernel.
#[derive(Debug)]
pub(crate) struct Modules {
    /// `lib/modules/RELEASE`.
    dir: PathBuf,
    /// Name to its file.
    files: BTreeMap<String, String>,
    /// File to the files it needs.
    needs: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
}

impl Modules {
    pub(crate) fn open(dir: &Path) -> Result<Self, BaseError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).during("read", &path)
        };
        Ok(Self::parse(dir, &read("modules.dep")?, &read("modules.builtin")?))
    }

    fn parse(dir: &Path, dep: &str, builtin: &str) -> Self {
        let needs: BTreeMap<String, Vec<String>> = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(file, needs)| {
                (
                    file.to_owned(),
                    needs.split_whitespace().map(str::to_owned).collect(),
                )
            })
            .collect();
        let files = needs.keys().map(|file| (name(file), file.clone())).collect();
        Self {
            dir: dir.to_owned(),
            files,
            needs,
            builtin: builtin.lines().map(name).collect(),
        }
    }

    /// Files to load, each after everything it needs. Built-in names need none; a name that this kernel does not
    /// have at all is an error if it is among `required` and left out if it is among `optional`.
    pub(crate) fn load_order(&self, required: &[&str], optional: &[&str]) -> Result<Vec<String>, BaseError> {
        let mut order = Vec::new();
        for (wanted, required) in required
            .iter()
            .map(|w| (w, true))
            .chain(optional.iter().map(|w| (w, false)))
        {
            match self.files.get(&name(wanted)) {
                Some(file) => self.visit(file, &mut order, &mut BTreeSet::new()),
                None if required && !self.builtin.contains(&name(wanted)) => {
                    return Err(BaseError::Invalid(format!(
                        "the kernel in {} has no module {wanted}, which every guest needs",
                        self.dir.display()
                    )));
                }
                None => {}
            }
        }
        Ok(order)
    }

    fn visit(&self, file: &str, order: &mut Vec<String>, under_way: &mut BTreeSet<String>) {
        // A file already under way needs itself: depmod refuses such cycles, so following them would gain nothing.
        if order.iter().any(|seen| seen == file) || !under_way.insert(file.to_owned()) {
            return;
        }
        for need in self.needs.get(file).into_iter().flatten() {
            self.visit(need, order, under_way);
        }
        order.push(file.to_owned());
    }

    /// The module's plain bytes, as `insmod` wants them.
    pub(crate) fn read(&self, file: &str, job: &Job) -> Result<Vec<u8>, BaseError> {
        let path = self.dir.join(file);
        let stored = || std::fs::File::open(&path).during("open", &path);
        let limited = |reader: &mut dyn std::io::Read| {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::Read::take(reader, MODULE_LIMIT_BYTES), &mut bytes)
                .map(|_| bytes)
                .during("read", &path)
        };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => Run::new("xz", "xz-utils")
                .args(["-dc", "--"])
                .arg(&path)
                .output(job),
            Some("gz") => limited(&mut flate2::read::GzDecoder::new(stored()?)),
            Some("zst") => limited(&mut zstd::Decoder::new(stored()?).during("read", &path)?),
            _ => limited(&mut stored()?),
        }
    }
}

/// The kernel takes `-` and `_` in a module's name for the same.
pub(crate) fn name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    const DEP: &str = "kernel/drivers/virtio/virtio.ko:\n\
        kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko\n\
        kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko\n\
        kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko\n\
        kernel/a.ko: kernel/b.ko\nkernel/b.ko: kernel/a.ko\n";

    fn modules() -> Modules {
        Modules::parse(
            Path::new("/m"),
            DEP,
            "kernel/fs/ext4/ext4.ko\nkernel/net/packet/af_packet.ko\n",
        )
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let order = modules()
            .load_order(&["virtio_pci", "virtio_rng", "ext4"], &["vmgenid"])
            .unwrap();
        let names: Vec<String> = order.iter().map(|file| name(file)).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_pci", "virtio_rng"]);
    }

    #[test]
    fn a_required_module_must_exist() {
        assert!(
            modules()
                .load_order(&["virtio_blk"], &[])
                .unwrap_err()
                .to_string()
                .contains("virtio_blk")
        );
    }

    #[test]
    fn a_cycle_ends() {
        assert_eq!(
            modules().load_order(&["a"], &[]).unwrap(),
            ["kernel/b.ko", "kernel/a.ko"]
        );
    }

    #[test]
    fn compressed_modules_are_read_plain() {
        let bench = Bench::new();
        let dir = bench.path();
        let plain = b"\x7fELF and more".repeat(100);
        std::fs::write(dir.join("p.ko"), &plain).unwrap();
        std::fs::write(dir.join("z.ko.zst"), zstd::encode_all(&plain[..], 1).unwrap()).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, &plain).unwrap();
        std::fs::write(dir.join("g.ko.gz"), gz.finish().unwrap()).unwrap();
        std::fs::copy(dir.join("p.ko"), dir.join("x.ko")).unwrap();
        assert!(
            std::process::Command::new("xz")
                .arg(dir.join("x.ko"))
                .status()
                .unwrap()
                .success()
        );
        let modules = Modules::parse(dir, "", "");
        for file in ["p.ko", "z.ko.zst", "g.ko.gz", "x.ko.xz"] {
            assert!(modules.read(file, &bench.job()).unwrap() == plain, "{file}");
        }
    }
}
