//! Session derivation.
