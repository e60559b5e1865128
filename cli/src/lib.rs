//! What the `tandem` command is made of.

pub mod fetch;
