//! In memory, with fault injection.
