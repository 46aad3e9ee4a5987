//! A person at a terminal.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::{Case, Terminal, Test};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        a_session_works_resizes_and_leaves_the_terminal_as_it_was,
        t_alone_is_enough_at_a_terminal,
        control_c_reaches_the_foreground_of_the_shell,
        control_d_ends_the_input,
        a_terminal_is_restored_when_hrun_is_told_to_end,
        a_terminal_is_restored_when_the_vm_is_killed,
        a_failure_leaves_the_terminal_alone,
        without_t_the_terminal_stays_as_it_is,
    ]
    .into()
}

const PROMPT: &str = "# ";

fn open(case: &Case, args: &[&str]) -> Result<Terminal> {
    Terminal::open(&case.run(args), 24, 80)
}

/// The same attributes as before; if not, a message that names the lines that differ.
fn same(before: &str, after: &str) -> Result<()> {
    let differing: Vec<_> = before
        .lines()
        .zip(after.lines())
        .filter(|(before, after)| before != after)
        .collect();
    ensure!(
        before == after,
        "the terminal is not as it was: {differing:?}"
    );
    Ok(())
}

fn a_session_works_resizes_and_leaves_the_terminal_as_it_was(case: &Case) -> Result<()> {
    let mut terminal = open(case, &["-it", "busybox", "sh"])?;
    let before = terminal.attributes()?;
    terminal.shows(PROMPT)?;
    ensure!(terminal.attributes()? != before, "the terminal is not raw");

    terminal.types("tty; stty size; echo $TERM\r")?;
    let answer = terminal.shows(PROMPT)?;
    ensure!(answer.contains("/dev/pts/"), "{answer:?}");
    ensure!(answer.contains("\r\n24 80\r\n"), "{answer:?}");
    ensure!(answer.contains("xterm"), "{answer:?}");

    terminal.resize(50, 132)?;
    // The change travels by itself; the shell asks until it is there.
    terminal.types("until [ \"$(stty size)\" = '50 132' ]; do sleep 1; done; echo resized=$?\r")?;
    terminal.shows("resized=0")?;
    terminal.shows(PROMPT)?;

    terminal.types("exit 3\r")?;
    let status = terminal.wait()?;
    ensure!(
        status.code() == Some(3),
        "{status}; {:?}",
        terminal.screen()
    );
    same(&before, &terminal.attributes()?)
}

fn t_alone_is_enough_at_a_terminal(case: &Case) -> Result<()> {
    let mut terminal = open(case, &["-t", "busybox", "sh"])?;
    let before = terminal.attributes()?;
    terminal.shows(PROMPT)?;
    terminal.types("echo 4$((1+1))\r")?;
    terminal.shows("42")?;
    terminal.shows(PROMPT)?;
    terminal.types("exit\r")?;
    let status = terminal.wait()?;
    ensure!(status.success(), "{status}; {:?}", terminal.screen());
    same(&before, &terminal.attributes()?)
}

fn control_c_reaches_the_foreground_of_the_shell(case: &Case) -> Result<()> {
    let mut terminal = open(case, &["-it", "busybox", "sh"])?;
    let before = terminal.attributes()?;
    terminal.shows(PROMPT)?;
    terminal.types("echo wait$((0)); sleep 1000\r")?;
    terminal.shows("wait0")?;
    // The shell reads on as soon as its child is gone; hrun itself must not have been meant.
    std::thread::sleep(std::time::Duration::from_secs(1));
    terminal.types("\x03")?;
    terminal.shows(PROMPT)?;
    terminal.types("echo status=$?\r")?;
    terminal.shows("status=130")?;
    terminal.types("exit 0\r")?;
    let status = terminal.wait()?;
    ensure!(status.success(), "{status}; {:?}", terminal.screen());
    same(&before, &terminal.attributes()?)
}

fn control_d_ends_the_input(case: &Case) -> Result<()> {
    let mut terminal = open(
        case,
        &["-it", "busybox", "sh", "-c", "echo go; cat; echo end=$?"],
    )?;
    terminal.shows("go")?;
    terminal.types("line\r")?;
    terminal.shows("line\r\nline\r\n")?;
    terminal.types("\x04")?;
    terminal.shows("end=0")?;
    let status = terminal.wait()?;
    ensure!(status.success(), "{status}; {:?}", terminal.screen());
    Ok(())
}

fn a_terminal_is_restored_when_hrun_is_told_to_end(case: &Case) -> Result<()> {
    let mut terminal = open(case, &["-it", "busybox", "sh", "-c", crate::PATIENT])?;
    let before = terminal.attributes()?;
    terminal.shows("ready")?;
    terminal.signal(Signal::TERM)?;
    let status = terminal.wait()?;
    ensure!(
        status.code() == Some(4),
        "{status}; {:?}",
        terminal.screen()
    );
    same(&before, &terminal.attributes()?)
}

fn a_terminal_is_restored_when_the_vm_is_killed(case: &Case) -> Result<()> {
    let mut terminal = open(case, &["-it", "busybox", "sh"])?;
    let before = terminal.attributes()?;
    terminal.shows(PROMPT)?;
    case.vmm()?.signal(Signal::KILL);
    let status = terminal.wait()?;
    ensure!(
        status.code() == Some(125),
        "{status}; {:?}",
        terminal.screen()
    );
    terminal.shows("hrun: ").context("no message")?;
    same(&before, &terminal.attributes()?)
}

fn a_failure_leaves_the_terminal_alone(case: &Case) -> Result<()> {
    for (args, code) in [
        (["-it", "no-such-image", "sh"], 125),
        (["-it", "busybox", "no-such-program"], 127),
    ] {
        let mut terminal = open(case, &args)?;
        let before = terminal.attributes()?;
        let status = terminal.wait()?;
        ensure!(
            status.code() == Some(code),
            "{status}; {:?}",
            terminal.screen()
        );
        same(&before, &terminal.attributes()?)?;
    }
    Ok(())
}

fn without_t_the_terminal_stays_as_it_is(case: &Case) -> Result<()> {
    let mut terminal = open(
        case,
        &[
            "-i",
            "busybox",
            "sh",
            "-c",
            "echo go; tty; read -r line; echo got=$line",
        ],
    )?;
    let before = terminal.attributes()?;
    terminal.shows("go")?;
    same(&before, &terminal.attributes()?)?;
    terminal.shows("not a tty")?;
    terminal.types("words\r")?;
    terminal.shows("got=words")?;
    let status = terminal.wait()?;
    ensure!(status.success(), "{status}; {:?}", terminal.screen());
    same(&before, &terminal.attributes()?)
}
