//! Debian packages made a base: mmdebstrap installs them into a directory, which is then given what a machine needs and
//! stripped of what must not be the same in two machines.

use crate::boot::{Boot, ROOT_DISK};
use crate::command::Run;
use crate::error::IoContext;
use crate::ext4::{self, Ext4};
use crate::mirror::Mirrors;
use crate::package::{check_packages, check_suite};
use crate::scratch::{Scratch, Unfinished};
use crate::{Artifacts, BaseError, Job, guest_modules, job};
use martlet_api::InitKind;
use std::path::Path;

/// A base from Debian packages.
#[derive(Debug, Clone)]
pub struct DebianRecipe {
    /// `bookworm`, `trixie`, …
    pub suite: String,
    /// Packages beyond the minimal system.
    pub packages: Vec<String>,
    /// Size of the root disk; from the content when absent.
    pub size_bytes: Option<u64>,
    /// `Systemd` or `Command`.
    pub init: InitKind,
}

pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What people and our agent expect of any system.
const BASIC: [&str; 5] = ["iproute2", "kmod", "login", "netbase", "procps"];
const SYSTEMD: [&str; 3] = ["dbus", "systemd-sysv", "udev"];

/// Timers that would run in every clone at once, as soon as its clock is stepped; then what our machines have no use
/// for and their boot would wait for.
const MASKED: [&str; 10] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "getty@tty1.service",
    "dev-hugepages.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-pstore.service",
];

/// Builds a base from Debian packages.
pub fn build_debian(recipe: &DebianRecipe, job: &Job) -> Result<Artifacts, BaseError> {
    check_suite(&recipe.suite)?;
    check_packages(&recipe.packages)?;
    ext4::check_size(recipe.size_bytes)?;
    if recipe.init == InitKind::Firmware {
        return Err(BaseError::Invalid(
            "a base built from packages boots our kernel: its init is `systemd` or `command`".into(),
        ));
    }
    job::need_root("installing packages")?;
    if !Path::new(KEYRING).exists() {
        return Err(BaseError::MissingTool {
            tool: KEYRING.into(),
            package: "debian-archive-keyring",
        });
    }
    let boot = Boot::new(&recipe.suite, job)?;
    let scratch = Scratch::new(job.work_dir)?;
    let tree = scratch.path().join("tree");
    install(recipe, &tree, &scratch, job)?;
    slim(&tree)?;
    furnish(&tree, recipe.init)?;
    guest_modules::install(&boot.kernel, &tree, job)?;
    let mut unfinished = Unfinished::new();
    let root_disk = unfinished.add(job.work_dir.join("root.img"));
    ext4::make(
        &tree,
        &root_disk,
        &Ext4 {
            size_bytes: recipe.size_bytes,
            journal: true,
        },
        job,
    )?;
    drop(scratch);
    let mut origin = format!("debian {}", recipe.suite);
    if !recipe.packages.is_empty() {
        origin += &format!(" + {}", recipe.packages.join(" "));
    }
    let artifacts = boot.artifacts(root_disk, ROOT_DISK, recipe.init, origin, &mut unfinished, job)?;
    unfinished.keep();
    Ok(artifacts)
}

fn install(recipe: &DebianRecipe, tree: &Path, scratch: &Scratch, job: &Job) -> Result<(), BaseError> {
    job.stage(format!("installing Debian {} packages", recipe.suite));
    let systemd = if recipe.init == InitKind::Systemd {
        &SYSTEMD[..]
    } else {
        &[]
    };
    let chosen = recipe.packages.iter().map(String::as_str);
    let packages: Vec<&str> = BASIC
        .iter()
        .copied()
        .chain(systemd.iter().copied())
        .chain(chosen)
        .collect();
    let sources = Mirrors::of_host()?.sources(&recipe.suite, KEYRING);
    let run = Run::new("mmdebstrap", "mmdebstrap")
        .env("TMPDIR", scratch.path())
        .args([
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            "--architectures=amd64",
        ])
        .arg(format!("--include={}", packages.join(",")))
        .arg("--aptopt=Acquire::Languages \"none\"")
        .arg("--aptopt=Acquire::Retries \"3\"")
        // A build that dies is thrown away whole, so nothing need be synchronised on the way.
        .arg("--dpkgopt=force-unsafe-io")
        .args(["--", &recipe.suite])
        .arg(tree)
        .args(sources.lines());
    let told = run.watched(job, &mut |line| {
        if let Some(step) = line.strip_prefix("I: ").filter(|step| {
            step.starts_with("installing")
                || step.starts_with("downloading")
                || step.starts_with("extracting")
        }) {
            job.stage(step.trim_end_matches('.'));
        }
    });
    told.map(drop).map_err(|error| explain(error, &recipe.suite))
}

