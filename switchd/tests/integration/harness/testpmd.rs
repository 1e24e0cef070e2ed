//! DPDK's testpmd, whose virtio-user ports are front ends of vhost-user, and whose drivers are none of Linux's.
//!
//! Its memory is a file of ordinary pages, so it needs no huge ones.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::Skip;
use super::net::has_program;

const TESTPMD: &str = "dpdk-testpmd";

/// Whether it is here.
///
/// # Errors
/// It is not.
pub fn can_forward() -> Result<(), Skip> {
    if has_program(TESTPMD) { Ok(()) } else { Err(Skip(TESTPMD.to_owned())) }
}

/// A running testpmd with two ports: what comes by one leaves by the other, for the other's station.
#[derive(Debug)]
pub struct Testpmd(Child);

impl Testpmd {
    /// Starts with a burst out of each port; its files are in `folder`.
    pub fn start(folder: &Path, sockets: &[impl AsRef<Path>; 2]) -> Testpmd {
        let mac = |port: usize| format!("02:00:00:00:00:0{}", port + 1);
        let mut command = Command::new(TESTPMD);
        command.args(["--lcores", "0@0,1@0", "--no-pci", "--no-huge", "-m", "128", "--log-level=error"]);
        for (port, socket) in sockets.iter().enumerate() {
            let path = socket.as_ref().display();
            command.arg(format!(
                "--vdev=net_virtio_user{port},path={path},server=0,queue_size=256,mac={}",
                mac(port)
            ));
        }
        command.args(["--", "--forward-mode=mac", "--tx-first", "--rxd=256", "--txd=256"]);
        command.arg("--total-num-mbufs=4096");
        command.args([0, 1].map(|port| format!("--eth-peer={port},{}", mac(1 - port))));
        command.env("RUNTIME_DIRECTORY", folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Testpmd(command.spawn().expect("testpmd starts"))
    }

    /// Ends it; how many frames each of its ports received.
    #[track_caller]
    pub fn received(mut self) -> Vec<u64> {
        self.0.stdin.take().expect("piped").write_all(b"\n").expect("it listens");
        let mut said = String::new();
        self.0.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
        let counts = said.split("Forward statistics for port").skip(1).take(2).map(|about| {
            let count = about.split_once("RX-packets:").expect("a count").1.split_whitespace().next();
            count.and_then(|count| count.parse().ok()).expect("a number")
        });
        counts.collect()
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
