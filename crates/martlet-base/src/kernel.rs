//! The guest kernel: Debian's cloud kernel, fetched without being installed, and kept in the cache directory.
//!
//! ```text
//! CACHE/kernel/SUITE/RELEASE/vmlinux                the ELF kernel, or the bzImage where it holds none
//!                           /lib/modules/RELEASE/   with modules.dep
//! ```
//!
//! A private apt root with lists of its own is used, so that the host's packages, sources and suite do not matter and
//! nothing of the host changes; the host's apt configuration (proxies) still applies. A kernel is looked up again once
//! its directory is a month old; when the archive cannot be reached the cached one goes on serving.

use crate::command::Run;
use crate::debian::KEYRING;
use crate::error::IoContext;
use crate::mirror::Mirrors;
use crate::modules::Modules;
use crate::scratch::{Scratch, is_scratch};
use crate::{BaseError, Job, vmlinux};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where they are in the cache directory.
pub(crate) const KERNELS: &str = "kernel";
const META_PACKAGE: &str = "linux-image-cloud-amd64";
const FRESH: Duration = Duration::from_secs(30 * 24 * 3600);

/// A kernel guests can boot.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Kernel image for QEMU's `-kernel`.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub modules_dir: PathBuf,
    /// As `uname -r` says it.
    pub release: String,
}

/// The guest kernel of `suite`: from the cache, else from the Debian archive.
pub fn guest_kernel(suite: &str, job: &Job) -> Result<Kernel, BaseError> {
    crate::package::check_suite(suite)?;
    let home = job.tools.cache_dir.join(KERNELS).join(suite);
    let cached = newest(&home);
    if let Some((kernel, age)) = &cached
        && *age < FRESH
    {
        return Ok(kernel.clone());
    }
    match (fetch(suite, &home, job), cached) {
        (Err(error), Some((kernel, _))) if error.is_retryable() => {
            tracing::warn!(%error, release = kernel.release, "the cached guest kernel goes on serving");
            Ok(kernel)
        }
        (fetched, _) => fetched,
    }
}

/// The kernel fetched last, and how long ago.
fn newest(home: &Path) -> Option<(Kernel, Duration)> {
    std::fs::read_dir(home)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let release = entry
                .file_name()
                .into_string()
                .ok()
                .filter(|name| !is_scratch(name.as_ref()))?;
            let age = entry
                .metadata()
                .ok()?
                .modified()
                .ok()?
                .elapsed()
                .unwrap_or_default();
            Some((kernel_in(&entry.path(), release)?, age))
        })
        .min_by_key(|(_, age)| *age)
}

fn kernel_in(dir: &Path, release: String) -> Option<Kernel> {
    let kernel = Kernel {
        image: dir.join("vmlinux"),
        modules_dir: dir.join("lib/modules").join(&release),
        release,
    };
    (kernel.image.is_file() && kernel.modules_dir.join("modules.dep").is_file()).then_some(kernel)
}

fn fetch(suite: &str, home: &Path, job: &Job) -> Result<Kernel, BaseError> {
    job.stage(format!("looking up the guest kernel of Debian {suite}"));
    std::fs::create_dir_all(home).during("create", home)?;
    let scratch = Scratch::new(home)?;
    let apt = Apt::new(scratch.path(), suite)?;
    apt.get().arg("update").output(job).map_err(download_failed)?;
    let shown = apt
        .run("apt-cache")
        .args(["show", "--no-all-versions", META_PACKAGE])
        .output(job)?;
    let package = dependency(&String::from_utf8_lossy(&shown)).ok_or_else(|| {
        BaseError::Invalid(format!(
            "Debian {suite} has no {META_PACKAGE} package to take a guest kernel from"
        ))
    })?;
    let release = package["linux-image-".len()..].to_owned();
    let target = home.join(&release);
    if let Some(kernel) = kernel_in(&target, release.clone()) {
        // Still the newest: good for another month.
        std::fs::File::open(&target)
            .and_then(|dir| dir.set_modified(std::time::SystemTime::now()))
            .during("touch", &target)?;
        return Ok(kernel);
    }
    job.stage(format!("downloading {package}"));
    let (downloads, tree) = (scratch.path().join("downloads"), scratch.path().join("tree"));
    std::fs::create_dir(&downloads).during("create", &downloads)?;
    apt.get()
        .args(["download", &package])
        .current_dir(&downloads)
        .output(job)
        .map_err(download_failed)?;
    let archive = std::fs::read_dir(&downloads)
        .during("list", &downloads)?
        .flatten()
        .next();
    let archive = archive.ok_or_else(|| BaseError::Download {
        last_words: format!("{package} did not arrive"),
    })?;
    job.stage(format!("unpacking {package}"));
    Run::new("dpkg-deb", "dpkg")
        .arg("-x")
        .arg(archive.path())
        .arg(&tree)
        .output(job)?;
    let kernel_dir = scratch.path().join("kernel");
    arrange(&tree, &release, &kernel_dir, job)?;
    if let Err(error) = std::fs::rename(&kernel_dir, &target) {
        // Another build may have been faster; then its directory is as good as ours.
        if kernel_in(&target, release.clone()).is_none() {
            return Err(error).during("create", &target);
        }
    }
    kernel_in(&target, release).ok_or_else(|| BaseError::Invalid(format!("{package} does not hold a kernel")))
}

