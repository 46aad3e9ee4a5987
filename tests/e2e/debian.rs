//! A whole distribution in a VM: Debian as mmdebstrap makes it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Case, Invocation, Store, Test};

/// Every system call and page fault of these programs costs where the guest's kernel is
/// interpreted.
const TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        python_computes,
        apt_lists_its_packages,
        a_shell_script_with_pipes_and_jobs_works,
    ]
    .map(|test| test.on(Store::Debian))
    .into()
}

fn debian(case: &Case, args: &[&str]) -> Invocation {
    case.run(["--memory", "256m", "debian"])
        .args(args)
        .timeout(TIMEOUT)
}

fn python_computes(case: &Case) -> Result<()> {
    debian(case, &["python3", "-c", "print(sum(range(10**7)))"])
        .run()?
        .prints("49999995000000\n")?;
    Ok(())
}

fn apt_lists_its_packages(case: &Case) -> Result<()> {
    let outcome = debian(
        case,
        &["sh", "-c", "apt list --installed 2>/dev/null | wc -l"],
    )
    .run()?
    .exits(0)?;
    let count: u32 = outcome
        .text()
        .trim()
        .parse()
        .with_context(|| outcome.describe())?;
    ensure!(count > 50, "{}", outcome.describe());
    Ok(())
}

fn a_shell_script_with_pipes_and_jobs_works(case: &Case) -> Result<()> {
    let script = r#"
        set -euo pipefail
        seq 1 100 | awk '{ s += $1 } END { print s }'
        (sleep 1; echo job one > /tmp/one) & first=$!
        (echo job two > /tmp/two; exit 4) & second=$!
        wait $first
        status=0; wait $second || status=$?
        cat /tmp/one /tmp/two
        echo status $status
        { diff <(printf 'a\nb\n') <(printf 'a\nc\n') || true; } | grep -c '^[<>]'
        trap 'echo trapped' USR1; kill -USR1 $$
        head -c 100000 /dev/urandom | gzip | gunzip | wc -c
    "#;
    debian(case, &["bash", "-c", script])
        .run()?
        .prints("5050\njob one\njob two\nstatus 4\n2\ntrapped\n100000\n")?;
    Ok(())
}
