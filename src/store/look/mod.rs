//! Looks at a store for `stocklock doctor` and `setup`: what the server is, how it is set, and what
//! the user may do. No look changes a row.
//!
//! | file | what it looks at |
//! | --- | --- |
//! | `server.rs` | the product and its version |
//! | `settings.rs` | the server's settings, and whether a session can be set up |
//! | `tables.rs` | migrations, collations, engines |
//! | `rights.rs` | the rights of the users |

mod rights;
mod server;
mod settings;
mod tables;

use std::{str::FromStr as _, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, MySqlConnection,
    mysql::{MySqlConnectOptions, MySqlDatabaseError},
};
use tokio::time::timeout;

use self::server::Product;
use super::{
    StoreName, StoreUse, error::raised_by_server, limits::Limits, session, tls_advice::advice,
};
use crate::{
    config::{SecretUrl, StoreConfig},
    error_text::with_causes,
    finding::{Check, Finding, Findings, Remedy},
};

/// How long the server may take to let the user in.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long all looks at a connected server may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);

const TOO_MANY_CONNECTIONS: u16 = 1040;
/// The limits of an account: its connections at one time, and those within an hour.
const TOO_MANY_OF_USER: u16 = 1203;
const USER_LIMIT_REACHED: u16 = 1226;
const DATABASE_DENIED: u16 = 1044;
const UNKNOWN_DATABASE: u16 = 1049;

/// A store, and what its users need.
#[derive(Debug, Clone)]
pub(crate) struct StoreLook<'a> {
    pub(crate) store: StoreName,
    pub(crate) config: &'a StoreConfig,
    /// `lock.ttl`, which bounds the sessions.
    pub(crate) lock_limit: Duration,
    /// How the roles use it. Empty if only `setup` does.
    pub(crate) uses: Vec<StoreUse>,
    /// Whether the rights of `migrate_url` matter.
    pub(crate) is_migrated: bool,
    /// Whether `stocklock verify` matters, which needs one more right.
    pub(crate) is_verified: bool,
    /// The connections that one process of each role takes from this server.
    pub(crate) connections: u32,
}

impl StoreLook<'_> {
    /// Looks at everything. Never fails: what cannot be looked at is a finding too. Takes 27 s at
    /// most.
    pub(crate) async fn findings(&self) -> Vec<Finding> {
        let mut findings = Findings::of(self.store.as_str(), address(&self.config.url));
        let connected = self.connect(&self.config.url, "url", &mut findings).await;
        // A user that cannot log in has its finding already.
        let is_other = self.config.migrate_url != self.config.url;
        let is_migrated = self.is_migrated && (is_other || connected.is_some());
        let mut of_migrate_user = Findings::of(self.store.as_str(), address(&self.config.url));
        tokio::join!(
            async {
                if let Some(conn) = connected {
                    self.look_in_time(conn, &mut findings).await;
                }
            },
            async {
                if is_migrated {
                    rights::look_at_migrate_user(self, &mut of_migrate_user).await;
                }
            },
        );
        [findings.into_vec(), of_migrate_user.into_vec()].concat()
    }

    async fn look_in_time(&self, mut conn: MySqlConnection, findings: &mut Findings) {
        let looked = timeout(LOOK_TIMEOUT, self.look(&mut conn, findings)).await;
        match looked {
            Ok(Ok(())) => {}
            Ok(Err(error)) => findings.unreachable(
                format!("the connection failed: {}", with_causes(&error)),
                Remedy::Advice("look into the log of the database server".into()),
            ),
            Err(_) => self.hangs(LOOK_TIMEOUT, findings),
        }
        let _closed = timeout(Duration::from_secs(1), conn.close()).await;
    }

    /// Fails only if the connection does.
    async fn look(
        &self,
        conn: &mut MySqlConnection,
        findings: &mut Findings,
    ) -> Result<(), sqlx::Error> {
        let product = server::look(conn, findings).await?;
        if !product.is_supported {
            return Ok(());
        }
        let is_writable = settings::look(self, product, conn, findings).await?;
        let is_migrated = tables::look(self.store, conn, findings).await?;
        if is_writable {
            rights::look(self, is_migrated, conn, findings).await?;
        }
        Ok(())
    }

    /// `None` if there is no session, which is then a finding. `key` is `url` or `migrate_url`.
    async fn connect(
        &self,
        url: &SecretUrl,
        key: &str,
        findings: &mut Findings,
    ) -> Option<MySqlConnection> {
        let setting = format!("{}.{key}", self.store.as_str());
        let options = MySqlConnectOptions::from_str(url.expose());
        // The file of a local server that is stopped is gone.
        let is_stopped = options
            .as_ref()
            .is_ok_and(|options| options.get_socket().is_some_and(|socket| !socket.exists()));
        match timeout(DIAL_TIMEOUT, async { options?.connect().await }).await {
            Ok(Ok(conn)) => {
                if key == "url" {
                    findings.fine(Check::Reachable, "answers, and lets the user in");
                }
                Some(conn)
            }
            Ok(Err(error)) if is_stopped => {
                unreachable(error.to_string(), &setting, findings);
                None
            }
            Ok(Err(error)) => {
                refusal(&error, &setting, findings);
                None
            }
            Err(_) => {
                self.hangs(DIAL_TIMEOUT, findings);
                None
            }
        }
    }

    fn hangs(&self, limit: Duration, findings: &mut Findings) {
        findings.unreachable(
            format!("no answer within {} s", limit.as_secs()),
            Remedy::Advice(format!(
                "check the server's load, and the network up to the address of {}.url",
                self.store.as_str()
            )),
        );
    }
}

