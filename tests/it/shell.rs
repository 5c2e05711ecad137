//! Shell completions and manual pages.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use crate::harness::Cli;

fn cli(args: &[&str]) -> Cli {
    // A wrong setting must not matter to these commands.
    let wrong = BTreeMap::from([("STOCKLOCK__LOCK__TTL".to_owned(), "soon".to_owned())]);
    Cli::run(&wrong, args)
}

/// Runs a program. Answers its status and all that it wrote, or `None` if it is not installed.
fn run(program: &str, args: &[&str]) -> Option<(bool, String)> {
    match Command::new(program).args(args).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
        }
        Err(error) => {
            eprintln!("NOT CHECKED: {program} is not installed: {error}");
            None
        }
    }
}

#[test]
fn bash_completes_commands_options_and_values() {
    let script = tempfile::NamedTempFile::new().expect("a file");
    let path = script.path().display().to_string();
    fs::write(&path, cli(&["completions", "bash"]).succeeds().stdout()).expect("written");

    for (words, expected) in [
        ("stocklock ver", "verify"),
        ("stocklock stock im", "import"),
        ("stocklock order place --ho", "--hold"),
        ("stocklock probe re", "ready"),
        ("stocklock completions fi", "fish"),
    ] {
        let complete = format!(
            "set -eu; source {path}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
             _stocklock stocklock \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"
             printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let (_, found) = run("bash", &["-c", &complete]).expect("bash");
        assert!(found.lines().any(|line| line == expected), "{words}: {found}");
    }

    assert_eq!(run("bash", &["-n", &path]).expect("bash"), (true, String::new()));
}

#[test]
fn every_shell_gets_a_script_that_it_can_parse() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = cli(&["completions", shell]).succeeds().stdout();
        assert!(script.contains("log-filter"), "{shell}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), script).expect("written");
        if ["zsh", "fish"].contains(&shell) {
            let checked = run(shell, &["-n", &file.path().display().to_string()]);
            assert!(checked.is_none_or(|(is_well, _)| is_well), "{shell} cannot parse its script");
        }
    }
    cli(&["completions", "csh"]).exits(2);
}

#[test]
fn each_subcommand_has_a_manual_page_without_faults() {
    let folder = tempfile::tempdir().expect("a folder");
    // The command makes the folder.
    let pages = folder.path().join("man1");

    cli(&["man", &pages.display().to_string()]).succeeds();

    for name in ["stocklock", "stocklock-verify", "stocklock-stock-import", "stocklock-log-filter"]
    {
        let page = fs::read_to_string(pages.join(format!("{name}.1"))).expect(name);
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    for page in fs::read_dir(&pages).expect("the pages") {
        check_page(&page.expect("a page").path());
    }
    let (file, in_file) = (tempfile::NamedTempFile::new().expect("a file"), "x");
    let refused = cli(&["man", &file.path().join(in_file).display().to_string()]).exits(2);
    assert!(refused.stderr().contains("Not a directory"), "{}", refused.stderr());
}

/// Fails the test if a formatter has a complaint about a page.
fn check_page(page: &Path) {
    let path = page.display().to_string();
    if let Some((is_well, found)) = run("groff", &["-man", "-ww", "-Tutf8", "-z", &path]) {
        assert!(is_well && found.is_empty(), "{path}: {found}");
    }
}
