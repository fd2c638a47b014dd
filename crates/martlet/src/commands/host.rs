//! `martlet host …`.

use super::Context;
use super::remote::read_secret;
use crate::cli::HostCommand;
use crate::failure::Outcome;
use crate::show;
use martlet_api::{HostInfo, HostInitRequest, HostInvitationInfo, HostJoinRequest};
use serde_json::json;

pub fn run(context: &Context, command: HostCommand) -> Outcome {
    match command {
        HostCommand::Init { name, address } => {
            context.post("/v1/hosts/init", &HostInitRequest { name, address }, table)
        }
        HostCommand::Invite => context.post(
            "/v1/hosts/invite",
            &json!({}),
            |invitation: HostInvitationInfo| {
                if !context.quiet {
                    eprintln!("who has this line can be a host of the fleet: once, and for an hour");
                }
                format!("{}\n", invitation.invitation)
            },
        ),
        HostCommand::Join {
            invitation,
            name,
            address,
        } => {
            let request = HostJoinRequest {
                invitation: read_secret(&invitation)?,
                name,
                address,
            };
            context.post("/v1/hosts/join", &request, table)
        }
        HostCommand::Ls => context.get("/v1/hosts", table),
        HostCommand::Rm { names } => context.each(&names, |client, name| {
            client.delete(&format!("/v1/hosts/{name}"))?;
            if !context.quiet && !context.json {
                show::print(&format!("{name}\n"));
            }
            Ok(())
        }),
    }
}

fn table(hosts: Vec<HostInfo>) -> String {
    show::table(
        ["NAME", "ADDRESS", "ANSWERS"],
        hosts.into_iter().map(|host| {
            let answers = match (host.is_this, host.problem) {
                (true, _) => "this host".into(),
                (false, Some(problem)) => problem,
                (false, None) => "yes".into(),
            };
            [host.name, host.address, answers]
        }),
    )
}