/// Puts what the package holds into the cache's layout.
fn arrange(tree: &Path, release: &str, to: &Path, job: &Job) -> Result<(), BaseError> {
    let modules = ["lib/modules", "usr/lib/modules"].map(|dir| tree.join(dir).join(release));
    let modules = modules.iter().find(|dir| dir.is_dir()).unwrap_or(&modules[0]);
    let target = to.join("lib/modules");
    std::fs::create_dir_all(&target).during("create", &target)?;
    std::fs::rename(modules, target.join(release)).during("move", modules)?;
    Run::new("depmod", "kmod")
        .arg("-b")
        .arg(to)
        .arg(release)
        .output(job)?;
    let packed = tree.join("boot").join(format!("vmlinuz-{release}"));
    let bytes = std::fs::read(&packed).during("read", &packed)?;
    let image = to.join("vmlinux");
    std::fs::write(&image, vmlinux::extract(&bytes).unwrap_or(bytes)).during("write", &image)
}

fn download_failed(error: BaseError) -> BaseError {
    match error {
        BaseError::Tool { last_words, .. } => BaseError::Download { last_words },
        other => other,
    }
}

/// The kernel package that the meta package stands for.
fn dependency(shown: &str) -> Option<String> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let name = depends.split([',', '|']).find_map(|one| {
        one.split_whitespace()
            .next()
            .filter(|name| name.starts_with("linux-image-") && name.len() < 100)
    })?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    name.bytes().all(plain).then(|| name.to_owned())
}

/// A private apt root.
struct Apt {
    root: PathBuf,
}

impl Apt {
    fn new(scratch: &Path, suite: &str) -> Result<Self, BaseError> {
        let sources = Mirrors::of_host()?.sources(suite, KEYRING);
        let root = scratch.join("apt");
        for dir in [
            "etc/apt.conf.d",
            "etc/sources.list.d",
            "etc/preferences.d",
            "etc/trusted.gpg.d",
            "state/lists/partial",
            "cache/archives/partial",
        ] {
            let dir = root.join(dir);
            std::fs::create_dir_all(&dir).during("create", &dir)?;
        }
        for (name, content) in [("status", String::new()), ("etc/sources.list", sources)] {
            let path = root.join(name);
            std::fs::write(&path, content).during("write", &path)?;
        }
        Ok(Self { root })
    }

    fn get(&self) -> Run {
        self.run("apt-get").args(["-q", "-o", "Acquire::Retries=3"])
    }

    fn run(&self, tool: &str) -> Run {
        let root = self.root.display();
        let options = [
            format!("Dir={root}"),
            "Dir::State=state".into(),
            format!("Dir::State::status={root}/status"),
            "Dir::Cache=cache".into(),
            "Dir::Etc=etc".into(),
            "APT::Architecture=amd64".into(),
            "APT::Architectures=amd64".into(),
            "Acquire::Languages=none".into(),
            // Its own user could not write below our private directories.
            "APT::Sandbox::User=root".into(),
            "APT::Update::Error-Mode=any".into(),
        ];
        Run::new(tool, "apt").args(options.iter().flat_map(|option| ["-o", option.as_str()]))
    }
}

impl Kernel {
    pub(crate) fn modules(&self) -> Result<Modules, BaseError> {
        Modules::open(&self.modules_dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_names_its_kernel() {
        let shown =
            "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        assert_eq!(dependency(shown).unwrap(), "linux-image-6.1.0-56-cloud-amd64");
        let newer = "Depends: foo, linux-image-6.12.1+deb13-cloud-amd64 (= 1) | bar\n";
        assert_eq!(dependency(newer).unwrap(), "linux-image-6.12.1+deb13-cloud-amd64");
        for bad in [
            "",
            "Depends: libc6\n",
            "Depends: linux-image-../../etc\n",
            "Package: linux-image-x\n",
        ] {
            assert_eq!(dependency(bad), None, "{bad}");
        }
    }
}
