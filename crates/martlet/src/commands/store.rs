//! The store: space, garbage, damage.

use super::{Context, understood};
use crate::failure::{Failure, Outcome};
use crate::show;
use martlet_api::*;
use std::path::PathBuf;

/// Exit status when something is damaged and not repaired.
const DAMAGED: u8 = 6;

pub fn df(context: &Context) -> Outcome {
    context.get("/v1/store/usage", |usage: StoreUsage| {
        let saved = match usage.pack_bytes {
            0 => String::new(),
            packs => format!(
                " ({:.1} times what the packs take)",
                usage.referenced_bytes as f64 / packs as f64
            ),
        };
        show::pairs([
            (
                "snapshots as plain files",
                show::size(usage.referenced_bytes) + &saved,
            ),
            ("content, each once", show::size(usage.content_bytes)),
            (
                "packs",
                format!(
                    "{} in {} packs, {} frames",
                    show::size(usage.pack_bytes),
                    usage.packs,
                    usage.frames
                ),
            ),
            (
                "garbage",
                format!("{} that gc frees", show::size(usage.garbage_bytes)),
            ),
            ("index", show::size(usage.index_bytes)),
            ("layers of machines", show::size(usage.layer_bytes)),
            ("free", show::size(usage.free_bytes)),
            ("started ahead", show::pool(&usage.pool)),
        ])
    })
}

pub fn gc(context: &Context, dry_run: bool) -> Outcome {
    context.long(
        "/v1/store/gc",
        &GcRequest { dry_run },
        "collecting garbage",
        |report: GcReport| {
            let (would, frees) = if report.dry_run {
                ("would free", "would be")
            } else {
                ("freed", "were")
            };
            format!(
                "{would} {} ({} frames); {} packs {frees} deleted, {} rewritten; {} kept\n",
                show::size(report.freed_bytes),
                report.frames_freed,
                report.packs_deleted,
                report.packs_rewritten,
                show::size(report.kept_bytes),
            )
        },
    )
}

pub fn verify(context: &Context, repair_from: &[PathBuf]) -> Outcome<u8> {
    let absolute = |dir: &PathBuf| {
        let path = std::path::absolute(dir).map_err(|error| Failure::io(dir.display().to_string(), error))?;
        Ok::<_, Failure>(path.to_string_lossy().into_owned())
    };
    let request = VerifyRequest {
        repair_from: repair_from.iter().map(absolute).collect::<Outcome<_>>()?,
    };
    let answer = context.operation("/v1/store/verify", &request, "verifying")?;
    let report: VerifyReport = understood(answer.clone())?;
    let broken = report.damaged.iter().filter(|frame| !frame.repaired).count();
    context.show(answer, verified)?;
    if broken == 0 {
        return Ok(0);
    }
    if !context.json {
        let problem = Problem::new(ProblemCode::Damaged, format!("{broken} frames are damaged")).remediation(
            "`martlet verify --repair-from DIR` with another state directory or a copy of a store, or remove the snapshots",
        );
        eprint!("{}", Failure::from(problem).text(false));
    }
    Ok(DAMAGED)
}

fn verified(report: VerifyReport) -> String {
    let mut text = String::new();
    if !report.damaged.is_empty() {
        let rows = report.damaged.iter().map(|frame| {
            let repaired = if frame.repaired { "yes" } else { "no" }.to_string();
            let hurts = show::or_none(&frame.hurts.join(" "));
            [
                show::short_id(&frame.id),
                frame.pack.clone(),
                frame.reason.clone(),
                repaired,
                hurts,
            ]
        });
        text += &show::table(["FRAME", "PACK", "DAMAGE", "REPAIRED", "HURTS"], rows);
    }
    let (checked, damaged) = (show::size(report.checked_bytes), report.damaged.len());
    let away = match report.away {
        0 => String::new(),
        away => format!(", {away} still to come (`martlet away`)"),
    };
    text + &format!(
        "checked {} frames ({checked}): {damaged} damaged, {} repaired{away}\n",
        report.checked, report.repaired
    )
}
