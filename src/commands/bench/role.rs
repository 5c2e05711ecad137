//! A role as a process of its own, measured from outside.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{site::Site, stopwatch::cpu_seconds};
use crate::trust;

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(5);

/// The bench measures the pipeline: without authentication, limits and TLS.
const OPEN: [(&str, &str); 12] = [
    ("STOCKLOCK__AUTH__TOKENS_FILE", ""),
    ("STOCKLOCK__AUTH__JWKS_URL", ""),
    ("STOCKLOCK__AUTH__ISSUER", ""),
    ("STOCKLOCK__AUTH__AUDIENCE", ""),
    ("STOCKLOCK__HTTP__TLS_CERTIFICATE_LOCATION", ""),
    ("STOCKLOCK__HTTP__TLS_KEY_LOCATION", ""),
    ("STOCKLOCK__HTTP__TLS_CLIENT_CA_LOCATION", ""),
    ("STOCKLOCK__LIMITS__REQUESTS_PER_SECOND", "0"),
    ("STOCKLOCK__LIMITS__CONNECTIONS", "0"),
    ("STOCKLOCK__LIMITS__PRINCIPAL_REQUESTS_PER_SECOND", "0"),
    ("STOCKLOCK__LIMITS__PRINCIPAL_CONNECTIONS", "0"),
    ("STOCKLOCK__LIMITS__PRINCIPAL_BODY_BYTES", "0"),
];

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_rss_mib: f64,
}

/// A process of one role. It is killed by SIGKILL when it is dropped.
pub struct Role {
    pub(super) name: &'static str,
    pub http: SocketAddr,
    admin: SocketAddr,
    client: reqwest::Client,
    process: Child,
}

/// A role's metrics at an instant.
pub(super) struct Exposition(String);

impl Exposition {
    /// The sum over those samples of a metric whose labels match.
    pub(super) fn sum(&self, name: &str, label: &str) -> f64 {
        let samples = self.0.lines().filter(|line| line.starts_with(name) && line.contains(label));
        samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }
}

impl Role {
    /// Starts a role on free ports. Its environment has `variables` beside the settings of the
    /// site.
    ///
    /// Fails if no port is free, or the program does not start.
    pub fn spawn(
        name: &'static str,
        site: &Site,
        variables: &[(&str, &str)],
        log: &fs::File,
    ) -> anyhow::Result<Self> {
        let (admin, http) = (free_address()?, free_address()?);
        let inherited = std::env::vars().filter(|(name, _)| !name.starts_with("STOCKLOCK__"));
        let process = Command::new(&site.binary)
            .arg(name)
            .env_clear()
            .envs(inherited)
            .envs(site.environment())
            .envs(OPEN)
            .env("STOCKLOCK__ADMIN__LISTEN", admin.to_string())
            .env("STOCKLOCK__HTTP__LISTEN", http.to_string())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()
            .with_context(|| format!("stocklock {name}"))?;
        Ok(Self { name, http, admin, client: trust::client_without_tls().build()?, process })
    }

    /// Waits until it is ready: a consumer then has its partitions. Fails after a minute, or if it
    /// has ended.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !self.is_ready().await {
            if let Some(status) = self.process.try_wait()? {
                bail!("{} ended with {status}", self.name);
            }
            if begun.elapsed() > START_DEADLINE {
                bail!("{} is not ready after {} s", self.name, START_DEADLINE.as_secs());
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        Ok(())
    }

    async fn is_ready(&self) -> bool {
        let answer = self.client.get(format!("http://{}/readyz", self.admin)).send().await;
        answer.is_ok_and(|response| response.status().is_success())
    }

    /// Waits until a consumer of the role has partitions. A role may be ready without them, if it
    /// consumes beside other work. Fails after a minute.
    pub(super) async fn has_partitions(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.metrics().await?.sum("stocklock_rebalances_total", "kind=\"assign\"") < 1.0 {
            if begun.elapsed() > START_DEADLINE {
                bail!("{} has no partitions after {} s", self.name, START_DEADLINE.as_secs());
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        Ok(())
    }

    pub(super) async fn metrics(&self) -> anyhow::Result<Exposition> {
        Ok(Exposition(
            self.client.get(format!("http://{}/metrics", self.admin)).send().await?.text().await?,
        ))
    }

    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        let pid = self.process.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u32>().ok()
        });
        Ok(Usage {
            cpu_seconds: cpu_seconds(pid).context("its statistics")?,
            peak_rss_mib: f64::from(peak.unwrap_or(0)) / 1024.0,
        })
    }

    /// Asks it to stop, and waits for it. Fails after a minute, or if its exit status is not 0.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM)?;
        let begun = Instant::now();
        while begun.elapsed() < STOP_DEADLINE {
            if let Some(status) = self.process.try_wait()? {
                anyhow::ensure!(status.success(), "{} ended with {status}", self.name);
                return Ok(());
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        bail!("{} does not stop", self.name)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ended_already = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}
