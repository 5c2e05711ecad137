//! The settings for a stack, as environment variables.

use std::{env, path::Path};

use anyhow::Context as _;
use stocklock_servers::{Flavour, Programs, sql_url};

use super::conf::{Conf, ServerName};

/// The folder of the libraries for programs in other languages.
const CLIENTS: &str = "STOCKLOCK_TEST_CLIENTS";

/// What stocklock, the tests, the demo and the bench need to find the servers and their programs.
pub(super) fn of(dir: &Path, conf: &Conf) -> anyhow::Result<Vec<(String, String)>> {
    let sql: Vec<_> = conf
        .servers
        .iter()
        .filter_map(|server| Some((server.flavour()?, conf.address(*server))))
        .collect();
    let (flavour, address) = sql.first().context("a stack has an SQL server")?;
    let store = sql_url(*flavour, address, "stocklock", "stocklock");
    let databases = sql.iter().map(|(flavour, address)| {
        format!("{}={}", flavour.name(), sql_url(*flavour, address, "stocklock", ""))
    });
    let redis = conf.servers.iter().filter(|server| matches!(server, ServerName::Redis(_)));
    let redis = redis.map(|server| format!("redis://{}", conf.address(*server)));
    let mut settings = vec![
        ("STOCKLOCK__KAFKA__BROKERS", conf.address(ServerName::Kafka)),
        ("STOCKLOCK__ORDER_STORE__URL", store.clone()),
        ("STOCKLOCK__STOCK_STORE__URL", store),
        ("STOCKLOCK__REDIS__URLS", redis.collect::<Vec<_>>().join(",")),
        ("STOCKLOCK_TEST_DATABASES", databases.collect::<Vec<_>>().join(",")),
        ("STOCKLOCK_STACK_DIR", dir.display().to_string()),
        ("STOCKLOCK_SERVERS", env::current_exe()?.display().to_string()),
        (Programs::KAFKA_HOME, Programs::kafka_home()?.display().to_string()),
        (Programs::REDIS_SERVER, Programs::redis_server()?.display().to_string()),
    ];
    for (flavour, _) in sql {
        let variable = match flavour {
            Flavour::MySql => Programs::MYSQLD,
            Flavour::MariaDb => Programs::MARIADBD,
        };
        settings.push((variable, flavour.program()?.display().to_string()));
    }
    for variable in [CLIENTS, Programs::REGISTRY_HOME, Programs::PROMETHEUS] {
        if let Ok(folder) = env::var(variable) {
            settings.push((variable, folder));
        }
    }
    Ok(settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// A word that every shell reads as this text.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
