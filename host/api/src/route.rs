//! Every route of the control API with the right it takes. The daemon's router is built from this table,
//! so a route without a permission cannot exist.

/// HTTP method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Reads.
    Get,
    /// Creates or acts.
    Post,
    /// Removes.
    Delete,
}

/// What a caller must be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// `GET /v1/status`, profiles and events.
    StatusRead,
    /// Read jobs, their logs and artifacts.
    JobRead,
    /// Create and cancel jobs.
    JobWrite,
    /// Read sandboxes and their logs.
    SandboxRead,
    /// Create, change and destroy sandboxes.
    SandboxWrite,
    /// Read workspaces.
    WorkspaceRead,
    /// Create, change, attach and delete workspaces.
    WorkspaceWrite,
}

/// One route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Method.
    pub method: Method,
    /// Path with `{parameters}`.
    pub path: &'static str,
    /// Right it takes.
    pub permission: Permission,
}

const fn route(method: Method, path: &'static str, permission: Permission) -> Route {
    Route {
        method,
        path,
        permission,
    }
}

/// All routes.
pub const ROUTES: &[Route] = &[
    route(Method::Get, "/v1/status", Permission::StatusRead),
    route(Method::Get, "/v1/events", Permission::StatusRead),
    route(Method::Get, "/v1/profiles", Permission::StatusRead),
    route(Method::Get, "/v1/profiles/{name}", Permission::StatusRead),
    route(Method::Post, "/v1/bundles", Permission::JobWrite),
    route(Method::Get, "/v1/jobs", Permission::JobRead),
    route(Method::Post, "/v1/jobs", Permission::JobWrite),
    route(Method::Post, "/v1/jobs/prune", Permission::JobWrite),
    route(Method::Get, "/v1/jobs/{job}", Permission::JobRead),
    route(Method::Post, "/v1/jobs/{job}/cancel", Permission::JobWrite),
    route(Method::Get, "/v1/jobs/{job}/events", Permission::JobRead),
    route(Method::Get, "/v1/jobs/{job}/logs", Permission::JobRead),
    route(Method::Get, "/v1/jobs/{job}/artifacts", Permission::JobRead),
    route(
        Method::Get,
        "/v1/jobs/{job}/artifacts/{*name}",
        Permission::JobRead,
    ),
    route(Method::Post, "/v1/network", Permission::SandboxWrite),
    route(Method::Get, "/v1/sandboxes", Permission::SandboxRead),
    route(Method::Post, "/v1/sandboxes", Permission::SandboxWrite),
    route(Method::Post, "/v1/sandboxes/prune", Permission::SandboxWrite),
    route(Method::Get, "/v1/sandboxes/{sandbox}", Permission::SandboxRead),
    route(
        Method::Get,
        "/v1/sandboxes/{sandbox}/events",
        Permission::SandboxRead,
    ),
    route(
        Method::Get,
        "/v1/sandboxes/{sandbox}/console",
        Permission::SandboxRead,
    ),
    route(
        Method::Post,
        "/v1/sandboxes/{sandbox}/destroy",
        Permission::SandboxWrite,
    ),
    route(
        Method::Post,
        "/v1/sandboxes/{sandbox}/start",
        Permission::SandboxWrite,
    ),
    route(
        Method::Post,
        "/v1/sandboxes/{sandbox}/stop",
        Permission::SandboxWrite,
    ),
    route(
        Method::Post,
        "/v1/sandboxes/{sandbox}/pause",
        Permission::SandboxWrite,
    ),
    route(
        Method::Post,
        "/v1/sandboxes/{sandbox}/resume",
        Permission::SandboxWrite,
    ),
    route(
        Method::Post,
        "/v1/sandboxes/{sandbox}/lease/renew",
        Permission::SandboxWrite,
    ),
    route(
        Method::Post,
        "/v1/sandboxes/{sandbox}/commands",
        Permission::SandboxWrite,
    ),
    route(
        Method::Post,
        "/v1/commands/{command}/stream",
        Permission::SandboxWrite,
    ),
    route(Method::Get, "/v1/workspaces", Permission::WorkspaceRead),
    route(Method::Post, "/v1/workspaces", Permission::WorkspaceWrite),
    route(
        Method::Get,
        "/v1/workspaces/{workspace}",
        Permission::WorkspaceRead,
    ),
    route(
        Method::Get,
        "/v1/workspaces/{workspace}/check",
        Permission::WorkspaceRead,
    ),
    route(
        Method::Post,
        "/v1/workspaces/{workspace}/adopt",
        Permission::WorkspaceWrite,
    ),
    route(
        Method::Post,
        "/v1/workspaces/{workspace}/delete",
        Permission::WorkspaceWrite,
    ),
    route(
        Method::Post,
        "/v1/workspaces/{workspace}/resize",
        Permission::WorkspaceWrite,
    ),
    route(
        Method::Post,
        "/v1/workspaces/{workspace}/attach",
        Permission::WorkspaceWrite,
    ),
    route(
        Method::Post,
        "/v1/workspaces/{workspace}/detach",
        Permission::WorkspaceWrite,
    ),
    route(
        Method::Post,
        "/v1/workspaces/{workspace}/snapshots",
        Permission::WorkspaceWrite,
    ),
    route(
        Method::Post,
        "/v1/workspaces/{workspace}/snapshots/{snapshot}/restore",
        Permission::WorkspaceWrite,
    ),
    route(
        Method::Post,
        "/v1/workspaces/{workspace}/snapshots/{snapshot}/delete",
        Permission::WorkspaceWrite,
    ),
    route(
        Method::Post,
        "/v1/workspaces/{workspace}/rebind",
        Permission::WorkspaceWrite,
    ),
    route(
        Method::Post,
        "/v1/workspaces/{workspace}/fork",
        Permission::WorkspaceWrite,
    ),
    route(
        Method::Post,
        "/v1/workspaces/{workspace}/move",
        Permission::WorkspaceWrite,
    ),
];
