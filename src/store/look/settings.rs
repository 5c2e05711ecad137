//! The settings of a database server, and whether it takes a session as the roles set it up.

use std::{collections::HashMap, time::Instant};

use chrono::{TimeDelta, Utc};
use sqlx::{MySqlConnection, Row as _};

use super::{Product, StoreLook, limits, set_global};
use crate::{
    error_text::with_causes,
    finding::{Check, Findings, Remedy},
};

/// A batch travels as one parameter, and a lane takes 8 MiB of messages.
const MIN_PACKET_BYTES: u64 = 16 << 20;
/// Connections for people, backups and monitoring, beside those of the roles.
const OTHER_CONNECTIONS: u64 = 10;

const VARIABLES: &str = "
    SHOW GLOBAL VARIABLES WHERE Variable_name IN
        ('read_only', 'super_read_only', 'innodb_read_only', 'log_bin', 'binlog_format',
         'sync_binlog', 'innodb_flush_log_at_trx_commit', 'innodb_log_writer_threads',
         'max_allowed_packet', 'max_connections', 'group_replication_group_name')";

/// The global variables that the server has.
struct Variables(HashMap<String, String>);

impl Variables {
    async fn read(conn: &mut MySqlConnection) -> Result<Self, sqlx::Error> {
        let rows = sqlx::raw_sql(VARIABLES).fetch_all(conn).await?;
        let read = rows.iter().map(|row| {
            Ok((row.try_get_unchecked::<String, _>(0)?, row.try_get_unchecked::<String, _>(1)?))
        });
        Ok(Self(read.collect::<Result<_, sqlx::Error>>()?))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| matches!(value, "ON" | "1"))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }
}

