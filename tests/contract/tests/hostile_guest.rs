//! hostile_guest
