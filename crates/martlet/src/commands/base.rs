//! `martlet base …`

use super::Context;
use crate::cli::BaseCommand;
use crate::failure::{Failure, Outcome};
use crate::show;
use martlet_api::{BaseBuildRequest, BaseImportRequest, BaseInfo, InitKind};
use std::path::Path;

pub fn run(context: &Context, command: BaseCommand) -> Outcome {
    match command {
        BaseCommand::Build {
            name,
            packages,
            size,
            suite,
            init,
            tiny,
        } => {
            let init = if tiny { InitKind::Command } else { init.into() };
            let packages = packages
                .into_iter()
                .filter(|package| !package.is_empty())
                .collect();
            let request = BaseBuildRequest {
                name,
                packages,
                size_bytes: size,
                suite,
                init,
                tiny,
            };
            context.long("/v1/bases/build", &request, "building a base", made)
        }
        BaseCommand::Import {
            name,
            size,
            init,
            file,
        } => import(context, name, size, init.map(Into::into), &file),
        BaseCommand::Ls => context.get("/v1/bases", list),
        BaseCommand::Rm { force, names } => context.each(&names, |client, name| {
            client.delete(&format!("/v1/bases/{name}?force={force}"))?;
            if !context.quiet && !context.json {
                show::print(&format!("{name}\n"));
            }
            Ok(())
        }),
        BaseCommand::Inspect { name } => context.get(&format!("/v1/bases/{name}"), inspect),
    }
}

fn import(
    context: &Context,
    name: Option<String>,
    size_bytes: Option<u64>,
    init: Option<InitKind>,
    file: &Path,
) -> Outcome {
    let path = std::fs::canonicalize(file)
        .map_err(|error| Failure::io(format!("cannot read {}", file.display()), error))?;
    let name = name.unwrap_or_else(|| name_of(&path));
    let path = path.to_string_lossy().into_owned();
    let request = BaseImportRequest {
        name,
        path,
        size_bytes,
        init,
    };
    context.long("/v1/bases/import", &request, "importing", made)
}

/// A name made of a file's: `Debian 12.qcow2` becomes `debian-12`.
fn name_of(path: &Path) -> String {
    let stem = path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    let plain = |c: char| {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            c
        } else {
            '-'
        }
    };
    let name: String = stem
        .chars()
        .map(plain)
        .take(martlet_api::names::NAME_MAX)
        .collect();
    match name.trim_matches('-') {
        "" => "imported".into(),
        name => name.into(),
    }
}

fn made(base: BaseInfo) -> String {
    let BaseInfo {
        name,
        disk_bytes,
        used_bytes,
        stored_bytes,
        ..
    } = base;
    let (disk, used, stored) = (
        show::size(disk_bytes),
        show::size(used_bytes),
        show::size(stored_bytes),
    );
    format!("base {name}: disk {disk}, {used} used, {stored} stored\nrun it: martlet run {name}\n")
}

fn list(bases: Vec<BaseInfo>) -> String {
    show::table(
        ["NAME", "DISK", "USED", "STORED", "INIT", "ORIGIN", "CREATED"],
        bases.into_iter().map(|base| {
            let init = init(base.init).to_string();
            let sizes = [base.disk_bytes, base.used_bytes, base.stored_bytes].map(show::size);
            let [disk, used, stored] = sizes;
            [
                base.name,
                disk,
                used,
                stored,
                init,
                base.origin,
                show::age(base.created_unix_ms),
            ]
        }),
    )
}

fn inspect(base: BaseInfo) -> String {
    show::pairs([
        ("name", base.name),
        ("id", base.id),
        ("created", show::age(base.created_unix_ms)),
        ("disk", show::size(base.disk_bytes)),
        ("used", show::size(base.used_bytes)),
        ("stored", show::size(base.stored_bytes)),
        ("init", init(base.init).into()),
        ("origin", base.origin),
        ("kernel", base.kernel.unwrap_or_else(|| show::NONE.into())),
        ("command", show::or_none(&base.cmd.join(" "))),
        ("environment", show::or_none(&base.env.join(" "))),
    ])
}

pub fn init(init: InitKind) -> &'static str {
    match init {
        InitKind::Systemd => "systemd",
        InitKind::Command => "command",
        InitKind::Firmware => "firmware",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_valid() {
        for (file, name) in [
            ("/x/Debian 12.qcow2", "debian-12"),
            ("/ü.img", "imported"),
            ("/a.b.tar", "a-b"),
        ] {
            assert_eq!(name_of(Path::new(file)), name);
            martlet_api::names::check_name(name).unwrap();
        }
        martlet_api::names::check_name(&name_of(Path::new(&"x".repeat(300)))).unwrap();
    }
}
