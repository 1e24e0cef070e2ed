//! `port explain`: what a port does, in words, and what to type at its other end.

mod guest;

use std::fmt::Write as _;

use super::show;
use crate::api::{
    DfMode, MacvtapInfo, PortInfo, RemoteInfo, Role, SocketInfo, State, TunnelInfo, VlanModeName,
};

pub(super) use guest::lines_for;

/// What the frames of a kind of tunnel travel in.
fn packets(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "vxlan" => "UDP datagrams (VXLAN, RFC 7348)",
        "geneve" => "UDP datagrams (Geneve, RFC 8926)",
        "gretap" | "ip6gretap" => "GRE packets (RFC 2784)",
        "erspan" | "ip6erspan" => "GRE packets, as mirrored frames (ERSPAN),",
        _ => return None,
    })
}

/// Some sentences about `port`, of a vswitchd with this attach socket.
pub(super) fn port(port: &PortInfo, attach_socket: Option<&str>) -> String {
    let ifname = port.ifname.as_deref().unwrap_or("?");
    let place = port.netns.as_ref().map_or_else(String::new, |netns| format!(" in namespace '{netns}'"));
    let mut text = format!("Port '{}' of bridge '{}' is {} now.\n", port.name, port.bridge, state(port));
    if let Some(reason) = &port.reason {
        let _ = writeln!(text, "Reason: {reason}.");
    }
    if port.state == State::Failed {
        let _ = writeln!(
            text,
            "vswitchd tries it again by itself, at most 30 s apart, and at each reload (SIGHUP); it carries no frames\n\
             meanwhile, and its settings and static stations are kept."
        );
    }
    // Writing to a String cannot fail.
    let _ = match port.kind.as_str() {
        "tap" => writeln!(
            text,
            "vswitchd created the TAP interface '{ifname}'{place} and holds its other side: what uses that\n\
             interface is the station. It disappears with the port. It is the fast way for a container or a\n\
             test host; a QEMU guest cannot use it, because the switch has the end that QEMU needs."
        ),
        "internal" => writeln!(
            text,
            "vswitchd created the interface '{ifname}' as the host's own place on the bridge: its addresses are\n\
             the host's, and its MAC is a local entry in 'vswitchctl fdb show'. A QEMU guest cannot use it, because the\n\
             switch has the end that QEMU needs."
        ),
        "packet" if port.attached.is_some() => writeln!(
            text,
            "vswitchd made the TAP '{ifname}' for a guest that attached itself, and QEMU holds its other side. The port\n\
             leaves with the guest; 'vswitchctl port del {}' takes it away from a guest that runs.",
            port.name
        ),
        "packet" => writeln!(
            text,
            "The interface '{ifname}'{place} exists on its own; vswitchd receives and sends its frames with\n\
             packet sockets and keeps the host's stack from answering on it. What is on top of it (macvlans, VLAN\n\
             devices) would get no frames. When the interface goes, the port stays and waits."
        ),
        "macvtap" => writeln!(
            text,
            "{}\nA QEMU guest cannot use the device, because vswitchd has it open: it is for the way out.",
            macvtap(port, ifname, &place)
        ),
        "stream" => writeln!(text, "{}", stream(port)),
        "dgram" => writeln!(text, "{}", dgram(port)),
        "vde" => writeln!(text, "{}", vde(port)),
        "vhost-user" => writeln!(
            text,
            "It is the network card of a guest, which shares its memory with vswitchd: frames are copied once and\n\
             no kernel is between. It is up while a guest's driver has it; when the guest, QEMU or vswitchd is started\n\
             again, the others wait and go on by themselves."
        ),
        other => match packets(other) {
            Some(packets) => writeln!(
                text,
                "Its frames travel in {packets} between this host and the remotes that 'vswitchctl\n\
                 port show {0}' lists. What is flooded goes to each of them; a known station's frames go to its\n\
                 remote alone. Nothing that came by a tunnel is flooded into one.",
                port.name
            ),
            None => writeln!(text, "It is of type '{other}'."),
        },
    };
    if let Some(peer) = &port.peer {
        let name = peer
            .ifname
            .as_deref()
            .map_or_else(|| format!("interface {}", peer.ifindex), |n| format!("'{n}'"));
        let place = peer.netns.as_ref().map_or_else(String::new, |netns| format!(" in namespace '{netns}'"));
        let _ =
            writeln!(text, "It is one end of a veth pair; the station is behind the other, {name}{place}.");
    }
    if let Some(tunnel) = &port.tunnel {
        text.push_str(&path(tunnel));
    }
    if let (None, Some(hint)) = (&port.tunnel, port.hint()) {
        let _ = writeln!(text, "Hint: {hint}.");
    }
    text.push_str(&lengths(port));
    text.push('\n');
    text.push_str(&vlans(port));
    behaviour(&mut text, port);
    text.push_str(&guest::lines(port, attach_socket));
    text
}

