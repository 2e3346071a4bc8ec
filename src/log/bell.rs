//! Wakes the one thread that waits, and costs those who ring next to nothing while it does not.

use super::atomic::{AtomicBool, Ordering, Thread, fence};

/// Wakes its thread if that is about to wait, or waits.
#[derive(Debug)]
pub(super) struct Bell {
    is_waiting: AtomicBool,
    thread: Thread,
}

impl Bell {
    /// The bell of a thread; only that one may [`wait`](Self::wait) for it.
    pub(super) fn new(thread: Thread) -> Self {
        Bell { is_waiting: AtomicBool::new(false), thread }
    }

    /// Tells that there is something to do; published before, with whatever ordering.
    ///
    /// No wake-up is lost: between the publication and the look at the flag stands a fence, as there
    /// stands one in [`wait`](Self::wait) between the flag and the look at what is published. One of
    /// the two comes first in the order of all fences. If this one, the other thread sees what is
    /// published; if the other, the flag is seen here. A thread that is woken before it parks does not park.
    pub(super) fn ring(&self) {
        fence(Ordering::SeqCst);
        // Of many who ring, one wakes it.
        if self.is_waiting.load(Ordering::Relaxed)
            && self.is_waiting.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.thread.unpark();
        }
    }

    /// Wakes the thread, whether it waits for the bell or for something else.
    pub(super) fn wake(&self) {
        self.thread.unpark();
    }

    /// Lets the thread `park` if there is nothing to do. It may wake for no reason.
    pub(super) fn wait(&self, is_idle: impl FnOnce() -> bool, park: impl FnOnce()) {
        self.is_waiting.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if is_idle() {
            park();
        }
        // A store would do; an exchange lets loom see that what woke it came before.
        self.is_waiting.swap(false, Ordering::Relaxed);
    }
}
