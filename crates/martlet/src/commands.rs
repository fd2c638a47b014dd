//! One function for each command: what it asks of the daemon, and how the answer is shown.

mod access;
mod base;
mod bench;
mod explain;
mod host;
mod line;
mod machine;
mod map;
mod moves;
mod realm;
mod remote;
mod service;
mod snapshot;
mod store;
mod timeline;

use crate::cli::{BenchCommand, Cli, Command, Global, ImagesCommand};
use crate::client::Client;
use crate::daemon::Daemon;
use crate::failure::{Failure, Outcome};
use crate::logins::Logins;
use crate::progress::Reporter;
use crate::{console, exec, files, show, terminal};
use martlet_api::{
    CarryRequest, CheckpointMethod, ExecRequest, MoveRequest, Problem, ProblemCode, PushRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Machines that one command ends at a time.
const AT_ONCE: usize = 8;

/// Runs a command; answers with its exit status.
pub fn run(cli: Cli) -> Outcome<u8> {
    let Cli {
        global: Global {
            json,
            quiet,
            socket,
            host,
        },
        command,
    } = cli;
    let context = Context {
        json,
        quiet,
        daemon: Daemon::find(socket),
        host,
    };
    if context.host.is_some() && matches!(command, Command::Doctor | Command::Daemon(_) | Command::Bench(_)) {
        return Err(Problem::new(
            ProblemCode::InvalidArgument,
            "this command is about the host that it runs on",
        )
        .remediation("leave out --host (MARTLET_HOST), or run it there")
        .into());
    }
    match command {
        Command::Exec(args) => return execute(&context, args),
        Command::Doctor => return service::doctor(&context),
        Command::Fork {
            source,
            count,
            prefix,
            allow_agentless,
            method,
            probe,
            on,
            timeout,
            keep,
            command,
        } => {
            let request = martlet_api::ForkRequest {
                on,
                command: (!command.is_empty()).then_some(martlet_api::CloneCommand {
                    argv: command,
                    timeout_s: timeout,
                    keep,
                }),
                count,
                prefix,
                allow_agentless,
                method: method.into(),
                probe: probe.probe,
            };
            return snapshot::fork(&context, &source, &request);
        }
        Command::Map {
            source,
            count,
            input,
            on,
            timeout,
            prefix,
            command,
        } => {
            let request = martlet_api::MapRequest {
                count,
                on,
                prefix,
                argv: command,
                inputs: map::inputs(&input)?,
                timeout_s: timeout,
                ..martlet_api::MapRequest::default()
            };
            return map::map(&context, &source, &request);
        }
        Command::Verify { repair_from } => return store::verify(&context, &repair_from),
        Command::Daemon(command) => return service::daemon(&context, command),
        Command::Base(command) => base::run(&context, command),
        Command::Run(args) => machine::run(&context, args),
        Command::Ps => machine::list(&context),
        Command::Inspect { name } => machine::inspect(&context, &name),
        Command::Cp { source, destination } => files::copy(&context.client()?, &source, &destination),
        Command::Console { name } => console::attach(&context.client()?, &name, quiet),
        Command::Logs { follow, name } => machine::logs(&context, &name, follow),
        Command::Stop { timeout, names } => machine::stop(&context, &names, timeout),
        Command::Kill { names } => machine::kill(&context, &names),
        Command::Start { names } => machine::start(&context, &names),
        Command::Rm { force, names } => machine::remove(&context, &names, force),
        Command::Rename { name, new } => machine::rename(&context, &name, &new),
        Command::Top { once } => machine::top(&context, once),
        Command::Checkpoint { args, method } => {
            snapshot::checkpoint(&context, args, method.into(), "checkpoint")
        }
        Command::Suspend { args, line } => {
            line::begin(&context, &args.name, line)?;
            snapshot::checkpoint(&context, args, CheckpointMethod::Auto, "suspend")
        }
        Command::Resume {
            on: Some(host), name, ..
        } => moves::resume_on(&context, &name, host),
        Command::Resume {
            from, probe, name, ..
        } => line::resume(&context, from, &name, probe.probe),
        Command::Move { tap, name, to } => moves::move_to(&context, &name, MoveRequest { host: to, tap }),
        Command::Publish { every, line, name } => line::publish(&context, &name, line, every),
        Command::Lease(command) => line::lease(&context, command),
        Command::Follow(command) => line::follow(&context, command),
        Command::Rollback { name, to } => machine::rollback(&context, &name, to),
        Command::Images {
            command: None | Some(ImagesCommand::Ls),
        } => snapshot::list(&context),
        Command::Images {
            command: Some(ImagesCommand::Rm { references }),
        }
        | Command::Rmi { references } => snapshot::remove(&context, &references),
        Command::Log { source } => snapshot::log(&context, &source),
        Command::Diff { from, to } => snapshot::diff(&context, &from, &to),
        Command::Tag { reference, new } => snapshot::tag(&context, &reference, new),
        Command::Remote(command) => remote::run(&context, command),
        Command::Host(command) => host::run(&context, command),
        Command::Realm(command) => realm::run(&context, command),
        Command::Token(command) => access::token(&context, command),
        Command::Login { name, line } => access::login(&context, &line, name),
        Command::Logout { names } => access::logout(&context, &names),
        Command::Push {
            dry_run,
            bandwidth,
            reference,
            snapshot,
            remote,
        } => {
            let request = PushRequest {
                snapshot,
                reference,
                dry_run,
                bandwidth_bytes: bandwidth,
            };
            remote::push(&context, &remote, &request)
        }
        Command::Pull {
            dry_run,
            bandwidth,
            from,
        } => remote::pull(&context, from, dry_run, bandwidth),
        Command::Fetch { rest, from } => remote::fetch(&context, from, rest),
        Command::Clone { name, policy, from } => remote::clone(&context, name, policy, from),
        Command::Carry {
            size,
            realm,
            dir,
            sources,
        } => {
            let request = CarryRequest {
                dir: remote::absolute(dir)?,
                sources,
                size_bytes: size,
                realm,
            };
            remote::carry(&context, &request)
        }
        Command::Away => remote::away(&context),
        Command::Explain { top, source } => explain::run(&context, &source, top),
        Command::Gc { dry_run } => store::gc(&context, dry_run),
        Command::Df => store::df(&context),
        Command::Bench(BenchCommand::Local(args)) => bench::local(&context, &args),
        Command::Bench(BenchCommand::Dead(args)) => bench::dead(&context, &args),
        Command::Bench(BenchCommand::Fork(args)) => bench::fork(&context, &args),
        Command::Bench(BenchCommand::ForkModel(args)) => bench::fork_model(&context, &args),
        Command::Bench(BenchCommand::Plot(args)) => bench::plot(&context, &args),
        Command::Bench(BenchCommand::Roam(args)) => bench::roam(&context, &args),
        Command::Bench(BenchCommand::Interrupted(args)) => bench::interrupted(&context, &args),
        Command::Completions { shell } => service::completions(shell),
        Command::Man { dir } => service::man(&dir),
        Command::Version => service::version(&context),
    }
    .map(|()| 0)
}

/// What every command has.
struct Context {
    json: bool,
    quiet: bool,
    daemon: Daemon,
    /// Another host that is asked instead.
    host: Option<String>,
}

impl Context {
    fn client(&self) -> Outcome<Client> {
        match &self.host {
            Some(host) => Client::to_host(Logins::of_this_user().get(host)?),
            None => self.daemon.client(),
        }
    }

    /// Reads something and shows it.
    fn get<T: DeserializeOwned>(&self, path: &str, text: impl FnOnce(T) -> String) -> Outcome {
        self.show(self.client()?.get(path)?, text)
    }

    /// Does something short and shows what came of it.
    fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        text: impl FnOnce(T) -> String,
    ) -> Outcome {
        self.show(self.client()?.post(path, body)?, text)
    }

    /// Does something long and shows what came of it.
    fn long<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        what: &str,
        text: impl FnOnce(T) -> String,
    ) -> Outcome {
        let answer = self.operation(path, body, what)?;
        self.show(answer, text)
    }

    /// Does something long.
    fn operation(&self, path: &str, body: &impl Serialize, what: &str) -> Outcome<Value> {
        let client = self.client()?;
        let reporter = Reporter::new(what, self.quiet, self.json);
        client.operation(path, body, &reporter)
    }

    /// Shows an answer: as it is, or in words.
    fn show<T: DeserializeOwned>(&self, answer: Value, text: impl FnOnce(T) -> String) -> Outcome {
        if self.json {
            show::print(&format!("{answer:#}\n"));
            return Ok(());
        }
        show::print(&text(understood(answer)?));
        Ok(())
    }

    /// The same for each of several names, to the end; the first failure is the command's, the others are told.
    fn each(&self, names: &[String], mut act: impl FnMut(&Client, &str) -> Outcome) -> Outcome {
        let client = self.client()?;
        let mut first: Option<Failure> = None;
        for name in names {
            if let Err(failure) = act(&client, name) {
                match first {
                    None => first = Some(failure),
                    Some(_) => eprint!("{}", failure.text(self.json)),
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// As [`Self::each`], several at a time: for what mostly waits for processes to end.
    fn each_at_once(&self, names: &[String], act: impl Fn(&Client, &str) -> Outcome + Sync) -> Outcome {
        let clients = (0..AT_ONCE.min(names.len())).map(|_| self.client());
        let clients: Vec<Client> = clients.collect::<Outcome<_>>()?;
        let next = AtomicUsize::new(0);
        let work = |client: Client| {
            let mut outcomes = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(name) = names.get(index) else {
                    return outcomes;
                };
                outcomes.push((index, act(&client, name)));
            }
        };
        let work = &work;
        let mut outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = clients
                .into_iter()
                .map(|client| scope.spawn(move || work(client)))
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        outcomes.sort_by_key(|(index, _)| *index);
        let mut failures = outcomes.into_iter().filter_map(|(_, outcome)| outcome.err());
        let first = failures.next();
        for other in failures {
            eprint!("{}", other.text(self.json));
        }
        first.map_or(Ok(()), Err)
    }
}

/// An answer as the type it should have.
fn understood<T: DeserializeOwned>(answer: Value) -> Outcome<T> {
    serde_json::from_value(answer).map_err(|error| {
        Problem::new(
            ProblemCode::Internal,
            "the daemon's answer is not what this program understands",
        )
        .cause(error)
        .remediation("see `martlet version`: both should be of one version")
        .into()
    })
}

fn execute(context: &Context, args: crate::cli::ExecArgs) -> Outcome<u8> {
    let tty = args
        .tty
        .then(|| terminal::size().unwrap_or(martlet_api::TtySize { rows: 24, cols: 80 }));
    let mut env: std::collections::BTreeMap<_, _> = args.env.into_iter().collect();
    if let (Some(_), Ok(term)) = (tty, std::env::var("TERM")) {
        env.entry("TERM".to_string()).or_insert(term);
    }
    let request = ExecRequest {
        argv: args.command,
        env,
        cwd: args.workdir,
        user: args.user,
        tty,
        stdin: args.interactive,
    };
    let client = context
        .client()
        .map_err(|failure| failure.exit_with(crate::failure::EXEC_FAILED))?;
    exec::run(&client, &args.name, request)
}
