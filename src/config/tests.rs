use std::io::Write;

use super::*;

fn resolve(env: &[(&str, &str)], flags: &[&str]) -> Result<Config, ConfigError> {
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let flags: Vec<_> = flags.iter().map(|s| (*s).to_owned()).collect();
    Config::resolve(&Layers::read(None, env, &flags))
}

#[test]
fn the_defaults_are_valid() {
    let config = resolve(&[], &[]).unwrap();
    assert_eq!(config.lock.strategy, LockStrategy::Row);
    assert_eq!(config.lock.ttl, Duration::from_secs(10));
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_a_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let text = "[worker]\nbatch_max = 7\nlanes = 3\n\
                [redis]\nurls = ['redis://a', 'redis://b', 'redis://c']";
    write!(file, "{text}").unwrap();
    let env = [("STOCKLOCK__WORKER__BATCH_MAX".to_owned(), "8".to_owned())];
    let read = |flags: &[String]| {
        Config::resolve(&Layers::read(Some(file.path()), env.clone().into_iter(), flags)).unwrap()
    };
    let config = read(&[]);
    assert_eq!(
        (config.worker.batches.max, config.worker.lanes, config.redis.urls.len()),
        (8, 3, 3)
    );
    assert_eq!(read(&["worker.batch_max=9".to_owned()]).worker.batches.max, 9);
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    let error = resolve(&[("STOCKLOCK__KAFKA__BROKER", "x")], &[]).unwrap_err().to_string();
    assert!(
        error.contains("STOCKLOCK__KAFKA__BROKER") && error.contains("did you mean kafka.brokers?"),
        "{error}"
    );
}

#[test]
fn every_wrong_key_is_reported_at_once() {
    let flags = [
        "lock.strategy=paxos",
        "lock.ttl=soon",
        "redis.urls=redis://a,redis://b",
        "worker.batch_max=0",
        "topics.retention=7",
    ];
    let ConfigError(errors) = resolve(&[], &flags).unwrap_err();
    assert_eq!(errors.len(), flags.len(), "{errors:?}");
}

#[test]
fn the_poll_interval_is_at_least_the_session_timeout() {
    let config =
        resolve(&[], &["kafka.session_timeout=30s", "kafka.max_poll_interval=30s"]).unwrap();
    assert_eq!(
        (config.kafka.group_protocol, config.kafka.group_instance_id),
        (GroupProtocol::Classic, None)
    );
    let error = resolve(&[], &["kafka.session_timeout=30s", "kafka.max_poll_interval=29s"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("kafka.max_poll_interval") && error.contains("30s"), "{error}");
}

#[test]
fn the_node_timeout_is_at_most_half_of_the_lock_ttl() {
    assert!(resolve(&[], &["lock.ttl=1s", "lock.node_timeout=500ms"]).is_ok());
    let error = resolve(&[], &["lock.ttl=1s", "lock.node_timeout=501ms"]).unwrap_err().to_string();
    assert!(error.contains("lock.node_timeout") && error.contains("500ms"), "{error}");
}

#[test]
fn topics_do_not_keep_events_beyond_the_horizon() {
    for (topics, outcomes, is_valid) in
        [("7d", "30d", true), ("29d", "30d", true), ("30d", "30d", false), ("7d", "7d", false)]
    {
        let flags =
            [format!("topics.retention={topics}"), format!("retention.outcomes={outcomes}")];
        let resolved = resolve(&[], &flags.each_ref().map(String::as_str));
        assert_eq!(resolved.is_ok(), is_valid, "{flags:?}: {resolved:?}");
        if let Err(error) = resolved {
            let error = error.to_string();
            assert!(
                error.contains("topics.retention") && error.contains("retention.outcomes"),
                "{error}"
            );
        }
    }
}

#[test]
fn a_hold_ends_before_its_order_is_too_old_for_a_release() {
    for (flags, is_valid) in [
        (["orders.hold_max=1s", "topics.retention=7d"], true),
        (["orders.hold_max=2505599s", "topics.retention=7d"], true),
        (["orders.hold_max=29d", "topics.retention=7d"], false),
        (["orders.hold_max=1s500ms", "topics.retention=7d"], false),
        (["retention.outcomes=1d", "topics.retention=1h"], false),
    ] {
        let resolved = resolve(&[], &flags);

        assert_eq!(resolved.is_ok(), is_valid, "{flags:?}: {resolved:?}");
        if let Err(error) = resolved {
            assert!(error.to_string().starts_with("orders.hold_max = "), "{error}");
        }
    }
}

#[test]
fn orders_outlive_the_rows_that_refer_to_them() {
    for key in ["retention.outcomes", "retention.idempotency_keys"] {
        let error = resolve(&[], &[&format!("{key}=91d")]).unwrap_err().to_string();
        assert!(error.starts_with(key) && error.contains("more than retention.orders"), "{error}");
        assert!(resolve(&[], &[&format!("{key}=91d"), "retention.orders=91d"]).is_ok());
    }
}

#[test]
fn a_password_is_never_shown() {
    let url = SecretUrl::new("mysql://user:p@ss:word@host/db?x=1");
    assert_eq!(url.to_string(), "mysql://user:***@host/db?x=1");
    let ConfigError(errors) =
        resolve(&[], &["order_store.url=postgres://u:hidden@h/d"]).unwrap_err();
    assert!(!errors[0].contains("hidden"), "{errors:?}");
}

#[test]
fn the_url_of_a_registry_holds_no_credentials() {
    for url in ["http://u:hidden@registry:8081", "https://u@registry", "http://:hidden@r/ccompat"] {
        let ConfigError(errors) =
            resolve(&[], &[&format!("schema_registry.url={url}")]).unwrap_err();

        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains("schema_registry.password"), "{errors:?}");
        assert!(!errors[0].contains("hidden"), "{errors:?}");
    }
    check("schema_registry.url", &["registry:8081"], &["", "http://registry:8081/ccompat/v7/"]);
}

