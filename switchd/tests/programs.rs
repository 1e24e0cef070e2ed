//! The programs as a shell sees them, where that needs no privileges: exit codes, the one line, documents.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::process::{Command, Output};

fn ctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vswitchctl")).args(arguments).output().unwrap()
}

fn daemon(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vswitchd")).args(arguments).output().unwrap()
}

/// Exit code and the only line of standard error.
fn refused(output: &Output) -> (i32, String) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(output.stdout.is_empty());
    (output.status.code().unwrap(), text.trim_end().to_owned())
}

#[test]
fn without_a_daemon_every_command_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ctl.sock");
    let socket = socket.to_str().unwrap();
    for command in [
        &["status"] as &[&str],
        &["bridge", "show", "--json"],
        &["port", "del", "p"],
        &["fdb", "flush"],
        &["neigh", "show"],
        &["stats", "--watch"],
        &["reload"],
    ] {
        let (code, line) = refused(&ctl(&[&["--socket", socket], command].concat()));
        assert_eq!(code, 1);
        assert!(
            line.starts_with("vswitchctl: vswitchd is not running (no socket at ")
                && line.contains("start it"),
            "{line}"
        );
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for command in [
        &[] as &[&str],
        &["port"],
        &["port", "add", "p"],
        &["nonsense"],
        &["port", "set", "p", "--flood", "maybe"],
    ] {
        assert_eq!(ctl(command).status.code(), Some(2), "{command:?}");
    }
    assert_eq!(daemon(&["--workers", "none"]).status.code(), Some(2));
    assert_eq!(ctl(&["--help"]).status.code(), Some(0));
    assert_eq!(daemon(&["--version"]).status.code(), Some(0));
}

#[test]
fn the_bridge_helper_fails_as_qemus_does() {
    let helper = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_vswitch-bridge-helper")).args(arguments).output().unwrap()
    };
    assert_eq!(helper(&["--help"]).status.code(), Some(0));
    let wrong = helper(&["--br=br0", "--fd=3", "--mtu=9000"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("Usage: vswitch-bridge-helper"));
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("attach.sock");
    let (code, line) = refused(&helper(&["--br=br0", "--fd=3", "--socket", socket.to_str().unwrap()]));
    assert_eq!(code, 1);
    assert!(
        line.starts_with("vswitch-bridge-helper: nobody listens at ") && line.contains("start vswitchd"),
        "{line}"
    );
}

#[test]
fn a_set_without_settings_is_refused() {
    let (code, line) = refused(&ctl(&["port", "set", "p1"]));
    assert_eq!(
        (code, line.as_str()),
        (1, "vswitchctl: port 'p1': nothing to set: name a setting, see --help")
    );
}

#[test]
fn check_reads_the_configuration_and_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    let check = |text: &str| {
        fs::write(&path, text).unwrap();
        daemon(&["--check", "--config", path.to_str().unwrap()])
    };
    let good = check("[[bridge]]\nname = \"br0\"\n");
    assert_eq!((good.status.code(), good.stderr.is_empty()), (Some(0), true));
    let (code, line) = refused(&check("[[bridge]]\nname = \"br0\"\nagening = 5\n"));
    assert!(code == 1 && line.contains("c.toml:3: unknown field `agening`"), "{line}");
    let (code, line) = refused(&daemon(&["--check", "--config", "/nonexistent/c.toml"]));
    assert!(code == 1 && line.contains("cannot read configuration /nonexistent/c.toml"), "{line}");
}

#[test]
fn documents_are_made_for_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = ctl(&["completions", shell]);
        assert!(script.status.success());
        let text = String::from_utf8(script.stdout).unwrap();
        assert!(text.contains("vlan-filtering") && text.contains("may-exist"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(ctl(&["man", folder.path().to_str().unwrap()]).status.success());
    for page in ["vswitchd.8", "vswitch-bridge-helper.8", "vswitchctl.1", "vswitchctl-bridge-set.1"] {
        assert!(fs::read_to_string(folder.path().join(page)).unwrap().contains(".SH OPTIONS"), "{page}");
    }
    let (code, line) = refused(&ctl(&["man", "nothing-of-that-name"]));
    assert!(code == 1 && line.contains("pages: vswitchd, vswitchctl"), "{line}");
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    use std::process::Stdio;
    let mut child = Command::new(env!("CARGO_BIN_EXE_vswitchctl"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}
