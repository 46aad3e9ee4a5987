//! Answers on the pool's socket. A client can be slow, silent or wrong: it costs a connection for
//! a while, and nobody else notices.

use std::{io, os::fd::AsFd, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task,
    time::{sleep, timeout},
};

use super::{
    handover,
    keeper::Keeper,
    log,
    protocol::{Answer, CloneOf, MAX_REQUEST, Request, line},
};
use crate::{failpoint::reach, sandbox::Handles};

/// Connections at a time.
const MAX_CONNECTIONS: usize = 256;

/// How long a client may take to say what it wants, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause when no connection can be accepted, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What an answer is made of.
enum Reply {
    Line(Answer),
    Vm(Handles, CloneOf),
}

/// Answers for ever.
pub(super) async fn serve(listener: UnixListener, keeper: Rc<Keeper>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut troubled = false;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !troubled {
                    log(&format!("no connection can be accepted: {error}"));
                }
                troubled = true;
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        troubled = false;
        // One too many is closed at once, and goes on without the pool.
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            task::spawn_local(attend(stream, Rc::clone(&keeper), place));
        }
    }
}

/// Answers the requests of one client, until it has no more or does not behave.
async fn attend(stream: UnixStream, keeper: Rc<Keeper>, _place: OwnedSemaphorePermit) {
    let mut stream = BufReader::new(stream);
    while let Ok(Ok(Some(text))) = timeout(PATIENCE, read_line(&mut stream)).await {
        let (reply, goes_on) = match serde_json::from_slice(&text) {
            Ok(request) => (carry_out(request, &keeper).await, true),
            Err(error) => (failed(format!("This is no request: {error}")), false),
        };
        let answered = timeout(PATIENCE, answer(stream.get_mut(), reply)).await;
        // A VM whose claimer is gone ends here: its descriptors were dropped.
        if !goes_on || !matches!(answered, Ok(Ok(()))) {
            return;
        }
    }
}

/// A line without its end, or nothing at the end of what the client says.
async fn read_line(stream: &mut BufReader<UnixStream>) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    let limit = u64::try_from(MAX_REQUEST).expect("a small number");
    stream.take(limit).read_until(b'\n', &mut text).await?;
    // Cut off by the client, or by the limit.
    Ok((text.pop() == Some(b'\n')).then_some(text))
}

async fn carry_out(request: Request, keeper: &Keeper) -> Reply {
    match request {
        Request::Claim { class, key } => {
            reach("pool.asked", None);
            match keeper.claim(class, &key) {
                Ok((handles, of)) => Reply::Vm(handles, of),
                Err(reason) => Reply::Line(Answer::None { reason }),
            }
        }
        Request::Status => Reply::Line(Answer::Status(keeper.status())),
        Request::Resize { class, size } => match keeper.resize(class, size).await {
            Ok(()) => Reply::Line(Answer::Done),
            Err(error) => failed(error.to_string()),
        },
        Request::Drain => {
            keeper.drain().await;
            Reply::Line(Answer::Done)
        }
    }
}

fn failed(message: String) -> Reply {
    Reply::Line(Answer::Failed { message })
}

async fn answer(stream: &mut UnixStream, reply: Reply) -> io::Result<()> {
    match reply {
        Reply::Line(answer) => stream.write_all(&line(&answer)).await,
        Reply::Vm(handles, of) => {
            let pid = handles.pid.as_raw_nonzero().get();
            let text = line(&Answer::Vm { pid, of });
            let fds = [
                handles.pidfd.as_fd(),
                handles.channel.as_fd(),
                handles.lifeline.as_fd(),
            ];
            let send = || Ok(handover::send(&*stream, &text, &fds)?);
            reach("pool.handing", None);
            stream.async_io(Interest::WRITABLE, send).await?;
            reach("pool.handed", None);
            Ok(())
        }
    }
}
