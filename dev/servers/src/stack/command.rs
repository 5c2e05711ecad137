//! A command in the terminal of the caller, with all that it starts.

use std::{
    process::Child,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use stocklock_servers::{Identity, Interrupt, is_in_foreground};

use super::Exit;
use crate::children;

/// How long the command may take to heed a signal, before it gets the next one.
const HEED_WITHIN: Duration = Duration::from_secs(5);

/// Waits until a command has ended, and answers its exit status, as a shell reports it. Then
/// nothing that it started is left; only the servers stay.
///
/// Fails with [`Exit`] if an interrupt ended the command.
pub(super) fn run_to_end(
    command: &Child,
    servers: &[Identity],
    interrupt: &Interrupt,
) -> anyhow::Result<u8> {
    let pid = command.id().cast_signed();
    loop {
        match children::reap()? {
            Some((ended, status)) if ended == pid => {
                children::kill_family(servers)?;
                return Ok(status);
            }
            Some(_orphan) => {}
            None => thread::sleep(children::PAUSE),
        }
        if let Some(signal) = interrupt.signal() {
            end_family(servers, signal);
            children::kill_family(servers)?;
            return Err(Exit::by(signal).into());
        }
    }
}

/// Sends first this signal, then SIGTERM, to the command and all that it started. A Ctrl-C in the
/// terminal has reached all of them already: many programs take a second one as a wish not to tidy
/// up.
fn end_family(servers: &[Identity], signal: Signal) {
    let family = children::family(servers);
    for signal in [signal, Signal::SIGTERM] {
        if signal != Signal::SIGINT || !is_in_foreground() {
            for process in &family {
                process.signal(signal);
            }
        }
        let begun = Instant::now();
        while begun.elapsed() < HEED_WITHIN {
            if !family.iter().any(|process| process.is_running()) {
                return;
            }
            thread::sleep(children::PAUSE);
        }
    }
}
