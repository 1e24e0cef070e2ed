//! `port explain`: what a port does, in words, and what to type at its other end.

use std::fmt::Write as _;

use super::show;
use crate::api::{
    DfMode, MacvtapInfo, PortInfo, RemoteInfo, Role, SocketInfo, State, TunnelInfo, VlanModeName,
};

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

/// Some sentences about `port`.
pub(super) fn port(port: &PortInfo) -> String {
    let ifname = port.ifname.as_deref().unwrap_or("?");
    let place = port.netns.as_ref().map_or_else(String::new, |netns| format!(" in namespace '{netns}'"));
    let mut text = format!("Port '{}' of bridge '{}' is {} now.\n", port.name, port.bridge, state(port));
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
             the host's, and its MAC is a local entry in 'vswitchctl fdb show'."
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
             packet sockets and keeps the host's stack from answering on it. When the interface goes, the port\n\
             stays and waits."
        ),
        "macvtap" => writeln!(text, "{}", macvtap(port, ifname, &place)),
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
    text.push('\n');
    text.push_str(&vlans(port));
    behaviour(&mut text, port);
    match &port.socket {
        Some(SocketInfo { path: Some(path), role, .. }) if port.kind == "vhost-user" => {
            text.push_str(&guest(port, path, *role));
        }
        Some(SocketInfo { path: Some(path), role, .. }) if port.kind == "vde" => {
            text.push_str(&plugs(port, path, *role));
        }
        Some(socket) => text.push_str(&qemu(port, socket)),
        None => {}
    }
    match (port.kind.as_str(), &port.attached) {
        (_, Some(_)) => text.push_str(&helper(port)),
        ("packet", None) => text.push_str(&tap(port, ifname)),
        _ => {}
    }
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

/// The port's MTU, where it is not what a network card expects.
fn unusual_mtu(port: &PortInfo) -> Option<u32> {
    port.mtu.filter(|mtu| *mtu != 1500)
}