#[test]
fn writer_schemas_are_files_that_may_have_an_id_each() {
    let read = |text: &str| resolve(&[("STOCKLOCK__TOPICS__WRITER_SCHEMAS", text)], &[]);
    let source = |path: &str, registered_id| SchemaSource { path: path.into(), registered_id };

    assert_eq!(read("").unwrap().topics.writer_schemas, []);
    let sources = read("a.avsc, 17=/b/c.avsc,d").unwrap().topics.writer_schemas;
    assert_eq!(sources, [source("a.avsc", None), source("/b/c.avsc", Some(17)), source("d", None)]);
    for wrong in ["a,,b", "17=", "x=a.avsc", "-1=a", "1=a,1=b"] {
        let error = read(wrong).unwrap_err().to_string();
        assert!(error.contains("topics.writer_schemas"), "{error}");
    }
}

/// Sets one key to invalid values and to valid values, each alone.
fn check(key: &str, refused: &[&str], accepted: &[&str]) {
    for value in refused {
        let resolved = resolve(&[], &[&format!("{key}={value}")]);
        let ConfigError(errors) = resolved.expect_err(&format!("{key}={value} is accepted"));
        assert!(
            errors.len() == 1 && errors[0].starts_with(&format!("{key} = ")),
            "{key}={value}: {errors:?}"
        );
    }
    for value in accepted {
        let resolved = resolve(&[], &[&format!("{key}={value}")]);
        assert!(resolved.is_ok(), "{key}={value}: {resolved:?}");
    }
}

#[test]
fn brokers_are_hosts_with_ports() {
    check(
        "kafka.brokers",
        &[
            "host:port",
            "host:0",
            "host:65536",
            ":9092",
            ",",
            "",
            "a b:1",
            "[::1:9092",
            "http:",
            "host:1:2",
        ],
        &[
            "host",
            "host:9092",
            "a:1, b:2",
            "a:1,",
            "a:1,,b:2",
            "[::1]:9092",
            "[::1]",
            "SASL_SSL://kafka_1.shop:9093",
            "10.0.0.1:1",
        ],
    );
}

#[test]
fn empty_entries_of_brokers_are_dropped() {
    let config = resolve(&[], &["kafka.brokers= a:1 ,, b,"]).unwrap();
    assert_eq!(config.kafka.brokers, "a:1,b");
}