/// What it sends, by length. A tunnel's path has its own words.
fn lengths(port: &PortInfo) -> String {
    let Some(mtu) = port.mtu.filter(|&mtu| mtu != 0 && port.tunnel.is_none()) else { return String::new() };
    let mut text = format!(
        "It sends frames of up to {} bytes (MTU {mtu} + 18), the outermost 802.1Q or 802.1ad tag not counted; longer\n\
         ones are dropped as too_long.",
        mtu.saturating_add(18)
    );
    if port.kind == "packet" {
        text.push_str(
            " Without tcx (Linux 6.6) or the right to load programs it is MTU + 14, or MTU + 18\n\
             with an 802.1Q tag. TCP frames of more than 64 KiB (BIG TCP) are cut to 64 KiB when they come in.",
        );
    }
    text.push('\n');
    text
}

fn macvtap(port: &PortInfo, ifname: &str, place: &str) -> String {
    let Some(MacvtapInfo { lower, mode }) = &port.macvtap else {
        return format!(
            "The macvtap device '{ifname}'{place} exists on its own; vswitchd reads and writes its character device: frames\n\
             leave and come by the interface that it was made on. Only in mode passthru do stations with other\n\
             addresses than its own get theirs. When it goes, the port stays and waits."
        );
    };
    let whose = match mode.as_str() {
        "passthru" => format!(
            "Every frame that\narrives at '{lower}' is the bridge's, the host's own too: give the host an 'internal' port for its addresses."
        ),
        _ => format!(
            "The host goes on\nusing '{lower}'. Unicast frames come in for the address of '{ifname}' alone, so that is the one for the\n\
             station behind the bridge; for more than one station there is mode passthru."
        ),
    };
    format!(
        "vswitchd made the macvtap device '{ifname}'{place} on top of '{lower}' (mode {mode}): the bridge's frames leave\n\
         and come by that. {whose} The device disappears with the port; while '{lower}' is gone, the port waits."
    )
}

fn is_client(socket: Option<&SocketInfo>) -> bool {
    socket.is_some_and(|socket| socket.role == Role::Client)
}

fn dgram(port: &PortInfo) -> String {
    let who = match &port.socket {
        Some(SocketInfo { peer: None, .. }) => {
            "The first who sends to vswitchd's socket is the peer until he goes; if he has no address, or none\n\
             that leads to him from here, he is refused."
        }
        Some(SocketInfo { role: Role::Client, .. }) => {
            "vswitchd sends to the peer's socket, from one of its own beside it."
        }
        _ => "vswitchd made its socket and sends to the peer's.",
    };
    format!(
        "Each frame is a Unix datagram. {who}\n\
         The port is up while a program has the peer's socket; nobody else may send then. The peer takes no more\n\
         datagrams at once than 'sysctl net.unix.max_dgram_qlen' says; what is more is dropped (tx_full)."
    )
}

