//! One sandbox: what it may do (`machine`), how it is made and taken away (`step`), and who does so (`driver`).

pub mod machine;
pub mod step;
