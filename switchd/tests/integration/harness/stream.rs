//! Stations with a kernel's IP stack, and traffic between them that is verified byte by byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};

use super::daemon::Daemon;
use super::net::{Ns, Offloads};
use super::{PATIENCE, Random, raw};

/// How a station is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Tap,
    /// `tap --no-offload`
    Plain,
    Packet,
    /// A macvtap device on a veth end.
    Macvtap,
    Internal,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tap => "tap",
            Kind::Plain => "plain",
            Kind::Packet => "packet",
            Kind::Macvtap => "mvtap",
            Kind::Internal => "internal",
        }
    }
}

/// A host on the network.
#[derive(Debug)]
pub struct Station<'a> {
    pub kind: Kind,
    pub ns: &'a Ns,
    /// Its interface, and the port's name.
    pub ifname: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub mtu: u32,
    pub switch: &'a Ns,
}

impl<'a> Station<'a> {
    /// Attaches a host to a bridge: adds the port and gives the host 10.9.0.N/24 and fd09::N/64. `ns` is where the host is, but
    /// an internal port's is vswitchd's own, `switch`.
    #[track_caller]
    pub fn plug(
        daemon: &Daemon,
        (switch, ns): (&'a Ns, &'a Ns),
        kind: Kind,
        number: u8,
        mtu: u32,
        options: &str,
    ) -> Station<'a> {
        let ns = if kind == Kind::Internal { switch } else { ns };
        let ifname = format!("{}{number}", kind.name());
        let (v4, v6) =
            (Ipv4Addr::new(10, 9, 0, number), Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number.into()));
        let addresses = format!("--mtu {mtu} --address {v4}/24 --address {v6}/64");
        let options =
            if options.contains("--bridge") { options.to_owned() } else { format!("--bridge br0 {options}") };
        match kind {
            Kind::Tap => {
                daemon
                    .ctl(&format!("port add {ifname} --type tap --netns {} {addresses} {options}", ns.name));
            }
            Kind::Plain => {
                daemon.ctl(&format!(
                    "port add {ifname} --type tap --no-offload --netns {} {addresses} {options}",
                    ns.name
                ));
            }
            Kind::Internal => {
                daemon.ctl(&format!("port add {ifname} --type internal {addresses} {options}"));
            }
            Kind::Packet => {
                switch.veth(&ifname, ns, &ifname, mtu);
                ns.ip(&format!("addr add {v4}/24 dev {ifname}; addr add {v6}/64 dev {ifname} nodad"));
                daemon.ctl(&format!("port add {ifname} --type packet {options}"));
            }
            Kind::Macvtap => {
                switch.veth(&format!("{ifname}l"), ns, &ifname, mtu);
                ns.ip(&format!("addr add {v4}/24 dev {ifname}; addr add {v6}/64 dev {ifname} nodad"));
                daemon.ctl(&format!("port add {ifname} --type macvtap --lower {ifname}l {options}"));
            }
        }
        Station { kind, ns, ifname, v4, v6, mtu, switch }
    }

    /// A host behind a veth `packetN` whose other end, `pN` on `switch`, is for a switch that is not ours.
    #[track_caller]
    pub fn behind_veth((switch, ns): (&'a Ns, &'a Ns), number: u8, mtu: u32) -> Station<'a> {
        let ifname = format!("packet{number}");
        let (v4, v6) =
            (Ipv4Addr::new(10, 9, 0, number), Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number.into()));
        switch.veth(&format!("p{number}"), ns, &ifname, mtu);
        ns.ip(&format!("addr add {v4}/24 dev {ifname}; addr add {v6}/64 dev {ifname} nodad"));
        Station { kind: Kind::Packet, ns, ifname, v4, v6, mtu, switch }
    }

    /// The same host by the addresses it has inside a tunnel.
    pub fn inside(&self, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> Station<'a> {
        Station { v4, v6, ifname: self.ifname.clone(), ..*self }
    }

    pub fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }

    /// What its interface may leave to whoever is next.
    #[track_caller]
    pub fn offloads(&self, asked: Offloads) {
        if self.kind == Kind::Plain {
            let has = self.ns.try_offloads(&self.ifname, asked);
            assert_eq!(
                has,
                Offloads { tx: false, tso: false, ..asked },
                "a plain tap's are the kernel's own"
            );
            return;
        }
        self.ns.offloads(&self.ifname, asked);
        match self.kind {
            Kind::Packet => self.switch.offloads(&self.ifname, asked),
            Kind::Macvtap => self.switch.offloads(&format!("{}l", self.ifname), asked),
            _ => {}
        }
    }

    /// Whether frames must reach it with everything finished, when its offloads are as given.
    pub fn finished(&self, offloads: Offloads) -> bool {
        self.kind == Kind::Plain || matches!(self.kind, Kind::Packet | Kind::Macvtap) && !offloads.tx
    }

    pub fn udp(&self, v6: bool) -> UdpSocket {
        let address = SocketAddr::new(self.ip(v6), 0);
        let socket = self.ns.enter(|| UdpSocket::bind(address));
        let socket = socket.unwrap_or_else(|error| panic!("{address} on {}: {error}", self.ifname));
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        raw::room(&socket, 32 << 20).expect("a receive buffer");
        socket
    }

    fn listen(&self, v6: bool) -> TcpListener {
        let address = SocketAddr::new(self.ip(v6), 0);
        self.ns
            .enter(|| TcpListener::bind(address))
            .unwrap_or_else(|error| panic!("{address} on {}: {error}", self.ifname))
    }
}

