//! The command line as a contract: exit code, stdout and stderr of help, mistakes and bad input.

use std::path::Path;
use std::process::Command;

/// Runs the binary in surroundings of its own and returns what a person and a script see.
#[expect(clippy::unwrap_used, reason = "a test whose program cannot be run has failed")]
fn run(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_unstale"))
        .args(arguments)
        .env_clear()
        .env("HOME", directory)
        .env("XDG_RUNTIME_DIR", directory.join("run"))
        .current_dir(directory)
        .output()
        .unwrap();
    let text = format!(
        "exit {}\n--- stdout\n{}--- stderr\n{}",
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    text.replace(&directory.display().to_string(), "DIR")
}

#[expect(clippy::unwrap_used, reason = "a test without a directory has failed")]
fn ran(arguments: &[&str]) -> String {
    run(tempfile::tempdir().unwrap().path(), arguments)
}

#[test]
fn mistakes_say_what_would_be_right_and_exit_with_2() {
    insta::assert_snapshot!(ran(&["drain", "shop"]), @r#"
    exit 2
    --- stdout
    --- stderr
    error: invalid value 'shop' for '<SELECTOR>...': not a selector: write `host:NAME`, `unit:ID`, `slot:ID`, `pool:NAME`, `app:NAME` or `pid:N`

    For more information, try '--help'.
    "#);
    insta::assert_snapshot!(ran(&["broadcast", "--app", "shop", "--timeout", "15"]), @r#"
    exit 2
    --- stdout
    --- stderr
    error: invalid value '15' for '--timeout <TIME>': not a length of time: write a number with `ms`, `s`, `m`, `h` or `d`, such as `90s` or `15m`; `0` is for ever

    For more information, try '--help'.
    "#);
    insta::assert_snapshot!(ran(&["broadcast", "--app", "a b"]), @r#"
    exit 2
    --- stdout
    --- stderr
    error: invalid value 'a b' for '--app <NAME>': the name "a b" has a character other than letters, digits, `.`, `_` and `-`, or does not start with a letter or digit

    For more information, try '--help'.
    "#);
    insta::assert_snapshot!(ran(&["status", "--coordinator", "https://x"]), @r#"
    exit 2
    --- stdout
    --- stderr
    error: invalid value 'https://x' for '--coordinator <ADDRESS>': this version speaks to the coordinator over its Unix socket only: write `unix:PATH`

    For more information, try '--help'.
    "#);
    insta::assert_snapshot!(ran(&["inspect", "--pid", "0"]), @r#"
    exit 2
    --- stdout
    --- stderr
    error: invalid value '0' for '--pid <N>': 0 is not in 1..=4294967295

    For more information, try '--help'.
    "#);
}

#[test]
fn nobody_listening_names_every_place_and_the_remedy() {
    insta::assert_snapshot!(ran(&["why", "4711"]), @r#"
    exit 2
    --- stdout
    --- stderr
    error: no coordinator listens on `DIR/run/unstale/coordinator.sock` or `/run/unstale/coordinator.sock`
    hint: is `unstale up`, or a fleet's `unstale coordinator`, running here? Name its socket with --coordinator unix:PATH
    "#);
    insta::assert_snapshot!(ran(&["status", "--output", "json", "--coordinator", "unix:/nowhere/c.sock"]), @r#"
    exit 2
    --- stdout
    --- stderr
    {"schema":"unstale.error/1","code":"no-coordinator","message":"no coordinator listens on `/nowhere/c.sock`","help":"is `unstale up`, or a fleet's `unstale coordinator`, running here? Name its socket with --coordinator unix:PATH"}
    "#);
}

#[test]
fn a_broadcast_without_source_is_an_error() {
    insta::assert_snapshot!(ran(&["broadcast", "--app", "shop", "nowhere"]), @r#"
    exit 2
    --- stdout
    --- stderr
    error: cannot read `nowhere`
      caused by: No such file or directory (os error 2)
    "#);
    insta::assert_snapshot!(ran(&["broadcast", "--app", "shop", "."]), @r#"
    exit 2
    --- stdout
    --- stderr
    error: no enum and no enum column was found in 0 Python files below `.`
    "#);
}

#[test]
fn a_dry_run_asks_the_hosts_so_it_needs_a_coordinator() {
    let directory = tempfile::tempdir().unwrap();
    let source = "import enum\nclass Crm(enum.Enum):\n    HUBSPOT = 'hubspot'\n";
    std::fs::write(directory.path().join("app.py"), source).unwrap();
    insta::assert_snapshot!(run(directory.path(), &["broadcast", "--app", "shop", ".", "--dry-run"]), @r#"
    exit 2
    --- stdout
    --- stderr
    error: no coordinator listens on `DIR/run/unstale/coordinator.sock` or `/run/unstale/coordinator.sock`
    hint: is `unstale up`, or a fleet's `unstale coordinator`, running here? Name its socket with --coordinator unix:PATH
    "#);
}

#[test]
fn a_source_that_cannot_be_parsed_refuses_the_broadcast() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("app.py"), "from enum import Enum\nclass Crm(Enum:\n").unwrap();
    insta::assert_snapshot!(run(directory.path(), &["broadcast", "--app", "shop", "."]), @r#"
    exit 1
    --- stdout
    shop  refused
      Nothing was announced; `--force` announces it all the same.
    --- stderr
    error[UE001] `DIR/app.py` cannot be parsed, so its enums would not be announced: line 2, column 15: Expected `,`, found `:`
      help: mend the file, or move it out of the directories that are announced
    "#);
}

#[test]
fn a_state_directory_that_is_not_there_or_damaged_is_told_with_the_remedy() {
    insta::assert_snapshot!(ran(&["state", "dump", "--state-dir", "nowhere"]), @r#"
    exit 2
    --- stdout
    --- stderr
    error: there is no state in `nowhere`
    hint: name the directory that `unstale up`, `coordinator` or `agent` uses with --state-dir
    "#);
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("state")).unwrap();
    std::fs::write(directory.path().join("state/agent.redb"), "no store").unwrap();
    let said = run(directory.path(), &["state", "dump", "--state-dir", "state"]);
    assert!(
        said.starts_with("exit 2\n") && said.contains("is damaged or not a store") && said.contains("hint:"),
        "{said}"
    );
}

#[test]
fn a_dump_is_of_the_directory_that_the_configuration_names() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("x.toml"), "state_dir = \"shipped\"\n").unwrap();
    let said = run(directory.path(), &["state", "dump", "--config", "x.toml"]);
    assert!(said.contains("there is no state in `shipped`"), "{said}");
    let said = run(directory.path(), &["state", "dump", "--config", "x.toml", "--state-dir", "own"]);
    assert!(said.contains("there is no state in `own`"), "{said}");
}

#[test]
fn a_configuration_that_is_wrong_is_shown_where_it_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("x.toml"), "[agent]\nscan_intervall = \"2s\"\n").unwrap();
    insta::assert_snapshot!(run(directory.path(), &["up", "--config", "x.toml"]), @r#"
    exit 2
    --- stdout
    --- stderr
    error: the configuration `x.toml` is wrong
    line 2, column 1: unknown field `scan_intervall`, expected one of `host`, `allow`, `roots`, `scan_interval`, `read_interval`, `start_timeout`, `survival_window`
    hint: `deploy/unstale.toml` names every key with its default
    "#);
    insta::assert_snapshot!(ran(&["up", "--config", "nowhere.toml"]), @r#"
    exit 2
    --- stdout
    --- stderr
    error: there is no configuration file `nowhere.toml`
    hint: leave --config and UNSTALE_CONFIG out to run with the defaults
    "#);
}

#[test]
fn the_help_lists_commands_and_exit_codes() {
    insta::assert_snapshot!(ran(&["--help"]), @r#"
    exit 0
    --- stdout
    Proves that no worker still runs the old schema

    Usage: unstale [OPTIONS] <COMMAND>

    Commands:
      inspect      Show what the Python workers on this host hold, and whether it is what their source
                   says
      up           Run coordinator and agent in one process for this host
      coordinator  Run the coordinator of a fleet
      agent        Run the agent of this host, for a fleet
      broadcast    Announce a new schema version and wait until every worker has it: the deploy hook
      status       Show where the fleet stands and what blocks it
      why          Tell everything known about one worker, unit or host: evidence, history, next step
      drain        Take units out of work: they take no new work, finish what they have, and stay out
      undrain      Give drained units back
      pause        Ask for no further restarts in a rollout until it is resumed
      resume       Go on with a paused or halted rollout
      abort        End a rollout; what has not begun to stop is left alone
      forget       Forget a host that will not come back: it uses no budget, and nothing waits for it
      demo         Play the whole story on this machine with a real worker, in a minute
      doctor       Tell what this host lacks (rights, limits, supervisors) and how to set it
      keys         Make, show, enrol and rotate the keys that coordinator and agents sign with
      state        Look into a state directory
      help         Print this message or the help of the given subcommand(s)

    Options:
      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Everywhere:
      -v, --verbose...
              Log more; twice for everything

      -q, --quiet
              Log errors only, and show no progress

          --log-format <FORM>
              Form of log lines

              Possible values:
              - text: For people
              - json: One JSON object per line
              
              [env: UNSTALE_LOG_FORMAT]
              [default: text]

          --no-color
              Print without colours; so does a non-empty `NO_COLOR`

    Exit codes:
        0  clean, or converged and verified
        1  drift, stale, or ended with failures
        2  usage, configuration or I/O error
        3  unknown remains, or the time limit passed while still in progress
        4  halted by policy
        5  superseded or aborted
      101  internal error
      130  detached by Ctrl-C, which never cancels a rollout
    --- stderr
    "#);
}
