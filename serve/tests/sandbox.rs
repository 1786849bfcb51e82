//! The whole sandbox, from inside: what the daemon does still works, and what it does not do is
//! refused, by which error.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/child.rs"]
mod child;

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use libc::{c_int, c_long};
use pervma_pager::sys::RemoteUserfaultfd;
use pervma_serve::handshake::firecracker::Handshake;
use pervma_serve::peer::{Peer, SignalError};
use pervma_serve::sandbox::{self, Landlock, Sandbox, SandboxError};
use pervma_serve::{Keeper, Limits, Options};
use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// A sandbox in which sockets of `directory` can be removed.
fn enter(directory: &tempfile::TempDir) {
    let removable = vec![directory.path().to_owned()];
    Sandbox { removable, ..Sandbox::default() }.enter().unwrap();
}

/// A userfaultfd of this process, as clients pass them.
fn userfaultfd() -> OwnedFd {
    const USER_MODE_ONLY: c_int = 1;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    // SAFETY: it takes a number.
    let descriptor = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    assert!(descriptor >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just opened it.
    unsafe { OwnedFd::from_raw_fd(descriptor as c_int) }
}

#[test]
fn what_the_daemon_does_still_works() {
    child::alone(
        "what_the_daemon_does_still_works",
        [|| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let listener = UnixListener::bind(&path).unwrap();
            listener.set_nonblocking(true).unwrap();
            let client = UnixStream::connect(&path).unwrap();
            let mut source = File::from(
                rustix::fs::memfd_create("source", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
            );
            source.write_all(&[7; 8192]).unwrap();
            let userfaultfd = userfaultfd();
            let (pipe_reader, mut pipe_writer) = io::pipe().unwrap();
            enter(&directory);

            // Clients.
            let (connection, _) = listener.accept().unwrap();
            assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
            connection.set_nonblocking(true).unwrap();
            let message = br#"[{"base_host_virt_addr": 65536, "size": 8192, "offset": 0}]"#;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = [userfaultfd.as_fd()];
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
            let parts = [IoSlice::new(message)];
            rustix::net::sendmsg(&client, &parts, &mut control, SendFlags::empty()).unwrap();
            let mut handshake = Handshake::new(&Limits::default());
            let arrival = handshake.advance(&connection, 8192).unwrap().unwrap();
            let remote = RemoteUserfaultfd::new(arrival.userfaultfd).unwrap();
            (&connection).write_all(b"answer").unwrap();
            let mut answer = [0; 6];
            (&client).read_exact(&mut answer).unwrap();

            // Its process, which is this one.
            let peer = Peer::of(&connection).unwrap();
            assert_eq!(peer.pid, std::process::id());
            assert_eq!(peer.can_be_signalled(), Ok(()));
            assert!(!peer.has_exited());

            // Its faults. Nothing is registered: the kernel looks at the call, and says so.
            let refused = |error: &dyn std::fmt::Debug| {
                let text = format!("{error:?}");
                assert!(!text.contains("PERM") && !text.contains("Errno(1)"), "{text}");
            };
            let page = [0_u8; 4096];
            refused(&remote.copy(0x10000, &raw const page[..], true).unwrap_err());
            refused(&remote.zero(0x10000, 4096, true).unwrap_err());
            refused(&remote.poison(0x10000, 4096).unwrap_err());
            refused(&remote.wake(0x10000, 4095).unwrap_err());
            refused(&remote.unregister(0x10000, 4096).unwrap_err());

            // The source.
            let mut bytes = [0; 16];
            source.read_exact_at(&mut bytes, 4096).unwrap();
            assert_eq!((bytes, source.metadata().unwrap().len()), ([7; 16], 8192));
            assert_eq!(rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(0)), Ok(0));
            rustix::io::preadv2(
                &source,
                &mut [io::IoSliceMut::new(&mut bytes)],
                0,
                rustix::io::ReadWriteFlags::empty(),
            )
            .unwrap();
            let copy = source.try_clone().unwrap();
            drop(copy);

            // Memory, from the allocator and from the kernel.
            let mut large = vec![1_u8; 64 << 20];
            large.resize(96 << 20, 2);
            assert_eq!(large[96 << 20 >> 1] + large[(96 << 20) - 1], 3);
            drop(large);
            let map = memmap2::MmapMut::map_anon(1 << 20).unwrap();
            // SAFETY: the file is this test's, and does not change.
            let mapped = unsafe { memmap2::Mmap::map(&source) }.unwrap();
            assert_eq!(map[0] + mapped[8191], 7);
            mapped.advise(memmap2::Advice::WillNeed).unwrap();
            drop(map.make_read_only().unwrap());
            // A hash table takes random numbers from the kernel.
            assert_eq!(HashMap::from([(1, 2)])[&1], 2);

            // Threads, in the sandbox as well, that wait for each other.
            let (sender, receiver) = mpsc::channel();
            let threads: Vec<_> = (0..4)
                .map(|number| {
                    let sender = sender.clone();
                    let thread = std::thread::Builder::new().name(format!("worker {number}"));
                    let body = move || {
                        std::thread::yield_now();
                        sender.send(errno(File::open("/dev/null"))).unwrap();
                    };
                    thread.spawn(body).unwrap()
                })
                .collect();
            assert!((0..4).all(|_| receiver.recv().unwrap() == libc::EPERM));
            threads.into_iter().for_each(|thread| thread.join().unwrap());

            // Waiting, and time.
            let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            let timer =
                rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)
                    .unwrap();
            let (soon, never) =
                (Timespec { tv_sec: 0, tv_nsec: 1 }, Timespec { tv_sec: 0, tv_nsec: 0 });
            let once = Itimerspec { it_interval: never, it_value: soon };
            rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once).unwrap();
            let events = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            for descriptor in [event.as_fd(), timer.as_fd(), pipe_reader.as_fd()] {
                let data = epoll::EventData::new_u64(1);
                epoll::add(&events, descriptor, data, epoll::EventFlags::IN).unwrap();
            }
            rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
            pipe_writer.write_all(b"x").unwrap();
            let mut happened = Vec::with_capacity(8);
            epoll::wait(&events, rustix::buffer::spare_capacity(&mut happened), None).unwrap();
            assert!(!happened.is_empty());
            rustix::event::poll(&mut [PollFd::new(&event, PollFlags::IN)], None).unwrap();
            std::thread::sleep(Duration::from_nanos(1));

            // The end.
            eprintln!("it can write to its log");
            fs::remove_file(&path).unwrap();
        }],
    );
}

