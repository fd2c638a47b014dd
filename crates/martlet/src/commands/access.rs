//! `martlet token …`, `login` and `logout`.

use super::Context;
use super::remote::read_secret;
use crate::cli::TokenCommand;
use crate::client::Client;
use crate::failure::Outcome;
use crate::logins::Logins;
use crate::show;
use martlet_api::{Problem, ProblemCode, TokenCreateRequest, TokenInfo, TokenLine};
use martlet_peer::AccessLine;
use serde_json::json;
use std::path::Path;

pub fn token(context: &Context, command: TokenCommand) -> Outcome {
    match command {
        TokenCommand::Create { name, role, days } => {
            let request = TokenCreateRequest {
                name,
                role: role.into(),
                days,
            };
            context.post("/v1/tokens", &request, |line: TokenLine| {
                if !context.quiet {
                    let (role, days) = (request.role, request.days);
                    eprintln!("who has this line can use this host, as role {role}, for {days} days");
                }
                format!("{}\n", line.token)
            })
        }
        TokenCommand::Ls => context.get("/v1/tokens", table),
        TokenCommand::Rm { names } => context.each(&names, |client, name| {
            client.delete(&format!("/v1/tokens/{name}"))?;
            said(context, name);
            Ok(())
        }),
    }
}

fn table(tokens: Vec<TokenInfo>) -> String {
    show::table(
        ["NAME", "ROLE", "CREATED", "GOOD", "LAST USED"],
        tokens.into_iter().map(|token| {
            [
                token.name,
                token.role.to_string(),
                show::age(token.created_unix_ms),
                show::until(token.expires_unix_ms),
                token.used_unix_ms.map_or_else(|| "never".into(), show::age),
            ]
        }),
    )
}

/// Tries a token, and keeps it.
pub fn login(context: &Context, line: &str, name: Option<String>) -> Outcome {
    let line = match line {
        "-" => read_secret(Path::new(line))?,
        line => line.to_owned(),
    };
    let access: AccessLine = line.parse().map_err(|error| {
        Problem::new(ProblemCode::InvalidArgument, "this is not the line of a token")
            .cause(error)
            .remediation("`martlet token create` on the host that is to be used prints one")
    })?;
    Client::to_host(access.clone())?.get("/version")?;
    let name = name.unwrap_or_else(|| access.host.clone());
    Logins::of_this_user().put(&name, &access)?;
    let AccessLine {
        host, address, port, ..
    } = access;
    if context.json {
        show::print(&format!(
            "{:#}\n",
            json!({ "name": name, "host": host, "address": format!("{address}:{port}") })
        ));
    } else if !context.quiet {
        show::print(&format!(
            "logged in at {host} ({address}:{port}): `martlet --host {name} ps`\n"
        ));
    }
    Ok(())
}

/// Forgets the tokens of hosts, which stay good there.
pub fn logout(context: &Context, names: &[String]) -> Outcome {
    let logins = Logins::of_this_user();
    for name in names {
        logins.remove(name)?;
        said(context, name);
    }
    Ok(())
}

fn said(context: &Context, name: &str) {
    if !context.quiet && !context.json {
        show::print(&format!("{name}\n"));
    }
}
