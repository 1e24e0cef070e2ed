//! What a refused change leaves behind: nothing, wherever on the way it was refused.

use std::fs;
use std::path::Path;

use crate::harness::daemon::{Daemon, Start};
use crate::harness::net::Ns;
use crate::harness::{Outcome, eventually};

/// Descriptors that a port takes at most here, and some that the request takes.
const STEPS: usize = 80;

/// Sets how many descriptors the daemon may have; `None`: as many as it may.
fn limit_files(daemon: &Daemon, most: Option<u64>) {
    let pid = daemon.pid() as libc::pid_t;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the calls read and write one structure; the process is our own child.
    let done = unsafe {
        let read = libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit);
        limit.rlim_cur = most.unwrap_or(limit.rlim_max);
        read | libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Names in a folder, without those that the daemon and the test have there anyhow.
fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("there").map(|entry| entry.expect("readable").file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A port of each kind is added while there are too few descriptors, one more each time, until there are enough: every step on the way
/// to a port is refused once. No interface, no file and no descriptor is left of those that were refused.
pub fn of_ports_without_descriptors() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let daemon = Start::new(&ns).arguments("--workers 2").ready();
    daemon.ctl("bridge add br0");
    // Ports here take no namespace that another port is in already: entering it is a step, too.
    ns.veth("l0", &wire, "far", 1500);
    ns.ip("addr add 10.7.0.1/24 dev l0");
    let path = |name: &str| daemon.path(name).display().to_string();
    let kinds = [
        "--type macvtap --lower l0".to_owned(),
        "--type macvtap --lower l0 --mode bridge".to_owned(),
        format!("--type tap --netns {}", wire.name),
        "--type internal --address 10.8.0.1/24".to_owned(),
        "--type packet --ifname l0".to_owned(),
        format!("--type vhost-user --path {}", path("x.sock")),
        format!("--type stream --path {}", path("x.sock")),
        format!("--type dgram --path {}", path("x.sock")),
        format!("--type vde --path {}", path("x.vde")),
        "--type vxlan --vni 7 --local 10.7.0.1 --remote 10.7.0.2".to_owned(),
    ];
    for kind in kinds {
        let before = (ns.links(), wire.links(), files(&daemon.path("")));
        let (mut refusals, mut open) = (0, daemon.open_files());
        for more in 0..STEPS {
            // One is the connection of the request.
            limit_files(&daemon, Some((open + 1 + more) as u64));
            let output =
                daemon.try_ctl(&format!("port add x --bridge br0 {kind}").split(' ').collect::<Vec<_>>());
            limit_files(&daemon, None);
            if output.status.success() {
                break;
            }
            refusals += 1;
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            let left = (ns.links(), wire.links(), files(&daemon.path("")));
            assert_eq!(left, before, "{kind}, {more} descriptors more: {error}");
            eventually("its descriptors are closed", || daemon.open_files() <= open);
            open = daemon.open_files();
        }
        assert!(refusals > 0, "{kind}: it takes no descriptor?");
        daemon.ctl("port del x");
        assert_eq!(
            (ns.links(), wire.links(), files(&daemon.path(""))),
            before,
            "{kind}: and none of a port that went"
        );
    }
    Ok(())
}
