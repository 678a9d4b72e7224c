//! What is said of a panic. Its message may quote what was being handled, as that of a text that is
//! cut within a character does, so it is written only where it stands in the code word for word.

use std::any::Any;
use std::panic::PanicHookInfo;

/// Logs where a panic was, in place of what the standard library would print of it.
pub fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(location, panic = panic_text(panic.payload()), "panicked");
}

/// Returns what a panic said, if no value was made a part of it.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &'static str {
    panic.downcast_ref::<&'static str>().copied().unwrap_or("its message may quote data and is left out")
}
