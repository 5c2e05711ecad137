//! Roles of stocklock for a program that is not written in Rust.

use std::{
    io::{self, Read as _, Write as _},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

use stocklock_servers::{Interrupt, Lifetime, Patience, Role, Running};

use crate::say;

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Starts the roles with the settings in this process's environment, waits until they are ready,
/// and prints a line `NAME HTTP ADMIN` for each. Stops them when standard input closes or a signal
/// comes. The exit status is 0 only if none ended before, and each ended with status 0.
pub(crate) fn run(binary: &Path, logs: &Path, names: &[String]) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::on_signals()?;
    let patience = Patience::unless(READY_WITHIN, interrupt.clone());
    let mut roles = Vec::new();
    for name in names {
        let role = Role::new(name, binary, logs.join(name))?;
        let role = role.with_env(std::env::vars().filter(|(key, _)| is_passed_on(key)));
        roles.push(Running::spawn(role, Lifetime::OfParent, &patience)?);
    }
    for role in &mut roles {
        role.await_ready(&patience)?;
    }
    for Running { service, .. } in &roles {
        println!("{} {} {}", service_name(service), service.http, service.admin);
    }
    io::stdout().flush()?;
    stop_when_input_closes(interrupt.clone());
    let watched = loop {
        if interrupt.is_set() {
            break Ok(());
        }
        if let Err(ended) = roles.iter_mut().try_for_each(|role| role.process.require_running()) {
            break Err(ended);
        }
        thread::sleep(Duration::from_millis(50));
    };
    let stopped = stop(&mut roles);
    watched?;
    Ok(if stopped? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The addresses are those of [`Role`].
fn is_passed_on(key: &str) -> bool {
    key.starts_with("STOCKLOCK__")
        && !["STOCKLOCK__HTTP__LISTEN", "STOCKLOCK__ADMIN__LISTEN"].contains(&key)
}

fn service_name(role: &Role) -> &str {
    use stocklock_servers::Service as _;
    role.name()
}

fn stop_when_input_closes(interrupt: Interrupt) {
    thread::spawn(move || {
        // An error ends the input as well.
        let _read = io::stdin().read_to_end(&mut Vec::new());
        interrupt.cancel();
    });
}

/// Asks all to stop, once, and then waits for each. Says which did not end with status 0.
fn stop(roles: &mut [Running<Role>]) -> anyhow::Result<bool> {
    for role in &mut *roles {
        role.process.ask_to_stop()?;
    }
    let mut all_well = true;
    for role in roles {
        let name = service_name(&role.service);
        match role.process.await_stop(STOP_WITHIN) {
            Ok(status) if status.success() => continue,
            Ok(status) => say(format!("{name} ended with {status}")),
            Err(error) => say(format!("{error:#}")),
        }
        all_well = false;
    }
    Ok(all_well)
}
