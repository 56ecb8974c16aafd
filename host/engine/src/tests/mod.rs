//! Whole lives of sandboxes: a real store on disk, a back end and a network in memory, and a guest that follows a
//! script. Every wait has an end; every test ends by asking what is left.

mod lab;
mod process;
mod story;
mod story_guest;
mod wires;
mod workspace;
mod workspace_check;
mod workspace_wait;

mod failure;
mod guest;
mod idle;
mod job;
mod lost;
mod names;
mod operator;
mod overdue;
mod patience;
mod push;
mod queue;
mod rebind;
mod restart;
mod retention;
mod secrets;
mod steps;
mod stopping;
mod survival;