/// Both ends of a TCP connection from `a` to `b`.
#[track_caller]
pub fn connect(a: &Station<'_>, b: &Station<'_>, v6: bool) -> (TcpStream, TcpStream) {
    let listener = b.listen(v6);
    let address = listener.local_addr().expect("bound");
    let accept = std::thread::spawn(move || listener.accept());
    let near = a.ns.enter(|| TcpStream::connect_timeout(&address, PATIENCE));
    let near = near.unwrap_or_else(|error| panic!("TCP from {} to {}: {error}", a.ifname, b.ifname));
    let (far, _) = accept.join().expect("no panic").expect("accepted");
    for end in [&near, &far] {
        end.set_read_timeout(Some(PATIENCE)).expect("timeout");
        end.set_write_timeout(Some(PATIENCE)).expect("timeout");
    }
    (near, far)
}

/// Sends `len` bytes each way at the same time and verifies them.
#[track_caller]
pub fn tcp(a: &Station<'_>, b: &Station<'_>, v6: bool, len: usize) {
    let (near, far) = connect(a, b, v6);
    let context = format!("TCP, IPv{}, {} and {}", if v6 { 6 } else { 4 }, a.ifname, b.ifname);
    std::thread::scope(|scope| {
        let tasks = [
            scope.spawn(|| write(&near, 1, len)),
            scope.spawn(|| read(&far, 1, len)),
            scope.spawn(|| write(&far, 2, len)),
            scope.spawn(|| read(&near, 2, len)),
        ];
        let results: Vec<Result<(), String>> =
            tasks.into_iter().map(|task| task.join().expect("no panic")).collect();
        for result in results {
            result.unwrap_or_else(|error| panic!("{context}: {error}"));
        }
    });
}

fn write(mut stream: &TcpStream, seed: u64, len: usize) -> Result<(), String> {
    let (mut content, mut sizes) = (Random::new(seed), Random::new(seed + 100));
    let mut left = len;
    let mut buffer = vec![0; 256 << 10];
    while left > 0 {
        // Small writes make small segments, large ones GSO frames. Multiples of 8 keep the content one stream.
        let most = if sizes.one_in(3) { 64 } else { buffer.len() / 8 };
        let size = ((1 + sizes.below(most)) * 8).min(left);
        content.fill(&mut buffer[..size]);
        stream.write_all(&buffer[..size]).map_err(|error| format!("write, {left} bytes to go: {error}"))?;
        left -= size;
    }
    stream.shutdown(Shutdown::Write).map_err(|error| format!("shutdown: {error}"))
}

fn read(mut stream: &TcpStream, seed: u64, len: usize) -> Result<(), String> {
    let mut content = Random::new(seed);
    let (mut got, mut expected) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut done = 0;
    while done < len {
        let size = got.len().min(len - done);
        stream.read_exact(&mut got[..size]).map_err(|error| format!("read after {done} bytes: {error}"))?;
        content.fill(&mut expected[..size]);
        if let Some(at) = (0..size).find(|at| got[*at] != expected[*at]) {
            return Err(format!("byte {} is {:#x}, not {:#x}", done + at, got[at], expected[at]));
        }
        done += size;
    }
    match stream.read(&mut got) {
        Ok(0) => Ok(()),
        Ok(more) => Err(format!("{more} bytes too many")),
        Err(error) => Err(format!("no end: {error}")),
    }
}

