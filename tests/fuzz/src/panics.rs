//! Words of a panic that is expected: kept for the report instead of printed.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// `Some` while this thread's panics are being collected.
    static WORDS: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Runs `work`; a panic of its is an error with the panic's words and place.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let collected = WORDS.with_borrow_mut(|words| {
                words.as_mut().is_some_and(|words| {
                    *words = info.to_string();
                    true
                })
            });
            if !collected {
                usual(info);
            }
        }));
    });
    WORDS.set(Some(String::new()));
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    let words = WORDS.take();
    result.map_err(|_| words.unwrap_or_default())
}
