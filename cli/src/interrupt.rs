//! Ctrl-C: the first one asks to stop, the second one leaves at once.

use std::ffi::c_int;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::exit;

/// Whether Ctrl-C was pressed, for everything that should then stop.
pub(crate) struct Interrupt {
    pressed: Arc<AtomicBool>,
    /// Raised while there is nothing that could be stopped cleanly, nor need be.
    leaving: Arc<AtomicBool>,
    /// What is listened to.
    signals: Vec<c_int>,
    sessions: Vec<Arc<AtomicBool>>,
}

impl Interrupt {
    /// Listens to Ctrl-C from now on.
    pub(crate) fn new() -> io::Result<Interrupt> {
        let [pressed, leaving] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let mut interrupt = Interrupt { pressed, leaving, signals: Vec::new(), sessions: Vec::new() };
        interrupt.listen(SIGINT)?;
        Ok(interrupt)
    }

    /// Takes a request to terminate as Ctrl-C from now on, for work that would leave a half-written file behind.
    pub(crate) fn on_termination_too(&mut self) -> io::Result<()> {
        self.listen(SIGTERM)
    }

    fn listen(&mut self, signal: c_int) -> io::Result<()> {
        flag::register_conditional_shutdown(signal, exit::INTERRUPTED.into(), self.leaving.clone())?;
        // In this order: the first signal finds the flag down and raises it, the second finds it up and leaves.
        flag::register_conditional_shutdown(signal, exit::INTERRUPTED.into(), self.pressed.clone())?;
        flag::register(signal, self.pressed.clone())?;
        self.signals.push(signal);
        Ok(())
    }

    /// Does work that leaves nothing half done, such as loading a model: Ctrl-C leaves at once.
    pub(crate) fn leaving<T>(&self, work: impl FnOnce() -> T) -> T {
        self.leaving.store(true, Ordering::Relaxed);
        let result = work();
        self.leaving.store(false, Ordering::Relaxed);
        result
    }

    /// Lets Ctrl-C raise the flag of a session too.
    pub(crate) fn watch(&mut self, session: Arc<AtomicBool>) -> io::Result<()> {
        for signal in &self.signals {
            flag::register(*signal, session.clone())?;
        }
        session.fetch_or(self.is_set(), Ordering::Relaxed);
        self.sessions.push(session);
        Ok(())
    }

    /// Whether it was pressed since the last [`clear`](Self::clear).
    pub(crate) fn is_set(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    /// Forgets that it was pressed.
    pub(crate) fn clear(&self) {
        self.sessions.iter().chain([&self.pressed]).for_each(|flag| flag.store(false, Ordering::Relaxed));
    }

    /// An error if it was pressed.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.is_set() { Err(exit::Failure::interrupted()) } else { Ok(()) }
    }
}
