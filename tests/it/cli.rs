//! The command line where no server is needed: usage, help, configuration, exit statuses.

use std::{collections::BTreeMap, io::Write as _};

use serde_json::Value;
use stocklock::config::KEYS;

use crate::harness::Cli;

fn run(args: &[&str]) -> Cli {
    run_with(&[], args)
}

fn run_with(env: &[(&str, &str)], args: &[&str]) -> Cli {
    let env: BTreeMap<_, _> =
        env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Cli::run(&env, args)
}

#[test]
fn every_command_has_help() {
    let commands = "|setup|ingest|worker|compensator|all|stock|stock import|stock show|\
                    stock restock|order|order place|order show|order confirm|order cancel|\
                    order extend|order watch|order import|order fail|verify|bench|config|\
                    doctor|probe";
    for command in commands.split('|') {
        let args: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let help = run(&args).succeeds().stdout();
        assert!(
            help.contains(format!("Usage: stocklock {command}").trim_end()),
            "{command}: {help}"
        );
        assert!(
            help.contains("--config <FILE>") && help.contains("--output <OUTPUT>"),
            "{command}: {help}"
        );
    }

    assert_eq!(
        run(&["--version"]).succeeds().stdout(),
        format!("stocklock {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn bad_usage_exits_2() {
    for bad in [
        "",
        "nonsense",
        "stock",
        "stock restock a",
        "stock restock a 0",
        "stock restock a -1",
        "stock restock a 1.5",
        "stock restock a 9007199254740992",
        "stock show é",
        "order place",
        "order place a",
        "order place a=0",
        "order place a=x",
        "order place a=1000001",
        "order show 7",
        "order fail 7 --reason r",
        "order import",
        "order place a=1 --wait 61",
        "order place a=1 --wait 61s",
        "order place a=1 --wait 1500ms",
        "order place a=1 --hold 0s",
        "order place a=1 --hold 1500ms",
        "order place a=1 --hold 900",
        "order place a=1 --id 7",
        "order place a=1 --idempotency-key é",
        "order place a=1 --idempotency-key k --id 01a20780-43f4-773e-ae17-eb2e30f95ecf",
        "order confirm 7",
        "order cancel",
        "order extend 01a20780-43f4-773e-ae17-eb2e30f95ecf",
        "order extend 01a20780-43f4-773e-ae17-eb2e30f95ecf soon",
        "order watch 7",
        "order import file --wait 61",
        "order import file --key-prefix é",
        "order import file --concurrency 0",
        "probe",
        "probe dead",
        "verify --settle soon",
        "--output xml config",
    ] {
        let args: Vec<_> = bad.split_whitespace().collect();
        let refused = run(&args).exits(2);
        // The cause is no missing server: these commands must not get so far.
        let error = refused.stderr();
        assert!(error.contains("--help"), "{bad}: {error}");
    }
}

/// A file of so many orders.
fn orders(count: usize) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let lines = vec![crate::harness::lines(&[("a", 1)]).to_string(); count];
    std::fs::write(file.path(), lines.join("\n")).expect("written");
    file
}

#[test]
fn an_unreachable_dependency_exits_2_and_is_named() {
    let store = "127.0.0.1:9/nowhere";
    let env = [
        ("STOCKLOCK__KAFKA__BROKERS", "127.0.0.1:9"),
        ("STOCKLOCK__ORDER_STORE__URL", "mysql://u:hidden@127.0.0.1:9/nowhere"),
        ("STOCKLOCK__STOCK_STORE__URL", "mysql://u:hidden@127.0.0.1:9/nowhere"),
        ("STOCKLOCK__CLIENT__URL", "http://127.0.0.1:9"),
    ];
    let id = uuid::Uuid::now_v7().to_string();
    let http = "http://127.0.0.1:9/v1/orders";
    let file = orders(3);
    let import = ["order", "import", &file.path().display().to_string()];
    let commands: [(&[&str], &str); 10] = [
        (&["probe", "ready", "--set", "admin.listen=127.0.0.1:9"], "http://127.0.0.1:9/readyz"),
        (&import, http),
        (&["setup"], store),
        (&["stock", "show"], "unavailable: stock_store at 127.0.0.1:9: "),
        (&["verify", "--settle", "0s"], "unavailable: order_store at 127.0.0.1:9: "),
        (&["order", "place", "a=1"], http),
        (&["order", "show", &id], http),
        (&["order", "cancel", &id], http),
        (&["order", "watch", &id], http),
        (&["order", "fail", &id, "--reason", "r"], "127.0.0.1:9"),
    ];

    // Side by side: each command waits some seconds for a server.
    std::thread::scope(|scope| {
        for (args, named) in commands {
            scope.spawn(move || {
                let failed = run_with(&env, args).exits(2);
                let error = failed.stderr();
                assert!(error.contains(named) && !error.contains("hidden"), "{args:?}: {error}");
            });
        }
    });
}

#[test]
fn an_import_without_a_server_counts_what_it_could_not_place() {
    let file = orders(500);
    let path = file.path().display().to_string();
    let args =
        ["--output", "json", "order", "import", &path, "--set", "client.url=http://127.0.0.1:9"];

    let failed = run(&args).exits(2);

    let counted = failed.json();
    assert_eq!(
        (&counted["read"], &counted["placed"], &counted["unplaced"]),
        (&500.into(), &0.into(), &500.into())
    );
    assert_eq!((&counted["errors"], &counted["unknown"]), (&0.into(), &0.into()), "{counted}");
    assert_eq!(failed.stderr().lines().filter(|line| line.contains("not placed: ")).count(), 10);
}

#[test]
fn the_configuration_is_shown_key_by_key_with_its_defaults() {
    let text = run(&["config"]).succeeds().stdout();
    let rows: Vec<Value> =
        run(&["--output", "json", "config"]).succeeds().stdout().lines().map(parse).collect();

    assert_eq!((text.lines().count(), rows.len()), (KEYS.len(), KEYS.len()));
    for ((key, line), row) in KEYS.iter().zip(text.lines()).zip(&rows) {
        assert!(
            line.starts_with(key.name) && line.contains(key.help) && line.contains("(default)"),
            "{line}"
        );
        assert_eq!(
            (&row["key"], &row["origin"]),
            (&Value::from(key.name), &Value::from("default"))
        );
        assert_eq!(row["value"], row["default"], "{row}");
    }

    let promised = [
        ("STOCKLOCK__KAFKA__GROUP_ID", "stocklock-worker"),
        ("STOCKLOCK__COMPENSATOR__GROUP_ID", "stocklock-compensator"),
        ("STOCKLOCK__LOCK__STRATEGY", "row"),
        ("STOCKLOCK__LOCK__TTL", "10s"),
        ("STOCKLOCK__LOCK__NODE_TIMEOUT", "100ms"),
        ("STOCKLOCK__LOCK__PREFIX", "stocklock:lock:"),
        ("STOCKLOCK__HTTP__LISTEN", "127.0.0.1:8080"),
        ("STOCKLOCK__ADMIN__LISTEN", "127.0.0.1:9464"),
        ("STOCKLOCK__CLIENT__URL", "http://127.0.0.1:8080"),
        ("STOCKLOCK__TOPICS__PARTITIONS", "12"),
        ("STOCKLOCK__TOPICS__REPLICATION", "-1"),
        ("STOCKLOCK__TOPICS__RETENTION", "7d"),
    ];
    for (environment, default) in promised {
        let row = rows.iter().find(|row| row["environment"] == environment);
        assert_eq!(
            row.unwrap_or_else(|| panic!("no {environment}"))["value"],
            default,
            "{environment}"
        );
    }
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).expect("a JSON line")
}