/// Says which of the ways in which installing packages fails it was.
fn explain(error: BaseError, suite: &str) -> BaseError {
    let BaseError::Tool { last_words, .. } = &error else {
        return error;
    };
    if let Some(name) = last_words
        .split("Unable to locate package ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
    {
        return BaseError::Invalid(format!("Debian {suite} has no package {name}"));
    }
    if last_words.contains("has no installation candidate") {
        return BaseError::Invalid(format!(
            "a package is not available in Debian {suite}: {last_words}"
        ));
    }
    if [
        "Failed to fetch",
        "Could not resolve",
        "Temporary failure",
        "Unable to connect",
        "does not have a Release file",
    ]
    .iter()
    .any(|sign| last_words.contains(sign))
    {
        return BaseError::Download {
            last_words: last_words.clone(),
        };
    }
    error
}

/// Takes out what nobody reads in a machine. Directories stay, since packages installed later link into them. (Having dpkg
/// leave these files out would send every package through a filter, which takes longer than all the rest.)
fn slim(tree: &Path) -> Result<(), BaseError> {
    let mut left: Vec<_> = ["doc", "info", "locale", "man"]
        .map(|dir| tree.join("usr/share").join(dir))
        .into();
    left.retain(|dir| dir.is_dir());
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).during("list", &dir)? {
            let entry = entry.during("list", &dir)?;
            let path = entry.path();
            match entry.file_type().during("look at", &path)?.is_dir() {
                true => left.push(path),
                // Licences ask for theirs to stay.
                false if entry.file_name() == "copyright" => {}
                false => std::fs::remove_file(&path).during("remove", &path)?,
            }
        }
    }
    Ok(())
}

/// Makes the tree a machine's: names, mounts, a console; and takes out what identifies one.
fn furnish(tree: &Path, init: InitKind) -> Result<(), BaseError> {
    let write = |name: &str, content: &str| {
        let path = tree.join(name);
        let parent = path.parent().expect("the name has a directory");
        std::fs::create_dir_all(parent).during("create", parent)?;
        // Packages leave links here (resolv.conf); the file itself is meant.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, content).during("write", &path)
    };
    write("etc/hostname", "martlet\n")?;
    write(
        "etc/hosts",
        "127.0.0.1 localhost\n127.0.1.1 martlet\n::1 localhost ip6-localhost ip6-loopback\n",
    )?;
    // The agent has mounted the root writable; naming it here would only have it mounted again.
    write("etc/fstab", "# The root is mounted by the boot initramfs.\n")?;
    // For the asking, not because the processor could: loading it takes seconds under emulation.
    write(
        "etc/modprobe.d/martlet.conf",
        "blacklist kvm_amd\nblacklist kvm_intel\n",
    )?;
    write(
        "etc/resolv.conf",
        "# Written by the agent when the machine may reach the outside.\n",
    )?;
    // Empty means: first boot, make one. Absent would make systemd ask on the console.
    write("etc/machine-id", "")?;
    for name in [
        "var/lib/dbus/machine-id",
        "var/lib/systemd/random-seed",
        "var/lib/systemd/credential.secret",
    ] {
        let _ = std::fs::remove_file(tree.join(name));
    }
    if init == InitKind::Systemd {
        furnish_systemd(tree, &write)?;
    }
    Ok(())
}

