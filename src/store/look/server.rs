//! Which server it is. Servers that only speak the protocol are refused by name.

use sqlx::{MySqlConnection, Row as _};

use crate::{
    finding::{Check, Findings, Remedy},
    store::{StoreError, migrate::check_json_table},
};

/// What a version text contains, and the server that it means. All of them lack something that
/// stocklock's transactions use: row locks in key order, `JSON_TABLE`, or user-level locks.
const OTHER_SERVERS: [(&str, &str); 11] = [
    ("vitess", "Vitess"),
    ("planetscale", "PlanetScale (Vitess)"),
    ("tidb", "TiDB"),
    ("oceanbase", "OceanBase"),
    ("singlestore", "SingleStore"),
    ("memsql", "SingleStore (MemSQL)"),
    ("xpand", "MariaDB Xpand"),
    ("tddl", "PolarDB-X"),
    ("starrocks", "StarRocks"),
    ("doris", "Apache Doris"),
    ("dolt", "Dolt"),
];

const MIN_MYSQL: Version = Version(8, 4, 0);
const MIN_MARIADB: Version = Version(10, 11, 10);
const USE_ANOTHER: &str = "use MySQL 8.4 or later, or MariaDB 10.11.10 or later";

/// A version of a server. The comparison is that of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

/// What a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Product {
    pub(crate) is_mariadb: bool,
    /// Whether it can run the statements of stocklock.
    pub(crate) is_supported: bool,
}

/// Fails only if the connection does.
pub(super) async fn look(
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<Product, sqlx::Error> {
    let version = text(conn, "SELECT VERSION()").await?.unwrap_or_default();
    let comment = text(conn, "SELECT @@version_comment").await?.unwrap_or_default();
    let aurora = text(conn, "SELECT @@aurora_version").await?;
    let found = judge(&version, &comment, aurora.as_deref());
    let is_mariadb = version.to_lowercase().contains("mariadb");
    let mut product = Product { is_mariadb, is_supported: found.is_ok() };
    match found {
        Err(why) => findings.wrong(Check::Version, why, Remedy::Advice(USE_ANOTHER.into())),
        Ok(name) => match check_json_table(conn).await {
            Ok(()) => findings.fine(Check::Version, name),
            Err(StoreError::Unsupported(why)) => {
                product.is_supported = false;
                let text = format!("{name}: {why}");
                findings.wrong(Check::Version, text, Remedy::Advice(USE_ANOTHER.into()));
            }
            Err(error) => {
                product.is_supported = false;
                let text = format!("{name}: cannot run JSON_TABLE: {error}");
                findings.wrong(Check::Version, text, Remedy::Advice(USE_ANOTHER.into()));
            }
        },
    }
    Ok(product)
}

/// The name and the version of the server, or why it cannot be used.
fn judge(version: &str, comment: &str, aurora: Option<&str>) -> Result<String, String> {
    let described = format!("{version} {comment}").to_lowercase();
    for (mark, name) in OTHER_SERVERS {
        if described.contains(mark) {
            return Err(format!(
                "the server is {name} ({version}), which cannot run stocklock's transactions"
            ));
        }
    }
    let (name, least) = match aurora {
        Some(aurora) => (format!("Aurora {aurora} (MySQL {version})"), MIN_MYSQL),
        None if described.contains("mariadb") => (format!("MariaDB {version}"), MIN_MARIADB),
        None => (format!("MySQL {version}"), MIN_MYSQL),
    };
    match Version::parse(version) {
        Some(found) if found >= least => Ok(name),
        Some(_) => {
            let Version(major, minor, patch) = least;
            Err(format!("the server is {name}, older than {major}.{minor}.{patch}"))
        }
        None => Err(format!("the server has no version that can be read: {version:?}")),
    }
}

impl Version {
    /// Reads the first three numbers. Before version 11, MariaDB puts `5.5.5-` in front for old
    /// clients.
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("5.5.5-").unwrap_or(text);
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self(next()?, next()?, next().unwrap_or(0)))
    }
}

/// The answer to a query for one text. `None` if the server refuses the query.
///
/// Fails only if the connection does.
async fn text(conn: &mut MySqlConnection, sql: &str) -> Result<Option<String>, sqlx::Error> {
    match sqlx::raw_sql(sql).fetch_one(conn).await {
        Ok(row) => row.try_get_unchecked(0),
        Err(sqlx::Error::Database(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_cannot_run_the_statements_are_refused_by_name() {
        for (version, comment, name) in [
            ("8.0.30-Vitess", "Version: 21.0.0", "Vitess"),
            ("8.0.11-TiDB-v8.5.0", "TiDB Server (Apache License 2.0)", "TiDB"),
            ("5.7.25-OceanBase_CE-v4.3.5", "OceanBase_CE 4.3.5", "OceanBase"),
            ("5.7.32", "SingleStoreDB source distribution", "SingleStore"),
            ("5.0.45-Xpand-6.1", "", "Xpand"),
            ("8.0.33", "StarRocks version 3.3", "StarRocks"),
            ("8.0.33", "Dolt", "Dolt"),
        ] {
            let refused = judge(version, comment, None).unwrap_err();

            assert!(refused.contains(name) && refused.contains(version), "{refused}");
        }
    }

    #[test]
    fn versions_before_the_first_that_is_supported_are_refused() {
        for (version, is_fine) in [
            ("8.0.42", false),
            ("8.3.9", false),
            ("8.4.0", true),
            ("9.7.4-debug", true),
            ("10.11.9-MariaDB", false),
            ("10.11.10-MariaDB-deb12", true),
            ("5.5.5-10.6.18-MariaDB", false),
            ("11.4.2-MariaDB", true),
        ] {
            assert_eq!(judge(version, "", None).is_ok(), is_fine, "{version}");
        }
        let aurora = judge("8.0.39", "Source distribution", Some("3.10.0")).unwrap_err();
        assert!(aurora.contains("Aurora 3.10.0"), "{aurora}");
        judge("gibberish", "", None).unwrap_err();
    }
}
