//! GPU kernels as WGSL text, and the composer that joins them.
