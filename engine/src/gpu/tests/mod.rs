//! Step parity: every step on the device at hand against the reference executor, from the same registers.
//!
//! The programs here are made of single blocks of a step or a few, with weights of odd sizes and every type. Where there
//! is no device they are skipped, and say so.

mod attention;
mod bench;
mod coop;
mod experts;
mod failures;
mod memory;
mod moving;
mod products;
mod rest;
mod scales;
mod whole;
