//! `martlet realm …`.

use super::Context;
use super::remote::read_secret;
use crate::cli::RealmCommand;
use crate::failure::Outcome;
use crate::show;
use martlet_api::{RealmCreateRequest, RealmInfo, RealmInvitation, RealmJoinRequest};

pub fn run(context: &Context, command: RealmCommand) -> Outcome {
    match command {
        RealmCommand::Create { name } => context.post("/v1/realms", &RealmCreateRequest { name }, one),
        RealmCommand::Share { name } => context.post(
            &format!("/v1/realms/{name}/share"),
            &(),
            |shared: RealmInvitation| {
                if !context.quiet {
                    eprintln!("who sees this line can read and write all that realm {name} keeps");
                }
                format!("{}\n", shared.invitation)
            },
        ),
        RealmCommand::Join { name, file } => {
            let invitation = read_secret(&file)?;
            context.post("/v1/realms/join", &RealmJoinRequest { invitation, name }, one)
        }
        RealmCommand::Rotate { name } => context.post(&format!("/v1/realms/{name}/rotate"), &(), one),
        RealmCommand::Ls => context.get("/v1/realms", |realms: Vec<RealmInfo>| {
            show::table(
                ["NAME", "ID", "SECRETS", "REMOTES"],
                realms.into_iter().map(|realm| {
                    let remotes = realm.remotes.join(", ");
                    [realm.name, realm.id, realm.secrets.to_string(), remotes]
                }),
            )
        }),
    }
}

fn one(realm: RealmInfo) -> String {
    let secrets = if realm.secrets == 1 { "secret" } else { "secrets" };
    format!(
        "realm {}: {} {secrets}, the newest {}\n",
        realm.name, realm.secrets, realm.id
    )
}
