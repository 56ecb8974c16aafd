//! The whole command against a socket that answers as a test says: what it prints, where, and how it exits.

#[cfg(test)]
mod alone;
#[cfg(test)]
mod artifacts;
#[cfg(test)]
mod job;
#[cfg(test)]
mod sandbox;
#[cfg(test)]
mod stand_in;
