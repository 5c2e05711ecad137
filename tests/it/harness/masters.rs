use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant, SystemTime},
};

use nix::sys::signal::Signal;
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use stocklock::config::SecretUrl;
use stocklock_servers::{Lifetime, Patience, Redis, Running};
use tempfile::TempDir;

use super::{PATIENCE, World, blocking, free_address, wait_until};

/// Redis masters of a test's own, which it may stop and whose clocks it may turn. They are killed
/// when they are dropped.
pub(crate) struct Masters {
    masters: Vec<Master>,
    tls: Option<String>,
}

struct Master {
    server: Running<Redis>,
    /// Dropped last: the server works in it.
    dir: TempDir,
}

impl Masters {
    /// Settings of masters for [`Self::cannot_save`] and [`Self::loads`].
    pub(crate) const REFUSING: [&str; 8] = [
        "--save",
        "3600 1",
        "--enable-debug-command",
        "local",
        // Microseconds a key.
        "--key-load-delay",
        "10000",
        "--loading-process-events-interval-bytes",
        "1024",
    ];

    pub(crate) async fn start(count: usize) -> Self {
        Self::start_with(count, &[]).await
    }

    /// Masters with more settings, as the command line of a server has them.
    pub(crate) async fn start_with(count: usize, settings: &[&str]) -> Self {
        let starting = (0..count).map(|_| Master::start(free_address(), settings));
        Self { masters: futures::future::join_all(starting).await, tls: None }
    }

    /// A master that speaks TLS at an address of its own, and without TLS at that of
    /// [`Self::urls`].
    pub(crate) async fn start_with_tls(settings: &[&str]) -> Self {
        let tls = free_address();
        let (_, port) = tls.rsplit_once(':').expect("host:port");
        let settings = [&["--tls-port", port][..], settings].concat();
        Self { masters: vec![Master::start(free_address(), &settings).await], tls: Some(tls) }
    }

    pub(crate) fn tls_urls(&self) -> Vec<SecretUrl> {
        self.tls.iter().map(|address| SecretUrl::new(format!("rediss://{address}"))).collect()
    }

    /// Has one master run a command, as its owner.
    pub(crate) async fn command_of(&self, number: usize, command: &str) {
        let mut words = command.split(' ');
        let mut asked = redis::cmd(words.next().expect("a command"));
        let mut connection = connect(&self.masters[number].url()).await.expect("a connection");
        let answered = asked.arg(words.collect::<Vec<_>>()).exec_async(&mut connection).await;
        answered.expect(command);
    }

    /// Has each master run a command, as its owner.
    pub(crate) async fn command<T: redis::FromRedisValue>(&self, command: &str) -> Vec<T> {
        let mut answers = Vec::new();
        for master in &self.masters {
            let mut words = command.split(' ');
            let mut asked = redis::cmd(words.next().expect("a command"));
            let mut connection = connect(&master.url()).await.expect("a connection");
            answers.push(
                asked
                    .arg(words.collect::<Vec<_>>())
                    .query_async(&mut connection)
                    .await
                    .expect(command),
            );
        }
        answers
    }

    pub(crate) fn urls(&self) -> Vec<SecretUrl> {
        self.masters.iter().map(|master| SecretUrl::new(master.url())).collect()
    }

    /// As a user of each, with the password `secret`.
    pub(crate) fn urls_as(&self, user: &str) -> Vec<SecretUrl> {
        let with_user =
            |master: &Master| SecretUrl::new(format!("redis://{user}:secret@{}", master.address()));
        self.masters.iter().map(with_user).collect()
    }

    pub(crate) fn urls_with(&self, password: &str) -> Vec<SecretUrl> {
        self.masters.iter().map(|master| SecretUrl::new(master.url_with(password))).collect()
    }

    /// Has a world use these masters instead of the shared ones.
    pub(crate) fn serve(&self, world: &mut World) {
        world.config.redis.urls = self.urls();
        let urls: Vec<_> = self.masters.iter().map(Master::url).collect();
        world.env.insert("STOCKLOCK__REDIS__URLS".to_owned(), urls.join(","));
    }

