//! Addresses for servers.

use std::{
    net::TcpListener,
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::bail;

/// Below the ports that the system gives out by itself, from 32768 on.
const PORTS: Range<u32> = 20_000..32_000;

/// An address of 127.0.0.1 that nobody listens on. Neither a later call of this process nor the
/// system gives its port out again.
///
/// Fails if this process has asked for as many addresses as there are ports.
pub fn free_address() -> anyhow::Result<String> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Each process begins elsewhere.
    let begin = std::process::id().wrapping_mul(97);
    let count = PORTS.end - PORTS.start;
    loop {
        let number = GIVEN.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            bail!("no free port found in {PORTS:?}");
        }
        let address = format!("127.0.0.1:{}", PORTS.start + begin.wrapping_add(number) % count);
        if TcpListener::bind(&address).is_ok() {
            return Ok(address);
        }
    }
}

/// The port of an address `HOST:PORT`.
pub(crate) fn port(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(_, port)| port)
}