fn vde(port: &PortInfo) -> String {
    let who = if is_client(port.socket.as_ref()) {
        "vswitchd is a plug of another VDE switch, and plugs in again whenever that ends; meanwhile the port is\n\
         down."
    } else {
        "It is a folder that one plug of the VDE switch protocol connects to; others are turned away while it is\n\
         there, and the port is down while it is not."
    };
    format!(
        "{who} Each frame is a Unix datagram. Of what the other end does not take, 1 MiB waits;\n\
         the rest is dropped (tx_full)."
    )
}

fn stream(port: &PortInfo) -> &'static str {
    if is_client(port.socket.as_ref()) {
        "vswitchd connects to the peer, and again whenever the connection ends; meanwhile the port is down. Frames\n\
         go both ways with their length before them. They are finished before: the peer knows no offloads."
    } else {
        "vswitchd listens for one peer; others are turned away while it is there, and the port is down while it is\n\
         not. Frames go both ways with their length before them. They are finished before: the peer knows no\n\
         offloads."
    }
}

fn state(port: &PortInfo) -> &'static str {
    match port.state {
        State::Up => "up",
        State::Failed => "failed (the kernel refused what it needs)",
        State::Down if port.kind == "vhost-user" => "down (no guest receives and sends by it)",
        State::Down if port.socket.is_some() => "down (its peer is not there)",
        State::Gone if port.socket.is_some() => "gone (its socket cannot be made)",
        State::Down => "down (its interface is switched off or has no carrier)",
        State::Gone if port.tunnel.is_some() => {
            "gone (its local address, the interface of --dev or the namespace is not there; it waits)"
        }
        State::Gone => "gone (its interface does not exist)",
    }
}

/// What fits the ways of a tunnel, what becomes of the rest, and what would be better.
fn path(tunnel: &TunnelInfo) -> String {
    let mut text = String::new();
    for RemoteInfo { address, mtu, .. } in &tunnel.remotes {
        let _ = writeln!(text, "Frames with up to {mtu} bytes of payload fit one packet to {address}.");
    }
    text.push_str(match tunnel.df {
        DfMode::Inherit => {
            "What does not fit goes in fragments of the outer packet; where it may not be fragmented (IPv4 with DF,\n\
             IPv6) its sender is told with 'packet too big' what fits, and it is dropped (too_big).\n"
        }
        DfMode::Set => {
            "What does not fit is dropped (too_big), and the sender of an IP packet is told with 'packet too big'\n\
             what fits.\n"
        }
        DfMode::Unset => "What does not fit goes in fragments of the outer packet.\n",
    });
    if tunnel.mss_clamp {
        text.push_str("TCP connections are told when they open to send segments that fit.\n");
    }
    if let Some(hint) = &tunnel.hint {
        let _ = writeln!(text, "Hint: {hint}.");
    }
    text
}

fn vlans(port: &PortInfo) -> String {
    match port.vlan.mode {
        VlanModeName::None => "The bridge does not look at VLAN tags: they pass as payload.\n".to_owned(),
        VlanModeName::Access => format!(
            "VLANs: {}. Untagged frames are in that VLAN and leave untagged; tagged ones are dropped.\n",
            show::vlan(&port.vlan)
        ),
        VlanModeName::Trunk => format!(
            "VLANs: {}. Those pass tagged; untagged frames are {}.\n",
            show::vlan(&port.vlan),
            port.vlan.native.map_or_else(|| "dropped".to_owned(), |native| format!("in VLAN {native}"))
        ),
    }
}

fn behaviour(text: &mut String, port: &PortInfo) {
    let unusual = [
        (!port.learning, "It does not learn: stations behind it are reached by flooding or static entries."),
        (!port.flood, "Unknown unicast is not sent to it."),
        (port.isolated, "It is isolated: it exchanges no frames with other isolated ports."),
        (port.hairpin, "Hairpin: frames may leave by it that came in by it."),
    ];
    for (_, sentence) in unusual.iter().filter(|(is, _)| *is) {
        text.push_str(sentence);
        text.push('\n');
    }
}
