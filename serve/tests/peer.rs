//! Who is at the other end of a socket: processes that connect, exit, are killed, are other users'
//! and in other namespaces.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/child.rs"]
mod child;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use pervma_serve::peer::{Peer, SignalError};
use rustix::event::{PollFd, PollFlags, poll};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// What a child writes once it listens.
const LISTENING: &str = "listening";
/// Where a child connects to, or listens.
const SOCKET: &str = "PERVMA_SERVE_TEST_SOCKET";

fn socket() -> PathBuf {
    std::env::var_os(SOCKET).unwrap().into()
}

/// A directory for sockets that other users can use as well.
fn directory() -> tempfile::TempDir {
    tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .tempdir()
        .unwrap()
}

/// In a child: connects, and waits until the other end is closed.
fn connect_and_wait() {
    let mut stream = UnixStream::connect(socket()).unwrap();
    let _ = stream.read(&mut [0]);
}

/// A child of the test `name` that has connected, and the connection.
fn connected(name: &str) -> (Child, UnixStream) {
    let directory = directory();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let child = child::command(name, "connect").env(SOCKET, &path).spawn().unwrap();
    (child, listener.accept().unwrap().0)
}

/// Waits until a process has exited, without taking its number away.
fn wait_exited(peer: &Peer) {
    let pidfd = peer.pidfd.as_ref().unwrap();
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None).unwrap();
}

#[test]
fn a_client_is_known_and_can_be_killed() {
    const NAME: &str = "a_client_is_known_and_can_be_killed";
    if child::case().is_some() {
        return connect_and_wait();
    }
    child::watch();
    let (mut child, connection) = connected(NAME);
    let peer = Peer::of(&connection).unwrap();
    assert_eq!(peer.pid, child.id());
    assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
    assert_eq!(peer.gid, rustix::process::getegid().as_raw());
    assert!(!peer.has_exited());
    assert_eq!(peer.can_be_signalled(), Ok(()));
    assert!(!peer.has_exited(), "nothing was sent");

    assert_eq!(peer.kill(), Ok(()));
    wait_exited(&peer);
    assert!(peer.has_exited());
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert!(peer.has_exited());
    assert_eq!(peer.can_be_signalled(), Err(SignalError::Exited));
    assert_eq!(peer.kill(), Err(SignalError::Exited));
}

#[test]
fn a_client_that_exits_by_itself_has_exited() {
    const NAME: &str = "a_client_that_exits_by_itself_has_exited";
    if child::case().is_some() {
        return connect_and_wait();
    }
    child::watch();
    let (mut child, mut connection) = connected(NAME);
    let peer = Peer::of(&connection).unwrap();
    assert!(!peer.has_exited());
    connection.write_all(b"x").unwrap();
    wait_exited(&peer);
    assert!(peer.has_exited());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_client_that_is_gone_has_no_pidfd_to_signal_another_by() {
    const NAME: &str = "a_client_that_is_gone_has_no_pidfd_to_signal_another_by";
    if child::case().is_some() {
        return connect_and_wait();
    }
    child::watch();
    let (mut child, mut connection) = connected(NAME);
    connection.write_all(b"x").unwrap();
    child.wait().unwrap();
    let peer = Peer::of(&connection).unwrap();
    // Newer kernels still give out the pidfd; it means the process that is gone.
    match &peer.pidfd {
        Some(_) => assert_eq!(peer.kill(), Err(SignalError::Exited)),
        None => assert_eq!(peer.kill(), Err(SignalError::NoPidfd { pid: peer.pid })),
    }
    assert_eq!(peer.has_exited(), peer.pidfd.is_some());
}

#[test]
fn an_older_kernel_finds_the_client_by_its_number() {
    const NAME: &str = "an_older_kernel_finds_the_client_by_its_number";
    match child::case().as_deref() {
        Some("connect") => return connect_and_wait(),
        Some(_) => {}
        None => return child::run(NAME, "alone"),
    }
    refuse_peer_pidfd();
    let (mut child, connection) = connected(NAME);
    let peer = Peer::of(&connection).unwrap();
    assert_eq!(peer.pid, child.id());
    assert_eq!(peer.kill(), Ok(()));
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));

    let (mut child, mut connection) = connected(NAME);
    connection.write_all(b"x").unwrap();
    child.wait().unwrap();
    let peer = Peer::of(&connection).unwrap();
    assert!(peer.pidfd.is_none());
    assert_eq!(peer.kill(), Err(SignalError::NoPidfd { pid: child.id() }));
}

/// Makes this thread's kernel one before Linux 6.5, which does not know `SO_PEERPIDFD`.
fn refuse_peer_pidfd() {
    let name = libc::SO_PEERPIDFD.cast_unsigned().into();
    let is_it = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, name).unwrap();
    let rule = SeccompRule::new(vec![is_it]).unwrap();
    let filter = SeccompFilter::new(
        [(libc::SYS_getsockopt, vec![rule])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOPROTOOPT.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn another_users_process_cannot_be_signalled_without_privilege() {
    const NAME: &str = "another_users_process_cannot_be_signalled_without_privilege";
    if child::case().is_some() {
        // The other end is the process that listens: the test.
        let stream = UnixStream::connect(socket()).unwrap();
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let peer = Peer::of(&stream).unwrap();
        assert_eq!(peer.can_be_signalled(), Err(SignalError::NotPermitted));
        assert_eq!(peer.kill(), Err(SignalError::NotPermitted));
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return child::not_run("another user needs root");
    }
    child::watch();
    let (mut child, connection) = connected(NAME);
    assert!(child.wait().unwrap().success());
    drop(connection);
}

#[test]
fn a_client_of_another_namespace_has_no_number_and_is_not_signalled() {
    const NAME: &str = "a_client_of_another_namespace_has_no_number_and_is_not_signalled";
    if child::case().is_some() {
        // In a namespace of its own, to which the test that connects does not belong.
        let listener = UnixListener::bind(socket()).unwrap();
        println!("\n{LISTENING}");
        let (connection, _) = listener.accept().unwrap();
        let peer = Peer::of(&connection).unwrap();
        assert_eq!(peer.pid, 0);
        assert!(!peer.has_exited());
        assert_eq!(peer.can_be_signalled(), Err(SignalError::OtherNamespace));
        assert_eq!(peer.kill(), Err(SignalError::OtherNamespace));
        return;
    }
    child::watch();
    let directory = directory();
    let path = directory.path().join("socket");
    let inner = child::command(NAME, "listen");
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child"]).arg(inner.get_program());
    unshare.args(inner.get_args()).env(SOCKET, &path);
    for (name, value) in inner.get_envs() {
        unshare.env(name, value.unwrap());
    }
    let spawned = unshare.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        return child::not_run("the command unshare is not installed");
    };
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let is_listening = output.by_ref().lines().any(|line| line.unwrap() == LISTENING);
    if !is_listening {
        child.wait().unwrap();
        return child::not_run("a PID namespace of its own needs privilege");
    }
    let _stream = UnixStream::connect(&path).unwrap();
    // The rest, so that it is not held up.
    let _ = output.read_to_end(&mut Vec::new());
    assert!(child.wait().unwrap().success());
}
