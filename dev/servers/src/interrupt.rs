//! What ends a wait before it has what it waits for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::bail;
use nix::sys::signal::Signal;

/// No signal has this number.
const CANCELLED: usize = usize::MAX;
const PAUSE: Duration = Duration::from_millis(20);

/// A wish to stop: a signal that this process received, or a call of [`Self::cancel`].
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicUsize>);

impl Interrupt {
    /// Registers for SIGHUP, SIGINT and SIGTERM, which no longer end this process by themselves.
    /// This also holds where a shell that started it in the background made it ignore Ctrl-C.
    pub fn on_signals() -> anyhow::Result<Self> {
        let received = Self::default();
        for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
            let number = signal as i32;
            let value = usize::try_from(number)?;
            signal_hook::flag::register_usize(number, Arc::clone(&received.0), value)?;
        }
        Ok(received)
    }

    pub fn cancel(&self) {
        // A signal stays: it decides the exit status.
        let _kept = self.0.compare_exchange(0, CANCELLED, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Takes back [`Self::cancel`]. A signal stays.
    pub fn resume(&self) {
        let _kept = self.0.compare_exchange(CANCELLED, 0, Ordering::SeqCst, Ordering::SeqCst);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }

    /// The last signal received.
    pub fn signal(&self) -> Option<Signal> {
        Signal::try_from(i32::try_from(self.0.load(Ordering::SeqCst)).ok()?).ok()
    }

    /// The last signal received, which is forgotten with this call.
    pub fn take(&self) -> Option<Signal> {
        Signal::try_from(i32::try_from(self.0.swap(0, Ordering::SeqCst)).ok()?).ok()
    }
}

/// How long a wait may take, and what cuts it short.
#[derive(Debug, Clone)]
pub struct Patience {
    within: Duration,
    deadline: Instant,
    interrupt: Interrupt,
}

impl Patience {
    pub fn new(within: Duration) -> Self {
        Self::unless(within, Interrupt::default())
    }

    /// The wait also ends when the interrupt is set.
    pub fn unless(within: Duration, interrupt: Interrupt) -> Self {
        Self { within, deadline: Instant::now() + within, interrupt }
    }

    /// Sleeps for 20 ms. Fails if the time is over or the interrupt is set.
    pub fn pause(&self) -> anyhow::Result<()> {
        if self.interrupt.is_set() {
            bail!("interrupted");
        }
        if Instant::now() >= self.deadline {
            bail!("not within {} s", self.within.as_secs());
        }
        std::thread::sleep(PAUSE);
        Ok(())
    }
}
