//! The daemon as a whole, in a thread, with scripts in the place of VMMs.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags},
    process::{Pid, Signal, kill_process},
};
use tokio::sync::oneshot;

use super::{
    client::{self, ClaimRefused, Claimed},
    fake::{CLASS, FakeVmm, KEY, OTHER_CLASS},
    protocol::{MAX_REQUEST, Refusal, Request, line},
    *,
};
use crate::{poll, sandbox::Handles};

/// A daemon that keeps VMs of [`CLASS`].
struct Daemon {
    fake: FakeVmm,
    dirs: Dirs,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Daemon {
    fn keeping(size: usize) -> Self {
        Self::begin(size, None)
    }

    fn begin(size: usize, memory_limit: Option<u64>) -> Self {
        let fake = FakeVmm::new();
        let dirs = Dirs::new(fake.dir().join("state"), fake.dir().join("store"));
        let (end, ended) = oneshot::channel();
        let options = PoolOptions {
            classes: vec![CLASS],
            size,
            memory_limit,
        };
        let (loader, own) = (fake.loader(), dirs.clone());
        let thread = thread::spawn(move || {
            serve_until(&own, loader, &options, || {
                Ok(async move { drop(ended.await) })
            })
        });
        let daemon = Self {
            fake,
            dirs,
            end: Some(end),
            thread: Some(thread),
        };
        eventually("the daemon listens", || client::status(&daemon.dirs).ok());
        daemon
    }

    fn status(&self) -> ClassStatus {
        let status = client::status(&self.dirs).unwrap();
        status
            .classes
            .into_iter()
            .find(|c| c.class == CLASS)
            .unwrap()
    }

    fn wait_ready(&self, count: usize) {
        eventually("VMs are ready", || {
            (self.status().ready == count).then_some(())
        });
    }

    fn claim(&self) -> Result<Claimed, ClaimRefused> {
        client::claim(&self.dirs, CLASS, KEY)
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.dirs.pool).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    fn end(&mut self) {
        self.end.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.end.is_some() && !thread::panicking() {
            self.end();
        }
    }
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        thread::sleep(Duration::from_millis(5));
    }
}

fn refusal(claimed: Result<Claimed, ClaimRefused>) -> Refusal {
    match claimed.unwrap_err() {
        ClaimRefused::None(refusal) => refusal,
        other => panic!("{other}"),
    }
}

fn exists(pid: Pid) -> bool {
    fs::exists(format!("/proc/{}", pid.as_raw_nonzero())).unwrap()
}

#[test]
fn a_claimed_vm_hangs_on_its_claimer_alone() {
    let mut daemon = Daemon::keeping(2);
    daemon.wait_ready(2);
    let mut claimed = daemon.claim().unwrap().into_process();
    let pid = claimed.pid();
    assert!(daemon.fake.processes().contains(&pid));
    daemon.wait_ready(2);
    let status = daemon.status();
    assert_eq!((status.claimed, status.running), (1, 1));

    daemon.end();
    assert_eq!(daemon.fake.processes(), [pid], "those that waited are gone");
    let now = Some(Instant::now());
    assert_eq!(claimed.wait(now).unwrap(), None);
    let state = &daemon.dirs.state;
    assert_eq!(fs::read_dir(state).unwrap().count(), 1);
    assert_eq!(fs::metadata(state.join("pool.lock")).unwrap().len(), 0);

    let (Handles { pidfd, .. }, _) = claimed.into_handles().unwrap();
    // The lifeline is closed: it ends by itself.
    let soon = Instant::now() + Duration::from_secs(20);
    assert!(poll::wait(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(soon)).unwrap());
    // A daemon that is gone reaps nobody; this process is it, and goes by and by.
}

#[test]
fn a_claimed_vm_that_ends_is_no_zombie_while_the_daemon_lives() {
    let daemon = Daemon::keeping(1);
    daemon.wait_ready(1);
    let claimed = daemon.claim().unwrap().into_process();
    let pid = claimed.pid();
    drop(claimed);
    eventually("it is gone altogether", || (!exists(pid)).then_some(()));
    eventually("it is not counted any more", || {
        (daemon.status().running == 0).then_some(())
    });
}

#[test]
fn a_claimer_that_goes_away_takes_its_vm_along() {
    let daemon = Daemon::keeping(1);
    daemon.wait_ready(1);
    let waiting = daemon.fake.processes();
    let mut stream = daemon.connect();
    let key = KEY.into();
    stream
        .write_all(&line(&Request::Claim { class: CLASS, key }))
        .unwrap();
    drop(stream);
    eventually("the VM that was on its way has ended", || {
        (!exists(waiting[0])).then_some(())
    });
    daemon.wait_ready(1);
    assert_eq!(daemon.status().running, 0);
    daemon.claim().unwrap();
}

#[test]
fn a_claim_that_cannot_be_served_says_why() {
    let daemon = Daemon::keeping(1);
    daemon.wait_ready(1);
    let other = client::claim(&daemon.dirs, OTHER_CLASS, KEY);
    assert_eq!(refusal(other), Refusal::NotKept);
    let other = client::claim(&daemon.dirs, CLASS, "another");
    assert_eq!(refusal(other), Refusal::OtherTemplate);
    let one = daemon.claim().unwrap();
    assert_eq!(refusal(daemon.claim()), Refusal::Empty);
    drop(one);
    let status = client::status(&daemon.dirs).unwrap();
    let missed: Vec<_> = status.classes.iter().map(|c| (c.class, c.missed)).collect();
    assert_eq!(missed, [(CLASS, 2), (OTHER_CLASS, 1)]);
}