#[test]
fn files_that_belong_together_are_refused_alone() {
    for (one, other) in [
        ("redis.ssl_key_location", "redis.ssl_certificate_location"),
        ("redis.ssl_certificate_location", "redis.ssl_key_location"),
    ] {
        let ConfigError(errors) = resolve(&[], &[&format!("{one}=/file")]).unwrap_err();
        assert!(errors.len() == 1 && errors[0].starts_with(other), "{errors:?}");
    }
}

#[test]
fn topics_have_names_of_their_own_that_kafka_takes() {
    let (long, longest) = ("x".repeat(250), "x".repeat(249));
    for key in
        ["topics.orders", "topics.order_status", "topics.orders_dlq", "topics.order_status_dlq"]
    {
        check(key, &["a/b", "a b", "é", ".", "..", "", &long], &["a.B_c-9", &longest]);
    }
    check("topics.stock_levels", &["a/b", &long], &["", &longest]);
    for (flags, named) in [
        (["topics.orders=x", "topics.order_status=x"], "topics.order_status"),
        (["topics.orders=x.y", "topics.orders_dlq=x_y"], "topics.orders_dlq"),
        (["topics.orders=x", "topics.stock_levels=x"], "topics.stock_levels"),
        (["kafka.group_id=x", "compensator.group_id=x"], "compensator.group_id"),
        (["kafka.group_id=x", "ingest.group_id=x"], "ingest.group_id"),
    ] {
        let ConfigError(errors) = resolve(&[], &flags).unwrap_err();
        assert!(errors.len() == 1 && errors[0].starts_with(named), "{errors:?}");
    }
    check("topics.replication", &["0", "-2"], &["-1", "3"]);
    check("topics.retention", &["0s", "7"], &["1d"]);
}

#[test]
fn urls_name_a_server_and_no_parameter_is_ignored() {
    for key in ["order_store.url", "stock_store.url", "stock_store.migrate_url"] {
        check(
            key,
            &[
                "mysql://u:p@host:port/shop",
                "mysql://u:p@host:0/shop",
                "mysql://u:p@host/",
                "mysql:///shop",
                "mysql://host/a/b",
                "mysql://host/shop?ssl_mode=REQUIRED",
                "mysql://host/shop?ssl-mode=REQUIERD",
                "postgres://host/shop",
            ],
            &[
                "mysql://u:p@host/shop?ssl-mode=required&ssl-ca=/ca.crt",
                "mysql://[::1]:3306/shop",
                "mysql:///a?socket=/s",
            ],
        );
    }
    check(
        "client.url",
        &["foo", "ftp://host", "http://", "http://host:port", "http://host?x=1", "127.0.0.1:8080"],
        &["http://127.0.0.1:8080", "https://shop.example.com/stock/"],
    );
    assert_eq!(resolve(&[], &["client.url=http://host:1/"]).unwrap().client.url, "http://host:1");
    check("http.listen", &["localhost:80", "127.0.0.1:port", "80"], &["[::]:80"]);
}

#[test]
fn masters_are_different_servers() {
    check(
        "redis.urls",
        &[
            "redis://a,redis://b,redis://a",
            "redis://a,redis://b,redis://u:p@A:6379/1",
            "redis://127.0.0.1,redis://b,rediss://localhost",
            "redis://[::1],redis://b,redis://127.0.0.1",
            "redis://[::1]:1,redis://[0:0:0:0:0:0:0:1]:1,redis://b",
            "unix:///r,unix:///r,unix:///s",
            "redis://a,redis://b",
            "redis://a:port",
            "redis://a/shop",
            "redis://",
            "rediss://a#insecure",
            "http://a",
            "a:6379",
            "",
        ],
        &[
            "redis://a",
            "rediss://u:p@a:6380/2",
            "redis://a:1, redis://a:2, redis://a:3",
            "redis://127.0.0.1,redis://127.0.0.2,redis://127.0.0.3",
            "valkey://a",
            "unix:///r",
        ],
    );
}