#[test]
fn a_value_that_is_set_is_shown_with_its_origin() {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    write!(file, "[worker]\nbatch_max = 7\nlanes = 2\n[lock]\nttl = '3s'").expect("written");
    let path = file.path().display().to_string();
    let env = [("STOCKLOCK__WORKER__LANES", "3"), ("STOCKLOCK__LOCK__TTL", "4s")];

    let shown =
        run_with(&env, &["config", "--config", &path, "--set", "lock.ttl=5s"]).succeeds().stdout();

    for (key, value, origin) in [
        ("worker.batch_max", "7", "(file; "),
        ("worker.lanes", "3", "(environment; "),
        ("lock.ttl", "5s", "(flag; "),
    ] {
        let line = shown.lines().find(|line| line.starts_with(key)).expect("the key");
        let found = line
            .split_once('=')
            .map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default());
        assert!(
            found == Some(value) && line.contains(origin) && line.contains("default"),
            "{line}"
        );
    }
}

#[test]
fn secrets_are_never_shown() {
    let secrets = [
        ("STOCKLOCK__KAFKA__SASL_PASSWORD", "hush-1"),
        ("STOCKLOCK__KAFKA__SSL_KEY_PASSWORD", "hush-2"),
        ("STOCKLOCK__ORDER_STORE__URL", "mysql://user:hush-3,hush-4@host/orders"),
        ("STOCKLOCK__ORDER_STORE__MIGRATE_URL", "mysql://user:hush-5@host/orders"),
        ("STOCKLOCK__STOCK_STORE__URL", "mysql://user:hush-6@hush-7@host/stock"),
        ("STOCKLOCK__REDIS__URLS", "redis://:hush-8@a,redis://:hush-9@b,redis://u:hush-10@c"),
        ("STOCKLOCK__KAFKA__SECURITY_PROTOCOL", "sasl_ssl"),
        ("STOCKLOCK__KAFKA__SASL_MECHANISM", "PLAIN"),
        ("STOCKLOCK__KAFKA__SASL_USERNAME", "user"),
        ("STOCKLOCK__KAFKA__SSL_CERTIFICATE_PEM", "hush-11"),
        ("STOCKLOCK__KAFKA__SSL_KEY_PEM", "hush-12"),
    ];

    for args in [["config", "--output", "text"], ["config", "--output", "json"]] {
        let shown = run_with(&secrets, &args).succeeds().stdout();
        assert!(!shown.contains("hush"), "{shown}");
        assert!(shown.contains("mysql://user:***@host/stock"), "{shown}");
        assert!(!shown.contains("stocklock:stocklock@"), "a default's password is shown: {shown}");
    }

    let mut wrong = secrets;
    wrong[2].1 = "postgres://user:hush-3@host/orders";
    wrong[5].1 = "redis://:hush-8@a,redis://:hush-9@b";
    let refused = run_with(&wrong, &["config", "--check"]).exits(1).stderr();
    assert!(refused.lines().count() == 2 && !refused.contains("hush"), "{refused}");

    let token = [("STOCKLOCK__KAFKA__OAUTH_CLIENT_SECRET", "hush-13")];
    let refused = run_with(&token, &["config"]).exits(1);
    let shown = refused.stdout() + &refused.stderr();
    assert!(shown.contains("kafka.oauth_client_secret") && !shown.contains("hush"), "{shown}");
}

