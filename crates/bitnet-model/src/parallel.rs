//! Work that several threads share while a model is loaded.

use std::thread::{self, Builder};

/// Runs `work` on `threads` threads, the caller's among them, until each of them has returned; the first error counts.
///
/// Each call of `work` takes pieces until none is left, so where the system refuses a thread, the others do its share.
pub fn share<E: Send>(threads: usize, work: impl Fn() -> Result<(), E> + Sync) -> Result<(), E> {
    share_with(Builder::new, threads, work)
}

fn share_with<E: Send>(
    builder: impl Fn() -> Builder,
    threads: usize,
    work: impl Fn() -> Result<(), E> + Sync,
) -> Result<(), E> {
    thread::scope(|scope| {
        let spawn = |_| builder().spawn_scoped(scope, &work).ok();
        let helpers: Vec<_> = (1..threads).map_while(spawn).collect();
        let own = work();
        helpers
            .into_iter()
            .map(|helper| helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .fold(own, Result::and)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Adds the numbers below 1000, each once, with this many threads that the system grants.
    #[track_caller]
    fn check(granted: usize) {
        let asked = AtomicUsize::new(1);
        let builder = || match asked.fetch_add(1, Ordering::Relaxed) < granted {
            true => Builder::new(),
            // No machine has room for such a stack, so this thread is refused.
            false => Builder::new().stack_size(1 << (usize::BITS - 2)),
        };
        let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                number @ ..1000 => sum.fetch_add(number, Ordering::Relaxed),
                _ => return Ok::<(), ()>(()),
            };
        };
        assert_eq!(share_with(builder, 8, work), Ok(()));
        assert_eq!(sum.into_inner(), 999 * 1000 / 2, "{granted} threads");
        assert_eq!(
            asked.into_inner(),
            (granted + 1).min(8),
            "nothing is asked for after a refusal"
        );
    }

    #[test]
    fn refused_threads_leave_their_work_to_the_others() {
        [1, 2, 5, 8].into_iter().for_each(check);
    }

    #[test]
    fn an_error_on_any_thread_is_the_result() {
        let turn = AtomicUsize::new(0);
        let work = || match turn.fetch_add(1, Ordering::Relaxed) {
            2 => Err("the third"),
            _ => Ok(()),
        };
        assert_eq!(share(4, work), Err("the third"));
    }
}
