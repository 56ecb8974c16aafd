//! Test tier.