/// The number of an error.
fn errno<T>(result: io::Result<T>) -> c_int {
    result.err().map_or(0, |error| error.raw_os_error().unwrap())
}

/// Makes a system call that must be refused: its error.
fn call(number: c_long, arguments: [usize; 6]) -> c_int {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the sandbox refuses the call, or the kernel does by its arguments.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => io::Error::last_os_error().raw_os_error().unwrap(),
        result => panic!("call {number} was not refused: {result}"),
    }
}

#[test]
fn what_the_daemon_does_not_do_is_refused() {
    child::alone(
        "what_the_daemon_does_not_do_is_refused",
        [|| {
            let directory = tempfile::tempdir().unwrap();
            let listening = directory.path().join("socket");
            let _listener = UnixListener::bind(&listening).unwrap();
            let unconnected = rustix::net::socket(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::STREAM,
                None,
            )
            .unwrap();
            let userfaultfd = userfaultfd();
            let outside = CString::new("/etc/hostname").unwrap();
            let path = outside.as_ptr().expose_provenance();
            let (process, parent) = (std::process::id(), std::os::unix::process::parent_id());
            let page = memmap2::MmapMut::map_anon(4096).unwrap();
            let address = page.as_ptr().expose_provenance();
            let fd =
                |descriptor: &dyn AsFd| descriptor.as_fd().as_raw_fd().cast_unsigned() as usize;
            let at = |arguments: &[usize]| {
                let mut all = [0; 6];
                all[..arguments.len()].copy_from_slice(arguments);
                all
            };
            enter(&directory);

            let refused = libc::EPERM;
            // Files.
            assert_eq!(errno(File::open("/etc/hostname")), refused);
            assert_eq!(errno(File::open(directory.path().join("x"))), refused);
            assert_eq!(errno(File::create(directory.path().join("x"))), refused);
            assert_eq!(errno(fs::read_dir("/")), refused);
            assert_eq!(errno(fs::metadata("/etc/hostname")), refused);
            assert_eq!(errno(fs::rename(&listening, "/tmp/x")), refused);
            assert_eq!(errno(fs::create_dir(directory.path().join("x"))), refused);
            // Sockets.
            let destination = rustix::net::SocketAddrUnix::new(&listening).unwrap();
            assert_eq!(
                rustix::net::connect(&unconnected, &destination),
                Err(rustix::io::Errno::PERM)
            );
            assert_eq!(errno(UnixStream::connect(&listening)), refused);
            assert_eq!(errno(UnixStream::pair()), refused);
            assert_eq!(errno(UnixListener::bind(directory.path().join("other"))), refused);
            assert_eq!(errno(std::net::TcpListener::bind("127.0.0.1:0")), refused);
            assert_eq!(errno(std::net::TcpStream::connect("127.0.0.1:1")), refused);
            // Processes.
            assert_eq!(errno(Command::new("/bin/true").status()), refused);
            let parent_number = rustix::process::Pid::from_raw(parent.cast_signed()).unwrap();
            assert_eq!(
                rustix::process::test_kill_process(parent_number),
                Err(rustix::io::Errno::PERM)
            );

            let (process, parent) = (process as usize, parent as usize);
            let ioctl = |request: usize| at(&[fd(&userfaultfd), request]);
            let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
            let executable = (libc::PROT_READ | libc::PROT_EXEC) as usize;
            let no_path = libc::AT_FDCWD as usize;
            let calls = [
                ("open by a path", libc::SYS_openat, at(&[no_path, path])),
                ("stat by a path", libc::SYS_newfstatat, at(&[no_path, path, address])),
                ("execve", libc::SYS_execve, at(&[path])),
                ("execveat", libc::SYS_execveat, at(&[no_path, path])),
                ("fork", libc::SYS_clone, at(&[libc::SIGCHLD as usize])),
                ("ptrace", libc::SYS_ptrace, at(&[libc::PTRACE_ATTACH as usize, parent])),
                ("seize", libc::SYS_ptrace, at(&[libc::PTRACE_SEIZE as usize, parent])),
                ("be traced", libc::SYS_ptrace, at(&[libc::PTRACE_TRACEME as usize])),
                ("read a process", libc::SYS_process_vm_readv, at(&[process])),
                ("write a process", libc::SYS_process_vm_writev, at(&[process])),
                ("kill", libc::SYS_kill, at(&[process])),
                ("tkill", libc::SYS_tkill, at(&[process])),
                ("tgkill another", libc::SYS_tgkill, at(&[parent, parent])),
                ("queue a signal", libc::SYS_rt_sigqueueinfo, at(&[process])),
                ("pidfd_getfd", libc::SYS_pidfd_getfd, at(&[])),
                (
                    "socket",
                    libc::SYS_socket,
                    at(&[libc::AF_NETLINK as usize, libc::SOCK_RAW as usize]),
                ),
                ("setsockopt", libc::SYS_setsockopt, at(&[fd(&unconnected)])),
                ("listen", libc::SYS_listen, at(&[fd(&unconnected)])),
                ("executable memory", libc::SYS_mmap, at(&[0, 4096, executable, anonymous, !0])),
                ("code", libc::SYS_mprotect, at(&[address, 4096, executable])),
                ("pkey_mprotect", libc::SYS_pkey_mprotect, at(&[address, 4096, executable, !0])),
                ("userfaultfd", libc::SYS_userfaultfd, at(&[1])),
                ("UFFDIO_API", libc::SYS_ioctl, ioctl(0xC018_AA3F)),
                ("UFFDIO_REGISTER", libc::SYS_ioctl, ioctl(0xC020_AA00)),
                ("USERFAULTFD_IOC_NEW", libc::SYS_ioctl, ioctl(0xAA00)),
                ("TIOCSTI", libc::SYS_ioctl, at(&[0, libc::TIOCSTI as usize])),
                ("F_SETOWN", libc::SYS_fcntl, at(&[fd(&userfaultfd), libc::F_SETOWN as usize])),
                ("F_SETSIG", libc::SYS_fcntl, at(&[fd(&userfaultfd), 10])),
                ("setuid", libc::SYS_setuid, at(&[])),
                ("capset", libc::SYS_capset, at(&[])),
                ("unshare", libc::SYS_unshare, at(&[libc::CLONE_NEWUSER as usize])),
                ("setns", libc::SYS_setns, at(&[])),
                ("mount", libc::SYS_mount, at(&[])),
                ("chroot", libc::SYS_chroot, at(&[path])),
                ("chdir", libc::SYS_chdir, at(&[path])),
                ("bpf", libc::SYS_bpf, at(&[])),
                ("perf_event_open", libc::SYS_perf_event_open, at(&[])),
                ("io_uring_setup", libc::SYS_io_uring_setup, at(&[1])),
                ("keyctl", libc::SYS_keyctl, at(&[])),
                ("seccomp", libc::SYS_seccomp, at(&[])),
                ("prctl", libc::SYS_prctl, at(&[libc::PR_SET_DUMPABLE as usize, 1])),
                ("prlimit64", libc::SYS_prlimit64, at(&[])),
            ];
            for (name, number, arguments) in calls {
                assert_eq!(call(number, arguments), refused, "{name}");
            }
            // Its flags cannot be seen: C libraries make the older call instead.
            assert_eq!(call(libc::SYS_clone3, at(&[])), libc::ENOSYS);
        }],
    );
}