#[test]
fn a_log_level_is_a_level_or_directives() {
    check(
        "log.level",
        &["inof", "blah=foo", "info,stocklok", ""],
        &["WARN", "info,stocklock=debug", "off", "rdkafka=off"],
    );
}

#[test]
fn an_error_for_a_misspelt_variable_names_the_right_one() {
    for (variable, right) in [
        ("STOCKLOCK_KAFKA__BROKERS", "STOCKLOCK__KAFKA__BROKERS"),
        ("STOCKLOCK_KAFKA_BROKERS", "STOCKLOCK__KAFKA__BROKERS"),
        ("STOCKLOCK__KAFKA_BROKERS", "STOCKLOCK__KAFKA__BROKERS"),
        ("STOCKLOCK___KAFKA__BROKERS", "STOCKLOCK__KAFKA__BROKERS"),
        ("stocklock__kafka__brokers", "STOCKLOCK__KAFKA__BROKERS"),
        ("Stocklock.Order-Store.Url", "STOCKLOCK__ORDER_STORE__URL"),
        ("STOCKLOCK_KAFKA__BROKER", "STOCKLOCK__KAFKA__BROKERS"),
    ] {
        let ConfigError(errors) = resolve(&[(variable, "x:1")], &[]).expect_err(variable);
        assert!(
            errors.len() == 1 && errors[0].contains(variable) && errors[0].contains(right),
            "{errors:?}"
        );
    }
    // Orchestrators and the tests set these.
    for other in [
        "STOCKLOCK_SERVICE_HOST",
        "STOCKLOCK_PORT_80_TCP",
        "STOCKLOCK_CRASH_AT",
        "STOCKLOCKED__A",
        "PATH",
    ] {
        assert!(resolve(&[(other, "x")], &[]).is_ok(), "{other}");
    }
}

#[test]
fn a_value_that_is_not_utf8_is_refused() {
    let ConfigError(errors) =
        resolve(&[("STOCKLOCK__KAFKA__SASL_PASSWORD", "p\u{fffd}x")], &[]).unwrap_err();
    assert!(
        errors.len() == 1 && errors[0].contains("not UTF-8") && !errors[0].contains("p\u{fffd}"),
        "{errors:?}"
    );
}

#[test]
fn one_port_for_two_addresses_is_refused() {
    for (http, admin, is_refused) in [
        ("0.0.0.0:80", "127.0.0.1:80", true),
        ("127.0.0.1:80", "[::]:80", true),
        ("127.0.0.1:80", "127.0.0.1:80", true),
        ("127.0.0.1:80", "127.0.0.2:80", false),
        ("127.0.0.1:80", "127.0.0.1:81", false),
        ("127.0.0.1:0", "127.0.0.1:0", false),
    ] {
        let config =
            resolve(&[], &[&format!("http.listen={http}"), &format!("admin.listen={admin}")])
                .unwrap();
        let checked = config.check_listeners();
        assert_eq!(checked.is_err(), is_refused, "{http} and {admin}: {checked:?}");
    }
}

#[test]
fn the_tls_files_of_a_store_are_the_files_that_its_client_reads() {
    let files = |url: &str, migrate_url: &str| {
        let flags =
            [format!("order_store.url={url}"), format!("order_store.migrate_url={migrate_url}")];
        let config = resolve(&[], &flags.each_ref().map(String::as_str)).unwrap();
        config.order_store.tls_files().into_iter().collect::<Vec<_>>()
    };
    let named = "mysql://host/shop?ssl-ca=/a&sslcert=/b&ssl-key=/c%20d";

    assert_eq!(files(named, ""), ["/a", "/b", "/c d"].map(PathBuf::from));
    assert_eq!(files("mysql://host/shop", "mysql://host/shop?sslca=/e"), [PathBuf::from("/e")]);
    for without in ["&ssl-mode=disabled", "&ssl-mode=REQUIRED&sslmode=DISABLED"] {
        assert!(files(&format!("{named}{without}"), "").is_empty(), "{without}");
    }
    let inline =
        "mysql://host/shop?ssl-ca=-----BEGIN%20CERTIFICATE-----x-----END%20CERTIFICATE-----";
    assert!(files(inline, "").is_empty());
}
