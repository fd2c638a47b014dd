//! Lines of machines, and the leases on them.

use crate::extract::{Body, Named, WantsEvents};
use crate::openapi::Method::{Delete, Get, Post};
use crate::openapi::{Routes, Spec};
use crate::operation::Reply;
use crate::server::Server;
use axum::extract::{Path, State};
use martlet_api::{
    FollowInfo, FollowRequest, LeaseInfo, LineRequest, MachineInfo, PointRequest, PublishReport,
    PublishRequest, ResumeFromRequest, Role,
};

pub fn routes(routes: Routes) -> Routes {
    let line_spec = Spec::new("Give a machine a line at a remote; nothing is sent yet")
        .takes::<LineRequest>()
        .gives::<MachineInfo>();
    let publish_spec = Spec::new("Publish a machine's newest state on its line")
        .takes::<PublishRequest>()
        .gives::<PublishReport>();
    let resume_spec = Spec::new("Go on here with a machine whose line is at a remote")
        .takes::<ResumeFromRequest>()
        .gives::<MachineInfo>();
    let break_spec =
        Spec::new("Take a line from its holder: what that has not published becomes a side branch");
    let ask_spec = Spec::new("Ask who holds a line to publish it and let go of it").gives::<LeaseInfo>();
    let point_spec =
        Spec::new("Have a name stand for an earlier version by a new one, or a new name for a version")
            .takes::<PointRequest>()
            .gives::<LeaseInfo>();
    routes
        .route(
            Post,
            "/v1/machines/{name}/line",
            line_spec.with_events().needs(Role::Run),
            set,
        )
        .route(
            Post,
            "/v1/machines/{name}/publish",
            publish_spec.with_events().needs(Role::Run),
            publish,
        )
        .route(
            Post,
            "/v1/remotes/{name}/resume",
            resume_spec.with_events().needs(Role::Run),
            resume,
        )
        .route(
            Get,
            "/v1/remotes/{name}/leases/{reference}",
            Spec::new("Who holds a line").gives::<LeaseInfo>(),
            lease,
        )
        .route(
            Delete,
            "/v1/remotes/{name}/leases/{reference}",
            break_spec.needs(Role::Run),
            take,
        )
        .route(
            Post,
            "/v1/remotes/{name}/leases/{reference}/ask",
            ask_spec.with_events().needs(Role::Run),
            ask,
        )
        .route(
            Post,
            "/v1/remotes/{name}/snapshots/{reference}/point",
            point_spec.with_events().needs(Role::Run),
            point,
        )
        .route(
            Get,
            "/v1/follows",
            Spec::new("Lines that are followed").lists::<FollowInfo>(),
            follows,
        )
        .route(
            Post,
            "/v1/remotes/{name}/follows",
            Spec::new("Have what others publish on a line come here")
                .takes::<FollowRequest>()
                .needs(Role::Run),
            follow,
        )
        .route(
            Delete,
            "/v1/remotes/{name}/follows/{reference}",
            Spec::new("Follow a line no more; what has come stays").needs(Role::Run),
            unfollow,
        )
}

async fn set(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Named(name): Named,
    Body(request): Body<LineRequest>,
) -> Reply {
    martlet_api::names::check_name(&request.remote)?;
    server
        .operation(events, move |control, _| control.set_line(&name, request))
        .await
}

async fn publish(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Named(name): Named,
    Body(request): Body<PublishRequest>,
) -> Reply {
    server
        .operation(events, move |control, progress| {
            control.publish(&name, request, progress)
        })
        .await
}

async fn resume(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Named(name): Named,
    Body(request): Body<ResumeFromRequest>,
) -> Reply {
    server
        .operation(events, move |control, progress| {
            control.resume_from(&name, request, progress)
        })
        .await
}

async fn lease(State(server): State<Server>, Path((name, reference)): Path<(String, String)>) -> Reply {
    martlet_api::names::check_name(&name)?;
    server
        .answer(move |control| control.lease(&name, &reference))
        .await
}

async fn take(State(server): State<Server>, Path((name, reference)): Path<(String, String)>) -> Reply {
    martlet_api::names::check_name(&name)?;
    server
        .effect(move |control| control.lease_break(&name, &reference))
        .await
}

async fn ask(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Path((name, reference)): Path<(String, String)>,
) -> Reply {
    martlet_api::names::check_name(&name)?;
    server
        .operation(events, move |control, _| control.lease_ask(&name, &reference))
        .await
}

async fn point(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Path((name, reference)): Path<(String, String)>,
    Body(request): Body<PointRequest>,
) -> Reply {
    martlet_api::names::check_name(&name)?;
    server
        .operation(events, move |control, _| {
            control.point(&name, &reference, request)
        })
        .await
}

async fn follows(State(server): State<Server>) -> Reply {
    server.answer(|control| control.follows()).await
}

async fn follow(
    State(server): State<Server>,
    Named(name): Named,
    Body(request): Body<FollowRequest>,
) -> Reply {
    server.effect(move |control| control.follow(&name, request)).await
}

async fn unfollow(State(server): State<Server>, Path((name, reference)): Path<(String, String)>) -> Reply {
    martlet_api::names::check_name(&name)?;
    server
        .effect(move |control| control.unfollow(&name, &reference))
        .await
}
