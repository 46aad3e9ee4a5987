//! Descriptors over a Unix socket (`SCM_RIGHTS`, unix(7)): how a VM changes hands.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

use super::protocol::VM_FDS;

/// Sends `line` with descriptors. It is short enough to go as a whole or not at all: a rest
/// counts as failure.
pub(super) fn send(
    socket: impl AsFd,
    line: &[u8],
    fds: &[BorrowedFd<'_>; VM_FDS],
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(VM_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = control.push(SendAncillaryMessage::ScmRights(fds));
    assert!(fits, "the space is made for as many descriptors");
    let sent = sendmsg(
        socket,
        &[IoSlice::new(line)],
        &mut control,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?;
    if sent == line.len() {
        Ok(())
    } else {
        Err(Errno::MSGSIZE)
    }
}

/// Receives what there is, and the descriptors that came with it. Those that are too many are
/// closed, and make it a failure.
pub(super) fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(VM_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > VM_FDS {
        return Err(Errno::MSGSIZE);
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use rustix::{
        io::{FdFlags, fcntl_getfd},
        pipe::pipe,
    };

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_line_in_order_and_close_on_exec() {
        let (near, far) = UnixStream::pair().unwrap();
        let pipes = [pipe().unwrap(), pipe().unwrap(), pipe().unwrap()];
        let ends = pipes.each_ref().map(|(_, write)| write.as_fd());
        send(&near, b"{}\n", &ends).unwrap();

        let (mut bytes, mut fds) = ([0; 16], Vec::new());
        let length = receive(&far, &mut bytes, &mut fds).unwrap();
        assert_eq!(&bytes[..length], b"{}\n");
        assert_eq!(fds.len(), VM_FDS);
        for (number, (fd, (read, write))) in (0u8..).zip(fds.into_iter().zip(pipes)) {
            assert!(fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));
            // The copy that was sent is the only one now.
            drop(write);
            File::from(fd).write_all(&[number]).unwrap();
            let mut text = Vec::new();
            File::from(read).read_to_end(&mut text).unwrap();
            assert_eq!(text, [number]);
        }
    }

    #[test]
    fn descriptors_that_nobody_receives_are_closed() {
        let (near, far) = UnixStream::pair().unwrap();
        let (read, write) = pipe().unwrap();
        let end = write.as_fd();
        send(&near, b"{}\n", &[end, end, end]).unwrap();
        drop((write, near, far));
        // It ends: no copy of the other end is left, not even in a socket's queue.
        let mut text = Vec::new();
        File::from(read).read_to_end(&mut text).unwrap();
        assert!(text.is_empty());
    }

    #[test]
    fn too_many_descriptors_are_refused_and_closed() {
        let (near, far) = UnixStream::pair().unwrap();
        let (read, write) = pipe().unwrap();
        let end = write.as_fd();
        for _ in 0..2 {
            send(&near, b"x", &[end, end, end]).unwrap();
        }
        let (mut bytes, mut fds) = ([0; 16], Vec::new());
        assert_eq!(receive(&far, &mut bytes, &mut fds), Ok(1));
        assert_eq!(receive(&far, &mut bytes, &mut fds), Err(Errno::MSGSIZE));
        drop((fds, write));
        assert_eq!(File::from(read).read(&mut bytes).unwrap(), 0);
    }

    #[test]
    fn a_receiver_that_is_gone_is_an_error_and_no_signal() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let (_read, write) = pipe().unwrap();
        let end = write.as_fd();
        assert_eq!(send(&near, b"x", &[end, end, end]), Err(Errno::PIPE));
    }
}