#[test]
fn a_wrong_configuration_is_reported_key_by_key_and_no_command_runs() {
    let wrong = [("STOCKLOCK__LOCK__STRATEGI", "row"), ("STOCKLOCK__LOCK__TTL", "soon")];
    let args = ["--set", "worker.batchmax=1", "--set", "http.listen=nowhere", "--set", "x"];
    let config: Vec<_> = args.iter().copied().chain(["config"]).collect();
    let check: Vec<_> = config.iter().copied().chain(["--check"]).collect();
    let role: Vec<_> = args.iter().copied().chain(["worker"]).collect();

    for (args, status) in [(&config, 1), (&check, 1), (&role, 2)] {
        let refused = run_with(&wrong, args).exits(status);
        let error = refused.stderr();
        for expected in [
            "did you mean lock.strategy?",
            "did you mean worker.batch_max?",
            "lock.ttl = \"soon\"",
            "http.listen = \"nowhere\"",
            "SECTION.KEY=VALUE",
        ] {
            assert!(error.contains(expected), "{expected} is missing: {error}");
        }
        assert_eq!(refused.stdout().lines().count(), if args == &config { KEYS.len() } else { 0 });
    }

    for set in [
        "topics.orders=a/b",
        "kafka.security_protocol=sasl_ssk",
        "log.level=blah=foo",
        "client.url=foo",
    ] {
        run(&["config", "--check", "--set", set]).exits(1);
    }

    let misspelt = run_with(&[("STOCKLOCK_KAFKA__BROKERS", "kafka:9092")], &["config", "--check"])
        .exits(1)
        .stderr();
    assert!(misspelt.contains("did you mean STOCKLOCK__KAFKA__BROKERS?"), "{misspelt}");

    assert_eq!(run(&["config", "--check"]).succeeds().stdout(), "the configuration is valid\n");

    let missing = run(&["--config", "/nowhere/stocklock.toml", "config", "--check"]).exits(1);
    assert!(missing.stderr().contains("/nowhere/stocklock.toml"), "{}", missing.stderr());
}