/// QEMU's network card at the netdev `net0`. QEMU gives all guests the same address, so it is told one, made of the names of the port and
/// its bridge (FNV-1a): the same whenever it is asked for.
fn card(port: &PortInfo) -> String {
    let names = [&port.bridge, " ", &port.name].into_iter().flat_map(str::bytes);
    let hash = names.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [_, a, b, c] = hash.to_be_bytes();
    let mtu = unusual_mtu(port).map_or_else(String::new, |mtu| format!(",host_mtu={mtu}"));
    format!("virtio-net-pci,netdev=net0{mtu},mac=52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

/// What libvirt's interface says of the MTU.
fn size(port: &PortInfo) -> String {
    unusual_mtu(port).map_or_else(String::new, |mtu| format!("    <mtu size='{mtu}'/>\n"))
}

/// As part of an option in a shell's line: in QEMU's options a comma is written twice.
fn option(text: &str) -> String {
    word(&text.replace(',', ",,"))
}

/// As a word in a shell's line.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-,:+@%=".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// As the value of an attribute in single quotes.
fn attribute(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

/// How a guest comes to a bridge by the helper, which makes such a port.
fn helper(port: &PortInfo) -> String {
    format!(
        "\nA guest gets such a port by itself, with QEMU's bridge helper:\n\
         \x20 qemu-system-x86_64 … \\\n\
         \x20   -netdev bridge,id=net0,br={},helper=/usr/lib/qemu/vswitch-bridge-helper \\\n\
         \x20   -device {}\n\
         With libvirt (a user's own session), in the domain's <devices>:\n\
         \x20 <interface type='bridge'>\n\
         \x20   <source bridge='{}'/>\n\
         \x20   <model type='virtio'/>\n\
         \x20 </interface>\n",
        option(&port.bridge),
        card(port),
        attribute(&port.bridge)
    )
}

/// How a guest gets the tap that a packet port may stand on.
fn tap(port: &PortInfo, ifname: &str) -> String {
    let inside = port.netns.as_ref().map_or_else(String::new, |netns| {
        let path = if netns.starts_with('/') { netns.clone() } else { format!("/run/netns/{netns}") };
        format!("nsenter --net={path} ")
    });
    format!(
        "\nIf '{ifname}' is to be a QEMU guest's tap, make it once and let QEMU hold it:\n\
         \x20 {inside}ip tuntap add dev {ifname} mode tap vnet_hdr && {inside}ip link set {ifname} up\n\
         \x20 {inside}qemu-system-x86_64 … -netdev tap,id=net0,ifname={},script=no,downscript=no \\\n\
         \x20   -device {}\n\
         With libvirt, instead of the second line, in the domain's <devices>:\n\
         \x20 <interface type='ethernet'>\n\
         \x20   <target dev='{}' managed='no'/>\n\
         \x20   <model type='virtio'/>\n{}\
         \x20 </interface>\n",
        option(ifname),
        card(port),
        attribute(ifname),
        size(port)
    )
}

/// What to give QEMU as the other end of a socket.
fn qemu(port: &PortInfo, socket: &SocketInfo) -> String {
    let kind = port.kind.as_str();
    let place = |text: &Option<String>| option(text.as_deref().unwrap_or_default());
    let server = if is_client(Some(socket)) { "on" } else { "off" };
    let address = match (&socket.path, &socket.address) {
        (Some(_), _) => format!("addr.type=unix,addr.path={}", place(&socket.path)),
        (None, address) => {
            let address = address.clone().unwrap_or_default();
            let (host, port) = address.rsplit_once(':').unwrap_or((&address, ""));
            let host = match host.trim_matches(['[', ']']) {
                "0.0.0.0" | "::" => "HOST",
                host => host,
            };
            format!("addr.type=inet,addr.host={host},addr.port={port}")
        }
    };
    let netdev = if kind == "dgram" {
        let beside = socket.path.as_ref().map(|path| format!("{path}.qemu"));
        let (ours, theirs) = match (socket.role, &socket.peer) {
            (Role::Client, own) => (place(own), place(&socket.path)),
            (Role::Server, Some(_)) => (place(&socket.path), place(&socket.peer)),
            (Role::Server, None) => (place(&socket.path), place(&beside)),
        };
        format!("dgram,id=net0,local.type=unix,local.path={theirs},remote.type=unix,remote.path={ours}")
    } else {
        format!("stream,id=net0,server={server},{address}")
    };
    let again = if server == "off" && kind == "stream" {
        "Before QEMU 8.0 it connects once, when it starts; from then on ',reconnect=1' has it come back after vswitchd\n\
         was restarted. (Here vswitchd may be the client instead: it always comes back.)\n"
    } else {
        ""
    };
    format!(
        "\nThe other end may be a QEMU guest (7.2 or later):\n\
         \x20 qemu-system-x86_64 … \\\n\
         \x20   -netdev {netdev} \\\n\
         \x20   -device {}\n{again}libvirt has no interface of this type.\n",
        card(port)
    )
}

/// What to plug into a folder, or whose folder it is.
fn plugs(port: &PortInfo, path: &str, role: Role) -> String {
    if role == Role::Client {
        return format!("\nThe other end is a VDE switch:\n\x20 vde_switch --sock {}\n", word(path));
    }
    format!(
        "\nThe plug may be a QEMU guest; QEMU plugs in once, when it starts:\n\
         \x20 qemu-system-x86_64 … \\\n\
         \x20   -netdev vde,id=net0,sock={} \\\n\
         \x20   -device {}\n\
         or a TAP device:\n\
         \x20 vde_plug2tap --sock {} tap0\n\
         It has to run as a user who may write to the folder.\n\
         libvirt has no interface of this type.\n",
        option(path),
        card(port),
        word(path)
    )
}

/// What to start QEMU with, and what to tell libvirt.
fn guest(port: &PortInfo, path: &str, role: Role) -> String {
    let place = attribute(path);
    let (chardev, source) = match role {
        Role::Server => (
            "reconnect=1",
            format!(
                "<source type='unix' path='{place}' mode='client'>\n\
                 \x20     <reconnect enabled='yes' timeout='1'/>\n\
                 \x20   </source>"
            ),
        ),
        Role::Client => ("server=on,wait=off", format!("<source type='unix' path='{place}' mode='server'/>")),
    };
    format!(
        "\nStart QEMU with the guest's memory shared, all of it:\n\
         \x20 qemu-system-x86_64 … -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \\\n\
         \x20   -chardev socket,id=char0,path={},{chardev} \\\n\
         \x20   -netdev vhost-user,id=net0,chardev=char0 \\\n\
         \x20   -device {}\n\
         For N queues: queues=N at the netdev, mq=on,vectors=2N+2 at the device; at most {}.\n\
         Without KVM, QEMU 7.2 crashes unless vectors=0 is at the device.\n\
         With libvirt, in the domain:\n\
         \x20 <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\n\
         and in its <devices>:\n\
         \x20 <interface type='vhostuser'>\n\
         \x20   {source}\n\
         \x20   <model type='virtio'/>\n{}\
         \x20 </interface>\n\
         QEMU must be allowed to write to the socket, or vswitchd to its: see to the directory's permissions.\n",
        option(path),
        card(port),
        port.queues,
        size(port)
    )
}

fn state(port: &PortInfo) -> &'static str {
    match port.state {
        State::Up => "up",
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
