//! Machines: start and end, checkpoint and fork.

use super::bases::Force;
use crate::check;
use crate::extract::{Asks, Body, Named, Params, Referenced, WantsEvents};
use crate::openapi::Method::{Delete, Get, Post};
use crate::openapi::{Routes, Spec};
use crate::operation::Reply;
use crate::server::Server;
use axum::extract::State;
use martlet_api::names::{check_name, check_reference};
use martlet_api::*;

pub fn routes(routes: Routes) -> Routes {
    let info = |summary| Spec::new(summary).gives::<MachineInfo>();
    let run_spec = info("Start a machine from a base or a snapshot")
        .takes::<RunRequest>()
        .with_events()
        .needs(Role::Run);
    let remove_spec = Spec::new("Forget a machine and its disk")
        .query("force", "boolean", false, "Also while it runs")
        .needs(Role::Run);
    let acts = |summary| info(summary).needs(Role::Run);
    let saves = |summary| {
        Spec::new(summary)
            .takes::<CheckpointRequest>()
            .gives::<CheckpointReport>()
            .with_events()
            .needs(Role::Run)
    };
    let fork_spec = Spec::new("Start clones of a running machine, or of a snapshot (`name:tag` or id)");
    routes
        .route(
            Get,
            "/v1/machines",
            Spec::new("All machines").lists::<MachineInfo>(),
            list,
        )
        .route(Post, "/v1/machines", run_spec, run)
        .route(
            Get,
            "/v1/usage",
            Spec::new("What machines use").lists::<MachineUsage>(),
            usage,
        )
        .route(
            Get,
            "/v1/pool",
            Spec::new("QEMUs started ahead").gives::<PoolUsage>(),
            pool,
        )
        .route(Get, "/v1/machines/{name}", info("One machine"), inspect)
        .route(Delete, "/v1/machines/{name}", remove_spec, remove)
        .route(
            Post,
            "/v1/machines/{name}/stop",
            acts("Shut it down").takes::<StopRequest>(),
            stop,
        )
        .route(Post, "/v1/machines/{name}/kill", acts("End it at once"), kill)
        .route(
            Post,
            "/v1/machines/{name}/start",
            acts("Boot it again from its disk").with_events(),
            start,
        )
        .route(
            Post,
            "/v1/machines/{name}/rename",
            acts("Give it another name").takes::<RenameRequest>(),
            rename,
        )
        .route(
            Post,
            "/v1/machines/{name}/checkpoint",
            saves("Take a checkpoint; the machine goes on"),
            checkpoint,
        )
        .route(
            Post,
            "/v1/machines/{name}/suspend",
            saves("Take a checkpoint and leave nothing running"),
            suspend,
        )
        .route(
            Post,
            "/v1/machines/{name}/resume",
            acts("Go on from its last snapshot")
                .takes::<ResumeRequest>()
                .with_events(),
            resume,
        )
        .route(
            Post,
            "/v1/machines/{name}/rollback",
            acts("Go back to an earlier snapshot")
                .takes::<RollbackRequest>()
                .with_events(),
            rollback,
        )
        .route(
            Post,
            "/v1/machines/{name}/move",
            Spec::new("Have another host of the fleet go on with it")
                .needs(Role::Run)
                .takes::<MoveRequest>()
                .gives::<MoveReport>()
                .with_events(),
            move_to,
        )
        .route(
            Post,
            "/v1/machines/{name}/fork",
            fork_spec
                .takes::<ForkRequest>()
                .gives::<ForkReport>()
                .with_events()
                .needs(Role::Run),
            fork,
        )
        .route(
            Post,
            "/v1/machines/{name}/map",
            Spec::new("Run a command over inputs, in clones of a running machine or of a snapshot")
                .takes::<MapRequest>()
                .gives::<MapReport>()
                .with_events()
                .needs(Role::Run),
            map,
        )
}

async fn list(State(server): State<Server>) -> Reply {
    server.answer(|control| control.machines()).await
}