fn furnish_systemd(
    tree: &Path,
    write: &dyn Fn(&str, &str) -> Result<(), BaseError>,
) -> Result<(), BaseError> {
    let units = tree.join("etc/systemd/system");
    // Root has no password: nobody can log in with one, and the console, which is the host's, needs none.
    write(
        "etc/systemd/system/serial-getty@ttyS0.service.d/martlet.conf",
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 - $TERM\n",
    )?;
    for unit in MASKED {
        link("/dev/null", &units.join(unit))?;
    }
    link(
        "/lib/systemd/system/multi-user.target",
        &units.join("default.target"),
    )?;
    if tree.join("etc/ssh/sshd_config").exists() {
        for kind in ["rsa", "ecdsa", "ed25519"] {
            for name in [
                format!("etc/ssh/ssh_host_{kind}_key"),
                format!("etc/ssh/ssh_host_{kind}_key.pub"),
            ] {
                let _ = std::fs::remove_file(tree.join(name));
            }
        }
        write(
            "etc/systemd/system/martlet-ssh-keys.service",
            "[Unit]\nDescription=Make this machine's SSH host keys\nBefore=ssh.service\n\
             ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n\n\
             [Service]\nType=oneshot\nExecStart=/usr/bin/ssh-keygen -A\n",
        )?;
        let wants = units.join("multi-user.target.wants");
        std::fs::create_dir_all(&wants).during("create", &wants)?;
        link(
            "/etc/systemd/system/martlet-ssh-keys.service",
            &wants.join("martlet-ssh-keys.service"),
        )?;
    }
    Ok(())
}

fn link(target: &str, at: &Path) -> Result<(), BaseError> {
    let _ = std::fs::remove_file(at);
    std::os::unix::fs::symlink(target, at).during("link", at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    fn recipe() -> DebianRecipe {
        DebianRecipe {
            suite: "bookworm".into(),
            packages: vec![],
            size_bytes: None,
            init: InitKind::Systemd,
        }
    }

    #[test]
    fn bad_recipes_are_refused_at_once() {
        let bench = Bench::new();
        let bad = [
            DebianRecipe {
                suite: "../etc".into(),
                ..recipe()
            },
            DebianRecipe {
                packages: vec!["--setup-hook=reboot".into()],
                ..recipe()
            },
            DebianRecipe {
                size_bytes: Some(0),
                ..recipe()
            },
            DebianRecipe {
                size_bytes: Some(u64::MAX),
                ..recipe()
            },
            DebianRecipe {
                init: InitKind::Firmware,
                ..recipe()
            },
        ];
        for recipe in bad {
            let error = build_debian(&recipe, &bench.job()).unwrap_err();
            assert!(matches!(error, BaseError::Invalid(_)), "{error}");
        }
        assert_eq!(std::fs::read_dir(bench.path()).unwrap().count(), 0);
    }

    #[test]
    fn failures_say_which_they_are() {
        let tool = |last_words: &str| BaseError::Tool {
            tool: "mmdebstrap".into(),
            status: "exit status: 25".into(),
            last_words: last_words.into(),
        };
        let missing = explain(
            tool("E: Unable to locate package nosuch\nE: apt-get failed"),
            "bookworm",
        );
        assert_eq!(missing.to_string(), "Debian bookworm has no package nosuch");
        assert!(explain(tool("E: Failed to fetch http://x"), "bookworm").is_retryable());
        assert!(matches!(
            explain(tool("E: setup failed"), "bookworm"),
            BaseError::Tool { .. }
        ));
    }

    #[test]
    fn documentation_goes_and_licences_stay() {
        let bench = Bench::new();
        let share = bench.path().join("usr/share");
        for name in [
            "doc/a/copyright",
            "doc/a/changelog.gz",
            "man/de/man1/a.1",
            "dict/words",
        ] {
            std::fs::create_dir_all(share.join(name).parent().unwrap()).unwrap();
            std::fs::write(share.join(name), "x").unwrap();
        }
        slim(bench.path()).unwrap();
        let left = [
            "doc/a/copyright",
            "doc/a/changelog.gz",
            "man/de/man1/a.1",
            "man/de/man1",
            "dict/words",
        ]
        .map(|name| share.join(name).exists());
        assert_eq!(left, [true, false, false, true, true]);
    }

    #[test]
    fn a_furnished_tree_has_no_identity() {
        let bench = Bench::new();
        let tree = bench.path();
        for (name, content) in [
            ("etc/ssh/sshd_config", ""),
            ("etc/ssh/ssh_host_rsa_key", "secret"),
            ("etc/machine-id", "0123\n"),
        ] {
            std::fs::create_dir_all(tree.join(name).parent().unwrap()).unwrap();
            std::fs::write(tree.join(name), content).unwrap();
        }
        furnish(tree, InitKind::Systemd).unwrap();
        assert_eq!(std::fs::read(tree.join("etc/machine-id")).unwrap(), b"");
        assert!(!tree.join("etc/ssh/ssh_host_rsa_key").exists());
        assert_eq!(
            std::fs::read_link(tree.join("etc/systemd/system/apt-daily.timer")).unwrap(),
            Path::new("/dev/null")
        );
    }
}
