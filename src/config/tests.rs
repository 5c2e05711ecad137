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
    write!(file, "[worker]\nbatch_max = 7\nlanes = 3\n[redis]\nurls = ['redis://a', 'redis://b', 'redis://c']")
        .unwrap();
    let env = [("STOCKLOCK__WORKER__BATCH_MAX".to_owned(), "8".to_owned())];
    let read =
        |flags: &[String]| Config::resolve(&Layers::read(Some(file.path()), env.clone().into_iter(), flags)).unwrap();
    let config = read(&[]);
    assert_eq!((config.worker.batches.max, config.worker.lanes, config.redis.urls.len()), (8, 3, 3));
    assert_eq!(read(&["worker.batch_max=9".to_owned()]).worker.batches.max, 9);
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    let error = resolve(&[("STOCKLOCK__KAFKA__BROKER", "x")], &[]).unwrap_err().to_string();
    assert!(error.contains("STOCKLOCK__KAFKA__BROKER") && error.contains("did you mean kafka.brokers?"), "{error}");
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
fn a_member_may_not_be_put_out_of_its_group_while_it_is_allowed_to_be_silent() {
    let config = resolve(&[], &["kafka.session_timeout=30s", "kafka.max_poll_interval=30s"]).unwrap();
    assert_eq!((config.kafka.group_protocol, config.kafka.group_instance_id), (GroupProtocol::Classic, None));
    let error = resolve(&[], &["kafka.session_timeout=30s", "kafka.max_poll_interval=29s"]).unwrap_err().to_string();
    assert!(error.contains("kafka.max_poll_interval") && error.contains("30s"), "{error}");
}

#[test]
fn a_master_may_not_take_as_long_as_a_lock_lives() {
    assert!(resolve(&[], &["lock.ttl=1s", "lock.node_timeout=500ms"]).is_ok());
    let error = resolve(&[], &["lock.ttl=1s", "lock.node_timeout=501ms"]).unwrap_err().to_string();
    assert!(error.contains("lock.node_timeout") && error.contains("500ms"), "{error}");
}

#[test]
fn events_may_not_outlive_the_horizon_of_the_outcomes() {
    for (topics, outcomes, is_valid) in
        [("7d", "30d", true), ("29d", "30d", true), ("30d", "30d", false), ("7d", "7d", false)]
    {
        let flags = [format!("topics.retention={topics}"), format!("retention.outcomes={outcomes}")];
        let resolved = resolve(&[], &flags.each_ref().map(String::as_str));
        assert_eq!(resolved.is_ok(), is_valid, "{flags:?}: {resolved:?}");
        if let Err(error) = resolved {
            let error = error.to_string();
            assert!(error.contains("topics.retention") && error.contains("retention.outcomes"), "{error}");
        }
    }
}

#[test]
fn nothing_outlives_the_order_it_refers_to() {
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
    let ConfigError(errors) = resolve(&[], &["order_store.url=postgres://u:hidden@h/d"]).unwrap_err();
    assert!(!errors[0].contains("hidden"), "{errors:?}");
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