async fn run(
    State(server): State<Server>,
    Asks(user): Asks,
    WantsEvents(events): WantsEvents,
    Body(request): Body<RunRequest>,
) -> Reply {
    check::run(&request)?;
    server
        .operation(events, move |control, progress| {
            control.run(&user, request, progress)
        })
        .await
}

async fn pool(State(server): State<Server>) -> Reply {
    server.answer(|control| control.pool()).await
}

async fn usage(State(server): State<Server>) -> Reply {
    server.answer(|control| control.usage()).await
}

async fn inspect(State(server): State<Server>, Named(name): Named) -> Reply {
    server.answer(move |control| control.machine(&name)).await
}

async fn remove(
    State(server): State<Server>,
    Named(name): Named,
    Params(Force { force }): Params<Force>,
) -> Reply {
    server.effect(move |control| control.remove(&name, force)).await
}

async fn stop(State(server): State<Server>, Named(name): Named, Body(request): Body<StopRequest>) -> Reply {
    check::stop(&request)?;
    server
        .answer(move |control| control.stop(&name, request.timeout_ms))
        .await
}

async fn kill(State(server): State<Server>, Named(name): Named) -> Reply {
    server.answer(move |control| control.kill(&name)).await
}

async fn start(State(server): State<Server>, Named(name): Named, WantsEvents(events): WantsEvents) -> Reply {
    server
        .operation(events, move |control, progress| control.start(&name, progress))
        .await
}

async fn rename(
    State(server): State<Server>,
    Named(name): Named,
    Body(request): Body<RenameRequest>,
) -> Reply {
    check_name(&request.name)?;
    server
        .answer(move |control| control.rename(&name, &request.name))
        .await
}

async fn checkpoint(
    State(server): State<Server>,
    Named(name): Named,
    WantsEvents(events): WantsEvents,
    Body(request): Body<CheckpointRequest>,
) -> Reply {
    check::checkpoint(&request)?;
    server
        .operation(events, move |control, progress| {
            control.checkpoint(&name, request, progress)
        })
        .await
}

async fn suspend(
    State(server): State<Server>,
    Named(name): Named,
    WantsEvents(events): WantsEvents,
    Body(request): Body<CheckpointRequest>,
) -> Reply {
    check::checkpoint(&request)?;
    server
        .operation(events, move |control, progress| {
            control.suspend(&name, request, progress)
        })
        .await
}

async fn resume(
    State(server): State<Server>,
    Named(name): Named,
    WantsEvents(events): WantsEvents,
    Body(request): Body<ResumeRequest>,
) -> Reply {
    check::probe(request.probe.as_ref())?;
    server
        .operation(events, move |control, progress| {
            control.resume(&name, request, progress)
        })
        .await
}

async fn rollback(
    State(server): State<Server>,
    Named(name): Named,
    WantsEvents(events): WantsEvents,
    Body(request): Body<RollbackRequest>,
) -> Reply {
    check_reference(&request.to)?;
    server
        .operation(events, move |control, progress| {
            control.rollback(&name, request, progress)
        })
        .await
}

async fn move_to(
    State(server): State<Server>,
    Named(name): Named,
    WantsEvents(events): WantsEvents,
    Body(request): Body<MoveRequest>,
) -> Reply {
    martlet_api::names::check_name(&request.host)?;
    server
        .operation(events, move |control, progress| {
            control.move_to(&name, request, progress)
        })
        .await
}

async fn fork(
    State(server): State<Server>,
    Asks(user): Asks,
    Referenced(source): Referenced,
    WantsEvents(events): WantsEvents,
    Body(request): Body<ForkRequest>,
) -> Reply {
    check::fork(&request)?;
    server
        .operation(events, move |control, progress| {
            control.fork(&user, &source, request, progress)
        })
        .await
}

async fn map(
    State(server): State<Server>,
    Asks(user): Asks,
    Referenced(source): Referenced,
    WantsEvents(events): WantsEvents,
    Body(request): Body<MapRequest>,
) -> Reply {
    check::map(&request)?;
    server
        .operation(events, move |control, progress| {
            control.map(&user, &source, request, progress)
        })
        .await
}