    /// Stops a master, as `kill -STOP` does, and fails the test unless it answers nobody any more.
    pub(crate) async fn freeze(&self, number: usize) {
        self.masters[number].signal(Signal::SIGSTOP);
        let ping =
            tokio::time::timeout(Duration::from_millis(300), self.masters[number].ping()).await;
        assert!(!matches!(ping, Ok(true)), "the master is not stopped");
    }

    pub(crate) async fn thaw(&self, number: usize) {
        self.masters[number].signal(Signal::SIGCONT);
        self.answers(number).await;
    }

    /// Kills a master and starts another at its address, which knows nothing.
    pub(crate) async fn restart_empty(&mut self, number: usize) {
        let master = &mut self.masters[number];
        master.server.process.kill().expect("killed");
        *master = Master::start(master.address().to_owned(), &[]).await;
        assert!(self.keys_of(number, "*").await.is_empty(), "it knows nothing");
    }

    /// Has a master fail to save its data. It refuses writes (`MISCONF`) until it can save.
    pub(crate) async fn cannot_save(&self, number: usize) {
        fs::create_dir(self.masters[number].dump()).expect("made");
        self.saves(number, "err").await;
    }

    pub(crate) async fn can_save(&self, number: usize) {
        fs::remove_dir(self.masters[number].dump()).expect("removed");
        self.saves(number, "ok").await;
    }

    async fn saves(&self, number: usize, status: &str) {
        self.command_of(number, "BGSAVE").await;
        let status = format!("rdb_last_bgsave_status:{status}");
        wait_until("the master has saved, or not", async || {
            self.command::<String>("INFO persistence").await[number].contains(&status)
        })
        .await;
    }

    /// Has a master load its data again, for 10 s. It refuses all commands meanwhile: `LOADING`.
    pub(crate) async fn loads(&self, number: usize) {
        self.command_of(number, "DEBUG POPULATE 1000").await;
        let mut connection = connect(&self.masters[number].url()).await.expect("a connection");
        tokio::spawn(
            async move { redis::cmd("DEBUG").arg("RELOAD").exec_async(&mut connection).await },
        );
        wait_until("the master loads", async || !self.masters[number].ping().await).await;
    }

    /// Turns a master's clock ahead of ours, and fails the test unless it goes so.
    pub(crate) async fn turn_clock(&self, number: usize, ahead: Duration) {
        fs::write(self.masters[number].clock(), ahead.as_secs().to_string()).expect("written");
        let ours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let theirs = self.masters[number].time().await;
        assert!(theirs >= (ours + ahead).as_secs(), "its clock goes as before: {theirs}");
    }

    /// The keys of one master that match a pattern, with what is left of their lives in ms, or -1
    /// where they live for ever.
    pub(crate) async fn keys_of(&self, number: usize, pattern: &str) -> BTreeMap<String, i64> {
        keys(&self.masters[number].url(), pattern).await
    }

    /// Sets a key of a master, for a time or for ever.
    pub(crate) async fn set(&self, number: usize, key: &str, ttl: Option<Duration>) {
        let mut set = redis::cmd("SET");
        set.arg(key).arg("somebody's");
        if let Some(ttl) = ttl {
            set.arg("PX").arg(u64::try_from(ttl.as_millis()).expect("short"));
        }
        let mut connection = connect(&self.masters[number].url()).await.expect("a connection");
        set.exec_async(&mut connection).await.expect("set");
    }

    /// Changes the password that a master asks for, and ends its connections.
    pub(crate) async fn change_password(&self, number: usize, former: &str, password: &str) {
        let mut connection =
            connect(&self.masters[number].url_with(former)).await.expect("a connection");
        let mut set = redis::cmd("CONFIG");
        set.arg("SET")
            .arg("requirepass")
            .arg(password)
            .exec_async(&mut connection)
            .await
            .expect("set");
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("SKIPME").arg("yes").exec_async(&mut connection).await.expect("ended");
    }

