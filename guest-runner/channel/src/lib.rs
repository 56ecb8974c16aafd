//! Framed stream.
