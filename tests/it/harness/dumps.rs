//! Copies of databases, as an operator makes them: by the dump program of the servers.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
};

use stocklock_servers::Programs;
use url::Url;

use super::blocking;

/// The dump program of MariaDB. It serves MySQL too.
const DUMP: &str = "mariadb-dump";

/// Writes a database to a file, as it is at one instant. `options` may name tables.
pub(crate) async fn dump(url: &str, file: &Path, options: &[&str]) {
    let mut dump = client(DUMP, url);
    dump.args(["--single-transaction", "--no-tablespaces", "--skip-lock-tables"]);
    dump.arg(database(url)).args(options);
    dump.stdout(File::create(file).expect("a file"));
    run(dump).await;
}

/// Runs the statements of a dump in a database.
pub(crate) async fn restore(url: &str, file: &Path) {
    let mut restore = client(&Programs::sql_client().display().to_string(), url);
    restore.arg(database(url)).stdin(File::open(file).expect("the dump"));
    run(restore).await;
}

/// A client program that connects to the server of a URL.
fn client(program: &str, url: &str) -> Command {
    let url = Url::parse(url).expect("a URL");
    let (host, port) = (url.host_str().expect("a host"), url.port().expect("a port"));
    let mut client = Command::new(program);
    client.args(["--no-defaults", "--protocol=tcp", "--user", url.username()]);
    client.arg(format!("--password={}", url.password().expect("a password")));
    client.args(["--host", host, "--port", &port.to_string()]);
    if url.query().is_some_and(|query| query.contains("REQUIRED")) {
        client.arg("--ssl");
    }
    client.stdin(Stdio::null());
    client
}

/// The database of a URL.
pub(crate) fn database(url: &str) -> String {
    Url::parse(url).expect("a URL").path().trim_start_matches('/').to_owned()
}

/// Fails the test unless the program ends well.
async fn run(mut program: Command) {
    let output = blocking(move || program.output()).await;
    let output = output.expect("it is installed: dev/test installs mariadb-client");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