#[test]
fn a_process_in_the_sandbox_can_abort() {
    const NAME: &str = "a_process_in_the_sandbox_can_abort";
    if child::case().is_none() {
        return child::run(NAME, "alone");
    }
    let aborting = || {
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Core, none).unwrap();
        Sandbox::default().enter().unwrap();
        std::process::abort();
    };
    let status = child::with_one_thread(aborting, |_| ());
    assert_eq!(status.signal(), Some(libc::SIGABRT));
}

#[test]
fn only_what_is_removable_can_be_removed() {
    child::alone(
        "only_what_is_removable_can_be_removed",
        [|| {
            let [removable, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let [first, second] =
                [&removable, &other].map(|directory| directory.path().join("file"));
            for path in [&first, &second] {
                File::create(path).unwrap();
            }
            let removable = vec![removable.path().to_owned()];
            let report = Sandbox { removable, ..Sandbox::default() }.enter().unwrap();
            fs::remove_file(first).unwrap();
            match report.landlock {
                Landlock::Absent => child::not_run("the kernel has no Landlock"),
                _ => assert_eq!(errno(fs::remove_file(second)), libc::EACCES),
            }
        }],
    );
}

#[test]
fn nothing_can_be_removed_if_nothing_is_removable() {
    child::alone(
        "nothing_can_be_removed_if_nothing_is_removable",
        [|| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            File::create(&path).unwrap();
            Sandbox::default().enter().unwrap();
            assert_eq!(errno(fs::remove_file(path)), libc::EPERM);
        }],
    );
}

