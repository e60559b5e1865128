//! Black-box tests of the `tandem` command, by theme.
//!
//! They need nothing outside the clone: [`tiny`] writes a small random model. Tests on reference data beside the clone,
//! and on real models in the cache, say so where they are skipped.
#![allow(clippy::unwrap_used, missing_docs)]

mod bench;
mod chat;
mod command;
mod generation;
mod help;
mod imatrix;
mod inspect;
mod malformed;
mod placement;
mod quality;
mod quantize;
mod real_models;
mod tiny;
mod usage;