#[test]
fn config_check_refuses_every_file_that_is_missing_or_no_pem() {
    let ssl = ["config", "--check", "--set", "kafka.security_protocol=ssl", "--set"];

    for set in [
        "kafka.ssl_ca_location=/nowhere/file",
        "redis.ssl_ca_location=/nowhere/file",
        "topics.writer_schemas=/nowhere/file",
        "topics.writer_schemas=17=/nowhere/file",
        "order_store.url=mysql://localhost/shop?ssl-ca=/nowhere/file",
        "stock_store.migrate_url=mysql://localhost/shop?sslca=/nowhere/file",
        "stock_store.url=mysql://localhost/shop?ssl-cert=/nowhere/file&ssl-key=/nowhere/file",
    ] {
        let refused = run(&[&ssl[..], &[set]].concat()).exits(1).stderr();
        assert!(
            refused.lines().count() == 1 && refused.contains("/nowhere/file"),
            "{set}: {refused}"
        );
    }

    for (query, complaint) in [
        ("ssl-ca=/dev/null", "/dev/null is no PEM file"),
        ("ssl-cert=/dev/null", "expected ssl-cert and ssl-key together"),
    ] {
        let set = format!("order_store.url=mysql://localhost/shop?{query}");
        let refused = run(&[&ssl[..], &[&set]].concat()).exits(1).stderr();
        assert!(refused.contains(complaint), "{set}: {refused}");
    }

    for set in [
        "kafka.ssl_ca_location=probe",
        "order_store.url=mysql://localhost/shop?ssl-mode=DISABLED&ssl-ca=/nowhere",
    ] {
        run(&[&ssl[..], &[set]].concat()).succeeds();
    }
}

#[test]
fn only_roles_with_both_addresses_refuse_one_port_for_them() {
    let env = [
        ("STOCKLOCK__ADMIN__LISTEN", "0.0.0.0:8080"),
        ("STOCKLOCK__TOPICS__WRITER_SCHEMAS", "/nowhere/file"),
    ];

    // The missing schema ends the roles that do not refuse the port.
    for (role, is_refused) in
        [("ingest", true), ("all", true), ("worker", false), ("compensator", false)]
    {
        let error = run_with(&env, &[role]).exits(2).stderr();
        let found =
            ["has the port of http.listen", "/nowhere/file"].map(|text| error.contains(text));
        assert_eq!(found, [is_refused, !is_refused], "{role}: {error}");
    }

    let checked = run_with(&env, &["config", "--check"]).exits(1).stderr();
    assert!(
        checked.contains("has the port of http.listen") && checked.contains("/nowhere/file"),
        "{checked}"
    );
}
