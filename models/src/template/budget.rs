//! A bound on the work of one render: bytes built and read, and list items touched.
//!
//! The engine's own fuel counts instructions, but one instruction can double a string or compare two long lists. The
//! count lives in the thread, because values are printed and compared where no state of the render can be reached.

use std::cell::Cell;

use minijinja::{Error, ErrorKind, Value};

use super::values::Result;

/// Bytes that one render may build, intermediate values included. Real chat templates stay far below: a conversation
/// of 1 MB put together message by message in 200 steps takes 100 MB.
const MAX_BYTES: usize = 1 << 29;

/// What touching one item of a list costs, in bytes.
const ITEM: usize = 32;

/// How many bytes can be read, to be compared or searched, for what one costs that is built.
const READS: usize = 4;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(MAX_BYTES) };
}

/// Begins a render with a full budget.
pub(super) fn start() {
    LEFT.set(MAX_BYTES);
}

/// Whether the budget is used up; loops that cannot fail stop then, and the next `bytes` fails.
pub(super) fn is_spent() -> bool {
    LEFT.get() == 0
}

/// Pays for `n` bytes; to be called before they are allocated.
pub(super) fn bytes(n: usize) -> Result<()> {
    LEFT.set(LEFT.get().saturating_sub(n));
    if is_spent() {
        let message = format!("the template built more than {} MiB of text and lists", MAX_BYTES >> 20);
        return Err(Error::new(ErrorKind::OutOfFuel, message));
    }
    Ok(())
}

/// Pays for reading a text from end to end, if the value is one.
pub(super) fn read(value: &Value) -> Result<()> {
    bytes(value.as_str().map_or(0, str::len) / READS)
}

/// Pays for `n` items of a list.
pub(super) fn items(n: usize) -> Result<()> {
    bytes(n.saturating_mul(ITEM))
}