#[test]
fn a_new_kernel_is_noticed_by_the_first_who_wants_it() {
    let daemon = Daemon::keeping(2);
    daemon.wait_ready(2);
    let old = daemon.fake.processes();
    daemon.fake.has_kernel("new");
    let claim = |key| client::claim(&daemon.dirs, CLASS, key);
    assert_eq!(refusal(claim("new")), Refusal::OtherTemplate);
    let claimed = eventually("there are VMs of the new kernel", || claim("new").ok());
    assert!(!old.contains(&claimed.into_process().pid()));
    assert_eq!(refusal(claim(KEY)), Refusal::OtherTemplate);
    eventually("the old ones are gone", || {
        old.iter().all(|pid| !exists(*pid)).then_some(())
    });
}

#[test]
fn a_vm_that_dies_while_it_waits_is_replaced() {
    let daemon = Daemon::keeping(2);
    daemon.wait_ready(2);
    let before = daemon.fake.processes();
    kill_process(before[0], Signal::KILL).unwrap();
    let trouble = eventually("its end is noticed", || daemon.status().trouble);
    assert!(trouble.contains("signal 9"), "{trouble}");
    assert!(!exists(before[0]));
    daemon.wait_ready(2);
    let after = daemon.fake.processes();
    assert!(after.contains(&before[1]) && !after.contains(&before[0]));
}

#[test]
fn a_vmm_that_does_not_load_is_told_and_tried_again() {
    let daemon = Daemon::keeping(0);
    daemon.fake.breaks(1);
    client::resize(&daemon.dirs, CLASS, 1).unwrap();
    let trouble = eventually("the failure is told", || daemon.status().trouble);
    assert!(trouble.contains("Failed to load"), "{trouble}");
    daemon.fake.works();
    daemon.wait_ready(1);
}

#[test]
fn an_operator_resizes_and_drains() {
    let daemon = Daemon::keeping(1);
    client::resize(&daemon.dirs, CLASS, 3).unwrap();
    daemon.wait_ready(3);
    assert_eq!(daemon.fake.processes().len(), 3);
    let claimed = daemon.claim().unwrap().into_process();
    client::drain(&daemon.dirs).unwrap();
    eventually("only the claimed one is left", || {
        (daemon.fake.processes() == [claimed.pid()]).then_some(())
    });
    assert_eq!(refusal(daemon.claim()), Refusal::NotKept);
    client::resize(&daemon.dirs, CLASS, 1).unwrap();
    daemon.wait_ready(1);
    let refused = client::resize(&daemon.dirs, CLASS, 1_000_000).unwrap_err();
    assert!(refused.to_string().contains("1000 VMs"), "{refused}");
    assert_eq!(daemon.status().size, 1);
}

#[test]
fn the_memory_of_waiting_vms_is_limited() {
    let daemon = Daemon::begin(1, None);
    daemon.wait_ready(1);
    let one = daemon.status().waiting_memory;
    assert!(one > 0);
    drop(daemon);

    let daemon = Daemon::begin(20, Some(one * 7 / 2));
    let held_back = || client::status(&daemon.dirs).unwrap().held_back;
    eventually("it is held back", || held_back().map(drop));
    assert_eq!(held_back(), Some(HeldBack::MemoryLimit));
    let status = daemon.status();
    assert!((1..=4).contains(&status.ready), "{status:?}");
    assert!(status.waiting_memory <= one * 7 / 2);
}

#[test]
fn clients_that_do_not_behave_are_hung_up_on_and_nobody_notices() {
    let daemon = Daemon::keeping(1);
    daemon.wait_ready(1);
    let long = vec![b'a'; MAX_REQUEST + 1];
    for words in [
        &b"{}\n"[..],
        b"\n",
        b"\xff\x00\n",
        b"GET / HTTP/1.1\r\n",
        &long,
    ] {
        let mut stream = daemon.connect();
        stream.write_all(words).unwrap();
        let mut answer = String::new();
        match stream.read_to_string(&mut answer) {
            Ok(_) => {}
            // It was hung up on before everything was read.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        assert!(
            answer.is_empty() || answer.starts_with(r#"{"answer":"failed""#),
            "{answer}"
        );
    }
    let mut half = daemon.connect();
    half.write_all(br#"{"request":"cl"#).unwrap();
    let _silent = daemon.connect();
    daemon.claim().unwrap();
}

#[test]
fn several_requests_are_answered_in_turn() {
    let daemon = Daemon::keeping(0);
    let mut stream = daemon.connect();
    let request = line(&Request::Status);
    stream.write_all(&request.repeat(2)).unwrap();
    stream.write_all(b"bad\n").unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let kinds: Vec<_> = answers.lines().map(|line| &line[..16]).collect();
    assert_eq!(kinds[..2], [r#"{"answer":"statu"#; 2]);
    assert_eq!(kinds[2..], [r#"{"answer":"faile"#]);
}

#[test]
fn connections_are_limited_and_come_back() {
    let daemon = Daemon::keeping(1);
    daemon.wait_ready(1);
    let idle: Vec<_> = (0..300).map(|_| daemon.connect()).collect();
    let refused = client::status(&daemon.dirs).unwrap_err();
    assert!(matches!(refused, client::ClientError::HungUp), "{refused}");
    drop(idle);
    eventually("there is room again", || daemon.claim().ok());
}