#[test]
fn another_process_sees_that_privileges_are_gone() {
    const NAME: &str = "another_process_sees_that_privileges_are_gone";
    if child::case().is_none() {
        return child::run(NAME, "alone");
    }
    let [(mut entered, enters), (leave, leaves)] = [(); 2].map(|()| io::pipe().unwrap());
    let sandboxed = move || {
        let report = Sandbox::default().enter().unwrap();
        (&enters).write_all(&[u8::from(report.bounding_set_is_empty)]).unwrap();
        let _ = (&leave).read(&mut [0]);
    };
    let status = child::with_one_thread(sandboxed, move |process| {
        let mut is_empty = [0];
        entered.read_exact(&mut is_empty).unwrap();
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let value = |name: &str| {
            let mut lines = status.lines();
            lines.find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
        };
        assert_eq!([value("NoNewPrivs:"), value("Seccomp:")], ["1", "2"]);
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(value(set), "0".repeat(16), "{set}");
        }
        assert_eq!(value("CapBnd:") == "0".repeat(16), is_empty[0] == 1);
        (&leaves).write_all(b"x").unwrap();
    });
    assert!(status.success());
}

#[test]
fn clients_of_other_users_can_be_killed_if_that_was_kept() {
    const NAME: &str = "clients_of_other_users_can_be_killed_if_that_was_kept";
    if child::case().is_none() && !rustix::process::geteuid().is_root() {
        return child::not_run("another user needs root");
    }
    let kill = |kills_other_users| {
        move || {
            // The client becomes another user.
            let (connection, client) = UnixStream::pair().unwrap();
            // SAFETY: this process has one thread. The child ends below.
            let child = match unsafe { libc::fork() } {
                -1 => panic!("{}", io::Error::last_os_error()),
                0 => {
                    drop(connection);
                    // SAFETY: it takes a number.
                    unsafe { libc::setuid(65534) };
                    (&client).write_all(b"x").unwrap();
                    let _ = (&client).read(&mut [0]);
                    // SAFETY: it takes a number, and does not return.
                    unsafe { libc::_exit(0) }
                }
                child => child,
            };
            drop(client);
            (&connection).read_exact(&mut [0]).unwrap();
            let pid = rustix::process::Pid::from_raw(child).unwrap();
            let flags = rustix::process::PidfdFlags::empty();
            let pidfd = rustix::process::pidfd_open(pid, flags).unwrap();
            let peer = Peer { pid: child.cast_unsigned(), uid: 65534, gid: 0, pidfd: Some(pidfd) };
            let report = Sandbox { kills_other_users, ..Sandbox::default() }.enter().unwrap();
            assert_eq!(report.keeps_kill, kills_other_users);
            let expected = if kills_other_users { Ok(()) } else { Err(SignalError::NotPermitted) };
            assert_eq!(peer.kill(), expected);
            drop(connection);
        }
    };
    child::alone(NAME, [true, false].map(kill));
}

