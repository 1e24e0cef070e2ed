//! vswitch-bridge-helper: stands in for qemu-bridge-helper.
//!
//! QEMU (and libvirt, for users' own guests) starts it with the number of a Unix socket's descriptor and takes what arrives
//! there: one byte, and beside it the fd of a TAP. Both ends of that agreement are `net_bridge_run_helper` in QEMU's net/tap.c and
//! its qemu-bridge-helper.c; arguments and exit codes are the same here.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
    recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::{getegid, geteuid, getgid, getuid, setgid, setuid};

use super::protocol::{Answer, LINE_MAX_BYTES, Request};

/// How long vswitchd may take, in seconds.
const PATIENCE_SECS: i64 = 30;

/// Attach a QEMU guest to a bridge of vswitchd
///
/// Takes the place of qemu-bridge-helper(8): asks vswitchd(8) for a TAP device on a bridge and hands its descriptor to whoever
/// started it. It needs no privileges; vswitchd's attach rules say which users may attach to which bridges. The port is gone
/// when the guest's QEMU is.
///
/// QEMU starts it: -netdev bridge,id=net0,br=br0,helper=/usr/lib/qemu/vswitch-bridge-helper
///
/// The exit status is 0 when it is done, 1 when it was refused, with one line on standard error.
#[derive(Parser, Debug)]
#[command(name = "vswitch-bridge-helper", version, max_term_width = 100)]
pub struct Options {
    /// Attach socket of vswitchd
    #[arg(long, value_name = "S", default_value = super::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Frames carry a virtio_net header, and with it checksum and segmentation offload
    #[arg(long)]
    pub use_vnet: bool,
    /// Bridge to attach to
    #[arg(long = "br", value_name = "BR")]
    pub bridge: String,
    /// Number of the descriptor of a Unix socket that the TAP's is sent over
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub fd: RawFd,
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            // As qemu-bridge-helper: wrong usage is a failure like others.
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "vswitch-bridge-helper: {}", crate::one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// Where somebody made the program set-user-id, as qemu-bridge-helper is: whoever starts it stays who he is, or the rules
/// would be for nobody.
fn drop_privileges() -> Result<(), Errno> {
    if getuid() != geteuid() || getgid() != getegid() {
        setgid(getgid())?;
        setuid(getuid())?;
    }
    Ok(())
}

fn run(options: &Options) -> Result<(), String> {
    drop_privileges().map_err(|error| format!("cannot drop privileges: {error}"))?;
    let request = Request::new(&options.bridge, options.use_vnet)?;
    let path = &options.socket;
    let vswitchd = reach(path).map_err(|error| unreachable(path, error))?;
    let broke_off = |error: &dyn std::fmt::Display| {
        format!("vswitchd at {} broke off: {error}: see its log", path.display())
    };
    // One that refuses at once may have closed by now; what it said is still there.
    match sendmsg::<()>(
        vswitchd.as_raw_fd(),
        &[IoSlice::new(&request.to_line())],
        &[],
        MsgFlags::MSG_NOSIGNAL,
        None,
    ) {
        Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => {}
        Err(error) => return Err(broke_off(&error)),
    }
    let (line, tap) = receive(&vswitchd).map_err(|error| match error {
        Errno::EAGAIN => {
            format!("vswitchd at {} did not answer within {PATIENCE_SECS} s: see its log", path.display())
        }
        error => broke_off(&error),
    })?;
    if line.is_empty() {
        return Err(broke_off(&"no answer"));
    }
    match (Answer::parse(&line)?, tap) {
        (Answer { error: Some(error), .. }, _) => Err(error),
        (Answer { port: Some(_), .. }, Some(tap)) => hand_over(options.fd, tap),
        _ => Err(broke_off(&"an answer without descriptor")),
    }
}

/// A connection, with bounds on how long anything takes.
fn reach(path: &Path) -> Result<OwnedFd, Errno> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let patience = TimeVal::new(PATIENCE_SECS, 0);
    setsockopt(&fd, sockopt::SendTimeout, &patience)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

fn unreachable(path: &Path, error: Errno) -> String {
    let path = path.display();
    match error {
        Errno::ENOENT | Errno::ECONNREFUSED => format!(
            "nobody listens at {path}: start vswitchd ('systemctl start vswitchd'), or name its attach socket with --socket"
        ),
        Errno::EACCES => {
            format!(
                "no permission for vswitchd's attach socket {path}: its folder has to let others pass (chmod 755)"
            )
        }
        Errno::EAGAIN => format!("vswitchd at {path} takes no connection: see its log"),
        error => format!("cannot reach vswitchd at {path}: {error}"),
    }
}

/// vswitchd's line without its end, and the number of the descriptor that came with it. It is open until the program ends, which
/// is soon.
fn receive(vswitchd: &OwnedFd) -> Result<(Vec<u8>, Option<RawFd>), Errno> {
    let mut line = Vec::new();
    let mut tap = None;
    while line.len() < LINE_MAX_BYTES {
        let mut part = [0; LINE_MAX_BYTES];
        let mut slices = [IoSliceMut::new(&mut part)];
        let mut control = nix::cmsg_space!(RawFd);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(vswitchd.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Err(Errno::EINTR) => continue,
            message => message?,
        };
        for what in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = what {
                tap = fds.first().copied();
            }
        }
        let len = message.bytes;
        line.extend_from_slice(&part[..len]);
        if len == 0 || line.ends_with(b"\n") {
            break;
        }
    }
    if line.ends_with(b"\n") {
        line.pop();
    }
    Ok((line, tap))
}

/// One byte, with the descriptor beside it.
fn hand_over(to: RawFd, tap: RawFd) -> Result<(), String> {
    loop {
        let rights = [tap];
        let rights = [ControlMessage::ScmRights(&rights)];
        match sendmsg::<()>(to, &[IoSlice::new(&[0])], &rights, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error @ (Errno::EBADF | Errno::ENOTSOCK)) => {
                return Err(format!(
                    "descriptor {to} is not a socket ({error}): QEMU starts this program, by '-netdev bridge,br=…,helper=…'"
                ));
            }
            Err(error) => return Err(format!("cannot hand the TAP over to descriptor {to}: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_those_of_qemu() {
        let parse = |line: &str| Options::try_parse_from(line.split(' '));
        for line in ["x --use-vnet --fd=7 --br=br0", "x --use-vnet --fd 7 --br br0 --socket /run/s"] {
            let options = parse(line).unwrap();
            assert_eq!((options.use_vnet, options.fd, options.bridge.as_str()), (true, 7, "br0"), "{line}");
        }
        assert!(!parse("x --br=br0 --fd=3").unwrap().use_vnet);
        for line in [
            "x",
            "x --br=br0",
            "x --fd=3",
            "x --br=br0 --fd=-1",
            "x --br=br0 --fd=3 --mtu=9000",
            "x --br=br0 --fd=3 y",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_daemon_that_is_not_there_is_told_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("attach.sock");
        let error = run(&Options { socket: socket.clone(), use_vnet: true, bridge: "br0".into(), fd: 3 })
            .unwrap_err();
        assert!(error.contains("nobody listens at") && error.contains("start vswitchd"), "{error}");
        let error = run(&Options { socket, use_vnet: true, bridge: "b/r".into(), fd: 3 }).unwrap_err();
        assert!(error.contains("cannot name a bridge"), "{error}");
    }
}