/// One datagram; children that end interrupt the call.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn datagram(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Random::new(number << 20 | len as u64).fill(&mut bytes);
    if let Some(head) = bytes.first_chunk_mut() {
        *head = number.to_be_bytes();
    }
    bytes
}

/// Datagrams of many sizes to `b` and back, one at a time, then a burst of which none may be lost.
#[track_caller]
pub fn udp(a: &Station<'_>, b: &Station<'_>, v6: bool) {
    let (near, far) = (a.udp(v6), b.udp(v6));
    let (here, there) = (near.local_addr().expect("bound"), far.local_addr().expect("bound"));
    let context = format!("UDP, IPv{}, {} and {}", if v6 { 6 } else { 4 }, a.ifname, b.ifname);
    let full = (a.mtu - if v6 { 48 } else { 28 }) as usize;
    let mut buffer = vec![0; 65_536];
    let mut receive = |socket: &UdpSocket| match receive(socket, &mut buffer) {
        Ok(len) => buffer[..len].to_vec(),
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("{context}: a datagram got lost"),
        Err(error) => panic!("{context}: {error}"),
    };
    // Above `full` in IP fragments.
    let sizes = [0, 1, 2, 17, 18, 100, 1000, full - 1, full, full + 1, 3 * full, 20_000, 65_000];
    for (number, size) in sizes.into_iter().enumerate() {
        let sent = datagram(number as u64, size);
        near.send_to(&sent, there).unwrap_or_else(|error| panic!("{context}: {size} bytes: {error}"));
        assert!(receive(&far) == sent, "{context}: {size} bytes arrived changed");
        far.send_to(&sent, here).unwrap_or_else(|error| panic!("{context}: {size} bytes: {error}"));
        assert!(receive(&near) == sent, "{context}: {size} bytes came back changed");
    }
    let mut sizes = Random::new(7);
    let burst: Vec<Vec<u8>> = (0..200).map(|n| datagram(1000 + n, 8 + sizes.below(full - 8))).collect();
    for bytes in &burst {
        near.send_to(bytes, there).unwrap_or_else(|error| panic!("{context}: {error}"));
    }
    let mut open: std::collections::HashSet<&Vec<u8>> = burst.iter().collect();
    while !open.is_empty() {
        let got = receive(&far);
        assert!(open.remove(&got), "{context}: a datagram of {} bytes that nobody sent", got.len());
    }
}

/// Sends with UDP_SEGMENT: one send is many datagrams, which somebody on the way has to cut.
#[track_caller]
pub fn udp_gso(a: &Station<'_>, b: &Station<'_>, v6: bool) {
    let (near, far) = (a.udp(v6), b.udp(v6));
    let there = far.local_addr().expect("bound");
    let context = format!("UDP GSO, IPv{}, {} to {}", if v6 { 6 } else { 4 }, a.ifname, b.ifname);
    let full = (a.mtu - if v6 { 48 } else { 28 }) as usize;
    let mut buffer = vec![0; 65_536];
    for (segment, len) in [
        (full, full * 3),
        (full, 60_000 / full * full),
        (1000, 1001),
        (1000, 5999),
        (100, 6000),
        (full - 1, 2 * full - 1),
        (8, 64),
        (1, 9),
    ] {
        raw::set(&near, libc::SOL_UDP, libc::UDP_SEGMENT, &(segment as libc::c_int)).expect("UDP_SEGMENT");
        let sent = datagram(1, len);
        near.send_to(&sent, there).unwrap_or_else(|error| panic!("{context}: {len} by {segment}: {error}"));
        for (number, expected) in sent.chunks(segment).enumerate() {
            let got = receive(&far, &mut buffer).unwrap_or_else(|error| {
                panic!("{context}: {len} by {segment}: datagram {number} got lost: {error}")
            });
            assert!(buffer[..got] == *expected, "{context}: {len} by {segment}: datagram {number} differs");
        }
    }
}
