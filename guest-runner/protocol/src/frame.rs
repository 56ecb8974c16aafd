//! Frames on a serial line.
