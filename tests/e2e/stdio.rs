//! Standard streams: pipes in every state, in both directions, with back-pressure.

use std::{fs, io::Read, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sha2::{Digest, Sha256};
use tests::{Case, Test, memory::PrivateMemory};

/// Guest memory of tests that look at the VMM's own.
const GUEST_MEMORY: u64 = 128 << 20;

/// How much more memory of its own a VMM may have because data flows.
const GROWTH: u64 = 4 << 20;

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        input_comes_out,
        without_i_there_is_no_input,
        an_empty_input_is_an_end_of_file,
        closed_input_is_no_obstacle,
        an_app_that_reads_no_input_can_end,
        an_app_that_closes_its_input_goes_on,
        output_and_errors_are_apart,
        all_output_arrives_before_the_end,
        a_reader_that_has_enough_ends_it,
        much_data_passes_unchanged_in_little_memory,
        a_stopped_reader_stops_the_writer,
    ]
    .into()
}

fn input_comes_out(case: &Case) -> Result<()> {
    case.run(["-i", "busybox", "cat"])
        .stdin("hello\n")
        .run()?
        .prints("hello\n")?;
    Ok(())
}

fn without_i_there_is_no_input(case: &Case) -> Result<()> {
    case.run(["busybox", "sh", "-c", "cat; readlink /proc/self/fd/0"])
        .stdin("unheard\n")
        .run()?
        .prints("/dev/null\n")?;
    Ok(())
}

fn an_empty_input_is_an_end_of_file(case: &Case) -> Result<()> {
    case.run(["-i", "busybox", "wc", "-c"])
        .stdin("")
        .run()?
        .prints("0\n")?;
    Ok(())
}

fn closed_input_is_no_obstacle(case: &Case) -> Result<()> {
    case.run(["busybox", "echo", "hi"])
        .stdin_closed()
        .run()?
        .prints("hi\n")?;
    case.run(["-i", "busybox", "sh", "-c", "cat; echo end"])
        .stdin_closed()
        .run()?
        .prints("end\n")?;
    Ok(())
}

fn an_app_that_reads_no_input_can_end(case: &Case) -> Result<()> {
    let mut running = case
        .run(["-i", "busybox", "echo", "done"])
        .stdin_open()
        .spawn()?;
    running.wait_for("done")?;
    // Its input stays open on the host: that must not keep it.
    tests::eventually("hrun to end", Duration::from_secs(30), || {
        running.has_ended().unwrap_or(true).then_some(())
    })?;
    running.wait()?.prints("done\n")?;
    Ok(())
}

fn an_app_that_closes_its_input_goes_on(case: &Case) -> Result<()> {
    case.run([
        "-i",
        "busybox",
        "sh",
        "-c",
        "exec <&-; sleep 1; echo still here",
    ])
    .stdin(vec![b'x'; 1 << 20])
    .run()?
    .prints("still here\n")?;
    Ok(())
}

fn output_and_errors_are_apart(case: &Case) -> Result<()> {
    let outcome = case
        .shell("echo out; echo err >&2")
        .run()?
        .prints("out\n")?;
    ensure!(outcome.stderr == "err\n", "{}", outcome.describe());
    Ok(())
}

fn all_output_arrives_before_the_end(case: &Case) -> Result<()> {
    let outcome = case
        .shell("head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; exit 9")
        .run()?
        .exits(9)?;
    let sizes = (outcome.stdout.len(), outcome.stderr.len());
    ensure!(sizes == (1_000_000, 1_000_000), "got {sizes:?} bytes");
    Ok(())
}

fn a_reader_that_has_enough_ends_it(case: &Case) -> Result<()> {
    let hrun = case.built().hrun();
    let script = "\"$0\" run --rm busybox yes | head -n 1";
    let hrun = hrun.to_str().context("a plain path")?;
    case.with("sh", ["-c", script, hrun]).run()?.prints("y\n")?;
    Ok(())
}

fn much_data_passes_unchanged_in_little_memory(case: &Case) -> Result<()> {
    let size = if crate::full() { 64 } else { 8 } << 20;
    let mut data = vec![0; size];
    fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut data))
        .context("Failed to read random bytes")?;
    let expected = Sha256::digest(&data);

    // By a boot, so that no VM but the container's is there to be looked at.
    let mut running = case
        .run(["-i", "--start", "boot", "--memory", "128m"])
        .args(["busybox", "cat"])
        .stdin(data)
        .timeout(Duration::from_secs(900))
        .spawn()?;
    let vmm = case.vmm()?;
    tests::eventually("the first bytes", Duration::from_secs(120), || {
        (!running.printed().is_empty() || running.has_ended().unwrap_or(true)).then_some(())
    })?;
    let at_first = PrivateMemory::of(vmm.pid, GUEST_MEMORY)
        .context("The VMM ended early")?
        .own;
    let mut most = at_first;
    while !running.has_ended()? {
        if let Ok(now) = PrivateMemory::of(vmm.pid, GUEST_MEMORY) {
            most = most.max(now.own);
        }
        thread::sleep(Duration::from_millis(200));
    }
    let outcome = running.wait()?.exits(0)?;
    ensure!(
        outcome.stdout.len() == size,
        "{} of {size} bytes arrived",
        outcome.stdout.len()
    );
    ensure!(
        Sha256::digest(&outcome.stdout) == expected,
        "the bytes changed on the way"
    );
    ensure!(
        most - at_first <= GROWTH,
        "the VMM's own memory grew from {at_first} to {most} bytes"
    );
    Ok(())
}

fn a_stopped_reader_stops_the_writer(case: &Case) -> Result<()> {
    let mut running = case
        .run(["--memory", "128m", "busybox", "sh", "-c"])
        .args(["trap 'exit 4' TERM; yes & wait"])
        .stdout_unread()
        .spawn()?;
    let mut reader = running.unread.take().context("stdout is left to us")?;
    let mut first = [0; 2];
    reader.read_exact(&mut first).context("yes wrote nothing")?;
    // Not before: there may have been one of which a template was made.
    let vmm = case.vmm()?;
    ensure!(&first == b"y\n", "yes wrote {first:?}");
    let at_first = PrivateMemory::of(vmm.pid, GUEST_MEMORY)?;
    thread::sleep(Duration::from_secs(5));
    // The writer is blocked: its CPU rests, but for the ticks of an idle kernel.
    let ticks = vmm.cpu_ticks();
    thread::sleep(Duration::from_secs(2));
    let busy = vmm.cpu_ticks() - ticks;
    let at_last = PrivateMemory::of(vmm.pid, GUEST_MEMORY)?;
    ensure!(
        at_last.own <= at_first.own + GROWTH && at_last.guest <= at_first.guest + (16 << 20),
        "memory grew from {at_first:?} to {at_last:?}"
    );
    ensure!(
        busy < 100,
        "the VMM used {busy} of 200 clock ticks though nobody reads"
    );
    running.signal(Signal::TERM)?;
    // What is under way comes first.
    thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    running.wait()?.exits(4)?;
    Ok(())
}