fn unreachable(why: String, setting: &str, findings: &mut Findings) {
    let advice = format!("start the server, or correct the address of {setting}");
    findings.unreachable(why, Remedy::Advice(advice));
}

/// Why the server did not let the user in. `setting` is the key with the URL.
fn refusal(error: &sqlx::Error, setting: &str, findings: &mut Findings) {
    let text = error.to_string();
    let advice = advice(error);
    let Some(raised) = raised_by_server(error) else {
        // A server that answers is not unreachable.
        if let Some(advice) = advice {
            let advice = Remedy::Advice(format!("{setting}: {advice}"));
            findings.wrong(Check::Encryption, text, advice);
        } else {
            unreachable(text, setting, findings);
        }
        return;
    };
    let url = format!("{setting} = \"mysql://USER:PASSWORD@HOST/DATABASE\"");
    match raised.number() {
        UNKNOWN_DATABASE => {
            let database = quoted(raised.message()).unwrap_or("DATABASE");
            let sql = format!("CREATE DATABASE `{database}`");
            findings.wrong(Check::Database, text, Remedy::Sql(sql));
        }
        DATABASE_DENIED => {
            let (account, database) = denied(raised);
            let sql = grant_rows(&database, &account);
            findings.wrong(Check::Privileges, text, Remedy::Sql(sql));
        }
        TOO_MANY_CONNECTIONS => {
            let sql = "SET GLOBAL max_connections = @@GLOBAL.max_connections * 2".to_owned();
            findings.wrong(Check::Connections, text, Remedy::Sql(sql));
        }
        TOO_MANY_OF_USER | USER_LIMIT_REACHED => {
            let section = setting.split('.').next().unwrap_or_default();
            let advice = format!(
                "raise max_user_connections of the server, or the limits of the account (ALTER \
                 USER … WITH MAX_USER_CONNECTIONS …); or lower {section}.pool_max"
            );
            findings.wrong(Check::Connections, text, Remedy::Advice(advice));
        }
        // A wrong password, a host that may not log in, or a demand for TLS.
        _ => {
            let text = advice.map_or_else(|| text.clone(), |advice| format!("{text} ({advice})"));
            findings.wrong(Check::Login, text, Remedy::Setting(url));
        }
    }
}

/// The account and the database that the server names as it denies one to the other.
fn denied(raised: &MySqlDatabaseError) -> (String, String) {
    denied_in(raised.message()).unwrap_or_else(|| ("'USER'@'%'".into(), "DATABASE".into()))
}

/// Reads `Access denied for user 'USER'@'HOST' to database 'DATABASE'`.
fn denied_in(message: &str) -> Option<(String, String)> {
    let (account, database) = message.split_once("for user '")?.1.rsplit_once("' to database '")?;
    let (user, host) = account.rsplit_once("'@'")?;
    Some((account_of(user, host), database.strip_suffix('\'')?.to_owned()))
}

/// An account as a statement has it.
fn account_of(user: &str, host: &str) -> String {
    let [user, host] = [user, host].map(|name| name.replace('\\', "\\\\").replace('\'', "''"));
    format!("'{user}'@'{host}'")
}

/// What stands between the first two single quotes.
fn quoted(text: &str) -> Option<&str> {
    text.split('\'').nth(1)
}

/// The rights of a role's user. In the name of a granted database, `_` and `%` are wildcards.
fn grant_rows(database: &str, account: &str) -> String {
    let database = database.replace('\\', "\\\\").replace('_', "\\_").replace('%', "\\%");
    format!("GRANT SELECT, INSERT, UPDATE, DELETE ON `{database}`.* TO {account}")
}

/// `host:port/database`, without the user.
fn address(url: &SecretUrl) -> String {
    MySqlConnectOptions::from_str(url.expose())
        .map_or_else(|_| url.to_string(), |options| session::address(&options))
}

/// The limits that a session gets.
fn limits(look: &StoreLook<'_>) -> Limits {
    Limits::within(look.lock_limit)
}

/// The statement that sets a global variable. MySQL also keeps it for its next start.
fn set_global(product: Product, name: &str, value: &str) -> Remedy {
    Remedy::Sql(if product.is_mariadb {
        format!("SET GLOBAL {name} = {value} -- and in the server's option file")
    } else {
        format!("SET PERSIST {name} = {value}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_names_one_database_and_no_pattern() {
        let sql = grant_rows("shop_1", "'stocklock'@'%'");

        assert_eq!(sql, "GRANT SELECT, INSERT, UPDATE, DELETE ON `shop\\_1`.* TO 'stocklock'@'%'");
    }

    #[test]
    fn an_account_is_quoted_whatever_its_name_has() {
        let denied = denied_in("Access denied for user 'o'neil'@'%' to database 'shop'");

        assert_eq!(denied, Some(("'o''neil'@'%'".to_owned(), "shop".to_owned())));
        assert_eq!(account_of(r"a\b", "10.0.0.%"), r"'a\\b'@'10.0.0.%'");
        assert_eq!(denied_in("another text"), None);
    }
}
