//! Frames of unusual shape: longer than any (BIG TCP), of full size under several tags or labels, whole and in fragments by turns.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use crate::harness::Outcome;
use crate::harness::daemon::Start;
use crate::harness::net::Ns;
use crate::harness::stream::{Kind, Station, connect};

/// linux/if_link.h; iproute2 has a word for it from 6.3 on.
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;

/// Sets one attribute of an interface of the calling thread's namespace.
fn set_link(index: u32, attribute: u16, value: u32) {
    let mut message = Vec::new();
    message.extend(40_u32.to_ne_bytes());
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(8_u16.to_ne_bytes());
    message.extend(attribute.to_ne_bytes());
    message.extend(value.to_ne_bytes());
    assert_eq!(message.len(), 40);
    // SAFETY: plain calls on a socket that is closed at once; the pointers and lengths are those of live buffers.
    let error = unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        assert!(fd >= 0, "netlink");
        libc::send(fd, message.as_ptr().cast(), message.len(), 0);
        let mut answer = [0_u8; 512];
        let len = libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0);
        libc::close(fd);
        assert!(len >= 20, "an answer");
        i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]])
    };
    assert_eq!(error, 0, "attribute {attribute} of interface {index}");
}

/// A station whose interface hands over TCP of up to 192 KiB, as Cilium's containers do.
fn with_big_tcp(station: &Station<'_>) {
    station.ns.ip(&format!("link set {} gso_max_size 196608", station.ifname));
    let index = station.ns.link(&station.ifname).expect("there")["ifindex"].as_u64().expect("a number");
    station.ns.enter(|| set_link(index as u32, IFLA_GSO_IPV4_MAX_SIZE, 196_608));
}

/// TCP of more than 64 KiB a frame crosses the switch, to every kind of port, whole, and quickly.
pub fn big_tcp() -> Outcome {
    const LEN: usize = 24 << 20;
    let switch = Ns::with_ipv6("v");
    let hosts = [(); 4].map(|()| Ns::with_ipv6("h"));
    let daemon = Start::new(&switch).arguments("--workers 2").ready();
    daemon.ctl("bridge add br0");
    let kinds = [Kind::Packet, Kind::Packet, Kind::Tap, Kind::Plain];
    let stations: Vec<Station<'_>> = (1..)
        .zip(&hosts)
        .zip(kinds)
        .map(|((number, ns), kind)| Station::plug(&daemon, (&switch, ns), kind, number, 1500, ""))
        .collect();
    with_big_tcp(&stations[0]);
    let name = &stations[0].ifname;
    for to in &stations[1..] {
        for v6 in [false, true] {
            let (mut near, mut far) = connect(&stations[0], to, v6);
            let began = Instant::now();
            let sender = std::thread::spawn(move || {
                let chunk: Vec<u8> = (0..1 << 20).map(|n: u32| (n ^ n >> 8 ^ n >> 16) as u8).collect();
                (0..LEN / chunk.len()).try_for_each(|_| near.write_all(&chunk))
            });
            let (mut got, mut at) = (vec![0; 1 << 16], 0_u32);
            for _ in 0..LEN / got.len() {
                far.read_exact(&mut got)
                    .unwrap_or_else(|error| panic!("to {}, IPv6 {v6}: {error}", to.ifname));
                for byte in &got {
                    assert_eq!(
                        *byte,
                        (at ^ at >> 8 ^ at >> 16) as u8,
                        "to {}, IPv6 {v6}, byte {at}",
                        to.ifname
                    );
                    at = (at + 1) % (1 << 20);
                }
            }
            sender.join().expect("no panic").expect("all written");
            assert!(began.elapsed() < Duration::from_secs(8), "to {}: {:?}", to.ifname, began.elapsed());
        }
    }
    assert_eq!(daemon.drops(name, "rx_truncated") + daemon.drops(name, "bad_offload"), 0);
    Ok(())
}

/// For the calling thread, which ends with the test.
fn stay_on_one_cpu() {
    // SAFETY: plain calls with a set of this function's own.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu() as usize, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0);
    }
}

/// Datagrams that fit a packet and datagrams that do not, by turns: each flow arrives in the order it was sent in, whatever the
/// number of workers.
pub fn whole_and_fragmented_datagrams() -> Outcome {
    const FLOWS: usize = 12;
    // A veth keeps the order of what one CPU sends; a sender that moves between CPUs overtakes itself.
    stay_on_one_cpu();
    let (switch, left, right) = (Ns::with_ipv6("v"), Ns::with_ipv6("a"), Ns::with_ipv6("b"));
    let daemon = Start::new(&switch).arguments("--workers 2").ready();
    daemon.ctl("bridge add br0");
    let mut number = 0;
    for kind in [Kind::Packet, Kind::Tap] {
        let mut plug = |ns| {
            number += 1;
            Station::plug(&daemon, (&switch, ns), kind, number, 1500, "")
        };
        let (a, b) = (plug(&left), plug(&right));
        for v6 in [false, true] {
            let pair = || (a.udp(v6), b.udp(v6));
            let flows: Vec<(UdpSocket, UdpSocket)> = (0..FLOWS).map(|_| pair()).collect();
            for (near, far) in &flows {
                near.connect(far.local_addr().expect("bound")).expect("connected");
                far.set_nonblocking(true).expect("non-blocking");
            }
            let (mut sent, mut next, mut late) = (0_u32, [0_u32; FLOWS], 0);
            let mut buffer = [0; 4096];
            for _ in 0..60 {
                for _ in 0..8 {
                    for (near, _) in &flows {
                        let mut datagram = vec![0x5a; if sent % 2 == 0 { 1200 } else { 3000 }];
                        datagram[..4].copy_from_slice(&sent.to_be_bytes());
                        near.send(&datagram).expect("sent");
                    }
                    sent += 1;
                }
                // What a queue holds and no more.
                std::thread::sleep(Duration::from_millis(2));
                for ((_, far), next) in flows.iter().zip(&mut next) {
                    while far.recv(&mut buffer).is_ok() {
                        let number = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
                        late += u32::from(number < *next);
                        *next = (*next).max(number + 1);
                    }
                }
            }
            assert_eq!(late, 0, "out of order, {kind:?}, IPv6 {v6}");
            assert!(next.iter().all(|next| *next > sent / 2), "{kind:?}, IPv6 {v6}: {next:?} of {sent}");
        }
    }
    Ok(())
}