/// Returns whether the server takes writes. Fails only if the connection does.
pub(super) async fn look(
    look: &StoreLook<'_>,
    product: Product,
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<bool, sqlx::Error> {
    let variables = Variables::read(conn).await?;
    let is_writable = look_at_read_only(look, &variables, product, conn, findings).await?;
    look_at_log(&variables, product, findings);
    look_at_limits(look, &variables, product, findings);
    look_at_session(look, conn, findings).await?;
    look_at_clock(conn, findings).await?;
    Ok(is_writable)
}

async fn look_at_read_only(
    look: &StoreLook<'_>,
    variables: &Variables,
    product: Product,
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<bool, sqlx::Error> {
    let url = format!("{}.url = \"mysql://…\", with the primary", look.store.as_str());
    if variables.is_on("innodb_read_only") {
        findings.wrong(
            Check::Writable,
            "innodb_read_only is ON: the server was started to read alone",
            Remedy::Setting(url),
        );
        return Ok(false);
    }
    if variables.is_on("read_only") || variables.is_on("super_read_only") {
        let is_member =
            variables.get("group_replication_group_name").is_some_and(|name| !name.is_empty());
        let is_replica = if is_member { Some(true) } else { replicates(product, conn).await? };
        let (text, remedy) = match is_replica {
            Some(false) => (
                "read_only is ON, and the server is no replica. If it was the primary before a \
                 failover, point the URL to the present one instead",
                Remedy::Sql("SET GLOBAL read_only = OFF".into()),
            ),
            Some(true) => (
                "read_only is ON: the server is a replica. Point the URL to the primary; or \
                 promote this server, if the primary is gone for ever",
                Remedy::Setting(url),
            ),
            None => (
                "read_only is ON: the server is a replica, or a demoted primary. (The user may not \
                 ask which.) Point the URL to the primary",
                Remedy::Setting(url),
            ),
        };
        findings.wrong(Check::Writable, text, remedy);
        return Ok(false);
    }
    findings.fine(Check::Writable, "takes writes");
    Ok(true)
}

/// Whether the server is set up as a replica. `None` if it does not tell the user. Fails only if
/// the connection does.
async fn replicates(
    product: Product,
    conn: &mut MySqlConnection,
) -> Result<Option<bool>, sqlx::Error> {
    let sql = if product.is_mariadb { "SHOW ALL SLAVES STATUS" } else { "SHOW REPLICA STATUS" };
    match sqlx::raw_sql(sql).fetch_all(conn).await {
        Ok(rows) => Ok(Some(!rows.is_empty())),
        Err(sqlx::Error::Database(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn look_at_log(variables: &Variables, product: Product, findings: &mut Findings) {
    let logs = variables.is_on("log_bin");
    match variables.get("binlog_format") {
        Some("STATEMENT") if logs => findings.wrong(
            Check::BinlogFormat,
            "binlog_format is STATEMENT, by which InnoDB cannot log READ COMMITTED",
            set_global(product, "binlog_format", "'ROW'"),
        ),
        Some(format) if logs => {
            findings.fine(Check::BinlogFormat, format!("binlog_format is {format}"));
        }
        _ => findings.fine(Check::BinlogFormat, "no binary log, or rows alone"),
    }
    let durable = [("innodb_flush_log_at_trx_commit", true), ("sync_binlog", logs)];
    let mut lacks = false;
    for (name, _) in durable.into_iter().filter(|(_, matters)| *matters) {
        if let Some(value) = variables.get(name).filter(|value| *value != "1") {
            lacks = true;
            findings.warning(
                Check::Durability,
                format!("{name} is {value}: a crash of the machine can lose committed orders"),
                set_global(product, name, "1"),
            );
        }
    }
    if !lacks {
        findings.fine(Check::Durability, "a commit is on disk before it is answered");
    }
    if variables.get("innodb_log_writer_threads") == Some("OFF") {
        findings.warning(
            Check::LogWriterThreads,
            "innodb_log_writer_threads is OFF: a commit sleeps for 100 ms now and then",
            set_global(product, "innodb_log_writer_threads", "ON"),
        );
    } else {
        findings.fine(Check::LogWriterThreads, "commits do not sleep");
    }
}

fn look_at_limits(
    look: &StoreLook<'_>,
    variables: &Variables,
    product: Product,
    findings: &mut Findings,
) {
    match variables.number("max_allowed_packet") {
        Some(bytes) if bytes < MIN_PACKET_BYTES => findings.wrong(
            Check::PacketSize,
            format!("max_allowed_packet is {bytes}: a large batch does not fit"),
            set_global(product, "max_allowed_packet", "67108864"),
        ),
        _ => findings.fine(Check::PacketSize, "a batch fits max_allowed_packet"),
    }
    let needed = u64::from(look.connections) + OTHER_CONNECTIONS;
    match variables.number("max_connections") {
        Some(max) if max < needed => findings.warning(
            Check::Connections,
            format!(
                "max_connections is {max}: one process of each role opens up to {}, and others \
                 need some too",
                look.connections
            ),
            set_global(product, "max_connections", &(needed * 4).max(151).to_string()),
        ),
        _ => findings.fine(
            Check::Connections,
            format!("max_connections has room for the {} of each role", look.connections),
        ),
    }
}

/// Sets the session up as the roles do, and reads the isolation level back.
async fn look_at_session(
    look: &StoreLook<'_>,
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let advice = || Remedy::Advice("use a server that docs/databases.md names".into());
    match sqlx::raw_sql(&limits(look).session()).execute(&mut *conn).await {
        Ok(_) => {}
        Err(error @ sqlx::Error::Database(_)) => {
            let text = format!("a session cannot be set up: {}", with_causes(&error));
            findings.wrong(Check::Session, text, advice());
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    let sql = "SHOW SESSION VARIABLES WHERE Variable_name IN ('transaction_isolation',
               'tx_isolation')";
    let rows = sqlx::raw_sql(sql).fetch_all(conn).await?;
    let levels = rows.iter().map(|row| row.try_get_unchecked::<String, _>(1));
    let levels = levels.collect::<Result<Vec<_>, _>>()?;
    if levels.iter().any(|level| level != "READ-COMMITTED") {
        let text = format!("the isolation level stays {}, not READ-COMMITTED", levels.join(", "));
        findings.wrong(Check::Session, text, advice());
    } else {
        findings.fine(Check::Session, "sessions are READ COMMITTED, UTC and strict");
    }
    Ok(())
}

/// Compares the server's clock with the middle of the question's time.
async fn look_at_clock(
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let (asked_at, asked) = (Utc::now(), Instant::now());
    let sql = "SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000 AS SIGNED)";
    let theirs: i64 = sqlx::raw_sql(sql).fetch_one(conn).await?.try_get_unchecked(0)?;
    let middle = asked_at + asked.elapsed() / 2;
    let ahead = TimeDelta::milliseconds(theirs - middle.timestamp_millis());
    findings.clock(ahead);
    Ok(())
}
