//! How true the stand-in is.
//!
//! ```text
//!   replay.rs     216 recorded exchanges with genuine nodes, asked again
//!   tables.rs     the tables of methods and parameters, held against the schema of genuine releases
//!   schedule/     engine and REST back end on it, while everything goes wrong that can
//!   images.rs     files that come from outside, and machines made of them
//!   machines.rs   disks moved, rules, tags, HA, nodes: what else can be done with a machine
//!   documented.rs the tests that docs/proxmox.md names exist
//!   troubles.rs   what users of such clients meet, and our back end must survive
//!   conduct.rs    locks, races, tasks, the agent, faults: what no single exchange shows
//!   killed.rs     a daemon killed at each of its calls
//!   volumes.rs    what is left of volumes when a daemon dies
//!   tls.rs        the front end's manners on a real connection
//! ```

#[cfg(test)]
mod asker;
#[cfg(test)]
mod client;
#[cfg(test)]
mod conduct;
#[cfg(test)]
mod documented;
#[cfg(test)]
mod images;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod machines;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod schedule;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod troubles;
#[cfg(test)]
mod volumes;
