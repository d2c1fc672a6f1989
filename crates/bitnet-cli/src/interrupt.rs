//! Ctrl-C: a flag that the work in hand looks at, or the end of the program where nothing looks.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::failure::INTERRUPTED;

static PRESSED: AtomicBool = AtomicBool::new(false);
static WATCHED: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C ends the program with code 130, except while a [`Watch`] is held.
pub fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        let again = PRESSED.swap(true, Ordering::SeqCst);
        if again || !WATCHED.load(Ordering::SeqCst) {
            leave();
        }
    })
    .map_err(|error| match error {
        // It keeps the system's reason to itself.
        ctrlc::Error::System(reason) => anyhow::Error::new(reason),
        other => other.into(),
    })
    .context("cannot watch for Ctrl-C")
}

/// Waits for a write in progress, so that what was printed is whole.
fn leave() {
    let _ = std::io::stdout().lock().flush();
    std::process::exit(i32::from(INTERRUPTED));
}

/// While this lives, Ctrl-C only sets a flag; a second one ends the program.
pub struct Watch(());

impl Watch {
    pub fn start() -> Self {
        PRESSED.store(false, Ordering::SeqCst);
        WATCHED.store(true, Ordering::SeqCst);
        Self(())
    }

    /// Whether Ctrl-C was pressed since the start.
    pub fn pressed(&self) -> bool {
        PRESSED.load(Ordering::SeqCst)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.store(false, Ordering::SeqCst);
        PRESSED.store(false, Ordering::SeqCst);
    }
}
