//! What the users of a store may do. Each right is tried by a statement that changes no row.

use sqlx::{Connection as _, Executor as _, MySqlConnection, Row as _, mysql::MySqlDatabaseError};
use tokio::time::timeout;

use super::{LOOK_TIMEOUT, StoreLook, account_of, grant_rows};
use crate::{
    finding::{Check, Findings, Remedy},
    store::{StoreName, error::raised_by_server},
};

pub(super) const TABLE_DENIED: u16 = 1142;
pub(super) const COLUMN_DENIED: u16 = 1143;
pub(super) const UNKNOWN_TABLE: u16 = 1146;
const UNKNOWN_COLUMN: u16 = 1054;
const SPECIAL_DENIED: u16 = 1227;

/// The table that [`look_at_migrate_user`] tries to alter and to drop. There is none. A server says
/// so only to a user with the right to do it.
const NO_TABLE: &str = "stocklock_doctor_no_table";

/// What retention does beside the statements of the roles.
const PURGES_OF_ORDERS: &str = "
    DELETE FROM orders WHERE FALSE;
    DELETE FROM idempotency_keys WHERE FALSE;
    UPDATE order_horizon SET purged_below = purged_below WHERE FALSE";
const PURGES_OF_STOCK: &str = "
    DELETE FROM order_outcomes WHERE FALSE;
    DELETE FROM stock_movements WHERE FALSE;
    DELETE FROM adjustment_requests WHERE FALSE;
    INSERT INTO ledger_balances (product_id, supplied, held)
        SELECT product_id, supplied, held FROM ledger_balances WHERE FALSE;
    UPDATE ledger_balances SET supplied = supplied, held = held WHERE FALSE;
    UPDATE ledger_horizon SET purged_below = purged_below WHERE FALSE";

/// Tries what the roles do. Before all migrations have run, a missing table is no finding.
///
/// Fails only if the connection does.
pub(super) async fn look(
    look: &StoreLook<'_>,
    is_migrated: bool,
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    if !look.uses.is_empty() {
        look_at_rows(look, is_migrated, conn, findings).await?;
    }
    if look.is_verified {
        look_at_process(conn, findings).await?;
    }
    Ok(())
}

async fn look_at_rows(
    look: &StoreLook<'_>,
    is_migrated: bool,
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let purges = match (look.store, look.uses.iter().any(|each| each.purges())) {
        (_, false) => "",
        (StoreName::OrderStore, true) => PURGES_OF_ORDERS,
        (StoreName::StockStore, true) => PURGES_OF_STOCK,
    };
    let statements = look.uses.iter().map(|each| each.statements());
    let statements = statements.chain([purges.to_owned()]).collect::<Vec<_>>().join(";");
    let mut denied = Vec::new();
    for statement in statements.split(';').filter(|statement| !statement.trim().is_empty()) {
        let Err(error) = conn.execute(statement).await else { continue };
        let Some(raised) = raised_by_server(&error) else { return Err(error) };
        match raised.number() {
            TABLE_DENIED | COLUMN_DENIED => denied.push(raised.message().to_owned()),
            UNKNOWN_TABLE | UNKNOWN_COLUMN if !is_migrated => {}
            _ => findings.wrong(
                Check::Migrations,
                format!("a statement of the roles fails: {}", raised.message()),
                Remedy::Advice("restore the table as setup had made it".into()),
            ),
        }
    }
    match denied.first() {
        None => findings.fine(Check::Privileges, "the user may read and write the rows"),
        Some(first) => {
            let sql = grant_rows(&database(conn).await?, &account(conn).await?);
            let text = format!("{} statements are denied: {first}", denied.len());
            findings.wrong(Check::Privileges, text, Remedy::Sql(sql));
        }
    }
    Ok(())
}

async fn look_at_process(
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let sql = "SELECT 1 FROM information_schema.innodb_trx LIMIT 1";
    let denied = match conn.execute(sql).await {
        Ok(_) => false,
        Err(error) => match raised_by_server(&error).map(MySqlDatabaseError::number) {
            Some(number) => number == SPECIAL_DENIED,
            None => return Err(error),
        },
    };
    if denied {
        let sql = format!("GRANT PROCESS ON *.* TO {}", account(conn).await?);
        findings.warning(
            Check::ProcessPrivilege,
            "the user lacks the privilege PROCESS: stocklock verify cannot check invariant 6",
            Remedy::Sql(sql),
        );
    } else {
        findings.fine(Check::ProcessPrivilege, "stocklock verify can see open transactions");
    }
    Ok(())
}

/// Whether the user of `migrate_url` may make, alter and drop tables. Tried with a table that does
/// not exist: a server checks the right first.
pub(super) async fn look_at_migrate_user(look: &StoreLook<'_>, findings: &mut Findings) {
    let url = &look.config.migrate_url;
    let Some(mut conn) = look.connect(url, "migrate_url", findings).await else { return };
    let tried = timeout(LOOK_TIMEOUT, try_migrating(&mut conn, findings)).await;
    match tried {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let advice = Remedy::Advice("look into the log of the database server".into());
            findings.unreachable(error.to_string(), advice);
        }
        Err(_) => look.hangs(LOOK_TIMEOUT, findings),
    }
    let _closed = timeout(std::time::Duration::from_secs(1), conn.close()).await;
}

async fn try_migrating(
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let mut denied = Vec::new();
    for sql in [
        format!("ALTER TABLE {NO_TABLE} ADD COLUMN a INT"),
        format!("CREATE TABLE {NO_TABLE} LIKE {NO_TABLE}_either"),
        format!("DROP TABLE {NO_TABLE}"),
    ] {
        let Err(error) = conn.execute(sql.as_str()).await else { continue };
        match raised_by_server(&error) {
            Some(raised) if raised.number() == TABLE_DENIED => {
                denied.push(raised.message().to_owned());
            }
            Some(_) => {}
            None => return Err(error),
        }
    }
    match denied.first() {
        None => findings.fine(Check::MigrateUser, "setup's user may make, alter and drop tables"),
        Some(first) => {
            let rows = grant_rows(&database(conn).await?, &account(conn).await?);
            let sql = rows.replacen("DELETE ON", "DELETE, CREATE, ALTER, DROP ON", 1);
            findings.wrong(
                Check::MigrateUser,
                format!("setup cannot migrate: {first}"),
                Remedy::Sql(sql),
            );
        }
    }
    Ok(())
}

/// The account of the session, quoted as a statement has it.
pub(super) async fn account(conn: &mut MySqlConnection) -> Result<String, sqlx::Error> {
    let row = sqlx::raw_sql("SELECT CURRENT_USER()").fetch_one(conn).await?;
    let account: String = row.try_get_unchecked(0)?;
    Ok(match account.rsplit_once('@') {
        Some((user, host)) => account_of(user, host),
        None => account_of(&account, "%"),
    })
}

pub(super) async fn database(conn: &mut MySqlConnection) -> Result<String, sqlx::Error> {
    sqlx::raw_sql("SELECT DATABASE()").fetch_one(conn).await?.try_get_unchecked(0)
}