#[test]
fn it_is_not_entered_beside_other_threads() {
    // The test runs on a thread that is not the first.
    let error = Sandbox::default().enter().unwrap_err();
    assert!(matches!(error, SandboxError::Threads(_)), "{error}");
    assert!(error.to_string().contains("one thread"), "{error}");
    assert!(File::open("/dev/null").is_ok(), "nothing was given up");
}

#[test]
fn a_keeper_in_the_sandbox_starts_processes_that_start_none() {
    const NAME: &str = "a_keeper_in_the_sandbox_starts_processes_that_start_none";
    let keeps = || {
        let keeper = Keeper::new(&Options::new().workers(1)).unwrap();
        Sandbox { starts_processes: true, ..Sandbox::default() }.enter().unwrap();
        let code = keeper.run(|kept| {
            sandbox::enter_as_started().unwrap();
            let parent = rustix::process::getppid().unwrap().as_raw_nonzero().get() as usize;
            let starts = [libc::SIGCHLD as usize, 0, 0, 0, 0, 0];
            assert_eq!(call(libc::SYS_clone, starts), libc::EPERM);
            assert_eq!(call(libc::SYS_tgkill, [parent, parent, 0, 0, 0, 0]), libc::EPERM);
            assert_eq!(call(libc::SYS_seccomp, [0; 6]), libc::EPERM);
            std::thread::spawn(|| ()).join().unwrap();
            match kept.before() {
                // By a signal to itself.
                0 => std::process::abort(),
                _ => 7,
            }
        });
        assert_eq!(code.unwrap(), 7);
    };
    child::alone(NAME, [keeps]);
}

#[test]
fn a_serving_process_that_panics_drops_nothing_of_the_next_one() {
    const NAME: &str = "a_serving_process_that_panics_drops_nothing_of_the_next_one";
    let keeps = || {
        let file = std::fs::File::open("/dev/null").unwrap();
        let keeper = Keeper::new(&Options::new().workers(1)).unwrap();
        let code = keeper.run(|kept| {
            let file = file;
            assert_eq!(file.metadata().unwrap().len(), 0);
            match kept.before() {
                0 | 1 => panic!("process {}", kept.before()),
                _ => 7,
            }
        });
        assert_eq!(code.unwrap(), 7);
    };
    child::alone(NAME, [keeps]);
}

#[test]
fn a_keeper_that_may_start_no_process_says_so() {
    let keeps = || {
        let keeper = Keeper::new(&Options::new().workers(1)).unwrap();
        Sandbox::default().enter().unwrap();
        let refused = keeper.run(|_| 0).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    };
    child::alone("a_keeper_that_may_start_no_process_says_so", [keeps]);
}
