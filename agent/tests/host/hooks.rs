//! Programs that run before a container's first process.

use agent_protocol::*;

use crate::guest::{CONTAINER, Guest, shell};

fn hook(script: &str) -> Hook {
    Hook {
        path: "/bin/sh".into(),
        args: ["hook", "-c", script].map(String::from).into(),
        env: vec!["PATH=/bin".into(), "WHO=hook".into()],
        timeout: None,
        input: b"{\"state\":1}".to_vec(),
    }
}

fn with_hooks(guest: &Guest, hooks: Vec<Hook>) -> (crate::guest::Control, Process) {
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let mut first = shell(1, "cat /tmp/log; echo $$");
    first.hooks = hooks;
    (control, first)
}

fn refused(guest: &Guest, hooks: Vec<Hook>) -> (Failure, String) {
    let (mut control, first) = with_hooks(guest, hooks);
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    control.try_ask(Action::Start(Box::new(first))).unwrap_err()
}

#[test]
fn hooks_run_in_order_in_the_container_before_the_process() {
    let guest = Guest::new();
    let (mut control, first) = with_hooks(
        &guest,
        vec![
            hook("echo $0 $WHO $(hostname) $(id -u) $(pwd) >/tmp/log; cat >>/tmp/log"),
            hook("echo >>/tmp/log; ls -d /proc/1 >>/tmp/log; sleep 0.1; echo end >>/tmp/log"),
            Hook {
                args: Vec::new(),
                path: "/usr/bin/true".into(),
                ..hook("")
            },
        ],
    );
    let output = guest.run(&mut control, first);
    assert_eq!(
        output.stdout,
        "hook hook testbox 0 /\n{\"state\":1}\n/proc/1\nend\n1\n"
    );
}

/// Whatever the container's processes may do.
#[test]
fn hooks_have_every_right() {
    let guest = Guest::new();
    let mut control = guest.control();
    let mut spec = guest.container();
    spec.capabilities = 0;
    control.ask(Action::Create(Box::new(spec)));
    let mut first = shell(1, "cat /tmp/log; grep CapEff /proc/self/status | cut -f 2");
    first.capabilities = Capabilities::of(0);
    first.hooks = vec![hook(
        "chown 7 /tmp; chmod 700 /tmp; id -u >/tmp/log; chown 0 /tmp",
    )];
    let output = guest.run(&mut control, first);
    assert_eq!(output.stdout, "0\n0000000000000000\n", "{}", output.stderr);
}

#[test]
fn a_hook_that_fails_ends_the_container() {
    let guest = Guest::new();
    let (kind, message) = refused(
        &guest,
        vec![hook("echo said >&2; exit 7"), hook("echo ran >/tmp/log")],
    );
    assert_eq!(kind, Failure::System);
    assert_eq!(message, "The hook \"/bin/sh\" ended with status 7: said");
    assert!(!guest.root("tmp/log").exists());
    let mut control = guest.control();
    let again = control.try_ask(Action::Start(Box::new(shell(1, "true"))));
    assert_eq!(again.unwrap_err().0, Failure::Invalid);
    // Its number is free again.
    control.ask(Action::Create(Box::new(guest.container())));
}

#[test]
fn a_hook_that_is_not_there_is_told_by_its_path() {
    let guest = Guest::new();
    let missing = Hook {
        path: "/no/such".into(),
        ..hook("")
    };
    let (_, message) = refused(&guest, vec![missing]);
    assert!(
        message.contains("Failed to run the hook \"/no/such\""),
        "{message}"
    );
}

#[test]
fn a_hook_that_takes_too_long_is_ended() {
    let guest = Guest::new();
    let slow = Hook {
        timeout: Some(0),
        ..hook("sleep 1000")
    };
    let (_, message) = refused(&guest, vec![slow]);
    assert!(message.contains("longer than it may"), "{message}");
}

/// Whoever else asks is served while a hook runs, and the process can be given up.
#[test]
fn a_hook_holds_nobody_else_up() {
    let guest = Guest::new();
    let (mut control, first) = with_hooks(&guest, vec![hook("cat >/dev/null; sleep 1000")]);
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    control.send(Action::Start(Box::new(first)));
    let mut other = guest.control();
    let mut second = guest.container();
    second.id = ContainerId(2);
    other.ask(Action::Create(Box::new(second)));
    let mut process = shell(2, "echo served");
    process.container = ContainerId(2);
    assert_eq!(guest.run(&mut other, process).stdout, "served\n");
    // A process of the one that runs its hooks has to wait until it runs.
    let _more = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(3, stream));
    let mut early = shell(3, "true");
    early.container = CONTAINER;
    let refused = other.try_ask(Action::Start(Box::new(early))).unwrap_err();
    assert_eq!(refused.0, Failure::Invalid);
    assert!(refused.1.contains("runs its hooks"), "{}", refused.1);
    control.close();
}