    async fn answers(&self, number: usize) {
        let begun = Instant::now();
        while !self.masters[number].ping().await {
            assert!(begun.elapsed() < PATIENCE, "master {number} does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Master {
    /// Starts a master with more settings, and waits until it answers.
    async fn start(address: String, settings: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let clock = dir.path().join("clock");
        fs::write(&clock, "0").expect("written");
        let redis = Redis::new("a Redis master", dir.path(), &address)
            .expect("the server's program")
            .with_settings(settings)
            .with_env("LD_PRELOAD", clock_library())
            .with_env("CLOCK", clock);
        let patience = Patience::new(PATIENCE);
        let server = blocking(move || Running::start(redis, Lifetime::OfParent, &patience)).await;
        Self { server: server.expect("the master answers"), dir }
    }

    fn address(&self) -> &str {
        self.server.service.address()
    }

    fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    fn url_with(&self, password: &str) -> String {
        if password.is_empty() {
            self.url()
        } else {
            format!("redis://:{password}@{}", self.address())
        }
    }

    /// The file that it saves its data to.
    fn dump(&self) -> PathBuf {
        self.dir.path().join("dump.rdb")
    }

    fn clock(&self) -> PathBuf {
        self.dir.path().join("clock")
    }

    fn signal(&self, signal: Signal) {
        self.server.process.signal(signal).expect("signalled");
    }

    async fn ping(&self) -> bool {
        let Ok(mut connection) = connect(&self.url()).await else { return false };
        redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
    }

    /// Seconds since 1970, as it sees it.
    async fn time(&self) -> u64 {
        let mut connection = connect(&self.url()).await.expect("a connection");
        let (seconds, _): (u64, u64) =
            redis::cmd("TIME").query_async(&mut connection).await.expect("TIME");
        seconds
    }
}

/// What gives a server a clock that can be turned.
fn clock_library() -> PathBuf {
    static LIBRARY: LazyLock<TempDir> = LazyLock::new(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/harness/clock.c");
        let mut compiler = Command::new("cc");
        compiler
            .args(["-shared", "-fPIC", "-O", "-o"])
            .arg(dir.path().join("clock.so"))
            .arg(source);
        assert!(compiler.status().expect("cc runs").success(), "clock.c does not compile");
        dir
    });
    LIBRARY.path().join("clock.so")
}

async fn connect(url: &str) -> redis::RedisResult<MultiplexedConnection> {
    let patient = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE));
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&patient).await
}

async fn keys(url: &str, pattern: &str) -> BTreeMap<String, i64> {
    let mut connection = connect(url).await.expect("a master");
    let mut found = BTreeMap::new();
    let names: Vec<String> =
        redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await.expect("KEYS");
    for name in names {
        let left: i64 =
            redis::cmd("PTTL").arg(&name).query_async(&mut connection).await.expect("PTTL");
        if left != -2 {
            found.insert(name, left);
        }
    }
    found
}

impl World {
    /// This world's keys on any of its masters, with what is left of their lives in ms, or -1 where
    /// they live for ever.
    pub(crate) async fn keys(&self) -> BTreeMap<String, i64> {
        let mut found = BTreeMap::new();
        for url in &self.config.redis.urls {
            found.extend(keys(url.expose(), &format!("{}*", self.config.lock.prefix)).await);
        }
        found
    }

    /// Has all its masters forget this world's keys. Answers how many there were.
    pub(crate) async fn delete_keys(&self) -> usize {
        let mut deleted = 0;
        for url in &self.config.redis.urls {
            let names: Vec<_> = keys(url.expose(), &format!("{}*", self.config.lock.prefix))
                .await
                .into_keys()
                .collect();
            let mut connection = connect(url.expose()).await.expect("a master");
            for name in names {
                deleted += redis::cmd("DEL")
                    .arg(name)
                    .query_async::<usize>(&mut connection)
                    .await
                    .expect("DEL");
            }
        }
        deleted
    }
}
