//! How true the stand-in is.
//!
//! ```text
//!   replay.rs     216 recorded exchanges with genuine nodes, asked again
//!   tables.rs     the tables of methods and parameters, held against the schema of genuine releases
//!   conduct.rs    locks, races, tasks, the agent, faults: what no single exchange shows
//! ```

#[cfg(test)]
mod conduct;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod tables;
