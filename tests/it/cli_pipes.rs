//! What a command does when its output is not read, and how it prints errors for machines.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
};

use clap::{Arg, CommandFactory as _};
use serde_json::Value;
use stocklock::commands::Cli as Arguments;

use crate::harness::{Cli, Database, Strategy, World};

/// Runs a command whose reader leaves after so many lines. Returns the exit status and standard
/// error.
fn read_in_part(env: &BTreeMap<String, String>, args: &[&str], lines: usize) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stocklock"));
    command.args(args).envs(env).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let mut reader = BufReader::with_capacity(1, child.stdout.take().expect("a pipe"));
    for _ in 0..lines {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).expect("text") > 0, "{args:?} prints too little");
    }
    drop(reader);
    let mut complaints = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut complaints).expect("text");
    let status = child.wait().expect("it ends");
    (status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()), complaints)
}

#[test]
fn a_reader_that_leaves_changes_no_exit_status() {
    let nothing = BTreeMap::new();
    // Their reader leaves before the first line, so that the first line already fails.
    for args in [
        &["config"][..],
        &["config", "--output", "json"],
        &["config", "--check"],
        &["--help"],
        &["--version"],
    ] {
        let (status, complaints) = read_in_part(&nothing, args, 0);
        assert!(status == 0 && complaints.is_empty(), "{args:?}: {status}, {complaints}");
    }

    let (status, complaints) = read_in_part(&nothing, &["config", "--set", "lock.ttl=soon"], 0);
    assert!(status == 1 && complaints.starts_with("lock.ttl = "), "{status}, {complaints}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn showing_all_the_stock_to_head_ends_in_silence() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let ids: Vec<_> = (0..3_000).map(|n| format!("product-{n:040}")).collect();
    world.import(&ids.iter().map(|id| (id.as_str(), 1)).collect::<Vec<_>>());

    // More than the pipe holds, so that it is written to after the reader has gone.
    let (status, complaints) = read_in_part(&world.env, &["stock", "show"], 1);

    assert_eq!((status, complaints.as_str()), (0, ""));
    for args in [&["setup"][..], &["stock", "restock", &ids[0], "1"], &["verify"]] {
        let (status, complaints) = read_in_part(&world.env, args, 0);
        assert!(status == 0 && complaints.is_empty(), "{args:?}: {status}, {complaints}");
    }
    world
        .tamper_with_stock(
            "UPDATE products SET available = available + 7 WHERE product_id LIKE 'product-%7'",
        )
        .await;
    let (status, complaints) = read_in_part(&world.env, &["verify"], 0);
    assert_eq!(
        (status, complaints.as_str()),
        (1, ""),
        "the exit status does not report the violation"
    );
}

#[test]
fn an_error_that_is_not_read_changes_no_exit_status() {
    let bad = ["config", "--check", "--set", "lock.ttl=soon"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_stocklock"));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);

    let status = command
        .args(bad)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(writer)
        .status()
        .expect("it runs");

    assert_eq!(status.code(), Some(1), "{status}");
}

fn run(args: &[&str]) -> Cli {
    Cli::run(&BTreeMap::new(), args)
}

/// Fails the test unless all of standard error is objects with an error, a line each.
fn errors(cli: &Cli) -> Vec<Value> {
    let text = cli.stderr();
    let errors: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect(&text)).collect();
    assert!(!errors.is_empty() && errors.iter().all(|error| error["error"].is_string()), "{text}");
    errors
}

#[test]
fn errors_are_json_where_the_output_is() {
    let missing = "/nowhere/orders.ndjson";
    let cases: [(&str, i32, &str); 8] = [
        ("--output json nonsense", 2, "nonsense"),
        ("order show 7 --output=json", 2, "invalid value"),
        ("--output json", 2, "Usage"),
        ("--output json stock show --set lock.ttl=soon", 2, "the configuration is wrong"),
        ("--output json config --check --set lock.ttl=soon", 1, "the configuration is wrong"),
        ("--output json order import /nowhere/orders.ndjson", 2, missing),
        ("--output json probe live --set admin.listen=127.0.0.1:9", 2, "127.0.0.1:9/livez"),
        ("--output json order place a=1 --set client.url=http://127.0.0.1:9", 2, "127.0.0.1:9"),
    ];

    for (args, status, what) in cases {
        let failed = run(&args.split(' ').collect::<Vec<_>>()).exits(status);
        let errors = errors(&failed);
        assert!(
            errors.len() == 1
                && errors[0]["error"].as_str().is_some_and(|error| error.contains(what)),
            "{errors:?}"
        );
        if args.contains("soon") {
            assert!(
                errors[0]["errors"][0]
                    .as_str()
                    .is_some_and(|error| error.starts_with("lock.ttl = ")),
                "{errors:?}"
            );
        }
    }

    let valid = run(&["--output", "json", "config", "--check"]).succeeds().json();
    assert_eq!(valid, serde_json::json!({"valid": true, "warnings": []}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_negative_answer_is_an_error_in_json_too() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    for args in [&["stock", "show", "a"][..], &["stock", "restock", "a", "1"]] {
        let no = world.cli(&[&["--output", "json"], args].concat()).exits(1);
        assert_eq!(errors(&no), [serde_json::json!({"error": "no product a"})]);
    }
}

#[test]
fn every_command_and_argument_has_help() {
    let mut pending = vec![Arguments::command()];
    let mut arguments = 0;

    while let Some(mut command) = pending.pop() {
        command.build();
        let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
        assert!(command.get_about().is_some(), "{name} has no help");
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let help =
                argument.get_help().or(Arg::get_long_help(argument)).map(ToString::to_string);
            assert!(
                help.is_some_and(|help| help.len() > 3),
                "{name}: {} has no help",
                argument.get_id()
            );
            arguments += 1;
        }
        pending.extend(command.get_subcommands().cloned());
    }

    assert!(arguments > 40, "only {arguments} arguments were found");
}
